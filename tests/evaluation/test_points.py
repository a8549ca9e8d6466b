import numpy as np
import pandas as pd
import pytest

from medkd.errors import DataError, ParameterError
from medkd.evaluation.points import (
    MAX_GROUPS,
    N_RANGES,
    by_image,
    checked_points,
    class_order,
    points_table,
    value_groups,
)


@pytest.fixture
def embedding():
    rows = [(name, group, patient) for name, group, patient in zip("uvw", "aba", ("P1", "P2", "P2"), strict=True)]
    table = pd.DataFrame(rows, columns=["id", "class", "patient"])
    each = [table.assign(method=method, x=np.arange(3.0), y=number) for number, method in enumerate(("one", "two"))]
    return pd.concat(each, ignore_index=True).assign(label=0, reference="one")


@pytest.fixture
def predictions():
    columns = ["method", "id", "setting", "part", "p_0", "p_1", "p_2"]
    rows = [
        ("one", "u", "K=1", 0, 0.7, 0.3, np.nan),
        ("one", "u", "K=5", 0, 0.1, 0.9, 0.0),
        ("one", "v", "K=5", 1, 0.6, 0.2, 0.2),
        ("two", "w", "K=1", 0, 0.1, 0.2, 0.7),
        ("other", "w", "K=1", 0, 1.0, 0.0, 0.0),
    ]
    return pd.DataFrame(rows, columns=columns).assign(label=0, roi="r", patient="P")


def test_each_method_has_its_own_prediction_and_the_first_setting_counts(embedding, predictions):
    points = points_table(embedding, predictions, ("a", "b", "c"))
    assert list(points) == ["id", "method", "x", "y", "class", "patient", "predicted", "confidence", "correct"]
    assert points["predicted"].tolist() == ["a", "a", "", "", "", "c"]
    assert points["correct"].tolist() == ["right", "wrong", "", "", "", "wrong"]
    np.testing.assert_array_equal(points["confidence"], [0.7, 0.6, np.nan, np.nan, np.nan, 0.7])


def test_survival_predictions_become_a_risk(embedding):
    followed = {"time": [9.0, 8], "event": [1, 0], "risk": [0.5, -2], "method": ["one", "two"], "id": ["v", "u"]}
    points = points_table(embedding, pd.DataFrame(followed))
    np.testing.assert_array_equal(points["risk"], [np.nan, 0.5, np.nan, -2, np.nan, np.nan])
    assert "confidence" not in points and "correct" not in points


def test_a_site_has_its_name_and_a_patient_is_not_told_twice(embedding):
    site = embedding.assign(shortcut=list("xyzxyz"), shortcut_kind="site")
    assert points_table(site)["site"].tolist() == list("xyzxyz")
    patient = embedding.assign(shortcut=embedding["patient"], shortcut_kind="patient")
    assert list(points_table(patient)) == ["id", "method", "x", "y", "class", "patient"]


def test_further_columns_are_found_by_id_and_gaps_stay_gaps(embedding):
    extra = pd.DataFrame({"pseudo_label": ["a", "c"], "age": [30.0, 40.0]}, index=["w", "u"])
    points = points_table(embedding, extra=extra)
    assert points["pseudo_label"].tolist() == ["c", "", "a"] * 2
    np.testing.assert_array_equal(points["age"], [40, np.nan, 30] * 2)


def test_bad_tables_are_refused_with_what_to_do(embedding, predictions):
    with pytest.raises(DataError, match="lacks the column.s. x, y"):
        points_table(embedding.drop(columns=["x", "y"]))
    with pytest.raises(ParameterError, match="names 2 classes, but the predictions are of 3"):
        points_table(embedding, predictions, ("a", "b"))
    with pytest.raises(ParameterError, match='extra has a column "class"'):
        points_table(embedding, extra=pd.DataFrame({"class": ["a"]}, index=["u"]))
    with pytest.raises(DataError, match="extra repeats u"):
        points_table(embedding, extra=pd.DataFrame({"age": [1, 2]}, index=["u", "u"]))
    with pytest.raises(DataError, match="none of the embedding's images"):
        points_table(embedding, extra=pd.DataFrame({"age": [1, 2]}, index=[0, 1]))


def test_points_are_checked_and_put_in_the_order_of_the_methods(embedding):
    points = points_table(embedding)
    assert checked_points(points, ["two", "one"])["method"].tolist() == ["two"] * 3 + ["one"] * 3
    with pytest.raises(ParameterError, match='"GMCD", which has no points; known are one, two'):
        checked_points(points, ["GMCD"])
    with pytest.raises(DataError, match="repeat u"):
        checked_points(pd.concat([points, points[:1]]))
    with pytest.raises(DataError, match="no finite x and y"):
        checked_points(points.assign(x=np.nan))


def test_an_image_is_one_row_with_what_each_method_said(embedding, predictions):
    table = by_image(points_table(embedding, predictions, ("a", "b", "c")), ["w", "u"])
    assert table["id"].tolist() == ["w", "u"] and table["patient"].tolist() == ["P2", "P1"]
    assert table["one"].tolist() == ["", "a, 0.70, right"]
    assert table["two"].tolist() == ["c, 0.70, wrong", ""]
    assert list(by_image(points_table(embedding), ["u"])) == ["id", "class", "patient"]


def test_numbers_become_ranges_that_hold_them():
    values = pd.Series([*np.linspace(0.3, 0.9, 50), np.nan])
    groups = value_groups(values)
    assert groups.cat.ordered and len(groups.cat.categories) == N_RANGES + 1
    for value, group in zip(values[:-1], groups[:-1], strict=True):
        low, high = map(float, group.split(" to "))
        assert low - 0.005 <= value <= high + 0.005
    assert groups.iloc[-1] == "none" and groups.iloc[0] == "0.30 to 0.36" and groups.iloc[49] == "0.84 to 0.90"


def test_few_numbers_and_truth_values_keep_their_own_groups():
    assert list(value_groups(pd.Series([2, 0, 2, 1])).cat.categories) == ["0", "1", "2"]
    assert value_groups(pd.Series([1.0, np.nan, 0.0])).tolist() == ["1", "none", "0"]
    assert value_groups(pd.Series([True, False])).tolist() == ["True", "False"]


def test_classes_with_points_come_before_those_that_were_only_predicted(embedding, predictions):
    points = points_table(embedding, predictions, ("a", "b", "c"))
    assert class_order(points, ("d", "c", "b", "a", "c")) == ["b", "a", "c"]


def test_classes_keep_their_order_and_other_names_come_by_frequency():
    assert list(value_groups(pd.Series(["c", "a", "c"]), ("a", "b", "c")).cat.categories) == ["a", "b", "c"]
    assert list(value_groups(pd.Series(["c", "d", "c", ""]), ("a", "b", "c")).cat.categories) == ["c", "d", "none"]


def test_many_patients_keep_the_largest_and_say_how_many_others_there_are():
    patients = [f"P{number}" for number in range(30) for _ in range(30 - number)]
    groups = value_groups(pd.Series(patients))
    assert list(groups.cat.categories) == [f"P{number}" for number in range(MAX_GROUPS)] + ["16 others"]
    assert (groups == "16 others").sum() == sum(30 - number for number in range(MAX_GROUPS, 30))
    assert len(value_groups(pd.Series(patients), sorted(set(patients))).cat.categories) == 30
