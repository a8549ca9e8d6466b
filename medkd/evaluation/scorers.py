"""Classification metrics as functions of sample weights: many resamples at once, from scores that are sorted once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medkd.errors import ParameterError
from medkd.evaluation.metrics import N_BINS, bins_of, check_predictions

SCALARS = (
    "accuracy",
    "balanced_accuracy",
    "auc_micro",
    "auc_macro",
    "ap_micro",
    "ap_macro",
    "f1_micro",
    "f1_macro",
    "kappa",
    "ece",
)
"""Metrics of `classification_metrics` that are one number; those of class i are "f1_<i>" and "recall_<i>"."""

Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]
"""weights (n, n_resamples) float -> values (n_resamples,) of each metric; holds the predictions it scores."""


def metric_names(n_classes: int, per_class: Sequence[str] = ("f1",)) -> list[str]:
    """All scalar metrics, and `per_class` ("f1", "recall") of each class: "f1_0", "f1_1", ..."""
    return [*SCALARS, *(f"{kind}_{c}" for kind in per_class for c in range(n_classes))]


def classification_scorer(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str] | None = None,
    parts: np.ndarray | None = None,
) -> Scorer:
    """The metrics of `classification_metrics` as functions of sample weights; scores are sorted once, here.

    Args:
        labels: class index of each sample, shape (n,), int.
        probabilities: shape (n, n_classes), rows sum to 1.
        names: out of `metric_names`; default every scalar metric and the F1 of each class.
        parts: fold or task of each sample, shape (n,), each judged by a network of its own. AUC and average precision
            are then means over parts (macro: of each class over the parts that have it, then over classes), because
            scores of two networks have no common scale; all others pool the samples.

    Returns:
        A function of weights (n, n_resamples), >= 0, that gives the values (n_resamples,) of each name. A weight of 2
        counts a sample twice, and weights of 1 give the point metrics.

    Raises:
        ParameterError: if a name is unknown.
        DataError: if the arrays do not fit.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    n_classes = probabilities.shape[1]
    names = metric_names(n_classes) if names is None else list(names)
    if unknown := [name for name in names if name not in metric_names(n_classes, ("f1", "recall"))]:
        raise ParameterError(
            f'no bootstrap of "{unknown[0]}" with {n_classes} classes; known: {", ".join(SCALARS)}, and f1_<i> and '
            "recall_<i> of class i"
        )
    scorers = []
    if {"auc_macro", "ap_macro"}.intersection(names):
        scorers.append(_within_parts(_macro_ranks, labels, probabilities, parts))
    if {"auc_micro", "ap_micro"}.intersection(names):
        scorers.append(_within_parts(_micro_ranks, labels, probabilities, parts))
    if "ece" in names:
        scorers.append(_calibration(labels, probabilities))
    if any(re.match("accuracy|balanced|f1|recall|kappa", name) for name in names):
        scorers.append(_decisions(labels, probabilities))

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: values for part in scorers for name, values in part(weights).items()}
        return {name: found[name] for name in names}

    return scorer


def _within_parts(
    of_ranks: Callable[[np.ndarray, np.ndarray], Scorer],
    labels: np.ndarray,
    probabilities: np.ndarray,
    parts: np.ndarray | None,
) -> Scorer:
    """Mean over classes of the mean over parts, each over those that a resample has samples of.

    In the other order, a small class that a resample leaves in few parts would weigh less than in the value itself.
    `of_ranks` gives values of shape (classes, n_resamples).
    """
    rows_of = (
        [np.arange(len(labels))] if parts is None else [np.flatnonzero(parts == part) for part in pd.unique(parts)]
    )
    scorers = [of_ranks(labels[rows], probabilities[rows]) for rows in rows_of]

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        each = [score(weights[rows]) for score, rows in zip(scorers, rows_of, strict=True)]
        return {name: _mean_of_known(_mean_of_known(np.stack([found[name] for found in each]))) for name in each[0]}

    return scorer


