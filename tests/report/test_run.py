"""A report that fails, goes on, and is not run again when nothing changed; on notebooks of one line each."""

import json
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from medkd.cli import app
from medkd.report.entry import alone
from medkd.stages import stage_params

pytestmark = pytest.mark.slow
ARGUMENTS = ["report", "--dataset", "phantom-glioma", "--name", "try"]
STEP = """from pathlib import Path
log = Path("../ran.txt")
log.write_text((log.read_text() if log.exists() else "") + "{stage} ")"""


def write_notebook(project, stage, last_cell="'fine'"):
    parameters = new_code_cell(stage_params()[stage].cell(), metadata={"tags": ["parameters"]})
    cells = [
        new_markdown_cell(f"# {stage}"),
        parameters,
        new_code_cell(STEP.format(stage=stage[:2])),
        new_code_cell(last_cell),
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), project / "notebooks" / f"{stage}.ipynb")


@pytest.fixture
def notebooks(project):
    (project / "notebooks").mkdir()
    (project / "medkd").mkdir()
    for stage in ("01_data_exploration", "02_teacher_training", "03_distillation", "07_evaluation"):
        write_notebook(project, stage)
    return project


def ran(project):
    return (project / "ran.txt").read_text().split()


def test_a_failure_names_notebook_cell_and_error_and_the_next_run_goes_on_there(notebooks):
    write_notebook(notebooks, "02_teacher_training", "raise ValueError('no such weights')")
    failed = CliRunner().invoke(app, ARGUMENTS)
    assert failed.exit_code == 3
    assert "02_teacher_training.phantom-glioma" in failed.stderr
    assert "cell 4" in failed.stderr and "ValueError: no such weights" in failed.stderr
    kept = nbformat.read(notebooks / "reports/try/notebooks/02_teacher_training.phantom-glioma.ipynb", as_version=4)
    assert any(
        output.output_type == "error" for cell in kept.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "no such weights" in (notebooks / "reports/try/index.html").read_text()

    write_notebook(notebooks, "02_teacher_training")
    mended = CliRunner().invoke(app, ARGUMENTS)
    assert mended.exit_code == 0, mended.stderr
    assert ran(notebooks) == ["01", "02", "02", "03", "07"]
    assert mended.stdout.strip().endswith("reports/try/index.html")
    assert "no such weights" not in (notebooks / "reports/try/index.html").read_text()


def test_a_second_run_runs_nothing_and_a_changed_parameter_runs_what_has_it(notebooks):
    assert CliRunner().invoke(app, ARGUMENTS).exit_code == 0
    again = CliRunner().invoke(app, ARGUMENTS)
    assert again.stdout.count("up to date") == 4
    assert ran(notebooks) == ["01", "02", "03", "07"]
    CliRunner().invoke(app, [*ARGUMENTS, "-p", "distillation.epochs=3"])
    assert ran(notebooks)[4:] == ["03", "07"]
    manifest = json.loads((notebooks / "reports/try/manifest.json").read_text())
    assert manifest["simulated"] is True
    assert manifest["cohorts"]["phantom-glioma"]["fingerprint"]
    assert {notebook["state"] for notebook in manifest["notebooks"]} == {"finished"}
    changed = [row for row in manifest["parameters"]["03_distillation.phantom-glioma"] if row["parameter"] == "epochs"]
    assert changed[0]["value"] == "3"


def test_a_notebook_that_was_killed_does_not_pass_for_the_run_before_it(notebooks, monkeypatch):
    assert CliRunner().invoke(app, ARGUMENTS).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("medkd.report.notebooks.run_notebook", lambda *given, **named: sys.exit(9))
        assert CliRunner().invoke(app, [*ARGUMENTS, "-p", "teacher.epochs=3"]).exit_code == 9
    again = CliRunner().invoke(app, ARGUMENTS)
    assert again.exit_code == 0 and "02_teacher_training.phantom-glioma: finished" in again.stdout


def test_a_killed_kernel_has_an_exit_status_of_its_own(notebooks):
    write_notebook(notebooks, "01_data_exploration", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    killed = CliRunner().invoke(app, ARGUMENTS)
    assert killed.exit_code == 4
    assert "01_data_exploration.phantom-glioma, cell 4" in killed.stderr


LEAVE = """import json
folder = Path("../reports/try/index")
folder.mkdir(exist_ok=True, parents=True)
index = {{"entries": [], "metrics": {{"auc": 1}}, "runs": []}}
(folder / "{stage}.phantom-glioma.json").write_text(json.dumps(index))"""


def test_nothing_of_other_parameters_stands_in_a_report(notebooks):
    """A notebook begins with an empty index, and stages that a failure kept from running have none in the page."""
    for stage in ("02_teacher_training", "07_evaluation"):
        write_notebook(notebooks, stage, LEAVE.format(stage=stage))
    assert CliRunner().invoke(app, ARGUMENTS).exit_code == 0
    metrics = json.loads((notebooks / "reports/try/metrics.json").read_text())
    assert set(metrics) == {"02_teacher_training.phantom-glioma", "07_evaluation.phantom-glioma"}
    write_notebook(notebooks, "02_teacher_training", "raise ValueError('stopped before it left anything')")
    assert CliRunner().invoke(app, [*ARGUMENTS, "-p", "epochs=3"]).exit_code == 3
    assert json.loads((notebooks / "reports/try/metrics.json").read_text()) == {}


@pytest.mark.parametrize("name", ["../up", "runs", "a/b"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(notebooks, name):
    refused = CliRunner().invoke(app, [*ARGUMENTS[:-1], name])
    assert refused.exit_code == 2 and "cannot be the name of a report" in refused.stderr
    assert not (notebooks / "ran.txt").exists()


def test_a_report_is_run_by_one_process_at_a_time(notebooks):
    with alone(notebooks / "reports" / "try", "report try"):
        refused = CliRunner().invoke(app, ARGUMENTS)
    assert refused.exit_code == 2 and "another process runs report try already" in refused.stderr
