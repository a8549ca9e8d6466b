"""What is predicted: classes (cross-entropy, macro AUC) or survival (Cox, C-index). The steps are the same for both."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medkd.errors import DataError
from medkd.evaluation.metrics import classification_metrics
from medkd.evaluation.predict import class_probabilities
from medkd.evaluation.survival import c_index
from medkd.losses.distillation import distillation_loss
from medkd.losses.survival import bounded_risk, cox_loss
from medkd.transfer import sent


class Task(Protocol):
    """One kind of prediction.

    Attributes:
        n_outputs: scores that a head has.
        select: the validation number by which an epoch is kept, larger is better.
    """

    n_outputs: int
    select: str

    def loss(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Supervised loss of raw scores (n, n_outputs) of these rows of the cohort."""

    def match(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """How far the student's raw scores are from the teacher's; no gradient to the teacher."""

    def predictions(self, scores: Tensor) -> Tensor:
        """Raw scores as what is reported: class probabilities (n, n_classes), or risks (n, 1)."""

    def numbers(self, rows: Tensor, predicted: np.ndarray) -> dict[str, float]:
        """Validation numbers, named `val_...`, of predictions of these rows."""


class Classification:
    """Classes: cross-entropy, KL between softened probabilities.

    Args:
        labels: class of every row of the cohort, shape (n,), int64.
        n_classes: classes.
        train_rows: rows whose class frequencies `balanced` counts.
        balanced: weigh each sample by n / (n_classes * n_of_its_class), so that rare classes count as much as common.
        device: where batches are.
    """

    select = "val_auc_macro"

    def __init__(
        self, labels: np.ndarray, n_classes: int, train_rows: np.ndarray, *, balanced: bool, device: torch.device
    ) -> None:
        self.n_outputs = n_classes
        self.labels = torch.tensor(labels, device=device)
        counts = np.bincount(labels[train_rows], minlength=n_classes)
        # a class without training rows never meets its weight
        shares = len(train_rows) / (n_classes * np.maximum(counts, 1))
        self.weight = torch.from_numpy(shares.astype(np.float32)).to(device) if balanced else None

    def loss(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy in float32, mean over the batch (weighted mean where classes are balanced)."""
        return F.cross_entropy(scores.float(), self.labels[sent(rows, self.labels.device)], weight=self.weight)

    def match(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Hinton's KL, see `distillation_loss`."""
        return distillation_loss(student.float(), teacher.float(), temperature=temperature)

    def predictions(self, scores: Tensor) -> Tensor:
        """Class probabilities, rows sum to 1."""
        return class_probabilities(scores)

    def numbers(self, rows: Tensor, predicted: np.ndarray) -> dict[str, float]:
        """Balanced accuracy and macro AUC."""
        found = classification_metrics(self.labels[rows.to(self.labels.device)].cpu().numpy(), predicted)
        return {"val_balanced_accuracy": found["balanced_accuracy"], "val_auc_macro": found["auc_macro"]}


class Survival:
    """Survival: Cox's partial likelihood of a risk in -3..3, squared difference of risks.

    Args:
        months: follow-up of every row of the cohort, shape (n,). events: 1 where the event was observed, 0 censored.
        train_rows: rows that are trained on.
        device: where batches are.

    Raises:
        DataError: if no event was observed among the training rows.

    Source:
        Chen et al. 2020 (Pathomic Fusion), arXiv:1912.08937; GMCD's released options for survival.
    """

    select = "val_c_index"
    n_outputs = 1

    def __init__(self, months: np.ndarray, events: np.ndarray, train_rows: np.ndarray, *, device: torch.device) -> None:
        if not np.nansum(events[train_rows]):
            raise DataError(
                "no event was observed among the training rows, so no survival can be learned; "
                'check the column event, or use task="classification"'
            )
        self.months = torch.from_numpy(months.astype(np.float32)).to(device)
        self.events = torch.from_numpy(events.astype(np.float32)).to(device)

    def loss(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Negative Cox partial log-likelihood over the batch."""
        rows = sent(rows, self.months.device)
        return cox_loss(bounded_risk(scores.float())[:, 0], self.months[rows], self.events[rows])

    def match(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Mean squared difference of risks; a risk has no temperature."""
        return F.mse_loss(bounded_risk(student.float()), bounded_risk(teacher.detach().float()))

    def predictions(self, scores: Tensor) -> Tensor:
        """Risks, larger is worse."""
        return bounded_risk(scores.float())

    def numbers(self, rows: Tensor, predicted: np.ndarray) -> dict[str, float]:
        """Harrell's C-index."""
        rows = rows.to(self.months.device)
        return {
            "val_c_index": c_index(self.months[rows].cpu().numpy(), self.events[rows].cpu().numpy(), predicted[:, 0])
        }
