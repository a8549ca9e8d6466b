"""GMCD stage 2: a single-modality student learns from the multi-modal teacher and from its own momentum copy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medkd.evaluation.predict import predict
from medkd.losses.contrast_sampler import ContrastSampler, repeats_of
from medkd.losses.memory import ContrastiveDistillation
from medkd.losses.modulation import GradientModulation
from medkd.models.device import autocast
from medkd.models.maps import MapTap
from medkd.models.mode import evaluating
from medkd.models.momentum import MomentumCopy, warmup_momentum
from medkd.models.teacher import MultimodalTeacher, Output, SingleModalityNet
from medkd.training.baselines import BASELINES, Batch, build_baseline
from medkd.training.inputs import Modality
from medkd.training.loop import Step
from medkd.training.recipe import GMCD_TERMS, Recipe
from medkd.training.tasks import Task
from medkd.transfer import sent

SOFT_SCALE = 4.0
"""What the MICCAI version multiplies its weights by, the row sums of the cosines."""


class DistillationStep(Step):
    r"""One step of the student: the supervised loss, and what the recipe's method adds to it.

    GMCD adds KL and contrastive distillation (DSCD), each towards the fixed teacher and towards the student's momentum
    copy, weighted by how far their gradients at the student's feature agree (GKM):
    :math:`L = CE + \sum_j \lambda_j L_j`.
    For survival the KL becomes the squared difference of risks, and the anchor is its own only positive.

    Args:
        student: single-modality network.
        teacher: trained teacher, frozen and in eval mode; None for "ce".
        inputs: main and second modality (the student only ever sees the main one).
        task: what is predicted.
        groups: class of every row of the cohort, from which positives and negatives are drawn, shape (n,); None where
            there are no classes (survival).
        train_rows: rows that will be trained on; the memory banks hold one slot for each.
        validation_rows: rows for the numbers logged after each epoch.
        recipe: method and its settings.
        generator: seeds banks and heads.
        device, precision: where and in which precision the networks run.

    Source:
        Xing et al. 2023 (GMCD), stage 2.
    """

    def __init__(
        self,
        student: SingleModalityNet,
        teacher: MultimodalTeacher | None,
        inputs: Sequence[Modality],
        task: Task,
        groups: Tensor | None,
        train_rows: Tensor,
        validation_rows: Tensor,
        *,
        recipe: Recipe,
        generator: torch.Generator,
        device: torch.device,
        precision: str,
    ) -> None:
        self.student, self.teacher, self.inputs, self.task, self.recipe = student, teacher, inputs, task, recipe
        self.device, self.precision, self.validation_rows = device, precision, validation_rows
        self.modules = nn.ModuleDict({"student": student})
        self.modules.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        self.learned = list(student.parameters())
        self.taps: list[MapTap] = []
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        n_rows = int(max(train_rows.max(), validation_rows.max())) + 1
        self.slot = torch.full((n_rows,), -1, dtype=torch.long, device=device)  # row of the cohort -> of the banks
        self.slot[train_rows.to(device)] = torch.arange(len(train_rows), device=device)
        exact = groups is None  # no classes: each anchor is its own only positive
        known = torch.zeros(len(train_rows), dtype=torch.long) if exact else groups[train_rows]
        if recipe.method == "gmcd":
            self._prepare_gmcd(known.to(device), exact, train_rows, generator)
        elif recipe.method not in ("ce", "kd"):
            self._prepare_baseline(known.to(device), exact, train_rows, generator)

    def _prepare_gmcd(self, known: Tensor, exact: bool, train_rows: Tensor, generator: torch.Generator) -> None:
        recipe, dim = self.recipe, self.student.classifier.in_features
        self.terms = GMCD_TERMS if recipe.n_teachers == 2 else GMCD_TERMS[::2]
        targets = ("teacher", "momentum")[: recipe.n_teachers]
        self.contrast = nn.ModuleDict(
            {
                name: ContrastiveDistillation(len(train_rows), dim, dim, embed_dim=dim, generator=generator)
                for name in targets
            }
        ).to(self.device)
        self.modules["contrast"] = self.contrast
        if recipe.n_teachers == 2:
            self.copy = self.modules["copy"] = MomentumCopy(self.student)
        self.learned += list(self.contrast.parameters())
        self.modulation: GradientModulation | None = None
        if recipe.modulation != "none":
            threshold = recipe.modulation_threshold if recipe.modulation == "threshold" else None
            momentum = recipe.modulation_momentum
            self.modulation = GradientModulation(len(self.terms), momentum=momentum, threshold=threshold)
            self.modules["modulation"] = self.modulation.to(self.device)
        self.modulation_scale = SOFT_SCALE if recipe.modulation == "soft" else 1.0
        self.n_positives = 1 if exact else min(recipe.n_positives, int(torch.bincount(known).max()))
        self.sampler = ContrastSampler(known, n_positives=self.n_positives, n_negatives=recipe.n_negatives, exact=exact)
        self.pick = {
            "n_positives": self.n_positives,
            "selection": None if exact or recipe.selection == "all" else recipe.selection,
            "n_selected": recipe.n_selected,
        }

    def _prepare_baseline(self, known: Tensor, exact: bool, train_rows: Tensor, generator: torch.Generator) -> None:
        method, dim = self.recipe.method, self.student.classifier.in_features
        self.baseline = build_baseline(
            method, dim=dim, labels=known, exact=exact, n_negatives=self.recipe.n_negatives, generator=generator
        ).to(self.device)
        self.modules["baseline"] = self.baseline
        self.learned += list(self.baseline.parameters())
        if BASELINES[method].maps:
            example = self.inputs[0].plain(train_rows[:1])
            self.taps = [MapTap(network, example) for network in (self.student.encoder, self.teacher.main.encoder)]

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves: the student, and the heads or regressors of its method."""
        return self.learned

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch, and its terms."""
        main, second = self.inputs
        view = main.augmented(rows, self.generator)
        with autocast(self.device, self.precision):
            features = self.student.encoder(view)
        features = features.float()  # float32 from here on: GKM compares gradients at this tensor
        logits = self.student.classifier(features)
        terms: dict[str, Tensor] = {"ce": self.task.loss(logits, rows)}
        if self.recipe.method == "ce":
            return terms["ce"], terms
        with torch.no_grad(), autocast(self.device, self.precision):
            taught = self.teacher(view, second.plain(rows))
        if self.recipe.method in ("kd", "gmcd"):
            matched = self.task.match(logits, taught.logits_fused, self.recipe.temperature)
            terms["kd_teacher"] = self.recipe.kd_weight * matched
        slots = self.slot[sent(rows, self.device)]
        if self.recipe.method == "gmcd":
            return self._gmcd(rows, slots, features, logits, taught.fused, terms, progress)
        if self.recipe.method != "kd":
            maps = [tap.last for tap in self.taps] or [None, None]
            batch = Batch(Output(features, logits), taught, *maps, slots, self.others)
            terms[self.recipe.method] = BASELINES[self.recipe.method].weight * self.baseline(batch)
        return sum(terms.values()), terms

    def _gmcd(
        self,
        rows: Tensor,
        slots: Tensor,
        features: Tensor,
        logits: Tensor,
        fused: Tensor,
        terms: dict[str, Tensor],
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = {"teacher": fused}
        if self.recipe.n_teachers == 2:
            with torch.no_grad(), autocast(self.device, self.precision):
                own = self.copy(self.inputs[0].augmented(rows, self.others))
            terms["kd_momentum"] = self.recipe.kd_weight * self.task.match(logits, own.logits, self.recipe.temperature)
            targets["momentum"] = own.features
        candidates = self.sampler(slots, self.others)
        pick = self.pick | {"repeats": repeats_of(candidates[:, : self.n_positives]), "progress": progress}
        for name, target in targets.items():
            contrast = self.contrast[name](features, target.float(), slots, candidates, **pick)
            terms[f"contrast_{name}"] = self.recipe.contrast_weight * contrast
        losses = [terms[name] for name in self.terms]
        weights = (
            torch.ones(len(losses), device=self.device)
            if self.modulation is None
            else self.modulation_scale * self.modulation(losses, terms["ce"], features)
        )
        total = terms["ce"] + sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return total, terms | {f"weight_{name}": weight for name, weight in zip(self.terms, weights, strict=True)}

    def after_step(self) -> None:
        """Move the student's momentum copy; its first move copies the student."""
        if "copy" in self.modules:
            self.copy.update(self.student, warmup_momentum(int(self.modules.n_steps), self.recipe.momentum))
            self.modules.n_steps += 1

    def validate(self) -> dict[str, float]:
        """The task's numbers of the student on the validation rows."""
        found = predict(
            self.student,
            self.inputs[:1],
            self.validation_rows,
            device=self.device,
            precision=self.precision,
            scores=self.task.predictions,
        )
        return self.task.numbers(self.validation_rows, found.probabilities)

    @torch.no_grad()
    def positives(self, anchors: Tensor, train_rows: Tensor, n_shown: int) -> pd.DataFrame:
        """Which positives the fixed teacher's contrast would keep for these anchors, for a picture.

        Args:
            anchors: rows of the cohort, shape (n,), all of them training rows.
            train_rows: as given at the start.
            n_shown: of the candidates with the largest and with the smallest discrepancy, each.

        Returns:
            One row per anchor and candidate: `anchor`, `candidate` (rows of the cohort), `rank` (0: largest
            discrepancy), `discrepancy`; empty for other methods than GMCD and where there are no classes.
        """
        if self.recipe.method != "gmcd" or self.sampler.exact:
            return pd.DataFrame(columns=["anchor", "candidate", "rank", "discrepancy"])
        main, second = self.inputs
        with evaluating(self.student), autocast(self.device, self.precision):
            view = main.plain(anchors)
            features, fused = (
                self.student.encoder(view).float(),
                self.teacher(view, second.plain(anchors)).fused.float(),
            )
        slots = self.slot[anchors.to(self.device)]
        candidates = self.sampler(slots, torch.Generator().manual_seed(0))[:, 1 : self.n_positives]
        found = self.contrast["teacher"].discrepancy(features, fused, candidates).cpu().numpy()
        tables = []
        for row, values, columns in zip(anchors.tolist(), found, candidates.cpu().numpy(), strict=True):
            columns, first = np.unique(columns, return_index=True)  # a small class repeats its rows
            order = np.argsort(-values[first], kind="stable")
            ends = sorted({*range(min(n_shown, len(order))), *range(max(len(order) - n_shown, 0), len(order))})
            chosen = order[ends]
            tables.append(
                pd.DataFrame(
                    {
                        "anchor": row,
                        "candidate": train_rows.numpy()[columns[chosen]],
                        "rank": ends,
                        "discrepancy": values[first][chosen],
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)


def warn_about_small_classes(groups: Tensor, classes: Sequence[str], n_positives: int) -> None:
    """One sentence where classes have fewer training samples than positives were asked for.

    Args:
        groups: class of each training row, shape (n,).
        classes: names.
        n_positives: candidates asked for.
    """
    counts = torch.bincount(groups, minlength=len(classes)).tolist()
    small = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if 0 < count < n_positives]
    if small:
        warnings.warn(
            f"fewer training samples than n_positives = {n_positives} in {', '.join(small)}: all of them are "
            "candidates, some repeatedly; lower n_positives to silence this",
            stacklevel=2,
        )
