"""Several processes that train one network, each on its part of every batch; all of it does nothing for a single one.

`medkd train` starts the processes, on several machines through torchrun; torch.distributed connects them. Weights stay
equal because every process applies the mean gradient of all; queues and memory banks stay equal because every process
writes the keys of all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes what only one should."""
    return rank() == 0


def join(store: str = "") -> None:
    """Connect the processes; NCCL for what lies on GPUs, gloo for what lies in main memory.

    Args:
        store: file in which the processes of one machine meet, so that nothing listens to other machines; without it
            they meet as torchrun tells them.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if n_processes == 1 or distributed.is_initialized():
        return
    number = int(os.environ["LOCAL_RANK"])
    if number < torch.cuda.device_count():  # others run on the processor, or are refused by `pick_device`
        torch.cuda.set_device(number)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not store:
        distributed.init_process_group(backend)
        return
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo" if sys.platform == "linux" else "lo0")
    files = distributed.FileStore(store, n_processes)
    distributed.init_process_group(backend, store=files, rank=int(os.environ["RANK"]), world_size=n_processes)


def leave() -> None:
    """Disconnect."""
    if world_size() > 1:
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        distributed.barrier()


def told_by_main(value: Any) -> Any:
    """The main process's value, in every process; a small object."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)


def own_part(rows: Tensor) -> Tensor:
    """This process's rows of a batch, shape (n,) -> (about n / world size,): parts in the order of the processes."""
    return rows.tensor_split(world_size())[rank()] if world_size() > 1 else rows


def gathered(values: Tensor) -> Tensor:
    """Rows of all processes, one process's under another's, without gradient.

    Args:
        values: shape (n, ...); n may differ between processes.
    """
    if world_size() == 1:
        return values
    values = values.detach()
    counts = [torch.zeros((), dtype=torch.long) for _ in range(world_size())]  # in main memory: no wait for a device
    distributed.all_gather(counts, torch.tensor(len(values)))
    largest = max(int(count) for count in counts)
    padded = values.new_zeros((largest, *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def dealt(rows: Tensor) -> Tensor:
    """Rows of all processes, dealt out among them one by one, so that each has some of every other, without gradient.

    Args:
        rows: this process's part of a batch, see `own_part`.
    """
    return gathered(rows)[rank() :: world_size()] if world_size() > 1 else rows


def undealt(rows: Tensor) -> Tensor:
    """What became of the rows that `dealt` gave to this process, back where they came from; without gradient."""
    if world_size() == 1:
        return rows
    everyone = gathered(rows)
    numbers = torch.arange(len(everyone), device=rows.device)
    return own_part(everyone[torch.cat([numbers[first :: world_size()] for first in range(world_size())]).argsort()])


def share_gradients(parameters: Iterable[nn.Parameter], n_own: int, n_all: int) -> None:
    """Give every process the gradient of the whole batch: the mean over processes, weighted by their rows.

    Args:
        parameters: whose gradients are shared; those without one anywhere are passed over.
        n_own: rows of this process.
        n_all: rows of the batch.
    """
    if world_size() == 1:
        return
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([parameter.grad.flatten() for parameter in learned]).mul_(n_own / n_all)
    distributed.all_reduce(flat)
    for parameter, part in zip(learned, flat.split([parameter.numel() for parameter in learned]), strict=True):
        parameter.grad.copy_(part.view_as(parameter.grad))


def mean_of(value: Tensor) -> Tensor:
    """Mean over processes."""
    if world_size() == 1:
        return value
    shared = value.clone()
    distributed.all_reduce(shared)
    return shared / world_size()


def share_state(modules: nn.Module, *, from_main: bool = False) -> None:
    """Make the state of all processes equal.

    Args:
        modules: whose parameters and buffers; batch statistics and other floating-point buffers become the mean over
            processes, everything else that of the main process.
        from_main: take everything from the main process.
    """
    if world_size() == 1:
        return
    learned = {id(parameter) for parameter in modules.parameters()}
    for tensor in [*modules.parameters(), *modules.buffers()]:
        if not from_main and tensor.is_floating_point() and id(tensor) not in learned:
            tensor.data.copy_(mean_of(tensor.data))
        else:
            distributed.broadcast(tensor.data, src=0)
