"""The numbers that are logged after each epoch and that choose the epoch to keep."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medkd.evaluation.metrics import classification_metrics


def validation_numbers(labels: Tensor, probabilities: np.ndarray) -> dict[str, float]:
    """Balanced accuracy and macro AUC on the validation split, named `val_...`.

    Args:
        labels: shape (n,), int64.
        probabilities: shape (n, n_classes), rows sum to 1.
    """
    numbers = classification_metrics(labels.cpu().numpy(), probabilities)
    return {"val_balanced_accuracy": numbers["balanced_accuracy"], "val_auc_macro": numbers["auc_macro"]}
