"""Point values of classification metrics, and patch -> ROI -> patient aggregation of predictions."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, recall_score, roc_auc_score

from medkd.errors import DataError, ParameterError

N_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""

Level = Literal["image", "roi", "patient"]
LEVELS: dict[str, tuple[str, ...]] = {
    "image": ("patient", "roi", "id"),
    "roi": ("patient", "roi"),
    "patient": ("patient",),
}
"""The columns that name one sample of each level."""


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | list[float]]:
    """Metrics of single-label predictions; the predicted class is the most probable one.

    Micro averages pool all (sample, class) decisions of the one-hot labels; macro averages weigh classes equally.
    A class that is absent from `labels` has no recall, F1, AUC or AP: it is nan in the lists and left out of the
    means. Present classes that are never predicted have F1 = 0.

    Args:
        labels: class index of each sample, shape (n,), int.
        probabilities: shape (n, n_classes), each in 0..1, rows sum to 1.

    Returns:
        accuracy, balanced_accuracy (mean recall), auc_micro, auc_macro (one-vs-rest), ap_micro, ap_macro, f1_micro,
        f1_macro, kappa (unweighted), ece (15 equal-width bins of the top probability), each in 0..1 (kappa -1..1), and
        the lists f1_per_class and recall_per_class of length n_classes. auc_macro and kappa are nan where only one
        class occurs.

    Raises:
        DataError: if the shapes do not fit, a label is out of range or a probability is not in 0..1.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(n_classes, dtype=int)[labels]
    present = np.unique(labels)
    # AUC needs samples on both sides; with one class present there are no negatives
    auc = [roc_auc_score(one_hot[:, c], probabilities[:, c]) for c in present] if len(present) > 1 else [np.nan]
    average_precision = [average_precision_score(one_hot[:, c], probabilities[:, c]) for c in present]
    f1 = _spread(f1_score(labels, predicted, labels=present, average=None, zero_division=0), present, n_classes)
    recall = _spread(recall_score(labels, predicted, labels=present, average=None), present, n_classes)
    one_outcome = len(np.union1d(labels, predicted)) == 1
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "auc_micro": float(roc_auc_score(one_hot.ravel(), probabilities.ravel())),
        "auc_macro": float(np.mean(auc)),
        "ap_micro": float(average_precision_score(one_hot.ravel(), probabilities.ravel())),
        "ap_macro": float(np.mean(average_precision)),
        "f1_micro": float(f1_score(labels, predicted, average="micro")),
        "f1_macro": float(np.nanmean(f1)),
        "f1_per_class": f1.tolist(),
        "recall_per_class": recall.tolist(),
        "kappa": float("nan") if one_outcome else float(cohen_kappa_score(labels, predicted)),
        "ece": calibration_error(calibration_table(labels, probabilities)),
    }


def check_predictions(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arrays as int64 and float64, once their shapes and ranges are found to fit.

    Raises:
        DataError: as `classification_metrics`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if (
        probabilities.ndim != 2
        or probabilities.shape[1] < 2
        or labels.shape != probabilities.shape[:1]
        or not len(labels)
    ):
        raise DataError(
            f"expected labels (n,) and probabilities (n, n_classes) with n >= 1 and n_classes >= 2; "
            f"got {labels.shape} and {probabilities.shape}"
        )
    if not ((probabilities >= -1e-6) & (probabilities <= 1 + 1e-6)).all():
        raise DataError(
            "probabilities must lie in 0..1, but some are outside or nan; pass softmax outputs, and if they are nan "
            "look at the training loss"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"labels must be class indices 0..{probabilities.shape[1] - 1} (one column of probabilities each); "
            f"got {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64), probabilities


def calibration_table(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """How often the predicted class is right, by bins of its probability.

    Args: as `classification_metrics`.

    Returns:
        One row a bin that is not empty: `confidence` (mean top probability), `accuracy`, `n_samples`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    confidence = probabilities.max(axis=1)
    frame = pd.DataFrame({"confidence": confidence, "accuracy": probabilities.argmax(axis=1) == labels})
    bins = bins_of(confidence)
    table = frame.astype(float).groupby(bins).mean()
    return table.assign(n_samples=frame.groupby(bins).size()).reset_index(drop=True)


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each top probability, shape (n,): bin i holds i/15 < p <= (i + 1)/15."""
    return np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error (ECE) from a `calibration_table`: mean gap of confidence and accuracy, by samples."""
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["n_samples"]))


def aggregate(predictions: pd.DataFrame, level: Level) -> pd.DataFrame:
    """Mean probabilities of each image, ROI or patient: over images of an ROI, then over ROIs of a patient.

    The mean of means gives each ROI the same weight, however many patches were cut from it. Probabilities are
    averaged, not their logarithms: one confident patch must not rule out a class for the patient.

    Args:
        predictions: columns id, roi, patient, label (class index) and p_0 .. p_{C-1}; one or more rows per image.
        level: "image", "roi" or "patient".

    Returns:
        One row per sample of this level, in order of first appearance: its naming columns, label, p_0 .. p_{C-1}.

    Raises:
        ParameterError: if `level` is unknown.
        DataError: if a column, a name or a probability is missing, or samples of one group have different labels.
    """
    scores = [column for column in predictions if re.fullmatch(r"p_\d+", str(column))]
    missing = [column for column in ("id", "roi", "patient", "label") if column not in predictions]
    if missing or not scores:
        raise DataError(
            f"the predictions lack the column(s) {', '.join(missing or ['p_0, p_1, ...'])}; "
            "expected id, roi, patient, label and one p_<class index> a class"
        )
    return mean_of_means(predictions, level, ["label"], scores)


def mean_of_means(predictions: pd.DataFrame, level: Level, known: list[str], scores: list[str]) -> pd.DataFrame:
    """Mean of the columns `scores` over images of an ROI, then over ROIs of a patient; see `aggregate`.

    `known` are the columns of what is predicted, which must not differ within a sample of the level.

    Raises: as `aggregate`.
    """
    if level not in LEVELS:
        raise ParameterError(f'level must be "image", "roi" or "patient"; got {level!r}')
    if predictions[["id", "roi", "patient"]].isna().any(axis=None):
        raise DataError("the predictions have samples without id, roi or patient; repeat the id where there is no roi")
    if not np.isfinite(predictions[scores].to_numpy(float)).all():
        raise DataError(
            f"the predictions have {scores[0]} to {scores[-1]} that are no numbers; look at the loss of the network "
            "that made them, and train it again"
        )
    frame = predictions
    for step in ("image", "roi", "patient"):
        groups = frame.groupby(list(LEVELS[step]), sort=False)
        for column in known:
            _check_equal(groups[column], step)
        how = dict.fromkeys(known, "first") | dict.fromkeys(scores, "mean")
        frame = groups[[*known, *scores]].agg(how).reset_index()
        if step == level:
            break
    named = [column for column in ("id", "roi", "patient") if column in frame]
    return frame[[*named, *known, *scores]]


def _check_equal(values: pd.api.typing.SeriesGroupBy, level: str) -> None:
    n_values = values.nunique()
    if (n_values > 1).any():
        name = n_values.idxmax()
        name = name[-1] if isinstance(name, tuple) else name
        raise DataError(
            f"{level} {name!r} has samples with different {values.obj.name}s, so its predictions cannot be averaged; "
            "evaluate a finer level or correct the table"
        )


def _spread(values: np.ndarray, present: np.ndarray, n_classes: int) -> np.ndarray:
    """Values of the present classes at their indices, nan elsewhere."""
    spread = np.full(n_classes, np.nan)
    spread[present] = values
    return spread
