"""The folder for reviewers: its splits, and the script that runs a study again and compares."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from medkd.bundle import assemble, reproduce
from medkd.bundle.splits import hashed, split_tables
from medkd.data.cohort import Cohort
from medkd.data.episodes import draw_task
from medkd.data.folds import split_rows
from medkd.errors import DataError
from medkd.files import write_json
from medkd.stages import stage_params
from medkd.stages.store import Unit, load_or_make


@pytest.fixture
def cohort():
    n = 60
    labels = np.arange(n) % 3
    table = pd.DataFrame({"id": [f"i{i}" for i in range(n)], "label": labels})
    table["patient"] = [f"p{i // 2}" for i in range(n)]
    table = table.assign(roi=table["id"], **{"class": np.array(["n", "d", "v"])[labels]})
    return Cohort("tiny", "Tiny", True, ("n", "d", "v"), table, {})


def rare(cohort):
    roles = {"base_classes": ("n",), "rare_classes": ("d", "v")}
    return Cohort("tiny", "Tiny", True, ("n", "d", "v"), cohort.table, {}, **roles)


def made(stage, write=lambda folder: None, upstream=()):
    return load_or_make(Unit(stage, 1, {}, "c", list(upstream)), lambda folder: write(folder) or {})


def test_splits_are_those_of_the_folds_with_hashed_ids(cohort, project):
    params = stage_params()["07_evaluation"].checked({"folds": 3, "n_folds": 3, "seed": 4})
    found = dict(split_tables(cohort, params, made("07_evaluation")))
    assert list(found) == ["fold0", "fold1", "fold2"]
    test = found["fold1"][found["fold1"]["part"] == "test"]
    ids = cohort.table["id"].iloc[split_rows(cohort, fold=1, n_folds=3, seed=4).test]
    assert set(test["image"]) == {hashlib.sha256(f"tiny:{name}".encode()).hexdigest()[:16] for name in ids}
    assert len(found["fold1"]) == len(cohort) and test["group"].nunique() == len(ids) // 2
    assert not any(name in found["fold1"].to_csv() for name in ("i10", "p10"))


def test_tasks_are_those_of_the_labellings(cohort, project):
    drawn = draw_task(rare(cohort), k_shot=2, task=1)
    labels = made("05_pseudo_labelling", lambda folder: write_json(folder / "task.json", drawn.to_json()))
    params = stage_params()["07_evaluation"].checked({})
    ((name, table),) = split_tables(rare(cohort), params, made("07_evaluation", upstream=[labels]))
    assert name == "task1-k2"
    assert set(table["image"][table["part"] == "support"]) == {hashed("tiny", each) for each in drawn.support_ids}
    assert set(table["image"][table["part"] == "query"]) == {hashed("tiny", each) for each in drawn.query_ids}


@pytest.fixture
def compared(tmp_path):
    """A bundle's script beside its tables, and a function that compares other tables with them."""
    expected = tmp_path / "bundle" / "report" / "tables"
    expected.mkdir(parents=True)
    (expected / "study.csv").write_text("method,auc\nKD,0.500\nGMCD,0.625\n")
    script = shutil.copy(reproduce.__file__, tmp_path / "bundle" / "reproduce.py")

    def compare(text, *arguments):
        found = tmp_path / "found" / "tables"
        found.mkdir(parents=True, exist_ok=True)
        (found / "study.csv").write_text(text)
        line = [sys.executable, "-I", script, "--compare-only", str(found.parent), *arguments]
        ended = subprocess.run(line, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout

    return compare


def test_tables_are_compared_number_by_number(compared):
    assert compared("method,auc\nKD,0.5\nGMCD,0.6250\n") == (0, "same     study.csv: largest difference 0\n")
    assert compared("method,auc\nKD,0.51\nGMCD,0.625\n") == (0, "same     study.csv: largest difference 0.01\n")
    assert compared("method,auc\nKD,0.51\nGMCD,0.625\n", "--tolerance", "0.001")[0] == 1
    assert compared("method,auc\nKD,nan\nGMCD,0.625\n")[0] == 1


def test_numbers_in_words_are_compared_and_what_flips_with_them_is_not(compared, tmp_path):
    """What lies near an interval's end, or in one fold near another method's value, is a tie here and none there."""
    table = "method,minus the best,mark,wins,losses\nKD,{},{},{},{}\n"
    expected = tmp_path / "bundle" / "report" / "tables" / "study.csv"
    expected.write_text(table.format("-0.033 (-0.050 to -0.015)", "", 2, 3))
    code, said = compared(table.format("-0.032 (-0.050 to 0.001)", "tie", 3, 2))
    assert code == 0 and "largest difference 0.016" in said
    code, said = compared(table.format("-0.032 (-0.050 to 0.101)", "tie", 3, 2))
    assert code == 1 and "largest difference 0.12" in said
    assert compared(table.format("none", "tie", 3, 2))[0] == 1


@pytest.mark.parametrize(
    "text, told",
    [
        ("method,auc\nKD,0.5\n", "has other rows or columns"),
        ("method,auc\nCRD,0.5\nGMCD,0.625\n", 'has "CRD" in place of "KD"'),
    ],
)
def test_other_tables_are_told(compared, text, told):
    code, said = compared(text)
    assert code == 1 and told in said


def test_a_study_that_cannot_be_bundled_is_refused_in_one_sentence(project, tmp_path):
    with pytest.raises(DataError, match="there is no study night"):
        assemble.bundle("night")
    folder = project / "reports" / "night"
    folder.mkdir(parents=True)
    record = {"name": "night", "study": {}, "cells": [{"name": "seed=0", "state": "failed"}]}
    (folder / "study.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="cell seed=0 of study night is not finished"):
        assemble.bundle("night")
    (folder / "study.json").write_text(json.dumps(record | {"cells": []}))
    with pytest.raises(DataError, match="has no report yet; run `medkd report night` first"):
        assemble.bundle("night")
    with pytest.raises(DataError, match="is there already"):
        assemble.bundle("night", tmp_path)