def _decisions(labels: np.ndarray, probabilities: np.ndarray) -> Scorer:
    """Metrics of the predicted class: accuracy, recall, F1 and kappa."""
    one_hot = np.eye(probabilities.shape[1])
    is_actual, is_predicted = one_hot[labels].T, one_hot[probabilities.argmax(axis=1)].T
    is_hit = is_actual * is_predicted

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, actual, predicted = is_hit @ weights, is_actual @ weights, is_predicted @ weights
        total, right = weights.sum(axis=0), hits.sum(axis=0)
        recall = _ratio(hits, actual)
        f1 = np.where(actual > 0, _ratio(2 * hits, actual + predicted), np.nan)
        # (1 - observed) / (1 - expected agreement), both times total^2, so that one outcome alone is exactly 0 / 0
        disagreement = _ratio(total**2 - total * right, total**2 - (actual * predicted).sum(axis=0))
        return {
            "accuracy": right / total,
            "f1_micro": right / total,  # each sample has one label and one prediction: the same number
            "balanced_accuracy": _mean_of_known(recall),
            "f1_macro": _mean_of_known(f1),
            "kappa": 1 - disagreement,
            **{f"f1_{c}": f1[c] for c in range(len(f1))},
            **{f"recall_{c}": recall[c] for c in range(len(recall))},
        }

    return scorer


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Scorer:
    """Expected calibration error: |sum of (confidence - right)| of each bin, over the total weight."""
    confidence = probabilities.max(axis=1)
    gaps = np.eye(N_BINS)[bins_of(confidence)].T * (confidence - (probabilities.argmax(axis=1) == labels))
    return lambda weights: {"ece": np.abs(gaps @ weights).sum(axis=0) / weights.sum(axis=0)}


def _macro_ranks(labels: np.ndarray, probabilities: np.ndarray) -> Scorer:
    """One-vs-rest AUC and average precision of each class; nan where a resample lacks it."""
    samples = np.arange(len(labels))
    rankings = {c: _Ranking.of(probabilities[:, c], labels == c, samples) for c in np.unique(labels)}

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        auc, precision = np.full((2, probabilities.shape[1], weights.shape[1]), np.nan)
        for c, ranking in rankings.items():
            auc[c], precision[c] = ranking.auc_and_average_precision(weights)
        return {"auc_macro": auc, "ap_macro": precision}

    return scorer


def _micro_ranks(labels: np.ndarray, probabilities: np.ndarray) -> Scorer:
    """AUC and average precision of all (sample, class) decisions together."""
    n, n_classes = probabilities.shape
    is_positive = np.eye(n_classes, dtype=bool)[labels]
    ranking = _Ranking.of(probabilities.ravel(), is_positive.ravel(), np.repeat(np.arange(n), n_classes))

    def scorer(weights: np.ndarray) -> dict[str, np.ndarray]:
        auc, precision = ranking.auc_and_average_precision(weights)
        return {"auc_micro": auc[None], "ap_micro": precision[None]}

    return scorer


@dataclass(frozen=True)
class _Ranking:
    """Sorted scores of one yes-or-no question; the order serves every resample, only weights change.

    Attributes:
        rows: sample of each score, lowest score first, shape (m,).
        positives: sample of each positive, lowest score first, shape (p,).
        below, up_to: number of scores below a positive's, and of those not above it, shape (p,).
        positives_below: number of positives with a lower score, shape (p,).
    """

    rows: np.ndarray
    positives: np.ndarray
    below: np.ndarray
    up_to: np.ndarray
    positives_below: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, is_positive: np.ndarray, samples: np.ndarray) -> _Ranking:
        order = np.argsort(scores, kind="stable")
        positives = order[is_positive[order]]
        ours = scores[positives]
        return cls(
            samples[order],
            samples[positives],
            np.searchsorted(scores[order], ours, side="left"),
            np.searchsorted(scores[order], ours, side="right"),
            np.searchsorted(ours, ours, side="left"),
        )

    def auc_and_average_precision(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both (n_resamples,), nan without positives, the AUC also without negatives.

        AUC: share of (positive, negative) pairs in the right order, ties counting half. The weight below a positive
        is a look-up in the running sum over all scores; positives among it make up W^2 / 2 over all positives.
        Average precision: mean over positives of the precision at the positive's score, ties all predicted positive.
        """
        running = _running_sum(weights, self.rows)
        ours = weights[self.positives]
        below = running[self.below]
        not_above = running[self.up_to]
        total = running[-1]
        positive = ours.sum(axis=0)
        pairs = (np.einsum("pr,pr->r", ours, below + not_above) - positive**2) / 2
        auc = _ratio(pairs, positive * (total - positive))
        # a positive of weight 0 may have nothing at or above it; any precision will do, it counts 0 times
        hits = positive - _running_sum(weights, self.positives)[self.positives_below]
        precision = hits / np.maximum(total - below, np.finfo(float).tiny)
        return auc, _ratio(np.einsum("pr,pr->r", ours, precision), positive)


def _running_sum(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum of the first i of the weights in the order of `rows`, i = 0..m, shape (m + 1, n_resamples)."""
    running = np.zeros((len(rows) + 1, weights.shape[1]))
    np.cumsum(weights[rows], axis=0, out=running[1:])
    return running


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over rows (classes, parts) that are not nan, nan if none is left; (m, ...) -> (...)."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
