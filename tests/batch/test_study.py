"""Study files and what they come to; nothing is run."""

import json
import time

import pytest
import yaml
from typer.testing import CliRunner

from medkd.batch import progress
from medkd.batch.node import BEGUN, ENDED
from medkd.batch.progress import Board
from medkd.batch.study import Study, expand, nodes_of
from medkd.cli import app
from medkd.errors import DataError, ParameterError

GOOD = {
    "name": "ablation",
    "cohorts": [{"dataset": "phantom-glioma"}],
    "parameters": {"epochs": 1},
    "grid": {"seed": [0, 1], "distillation.lr": [0.001, 0.002]},
    "cells": [{"teacher.low_rank_weight": 0}],
}


def written(folder, **changes):
    path = folder / "study.yaml"
    kept = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def test_every_combination_and_every_further_cell_is_there_once(tmp_path):
    cells = expand(Study.read(written(tmp_path)))
    varied = [cell.parameters for cell in cells]
    assert len(cells) == 5 and varied[-1] == {"teacher.low_rank_weight": 0}
    assert {(each["seed"], each["distillation.lr"]) for each in varied[:4]} == {
        (seed, lr) for seed in (0, 1) for lr in (0.001, 0.002)
    }
    assert [entry.notebook[:2] for entry in cells[0].entries] == ["01", "02", "03", "07"]
    student = {cell.parameters.get("distillation.lr"): cell.entries[2].parameters for cell in cells[:2]}
    assert student[0.002]["lr"] == 0.002 and student[0.001]["epochs"] == 1
    assert cells[2].entries[1].parameters["seed"] == 1
    assert cells[4].entries[1].parameters["low_rank_weight"] == 0
    names = [cell.name for cell in cells]
    assert len(set(names)) == 5 and not any("/" in name or " " in name for name in names)
    assert cells[0].entries[0].parameters["report"] == f"ablation/{names[0]}"


def test_cells_without_a_grid_are_the_only_ones_and_nothing_means_one_cell(tmp_path):
    assert len(expand(Study.read(written(tmp_path, grid=None)))) == 1
    assert len(expand(Study.read(written(tmp_path, grid=None, cells=None)))) == 1
    two = [{"dataset": "phantom-glioma"}, {"dataset": "phantom-paired-skin"}]
    assert len(expand(Study.read(written(tmp_path, cohorts=two)))) == 10


def test_notebooks_that_are_the_same_in_several_cells_are_run_once(tmp_path):
    """The teacher depends on the seed alone, the exploration too: two each; students and evaluations differ."""
    cells = expand(Study.read(written(tmp_path, cells=None)))
    nodes, of_cell = nodes_of(cells, {"phantom-glioma": "content"})
    by_notebook = {}
    for node in nodes.values():
        by_notebook.setdefault(node.entry.notebook[:2], []).append(node)
    assert {name: len(found) for name, found in by_notebook.items()} == {"01": 2, "02": 2, "03": 4, "07": 4}
    assert len(of_cell) == 4 and all(len(keys) == 4 for keys in of_cell.values())
    student = by_notebook["03"][0]
    assert [nodes[key].entry.notebook for key in student.needs] == ["02_teacher_training"]
    assert by_notebook["02"][0].needs == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gird": {}}, r'study\.yaml: "gird": .*did you mean "grid"\?; known are name, cohorts'),
        ({"cohorts": [{"datset": "x"}]}, r'"cohorts\.0\.datset"|"cohorts\.0\.dataset"'),
        ({"cohorts": []}, '"cohorts": List should have at least 1 item'),
        ({"name": "runs"}, "cannot be the name of a report"),
        ({"grid": {"seed": []}}, "seed has no values, so that no cell would run"),
        ({"grid": {"dataset": ["phantom-glioma"]}}, '"dataset" is the same for all stages of a report'),
        ({"name": "../up"}, '"name": "../up" cannot be the name of a report'),
        ({"name": None}, '"name": Field required'),
        ({"cohorts": ["phantom-glioma"]}, r'"cohorts\.0": write \{dataset: NAME\}, and root: FOLDER'),
        ({"grid": {"tempreature": [1]}}, 'unknown parameter "tempreature"; did you mean "temperature"'),
        ({"grid": {"distillation.lr": [-1]}}, "lr"),
        ({"cohorts": [{"dataset": "phantom-gliom"}]}, 'did you mean "phantom-glioma"'),
        ({"preset": "slow"}, 'preset "slow" is unknown'),
        ({"cells": [{"seed": 0, "distillation.lr": 0.001}]}, "two cells of study ablation are the same, or"),
        ({"cohorts": [{"dataset": "own", "root": each} for each in "ab"]}, '"cohorts": own is named twice'),
        ({"notebooks": ["03_destillation"]}, 'there is no notebook "03_destillation"; did you mean "03_distillation"'),
        ({"notebooks": ["04_moco_url"]}, "notebooks: phantom-glioma has none of 04_moco_url; it has 01_data"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, changes, message):
    with pytest.raises((ParameterError, DataError), match=message):
        expand(Study.read(written(tmp_path, **changes)))


