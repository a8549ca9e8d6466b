"""Supervised training of a network on one modality: the single-modality baselines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.evaluation.predict import predict
from medkd.models.device import autocast
from medkd.training.inputs import Modality
from medkd.training.validation import validation_numbers


class SupervisedStep:
    """Cross-entropy on one view of each row.

    Args:
        network: maps one modality to an output with `features` and `logits`.
        inputs: the modality.
        labels: class of every row of the cohort, shape (n,).
        validation_rows: rows for the numbers logged after each epoch.
        device, precision: where and in which precision the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Modality,
        labels: Tensor,
        validation_rows: Tensor,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = network
        self.network, self.inputs, self.device, self.precision = network, inputs, device, precision
        self.labels, self.validation_rows = labels.to(device), validation_rows

    def start(self, generator: torch.Generator) -> None:
        """Keep the generator that draws the views."""
        self.generator = generator

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Batch mean of the cross-entropy."""
        with autocast(self.device, self.precision):
            output = self.network(self.inputs.augmented(rows, self.generator))
        return F.cross_entropy(output.logits.float(), self.labels[rows.to(self.device)]), {}

    def after_step(self) -> None:
        """Nothing moves but the network."""

    def validate(self) -> dict[str, float]:
        """Balanced accuracy and macro AUC of the validation rows."""
        found = predict(self.network, [self.inputs], self.validation_rows, precision=self.precision, device=self.device)
        return validation_numbers(self.labels[self.validation_rows.to(self.device)], found.probabilities)
