"""The command line: help that reads well, and one sentence for bad input."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from medkd.cli import app
from medkd.data.registry import cohort_names
from medkd.report.notebooks import NotebookFailure

runner = CliRunner()


def test_help_names_the_commands():
    text = runner.invoke(app, ["--help"]).output
    shown = re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE)
    assert sorted(shown) == sorted("report share data batch train runs export predict bundle lab doctor".split())


def test_files_in_parameters_are_found_from_where_the_command_is_called(tmp_path, monkeypatch):
    from medkd.stages.params import absolute_files

    monkeypatch.chdir(tmp_path)
    (tmp_path / "splits.csv").touch()
    given = {"teacher.split_file": "splits.csv", "weights": "imagenet", "split_file": "", "epochs": 3}
    expected = given | {"teacher.split_file": str(tmp_path / "splits.csv")}  # "imagenet" is no file but a word
    assert absolute_files(given, Path()) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_files({"split_file": "~/splits.csv"}, Path("/")) == {"split_file": str(tmp_path / "splits.csv")}
    nested = {"teacher": {"split_file": "splits.csv", "epochs": 3}}
    assert absolute_files(nested, Path()) == {"teacher": {"split_file": str(tmp_path / "splits.csv"), "epochs": 3}}


def test_report_help_tells_the_exit_statuses():
    text = runner.invoke(app, ["report", "--help"]).output
    assert "130 interrupted" in " ".join(text.split())
    assert "-p teacher.epochs=5" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "tempreature=2"], 'unknown parameter "tempreature"; did you mean "temperature"?'),
        (["-p", "distilation.epochs=2"], 'did you mean "distillation.epochs"?'),
        (["-p", "epochs"], "-p epochs is no assignment"),
        (["-p", "epochs=0"], "epochs = 0 is not allowed"),
        (["--dataset", "isic2081"], 'did you mean "isic2018"?'),
        (["--preset", "papr"], 'preset "papr" is unknown; known are quick, paper'),
        (["-p", "second=proteome", "--dataset", "phantom-glioma"], "proteome"),
        (["-p", "encoder=resnet999"], 'unknown image encoder "resnet999"; nearest known: resnet50'),
        (["-p", "weights=/nowhere/w.pt", "--dataset", "phantom-glioma"], 'weights="/nowhere/w.pt" is not a file'),
        (["-p", "precision=half"], "'bfloat16'"),
        (["-p", "folds=9"], "folds = 9 are more than there are (5); set n_folds too"),
        (["-p", "distillation.methods=['ce']"], 'in JSON with double quotes, such as ["ce", "gmcd"]'),
        (["-p", "teacher.n_folds=4", "--dataset", "phantom-glioma"], "differs from n_folds = 5"),
        (["-p", "k_shots=[100000]", "--dataset", "phantom-rare-skin"], "k_shot = 100000 needs at least"),
        (["-p", "k_shots=[]", "--dataset", "phantom-rare-skin"], "k_shots = [] is not allowed"),
        (["-p", "frozen=true", "--dataset", "phantom-glioma"], "a frozen resnet12 needs pre-trained weights"),
        (["-p", "batch_size=500", "--dataset", "phantom-glioma"], "is more than the 380 training rows of fold 0"),
        (["-p", "batch_size=9999", "--dataset", "phantom-rare-skin"], "is more than the 2239 common images of"),
        (["-p", "task=survival", "--dataset", "phantom-paired-skin"], "needs the columns survival_months and event"),
        (["-p", f"epochs={'9' * 5000}"], "-p epochs=... is longer than any value"),
        (["--device", "gpu"], 'device="gpu" is not supported'),
        (["--device", "cuda:77"], "GPU(s) here"),
        (["--dataset", "isic2018"], "`medkd data fetch isic2018` gets them, or says how; then give --root FOLDER"),
        (["--dataset", "isic2018", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_report_refuses_bad_input_in_one_sentence_before_anything_runs(project, arguments, message):
    result = runner.invoke(app, ["report", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (project / "reports").exists()


@pytest.mark.parametrize(("kind", "code"), [("exception", 3), ("dead kernel", 4), ("timeout", 5), ("interrupt", 130)])
def test_the_exit_status_of_a_report_says_how_a_notebook_ended(project, monkeypatch, kind, code):
    asked = {}

    def fail(*_, **how):
        asked.update(how)
        raise NotebookFailure(kind, "02", 4, "Train", "why")

    monkeypatch.setattr("medkd.report.run.run_report", fail)
    done = runner.invoke(app, ["report", "--dataset", "phantom-glioma", "--cell-timeout", "7"])
    assert done.exit_code == code and "02, cell 4 (Train): why" in done.stderr
    assert asked["cell_timeout"] == 7


def test_data_list_names_every_cohort():
    lines = runner.invoke(app, ["data", "list"]).output.splitlines()
    assert [line.split()[0] for line in lines] == list(cohort_names())


def check_of(folder, change=lambda table: table):
    """Result of `medkd data check own` on 20 grey images of ten patients, after a change of the table."""
    from PIL import Image

    from medkd.data.own_schema import infer, write_schema

    folder.mkdir()
    for row in range(20):
        Image.new("RGB", (8, 8), (row, row, row)).save(folder / f"{row}.png")
    table = pd.DataFrame({"file": [f"{row}.png" for row in range(20)], "label": ["a", "a", "b", "b"] * 5})
    table["patient"], table["age"] = [f"P{row // 2}" for row in range(20)], range(20)
    change(table).to_csv(folder / "table.csv", index=False)
    write_schema(folder, infer(folder).model_copy(update={"confirmed": True}))
    return runner.invoke(app, ["data", "check", "own", "--root", str(folder), "--folds", "2"])


def test_data_check_counts_classes_and_splits_and_ends_with_success(tmp_path, project):
    result = check_of(tmp_path / "own")
    assert result.exit_code == 0, result.output
    assert "train patients" in result.output and "1.0 to 1" in result.output
    assert "20 samples in order, no patient in two splits" in result.output


def test_data_check_names_damage_and_copies_and_fails(tmp_path, project):
    def damage(table):
        (tmp_path / "own" / "3.png").write_bytes(b"")
        return table

    result = check_of(tmp_path / "own", damage)
    assert result.exit_code == 1
    assert "error: 1 image image files cannot be read: 3.png" in result.stderr

    def copy(table):
        (tmp_path / "two" / "7.png").write_bytes((tmp_path / "two" / "0.png").read_bytes())
        return table

    result = check_of(tmp_path / "two", copy)
    assert result.exit_code == 1
    assert "filed under several patients, P0 = P3" in result.stderr


def test_data_check_names_patients_in_two_parts_of_a_split_and_fails(tmp_path, project):
    parts = ["train"] * 9 + ["test"] * 5 + ["val"] * 6
    result = check_of(tmp_path / "own", lambda table: table.assign(split=parts))
    assert result.exit_code == 1
    assert "puts P4 into several parts of split own" in result.stderr


def test_data_fetch_of_sets_with_a_form_tells_what_to_do(tmp_path, project):
    result = runner.invoke(app, ["data", "fetch", "derm7pt", "--to", str(tmp_path / "d")])
    assert result.exit_code == 0
    assert "derm.cs.sfu.ca" in result.output and not (tmp_path / "d").exists()
    refused = runner.invoke(app, ["data", "fetch", "isic2018", "--to", str(tmp_path / "i")], input="n\n")
    assert refused.exit_code == 0
    assert "nothing was loaded" in refused.output and not (tmp_path / "i").exists()


def test_a_report_outside_the_project_says_what_to_do(project, monkeypatch):
    monkeypatch.setenv("MEDKD_HOME", str(project / "elsewhere"))
    result = runner.invoke(app, ["report", "--dataset", "phantom-glioma"])
    assert result.exit_code == 2
    assert "run the command in the project's folder or set MEDKD_HOME to it" in result.stderr


def test_a_studys_report_takes_no_options(project):
    result = runner.invoke(app, ["report", "ablation", "--seed", "1"])
    assert result.exit_code == 2 and "the study's file says what was run" in result.stderr


def test_data_check_of_a_missing_folder_fails_with_its_name():
    result = runner.invoke(app, ["data", "check", "milk10k", "--root", "/nowhere"])
    assert result.exit_code == 2
    assert "/nowhere" in result.stderr


def fetch(url: str) -> str:
    """The answer, once the server listens: it prints its address a moment before that."""
    for _ in range(100):
        try:
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.2)
    raise TimeoutError(url)


@pytest.mark.slow
def test_lab_serves_the_notebooks_on_this_machine_only_and_asks_for_a_token(project):
    (project / "notebooks").mkdir()
    (project / "notebooks" / "01_data_exploration.ipynb").write_text("{}")
    command = [sys.executable, "-m", "medkd", "lab", "--no-browser", "--port", "18931"]
    address = re.compile(r"(http://127\.0\.0\.1:\d+)/\S*token=(\w+)")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            base, token = next(found for line in server.stderr if (found := address.search(line))).groups()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                fetch(f"{base}/api/contents")
            assert "01_data_exploration.ipynb" in fetch(f"{base}/api/contents?token={token}")
        finally:
            server.terminate()


def test_lab_without_notebooks_says_where_it_looked(project):
    result = runner.invoke(app, ["lab"])
    assert result.exit_code == 2
    assert str(project / "notebooks") in result.stderr
