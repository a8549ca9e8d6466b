"""Confidence intervals from a bootstrap clustered by patient, all resamples at once.

Images of one patient are not independent: drawing images would make intervals too narrow, so whole patients (lesions,
where no patient is published) are drawn with replacement. A resample is a column of integer weights, how often each
image is in it, and every statistic is computed from weights for many resamples in one array operation.

A patient whose images occur several times in a table, because several folds tested them, is still one group: all rows
of the patient come and go together, so pooled folds do not count as independent evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t
from threadpoolctl import threadpool_limits

from medkd.errors import DataError, ParameterError
from medkd.evaluation.scorers import Scorer

LEVEL = 0.95
DECIMALS = 12
"""Of differences: what lies beyond is rounding of sums in another order, and must not turn a tie into a win."""
CHUNK_ELEMENTS = 250_000  # weights held at once: float64 in 2 MB stay in the cache, several times faster than 32 MB


def half_interval_of_mean(values: np.ndarray) -> np.ndarray:
    """Half the 95% interval, by Student's t, of the mean of each column; nan values are left out.

    Args:
        values: one row per fold, task or seed, shape (n, m).

    Returns:
        Shape (m,); nan where a column has fewer than two values.
    """
    table = pd.DataFrame(values)
    n = table.count()
    return (student_t.ppf((1 + LEVEL) / 2, n - 1) * table.std() / np.sqrt(n)).to_numpy()


def intervals(scorer: Scorer, n: int, groups: np.ndarray, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Metrics with 95% percentile intervals from resampled patients.

    A class that is missing from a resample is left out of that resample's mean over classes. The calibration error
    of a resample is larger than that of all images on average (repeats add noise to every bin), so that of "ece" is
    turned around its value (2 value - percentile, at least 0; its upper end is never below the value).

    Args:
        scorer: of the predictions, such as `medkd.evaluation.scorers.classification_scorer` makes.
        n: samples that it scores.
        groups: patient (or lesion) of each sample, shape (n,), any type that can be compared.
        n_resamples: resamples of patients, >= 1.
        seed: of the resamples; the same seed and groups give the same resamples, whatever is predicted.

    Returns:
        Index names of metrics, columns value, low, high. low and high are nan with fewer than two groups, where nothing
        is known about the spread between patients; a metric of a class without samples is nan.

    Raises:
        ParameterError: if `n_resamples` < 1.
        DataError: if the groups do not fit or one is missing.

    Source:
        Percentile interval: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3; turned around
        ("basic"): Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 5.2.
    """
    values = scorer(np.ones((n, 1)))
    (resampled,) = _resampled([scorer], n, groups, list(values), n_resamples, seed)
    rows = {name: (values[name][0], *percentile_interval(resampled[name])) for name in values}
    if "ece" in rows:
        value, low, high = rows["ece"]
        # nan stays nan; the bias of a well calibrated method can be larger than the spread
        rows["ece"] = (value, np.maximum(0.0, 2 * value - high), np.maximum(value, 2 * value - low))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])


def paired_intervals(
    scorers: Mapping[str, Scorer],
    n: int,
    groups: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Metrics of one method minus those of another for several pairs and metrics, all on the same resamples.

    Args:
        scorers: of each method, all of the same samples and metrics.
        n: samples that they score.
        groups: patient (or lesion) of each sample, shape (n,).
        pairs: (method, method that is subtracted).
        n_resamples: resamples of patients, >= 1.
        seed: of the resamples.

    Returns:
        One row a pair and metric: method, minus, metric, difference, low, high (95% percentile interval) and p_value:
        two-sided, twice the smaller share of resampled differences on one side of 0, counting one more on each side,
        so it is never 0 (smallest: 2/(n_resamples + 1)). low, high and p_value are nan with fewer than two groups. The
        differences of "ece" are turned around their value, as in `intervals`: the bias of two methods is not the same.

    Raises: as `intervals`.
    """
    values = {method: scorer(np.ones((n, 1))) for method, scorer in scorers.items()}
    names = list(next(iter(values.values())))
    resampled = dict(zip(scorers, _resampled(list(scorers.values()), n, groups, names, n_resamples, seed), strict=True))
    rows = []
    for method, minus in pairs:
        for name in names:
            difference = (values[method][name][0] - values[minus][name][0]).round(DECIMALS) + 0.0  # no -0
            each = (resampled[method][name] - resampled[minus][name]).round(DECIMALS)
            if name == "ece":
                each = 2 * difference - each
            rows.append((method, minus, name, difference, *percentile_interval(each), _p_value(each)))
    return pd.DataFrame(rows, columns=["method", "minus", "metric", "difference", "low", "high", "p_value"])


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


def _resampled(
    scorers: list[Scorer], n: int, groups: np.ndarray, names: list[str], n_resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Metrics of every resample, each (n_resamples,), for each scorer; nan with one group."""
    groups = np.asarray(groups)
    if groups.shape != (n,) or pd.isna(groups).any():
        raise DataError(f"each of the {n} samples needs its group (patient or lesion), and none may be missing")
    if n_resamples < 1:
        raise ParameterError(f"n_resamples must be at least 1; got {n_resamples}")
    if len(pd.unique(groups)) < 2:
        return [{name: np.full(n_resamples, np.nan) for name in names} for _ in scorers]
    with threadpool_limits(1, user_api="blas"):  # products this small take longer where cores wait for each other
        blocks = [[scorer(weights) for scorer in scorers] for weights in resample_weights(groups, n_resamples, seed)]
    return [
        {name: np.concatenate([block[number][name] for block in blocks]) for name in names}
        for number in range(len(scorers))
    ]


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the values that are defined."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _p_value(differences: np.ndarray) -> float:
    known = differences[np.isfinite(differences)]
    tail = (1 + min((known <= 0).sum(), (known >= 0).sum())) / (1 + len(known))
    return float(min(1.0, 2 * tail)) if len(known) else float("nan")
