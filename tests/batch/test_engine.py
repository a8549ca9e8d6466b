"""Studies on real Dask processes, with everything that can be killed being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from medkd.data.own_schema import infer, write_schema
from medkd.stages import stage_params

pytestmark = pytest.mark.slow

TRAIN = """
import os, time, torch
from torch import nn
from medkd.stages.store import Unit, load_or_make
from medkd.training.loop import fit, linear_decay

class Step:
    modules, device = nn.Linear(1, 1), torch.device("cpu")
    def start(self, generator): pass
    def loss(self, rows, progress):
        with open("../steps.txt", "a") as log: log.write(f"{os.getpid()} {seed}\\n")
        time.sleep(0.2)
        return self.modules(rows.float()[:, None]).pow(2).mean(), {}
    def after_step(self): pass
    def validate(self): return {}

def make(folder):
    step = Step()
    fit(step, torch.arange(8), torch.optim.SGD(step.modules.parameters(), lr=0.001), epochs=epochs, batch_size=2,
        schedule=linear_decay, seed=seed, folder=folder, title="tiny", checkpoint_seconds=-1.0)
    with open("../made.txt", "a") as log: log.write(f"{seed}\\n")
    return {}

load_or_make(Unit("02_teacher_training", 1, {"epochs": epochs, "seed": seed}, "cohort", [], "tiny"), make)
"""
LOG = 'with open("../ran.txt", "a") as log: log.write(f"{STAGE} {seed}\\n")'
N_STEPS = 4  # an epoch


def write_notebook(project, stage, body):
    parameters = new_code_cell(stage_params()[stage].cell(), metadata={"tags": ["parameters"]})
    cells = [parameters, new_code_cell(LOG.replace("{STAGE}", stage[:2])), new_code_cell(body)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), project / "notebooks" / f"{stage}.ipynb")


@pytest.fixture
def project(tmp_path):
    """A project with a vector cohort, whose chain has three notebooks; the teacher trains a line, slowly."""
    (tmp_path / "notebooks").mkdir()
    data = tmp_path / "own"
    data.mkdir()
    pd.DataFrame({"label": ["a", "b"] * 20, "age": range(40)}).to_csv(data / "table.csv", index=False)
    write_schema(data, infer(data).model_copy(update={"confirmed": True}))
    write_notebook(tmp_path, "01_data_exploration", "'fine'")
    write_notebook(tmp_path, "02_teacher_training", TRAIN)
    write_notebook(tmp_path, "07_evaluation", "'fine'")
    return tmp_path


def study_file(project, name="study", **changes):
    study = {"name": name, "cohorts": [{"dataset": "own", "root": "own"}], "parameters": {"teacher.epochs": 3}}
    (project / f"{name}.yaml").write_text(yaml.safe_dump(study | {"grid": {"seed": [0]}} | changes))
    return f"{name}.yaml"


def start(project, *arguments):
    environment = os.environ | {"MEDKD_HOME": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "medkd", "batch", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=150):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def lines_of(project, name):
    path = project / name
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=90):
    for _ in range(seconds * 20):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def kernel_pid(project, n_steps=3):
    """Pid of the kernel that has done so many steps."""
    return int(wait_for(lambda: len(lines := lines_of(project, "steps.txt")) >= n_steps and lines[-1]).split()[0])


def states(project, name="study"):
    record = json.loads((project / "reports" / name / "study.json").read_text())
    return [notebook["state"] for cell in record["cells"] for notebook in cell["notebooks"]]


def test_shared_notebooks_run_once_failures_stop_what_needs_them_and_the_rest_goes_on(project):
    grid = {"seed": [0, 1], "n_resamples": [100, 200]}
    body = TRAIN + "\nif seed == 1: raise ValueError('no such weights')"
    write_notebook(project, "02_teacher_training", body)
    path = study_file(project, grid=grid, parameters={"teacher.epochs": 1})
    code, output = finish(start(project, path, "--workers", "2"))
    assert code == 3, output
    assert "2 cells did not finish" in output and "no such weights" in output
    assert f"medkd batch {path}" in output
    ran = lines_of(project, "ran.txt")
    assert sorted(ran) == ["01 0", "01 1", "02 0", "02 1", "07 0", "07 0"]
    assert sorted(states(project)) == ["failed"] * 2 + ["finished"] * 8 + ["skipped"] * 2

    write_notebook(project, "02_teacher_training", TRAIN + "\n'mended'")
    code, output = finish(start(project, path, "--workers", "2"))
    assert code == 0, output
    assert set(states(project)) == {"finished"}
    assert lines_of(project, "made.txt").count("0") == 1, "a finished stage was made again"


def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(project):
    process = start(project, study_file(project), "--workers", "1")
    kernel = psutil.Process(kernel_pid(project))
    worker = kernel.parent().parent()
    worker.send_signal(signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
    steps = lines_of(project, "steps.txt")
    assert len({line.split()[0] for line in steps}) == 2, "another kernel went on"
    assert 3 * N_STEPS <= len(steps) <= 3 * N_STEPS + 2  # the step that was under way, and one without checkpoint
    assert lines_of(project, "made.txt") == ["0"]


def test_an_interrupted_study_ends_soon_and_goes_on(project):
    process = start(project, path := study_file(project), "--workers", "1")
    kernel = psutil.Process(kernel_pid(project))
    process.send_signal(signal.SIGINT)
    code, output = finish(process, 60)
    assert code == 130, output
    assert "interrupted; finished notebooks are kept" in output
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 20)
    code, output = finish(start(project, path))
    assert code == 0, output
    assert len(lines_of(project, "steps.txt")) <= 3 * N_STEPS + 2


def dask(project, *arguments):
    environment = os.environ | {"MEDKD_HOME": str(project)}
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=project,
    )


def test_a_killed_scheduler_loses_nothing_that_was_finished(project):
    """A scheduler and a worker of their own, as on a cluster; then the same command on a cluster started here."""
    write_notebook(project, "01_data_exploration", "'fine'")
    address_file = project / "scheduler.json"
    scheduler = dask(project, "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                     "--scheduler-file", str(address_file))  # fmt: skip
    worker = None
    try:
        wait_for(lambda: address_file.exists() and address_file.stat().st_size)
        address = json.loads(address_file.read_text())["address"]
        worker = dask(project, "dask_worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1")
        process = start(project, path := study_file(project), "--scheduler", address)
        kernel_pid(project)
        wait_for(lambda: "finished" in states(project))
        scheduler.kill()
        code, output = finish(process)
        assert code == 3, output
        assert "connection to the Dask scheduler was lost" in output
    finally:
        for each in (scheduler, worker):
            if each is not None:
                each.kill()
                each.wait()
    code, output = finish(start(project, path))
    assert code == 0, output
    assert lines_of(project, "ran.txt").count("01 0") == 1, "a finished notebook was run again"
    assert lines_of(project, "made.txt") == ["0"]
    assert len(lines_of(project, "steps.txt")) <= 3 * N_STEPS + 2


def test_two_studies_at_once_share_a_stage_without_making_it_twice(project):
    both = [start(project, study_file(project, name), "--workers", "1") for name in ("one", "two")]
    for process in both:
        code, output = finish(process)
        assert code == 0, output
    assert lines_of(project, "made.txt") == ["0"]
    assert len(lines_of(project, "steps.txt")) == 3 * N_STEPS
    assert states(project, "one") == states(project, "two") == ["finished"] * 3


def test_an_address_where_no_scheduler_is_and_a_bad_jobqueue_file_are_told(project):
    code, output = finish(start(project, study_file(project), "--scheduler", "tcp://127.0.0.1:9"))
    assert code == 2 and "no Dask scheduler answers at tcp://127.0.0.1:9" in output
    Path(project / "queue.yaml").write_text("cluster: NoSuchCluster\njobs: 2\n")
    code, output = finish(start(project, study_file(project), "--jobqueue", "queue.yaml"))
    assert code == 2 and "must name cluster (such as SLURMCluster)" in output
