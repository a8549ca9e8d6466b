"""Where a model runs and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from contextlib import AbstractContextManager

import torch
from torch import nn

from medkd.errors import ParameterError
from medkd.parallel import local_rank, world_size

PRECISIONS = ("auto", "bfloat16", "float32")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
GIB = 1 << 30


def pick_device(name: str = "auto") -> torch.device:
    """The device to run on.

    Args:
        name: "auto" takes the GPU if there is one and the processor if not; else a torch device name
            such as "cpu", "cuda" or "cuda:1".

    Raises:
        ParameterError: if the name is no device's, that device is not in this machine, or of several processes each
            would not have a GPU of its own.
    """
    device = named_device(name)
    if device is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() > 1 and (device is None or device.type == "cuda"):
        return _own_gpu(device)
    if device is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParameterError(
            f'device="{name}" was asked for, but torch sees {torch.cuda.device_count()} GPU(s) here; '
            'use device="auto" or "cpu", or install the CUDA build of torch'
        )
    return device


def _own_gpu(asked: torch.device | None) -> torch.device:
    """Of several processes each has a GPU of its own, which `medkd.parallel.join` made its current one."""
    if asked is not None and asked.index is not None:
        raise ParameterError(f'device="{asked}" would give one GPU to {world_size()} processes; use device="cuda"')
    if (own := local_rank()) >= torch.cuda.device_count():
        raise ParameterError(
            f"there are more processes on this machine than GPUs ({torch.cuda.device_count()}); lower --devices, or "
            'use device="cpu"'
        )
    return torch.device("cuda", own)


def named_device(name: str) -> torch.device | None:
    """The device of this name, which need not be in this machine; None for "auto".

    Raises:
        ParameterError: if the name is no processor's or GPU's.
    """
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ParameterError(f'device="{name}" is not supported; use "auto", "cpu", "cuda" or "cuda:<number>"')
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware on this device; emulated ones are slower than float32."""
    if device.type == "cuda":
        # as torch's is_bf16_supported, which asks the current GPU alone
        return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= 8
    try:  # oneDNN says yes to every CPU with AVX-512, and emulates what it lacks
        has = any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
        return has and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # an older torch, or one built without oneDNN
        return False


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Context in which a forward pass runs in mixed precision.

    bfloat16 keeps float32's exponent range, so no gradient scaler is needed.

    Args:
        device: where the tensors are.
        precision: "auto" takes bfloat16 where the hardware has it, else float32; "bfloat16" insists;
            "float32" switches autocast off.

    Raises:
        ParameterError: for another word.
    """
    if precision not in PRECISIONS:
        raise ParameterError(f'precision="{precision}" is unknown; choose one of {", ".join(PRECISIONS)}')
    if precision == "float32" or (precision == "auto" and not has_native_bfloat16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def keep_freed_memory(up_to: int = GIB) -> None:
    """Let the C library keep freed blocks of up to so many bytes for the next tensors, on Linux; elsewhere nothing.

    By default it gives blocks above 32 MiB back at once, and every activation of that size is mapped anew, page by
    page, in every step: a tenth of the time of a step at 48 px and batch 128, see benchmarks/bench_moco.py.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(threshold, up_to)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model; its 4-d weights become channels-last, the layout that convolutions are fastest in."""
    return model.to(device, memory_format=torch.channels_last)
