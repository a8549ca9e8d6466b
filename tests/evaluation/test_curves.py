import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medkd.evaluation.curves import calibration_by_method, confusion_table, pr_points, roc_points

CLASSES = ("NV", "MEL", "DF")


def predictions(n, method="GMCD", seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=n, p=(0.7, 0.25, 0.05))
    scores = np.exp(rng.standard_normal((n, 3)) + strength * np.eye(3)[labels])
    columns = {f"p_{index}": column for index, column in enumerate((scores / scores.sum(axis=1, keepdims=True)).T)}
    return pd.DataFrame({"label": labels, "method": method} | columns)


@pytest.mark.parametrize(
    ("points", "area", "expected"),
    [(roc_points, "auc", roc_auc_score), (pr_points, "average_precision", average_precision_score)],
)
@pytest.mark.parametrize("n", [40, 5000])
def test_areas_are_scikit_learns_and_a_thinned_curve_keeps_them(points, area, expected, n):
    frame = predictions(n)
    table = points(frame, CLASSES)
    assert list(table) == ["method", "class", "label", "x", "y", area]
    for index, name in enumerate(CLASSES):
        curve = table[table["class"] == name]
        wanted = expected(frame["label"] == index, frame[f"p_{index}"])
        assert curve[area].unique() == pytest.approx([wanted])
        assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(wanted, abs=1e-3)
        assert len(curve) <= 200 and (np.diff(curve["x"]) >= 0).all()


@pytest.mark.parametrize("n_stairs", [199, 398, 796])
def test_stairs_that_keep_pace_with_the_thinning_are_not_cut_off_on_one_side(n_stairs):
    labels = np.arange(2 * n_stairs) % 2
    scores = np.linspace(0.99, 0.01, len(labels))
    frame = pd.DataFrame({"method": "KD", "label": labels, "p_0": 1 - scores, "p_1": scores})
    for points, area in ((roc_points, "auc"), (pr_points, "average_precision")):
        for _, curve in points(frame, ("a", "b")).groupby("class"):
            assert len(curve) <= 200
            assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(curve[area].iloc[0], abs=1e-3)


def test_roc_of_four_samples_by_hand():
    """Scores .9 .8 .7 .1 of classes 1 0 1 0: one of the four (positive, negative) pairs is in the wrong order."""
    frame = pd.DataFrame({"method": "KD", "label": [1, 0, 1, 0], "p_1": [0.9, 0.8, 0.7, 0.1]})
    table = roc_points(frame.assign(p_0=1 - frame["p_1"]), ("a", "b"))
    curve = table[table["class"] == "b"]
    assert curve["auc"].iloc[0] == 0.75
    assert curve[["x", "y"]].to_numpy().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]


@pytest.mark.parametrize(
    ("points", "area", "expected"),
    [(roc_points, "auc", roc_auc_score), (pr_points, "average_precision", average_precision_score)],
)
def test_curve_of_several_folds_is_the_mean_of_theirs_whatever_the_scale_of_their_scores(points, area, expected):
    folds = [predictions(n, seed=n, strength=0.5).assign(part=f"fold {n}") for n in (31, 47, 400)]
    table = points(pd.concat(folds, ignore_index=True), CLASSES)
    squeezed = folds[0].assign(**{f"p_{index}": folds[0][f"p_{index}"] / 10 for index in range(3)})
    assert points(pd.concat([squeezed, *folds[1:]], ignore_index=True), CLASSES).equals(table)
    for index, name in enumerate(CLASSES):
        curve = table[table["class"] == name]
        wanted = np.mean([expected(fold["label"] == index, fold[f"p_{index}"]) for fold in folds])
        assert curve[area].unique() == pytest.approx([wanted])
        assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(wanted, abs=1e-3)
        assert len(curve) <= 200 and (np.diff(curve["x"]) >= 0).all()
        assert 0 <= curve["y"].min() and curve["y"].max() <= 1


def test_roc_of_two_folds_by_hand():
    """One fold of perfect order, one of the order 0 1 1 0: half way between them the mean curve."""
    label, score = [1, 0, 1, 0] * 2, [0.9, 0.2, 0.8, 0.1, 0.7, 0.9, 0.6, 0.5]
    frame = pd.DataFrame({"method": "KD", "label": label, "p_1": score, "part": [0] * 4 + [1] * 4})
    curve = roc_points(frame.assign(p_0=1 - frame["p_1"]), ("a", "b")).query("`class` == 'b'")
    assert curve["auc"].iloc[0] == 0.75
    assert curve[["x", "y"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]


def test_folds_without_a_class_are_left_out_of_its_curve():
    whole, without = predictions(60).assign(part=0), predictions(60, seed=3).query("label != 2").assign(part=1)
    both = pd.concat([whole, without], ignore_index=True)
    for points in (roc_points, pr_points):
        alone, found = (points(frame, CLASSES).query("`class` == 'DF'") for frame in (whole, both))
        assert len(found) and found.reset_index(drop=True).equals(alone.reset_index(drop=True))


def test_precision_recall_of_four_samples_has_both_ends_of_each_step():
    frame = pd.DataFrame({"method": "KD", "label": [1, 0, 1, 0], "p_1": [0.9, 0.8, 0.7, 0.1]})
    curve = pr_points(frame.assign(p_0=1 - frame["p_1"]), ("a", "b")).query("`class` == 'b'")
    assert curve["average_precision"].iloc[0] == pytest.approx(0.5 + 0.5 * 2 / 3)
    steps = {tuple(point) for point in curve[["x", "y"]].to_numpy().round(3)}
    assert steps >= {(0, 1), (0.5, 1), (0.5, 0.667), (1, 0.667)}


def test_class_without_samples_or_without_others_has_no_curve():
    frame = predictions(60)
    frame = frame[frame["label"] != 2]
    assert set(roc_points(frame, CLASSES)["class"]) == set(pr_points(frame, CLASSES)["class"]) == {"NV", "MEL"}
    one_class = frame[frame["label"] == 0]
    assert roc_points(one_class, CLASSES).empty and list(roc_points(one_class, CLASSES)["auc"]) == []


def test_methods_keep_their_order_and_unused_columns_of_other_settings_do_not_count():
    frame = pd.concat([predictions(50, "teacher"), predictions(50, "CE only", seed=1)], ignore_index=True)
    frame["p_3"] = np.nan
    for table_of in (roc_points, pr_points, confusion_table, calibration_by_method):
        assert list(pd.unique(table_of(frame, CLASSES)["method"])) == ["teacher", "CE only"]


def test_confusion_counts_every_sample_in_the_order_of_the_classes():
    frame = pd.DataFrame({"method": "KD", "label": [0, 0, 1], "p_0": [0.9, 0.2, 0.3], "p_1": [0.1, 0.8, 0.7]})
    table = confusion_table(frame, ("NV", "DF"))
    assert list(pd.unique(table["true"])) == ["NV", "DF"] and len(table) == 4
    counts = table.set_index(["true", "predicted"])["n"].to_dict()
    assert counts == {("NV", "NV"): 1, ("NV", "DF"): 1, ("DF", "NV"): 0, ("DF", "DF"): 1}
