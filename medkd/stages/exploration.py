"""Stage 01: look at a cohort before anything is trained."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from medkd.stages.params import StageParams, shared


class ExplorationParams(StageParams):
    """Parameters of the exploration; nothing is trained and nothing is stored."""

    stage: ClassVar[str] = "01_data_exploration"

    n_folds: int = shared(5, "folds whose splits are checked", ge=2)
    split_file: str = shared("", 'CSV of published splits; empty: the cohort\'s own, else n_folds; "none": n_folds')
    image_size: int = shared(48, "side of the square images that the networks will see, pixels", ge=16)
    n_examples: int = Field(6, description="images shown a class", ge=1)
