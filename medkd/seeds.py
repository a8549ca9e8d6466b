"""Random numbers for one purpose each."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, *purpose: object) -> int:
    """A seed for one purpose, so that two uses of one `seed` do not share random numbers."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, *purpose))
