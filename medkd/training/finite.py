"""A loss that is not finite: found without waiting for the device at every step, and told with its batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medkd import parallel
from medkd.training.checkpoint import has_checkpoint


class NotFinite(Exception):
    """Step number in the epoch (from 0), terms of the loss, and rows of the batch (None: that of another process)."""


class Watch:
    """Stops an epoch at a loss that is not finite.

    On a GPU looking at a number waits for the device, and several processes have to ask each other, so there the first
    bad step is remembered and looked at every 50 steps and at the end of the epoch, before a checkpoint can be written.
    """

    def __init__(self, device: torch.device, first: int = 0) -> None:
        self.every, self.first = 1 if device.type == "cpu" and parallel.world_size() == 1 else 50, first
        self.device = device
        self.bad: Tensor | None = None
        self.terms: dict[str, Tensor] = {}
        self.batches: list[Tensor] = []

    def look(self, loss: Tensor, logged: dict[str, Tensor | float], batch: Tensor) -> None:
        """Note the loss and its terms of the batch of these rows; raises `NotFinite` where it is looked at."""
        step = len(self.batches)
        self.batches.append(batch)
        found = torch.where(torch.isfinite(loss.detach()), -1, step)
        newly = (found >= 0) if self.bad is None else (found >= 0) & (self.bad < 0)
        self.bad = found if self.bad is None else torch.where(newly, found, self.bad)
        for name, value in logged.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=loss.device).detach()
            self.terms[name] = torch.where(newly, value, self.terms[name]) if name in self.terms else value
        if (step + 1) % self.every == 0:
            self.check()

    def check(self) -> None:
        """Look at the device; raises `NotFinite`, in every process if one has found something."""
        step = -1 if self.bad is None else int(self.bad)
        if not parallel.any_of(step >= 0, self.device):
            return
        if step < 0:  # another process tells which batch it was
            raise NotFinite(self.first + len(self.batches) - 1, {}, None)
        raise NotFinite(
            self.first + step, {name: float(value) for name, value in self.terms.items()}, self.batches[step]
        )


def explain(found: NotFinite, title: str, epoch: int, ids: Sequence[str] | None, folder: Path) -> str:
    """The sentence for the user: where it happened, the terms of the loss, the samples, and what to do."""
    step, terms, batch = found.args
    if batch is None:
        return f"{title}, epoch {epoch + 1}: the loss of another process is not finite; see what that one says"
    named = [str(row) if ids is None else str(ids[row]) for row in batch.tolist()]
    kept = "the last good checkpoint is kept; " if has_checkpoint(folder) else ""
    return (
        f"{title}, epoch {epoch + 1}, step {step + 1}: the loss is not finite "
        f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}; "
        f"{'rows' if ids is None else 'ids'} {', '.join(named)}); {kept}"
        'lower the learning rate or set precision="float32"'
    )
