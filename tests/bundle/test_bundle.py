"""The folder for reviewers: its splits, and the script that runs a study again and compares."""

import hashlib
import json
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from medkd.bundle import assemble, reproduce
from medkd.bundle.copying import SUFFIXES, copy_code
from medkd.bundle.splits import hashed, split_tables
from medkd.bundle.study_file import portable
from medkd.data.cohort import Cohort
from medkd.data.episodes import draw_task
from medkd.data.folds import split_rows
from medkd.errors import DataError
from medkd.files import write_json
from medkd.report.entry import code_digest
from medkd.report.share import Cleaner
from medkd.report.study_record import digest_of_record
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
    (tmp_path / "bundle" / "study.yaml").write_text("cohorts:\n- dataset: milk10k\n  root: data/milk10k\n")
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


def test_what_would_compare_nothing_or_has_no_folder_does_not_pass(compared, tmp_path):
    (tmp_path / "bundle" / "report" / "tables" / "study.csv").unlink()
    code, said = compared("method,auc\n")
    assert code == 1 and "holds no tables to compare with" in said
    for root in ("milk10k", "milk10k=", f"milk10k={tmp_path}/none", f"={tmp_path}", f"milk={tmp_path}"):
        assert compared("", "--root", root) == (2, ""), root
    assert compared("", "--root", f"milk10k={tmp_path}")[0] == 1
    (tmp_path / "bundle" / "data" / "milk10k").mkdir(parents=True)
    assert compared("", "--root", f"milk10k={tmp_path}") == (2, "")


def test_a_study_that_cannot_be_run_again_is_no_difference(compared, tmp_path):
    (tmp_path / "bundle" / "name.txt").write_text("night\n")
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    line = [sys.executable, "-I", tmp_path / "bundle" / "reproduce.py", "--python", failing]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "ended with status 3" in ended.stderr and "Traceback" not in ended.stderr


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
    (folder / "index.html").touch()
    (folder / "study.json").write_text(json.dumps(record | {"cells": [], "code": "0" * 16}))
    with pytest.raises(DataError, match="was run with other code than is here now; run `medkd batch`"):
        assemble.bundle("night")
    record |= {"cells": [], "code": code_digest()}
    (folder / "study.json").write_text(json.dumps(record))
    for manifest in ("{}", "", json.dumps({"compared": digest_of_record(record | {"study": {"seed": 1}})})):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(DataError, match="has changed since its report was made; run `medkd report night` again"):
            assemble.bundle("night")


def notebook_of(root, picture="AB/ab/cd/+x=="):
    """A notebook whose parameters name a folder, with a picture and a table of paths as outputs."""
    cell = nbformat.v4.new_code_cell(f'root = "{root}"', metadata={"tags": ["parameters"]}, execution_count=1)
    table = nbformat.v4.new_output("display_data", {"text/html": f"<td>{root}/p1.png</td><td>1</td>"})
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": picture}), table]
    cell.outputs.append(nbformat.v4.new_output("stream", text=f"read {root}/p1.png\n"))
    metadata = {"papermill": {"input_path": f"{root}/x.ipynb", "parameters": {"root": str(root)}}}
    return nbformat.v4.new_notebook(cells=[cell], metadata=metadata)


@pytest.fixture
def code(project):
    """The project's code as it looks after somebody worked with it."""
    for name in ("medkd", "notebooks/.ipynb_checkpoints"):
        (project / name).mkdir(parents=True)
    for name in assemble.CODE[2:5]:
        (project / name).touch()
    (project / "medkd" / "own.py").write_text("x = 1")
    nbformat.write(notebook_of("/home/anna/Eine Klinik"), project / "notebooks" / "02_teacher_training.ipynb")
    (project / "notebooks" / ".ipynb_checkpoints" / "02-checkpoint.ipynb").write_text("{}")
    (project / "notebooks" / "photo.png").write_text("photo")
    patients = project.parent / "patients-of-anna"
    patients.mkdir(exist_ok=True)
    (patients / "p1.py").write_text("photo")
    (project / "notebooks" / "mydata").symlink_to(patients)
    (project / "notebooks" / "one.py").symlink_to(patients / "p1.py")
    return project


def test_of_the_code_no_outputs_links_and_data_are_copied(code, tmp_path):
    said = []
    copy_code(code / "notebooks", tmp_path / "to", Cleaner([]), said.append)
    assert [path.name for path in (tmp_path / "to").rglob("*")] == ["02_teacher_training.ipynb"]
    copied = nbformat.read(tmp_path / "to" / "02_teacher_training.ipynb", as_version=4)
    assert copied.cells[0].outputs == [] and copied.cells[0].source == 'root = "Eine Klinik"'
    assert said == ["left out of notebooks/, links or no code: mydata, one.py, photo.png"]
    (code / "notebooks" / "bad.ipynb").write_text("no notebook")
    with pytest.raises(DataError, match="bad.ipynb is no readable notebook"):
        copy_code(code / "notebooks", tmp_path / "again", Cleaner([]), said.append)


def test_all_that_the_project_itself_holds_is_code():
    tracked = subprocess.run(["git", "ls-files", "medkd", "notebooks"], capture_output=True, text=True, check=False)
    assert {f".{name.rpartition('.')[2]}" for name in tracked.stdout.split()} <= set(SUFFIXES)


