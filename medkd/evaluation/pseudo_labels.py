"""Pseudo-labels: a classifier that is fitted to the support set labels every other image."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Literal, TypeVar

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from medkd.errors import DataError, ParameterError, TrainingError
from medkd.evaluation.probes import unit_rows

Classifier = Literal["lr", "ridge", "centroid"]
Key = TypeVar("Key", bound=Hashable)


def label_tasks(
    supports: Mapping[Key, tuple[np.ndarray, np.ndarray]],
    features: np.ndarray,
    *,
    n_way: int,
    classifier: Classifier = "lr",
    normalize: Literal["none", "l2"] = "none",
    C: float = 1.0,
) -> dict[Key, np.ndarray]:
    """Soft labels of the same images by every task's classifier, from features that were computed once.

    Args:
        supports: support features (n_support, d) and their classes (n_support,) of each task.
        features: of the images to label, shape (n, d).
        n_way: classes, the same for all tasks.
        classifier: "lr" (`label_with_logistic_regression`), "ridge" (`label_with_ridge`) or "centroid"
            (`label_with_centroids`).
        normalize: "l2" gives every feature unit length first; "none" takes them as they are.
        C: inverse strength of the L2 penalty of "lr" and "ridge".

    Returns:
        Probabilities (n, n_way) of each task.

    Raises:
        ParameterError: if `classifier` or `normalize` is unknown. Others: as the classifier.
    """
    if classifier not in ("lr", "ridge", "centroid") or normalize not in ("none", "l2"):
        raise ParameterError(
            f'classifier = "{classifier}" must be "lr", "ridge" or "centroid", normalize = "{normalize}" "none" or "l2"'
        )
    scaled = unit_rows if normalize == "l2" else np.asarray
    rows = scaled(features)
    found = {}
    with threadpool_limits(1, user_api="blas"):  # products this small take longer where cores wait for each other
        for key, (support_features, support_labels) in supports.items():
            support = scaled(support_features)
            if classifier == "lr":
                found[key] = label_with_logistic_regression(support, support_labels, rows, n_way=n_way, C=C)
            elif classifier == "ridge":
                found[key] = label_with_ridge(support, support_labels, rows, n_way=n_way, C=C)
            else:
                found[key] = label_with_centroids(support, support_labels, rows, n_way=n_way)
    return found


def label_with_logistic_regression(
    support_features: np.ndarray,
    support_labels: np.ndarray,
    features: np.ndarray,
    *,
    n_way: int,
    C: float = 1.0,
    max_iter: int = 20_000,
) -> np.ndarray:
    """Soft labels of `features` from a multinomial logistic regression (L2, lbfgs) on the support set.

    Args:
        support_features: shape (n_support, d).
        support_labels: class of each, 0 to n_way - 1, every class present, shape (n_support,).
        features: of the images to label, shape (n, d).
        n_way: classes, 2 or more.
        C: inverse strength of the L2 penalty, > 0.
        max_iter: iterations of lbfgs; features as long as those of a network that has just begun take some thousands.

    Returns:
        Probabilities, rows sum to 1, columns in the order of the classes, shape (n, n_way), float64.

    Raises:
        DataError: if a class has no support image. ParameterError: if `C` is not positive.
        TrainingError: if the regression does not converge, or the features are not finite.

    Source:
        Sun et al. 2021, arXiv:2110.04558, section 2.2; C = 1 and raw features as in its code.
    """
    _check(support_features, support_labels, features, n_way, C)
    # of two classes scikit-learn fits one vector w = w_1 - w_0; at the optimum |w_0|^2 + |w_1|^2 = |w|^2 / 2
    classifier = LogisticRegression(C=2 * C if n_way == 2 else C, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            # float64: with float32 features lbfgs stops on round-off before it has converged
            classifier.fit(np.asarray(support_features, np.float64), support_labels)
        except ConvergenceWarning:
            raise TrainingError(
                f"the logistic regression on {len(support_labels)} support images did not converge in "
                f"max_iter={max_iter} iterations; lower C={C}, or set normalize to l2 (features of unit length)"
            ) from None
    return classifier.predict_proba(np.asarray(features, np.float64))


def label_with_ridge(
    support_features: np.ndarray, support_labels: np.ndarray, features: np.ndarray, *, n_way: int, C: float = 1.0
) -> np.ndarray:
    """Soft labels from ridge regression on one-hot targets, with a free intercept.

    The scores of an image sum to 1 by themselves; negative ones are set to 0 and the rest is scaled to sum to 1, so
    that no temperature has to be chosen.

    Args, returns and errors: as `label_with_logistic_regression`; the penalty is |W|^2 / C.

    Source:
        Bertinetto et al. 2019, arXiv:1805.08136.
    """
    _check(support_features, support_labels, features, n_way, C)
    ridge = Ridge(alpha=1 / C).fit(np.asarray(support_features, np.float64), np.eye(n_way)[support_labels])
    scores = np.clip(ridge.predict(np.asarray(features, np.float64)), 0, None)
    return scores / scores.sum(axis=1, keepdims=True)


def label_with_centroids(
    support_features: np.ndarray, support_labels: np.ndarray, features: np.ndarray, *, n_way: int
) -> np.ndarray:
    """Soft labels: softmax over minus the squared distance to the mean support feature of each class.

    Args, returns and errors: as `label_with_logistic_regression`.

    Source:
        Snell, Swersky, Zemel 2017, arXiv:1703.05175, eq. 2.
    """
    _check(support_features, support_labels, features, n_way, 1.0)
    support, rows = np.asarray(support_features, np.float64), np.asarray(features, np.float64)
    prototypes = np.stack([support[support_labels == label].mean(axis=0) for label in range(n_way)])
    # |x|^2 is common to all classes and leaves the softmax as it is
    scores = 2 * rows @ prototypes.T - (prototypes**2).sum(axis=1)
    return softmax(scores, axis=1)


def _check(
    support_features: np.ndarray, support_labels: np.ndarray, features: np.ndarray, n_way: int, C: float
) -> None:
    if not C > 0:
        raise ParameterError(f"C, the inverse strength of the penalty, must be positive; got {C}, the paper uses 1")
    missing = sorted(set(range(n_way)) ^ set(np.unique(support_labels).tolist()))
    if n_way < 2 or missing:
        raise DataError(
            f"a support set of n_way={n_way} (2 or more) needs images of every class 0 to {n_way - 1} and of no other; "
            f"class(es) {missing} do not fit, draw the support set again"
        )
    if not (np.isfinite(support_features).all() and np.isfinite(features).all()):
        raise TrainingError("the features to label hold nan or infinity; train the encoder again with a lower lr")
