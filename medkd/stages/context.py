"""What every stage needs first: the cohort, the device, and seeds by purpose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from medkd.data.cohort import Cohort
from medkd.data.registry import chain_of, load_cohort
from medkd.errors import ParameterError
from medkd.models.device import keep_freed_memory, pick_device
from medkd.stages.params import StageParams


@dataclass(frozen=True)
class Context:
    """A stage's parameters with the cohort and device they name."""

    params: StageParams
    cohort: Cohort
    device: torch.device

    @classmethod
    def of(cls, params: StageParams, *chains: str) -> Context:
        """Load the cohort; `chains` are those that the stage serves, the first one in the first place.

        Raises:
            ParameterError: the cohort belongs to another chain.
        """
        check_chain(params, *chains)
        device = pick_device(params.device)
        if device.type == "cpu":
            keep_freed_memory()
        return cls(params, cohort_for(params), device)


def check_chain(params: StageParams, *chains: str) -> None:
    """Whether the cohort belongs to one of the chains that the stage serves; none: any will do.

    Raises:
        ParameterError: it does not.
    """
    if chains and chain_of(params.dataset, params.root) not in chains:
        needs = {
            "teacher-student": "a cohort with two modalities",
            "rare": "a cohort with common and rare classes",
        }[chains[0]]
        raise ParameterError(
            f'{params.stage} needs {needs}; dataset = "{params.dataset}" is none. '
            "`medkd data list` shows which cohorts serve which chain"
        )


def cohort_for(params: StageParams) -> Cohort:
    """The cohort that the parameters name, with the modalities that they put into its two slots."""
    cohort = cohort_of(params.dataset, params.root)
    slots = {name: getattr(params, name, "") for name in ("main", "second")}
    return cohort.with_slots(**slots) if any(slots.values()) else cohort


@lru_cache(maxsize=4)
def cohort_of(dataset: str, root: str) -> Cohort:
    """The cohort, read once per process."""
    return load_cohort(dataset, root)
