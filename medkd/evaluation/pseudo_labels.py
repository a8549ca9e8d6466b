"""Pseudo-labels: a logistic regression on the support set labels every other image."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from medkd.errors import DataError, ParameterError, TrainingError


def label_with_logistic_regression(
    support_features: np.ndarray,
    support_labels: np.ndarray,
    features: np.ndarray,
    *,
    n_way: int,
    C: float = 1.0,
    max_iter: int = 1000,
) -> np.ndarray:
    """Soft labels of `features` from a multinomial logistic regression (L2, lbfgs) on the support set.

    Args:
        support_features: shape (n_support, d).
        support_labels: class of each, 0 to n_way - 1, every class present, shape (n_support,).
        features: of the images to label, shape (n, d).
        n_way: classes, 2 or more.
        C: inverse strength of the L2 penalty, > 0.
        max_iter: iterations of lbfgs.

    Returns:
        Probabilities, rows sum to 1, columns in the order of the classes, shape (n, n_way), float64.

    Raises:
        DataError: if a class has no support image. ParameterError: if `C` is not positive.
        TrainingError: if the regression does not converge, or the features are not finite.

    Source:
        Sun et al. 2021, arXiv:2110.04558, section 2.2; C = 1 and raw features as in its code.
    """
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
    classifier = LogisticRegression(C=C, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            # float64: with float32 features lbfgs stops on round-off before it has converged
            classifier.fit(np.asarray(support_features, np.float64), support_labels)
        except ConvergenceWarning:
            raise TrainingError(
                f"the logistic regression on {len(support_labels)} support images did not converge in "
                f"max_iter={max_iter} iterations; raise max_iter or lower C={C}"
            ) from None
    return classifier.predict_proba(np.asarray(features, np.float64))
