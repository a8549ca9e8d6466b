"""What every stage needs first: the cohort, the device, and seeds by purpose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch

from medkd.data.cohort import Cohort
from medkd.data.registry import chain_of, load_cohort
from medkd.errors import ParameterError
from medkd.models.device import pick_device
from medkd.stages.params import StageParams


@dataclass(frozen=True)
class Context:
    """A stage's parameters with the cohort and device they name."""

    params: StageParams
    cohort: Cohort
    device: torch.device

    @classmethod
    def of(cls, params: StageParams, chain: str = "") -> Context:
        """Load the cohort; `chain` says which of the two chains the stage belongs to.

        Raises:
            ParameterError: the cohort belongs to the other chain.
        """
        if chain and chain_of(params.dataset) != chain:
            needs = {
                "teacher-student": "a cohort with two modalities",
                "rare": "a cohort with common and rare classes",
            }[chain]
            raise ParameterError(
                f'{params.stage} needs {needs}; dataset = "{params.dataset}" is none. '
                "`medkd data list` shows which cohorts serve which chain"
            )
        return cls(params, cohort_of(params.dataset, params.root), pick_device(params.device))


@lru_cache(maxsize=4)
def cohort_of(dataset: str, root: str) -> Cohort:
    """The cohort, read once a process."""
    return load_cohort(dataset, root)


def seed_for(seed: int, *purpose: object) -> int:
    """A seed for one purpose, so that two uses of one `seed` do not share random numbers."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, *purpose))
