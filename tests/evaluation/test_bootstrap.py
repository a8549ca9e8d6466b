import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from medkd.errors import DataError, ParameterError
from medkd.evaluation import bootstrap
from medkd.evaluation.bootstrap import intervals, paired_intervals, resample_weights
from medkd.evaluation.metrics import classification_metrics
from medkd.evaluation.scorers import SCALARS, classification_scorer, metric_names

NAMES = metric_names(3, ("f1", "recall"))


@pytest.fixture
def predictions():
    """90 images of 30 patients and three classes; scores in steps of 1/8, so that many are tied."""
    rng = np.random.default_rng(3)
    groups = rng.integers(30, size=90)
    labels = groups % 3
    raised = rng.dirichlet(np.ones(3), size=90) + 0.4 * np.eye(3)[labels]
    probabilities = np.round(raised / raised.sum(axis=1, keepdims=True) * 8) / 8
    return labels, probabilities, groups


def flat(point):
    """Point metrics with those of each class under names of their own."""
    found = {name: value for name, value in point.items() if not name.endswith("_per_class")}
    for kind in ("f1", "recall"):
        found |= {f"{kind}_{c}": value for c, value in enumerate(point[f"{kind}_per_class"])}
    return found


def bootstrapped(labels, probabilities, groups, names=None, **how):
    return intervals(classification_scorer(labels, probabilities, names), len(labels), groups, **how)


def difference(labels, a, b, groups, name, **how):
    """The one row of A minus B."""
    scorers = {method: classification_scorer(labels, p, [name]) for method, p in (("a", a), ("b", b))}
    table = paired_intervals(scorers, len(labels), groups, [("a", "b")], **how)
    return table.loc[0, ["difference", "low", "high", "p_value"]].to_dict()


def statistic(name, weights, labels, probabilities):
    return classification_scorer(labels, probabilities, [name])(weights)[name]


def slow_statistic(name, labels, probabilities, weights):
    """One resample with scikit-learn; classes that the resample lacks are left out."""
    kept = weights > 0
    labels, probabilities, weights = labels[kept], probabilities[kept], weights[kept]
    predicted, present, one_hot = probabilities.argmax(axis=1), np.unique(labels), np.eye(3)[labels]
    flat_scores = (one_hot.ravel(), probabilities.ravel())
    kind, _, c = name.partition("_")
    if kind in ("f1", "recall") and c.isdigit():
        score = {"f1": f1_score, "recall": recall_score}[kind]
        each = score(labels, predicted, labels=[int(c)], average=None, sample_weight=weights, zero_division=0)
        return each[0] if int(c) in present else np.nan
    if kind in ("auc", "ap"):
        score = {"auc": roc_auc_score, "ap": average_precision_score}[kind]
        if c == "micro":
            return score(*flat_scores, sample_weight=np.repeat(weights, 3))
        return np.mean([score(one_hot[:, k], probabilities[:, k], sample_weight=weights) for k in present])
    if name == "ece":
        top = probabilities.max(axis=1)
        gaps = [
            abs(np.sum((weights * (top - (predicted == labels)))[(top > i / 15) & (top <= (i + 1) / 15)]))
            for i in range(15)
        ]
        return sum(gaps) / weights.sum()
    return {
        "accuracy": lambda: accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": lambda: balanced_accuracy_score(labels, predicted, sample_weight=weights),
        "f1_micro": lambda: f1_score(labels, predicted, average="micro", sample_weight=weights),
        "f1_macro": lambda: f1_score(
            labels, predicted, labels=present, average="macro", sample_weight=weights, zero_division=0
        ),
        "kappa": lambda: cohen_kappa_score(labels, predicted, sample_weight=weights),
    }[name]()


