"""The one training loop: epochs over rows, schedule, autocast, history, progress, checkpoints and resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medkd.errors import TrainingError
from medkd.files import write_json, write_tensors


class Step(Protocol):
    """One stage's training step; `training/<stage>.py` has one class each."""

    modules: nn.Module
    """Everything with state that a resumed run needs: networks, momentum copies, queues, banks."""

    device: torch.device

    def start(self, generator: torch.Generator) -> None:
        """Called once before the first batch; random numbers of augmentation and sampling come from `generator`."""

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of the batch of these rows, and named numbers to log; `progress` is the share of epochs done."""

    def after_step(self) -> None:
        """Called after each optimiser step, for example to move a momentum copy."""

    def validate(self) -> dict[str, float]:
        """Numbers logged after each epoch; an empty dict where there is nothing to validate on."""


Schedule = Callable[[int, int], float]
"""(epoch, n_epochs) -> factor on the learning rate."""


def linear_decay(epoch: int, n_epochs: int) -> float:
    """1 - (epoch + 1) / (n_epochs + 1): GMCD's schedule (epochs 0..29 of 30 give .968 to .032)."""
    return 1 - (epoch + 1) / (n_epochs + 1)


def step_decay(epoch: int, n_epochs: int) -> float:
    """Times 0.1 at 60% and again at 80% of the epochs: MoCo v1's 120 and 160 of 200."""
    return 0.1 ** ((epoch >= 0.6 * n_epochs) + (epoch >= 0.8 * n_epochs))


def cosine_decay(epoch: int, n_epochs: int) -> float:
    """Half a cosine from 1 to 0: MoCo v2's schedule, per epoch."""
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / n_epochs)).item())


SCHEDULES: dict[str, Schedule] = {"linear": linear_decay, "step": step_decay, "cosine": cosine_decay}


def fit(
    step: Step,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    schedule: Schedule,
    seed: int,
    folder: Path,
    title: str,
    select: str = "",
    ids: Sequence[str] | None = None,
    checkpoint_seconds: float = 60.0,
) -> pd.DataFrame:
    """Train `step` on `rows`; an interrupted call goes on from its last checkpoint in `folder`.

    Batches are drawn without replacement and the last, smaller one is dropped, as both papers do.

    Args:
        step: the stage's step.
        rows: row numbers to train on, shape (n,), int64.
        optimizer: over the parameters that learn.
        epochs: passes over `rows`.
        batch_size: rows a step, at most n.
        schedule: factor on the learning rate by epoch.
        seed: seeds order, augmentation and dropout.
        folder: where checkpoints lie while the run is not finished.
        title: name on the progress bar.
        select: name of a validation number; the weights of the epoch where it is largest come back. "" keeps the last.
        ids: id of every row of the cohort, for error messages; None for row numbers.
        checkpoint_seconds: least time between two checkpoints, which are written between epochs; the first epoch is
            followed by one at once.

    Returns:
        History: one row an epoch with epoch, lr, seconds, the mean of every logged number, and validation numbers.

    Raises:
        TrainingError: the loss is not finite (names step, terms and batch; the last checkpoint, written while all was
            finite, is kept), or there are fewer rows than `batch_size`.
    """
    if len(rows) < batch_size:
        raise TrainingError(
            f"{title}: {len(rows)} training rows are fewer than batch_size = {batch_size}; lower batch_size"
        )
    generator = torch.Generator().manual_seed(seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    devices = [step.device] if step.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout takes no generator of its own
        step.start(generator)
        resumed = _read_checkpoint(folder, step, optimizer, generator)
        if resumed:
            history, best = resumed
        bar = tqdm(total=epochs, initial=len(history), desc=title, unit="epoch", mininterval=1.0)
        last_saved = time.monotonic() if history else -math.inf
        for epoch in range(len(history), epochs):
            start = time.monotonic()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(epoch, epochs)
            try:
                logged = _epoch(step, rows, optimizer, generator, batch_size, epoch / epochs)
            except _NotFinite as found:
                raise TrainingError(_explain(found, title, epoch, ids, folder)) from None
            record = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **logged, **step.validate()}
            record["seconds"] = round(time.monotonic() - start, 3)
            if select and (not history or record[select] > max(row[select] for row in history)):
                best = {name: tensor.detach().cpu().clone() for name, tensor in step.modules.state_dict().items()}
            history.append(record)
            bar.update()
            bar.set_postfix_str(f"loss {record['loss']:.3f}" + (f", {select} {record[select]:.3f}" if select else ""))
            if time.monotonic() - last_saved > checkpoint_seconds and epoch + 1 < epochs:
                _write_checkpoint(folder, step, optimizer, generator, history, best)
                last_saved = time.monotonic()
        bar.close()
    if best:
        step.modules.load_state_dict(best)
    for path in folder.glob("checkpoint.*"):
        path.unlink()
    return pd.DataFrame(history)


