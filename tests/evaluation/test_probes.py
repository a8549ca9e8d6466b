import numpy as np
import pytest

from medkd.errors import DataError
from medkd.evaluation import probes
from medkd.evaluation.probes import collapse_std, knn_accuracy, neighbour_purity


def slow_knn_accuracy(train_features, train_labels, features, labels, k):
    n_right = 0
    for row, label in zip(features, labels, strict=True):
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in train_features]
        votes = {}
        for i in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]:
            votes[train_labels[i]] = votes.get(train_labels[i], 0) + np.exp(cosines[i] / 0.1)
        n_right += max(votes, key=votes.get) == label
    return n_right / len(labels)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_accuracy_equals_a_slow_vote(k, monkeypatch):
    monkeypatch.setattr(probes, "CHUNK_ROWS", 8)  # 30 rows: three full chunks and a part
    rng = np.random.default_rng(1)
    train_labels, labels = rng.integers(3, size=40), rng.integers(3, size=30)
    train, rows = rng.standard_normal((40, 5)), rng.standard_normal((30, 5))
    train[:, :3] += np.eye(3)[train_labels]
    rows[:, :3] += np.eye(3)[labels]
    expected = slow_knn_accuracy(train, train_labels, rows, labels, k)
    assert knn_accuracy(train, train_labels, rows, labels, k=k) == pytest.approx(expected)


def test_one_close_neighbour_outvotes_two_distant_ones():
    """exp(1 / .1) against 2 exp(.5 / .1)."""
    far = [0.5, np.sqrt(0.75)]
    train, train_labels = np.array([[1.0, 0.0], far, far]), np.array([0, 1, 1])
    assert knn_accuracy(train, train_labels, np.array([[3.0, 0.0]]), np.array([0]), k=3) == 1


def test_class_that_the_bank_lacks_is_never_right():
    assert knn_accuracy(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 2])) == 0.5


def test_purity_counts_neighbours_of_the_same_label_without_the_row_itself():
    """On the line 0, 1, 3, 7 each row's nearest other row is its left one, for the first its right one."""
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_purity(points, np.array(["a", "a", "b", "b"]), k=1) == pytest.approx(3 / 4)
    assert neighbour_purity(np.zeros((2, 3)), np.array([0, 1])) == 0


def test_purity_of_mixed_classes_is_the_sum_of_squared_shares():
    rng = np.random.default_rng(0)
    labels = (np.arange(2000) % 4 == 0).astype(int)
    assert neighbour_purity(rng.standard_normal((2000, 3)), labels) == pytest.approx(0.75**2 + 0.25**2, abs=0.02)


def test_collapse_std_is_one_on_the_sphere_and_zero_when_all_features_agree():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((4000, 32))
    assert collapse_std(spread) == pytest.approx(1, abs=0.01)
    assert collapse_std(spread * rng.uniform(0.1, 9, size=(4000, 1))) == pytest.approx(1, abs=0.01)
    assert collapse_std(np.outer(np.arange(1.0, 9.0), np.ones(32))) == pytest.approx(0, abs=1e-9)


def test_names_lengths_that_do_not_fit():
    with pytest.raises(DataError, match=r"got \(2, 2\) and \(3,\)"):
        knn_accuracy(np.eye(2), np.zeros(3, int), np.eye(2), np.zeros(2, int))
    with pytest.raises(DataError, match="at least two rows"):
        neighbour_purity(np.ones((1, 2)), np.zeros(1))


def test_knn_balanced_weighs_classes_equally():
    train, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    rows, truth = np.array([[1.0, 0.1]] * 4 + [[1.0, 0.2]]), np.array([0, 0, 0, 0, 1])
    assert knn_accuracy(train, labels, rows, truth, k=1) == pytest.approx(0.8)
    assert knn_accuracy(train, labels, rows, truth, k=1, balanced=True) == pytest.approx(0.5)
