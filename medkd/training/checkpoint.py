"""Where a training stands, on disk: enough to go on bit for bit, whatever ended it."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medkd import parallel
from medkd.errors import TrainingError
from medkd.files import digest_of, write_json, write_tensors

if TYPE_CHECKING:
    from medkd.training.loop import Step

KEPT = 2
"""Checkpoints that stay: the newest, and the one before in case that is damaged."""


@dataclass
class Position:
    """Where a training stands, beside the state of networks, optimiser and random numbers.

    Attributes:
        epoch: epochs finished.
        step: steps done of the present epoch.
        order: rows of the present epoch in the order they are drawn, shape (n,); empty between epochs.
        sums: sums over the present epoch's steps of every logged number.
        seconds: spent in the present epoch.
        total_steps: steps done since the start.
        history: one record a finished epoch.
        best: weights of the best epoch so far; empty where none is selected.
    """

    epoch: int = 0
    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    total_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def write_checkpoint(
    folder: Path, step: Step, optimizer: torch.optim.Optimizer, generator: torch.Generator, position: Position
) -> None:
    """Write the tensors, then the small file that makes them valid; a kill in between leaves the older ones in force.

    Raises:
        TrainingError: the disk is full; the older checkpoints stay.
    """
    tensors = {f"modules.{name}": value for name, value in step.modules.state_dict().items()}
    tensors |= {
        f"optimizer.{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    tensors |= {f"best.{name}": value for name, value in position.best.items()}
    tensors |= {f"sums.{name}": value for name, value in position.sums.items()}
    tensors |= {"order": position.order, "generator": generator.get_state(), "torch_rng": torch.get_rng_state()}
    if step.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(step.device)
    path = folder / f"checkpoint.{position.total_steps}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors)
        record = {name: getattr(position, name) for name in ("epoch", "step", "seconds", "total_steps", "history")}
        record["logged"] = list(position.sums)  # safetensors forgets the order
        write_json(path.with_suffix(".json"), record | {"sha256": digest_of(path)})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path.unlink(missing_ok=True)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise TrainingError(
            f"the disk of {folder} is full: a checkpoint needs {needed / 1e6:.0f} MB; the last good one is kept, make "
            "room and run the same command again"
        ) from error
    found = _found(folder)
    kept = [old for steps, old in found if steps <= position.total_steps][:KEPT]  # those of later steps were refused
    for _, old in found:
        if old not in kept:
            old.unlink()
    for tensors_file in folder.glob("checkpoint.*.safetensors"):
        if not tensors_file.with_suffix(".json").exists():  # also of a process that was killed before the small file
            tensors_file.unlink()


def read_checkpoint(
    folder: Path, step: Step, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Position | None:
    """Restore the newest checkpoint that is whole and fits; warns of each that does not. None if there is none."""
    for _, path in _found(folder):
        try:
            record = json.loads(path.read_text())
            tensors = _checked_tensors(path.with_suffix(".safetensors"), record.pop("sha256"))
            if _shapes(_under(tensors, "modules.")) != _shapes(step.modules.state_dict()):
                raise ValueError("it holds the state of another version's networks")
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(
                f"{path.with_suffix('')} cannot be used ({error}); going on from the one before it, or from the start",
                stacklevel=3,
            )
            continue
        _restore(tensors, step, optimizer, generator)
        sums = {name: tensors[f"sums.{name}"] for name in record.pop("logged")}
        return Position(order=tensors["order"], sums=sums, best=_under(tensors, "best."), **record)
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove every checkpoint, once all that follows the training is written too."""
    for path in [*folder.glob("checkpoint.*"), *folder.glob(".checkpoint.*.part")]:
        path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Whether an unfinished training left a checkpoint here."""
    return bool(_found(folder))


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Steps and record of every checkpoint, newest first."""
    numbered = [(path.name.split(".")[1], path) for path in folder.glob("checkpoint.*.json")]
    return sorted(((int(steps), path) for steps, path in numbered if steps.isdigit()), reverse=True)


def _checked_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    if digest_of(path) != expected:
        raise ValueError("its checksum differs")
    from safetensors.torch import load_file

    return load_file(path)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _restore(
    tensors: Mapping[str, Tensor], step: Step, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    step.modules.load_state_dict(_under(tensors, "modules."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    _lay_out_like_weights(optimizer)
    generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch_rng"])
    if "cuda_rng" in tensors and step.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_rng"], step.device)


def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give the state the memory layout of its weights, which files forget.

    Fused kernels go through raw memory: on a processor they would apply the momentum of channels-last weights to the
    wrong elements and say nothing, on a GPU they refuse.
    """
    for weight, entry in optimizer.state.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                entry[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def refuse_other_checkpoints(position: Position, step: Step, folder: Path, title: str) -> None:
    """Of several processes all go on from one checkpoint; a disk of the network may show it late to some.

    Raises:
        TrainingError: in every process, if one of them has found another.
    """
    found = position.total_steps
    if parallel.any_of(found != parallel.told_by_main(found), step.device):
        raise TrainingError(
            f"{title}: the processes found different checkpoints in {folder}, this one that of step {found}; run the "
            "same command again once all machines see the same files"
        )
