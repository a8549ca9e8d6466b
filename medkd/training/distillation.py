"""GMCD stage 2: a single-modality student learns from the multi-modal teacher and from its own momentum copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.evaluation.predict import predict
from medkd.losses.distillation import distillation_loss
from medkd.losses.memory import ContrastiveDistillation, ContrastSampler
from medkd.losses.modulation import GradientModulation
from medkd.models.device import autocast
from medkd.models.momentum import MomentumCopy, warmup_momentum
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.training.inputs import Modality
from medkd.training.validation import validation_numbers

GMCD_TERMS = ("kd_teacher", "kd_momentum", "contrast_teacher", "contrast_momentum")


class DistillationStep:
    r"""One step of the student: cross-entropy, and what `method` adds to it.

    `"ce"` adds nothing; `"kd"` adds Hinton's KL towards the teacher; `"gmcd"` adds KL and contrastive distillation
    (DSCD), each towards the fixed teacher and towards the student's momentum copy, weighted by how far their
    gradients at the student's feature agree (GKM): :math:`L = CE + \sum_j \lambda_j L_j`.

    Args:
        student: single-modality network.
        teacher: trained teacher, frozen and in eval mode; None for `"ce"`.
        inputs: main and second modality (the student only ever sees the main one).
        labels: class of every row of the cohort, shape (n,).
        train_rows: rows that will be trained on; the memory banks hold one slot for each.
        validation_rows: rows for the numbers logged after each epoch.
        method: "ce", "kd" or "gmcd".
        temperature: softening of the KL terms. kd_weight, contrast_weight: a and b of the paper.
        n_positives, n_selected, n_negatives: candidates of the anchor's class, those DSCD keeps, and negatives.
        selection: how DSCD picks positives, see `medkd.losses.memory`.
        modulation_threshold: GKM counts a gradient as agreeing above this cosine. modulation_momentum: of its weights.
        momentum: largest momentum of the student's copy.
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
        labels: Tensor,
        train_rows: Tensor,
        validation_rows: Tensor,
        *,
        method: str,
        temperature: float,
        kd_weight: float,
        contrast_weight: float,
        n_positives: int,
        n_selected: int,
        n_negatives: int,
        selection: str,
        modulation_threshold: float,
        modulation_momentum: float,
        momentum: float,
        generator: torch.Generator,
        device: torch.device,
        precision: str,
    ) -> None:
        self.student, self.teacher, self.inputs = student, teacher, inputs
        self.device, self.precision, self.method = device, precision, method
        self.labels, self.validation_rows = labels.to(device), validation_rows
        self.temperature, self.kd_weight, self.contrast_weight = temperature, kd_weight, contrast_weight
        self.selection, self.n_selected, self.n_positives, self.momentum = selection, n_selected, n_positives, momentum
        self.modules = nn.ModuleDict({"student": student})
        self.modules.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        if method != "gmcd":
            return
        dim = student.classifier.in_features
        self.copy = MomentumCopy(student)
        memory = {"embed_dim": dim, "generator": generator}
        self.contrast = nn.ModuleDict(
            {
                name: ContrastiveDistillation(len(train_rows), dim, dim, **memory).to(device)
                for name in ("teacher", "momentum")
            }
        )
        self.modulation = GradientModulation(momentum=modulation_momentum, threshold=modulation_threshold).to(device)
        self.sampler = ContrastSampler(
            self.labels[train_rows.to(device)], n_positives=n_positives, n_negatives=n_negatives
        )
        self.slot = torch.full(
            (len(labels),), -1, dtype=torch.long, device=device
        )  # row of the cohort -> row of the banks
        self.slot[train_rows.to(device)] = torch.arange(len(train_rows), device=device)
        self.modules.update({"copy": self.copy, "contrast": self.contrast, "modulation": self.modulation})

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves: the student, and for GMCD the embedding heads of the contrast."""
        learned = list(self.student.parameters())
        return learned + list(self.contrast.parameters()) if self.method == "gmcd" else learned

    def start(self, generator: torch.Generator) -> None:
        """Keep the generator that draws views and contrast rows."""
        self.generator = generator

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one batch, and its terms."""
        main, second = self.inputs
        view = main.augmented(rows, self.generator)
        with autocast(self.device, self.precision):
            features = self.student.encoder(view)
        features = features.float()  # float32 from here on: GKM compares gradients at this tensor
        logits = self.student.classifier(features)
        terms: dict[str, Tensor] = {"ce": F.cross_entropy(logits, self.labels[rows.to(self.device)])}
        if self.method == "ce":
            return terms["ce"], terms
        with torch.no_grad(), autocast(self.device, self.precision):
            taught = self.teacher(view, second.plain(rows))
        terms["kd_teacher"] = self.kd_weight * distillation_loss(
            logits, taught.logits_fused.float(), temperature=self.temperature
        )
        if self.method == "kd":
            return terms["ce"] + terms["kd_teacher"], terms
        with torch.no_grad(), autocast(self.device, self.precision):
            own = self.copy(main.augmented(rows, self.generator))
        terms["kd_momentum"] = self.kd_weight * distillation_loss(
            logits, own.logits.float(), temperature=self.temperature
        )
        slots = self.slot[rows.to(self.device)]
        candidates = self.sampler(slots, self.generator)
        pick = {
            "n_positives": self.n_positives,
            "selection": self.selection,
            "n_selected": self.n_selected,
            "progress": progress,
        }
        for name, target in (("teacher", taught.fused), ("momentum", own.features)):
            terms[f"contrast_{name}"] = self.contrast_weight * self.contrast[name](
                features, target.float(), slots, candidates, **pick
            )
        losses = [terms[name] for name in GMCD_TERMS]
        weights = self.modulation(losses, terms["ce"], features)
        total = terms["ce"] + sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return total, terms | {f"weight_{name}": weight for name, weight in zip(GMCD_TERMS, weights, strict=True)}

    def after_step(self) -> None:
        """Move the student's momentum copy; its first move copies the student."""
        if self.method == "gmcd":
            self.copy.update(self.student, warmup_momentum(int(self.modules.n_steps), self.momentum))
            self.modules.n_steps += 1

    def validate(self) -> dict[str, float]:
        """Balanced accuracy and macro AUC of the student on the validation rows."""
        found = predict(
            self.student, self.inputs[:1], self.validation_rows, device=self.device, precision=self.precision
        )
        return validation_numbers(self.labels[self.validation_rows.to(self.device)], found.probabilities)