def test_files_that_are_no_study_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no study file .*nowhere"):
        Study.read(tmp_path / "nowhere.yaml")
    (tmp_path / "study.yaml").write_text("a: [")
    with pytest.raises(DataError, match="is no readable YAML"):
        Study.read(tmp_path / "study.yaml")
    good = written(tmp_path, grid=None).read_text()
    for more, problem in (("\nseed: 1\nseed: 2\n", '"seed" stands twice'), ("\ngrid: &all {a: [*all]}\n", "recursive")):
        (tmp_path / "study.yaml").write_text(good + more)
        with pytest.raises(DataError, match=f"is no readable YAML in line [0-9]+: .*{problem}"):
            Study.read(tmp_path / "study.yaml")
    bomb = "\n".join(f"  x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
    (tmp_path / "study.yaml").write_text(f"{good}\nparameters:\n  x0: &a0 [1]\n{bomb}\n")
    with pytest.raises(DataError, match="stands for more than 100,000 values"):
        Study.read(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(DataError, match="is no UTF-8 text"):
        Study.read(tmp_path / "study.yaml")
    failed = CliRunner().invoke(app, ["batch", str(tmp_path / "nowhere.yaml")])
    assert failed.exit_code == 2 and "nowhere.yaml" in failed.stderr


def test_anchors_of_yaml_are_taken(tmp_path):
    path = written(tmp_path, cells=None)
    path.write_text(path.read_text() + "\ncells:\n- &first {seed: 1, name: a}\n- {<<: *first, name: b}\n")
    assert Study.read(path).cells == [{"seed": 1, "name": "a"}, {"seed": 1, "name": "b"}]


def test_a_relative_root_counts_from_the_study_file(tmp_path):
    path = written(tmp_path, cohorts=[{"dataset": "own", "root": "data"}])
    assert Study.read(path).cohorts[0].root == str(tmp_path / "data")


def test_names_of_cells_stay_apart_where_a_folder_cannot_tell_them(tmp_path):
    cells = [{"methods": ["ce", "gmcd"]}, {"split_file": "a/b.csv"}, {"split_file": "a-b.csv"}]
    cells += [{"split_file": "long/" * 60 + last} for last in ("a", "b")]
    names = [cell.name for cell in expand(Study.read(written(tmp_path, grid=None, cells=cells)))]
    assert names[0] == "phantom-glioma+methods=ce,gmcd" and names[2] == "phantom-glioma+split_file=a-b.csv"
    assert len(set(names)) == 5 and all(len(name) <= 120 and "/" not in name for name in names)


def test_a_cell_may_have_a_name_of_its_own(tmp_path):
    cells = [{"name": "no M3LR", "teacher.low_rank_weight": 0}, {"name": "no M3LR", "teacher.mu": 1, "seed": 1}]
    found = expand(Study.read(written(tmp_path, grid=None, cells=cells)))
    assert [cell.title for cell in found] == ["no M3LR", "no M3LR"]
    assert found[0].name.startswith("phantom-glioma+no-M3LR~") and "+no-M3LR+seed=1~" in found[1].name
    assert found[0].parameters == {"teacher.low_rank_weight": 0}
    with pytest.raises(ParameterError, match="two cells of study ablation are the same, or called the same"):
        expand(Study.read(written(tmp_path, grid=None, cells=[{"name": "x", "seed": 1}, {"name": "x", "seed": 1}])))


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"parameters": {"teacher.epochs": 30}, "grid": {"epochs": [3, 4]}}, r"epochs=3 and .*epochs=4"),
        ({"grid": None, "cells": [{"name": "a", "seed": 1}, {"name": "b", "seed": 1}]}, r"a\+seed=1 and .*b\+seed=1"),
        ({"grid": {"teacher.lr": ["2e-3", 0.002]}}, r"lr=2e-3 and .*lr=0.002"),
        ({"grid": {"seed": [0.0, 0]}}, r"seed=0.0 and .*seed=0"),
        ({"grid": {"teacher.lr": ["2e-3", 0.002]}, "notebooks": ["03_distillation"]}, r"lr=2e-3 and .*lr=0.002"),
    ],
)
def test_cells_that_would_run_the_same_are_refused(tmp_path, changes, names):
    path = written(tmp_path, **{"cells": None, "notebooks": ["02_teacher_training"]} | changes)
    with pytest.raises(ParameterError, match=f"cells .*{names} of study ablation would run the same notebooks"):
        expand(Study.read(path))


def test_files_beside_the_study_file_are_found_from_the_notebooks_folder(tmp_path):
    (tmp_path / "split.csv").write_text("")
    (cell,) = expand(Study.read(written(tmp_path, grid=None, cells=[{"split_file": "split.csv"}])))
    assert cell.entries[1].parameters["split_file"] == str(tmp_path / "split.csv")
    assert cell.parameters == {"split_file": "split.csv"}, "study.json and names say what the file says"


def test_a_study_may_ask_for_some_notebooks(tmp_path):
    some = ["03_distillation", "02_teacher_training"]
    cells = expand(Study.read(written(tmp_path, notebooks=some)))
    assert {tuple(entry.notebook for entry in cell.entries) for cell in cells} == {tuple(sorted(some))}


