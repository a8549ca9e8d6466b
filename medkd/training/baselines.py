"""Distillation baselines on one interface: each adds one weighted term to the student's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medkd.errors import ParameterError
from medkd.losses import distillation
from medkd.losses.contrast_sampler import ContrastSampler
from medkd.losses.memory import ContrastiveDistillation
from medkd.models.teacher import Output, TeacherOutput


@dataclass(frozen=True)
class Batch:
    """What a distillation loss may look at: both networks on the same view of the same samples.

    Attributes:
        student: features and scores of the student.
        teacher: all branches of the teacher, without gradient.
        student_maps, teacher_maps: last feature maps (n, c, h, w) of the student and of the teacher's main branch, or
            None where the method does not ask for them.
        slots: place of each sample among the training rows, shape (n,).
        generator: of the draws.
    """

    student: Output
    teacher: TeacherOutput
    student_maps: Tensor | None
    teacher_maps: Tensor | None
    slots: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Baseline:
    """A published method: its name in tables, its weight beside the cross-entropy, and what it compares."""

    title: str
    weight: float
    maps: bool = False


BASELINES: dict[str, Baseline] = {
    "kd": Baseline("KD", 1.0),
    "hint": Baseline("FitNet hint", 100.0),
    "at": Baseline("AT", 1000.0, maps=True),
    "sp": Baseline("SP", 3000.0),
    "rkd": Baseline("RKD", 1.0),
    "pkt": Baseline("PKT", 30_000.0),
    "cc": Baseline("CC", 0.02),
    "vid": Baseline("VID", 1.0),
    "nst": Baseline("NST", 50.0, maps=True),
    "crd": Baseline("CRD", 0.8),
    "feature_kl": Baseline("feature KL", 1.0),
}
"""Weights of Tian et al. 2020 (arXiv:1910.10699, appendix). KD's is the `kd_weight` of the recipe; feature KL, which is
not among theirs, counts 1."""

_FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": distillation.hint,
    "sp": distillation.similarity_preserving,
    "rkd": distillation.relational,
    "pkt": distillation.probabilistic_transfer,
    "cc": distillation.correlation_congruence,
    "feature_kl": distillation.feature_kl,
}
_MAP_LOSSES = {"at": distillation.attention_transfer, "nst": distillation.neuron_selectivity}


def build_baseline(
    name: str, *, dim: int, labels: Tensor, exact: bool = False, n_negatives: int, generator: torch.Generator
) -> nn.Module:
    """The loss of a baseline other than "kd": maps a `Batch` to an unweighted scalar.

    The teacher's side is its fused feature; AT and NST compare maps of the student with those of the teacher's main
    branch, because the fused feature has none.

    Args:
        name: key of `BASELINES`.
        dim: length of both features.
        labels: class of every training row, shape (n_train,), for CRD's memory.
        exact: there are no classes: CRD's negatives are all other rows, whatever their label.
        n_negatives: negatives per anchor, for CRD.
        generator: seeds regressors, heads and banks.

    Raises:
        ParameterError: no loss is known by this name.
    """
    if name in _FEATURE_LOSSES:
        return _OfFeatures(_FEATURE_LOSSES[name])
    if name in _MAP_LOSSES:
        return _OfMaps(_MAP_LOSSES[name])
    if name == "vid":
        return _Variational(dim, generator)
    if name == "crd":
        return _Contrastive(dim, labels, exact, n_negatives, generator)
    raise ParameterError(f'no loss is known for the baseline "{name}"; add it to _FEATURE_LOSSES or _MAP_LOSSES')


class _OfFeatures(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(batch.student.features, batch.teacher.fused.float())


class _OfMaps(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(batch.student_maps.float(), batch.teacher_maps.float())


class _Variational(nn.Module):
    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.information = distillation.VariationalInformation(dim, dim, generator=generator)

    def forward(self, batch: Batch) -> Tensor:
        return self.information(batch.student.features, batch.teacher.fused.float())


class _Contrastive(nn.Module):
    """CRD: the anchor's own row is the only positive; negatives are of other classes, or if `exact` all others."""

    def __init__(self, dim: int, labels: Tensor, exact: bool, n_negatives: int, generator: torch.Generator) -> None:
        super().__init__()
        self.memory = ContrastiveDistillation(len(labels), dim, dim, embed_dim=dim, generator=generator)
        self.sampler = ContrastSampler(labels, n_positives=1, n_negatives=n_negatives, exact=exact)

    def forward(self, batch: Batch) -> Tensor:
        candidates = self.sampler(batch.slots, batch.generator)
        return self.memory(batch.student.features, batch.teacher.fused.float(), batch.slots, candidates)
