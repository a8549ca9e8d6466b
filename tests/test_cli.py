"""The command line: help that reads well, and one sentence for bad input."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from medkd.cli import app

runner = CliRunner()


def test_help_names_the_commands():
    text = runner.invoke(app, ["--help"]).output
    for command in ("report", "share", "data", "lab"):
        assert command in text


def test_files_in_parameters_are_found_from_where_the_command_is_called(tmp_path, monkeypatch):
    from medkd.cli import _file_made_absolute

    monkeypatch.chdir(tmp_path)
    (tmp_path / "splits.csv").touch()
    assert _file_made_absolute("teacher.split_file", "splits.csv") == (
        "teacher.split_file",
        str(tmp_path / "splits.csv"),
    )
    assert _file_made_absolute("weights", "imagenet") == ("weights", "imagenet")  # no file: a word


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
        (["--dataset", "isic2018"], "root"),
        (["--dataset", "isic2018", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_report_refuses_bad_input_in_one_sentence_before_anything_runs(project, arguments, message):
    result = runner.invoke(app, ["report", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (project / "reports").exists()


def test_data_list_names_every_cohort():
    text = runner.invoke(app, ["data", "list"]).output
    for name in ("phantom-glioma", "phantom-rare-skin", "isic2018", "milk10k"):
        assert name in text


def test_data_check_of_a_missing_folder_fails_with_its_name():
    result = runner.invoke(app, ["data", "check", "milk10k", "--root", "/nowhere"])
    assert result.exit_code == 1
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
