"""Studies on real Dask processes, with everything that can be killed being killed."""

import fcntl
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

from medkd.batch import engine, node, progress
from medkd.batch.engine import run_study
from medkd.batch.study import Study
from medkd.data.own_schema import infer, write_schema
from medkd.errors import DataError
from medkd.stages import stage_params

TRAIN = """
import os, time, torch
from torch import nn
from medkd.report.status import follow_trainings
from medkd.stages.store import Unit, load_or_make
from medkd.training.loop import fit, linear_decay

class Step:
    modules, device = nn.Linear(1, 1), torch.device("cpu")
    def start(self, generator, others): pass
    def loss(self, rows, progress):
        with open("../steps.txt", "a") as log: log.write(f"{os.getpid()} {seed}\\n")
        time.sleep(0.2)
        return self.modules(rows.float()[:, None]).pow(2).mean(), {}
    def after_step(self): pass
    def validate(self): return {}

follow_trainings()

def make(folder):
    step = Step()
    fit(step, torch.arange(8), torch.optim.SGD(step.modules.parameters(), lr=0.001), epochs=epochs, batch_size=2,
        schedule=linear_decay, seed=seed, folder=folder, title="tiny", checkpoint_seconds=-1.0)
    with open("../made.txt", "a") as log: log.write(f"{seed}\\n")
    return {}

load_or_make(Unit("02_teacher_training", 1, {"epochs": epochs, "seed": seed}, "cohort", [], "tiny"), make)
"""
LOG = 'with open("../ran.txt", "a") as log: log.write(f"{STAGE} {seed}\\n")'
N_STEPS = 4  # of an epoch


def write_notebook(project, stage, body):
    parameters = new_code_cell(stage_params()[stage].cell(), metadata={"tags": ["parameters"]})
    cells = [parameters, new_code_cell(LOG.replace("{STAGE}", stage[:2])), new_code_cell(body)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), project / "notebooks" / f"{stage}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a vector cohort, whose chain has three notebooks; the teacher trains a line, slowly."""
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "notebooks").mkdir()
    data = tmp_path / "own"
    data.mkdir()
    pd.DataFrame({"label": ["a", "b"] * 30, "age": range(60)}).to_csv(data / "table.csv", index=False)
    write_schema(data, infer(data).model_copy(update={"confirmed": True}))
    write_notebook(tmp_path, "01_data_exploration", "'fine'")
    write_notebook(tmp_path, "02_teacher_training", TRAIN)
    write_notebook(tmp_path, "07_evaluation", "'fine'")
    return tmp_path


TEACHER = {"notebooks": ["02_teacher_training"]}
N_ALL = 3 * N_STEPS


def study_file(project, name="study", **changes):
    study = {"name": name, "cohorts": [{"dataset": "own", "root": "own"}], "parameters": {"teacher.epochs": 3}}
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study | {"grid": {"seed": [0]}} | changes))
    return path


def run_here(path, **options):
    """Run a study with this process as its client; the unfinished cells, and what was said."""
    said = []
    return run_study(Study.read(path), say=said.append, **options), "\n".join(said)


def start(path, *arguments, on_ctrl_c=signal.SIG_DFL):
    """The command, as from a terminal: Ctrl-C goes to its whole process group."""

    def as_in_a_terminal():
        """A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP; children inherit both."""
        signal.signal(signal.SIGINT, on_ctrl_c)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "medkd", "batch", path.name, *arguments],
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )


def finish(process, seconds=300):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def lines_of(project, name):
    path = project / name
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=300):
    for _ in range(seconds * 20):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def kernel_of(project, n_steps, after=0):
    """The kernel at work, once it has done that many steps; the first one after those lines of steps.txt."""
    lines = wait_for(lambda: len(found := lines_of(project, "steps.txt")[after:]) >= n_steps and found)
    return psutil.Process(int(lines[-1].split()[0]))


def has_ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def states(project, name="study"):
    record = json.loads((project / "reports" / name / "study.json").read_text())
    return [notebook["state"] for cell in record["cells"] for notebook in cell["notebooks"]]


