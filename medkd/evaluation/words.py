"""Metrics as papers write them; imports nothing, so that figures need not wait for scikit-learn."""

from __future__ import annotations

WORDS = {
    "auc_macro": "macro AUC",
    "auc_micro": "micro AUC",
    "ap_macro": "macro AP",
    "ap_micro": "micro AP",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "ece": "ECE",
    "c_index": "C-index",
    "knn_balanced_accuracy": "kNN balanced accuracy",
}
"""How papers write the metrics whose names differ from that by more than underscores."""


def metric_words(name: str) -> str:
    """A metric as figures and tables call it: "f1_macro" is "macro F1", "val_auc_macro" is "val macro AUC"."""
    on_validation = "val " if name.startswith("val_") else ""
    metric = name.removeprefix("val_")
    return on_validation + WORDS.get(metric, metric.replace("_", " "))
