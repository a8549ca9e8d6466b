"""GMCD stage 1: the multi-modal teacher under mean-teacher distillation and the M3LR low-rank constraint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.evaluation.predict import predict
from medkd.losses.distillation import distillation_loss
from medkd.losses.lowrank import LowRankLoss
from medkd.models.device import autocast
from medkd.models.momentum import MomentumCopy, warmup_momentum
from medkd.models.teacher import MultimodalTeacher, TeacherOutput
from medkd.training.inputs import Modality
from medkd.training.validation import validation_numbers

BRANCHES = ("fused", "main", "second")


class TeacherStep:
    r"""One step: :math:`L = \sum_m NLL_m + \sum_m KL_m + \lambda_1 |\theta_{vector}|_1 + L_{LR}` over the three heads.

    The network sees view A, its momentum copy view B of the same images. Each branch is pulled towards the same
    branch of the momentum copy (KL without temperature), and the affinities of fused and single-modality features,
    current and momentum, are pulled towards a low-rank tensor (M3LR, four views a modality).

    Args:
        teacher: network with three heads.
        inputs: main and second modality.
        labels: class of every row of the cohort, shape (n,).
        validation_rows: rows for the numbers logged after each epoch.
        momentum: largest momentum of the momentum copy.
        low_rank_weight: Lambda of M3LR; 0 leaves the term out.
        shrinkage: "weighted" or "plain", see `medkd.losses.lowrank.shrink`.
        mean_teacher: weight of the KL terms; 0 leaves them out.
        l1: weight of the L1 penalty on the vector encoder, if the second modality is a vector.
        device, precision: where and in which precision the network runs.

    Source:
        Xing et al. 2023 (GMCD), stage 1.
    """

    def __init__(
        self,
        teacher: MultimodalTeacher,
        inputs: Sequence[Modality],
        labels: Tensor,
        validation_rows: Tensor,
        *,
        momentum: float,
        low_rank_weight: float,
        shrinkage: str,
        mean_teacher: float,
        l1: float,
        device: torch.device,
        precision: str,
    ) -> None:
        self.teacher, self.inputs, self.device, self.precision = teacher, inputs, device, precision
        self.labels, self.validation_rows = labels.to(device), validation_rows
        self.momentum, self.mean_teacher, self.l1 = momentum, mean_teacher, l1
        self.copy = MomentumCopy(teacher)
        self.low_rank = LowRankLoss(weight=low_rank_weight, kind=shrinkage).to(device) if low_rank_weight else None
        self.modules = nn.ModuleDict(
            {"teacher": teacher, "copy": self.copy} | ({"low_rank": self.low_rank} if self.low_rank else {})
        )
        self.modules.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        self.penalised = [p for p in teacher.second.encoder.parameters() if p.requires_grad] if l1 else []

    def start(self, generator: torch.Generator) -> None:
        """Keep the generator that draws the views."""
        self.generator = generator

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch, and its terms."""
        labels = self.labels[rows.to(self.device)]
        with autocast(self.device, self.precision):
            current = self.teacher(*(modality.augmented(rows, self.generator) for modality in self.inputs))
            with torch.no_grad():
                momentum = self.copy(*(modality.augmented(rows, self.generator) for modality in self.inputs))
        terms = {"nll": sum(F.cross_entropy(_logits(current, branch), labels) for branch in BRANCHES)}
        if self.mean_teacher:
            terms["mean_teacher"] = self.mean_teacher * sum(
                distillation_loss(_logits(current, branch), _logits(momentum, branch), temperature=1.0)
                for branch in BRANCHES
            )
        if self.penalised:
            terms["l1"] = self.l1 * sum(parameter.abs().sum() for parameter in self.penalised)
        if self.low_rank is not None:
            terms["low_rank"] = self.low_rank(_views(current, momentum, "main"), _views(current, momentum, "second"))
        return sum(terms.values()), dict(terms)

    def after_step(self) -> None:
        """Move the momentum copy; its first move copies the network."""
        self.copy.update(self.teacher, warmup_momentum(int(self.modules.n_steps), self.momentum))
        self.modules.n_steps += 1

    def validate(self) -> dict[str, float]:
        """Balanced accuracy and macro AUC of the fused head on the validation rows."""
        found = predict(
            self.teacher,
            self.inputs,
            self.validation_rows,
            device=self.device,
            precision=self.precision,
            head="logits_fused",
            features="fused",
        )
        return validation_numbers(self.labels[self.validation_rows.to(self.device)], found.probabilities)


def _logits(output: TeacherOutput, branch: str) -> Tensor:
    return getattr(output, f"logits_{branch}").float()


def _views(current: TeacherOutput, momentum: TeacherOutput, branch: str) -> list[Tensor]:
    """The four views of one modality: fused, its momentum copy, the branch (alone with gradient), its momentum copy."""
    return [
        current.fused.detach().float(),
        momentum.fused.float(),
        getattr(current, branch).float(),
        getattr(momentum, branch).float(),
    ]
