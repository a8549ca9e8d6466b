"""Confidence intervals from a bootstrap clustered by patient, all resamples at once.

Images of one patient are not independent: drawing images would make intervals too narrow, so whole patients (lesions,
where no patient is published) are drawn with replacement. A resample is a column of integer weights, how often each
image is in it, and every statistic is computed from weights for many resamples in one array operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from medkd.errors import DataError, ParameterError
from medkd.evaluation.metrics import check_predictions

LEVEL = 0.95
CHUNK_ELEMENTS = 250_000  # weights held at once: float64 in 2 MB stay in the cache, several times faster than 32 MB

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""weights (n, n_resamples) float, labels (n,), probabilities (n, n_classes) -> values (n_resamples,)."""


def bootstrap_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    *,
    names: Sequence[str] = ("accuracy", "balanced_accuracy", "f1_macro", "auc_macro"),
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Metrics with 95% percentile intervals from resampled patients.

    A class that is missing from a resample is left out of that resample's mean over classes.

    Args:
        labels: class index of each sample, shape (n,), int.
        probabilities: shape (n, n_classes), rows sum to 1.
        groups: patient (or lesion) of each sample, shape (n,), any type that can be compared.
        names: out of `STATISTICS`.
        n_resamples: resamples of patients, >= 1.
        seed: of the resamples; the same seed and groups give the same resamples, whatever is predicted.

    Returns:
        Index `names`, columns value, low, high. low and high are nan with fewer than two groups, where nothing is
        known about the spread between patients.

    Raises:
        ParameterError: if a name is unknown or `n_resamples` < 1.
        DataError: if the arrays do not fit or a group is missing.

    Source:
        Percentile interval: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    _check_names(names)
    values = _resampled([probabilities], labels, groups, names, n_resamples, seed)
    rows = {}
    for name in names:
        value = STATISTICS[name](np.ones((len(labels), 1)), labels, probabilities)[0]
        low, high = _interval(values[0, name])
        rows[name] = {"value": value, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])


