"""Cheap looks at features: k nearest neighbours, purity of neighbourhoods, collapse."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from medkd.errors import DataError

TEMPERATURE = 0.1
"""Of the votes exp(cosine / T) in `knn_accuracy`, as in MoCo's monitor."""

CHUNK_ROWS = 2048  # query rows compared at once, so memory does not grow with their number


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
    *,
    balanced: bool = False,
) -> float:
    """Accuracy of a weighted vote of the k nearest training rows in cosine similarity, without any training.

    Args:
        train_features: shape (n_train, d).
        train_labels: shape (n_train,), int >= 0.
        features: rows to classify, shape (n, d).
        labels: shape (n,), int >= 0.
        k: neighbours that vote with exp(cosine / 0.1), clipped to n_train.
        balanced: mean over the classes of `labels`; where one class is most of the data, the plain share of right
            votes hardly moves.

    Returns:
        Share of right votes, 0..1.

    Raises:
        DataError: if labels and features differ in length, or one side is empty.

    Source:
        Wu, Xiong, Yu, Lin 2018, arXiv:1805.01978, section 3.4.
    """
    train_labels, labels = np.asarray(train_labels), np.asarray(labels)
    _check(train_features, train_labels)
    _check(features, labels)
    bank, rows = unit_rows(train_features), unit_rows(features)
    k = min(k, len(bank))
    one_hot = np.eye(train_labels.max() + 1)[train_labels]
    right = np.zeros(len(labels), bool)
    for start in range(0, len(rows), CHUNK_ROWS):
        similarity = rows[start : start + CHUNK_ROWS] @ bank.T  # (chunk, n_train)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        # minus 1 keeps the exponent <= 0; a common factor does not change the vote
        votes = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / TEMPERATURE)
        scores = np.einsum("nk,nkc->nc", votes, one_hot[nearest])
        right[start : start + CHUNK_ROWS] = scores.argmax(axis=1) == labels[start : start + CHUNK_ROWS]
    if balanced:
        return float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))
    return float(right.mean())


def neighbour_purity(points: np.ndarray, labels: np.ndarray, k: int = 10) -> float:
    """Mean share of each row's k nearest other rows (Euclidean) that carry its label.

    Args:
        points: features or embedding coordinates, shape (n, d), n >= 2.
        labels: shape (n,), any type.
        k: neighbours, clipped to n - 1.

    Returns:
        0..1; 1 where classes are separated, the sum of squared class shares where they are mixed.

    Raises:
        DataError: if the lengths differ or there are fewer than two rows.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    _check(points, labels)
    if len(points) < 2:
        raise DataError("neighbour purity needs at least two rows; got one")
    k = min(k, len(points) - 1)
    # asked without rows, scikit-learn leaves each row out of its own neighbours, also among duplicates
    nearest = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())


def collapse_std(features: np.ndarray) -> float:
    """Collapse alarm: mean standard deviation of L2-normalised features times sqrt(d).

    Args:
        features: shape (n, d).

    Returns:
        About 1 where features spread over the unit sphere, 0 where all images have the same feature.

    Source:
        Chen and He 2020, arXiv:2011.10566, section 4.1 (they plot it against 1/sqrt(d)).
    """
    rows = unit_rows(features)
    return float(rows.std(axis=0).mean() * np.sqrt(rows.shape[1]))


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows divided by their length, shape (n, d); a row of zeros stays zero."""
    features = np.asarray(features)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _check(features: np.ndarray, labels: np.ndarray) -> None:
    if np.ndim(features) != 2 or len(features) != len(labels) or not len(labels):
        raise DataError(
            f"expected features (n, d) and labels (n,) with n >= 1; got {np.shape(features)} and {labels.shape}"
        )
