"""The embedding of stage 07: which images, which plane, which shortcut; UMAP itself is tested with the evaluation."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medkd.data.cohort import Cohort
from medkd.stages import evaluation
from medkd.stages.evaluation import embed


@pytest.fixture
def cohort():
    n = 24
    labels = np.arange(n) % 3
    table = pd.DataFrame(
        {"id": [f"i{i}" for i in range(n)], "label": labels, "patient": [f"p{i // 3}" for i in range(n)]}
    )
    table = table.assign(roi=table["id"], **{"class": np.array(["NV", "MEL", "DF"])[labels]})
    return Cohort("tiny", "Tiny", True, ("NV", "MEL", "DF"), table, {})


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """In place of UMAP the first two features, and a list of how the plane was asked for."""
    asked = []

    def together(features, reference, *, groups, seed):
        asked.append((reference, list(groups), seed))
        return {method: values[:, :2] for method, values in features.items()}

    def alone(features, *, seed):
        asked.append(("", len(features), seed))
        return features[:, :2]

    monkeypatch.setattr(evaluation, "embed_together", together)
    monkeypatch.setattr(evaluation, "umap_embedding", alone)
    return asked


def features_of(rows):
    """Features whose first number is the row, so that a mix-up of rows is seen."""
    return rows, np.column_stack([rows, -rows, rows % 3 * 50]).astype(float)


def test_methods_are_shown_on_the_images_that_all_were_tested_on(cohort, calls):
    found = {"KD": features_of(np.arange(20)), "teacher": features_of(np.array([23, 12, 7, 8, 3, 15]))}
    table, separation = embed(cohort, found, "teacher", seed=5)
    assert calls == [("teacher", ["p4", "p2", "p2", "p1", "p5"], 5)]
    for _, rows in table.groupby("method"):
        assert rows["id"].tolist() == ["i12", "i7", "i8", "i3", "i15"]
        assert rows["x"].tolist() == [12, 7, 8, 3, 15] and (rows["y"] == -rows["x"]).all()
    assert list(pd.unique(table["method"])) == ["KD", "teacher"] and set(table["reference"]) == {"teacher"}
    assert separation["method"].tolist() == ["KD", "KD", "teacher", "teacher"]


def test_methods_without_images_in_common_are_fitted_alone(cohort, calls):
    table, _ = embed(cohort, {"KD": features_of(np.arange(10)), "CE only": features_of(np.arange(10, 24))}, "teacher")
    assert calls == [("", 10, 0), ("", 14, 0)]
    assert set(table["reference"]) == {""} and table["x"].tolist() == list(range(24))


def test_the_first_method_is_the_reference_where_the_chain_lacks_its_own(cohort, calls):
    embed(cohort, {"omic only": features_of(np.arange(24))}, "teacher")
    assert calls[0][0] == "omic only"


def test_a_site_is_the_shortcut_before_the_patient_and_gaps_are_unknown(cohort):
    found = {"KD": features_of(np.arange(24))}
    table, separation = embed(cohort, found, "KD")
    assert set(table["shortcut_kind"]) == {"patient"} and (table["shortcut"] == table["patient"]).all()
    assert separation["labels"].tolist() == ["class", "patient"]
    at_sites = dataclasses.replace(cohort, table=cohort.table.assign(localization=["back", None] * 12))
    table, separation = embed(at_sites, found, "KD")
    assert set(table["shortcut"]) == {"back", "unknown"} and separation["labels"].tolist() == ["class", "localization"]


def test_patients_with_an_image_each_are_no_shortcut(cohort):
    single = dataclasses.replace(cohort, table=cohort.table.assign(patient=cohort.table["id"]))
    table, separation = embed(single, {"KD": features_of(np.arange(24))}, "KD")
    assert "shortcut" not in table and separation["labels"].tolist() == ["class"]


def test_an_evaluation_is_made_anew_where_sites_were_changed(cohort, monkeypatch):
    keys = []
    monkeypatch.setattr(evaluation, "chain_of", lambda dataset, root: "paired")
    monkeypatch.setattr(evaluation.evaluation_paired, "sources_of", lambda params: [])
    monkeypatch.setattr(evaluation, "load_or_make", lambda unit, make: keys.append(unit.key))
    for columns in (
        {},
        {"site": ["back", "leg"] * 12},
        {"site": ["leg", "back"] * 12},
        {"region": ["leg", "back"] * 12},
    ):
        changed = dataclasses.replace(cohort, table=cohort.table.assign(**columns))
        for _ in range(2):
            monkeypatch.setattr(evaluation.Context, "of", lambda params, it=changed: SimpleNamespace(cohort=it))
            evaluation.evaluate(evaluation.EvaluationParams())
    assert keys[::2] == keys[1::2] and len(set(keys)) == 4
