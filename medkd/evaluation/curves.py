"""Tables behind the curves of a paper: ROC and precision-recall of each class, confusion and calibration by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medkd.evaluation.comparison import confusion_counts
from medkd.evaluation.metrics import calibration_table

MAX_POINTS = 200
"""Of a curve; more cannot be seen at the width of a page."""
Part = tuple[np.ndarray, np.ndarray]
"""Of one fold or task: whether a sample is of a class (n,), and its score (n,)."""


def roc_points(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """ROC curve of each class against all others, of each method: the mean over parts of the true positive rate.

    Scores of two networks have no common scale, so that samples of several parts share no curve.

    Args:
        predictions: columns method, label (index into `classes`), p_0, p_1, ... and part (fold or task; without it
            all rows are of one).
        classes: names.

    Returns:
        Columns method, class, label (its number), x (false positive rate), y (true positive rate), auc (mean over
        parts); up to 200 points a curve, whose area is within 0.001 of `auc`. Parts without samples of a class, or
        without samples of others, are left out; a class that no part is left of has no curve.
    """
    tables = []
    for names, parts in _one_vs_rest(predictions, classes):
        if parts := [(truth, scores) for truth, scores in parts if not truth.all()]:
            x, y = _mean_curve([roc_curve(truth, scores)[:2] for truth, scores in parts])
            tables.append(_curve(names, *_thinned(x, y), auc=_mean_of(roc_auc_score, parts)))
    return pd.concat(tables, ignore_index=True) if tables else _curve({}, [], [], auc=0.0)


def pr_points(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Precision-recall curve of each class against all others, of each method: mean precision over parts, as steps.

    Average precision is the area under steps, not under straight lines between the points, so the table holds both ends
    of each step.

    Args:
        predictions: as `roc_points`.
        classes: names.

    Returns:
        Columns method, class, label (its number), x (recall), y (precision), average_precision (mean over parts); up to
        200 points a curve, whose area is `average_precision`. Parts without samples of a class are left out; a class
        without samples has no curve.
    """
    tables = []
    for names, parts in _one_vs_rest(predictions, classes):
        steps = []
        for truth, scores in parts:
            precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
            steps.append((recall[::-1], precision[-2::-1]))
        edges, heights = _fewer_steps(*_mean_steps(steps))
        x, y = np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)
        tables.append(_curve(names, x, y, average_precision=_mean_of(average_precision_score, parts)))
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
    """Label, probabilities of the classes and part, by method in order of first appearance."""
    columns = ["label", *(f"p_{index}" for index in range(len(classes))), *({"part"} & set(predictions))]
    return [(str(method), rows[columns]) for method, rows in predictions.groupby("method", sort=False)]


def _one_vs_rest(predictions: pd.DataFrame, classes: Sequence[str]) -> list[tuple[dict[str, Any], list[Part]]]:
    """({method, class, label}, its parts) for each class that occurs; only the parts that it occurs in."""
    found = []
    for method, rows in _by_method(predictions, classes):
        of_parts = [part for _, part in rows.groupby("part", sort=False)] if "part" in rows else [rows]
        for index, name in enumerate(classes):
            parts = [((part["label"] == index).to_numpy(), part[f"p_{index}"].to_numpy(float)) for part in of_parts]
            if parts := [(truth, scores) for truth, scores in parts if truth.any()]:
                found.append(({"method": method, "class": name, "label": index}, parts))
    return found


def _mean_of(score: Callable[[np.ndarray, np.ndarray], float], parts: Sequence[Part]) -> float:
    return float(np.mean([score(truth, scores) for truth, scores in parts]))


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of y over curves from x = 0 to 1 that ascend in both, with vertical pieces: its area is the mean area.

    At every x where a curve bends the mean has two points, below and above its jump there.
    """
    if len(curves) == 1:
        return curves[0]
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    below, above = np.zeros((2, len(grid)))
    for x, y in curves:
        edges, first = np.unique(x, return_index=True)
        low, high = y[first], y[np.append(first[1:], len(x)) - 1]
        after = np.searchsorted(edges, grid)  # the first edge at or behind a point of the grid
        before = np.maximum(after - 1, 0)
        share = (grid - edges[before]) / np.where(after > 0, edges[after] - edges[before], 1)
        between = high[before] + share * (low[after] - high[before])
        at_edge = edges[after] == grid
        below += np.where(at_edge, low[after], between) / len(curves)
        above += np.where(at_edge, high[after], between) / len(curves)
    return np.repeat(grid, 2), np.column_stack([below, above]).ravel()


def _mean_steps(steps: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of step functions, (edges (n + 1,), ascending from 0 to 1, heights (n,)) each, in the same form."""
    edges = np.unique(np.concatenate([own for own, _ in steps]))
    middles = (edges[1:] + edges[:-1]) / 2
    return edges, np.mean([heights[np.searchsorted(own, middles) - 1] for own, heights in steps], axis=0)


def _curve(names: dict[str, Any], x: Sequence[float], y: Sequence[float], **area: float) -> pd.DataFrame:
    return pd.DataFrame({"method": "", "class": "", "label": 0, "x": x, "y": y}).assign(**names, **area)


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