@pytest.fixture
def notebooks(project):
    """A project whose notebooks are there, and empty."""
    (project / "notebooks").mkdir()
    for name in ("01_data_exploration", "02_teacher_training", "03_distillation", "07_evaluation"):
        (project / "notebooks" / f"{name}.ipynb").write_text("{}")
    return project


def test_the_board_counts_cells_and_estimates_from_what_finished(tmp_path, notebooks):
    study = Study.read(written(tmp_path, cells=None))
    cells = expand(study)
    nodes, of_cell = nodes_of(cells, {"phantom-glioma": "content"})
    (notebooks / "reports" / "ablation").mkdir(parents=True)
    board = Board(study, cells, nodes, of_cell, waiting=list(nodes), say=lambda line: None)
    assert board.summary() == "0 of 4 cells finished, 0 running"
    first = of_cell[cells[0].name]
    for key, seconds in zip(first, (2, 10, 20, 4), strict=True):
        assert board.seconds_left() == 0  # nobody knows how long the notebooks take that have not finished yet
        board.heard(key, BEGUN)
        board.ended(key, {"state": "finished", "seconds": seconds, "error": ""})
    # open: one exploration (2), one teacher (10), three students (20), three evaluations (4)
    assert board.seconds_left() == 2 + 10 + 60 + 12
    assert board.summary().startswith("1 of 4 cells finished")
    board.heard(of_cell[cells[1].name][2], BEGUN)
    record = json.loads((notebooks / "reports" / "ablation" / "study.json").read_text())
    assert list(record) == ["name", "study", "code", "cells"] and record["study"]["grid"] == GOOD["grid"]
    assert [each["state"] for each in record["cells"][1]["notebooks"]] == ["finished"] * 2 + ["running", "waiting"]
    board.ended(of_cell[cells[1].name][2], {"state": "failed", "seconds": 1, "error": "no such weights"})
    assert board.cell_state(cells[1].name) == "failed"
    assert cells[1].name in board.close()


def test_a_second_call_keeps_how_long_finished_notebooks_took(tmp_path, notebooks):
    study = Study.read(written(tmp_path, cells=None))
    nodes, of_cell = nodes_of(cells := expand(study), {"phantom-glioma": "content"})
    first = nodes[of_cell[cells[0].name][0]]
    folder = notebooks / "reports" / "ablation" / first.folder / "notebooks"
    folder.mkdir(parents=True)
    (folder / f"{first.entry.name}.json").write_text(json.dumps({"state": "finished", "seconds": 61.0}))
    board = Board(study, cells, nodes, of_cell, waiting=[key for key in nodes if key != first.key], say=print)
    board.save()
    record = json.loads((notebooks / "reports" / "ablation" / "study.json").read_text())
    assert record["cells"][0]["notebooks"][0]["seconds"] == 61.0


def test_a_log_hears_of_a_running_notebook_now_and_then_and_the_board_knows_when_all_have_ended(
    tmp_path, notebooks, monkeypatch
):
    study = Study.read(written(tmp_path, cells=None))
    nodes, of_cell = nodes_of(cells := expand(study), {"phantom-glioma": "content"})
    (notebooks / "reports" / "ablation").mkdir(parents=True)
    said = []
    board = Board(study, cells, nodes, of_cell, waiting=list(nodes), say=said.append)
    first = of_cell[cells[0].name][0]
    board.heard(first, BEGUN)
    board.heard(first, "training 1: teacher, epoch 2 of 8")
    assert len(said) == 1, "the line before it is a moment old"
    monkeypatch.setattr(progress, "SAY_EVERY", 0)
    board.heard(first, "training 1: teacher, epoch 3 of 8")
    assert "/01_data_exploration: training 1: teacher, epoch 3 of 8; 0 of 4 cells finished, " in said[1]
    start = time.monotonic()
    board.wait_for_stops(0.3)
    assert time.monotonic() - start >= 0.3
    board.heard(first, ENDED)
    board.wait_for_stops(3600)
    assert board.states[first] == {"state": "running"}, "what came of it is told by `ended`"
    board.ended(first, {"state": "finished", "seconds": 1, "error": ""})
    board.heard(first, "late")
    assert len(said) == 3


@pytest.mark.parametrize(
    "options",
    [
        ["--scheduler", "tcp://x:1", "--workers", "2"],
        ["--jobqueue", "q", "--workers", "2"],
        ["--scheduler", "tcp://x:1", "--jobqueue", "q"],
    ],
)
def test_options_of_two_places_to_run_are_refused(tmp_path, options):
    refused = CliRunner().invoke(app, ["batch", str(written(tmp_path)), *options])
    assert refused.exit_code == 2 and options[0] in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_dry_run_tells_what_would_run_and_runs_nothing(tmp_path, notebooks):
    told = CliRunner().invoke(app, ["batch", str(written(tmp_path, cells=None)), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "4 cells, 12 notebooks: 0 finished, 12 to run" in told.stdout
    assert told.stdout.count("shared with") == 4
    assert not (notebooks / "reports" / "ablation").exists()