def _epoch(
    step: Step,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batch_size: int,
    progress: float,
) -> dict[str, float]:
    """One pass; returns the mean of each logged number.

    Raises:
        _NotFinite: at the first step whose loss is not finite.
    """
    step.modules.train()
    sums: dict[str, Tensor] = {}
    watch = _Watch(step.device)
    n_steps = 0
    for batch in _batches(rows, batch_size, generator):
        loss, logged = step.loss(batch, progress)
        watch.look(loss, logged, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step.after_step()
        n_steps += 1
        for name, value in {"loss": loss, **logged}.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach()
            sums[name] = sums[name] + value if name in sums else value
    watch.check()
    return {name: float(total) / n_steps for name, total in sums.items()}


class _NotFinite(Exception):
    """Step number in the epoch (from 0), terms of the loss, and rows of the batch."""


class _Watch:
    """Stops an epoch at a loss that is not finite.

    On a GPU looking at a number waits for the device, so there the first bad step is remembered on the device and
    looked at every 50 steps and at the end of the epoch, before a checkpoint can be written.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else 50
        self.bad: Tensor | None = None
        self.terms: dict[str, Tensor] = {}
        self.batches: list[Tensor] = []

    def look(self, loss: Tensor, logged: dict[str, Tensor | float], batch: Tensor) -> None:
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
        """Look at the device; raises `_NotFinite`."""
        if self.bad is not None and (step := int(self.bad)) >= 0:
            raise _NotFinite(step, {name: float(value) for name, value in self.terms.items()}, self.batches[step])


def _explain(found: _NotFinite, title: str, epoch: int, ids: Sequence[str] | None, folder: Path) -> str:
    step, terms, batch = found.args
    named = [str(row) if ids is None else str(ids[row]) for row in batch.tolist()]
    kept = "the checkpoint of the last good epoch is kept; " if (folder / "checkpoint.json").exists() else ""
    return (
        f"{title}, epoch {epoch + 1}, step {step + 1}: the loss is not finite "
        f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}; "
        f"{'rows' if ids is None else 'ids'} {', '.join(named)}); {kept}"
        'lower the learning rate or set precision="float32"'
    )


def _batches(rows: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = rows[torch.randperm(len(rows), generator=generator)]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _write_checkpoint(
    folder: Path,
    step: Step,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: list[dict[str, Any]],
    best: dict[str, Tensor],
) -> None:
    """Tensors first, then the small file that makes them valid; a kill in between leaves the older pair in force."""
    state = optimizer.state_dict()
    moments = {
        f"optimizer.{index}.{name}": value
        for index, entry in state["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    tensors = {f"modules.{name}": value for name, value in step.modules.state_dict().items()}
    tensors |= moments | {f"best.{name}": value for name, value in best.items()}
    tensors |= {"generator": generator.get_state(), "torch_rng": torch.get_rng_state()}
    if step.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(step.device)
    previous = set(folder.glob("checkpoint.*.safetensors"))
    path = folder / f"checkpoint.{len(history)}.safetensors"
    write_tensors(path, tensors)
    write_json(folder / "checkpoint.json", {"tensors": path.name, "history": history})
    for old in previous - {path}:
        old.unlink()


def _read_checkpoint(
    folder: Path, step: Step, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
    record_path = folder / "checkpoint.json"
    if not record_path.exists():
        return None
    from safetensors.torch import load_file

    record = json.loads(record_path.read_text())
    tensors = load_file(folder / record["tensors"])

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    step.modules.load_state_dict(under("modules."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in under("optimizer.").items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch_rng"])
    if "cuda_rng" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_rng"], step.device)
    return record["history"], under("best.")