@pytest.mark.slow
def test_shared_notebooks_run_once_failures_stop_what_needs_them_and_the_rest_goes_on(project, monkeypatch):
    monkeypatch.setattr(progress, "SAY_EVERY", 0)
    write_notebook(project, "02_teacher_training", "if seed: raise ValueError('no such weights')\n" + TRAIN)
    cells = [{"seed": 0, "n_resamples": 100}, {"seed": 0, "n_resamples": 200}, {"seed": 1}]
    path = study_file(project, grid={}, cells=cells, parameters={"teacher.epochs": 1})
    unfinished, said = run_here(path, workers=2)
    assert unfinished == ["own+seed=1"]
    assert "own+seed=1/02_teacher_training: failed (02_teacher_training.own, cell 3" in said
    assert "own+n_resamples=100+seed=0/02_teacher_training: training 1: tiny, epoch 1 of 1; " in said
    assert not list(project.rglob("*.status"))
    assert "no such weights" in said and "2 of 3 cells finished, 0 running, 1 failed" in said
    assert sorted(lines_of(project, "ran.txt")) == ["01 0", "01 1", "02 0", "02 1", "07 0", "07 0"]
    assert sorted(states(project)) == ["failed"] + ["finished"] * 7 + ["skipped"]

    write_notebook(project, "02_teacher_training", TRAIN)
    assert run_here(path, workers=2)[0] == []
    assert set(states(project)) == {"finished"}
    assert lines_of(project, "made.txt") == ["0", "1"], "a finished stage was made again"


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(project):
    process = start(study_file(project, **TEACHER), "--workers", "1")
    kernel = kernel_of(project, 3)
    kernel.parent().parent().kill()  # kernel, process of the notebook, worker
    code, output = finish(process)
    assert code == 0, output
    assert has_ended(kernel)
    steps = lines_of(project, "steps.txt")
    assert len({line.split()[0] for line in steps}) == 2, "another kernel went on"
    assert N_ALL <= len(steps) <= N_ALL + 2  # the step that was under way, and one without checkpoint
    assert lines_of(project, "made.txt") == ["0"]


