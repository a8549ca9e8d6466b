"""What a student of GMCD's stage 2 learns from beside the labels."""

from __future__ import annotations

from dataclasses import dataclass

from medkd.errors import ParameterError
from medkd.training.baselines import BASELINES

GMCD_TERMS = ("kd_teacher", "kd_momentum", "contrast_teacher", "contrast_momentum")
METHODS = ("ce", *BASELINES, "gmcd")


@dataclass(frozen=True)
class Recipe:
    """What a student learns from beside the labels; the defaults are GMCD's.

    Attributes:
        method: "ce" (labels only), a key of `medkd.training.baselines.BASELINES`, or "gmcd".
        temperature: softening of the KL terms. kd_weight, contrast_weight: a and b of the paper.
        n_teachers: 2 for the fixed teacher and the student's momentum copy, 1 for the fixed teacher alone.
        selection: which positives DSCD keeps, see `medkd.losses.memory`; "all" keeps every candidate.
        n_positives, n_selected, n_negatives: candidates of the anchor's class (at most), those kept, and negatives.
        modulation: "threshold" counts gradients whose cosine is above `modulation_threshold`, "soft" sums cosines,
            "none" weighs every term 1.
        modulation_momentum: momentum of the weights.
        momentum: largest momentum of the student's copy.
    """

    method: str = "gmcd"
    temperature: float = 1.0
    kd_weight: float = 1.0
    contrast_weight: float = 0.02
    n_teachers: int = 2
    selection: str = "hard"
    n_positives: int = 300
    n_selected: int = 20
    n_negatives: int = 1024
    modulation: str = "threshold"
    modulation_threshold: float = 0.1
    modulation_momentum: float = 0.5
    momentum: float = 0.99

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f'method "{self.method}" is unknown; known are {", ".join(METHODS)}')
        if self.method == "gmcd" and self.n_selected > self.n_positives:
            raise ParameterError(
                f"n_selected = {self.n_selected} positives cannot be kept of n_positives = {self.n_positives} "
                "candidates; lower n_selected or raise n_positives"
            )
