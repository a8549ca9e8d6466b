"""Numbers that half precision would spoil."""

from __future__ import annotations

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """At least float32: half precision loses small probabilities, and is a few thousandths off at cosines near 1."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