def paired_difference(
    labels: np.ndarray,
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    groups: np.ndarray,
    *,
    name: str,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Metric of A minus metric of B on the same samples, both on the same resamples.

    Args:
        labels: class index of each sample, shape (n,), int.
        probabilities_a: of method A, shape (n, n_classes).
        probabilities_b: of method B, same shape and order of samples.
        groups: patient (or lesion) of each sample, shape (n,).
        name: one of `STATISTICS`.
        n_resamples: resamples of patients, >= 1.
        seed: of the resamples.

    Returns:
        difference, low, high (95% percentile interval) and p_value: two-sided, twice the smaller share of resampled
        differences on one side of 0, counting one more on each side, so it is never 0 (smallest: 2/(n_resamples + 1)).
        low, high and p_value are nan with fewer than two groups.

    Raises:
        ParameterError: if `name` is unknown or `n_resamples` < 1.
        DataError: if the arrays do not fit or a group is missing.
    """
    labels, a = check_predictions(labels, probabilities_a)
    _, b = check_predictions(labels, probabilities_b)
    if a.shape != b.shape:
        raise DataError(f"both methods must score the same classes; got {a.shape} and {b.shape} probabilities")
    _check_names([name])
    ones = np.ones((len(labels), 1))
    difference = STATISTICS[name](ones, labels, a)[0] - STATISTICS[name](ones, labels, b)[0]
    values = _resampled([a, b], labels, groups, [name], n_resamples, seed)
    resampled = values[0, name] - values[1, name]
    low, high = _interval(resampled)
    known = resampled[np.isfinite(resampled)]
    tail = (1 + min((known <= 0).sum(), (known >= 0).sum())) / (1 + len(known))
    p_value = min(1.0, 2 * tail) if len(known) else np.nan
    return {"difference": float(difference), "low": low, "high": high, "p_value": float(p_value)}


def resample_weights(groups: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample of groups, in blocks of resamples.

    Args:
        groups: group of each row, shape (n,).
        n_resamples: total number of resamples.
        seed: of the draws.

    Yields:
        Integer counts as float64, shape (n, block): rows of one group share their counts, and the counts of the
        groups in a column sum to the number of groups. Rows first, because statistics gather and sum along rows, and
        neighbours in memory are then resamples.
    """
    codes, names = pd.factorize(np.asarray(groups))
    rng = np.random.default_rng(seed)
    n_groups = len(names)
    block = max(1, CHUNK_ELEMENTS // len(codes))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(n_groups, size=(size, n_groups)) + n_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        yield counts.T[codes].astype(np.float64)


def accuracy(weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Weighted share of right predictions; see `Statistic`."""
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    return right @ weights / weights.sum(axis=0)


def balanced_accuracy(weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Mean recall over the classes of each resample; see `Statistic`."""
    hits, actual, _ = _class_sums(weights, labels, probabilities)
    return _mean_over_classes(_ratio(hits, actual))


def f1_macro(weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes of each resample; see `Statistic`."""
    hits, actual, predicted = _class_sums(weights, labels, probabilities)
    return _mean_over_classes(np.where(actual > 0, _ratio(2 * hits, actual + predicted), np.nan))


def auc_macro(weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Mean one-vs-rest AUC over the classes of each resample; see `Statistic`.

    The AUC is the weighted share of (positive, negative) pairs in the right order, ties counting half. Scores do not
    change with the resample, so one sort a class serves all: the weight of negatives below a positive is a look-up in
    the running sum of sorted negatives.
    """
    found = []
    for c in np.unique(labels):
        positive = labels == c
        order = np.argsort(probabilities[~positive, c], kind="stable")
        negative_scores = probabilities[~positive, c][order]
        running = np.zeros((len(order) + 1, weights.shape[1]))  # weight of the i lowest negatives
        np.cumsum(weights[np.flatnonzero(~positive)[order]], axis=0, out=running[1:])
        below = running[np.searchsorted(negative_scores, probabilities[positive, c], side="left")]
        not_above = running[np.searchsorted(negative_scores, probabilities[positive, c], side="right")]
        pairs = np.einsum("pr,pr->r", weights[positive], below + not_above) / 2
        found.append(_ratio(pairs, weights[positive].sum(axis=0) * running[-1]))
    return _mean_over_classes(np.stack(found))


STATISTICS: dict[str, Statistic] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1_macro": f1_macro,
    "auc_macro": auc_macro,
}


def _class_sums(
    weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight of hits, of actual and of predicted samples by class, each (n_classes, n_resamples)."""
    one_hot = np.eye(probabilities.shape[1])
    actual, predicted = one_hot[labels].T, one_hot[probabilities.argmax(axis=1)].T
    return (actual * predicted) @ weights, actual @ weights, predicted @ weights


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean over rows that are not nan, nan if none is left; shape (n_classes, n_resamples) -> (n_resamples,)."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def _resampled(
    predictions: list[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    n_resamples: int,
    seed: int,
) -> dict[tuple[int, str], np.ndarray]:
    """Statistics of every resample by (number of the predictions, name), each (n_resamples,); nan with one group."""
    groups = np.asarray(groups)
    if groups.shape != labels.shape or pd.isna(groups).any():
        raise DataError(
            f"each of the {len(labels)} samples needs its group (patient or lesion), and none may be missing"
        )
    if n_resamples < 1:
        raise ParameterError(f"n_resamples must be at least 1; got {n_resamples}")
    keys = [(i, name) for i in range(len(predictions)) for name in names]
    if len(pd.unique(groups)) < 2:
        return {key: np.full(n_resamples, np.nan) for key in keys}
    found: dict[tuple[int, str], list[np.ndarray]] = {key: [] for key in keys}
    for weights in resample_weights(groups, n_resamples, seed):
        for i, name in keys:
            found[i, name].append(STATISTICS[name](weights, labels, predictions[i]))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the values that are defined."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _check_names(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in STATISTICS]:
        raise ParameterError(f'no bootstrap of "{unknown[0]}"; known: {", ".join(STATISTICS)}')
