"""Methods side by side: metrics with intervals at every level, and paired differences on the same images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medkd.evaluation.bootstrap import bootstrap_metrics, paired_difference
from medkd.evaluation.metrics import aggregate, classification_metrics


def levels(predictions: pd.DataFrame) -> list[str]:
    """Image level, and ROI and patient level where regions were cut into several images."""
    if (predictions["roi"] == predictions["id"]).all():
        return ["image"]
    one_label = predictions.groupby("patient")["label"].nunique().max() == 1
    return ["image", "roi", "patient"] if one_label else ["image", "roi"]


def summarise(predictions: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row a setting, method, level and metric: value with interval, and mean and SD over folds or tasks.

    Args:
        predictions: columns id, roi, patient, label, p_0, p_1, ..., method, setting and part (fold or task).
        n_resamples: bootstrap resamples of patients (or lesions).
        seed: of the resamples.

    Returns:
        Columns setting, method, level, metric, value, low, high (95% interval over all parts together),
        mean_over_parts, sd_over_parts, n_parts, n (samples of this level).
    """
    rows = []
    for (setting, method), group in predictions.groupby(["setting", "method"], sort=False):
        for level in levels(predictions):
            parts = [
                aggregate(part.dropna(axis=1, how="all"), level).assign(part=number)
                for number, part in group.groupby("part")
            ]
            frame = pd.concat(parts, ignore_index=True)
            labels, probabilities = arrays(frame)
            table = bootstrap_metrics(
                labels, probabilities, frame["patient"].to_numpy(), n_resamples=n_resamples, seed=seed
            )
            each = pd.DataFrame([classification_metrics(*arrays(part)) for part in parts])
            for metric, row in table.iterrows():
                spread = {
                    "mean_over_parts": each[metric].mean(),
                    "sd_over_parts": each[metric].std(ddof=1) if len(each) > 1 else np.nan,
                }
                rows.append(
                    {
                        "setting": setting,
                        "method": method,
                        "level": level,
                        "metric": metric,
                        "value": row["value"],
                        "low": row["low"],
                        "high": row["high"],
                        **spread,
                        "n_parts": len(parts),
                        "n": len(frame),
                    }
                )
    return pd.DataFrame(rows)


def differences(predictions: pd.DataFrame, reference: str, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Each method minus "CE only" (or `reference`, where that is not there) on the same images, paired intervals.

    Args: as `summarise`; `reference` is the name of a method.
    """
    rows = []
    for setting, group in predictions.groupby("setting", sort=False):
        by_method = {
            method: frame.sort_values(["part", "id"], ignore_index=True)
            for method, frame in group.groupby("method", sort=False)
        }
        base = "CE only" if "CE only" in by_method else reference
        others = [method for method in by_method if method != base]
        for method in others:
            a, b = by_method[method], by_method[base]
            labels, ours = arrays(a)
            for metric in ("balanced_accuracy", "auc_macro"):
                found = paired_difference(
                    labels,
                    ours,
                    arrays(b)[1],
                    a["patient"].to_numpy(),
                    name=metric,
                    n_resamples=n_resamples,
                    seed=seed,
                )
                rows.append(
                    {"setting": setting, "method": method, "minus": base, "metric": metric, **found, "n": len(a)}
                )
    return pd.DataFrame(rows)


def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, n_classes) of a prediction table."""
    columns = [column for column in frame if column.startswith("p_")]
    return frame["label"].to_numpy(np.int64), frame[columns].to_numpy(float)


def confusion_counts(predictions: pd.DataFrame, n_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class), shape (n_classes, n_classes)."""
    labels, probabilities = arrays(predictions)
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts
