"""GMCD stage 1: the multi-modal teacher under mean-teacher distillation and the M3LR low-rank constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from medkd.errors import ParameterError
from medkd.evaluation.predict import predict
from medkd.losses.lowrank import LowRankLoss, relation_matrix, shrink, singular_values
from medkd.losses.orthogonality import orthogonality
from medkd.models.device import autocast
from medkd.models.mode import evaluating
from medkd.models.momentum import MomentumCopy, warmup_momentum
from medkd.models.teacher import MultimodalTeacher, TeacherOutput
from medkd.training.inputs import Modality
from medkd.training.loop import Step
from medkd.training.tasks import Task

BRANCHES = ("fused", "main", "second")
MIXES = ((0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
"""Shares of the own and of the other modality in the views beyond four."""


@dataclass(frozen=True)
class TeacherRecipe:
    """Terms of the teacher's loss beside the supervised one; the defaults are the paper's.

    Attributes:
        mean_teacher: weight of the KL towards the momentum copy; 0 leaves it out.
        n_teachers: branches of the momentum copy that teach a single-modality branch: 1 its own, 2 also the fused one,
            3 also the other modality's; the fused branch always learns from its own.
        low_rank_weight: Lambda of M3LR; 0 leaves it out.
        shrinkage: "weighted" or "plain", see `medkd.losses.lowrank.shrink`.
        n_views: views per modality in the low-rank tensor, 2, 4, 6 or 8.
        momentum_views: False leaves the views of the momentum copy out (an ablation).
        mu, max_mu, mu_growth: penalty of M3LR at the start, its ceiling, and its factor a step.
        orthogonal: weight of the orthogonality between the two branches; 0 leaves it out.
        l1: weight of the L1 penalty on vector encoders.
        momentum: largest momentum of the momentum copy.
    """

    mean_teacher: float = 1.0
    n_teachers: int = 1
    low_rank_weight: float = 0.1
    shrinkage: str = "weighted"
    n_views: int = 4
    momentum_views: bool = True
    mu: float = 1e-5
    max_mu: float = 1.0
    mu_growth: float = 1.1
    orthogonal: float = 0.0
    l1: float = 3e-4
    momentum: float = 0.99

    def __post_init__(self) -> None:
        if self.n_views not in (2, 4, 6, 8) or self.n_teachers not in (1, 2, 3):
            raise ParameterError(
                f"n_views = {self.n_views} must be 2, 4, 6 or 8, and n_teachers = {self.n_teachers} must be 1, 2 or 3"
            )
        if not self.momentum_views and self.n_views != 4:
            raise ParameterError(
                f"momentum_views = false leaves two views of n_views = 4, but n_views = {self.n_views}; set it to 4"
            )


class TeacherStep(Step):
    r"""One step: :math:`L = \sum_m L_m + \sum_m KL_m + \lambda_1 |\theta_{vector}|_1 + L_{LR}` over the three heads.

    The network sees view A, its momentum copy view B of the same samples. Each branch is pulled towards the momentum
    copy (KL without temperature), and the affinities of fused and single-modality features, current and momentum, are
    pulled towards a low-rank tensor (M3LR). Only a branch's own current view carries gradient there.

    Args:
        teacher: network with three heads.
        inputs: main and second modality.
        task: what is predicted.
        validation_rows: rows for the numbers logged after each epoch.
        vectors: names of the branches ("main", "second") that encode a vector: the L1 penalty is on these.
        recipe: terms and weights.
        device, precision: where and in which precision the network runs.

    Source:
        Xing et al. 2023 (GMCD), stage 1.
    """

    def __init__(
        self,
        teacher: MultimodalTeacher,
        inputs: Sequence[Modality],
        task: Task,
        validation_rows: Tensor,
        *,
        vectors: Sequence[str] = (),
        recipe: TeacherRecipe,
        device: torch.device,
        precision: str,
    ) -> None:
        self.teacher, self.inputs, self.task, self.recipe = teacher, inputs, task, recipe
        self.device, self.precision, self.validation_rows = device, precision, validation_rows
        self.copy = MomentumCopy(teacher)
        self.modules = nn.ModuleDict({"teacher": teacher, "copy": self.copy})
        self.low_rank: LowRankLoss | None = None
        if recipe.low_rank_weight:
            schedule = {"mu": recipe.mu, "max_mu": recipe.max_mu, "growth": recipe.mu_growth}
            self.low_rank = LowRankLoss(weight=recipe.low_rank_weight, kind=recipe.shrinkage, **schedule).to(device)
            self.modules["low_rank"] = self.low_rank
        self.modules.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        self.penalised = [
            parameter
            for branch in vectors
            for parameter in getattr(teacher, branch).encoder.parameters()
            if parameter.requires_grad and recipe.l1
        ]

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch, and its terms."""
        current, momentum = self._both(rows)
        terms = {"nll": sum(self.task.loss(_scores(current, branch), rows) for branch in BRANCHES)}
        if self.recipe.mean_teacher:
            terms["mean_teacher"] = self.recipe.mean_teacher * sum(
                self._mean_teacher(current, momentum, branch) for branch in BRANCHES
            )
        if self.penalised:
            terms["l1"] = self.recipe.l1 * sum(parameter.abs().sum() for parameter in self.penalised)
        if self.recipe.orthogonal:
            terms["orthogonal"] = self.recipe.orthogonal * orthogonality(current.main, current.second)
        if self.low_rank is not None:
            terms["low_rank"] = self.low_rank(*(self._views(current, momentum, branch) for branch in BRANCHES[1:]))
        return sum(terms.values()), dict(terms)

    def after_step(self) -> None:
        """Move the momentum copy; its first move copies the network."""
        self.copy.update(self.teacher, warmup_momentum(int(self.modules.n_steps), self.recipe.momentum))
        self.modules.n_steps += 1

    def validate(self) -> dict[str, float]:
        """The task's numbers of the fused head on the validation rows."""
        found = predict(
            self.teacher,
            self.inputs,
            self.validation_rows,
            device=self.device,
            precision=self.precision,
            head="logits_fused",
            features="fused",
            scores=self.task.predictions,
        )
        return self.task.numbers(self.validation_rows, found.probabilities)

    @torch.no_grad()
    def spectrum(self, rows: Tensor) -> pd.DataFrame:
        """Singular values of one batch's affinity tensors before and after the shrinkage, for a figure.

        Returns:
            One row per modality, state ("before", "after"), frequency and rank: `value`. In eval mode, with the mu of
            the epoch that was kept. Empty if the low-rank term is left out.
        """
        if self.low_rank is None:
            return pd.DataFrame(columns=["modality", "state", "frequency", "rank", "value"])
        with evaluating(self.modules):
            current, momentum = self._both(rows)
        tables = []
        for branch in BRANCHES[1:]:
            views = [relation_matrix(view) for view in self._views(current, momentum, branch)]
            before = torch.stack(views, dim=2)
            after = shrink(before, self.low_rank.weight / self.low_rank.mu, kind=self.low_rank.kind)
            for state, tensor in (("before", before), ("after", after)):
                values = singular_values(tensor).cpu()
                index = pd.MultiIndex.from_product(
                    [range(len(values)), range(values.shape[1])], names=["frequency", "rank"]
                )
                table = pd.DataFrame({"value": values.flatten().numpy()}, index=index).reset_index()
                tables.append(table.assign(modality=branch, state=state))
        return pd.concat(tables, ignore_index=True)

    def _both(self, rows: Tensor) -> tuple[TeacherOutput, TeacherOutput]:
        """What the network gives for view A, and its momentum copy for view B."""
        with autocast(self.device, self.precision):
            current = self.teacher(*(modality.augmented(rows, self.generator) for modality in self.inputs))
            with torch.no_grad():
                momentum = self.copy(*(modality.augmented(rows, self.generator) for modality in self.inputs))
        return current, momentum

    def _mean_teacher(self, current: TeacherOutput, momentum: TeacherOutput, branch: str) -> Tensor:
        """Mean KL of one branch towards the branches of the momentum copy that teach it."""
        other = {"main": "second", "second": "main"}
        taught_by = [branch] if branch == "fused" else [branch, "fused", other[branch]][: self.recipe.n_teachers]
        return sum(self.task.match(_scores(current, branch), _scores(momentum, name)) for name in taught_by) / len(
            taught_by
        )

    def _views(self, current: TeacherOutput, momentum: TeacherOutput, branch: str) -> list[Tensor]:
        """The views of one modality; the branch's own current feature alone carries gradient."""
        own = getattr(current, branch).float()
        fused = [current.fused.detach().float(), own]
        if not self.recipe.momentum_views:
            return fused
        own_momentum = getattr(momentum, branch).float()
        if self.recipe.n_views == 2:
            return [own, own_momentum]
        views = [fused[0], momentum.fused.float(), own, own_momentum]
        if self.recipe.n_views > 4:
            # only here: a dead branch has maximum 0, which must not be divided by where no mix is asked for
            scaled = {name: _over_maximum(getattr(momentum, name).float()) for name in BRANCHES[1:]}
            other = scaled["second" if branch == "main" else "main"]
            views += [a * scaled[branch] + b * other for a, b in MIXES[: self.recipe.n_views - 4]]
        return views


def _scores(output: TeacherOutput, branch: str) -> Tensor:
    return getattr(output, f"logits_{branch}")


def _over_maximum(features: Tensor) -> Tensor:
    return features / features.max().clamp(min=1e-12)
