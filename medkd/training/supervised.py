"""Supervised training of a network on one modality: the single-modality baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medkd.evaluation.predict import predict
from medkd.models.device import autocast
from medkd.training.inputs import Modality
from medkd.training.loop import Step
from medkd.training.tasks import Task


class SupervisedStep(Step):
    """The task's supervised loss on one view of each row.

    Args:
        network: maps one modality to an output with `features` and `logits`.
        inputs: the modality.
        task: what is predicted.
        validation_rows: rows for the numbers logged after each epoch.
        penalised, l1: parameters of an L1 penalty (those of a vector encoder), and its weight.
        device, precision: where and in which precision the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Modality,
        task: Task,
        validation_rows: Tensor,
        *,
        penalised: Sequence[nn.Parameter] = (),
        l1: float = 0.0,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = network
        self.penalised, self.l1 = list(penalised) if l1 else [], l1
        self.network, self.inputs, self.device, self.precision = network, inputs, device, precision
        self.task, self.validation_rows = task, validation_rows

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Batch mean of the supervised loss, and the penalty."""
        with autocast(self.device, self.precision):
            output = self.network(self.inputs.augmented(rows, self.generator))
        terms = {"ce": self.task.loss(output.logits, rows)}
        if self.penalised:
            terms["l1"] = self.l1 * sum(parameter.abs().sum() for parameter in self.penalised)
        return sum(terms.values()), terms

    def validate(self) -> dict[str, float]:
        """The task's numbers on the validation rows."""
        found = predict(
            self.network,
            [self.inputs],
            self.validation_rows,
            precision=self.precision,
            device=self.device,
            scores=self.task.predictions,
        )
        return self.task.numbers(self.validation_rows, found.probabilities)
