import numpy as np
import pytest

from medkd.errors import DataError, ParameterError, TrainingError
from medkd.evaluation.pseudo_labels import (
    label_tasks,
    label_with_centroids,
    label_with_logistic_regression,
    label_with_ridge,
)


def support(n_way=3, n_each=5):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_way), n_each)
    return rng.normal(size=(len(labels), 6)) + 2 * np.eye(6)[labels], labels


@pytest.mark.parametrize("n_way", [2, 3])
def test_probabilities_minimise_the_penalised_likelihood(n_way):
    """At the optimum of sum(CE) + |W|^2 / (2 C) over one vector per class, W = C * sum (y - p) x^T gives back p."""
    features, labels = support(n_way)
    soft = label_with_logistic_regression(features, labels, features, n_way=n_way, C=0.5)
    assert soft.shape == (len(labels), n_way)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_allclose(soft.sum(axis=0), np.bincount(labels), atol=2e-3)  # the free intercept's condition
    weights = 0.5 * (np.eye(n_way)[labels] - soft).T @ features
    intercepts = np.log(soft) - features @ weights.T  # but for a constant of each image
    intercepts -= intercepts.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(intercepts, np.broadcast_to(intercepts[0], intercepts.shape), atol=5e-3)


def test_labels_do_not_depend_on_the_order_of_the_support_set_or_its_precision():
    features, labels = support()
    query = np.random.default_rng(1).normal(size=(20, 6))
    order = np.random.default_rng(2).permutation(len(labels))
    first = label_with_logistic_regression(features, labels, query, n_way=3)
    second = label_with_logistic_regression(features[order], labels[order], query, n_way=3)
    third = label_with_logistic_regression(features.astype(np.float32), labels, query.astype(np.float32), n_way=3)
    np.testing.assert_allclose(first, second, atol=1e-3)
    np.testing.assert_allclose(first, third, atol=1e-3)


def test_features_as_long_as_a_young_network_has_them_are_labelled_too():
    """lbfgs takes more than a thousand iterations here."""
    rng, labels = np.random.default_rng(1), np.repeat([0, 1, 2], 5)
    features = 20 * rng.normal(size=(15, 128)) @ (rng.normal(size=(128, 128)) * 0.5 ** np.arange(128)[:, None])
    soft = label_with_logistic_regression(features, labels, features, n_way=3)
    assert (soft.argmax(axis=1) == labels).all()


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


def test_ridge_equals_the_primal_solution_with_a_free_intercept():
    """Minimise |Y - X W - b|^2 + |W|^2 / C over W and b, by the normal equations of the centred problem."""
    features, labels = support()
    rows = np.random.default_rng(1).normal(size=(20, 6))
    targets, centred = np.eye(3)[labels], features - features.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + np.eye(6) / 0.5, centred.T @ (targets - targets.mean(axis=0)))
    scores = targets.mean(axis=0) + (rows - features.mean(axis=0)) @ weights
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    expected = np.clip(scores, 0, None) / np.clip(scores, 0, None).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(label_with_ridge(features, labels, rows, n_way=3, C=0.5), expected, atol=1e-10)


def test_centroids_give_the_softmax_of_minus_squared_distances():
    features, labels = support()
    rows = np.random.default_rng(1).normal(size=(4, 6))
    found = label_with_centroids(features, labels, rows, n_way=3)
    for row, probabilities in zip(rows, found, strict=True):
        distances = [((row - features[labels == label].mean(axis=0)) ** 2).sum() for label in range(3)]
        expected = np.exp(-np.array(distances)) / np.exp(-np.array(distances)).sum()
        np.testing.assert_allclose(probabilities, expected, atol=1e-12)


@pytest.mark.parametrize("classifier", ["lr", "ridge", "centroid"])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_all_tasks_at_once_give_what_each_gives_alone_in_any_batch_and_order(classifier, normalize):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(30, 6))
    tasks = {}
    for k_shot in (1, 3, 5, 10, 20):
        labels = np.repeat(np.arange(3), k_shot)
        tasks[k_shot, 0] = rng.normal(size=(len(labels), 6)) + 2 * np.eye(6)[labels], labels
    options = {"n_way": 3, "classifier": classifier, "normalize": normalize}
    together = label_tasks(tasks, rows, **options)
    order = rng.permutation(30)
    for key, one in tasks.items():
        np.testing.assert_array_equal(together[key], label_tasks({key: one}, rows, **options)[key])
        parts = [label_tasks({key: one}, rows[part], **options)[key] for part in np.split(order, [7, 8])]
        np.testing.assert_allclose(np.concatenate(parts), together[key][order], atol=1e-12)
        np.testing.assert_allclose(together[key].sum(axis=1), 1)


def test_unit_length_makes_labels_blind_to_the_length_of_features():
    features, labels = support()
    rows = np.random.default_rng(1).normal(size=(5, 6))
    short, long = (
        label_tasks({0: (features, labels)}, scale * rows, n_way=3, normalize="l2")[0] for scale in (1.0, 9.0)
    )
    np.testing.assert_allclose(short, long)
    with pytest.raises(ParameterError, match='classifier = "svm" must be'):
        label_tasks({0: (features, labels)}, rows, n_way=3, classifier="svm")
