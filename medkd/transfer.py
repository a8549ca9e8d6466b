"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor

STAGED = 2**16
"""Bytes of unpinned memory that CUDA copies aside at once."""


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for a GPU.

    A plain `.to` stops until the GPU has done all that it was asked before. Up to 64 kB are staged before the call
    returns, so the source may change at once; more is pinned first, a copy too. To main memory the copy is waited for.
    """
    if device.type == "cpu" or tensor.device == device:
        return tensor.to(device)
    if tensor.device.type == "cpu" and tensor.nbytes > STAGED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
