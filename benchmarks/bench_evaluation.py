"""6. Evaluation: 1,000 bootstrap resamples of 5 metrics on 5,000 predictions against a loop over scikit-learn.

The loop gets a few of the same resamples and its time is scaled up; its values must be the same.
"""

from __future__ import annotations

import numpy as np
from sklearn import metrics

from benchmarks.harness import Row, Scale, alternate, medians, ratio, spread
from benchmarks.made_data import predictions
from medkd.evaluation.bootstrap import intervals, resample_weights
from medkd.evaluation.scorers import classification_scorer

N_CLASSES = 7
NAMES = ("accuracy", "balanced_accuracy", "f1_macro", "auc_macro", "ap_macro")


def run(scale: Scale) -> list[Row]:
    """Seconds of all resamples, and scikit-learn's loop over them."""
    n, n_resamples, n_looped = scale.pick((5000, 1000, 10), (5000, 1000, 4), (300, 20, 2))
    labels, probabilities, patients = predictions(n, N_CLASSES)
    drawn = next(resample_weights(patients, n_looped, 0))[:, :n_looped].astype(int)
    rows_of = [np.repeat(np.arange(n), weights) for weights in drawn.T]
    _check_equal(labels, probabilities, drawn, rows_of)
    calls = {
        "medkd": lambda: intervals(
            classification_scorer(labels, probabilities, NAMES), n, patients, n_resamples=n_resamples
        ),
        "loop": lambda: [by_scikit_learn(labels[rows], probabilities[rows]) for rows in rows_of],
    }
    found = alternate(calls, scale.pick(5, 3, 1))
    whole_loop = [second * n_resamples / len(rows_of) for second in found["loop"]]
    what = f"{n_resamples:,} resamples of {len(NAMES)} metrics on {n:,} predictions"
    return [
        Row("6 evaluation", what, **spread(found["medkd"]), unit="s", at_most=2),
        Row(
            "6 evaluation",
            f"{what}, loop over scikit-learn / medkd",
            **ratio(whole_loop, found["medkd"]),
            medians={"medkd": medians(found)["medkd"], "loop": medians({"": whole_loop})[""]},
            note=f"the loop is scaled up from {len(rows_of)} resamples, whose values agree to 1e-9",
        ),
    ]


def by_scikit_learn(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics from scikit-learn."""
    predicted, one_hot = probabilities.argmax(axis=1), np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "auc_macro": metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "ap_macro": metrics.average_precision_score(one_hot, probabilities, average="macro"),
    }


def _check_equal(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray, rows_of: list[np.ndarray]) -> None:
    """Compare every looped resample with ours.

    Raises:
        AssertionError: if a value differs.
    """
    ours = classification_scorer(labels, probabilities, list(NAMES))(drawn.astype(float))
    for number, rows in enumerate(rows_of):
        for name, value in by_scikit_learn(labels[rows], probabilities[rows]).items():
            if abs(ours[name][number] - value) > 1e-9:
                raise AssertionError(f"{name} of resample {number} is {ours[name][number]}, scikit-learn says {value}")
