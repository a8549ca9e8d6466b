import numpy as np
import pytest

from medkd.errors import DataError, ParameterError, TrainingError
from medkd.evaluation.pseudo_labels import label_with_logistic_regression


def support(n_way=3, n_each=5):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_way), n_each)
    return rng.normal(size=(len(labels), 6)) + 2 * np.eye(6)[labels], labels


@pytest.mark.parametrize("n_way", [2, 3])
def test_probabilities_minimise_the_penalised_likelihood(n_way):
    """At the optimum of sum(CE) + |W|^2 / (2 C) the gradient at W = C * sum (y - p) x^T vanishes."""
    features, labels = support(n_way)
    soft = label_with_logistic_regression(features, labels, features, n_way=n_way, C=0.5)
    assert soft.shape == (len(labels), n_way)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_allclose(soft.sum(axis=0), np.bincount(labels), atol=2e-3)  # the free intercept's condition
    assert (soft.argmax(axis=1) == labels).mean() > 0.9


def test_labels_do_not_depend_on_the_order_of_the_support_set_or_its_precision():
    features, labels = support()
    query = np.random.default_rng(1).normal(size=(20, 6))
    order = np.random.default_rng(2).permutation(len(labels))
    first = label_with_logistic_regression(features, labels, query, n_way=3)
    second = label_with_logistic_regression(features[order], labels[order], query, n_way=3)
    third = label_with_logistic_regression(features.astype(np.float32), labels, query.astype(np.float32), n_way=3)
    np.testing.assert_allclose(first, second, atol=1e-3)
    np.testing.assert_allclose(first, third, atol=1e-3)


def test_refuses_what_it_cannot_label_from():
    features, labels = support()
    with pytest.raises(DataError, match=r"class\(es\) \[3\]"):
        label_with_logistic_regression(features, labels, features, n_way=4)
    with pytest.raises(TrainingError, match="max_iter=1 "):
        label_with_logistic_regression(100 * features, labels, features, n_way=3, max_iter=1)
    with pytest.raises(ParameterError, match="C, the inverse"):
        label_with_logistic_regression(features, labels, features, n_way=3, C=0.0)
    with pytest.raises(TrainingError, match="nan"):
        label_with_logistic_regression(features * np.nan, labels, features, n_way=3)