@pytest.fixture
def study(code):
    """A finished study of a simulated cohort, given published splits and weights by files."""
    files = {name: code / "given files" / name for name in ("splits.csv", "w.safetensors")}
    files["w.safetensors"].parent.mkdir()
    for path in files.values():
        path.write_text(path.name)
    folder = code / "reports" / "night"
    for name in ("figures", "tables", "c/notebooks"):
        (folder / name).mkdir(parents=True)
    (folder / "tables" / "t.csv").write_text(f"file,n\n{files['splits.csv']},1/2\n")
    (folder / "index.html").write_text(f'<img src="data:image/png;base64,A+/b/c=="><td>{files["splits.csv"]}</td>')
    name = "02_teacher_training.phantom-glioma"
    nbformat.write(notebook_of(files["splits.csv"].parent), folder / "c" / "notebooks" / f"{name}.ipynb")
    given = {"split_file": str(files["splits.csv"]), "teacher": {"weights": str(files["w.safetensors"])}}
    write_json(folder / "c" / "notebooks" / f"{name}.json", {"parameters": given | {"weights": "imagenet"}})
    told = {"cohorts": [{"dataset": "phantom-glioma", "root": ""}], "grid": {"encoder": ["a"]}, "cells": []}
    told["parameters"] = {"split_file": given["split_file"], "teacher.weights": "w.safetensors", "weights": "imagenet"}
    each = {"notebook": "02_teacher_training", "node": "x", "folder": "c", "state": "finished"}
    cell = {"name": "c", "dataset": "phantom-glioma", "state": "finished", "notebooks": [each], "parameters": {}}
    record = {"name": "night", "study": told, "code": code_digest(), "cells": [cell]}
    write_json(folder / "study.json", record)
    write_json(folder / "manifest.json", {"compared": digest_of_record(record)})
    return folder


def test_a_bundle_holds_the_files_that_its_study_names_and_no_folder_of_this_machine(study, tmp_path):
    made = assemble.bundle("night", tmp_path / "made", say=lambda line: None)
    parameters = yaml.safe_load((made / "study.yaml").read_text())["parameters"]
    files = {"split_file": "files/splits.csv", "teacher.weights": "files/w.safetensors"}
    assert parameters == files | {"weights": "imagenet"}
    assert all((made / name).read_text() == name.removeprefix("files/") for name in files.values())
    for path in made.rglob("*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text() and "anna" not in path.read_text(), path
    shown = nbformat.read(made / "notebooks" / "c" / "02_teacher_training.phantom-glioma.ipynb", as_version=4)
    assert shown.cells[0].outputs[0]["data"]["image/png"] == "AB/ab/cd/+x=="
    assert shown.cells[0].outputs[1]["data"]["text/html"] == "<td>p1.png</td><td>1</td>"
    assert "read p1.png" in (made / "notebooks/c/02_teacher_training.phantom-glioma.html").read_text()
    assert (made / "report" / "tables" / "t.csv").read_text() == "file,n\nsplits.csv,1/2\n"
    page = (made / "report" / "index.html").read_text()
    assert page == '<img src="data:image/png;base64,A+/b/c=="><td>splits.csv</td>'


def test_a_study_without_figures_is_bundled(study, tmp_path):
    (study / "figures").rmdir()
    made = assemble.bundle("night", tmp_path / "made", say=lambda line: None)
    assert (made / "report" / "tables" / "t.csv").is_file()


@pytest.mark.parametrize(
    "name, of_target", [("{target}/x.png", True), ("{parent}", True), (None, True), ("{study}/a.png", False)]
)
def test_only_what_is_written_is_called_unwritable(study, tmp_path, monkeypatch, name, of_target):
    def fail(part, *_):
        place = name and name.format(target=part, parent=tmp_path, study=study)
        raise OSError(28, "No space left on device", place)

    monkeypatch.setattr(assemble, "_fill", fail)
    with pytest.raises(DataError if of_target else OSError, match="cannot be written to" if of_target else "a.png"):
        assemble.bundle("night", tmp_path / "made")


def test_a_study_whose_file_is_gone_is_refused(study, tmp_path):
    (study.parents[1] / "given files" / "splits.csv").unlink()
    with pytest.raises(DataError, match="splits.csv is not there any more, but study night needs it"):
        assemble.bundle("night", tmp_path / "made")


def test_files_of_one_name_stay_apart_and_those_of_the_grid_are_found(tmp_path):
    files = [tmp_path / name / "s.csv" for name in ("a", "b")]
    for path in files:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    (tmp_path / "to").mkdir()
    told = {"grid": {"split_file": ["a/s.csv", "../b/s.csv", ""]}, "cells": [{"teacher": {"weights": str(files[1])}}]}
    found = portable(told, files, tmp_path / "to", lambda line: None)
    assert found["grid"]["split_file"] == ["files/s.csv", "files/1-s.csv", ""]
    assert found["cells"] == [{"teacher": {"weights": "files/1-s.csv"}}]
    assert (tmp_path / "to" / "files" / "1-s.csv").read_text() == "b"
    with pytest.raises(DataError, match="s.csv may be .*a/s.csv or .*b/s.csv; name it by its whole path"):
        portable({"parameters": {"split_file": "s.csv"}}, files, tmp_path / "to", lambda line: None)
