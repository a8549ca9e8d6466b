"""Tables and pictures that notebooks look at."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort, VectorTable
from medkd.data.views import HYBRID
from medkd.report.looks import (
    class_examples,
    fold_table,
    headline,
    labels_by_base_class,
    risk_curves,
    risk_curves_by_method,
    views_of,
)
from medkd.report.looks_data import class_means
from medkd.stages.store import Run


@pytest.fixture
def cohort():
    n = 30
    labels = np.arange(n) % 3
    table = pd.DataFrame(
        {
            "id": [f"i{i}" for i in range(n)],
            "label": labels,
            "class": [["a", "b", "c"][label] for label in labels],
            "patient": [f"p{i // 2}" for i in range(n)],
        }
    ).assign(roi=lambda frame: frame["id"])
    pixels = np.zeros((n, 8, 8, 3), np.uint8) + np.arange(n, dtype=np.uint8)[:, None, None, None]
    images = {"photo": ArrayImages(pixels), "scope": ArrayImages(pixels + 100)}
    return Cohort("tiny", "Tiny", True, ("a", "b", "c"), table, images)


def test_examples_are_of_the_named_class_and_the_same_in_both_modalities(cohort):
    photo, titles = class_examples(cohort, "photo", 8, 4)
    scope, _ = class_examples(cohort, "scope", 8, 4)
    assert titles == ["a", "", "", "", "b", "", "", "", "c", "", "", ""]
    rows = photo[:, 0, 0, 0].reshape(3, 4)
    assert (rows % 3 == np.array([[0], [1], [2]])).all()
    np.testing.assert_array_equal(scope - 100, photo)


def test_a_class_with_fewer_samples_than_asked_for_is_filled_up_with_black(cohort):
    images, _ = class_examples(cohort, "scope", 8, 12)
    assert [int(image.any()) for image in images[:12]] == [1] * 10 + [0] * 2


def test_the_first_of_the_views_is_the_image_itself(cohort):
    views = views_of(cohort, "scope", 8, HYBRID, n_views=3, seed=1)
    assert views.shape == (4, 8, 8, 3)
    assert len(np.unique(views[0])) == 1 and views[0, 0, 0, 0] >= 100


def test_class_means_are_in_standard_deviations_and_leave_missing_values_out(cohort):
    values = np.where(cohort.labels == 0, 2.0, -1.0).astype(np.float32)[:, None].repeat(2, axis=1)
    values[0, 1] = np.nan
    with_vectors = dataclasses.replace(cohort, vectors={"omic": VectorTable(values, ("x", "y"))})
    means = class_means(with_vectors, "omic")
    np.testing.assert_allclose(means[:, 0], np.array([2, -1, -1]) / np.sqrt(2), rtol=1e-6)
    assert np.isfinite(means).all() and means[0, 1] > 1.4


def test_fold_table_follows_a_file_of_splits_and_counts_what_it_leaves_out(cohort, tmp_path):
    """15 patients of two samples; the file names thirteen of them, two for nothing."""
    words = ["test"] * 3 + ["train"] * 8 + [""] * 2
    frame = pd.DataFrame({"patient": [f"p{i}" for i in range(13)], "a": words, "b": words[3:] + words[:3]})
    frame.to_csv(tmp_path / "splits.csv", index=False)
    table = fold_table(cohort, 5, seed=0, split_file=str(tmp_path / "splits.csv"))
    assert table["fold"].tolist() == [0, 1]
    assert table["test samples"].tolist() == [6, 6] and table["test patients"].tolist() == [3, 3]
    assert (table["train patients"] + table["val patients"]).tolist() == [8, 8]
    assert table["left out samples"].tolist() == [8, 8] and table["left out patients"].tolist() == [4, 4]


def test_fold_table_counts_every_sample_once_a_fold(cohort):
    table = fold_table(cohort, 3, seed=0)
    assert (table[["train samples", "val samples", "test samples"]].sum(axis=1) == len(cohort)).all()
    assert (table[["train patients", "val patients", "test patients"]].sum(axis=1) == 15).all()
    assert table["test samples"].sum() == len(cohort)


def summary(settings=("",), levels=("image",)):
    rows = [
        {"setting": setting, "method": method, "level": level, "metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        for setting in settings
        for method in ("CE only", "GMCD")
        for level in levels
        for metric in ("accuracy", "auc_macro")
    ]
    return pd.DataFrame(rows)


def test_headline_has_one_row_a_method_and_value_with_interval():
    table = headline(summary())
    assert table.columns.tolist() == ["method", "accuracy", "auc_macro"]
    assert table["method"].tolist() == ["CE only", "GMCD"]
    assert table.loc[0, "accuracy"] == "0.500 (0.400 to 0.600)"


def test_headline_keeps_settings_and_shows_the_highest_level():
    frame = summary(settings=("K=1", "K=5"), levels=("image", "patient"))
    frame.loc[frame["level"] == "patient", "value"] = 0.55
    table = headline(frame)
    assert table["setting"].tolist() == ["K=1", "K=1", "K=5", "K=5"]
    assert set(table["accuracy"]) == {"0.550 (0.400 to 0.600)"}


def test_labels_by_base_class_are_shares_of_hard_labels(tmp_path):
    frame = pd.DataFrame({"id": list("wxyz"), "class": ["NV", "NV", "NV", "MEL"], "p_DF": [0.9, 0.8, 0.2, 0.4]})
    frame.assign(p_VASC=1 - frame["p_DF"]).to_csv(tmp_path / "pseudo_labels.csv", index=False)
    run = Run(tmp_path, "05", "key", {}, {}, (), "cohort", 0.0)
    shares = labels_by_base_class(run, ("NV", "MEL"), ("DF", "VASC"))
    np.testing.assert_allclose(shares.to_numpy(), [[2 / 3, 1 / 3], [0, 1]])


def test_a_patient_whom_several_seeds_tested_is_one_patient_of_the_risk_curves():
    rng = np.random.default_rng(0)
    names = [f"p{number}" for number in range(30)]
    followed = pd.DataFrame({"id": names, "roi": names, "patient": names, "time": rng.exponential(20, 30), "event": 1})
    once = followed.assign(risk=rng.standard_normal(30))
    again = [once.assign(part=seed, risk=3 * once["risk"] + seed) for seed in range(5)]  # the same order in each
    expected, p_value = risk_curves(once)
    curves, found = risk_curves(pd.concat(again, ignore_index=True))
    pd.testing.assert_frame_equal(curves, expected)
    assert found == p_value


def test_risk_curves_of_each_method_stand_under_one_another_with_their_p_value():
    rng = np.random.default_rng(0)
    names = [f"p{number}" for number in range(30)]
    followed = pd.DataFrame({"id": names, "roi": names, "patient": names, "time": rng.exponential(20, 30), "event": 1})
    methods = [followed.assign(method=name, risk=rng.standard_normal(30)) for name in ("teacher", "CE only")]
    table = risk_curves_by_method(pd.concat(methods, ignore_index=True))
    assert list(pd.unique(table["method"])) == ["teacher", "CE only"]
    for name, rows in zip(("teacher", "CE only"), methods, strict=True):
        curves, p_value = risk_curves(rows)
        mine = table[table["method"] == name]
        pd.testing.assert_frame_equal(mine[list(curves)].reset_index(drop=True), curves)
        assert mine["p_value"].unique().tolist() == [p_value]
