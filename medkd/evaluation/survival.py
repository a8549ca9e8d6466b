"""Survival predictions: C-index with clustered intervals, risk groups, Kaplan-Meier curves and the log-rank test.

A prediction table of the survival task has columns id, roi, patient, time (months), event (1 observed, 0 censored) and
risk (larger is worse) where that of a classification has label and p_0, p_1, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medkd.errors import DataError, ParameterError
from medkd.evaluation.metrics import Level, mean_of_means
from medkd.evaluation.scorers import Scorer

# lifelines takes two seconds to import and only two functions need it, so they import it themselves


def c_index(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> float:
    """Harrell's C-index: share of the pairs of known order in which the sample that fails first has the higher risk.

    The order of a pair is known where the earlier time is an observed event; of two equal times where exactly one is
    an event, the censored sample living longer. Equal risks count half.

    Args:
        times: follow-up, shape (n,), any unit. Samples with nan in time or event are left out.
        events: 1 (or True) where the event was observed, 0 where the sample was censored, shape (n,).
        risks: shape (n,), larger is worse.

    Returns:
        0..1, 0.5 for a constant risk; nan where the order of no pair is known.

    Raises:
        DataError: if the shapes differ, a risk is nan or an event is neither 0 nor 1.

    Source:
        Harrell, Lee, Mark 1996, Statistics in Medicine 15(4), 361-387.
    """
    times, events, risks = np.asarray(times, float), np.asarray(events, float), np.asarray(risks, float)
    if times.shape == events.shape == risks.shape:
        known = ~(np.isnan(times) | np.isnan(events))
        times, events, risks = times[known], events[known], risks[known]
    (scorer,) = survival_scorers(times, events, {"": risks}).values()
    return float(scorer(np.ones((len(times), 1)))["c_index"][0])


def survival_scorers(
    times: np.ndarray, events: np.ndarray, risks: Mapping[str, np.ndarray], parts: np.ndarray | None = None
) -> dict[str, Scorer]:
    """The C-index of each method as a function of whole sample weights (n, n_resamples); 2 counts a sample twice.

    Which pairs count is worked out once for all methods.

    Args:
        times: follow-up, shape (n,), not nan.
        events: 1 observed, 0 censored, shape (n,).
        risks: of each method, shape (n,), larger is worse.
        parts: fold of each sample, shape (n,). Cox risks have no common origin between models that were trained
            apart, so a pair of samples from two folds says nothing, and only pairs within a fold count.

    Raises:
        DataError: if the shapes differ, a value is nan or an event is neither 0 nor 1.
    """
    times, events = np.asarray(times, dtype=np.float64), np.asarray(events, dtype=np.float64)
    methods = {method: np.asarray(values, dtype=np.float64) for method, values in risks.items()}
    for values in (*methods.values(), events, times if parts is None else np.asarray(parts)):
        if times.ndim != 1 or values.shape != times.shape:
            raise DataError(
                f"times, events and risks must have one shape (n,); got {times.shape}, {events.shape} and "
                f"{', '.join(str(values.shape) for values in methods.values())}"
            )
    if np.isnan(times).any() or not np.isin(events, (0, 1)).all():
        raise DataError(
            "the C-index needs a time and an event (1 observed, 0 censored) for every sample; leave out samples "
            "without follow-up"
        )
    if any(np.isnan(values).any() for values in methods.values()):
        raise DataError("some predicted risks are nan; look at the training loss")
    codes = np.zeros(len(times), int) if parts is None else pd.factorize(np.asarray(parts))[0]
    blocks = [_pairs(times, events, np.flatnonzero(codes == code)) for code in np.unique(codes)]
    return {method: _concordance(values, blocks) for method, values in methods.items()}


def _pairs(times: np.ndarray, events: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of one part: those with events (n_first,), all (n,), and which of them fail later, (n_first, n) bool."""
    first = rows[events[rows] == 1]
    later = times[rows] > times[first, None]
    later |= (times[rows] == times[first, None]) & (events[rows] == 0)
    return first, rows, later


def _concordance(risks: np.ndarray, blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Scorer:
    """C-index from the pairs of each part (see `_pairs`)."""
    # 2 where the earlier sample has the higher risk, 1 where risks are equal; bytes, as all patches of all folds are
    # a gigabyte in float32
    doubled = [later * (1 + np.sign(risks[first, None] - risks[rows])).astype(np.int8) for first, rows, later in blocks]

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        right, total = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for (first, rows, later), twice_right in zip(blocks, doubled, strict=True):
            # whole numbers in float32 are exact up to 2^24, above any sum of a row here, and twice as fast
            light = weights[rows].astype(np.float32)
            right += np.einsum("fr,fr->r", weights[first], twice_right.astype(np.float32) @ light) / 2
            total += np.einsum("fr,fr->r", weights[first], later.astype(np.float32) @ light)
        return {"c_index": np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)}

    return scorer


