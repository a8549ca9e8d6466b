"""Hybrid self-distillation: a fresh student learns from contrast and from the rare classes' pseudo-labels at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.evaluation.predict import encode
from medkd.losses.self_distillation import (
    dispersion,
    dispersion_temperatures,
    feature_loss,
    pseudo_label_loss,
    released_pseudo_label_loss,
)
from medkd.models.device import autocast
from medkd.models.momentum import MoCo
from medkd.training.inputs import ImageModality
from medkd.training.loop import Step
from medkd.transfer import sent

LabelType = Literal["soft", "hard", "adaptive_soft", "adaptive_hard"]


class HybridStudent(nn.Module):
    """MoCo and the linear classifier on its query encoder's features.

    Args:
        moco: freshly initialised; nothing is loaded from the URL stage.
        dim: length of the encoder's output, which the classifier sees without normalisation.
        n_way: rare classes.
        generator: seeds the classifier, N(0, 0.01).

    Attributes:
        temperatures: buffer, tau of each class (n_way,), 1 without imbalance correction.
        epoch: buffer, epochs finished.
    """

    def __init__(self, moco: MoCo, dim: int, n_way: int, generator: torch.Generator) -> None:
        super().__init__()
        self.moco = moco
        self.classifier = nn.Linear(dim, n_way)
        with torch.no_grad():
            self.classifier.weight.normal_(0, 0.01, generator=generator)
            self.classifier.bias.zero_()
        self.register_buffer("temperatures", torch.ones(n_way))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))


class SelfDistillationStep(Step):
    r"""One step: :math:`L = L_{con} + w L_{cls}(y, p)` with one shared forward pass of the query encoder.

    Args:
        student: `HybridStudent`.
        images: the image modality.
        soft_labels: pseudo-labels of every row of the cohort, shape (n, n_way); only `train_rows` are read.
        train_rows: rows that are trained on (the common classes); dispersion is measured on them.
        labels: what the target is made of: the soft label or its arg max, "adaptive" with the student's own
            prediction mixed in.
        mix: alpha_T, share of that prediction at the end of training; it grows linearly. Not adaptive: unused.
        form: "paper" (cross-entropy on logits, target detached) or "released" (softmax twice, T = 2).
        weight: w of the classification (or feature) loss; 1 in the paper.
        contrast: False leaves the contrastive loss out (Table 7, row b).
        teacher_features: features of every row of the cohort, shape (n, d), from the URL encoder. If given, the L1
            distance to them takes the place of the classification loss (Table 7, row d).
        imbalance: "dic" (temperatures from the dispersion of features), "ddl" (from the counts of the hard labels)
            or "none".
        gamma: strength of the imbalance correction.
        dispersion_kind, temperature_form: see `dispersion` and `dispersion_temperatures`.
        dic_every: epochs between two measurements of the dispersion.
        device, precision: where and in which precision the encoder runs.

    Source:
        Sun et al. 2021; numbers of Sun et al. 2024: eq. 1 to 5, eq. 6 to 9 (DIC) and Table 7.
    """

    def __init__(
        self,
        student: HybridStudent,
        images: ImageModality,
        soft_labels: Tensor,
        train_rows: Tensor,
        *,
        labels: LabelType = "adaptive_hard",
        mix: float = 0.7,
        form: Literal["paper", "released"] = "paper",
        weight: float = 1.0,
        contrast: bool = True,
        teacher_features: Tensor | None = None,
        imbalance: Literal["none", "dic", "ddl"] = "none",
        gamma: float = 0.1,
        dispersion_kind: Literal["feature_var", "norm_var"] = "feature_var",
        temperature_form: Literal["paper", "released"] = "paper",
        dic_every: int = 10,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = self.student = student
        self.images, self.device, self.precision = images, device, precision
        n_way = soft_labels.shape[1]
        self.hard_labels = soft_labels.argmax(dim=1).to(device)
        hard = F.one_hot(self.hard_labels, n_way).float()
        self.target = hard if labels.endswith("hard") else soft_labels.float().to(device)
        self.train_rows, self.mix = train_rows, mix if labels.startswith("adaptive") else 0.0
        self.form, self.weight, self.contrast = form, weight, contrast
        self.teacher_features = None if teacher_features is None else teacher_features.float().to(device)
        self.imbalance, self.gamma, self.dic_every = imbalance, gamma, dic_every
        self.dispersion_kind, self.temperature_form = dispersion_kind, temperature_form
        if imbalance == "ddl":
            counts = torch.bincount(self._train_labels(), minlength=n_way).float()
            self.set_temperatures(counts)

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Contrastive plus classification (or feature) loss of one batch."""
        raw, on_device = self.images.raw(rows), sent(rows, self.device)
        query_view = self.images.augment(raw, self.generator)
        logged: dict[str, Tensor | float] = {}
        if self.contrast:
            key_view = self.images.augment(raw, self.others)
            order = torch.randperm(len(rows), generator=self.others)
            with autocast(self.device, self.precision):
                output = self.student.moco(query_view, key_view, order)
            features, logged["contrast"] = output["features"].float(), output["loss"]
        else:
            with autocast(self.device, self.precision):
                features = self.student.moco.query_encoder(query_view)
            features = features.float()
        if self.teacher_features is not None:
            logged["feature_l1"] = second = feature_loss(features, self.teacher_features[on_device])
        else:
            logits = self.student.classifier(features)
            logged["classification"] = second = self._classification(logits, self.target[on_device], progress)
            agreement = logits.detach().argmax(dim=1) == self.hard_labels[on_device]
            logged["agreement"] = agreement.float().mean()
        logged["feature_norm"] = features.detach().norm(dim=1).mean()
        return logged.get("contrast", 0.0) + self.weight * second, logged

    def _classification(self, logits: Tensor, target: Tensor, progress: float) -> Tensor:
        temperatures = None if self.imbalance == "none" else self.student.temperatures
        loss = pseudo_label_loss if self.form == "paper" else released_pseudo_label_loss
        return loss(logits, target, mix=self.mix * progress, temperatures=temperatures)

    def validate(self) -> dict[str, float]:
        """Measure the dispersion every `dic_every` epochs; logs the temperatures."""
        self.student.epoch += 1
        if self.imbalance == "none":
            return {}
        if self.imbalance == "dic" and int(self.student.epoch) % self.dic_every == 0:
            features = encode(
                self.student.moco.query_encoder,
                self.images,
                self.train_rows,
                device=self.device,
                precision=self.precision,
            )
            self.measure(torch.from_numpy(features))
        return {f"temperature_{i}": float(t) for i, t in enumerate(self.student.temperatures)}

    def measure(self, features: Tensor) -> None:
        """New temperatures from plain-view features of `train_rows`, shape (n_train, d)."""
        n_way = len(self.student.temperatures)
        self.set_temperatures(dispersion(features, self._train_labels().cpu(), n_way, kind=self.dispersion_kind))

    def set_temperatures(self, spread: Tensor) -> None:
        """Temperatures from one number per class, shape (n_way,): dispersion (DIC) or count (DDL)."""
        found = dispersion_temperatures(spread, gamma=self.gamma, form=self.temperature_form)
        self.student.temperatures.copy_(found)

    def _train_labels(self) -> Tensor:
        return self.hard_labels[self.train_rows.to(self.device)]