@pytest.mark.parametrize("name", NAMES)
def test_every_resample_equals_scikit_learn_with_sample_weights(name, predictions):
    labels, probabilities, groups = predictions
    (weights,) = resample_weights(groups, 12, seed=5)
    slow = [slow_statistic(name, labels, probabilities, column) for column in weights.T]
    np.testing.assert_allclose(statistic(name, weights, labels, probabilities), slow, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("name", NAMES)
def test_class_missing_from_a_resample_is_left_out_of_its_mean(name, predictions):
    labels, probabilities, _ = predictions
    weights = np.where(labels == 1, 0.0, 2.0)
    found = statistic(name, weights[:, None], labels, probabilities)[0]
    assert found == pytest.approx(slow_statistic(name, labels, probabilities, weights), abs=1e-12, nan_ok=True)
    assert np.isnan(found) == (name in ("f1_1", "recall_1"))


@pytest.mark.parametrize("drawn", ["all rows once", "rows repeated"])
def test_weights_equal_the_point_metrics_of_repeated_rows(drawn, predictions):
    labels, probabilities, _ = predictions
    repeats = np.ones(90, int) if drawn == "all rows once" else np.random.default_rng(1).integers(4, size=90)
    found = classification_scorer(labels, probabilities, NAMES)(repeats[:, None].astype(float))
    point = flat(classification_metrics(np.repeat(labels, repeats), np.repeat(probabilities, repeats, axis=0)))
    assert found.keys() == point.keys()
    for name in NAMES:
        assert found[name][0] == pytest.approx(point[name], abs=1e-12), name


@pytest.mark.filterwarnings("ignore:No positive class found", "ignore:Only one class", "ignore:A single label")
def test_one_class_alone_has_the_undefined_metrics_of_the_point_values():
    labels, probabilities = np.array([1, 1, 1]), np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    for rows in ([0, 1, 2], [0, 2]):
        point = flat(classification_metrics(labels[rows], probabilities[rows]))
        found = classification_scorer(labels[rows], probabilities[rows], list(point))(np.ones((len(rows), 1)))
        assert {name: value[0] for name, value in found.items()} == pytest.approx(point, nan_ok=True)


def test_default_is_every_scalar_metric_and_the_f1_of_each_class(predictions):
    labels, probabilities, groups = predictions
    table = bootstrapped(labels, probabilities, groups, n_resamples=10)
    point = flat(classification_metrics(labels, probabilities))
    assert list(table.index) == [*SCALARS, "f1_0", "f1_1", "f1_2"] and list(table.columns) == ["value", "low", "high"]
    for name in table.index:
        assert table.loc[name, "value"] == pytest.approx(point[name], abs=1e-12)


def test_metrics_do_not_depend_on_which_others_are_asked_for(predictions):
    everything = bootstrapped(*predictions, names=NAMES, n_resamples=20)
    for name in NAMES:
        assert bootstrapped(*predictions, names=[name], n_resamples=20).equals(everything.loc[[name]])


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array(["p3", "p1", "p3", "p2", "p3"], dtype=object)
    (weights,) = resample_weights(groups, 200, seed=0)
    assert weights.shape == (5, 200)
    assert (weights[0] == weights[2]).all() and (weights[0] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()
    # each patient is drawn once on average; 0.15 is 2.6 standard errors sqrt(2/3 / 200)
    assert weights.mean(axis=1) == pytest.approx(np.ones(5), abs=0.15)


def test_interval_has_the_width_of_the_mean_of_independent_patients():
    """Accuracy of 400 patients with one image each: 1.96 sqrt(p (1 - p) / 400) to either side."""
    labels = np.zeros(400, int)
    probabilities = np.eye(2)[(np.arange(400) % 4 == 0).astype(int)]
    row = bootstrapped(labels, probabilities, np.arange(400), names=["accuracy"], seed=1).loc["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert row["value"] == 0.75
    assert [row["low"], row["high"]] == pytest.approx([0.75 - half, 0.75 + half], abs=0.006)


def test_repeating_images_of_patients_does_not_narrow_the_interval(predictions):
    labels, probabilities, groups = predictions
    once = bootstrapped(labels, probabilities, groups, n_resamples=50)
    tripled = bootstrapped(np.tile(labels, 3), np.tile(probabilities, (3, 1)), np.tile(groups, 3), n_resamples=50)
    np.testing.assert_allclose(tripled, once, atol=1e-12)


def test_block_size_does_not_change_the_resamples(predictions, monkeypatch):
    labels, probabilities, groups = predictions
    whole = bootstrapped(labels, probabilities, groups, n_resamples=23)
    monkeypatch.setattr(bootstrap, "CHUNK_ELEMENTS", 5 * len(labels))
    assert bootstrapped(labels, probabilities, groups, n_resamples=23).equals(whole)


def test_seed_decides_the_interval(predictions):
    labels, probabilities, groups = predictions
    first, again, other = (bootstrapped(*predictions, n_resamples=40, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first["low"].equals(other["low"])


def test_one_patient_gives_a_value_without_an_interval():
    table = bootstrapped(np.array([0, 1]), np.eye(2), np.array(["p", "p"]), names=["accuracy"], n_resamples=10)
    assert table.loc["accuracy", "value"] == 1
    assert table.loc["accuracy", ["low", "high"]].isna().all()


def test_paired_difference_is_narrower_than_the_two_intervals_suggest(predictions):
    """B errs on one image more than A: both vary a lot between patients, their difference hardly."""
    labels, _, groups = predictions
    a = np.eye(3)[np.where(groups % 5 == 0, (labels + 1) % 3, labels)]
    b = a.copy()
    b[np.flatnonzero(groups % 5)[0]] = np.roll(b[np.flatnonzero(groups % 5)[0]], 1)
    found = difference(labels, a, b, groups, name="accuracy", n_resamples=300)
    alone = bootstrapped(labels, a, groups, names=["accuracy"], n_resamples=300).loc["accuracy"]
    assert found["difference"] == pytest.approx(1 / 90)
    assert 0 <= found["low"] <= found["difference"] <= found["high"]
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / 3


def test_identical_methods_do_not_differ(predictions):
    labels, probabilities, groups = predictions
    found = difference(labels, probabilities, probabilities, groups, name="auc_macro", n_resamples=20)
    assert found == {"difference": 0, "low": 0, "high": 0, "p_value": 1}


def test_p_value_of_a_method_that_always_wins_is_the_smallest_possible(predictions):
    labels, _, groups = predictions
    right, wrong = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]
    found = difference(labels, right, wrong, groups, name="balanced_accuracy", n_resamples=99)
    assert found["difference"] == found["low"] == found["high"] == 1
    assert found["p_value"] == pytest.approx(2 / 100)
    swapped = difference(labels, wrong, right, groups, name="balanced_accuracy", n_resamples=99)
    assert swapped["difference"] == -1 and swapped["p_value"] == found["p_value"]


def test_several_pairs_and_metrics_share_the_resamples_of_one(predictions):
    labels, probabilities, groups = predictions
    rng = np.random.default_rng(0)
    methods = {"KD": probabilities, "CE only": rng.dirichlet(np.ones(3), size=90), "teacher": np.eye(3)[labels]}
    pairs, names = [("teacher", "KD"), ("KD", "CE only")], ["kappa", "f1_2"]
    scorers = {method: classification_scorer(labels, values, names) for method, values in methods.items()}
    table = paired_intervals(scorers, 90, groups, pairs, n_resamples=30, seed=2)
    assert table[["method", "minus", "metric"]].to_numpy().tolist() == [
        [*pair, name] for pair in pairs for name in names
    ]
    for row in table.itertuples():
        alone = difference(
            labels, methods[row.method], methods[row.minus], groups, name=row.metric, n_resamples=30, seed=2
        )
        assert alone == {name: getattr(row, name) for name in ("difference", "low", "high", "p_value")}


def test_names_what_does_not_fit(predictions):
    labels, probabilities, groups = predictions
    with pytest.raises(ParameterError, match='no bootstrap of "auroc" with 3 classes; known: accuracy'):
        bootstrapped(labels, probabilities, groups, names=["auroc"])
    with pytest.raises(ParameterError, match='no bootstrap of "f1_3" with 3 classes'):
        bootstrapped(labels, probabilities, groups, names=["f1_3"])
    with pytest.raises(ParameterError, match="n_resamples must be at least 1"):
        bootstrapped(labels, probabilities, groups, n_resamples=0)
    with pytest.raises(DataError, match="needs its group"):
        bootstrapped(labels, probabilities, groups[1:])
    with pytest.raises(DataError, match="needs its group"):
        bootstrapped(labels, probabilities, np.where(groups == 3, None, groups.astype(object)))