@pytest.mark.slow
def test_an_interrupted_study_ends_soon_and_goes_on(project):
    """By Ctrl-C, which reaches all processes of a terminal; `kill` takes the same way."""
    process = start(path := study_file(project, **TEACHER), "--workers", "1")
    kernel = kernel_of(project, 3)
    os.killpg(process.pid, signal.SIGINT)
    code, output = finish(process, 120)
    assert code == 130, output
    assert "interrupted; finished notebooks are kept" in output and "Traceback" not in output
    wait_for(lambda: has_ended(kernel), 10)
    assert states(project) == ["waiting"]
    stopped = project / "reports" / "study" / "own+seed=0" / "notebooks" / "02_teacher_training.own.ipynb"
    wait_for(lambda: "This run stopped: interrupt" in nbformat.read(stopped, as_version=4).cells[0].source, 10)
    assert run_here(path)[0] == []
    assert N_ALL <= len(lines_of(project, "steps.txt")) <= N_ALL + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_command_interrupt_it_unless_they_are_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)  # as nohup starts a command
    try:
        with engine._interrupted_by_signals():
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name), engine._interrupted_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.fixture
def cluster(project):
    """Address and process of a scheduler that runs by itself, with a worker."""

    def dask(kind, *arguments):
        line = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
        return subprocess.Popen(line, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    file = project / "scheduler.json"
    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    started = [scheduler]
    try:
        wait_for(lambda: file.exists() and file.stat().st_size)
        address = json.loads(file.read_text())["address"]
        started.append(dask("worker", address, "--nthreads", "1", "--host", "127.0.0.1"))
        yield address, scheduler
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_cluster_stops_with_the_client_and_a_killed_scheduler_loses_nothing_that_was_finished(project, cluster):
    address, scheduler = cluster
    path = study_file(project, notebooks=["01_data_exploration", "02_teacher_training"])
    process = start(path, "--scheduler", address)
    kernel = kernel_of(project, 2)
    process.kill()  # not even a word to the scheduler
    wait_for(lambda: has_ended(kernel), 20)

    n_before = len(lines_of(project, "steps.txt"))
    process = start(path, "--scheduler", address)
    kernel_of(project, 2, after=n_before)
    scheduler.kill()
    code, output = finish(process)
    assert code == 3, output
    assert "connection to the Dask scheduler was lost" in output
    assert states(project) == ["finished", "waiting"]

    assert run_here(path)[0] == []
    assert lines_of(project, "ran.txt").count("01 0") == 1, "a finished notebook was run again"
    assert lines_of(project, "made.txt") == ["0"]
    assert N_ALL <= len(lines_of(project, "steps.txt")) <= N_ALL + 4


@pytest.mark.slow
def test_a_study_in_the_background_ignores_ctrl_c_and_another_waits_for_the_stage_that_it_makes(project):
    longer = TEACHER | {"parameters": {"teacher.epochs": 25}}
    other = start(study_file(project, "one", **longer), "--workers", "1", on_ctrl_c=signal.SIG_IGN)
    kernel_of(project, 1)
    os.killpg(other.pid, signal.SIGINT)
    unfinished, _ = run_here(study_file(project, "two", **longer), workers=1)
    code, output = finish(other)
    assert code == 0, output
    assert unfinished == []
    assert lines_of(project, "ran.txt") == ["02 0", "02 0"] and lines_of(project, "made.txt") == ["0"]
    assert len(lines_of(project, "steps.txt")) == 25 * N_STEPS
    assert states(project, "one") == states(project, "two") == ["finished"]


@pytest.mark.slow
def test_the_same_study_runs_on_jobs_of_a_queue(project, monkeypatch):
    """With dask-jobqueue's cluster of local jobs: same scripts and same classes as Slurm's, without a queue."""
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    from dask_jobqueue.local import LocalCluster

    monkeypatch.setattr(dask_jobqueue, "LocalCluster", LocalCluster, raising=False)
    arguments = {"cores": 1, "memory": "4GB", "scheduler_options": {"host": "127.0.0.1"}}
    arguments |= {"log_directory": str(project), "local_directory": str(project)}
    queue = project / "queue.yaml"
    queue.write_text(yaml.safe_dump({"cluster": "LocalCluster", "jobs": 1, "arguments": arguments}))
    assert run_here(study_file(project, notebooks=["01_data_exploration"]), jobqueue=str(queue))[0] == []
    assert lines_of(project, "ran.txt") == ["01 0"]


@pytest.mark.slow
def test_each_worker_sees_one_gpu(project, monkeypatch):
    lister = project / "nvidia-smi"
    lister.write_text("#!/bin/sh\necho 'GPU 0: any'\necho 'GPU 1: any'\n")
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert node.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert node.gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f")  # on a server that others use too
    with engine._client("", "", 0, 5) as client:
        client.wait_for_workers(2, timeout=60)
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        addresses = list(seen)
    assert sorted(seen.values()) == ["3", "GPU-8f"]
    assert all(address.startswith("tls://127.0.0.1:") for address in addresses)


@pytest.mark.slow
def test_nobody_talks_to_a_studys_scheduler_without_its_certificate(project, monkeypatch):
    from distributed import Client

    monkeypatch.setattr(engine, "gpus", list)
    with engine._client("", "", 1, 5) as client:
        client.wait_for_workers(1, timeout=60)
        address = client.scheduler.address
        for stranger in (address, address.replace("tls://", "tcp://")):
            with pytest.raises((OSError, TypeError)):
                Client(stranger, timeout=2).close()


def test_an_address_where_no_scheduler_is_and_a_bad_jobqueue_file_are_told(project, monkeypatch):
    monkeypatch.setattr(engine, "CONNECT_WITHIN", 0.5)
    path = study_file(project)
    with pytest.raises(DataError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_here(path, scheduler="tcp://127.0.0.1:9")
    for address in ("nonsense://x", "tcp://127.0.0.1:port", "tls://127.0.0.1:9"):
        with pytest.raises(DataError, match=f"no Dask scheduler answers at {address}"):
            run_here(path, scheduler=address)
    Path(project / "queue.yaml").write_text("cluster: NoSuchCluster\njobs: 2\n")
    with pytest.raises(DataError, match=r"queue\.yaml must name cluster \(such as SLURMCluster\)"):
        run_here(path, jobqueue=str(project / "queue.yaml"))
    assert not lines_of(project, "ran.txt")


def test_a_study_that_runs_already_or_has_no_folder_is_refused(project):
    path = study_file(project)
    (project / "reports" / "study").mkdir(parents=True)
    with (project / "reports" / "study" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process runs study study already"):
            run_here(path)
    (project / "reports" / "taken").mkdir()
    (project / "reports" / "taken" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="taken holds a report; give the study another name in its file"):
        run_here(study_file(project, "taken"))
    (project / "reports" / "other").write_text("a file")
    with pytest.raises(DataError, match="other cannot be written to .*give it write permission"):
        run_here(study_file(project, "other"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count other memory")
@pytest.mark.parametrize(("limit", "ended"), [(2**29, "MemoryError"), (0, "")])
def test_a_notebook_that_wants_more_memory_than_its_share_fails_in_words(limit, ended):
    code = f"from medkd.batch.node import limit_memory; limit_memory({limit}); bytearray(2**29)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == ended or run.stderr.strip().endswith(ended)
    assert (run.returncode != 0) == bool(ended)


def test_a_study_for_the_processor_takes_cores_and_the_memory_of_its_container_on_a_machine_with_gpus(monkeypatch):
    made = {}
    monkeypatch.setattr("distributed.LocalCluster", lambda **settings: made.update(settings))
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 3 * engine.MEMORY_EACH)
    monkeypatch.setattr(engine, "gpus", lambda: ["0"])
    engine._local_cluster(workers=0, n_nodes=5, on_cpu=True)
    assert made["n_workers"] == 3 and made["memory_limit"] == engine.MEMORY_EACH
    assert made["env"]["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(("given", "threads"), [("", "4"), ("1", "1")])
def test_workers_share_the_cores_this_process_may_use_unless_the_environment_says_how_many_threads(
    given, threads, monkeypatch
):
    made = {}
    monkeypatch.setattr("distributed.LocalCluster", lambda **settings: made.update(settings))
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr(engine, "gpus", list)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    engine._local_cluster(workers=2, n_nodes=5)
    assert made["n_workers"] == 2
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")  # torch heeds the last
    assert made["env"] == dict.fromkeys(names, threads)
