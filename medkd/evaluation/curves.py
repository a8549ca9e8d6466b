"""Tables behind the curves of a paper: ROC and precision-recall of each class, confusion and calibration by method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medkd.evaluation.comparison import confusion_counts
from medkd.evaluation.metrics import calibration_table

MAX_POINTS = 200
"""Of a curve; more cannot be seen at the width of a page."""


def roc_points(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """ROC curve of each class against all others, of each method.

    Args:
        predictions: columns method, label (index into `classes`) and p_0, p_1, ...; all folds or tasks together.
        classes: names.

    Returns:
        Columns method, class, x (false positive rate), y (true positive rate), auc; up to 200 points a curve, whose
        area is within 0.001 of `auc`. A class without samples, or without samples of others, has no curve.
    """
    tables = []
    for names, truth, scores in _one_vs_rest(predictions, classes):
        if truth.all():
            continue
        x, y, _ = roc_curve(truth, scores)
        tables.append(_curve(names, *_thinned(x, y), auc=float(roc_auc_score(truth, scores))))
    return pd.concat(tables, ignore_index=True) if tables else _curve({}, [], [], auc=0.0)


def pr_points(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Precision-recall curve of each class against all others, of each method, with its steps drawn out.

    Average precision is the area under steps, not under straight lines between the points, so the table holds both ends
    of each step.

    Args:
        predictions: as `roc_points`.
        classes: names.

    Returns:
        Columns method, class, x (recall), y (precision), average_precision; up to 200 points a curve, whose area is
        `average_precision`. A class without samples has no curve.
    """
    tables = []
    for names, truth, scores in _one_vs_rest(predictions, classes):
        precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        edges, heights = _fewer_steps(recall[::-1], precision[-2::-1])
        x, y = np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)
        found = float(average_precision_score(truth, scores))
        tables.append(_curve(names, x, y, average_precision=found))
    return pd.concat(tables, ignore_index=True)


def confusion_table(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of every method in long form: columns method, true, predicted, n, classes in the order of `classes`."""
    tables = []
    for method, rows in _by_method(predictions, classes):
        counts = confusion_counts(rows, len(classes))
        frame = pd.DataFrame(counts, index=list(classes), columns=list(classes)).rename_axis("true")
        long = frame.reset_index().melt("true", var_name="predicted", value_name="n")
        tables.append(long.assign(method=method)[["method", "true", "predicted", "n"]])
    return pd.concat(tables, ignore_index=True)


def calibration_by_method(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """`calibration_table` of every method: columns method, confidence, accuracy, n_samples."""
    scores = [f"p_{index}" for index in range(len(classes))]
    tables = []
    for method, rows in _by_method(predictions, classes):
        table = calibration_table(rows["label"].to_numpy(), rows[scores].to_numpy())
        tables.append(table.assign(method=method)[["method", "confidence", "accuracy", "n_samples"]])
    return pd.concat(tables, ignore_index=True)


def _by_method(predictions: pd.DataFrame, classes: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Label and probabilities of the classes, by method in order of first appearance."""
    columns = ["label", *(f"p_{index}" for index in range(len(classes)))]
    return [(str(method), rows[columns]) for method, rows in predictions.groupby("method", sort=False)]


def _one_vs_rest(
    predictions: pd.DataFrame, classes: Sequence[str]
) -> list[tuple[dict[str, str], np.ndarray, np.ndarray]]:
    """({method, class}, whether a sample is of the class, its probability) for each class that occurs."""
    return [
        ({"method": method, "class": name}, truth, rows[f"p_{index}"].to_numpy(float))
        for method, rows in _by_method(predictions, classes)
        for index, name in enumerate(classes)
        if (truth := (rows["label"] == index).to_numpy()).any()
    ]


def _curve(names: dict[str, str], x: Sequence[float], y: Sequence[float], **area: float) -> pd.DataFrame:
    return pd.DataFrame({"method": "", "class": "", "x": x, "y": y}).assign(**names, **area)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to 200 points at equal steps along a ROC curve; their number is the one that changes the area least.

    Equal steps that keep pace with the stairs of a curve would cut off every corner on the same side.
    """
    if len(x) <= MAX_POINTS:
        return x, y
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    steps = [np.linspace(0, along[-1], n) for n in range(MAX_POINTS - 20, MAX_POINTS + 1)]
    curves = [(np.interp(step, along, x), np.interp(step, along, y)) for step in steps]
    area = np.trapezoid(y, x)
    return min(curves, key=lambda curve: abs(np.trapezoid(curve[1], curve[0]) - area))


def _fewer_steps(edges: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps between `edges` (n + 1,), ascending, as they are or, above 100, as means over 100 equal ones: same area.

    Points of a precision-recall curve would not do: it is a saw whose teeth they would miss.
    """
    if 2 * len(heights) <= MAX_POINTS:
        return edges, heights
    area = np.concatenate([[0], np.cumsum(np.diff(edges) * heights)])
    wider = np.linspace(edges[0], edges[-1], MAX_POINTS // 2 + 1)
    return wider, np.diff(np.interp(wider, edges, area)) / np.diff(wider)