def aggregate_risks(predictions: pd.DataFrame, level: Level) -> pd.DataFrame:
    """Mean risk of each image, ROI or patient: over images of an ROI, then over ROIs of a patient.

    Risks are log-hazards in -3..3 (`medkd.losses.survival.bounded_risk`), so no single patch can outweigh the rest.

    Args:
        predictions: columns id, roi, patient, time, event and risk; one or more rows per image. Rows without time or
            event (no follow-up) are left out.
        level: "image", "roi" or "patient".

    Returns:
        One row per sample of this level, in order of first appearance: its naming columns, time, event, risk.

    Raises:
        ParameterError: if `level` is unknown.
        DataError: if a column or a name is missing, samples of one group have different follow-up, or no sample is
            left.
    """
    if missing := [c for c in ("id", "roi", "patient", "time", "event", "risk") if c not in predictions]:
        raise DataError(
            f"the predictions lack the column(s) {', '.join(missing)}; expected id, roi, patient, time, event and risk"
        )
    followed = predictions.dropna(subset=["time", "event"])
    if followed.empty:
        raise DataError("no sample of the predictions has both time and event; survival cannot be evaluated")
    return mean_of_means(followed, level, ["time", "event"], ["risk"])


def risk_groups(risks: np.ndarray, n_groups: int = 3, *, parts: np.ndarray | None = None) -> np.ndarray:
    """Number of each sample's risk group, 0 (lowest risks) to n_groups - 1, cut at quantiles of the risks.

    Args:
        risks: shape (n,), larger is worse.
        n_groups: >= 2; 3 cuts at the 33rd and 67th percentile.
        parts: fold of each sample, shape (n,): quantiles are taken within each fold, since risks of models that were
            trained apart have no common origin.

    Returns:
        Shape (n,), int. Equal risks stay together, so groups can differ in size and, with many ties, be empty.

    Raises:
        ParameterError: if `n_groups` < 2.
        DataError: if a risk is nan.
    """
    if n_groups < 2:
        raise ParameterError(f"n_groups must be at least 2; got {n_groups}")
    risks = np.asarray(risks, dtype=np.float64)
    if np.isnan(risks).any():
        raise DataError("some predicted risks are nan; look at the training loss")
    parts = np.zeros(len(risks), int) if parts is None else np.asarray(parts)
    groups = np.empty(len(risks), int)
    for part in pd.unique(parts):
        members = parts == part
        edges = np.quantile(risks[members], np.arange(1, n_groups) / n_groups)
        groups[members] = np.searchsorted(edges, risks[members], side="left")  # a risk at an edge is in the lower one
    return groups


def logrank_p(times: np.ndarray, events: np.ndarray, groups: np.ndarray) -> float:
    """Log-rank test: p value of the hypothesis that all groups have the same survival; nan with fewer than two groups.

    Args:
        times: follow-up, shape (n,), not nan.
        events: 1 observed, 0 censored, shape (n,).
        groups: number or name of each sample's group, shape (n,). One row per patient: the test takes rows as
            independent.

    Source:
        Mantel 1966; lifelines, `multivariate_logrank_test`.
    """
    from lifelines.statistics import multivariate_logrank_test

    if len(pd.unique(np.asarray(groups))) < 2:
        return float("nan")
    return float(multivariate_logrank_test(np.asarray(times), np.asarray(groups), np.asarray(events)).p_value)


def kaplan_meier_table(times: np.ndarray, events: np.ndarray, groups: Sequence | np.ndarray) -> pd.DataFrame:
    """Kaplan-Meier estimate of each group with 95% intervals, for `medkd.report.figures_results.kaplan_meier`.

    Args:
        times: follow-up in months, shape (n,), not nan.
        events: 1 observed, 0 censored, shape (n,).
        groups: number or name of each sample's group, shape (n,). One row per patient, as in `logrank_p`. Numbers of
            `risk_groups` keep the lowest risk first; name them in the table.

    Returns:
        One row per group (sorted) and time at which somebody of it died or was censored, from month 0 on: group,
        months, survival (share still alive just after), low, high, at_risk (just before; at month 0 the group's
        size).

    Source:
        Kaplan and Meier 1958; interval: Greenwood's variance on the log(-log) scale (lifelines).
    """
    from lifelines import KaplanMeierFitter

    times, events, groups = np.asarray(times), np.asarray(events), np.asarray(groups)
    tables = []
    for group in np.unique(groups):
        members = groups == group
        fitted = KaplanMeierFitter().fit(times[members], events[members])
        band = fitted.confidence_interval_survival_function_
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "months": fitted.survival_function_.index.to_numpy(),
                    "survival": fitted.survival_function_.iloc[:, 0].to_numpy(),
                    "low": band.iloc[:, 0].to_numpy(),
                    "high": band.iloc[:, 1].to_numpy(),
                    "at_risk": fitted.event_table["at_risk"].to_numpy(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
