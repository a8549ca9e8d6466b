"""Hybrid self-distillation: a fresh student learns from contrast and from the rare classes' pseudo-labels at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.evaluation.predict import encode
from medkd.losses.self_distillation import dispersion, dispersion_temperatures, pseudo_label_loss
from medkd.models.device import autocast
from medkd.models.momentum import MoCo
from medkd.training.inputs import ImageModality


class HybridStudent(nn.Module):
    """MoCo and the linear classifier on its query encoder's features.

    Args:
        moco: freshly initialised; nothing is loaded from the URL stage.
        dim: length of the encoder's output, which the classifier sees without normalisation.
        n_way: rare classes.
        generator: seeds the classifier, N(0, 0.01).
    """

    def __init__(self, moco: MoCo, dim: int, n_way: int, generator: torch.Generator) -> None:
        super().__init__()
        self.moco = moco
        self.classifier = nn.Linear(dim, n_way)
        with torch.no_grad():
            self.classifier.weight.normal_(0, 0.01, generator=generator)
            self.classifier.bias.zero_()


class SelfDistillationStep:
    r"""One step: :math:`L = L_{con} + L_{cls}(y, p)` with one shared forward pass of the query encoder.

    Args:
        student: `HybridStudent`.
        images: the image modality.
        soft_labels: pseudo-labels of every row of the cohort, shape (n, n_way); only `train_rows` are read.
        train_rows: rows that are trained on (the common classes); dispersion is measured on them.
        hard: train towards the arg max instead of the soft label.
        mix: alpha_T, share of the student's own prediction in the target at the end of training; it grows linearly.
        dic_gamma: gamma of the dispersion-aware imbalance correction; 0 leaves it out.
        dic_every: epochs between two measurements of the dispersion.
        device, precision: where and in which precision the encoder runs.

    Source:
        Sun et al. 2021, eq. 1 to 5; Sun et al. 2024, eq. 6 to 9 (DIC).
    """

    def __init__(
        self,
        student: HybridStudent,
        images: ImageModality,
        soft_labels: Tensor,
        train_rows: Tensor,
        *,
        hard: bool,
        mix: float,
        dic_gamma: float,
        dic_every: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = self.student = student
        self.images, self.device, self.precision = images, device, precision
        n_way = soft_labels.shape[1]
        self.hard_labels = soft_labels.argmax(dim=1).to(device)
        self.target = nn.functional.one_hot(self.hard_labels, n_way).float() if hard else soft_labels.float().to(device)
        self.train_rows, self.mix = train_rows, mix
        self.dic_gamma, self.dic_every = dic_gamma, dic_every
        student.register_buffer("temperatures", torch.ones(n_way, device=device))
        student.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    def start(self, generator: torch.Generator) -> None:
        """Keep the generator that draws the views."""
        self.generator = generator

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Contrastive plus classification loss of one batch."""
        raw = self.images.raw(rows)
        query_view, key_view = (self.images.augment(raw, self.generator) for _ in range(2))
        with autocast(self.device, self.precision):
            output = self.student.moco(query_view, key_view)
        logits = self.student.classifier(output["features"].float())
        target = self.target[rows.to(self.device)]
        temperatures = self.student.temperatures if self.dic_gamma else None
        classification = pseudo_label_loss(logits, target, mix=self.mix * progress, temperatures=temperatures)
        agreement = (logits.detach().argmax(dim=1) == self.hard_labels[rows.to(self.device)]).float().mean()
        return output["loss"] + classification, {
            "contrast": output["loss"],
            "classification": classification,
            "agreement": agreement,
        }

    def after_step(self) -> None:
        """The momentum update is part of the forward pass."""

    def validate(self) -> dict[str, float]:
        """Measure the dispersion every `dic_every` epochs; logs the temperatures."""
        self.student.epoch += 1
        if self.dic_gamma and int(self.student.epoch) % self.dic_every == 0:
            features = encode(
                self.student.moco.query_encoder,
                self.images,
                self.train_rows,
                device=self.device,
                precision=self.precision,
            )
            hard = self.hard_labels[self.train_rows.to(self.device)].cpu()
            self.set_dispersion(torch.from_numpy(features), hard)
        return {f"temperature_{i}": float(t) for i, t in enumerate(self.student.temperatures)} if self.dic_gamma else {}

    def set_dispersion(self, features: Tensor, hard_labels: Tensor) -> None:
        """New temperatures from features (n, d) and the hard labels (n,) of the same rows."""
        spread = dispersion(features, hard_labels, len(self.student.temperatures))
        self.student.temperatures.copy_(dispersion_temperatures(spread, gamma=self.dic_gamma))
