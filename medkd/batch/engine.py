"""Run the notebooks of a study with Dask: on this machine, or on a cluster that is already there."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.batch.node import TOPIC, gpus, run_node
from medkd.batch.progress import Board
from medkd.batch.study import Cell, Node, Study, expand, nodes_of
from medkd.errors import DataError, MedkdError
from medkd.models.device import pick_device
from medkd.paths import home, reports_dir
from medkd.report.entry import alone, checked_cohort, is_good
from medkd.signals import handled
from medkd.yaml_file import read_yaml

if TYPE_CHECKING:
    from distributed import Client, Future

MEMORY_EACH = 4 * 2**30
"""Bytes that a notebook should have; a machine with little memory runs fewer at once."""
DEATHS = 3  # of workers under one notebook, after which it counts as the cause
CONNECT_WITHIN = 10  # seconds
STOP_WITHIN = 30.0
"""Seconds that notebooks have to stop after an interruption: a training ends its step and writes its checkpoint."""
LOCAL_PORT = "127.0.0.1:0"
"""Of the scheduler's pages: any free port, not to be reached from other machines."""


LOST = (
    "the connection to the Dask scheduler was lost; finished notebooks are kept, start the scheduler and run the same "
    "command again"
)


class SchedulerLost(MedkdError):
    """The Dask scheduler went away while a study ran."""


def prepare(study: Study) -> tuple[list[Cell], dict[str, Node], dict[str, list[str]]]:
    """Cells, notebooks to run, and the notebooks of each cell; reads the cohorts.

    Raises:
        ParameterError, DataError: a parameter, cohort or file is not in order.
    """
    cells = expand(study)
    entries = [entry for cell in cells for entry in cell.entries]
    fingerprints = {entry.dataset: checked_cohort(entry).shown for entry in entries}
    return (cells, *nodes_of(cells, fingerprints))


def is_finished(study: Study, node: Node) -> bool:
    """Whether the notebook was run before, nothing it depends on has changed, and what it made is there."""
    return is_good(reports_dir() / study.name / node.folder, node.entry, node.key)


def run_study(
    study: Study,
    *,
    scheduler: str = "",
    jobqueue: str = "",
    workers: int = 0,
    cell_timeout: int | None = None,
    say: Callable[[str], Any] = print,
) -> list[str]:
    """Run what is not finished; `reports/<study>/study.json` says at every moment what is.

    Args:
        study: what to run.
        scheduler: address of a Dask scheduler, such as "tcp://host:8786"; empty starts one here.
        jobqueue: YAML file with `cluster` (a class of dask-jobqueue), `jobs` and its `arguments`.
        workers: notebooks at once on this machine; 0 takes what cores, memory and GPUs allow.
        cell_timeout: seconds per notebook cell may take; None for no limit.
        say: where lines for the reader go.

    Returns:
        Names of the cells that did not finish.

    Raises:
        ParameterError, DataError: before anything runs.
        SchedulerLost: later; what is finished is kept.
    """
    cells, nodes, of_cell = prepare(study)
    if not scheduler and not jobqueue:
        pick_device(study.device)
    folder = reports_dir() / study.name
    with alone(folder, f"study {study.name}"), _interrupted_by_signals():
        if (folder / "manifest.json").exists() and not (folder / "study.json").exists():
            raise DataError(f"{folder} holds a report; give the study another name in its file")
        open_nodes = [node for node in nodes.values() if not is_finished(study, node)]
        board = Board(study, cells, nodes, of_cell, waiting=[node.key for node in open_nodes], say=say)
        board.save()
        try:
            if open_nodes:
                on_cpu = study.device.startswith("cpu")
                with _client(scheduler, jobqueue, workers, len(open_nodes), on_cpu=on_cpu) as client:
                    _run_all(client, study, open_nodes, board, cell_timeout)
        finally:
            unfinished = board.close()
    return unfinished


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP unless it is ignored as under nohup, raise KeyboardInterrupt as Ctrl-C does."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    with handled(stop, *heeded):
        yield


def _run_all(client: Client, study: Study, nodes: list[Node], board: Board, cell_timeout: int | None) -> None:
    from distributed import as_completed
    from distributed.comm import CommClosedError

    client.subscribe_topic(TOPIC, lambda event: board.heard(event[1]["node"], event[1]["status"]))
    futures: dict[str, Future] = {}
    attempt = uuid.uuid4().hex[:8]  # on a cluster the interrupted task of an earlier attempt may not have ended yet
    for node in nodes:  # in the order of the chains, so that what a node needs is there
        needed = [futures[key] for key in node.needs if key in futures]
        work = _work(study, node, cell_timeout)
        futures[node.key] = client.submit(run_node, work, *needed, key=f"{study.name}-{node.key}-{attempt}")
    node_of = {future.key: key for key, future in futures.items()}
    try:
        for future in as_completed(futures.values()):
            board.ended(node_of[future.key], _result(future))
            board.n_workers = sum(client.nthreads().values())  # jobs of a queue start one after the other
    except BaseException as error:
        if client.status == "running":
            client.cancel(list(futures.values()), force=True)
            board.wait_for_stops(STOP_WITHIN)  # a cluster that closes kills its workers after a few seconds
        if isinstance(error, CommClosedError):
            raise SchedulerLost(LOST) from error
        raise


def _result(future: Future) -> dict[str, Any]:
    """State, error and seconds of a notebook whose future is done.

    Raises:
        SchedulerLost: nobody knows what came out.
    """
    if future.status in ("lost", "cancelled"):
        raise SchedulerLost(LOST)
    if future.status == "error":
        return {"state": "failed", "error": _died(future.exception()), "seconds": 0.0}
    return future.result()


def _work(study: Study, node: Node, cell_timeout: int | None) -> dict[str, Any]:
    return {
        "command": shlex.join(["medkd", *sys.argv[1:]]),
        "home": str(home().resolve()),
        "folder": str((reports_dir() / study.name / node.folder).resolve()),
        "node": node.key,
        "key": node.key,
        "notebook": node.entry.notebook,
        "name": node.entry.name,
        "dataset": node.entry.dataset,
        "parameters": node.entry.parameters,
        "cell_timeout": cell_timeout,
    }


@contextmanager
def _client(scheduler: str, jobqueue: str, workers: int, n_nodes: int, *, on_cpu: bool = False) -> Iterator[Client]:
    """A client of the cluster that was asked for; one that is started here ends with the block."""
    from distributed import Client

    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT_WITHIN)
        except (OSError, ValueError, TypeError) as error:  # the latter two: no address, or one that needs TLS
            raise DataError(
                f"no Dask scheduler answers at {scheduler} ({error}); start one or check the address"
            ) from error
        with client:
            yield client
        return
    with _jobqueue_cluster(Path(jobqueue)) if jobqueue else _local_cluster(workers, n_nodes, on_cpu=on_cpu) as cluster:
        with Client(cluster) as client:
            yield client


def _local_cluster(workers: int, n_nodes: int, *, on_cpu: bool = False) -> Any:
    """Worker processes on this machine: one per GPU, or as many as cores and memory allow, on localhost only.

    With `on_cpu` GPUs do not count, and notebooks see none.
    """
    import dask
    from dask.system import CPU_COUNT  # that this process may use: fewer than the machine has in a job or container
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT as memory  # noqa: N811  of a container too

    found = [] if on_cpu else gpus()
    fitting = len(found) or max(1, min(CPU_COUNT, memory // MEMORY_EACH))
    n_workers = min(workers or fitting, n_nodes)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, CPU_COUNT // n_workers)))
    settings = {"distributed.scheduler.allowed-failures": DEATHS, "distributed.worker.daemon": False}
    settings |= {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}  # 2 % of a core
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=0 if found else n_workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory // n_workers,
            host="127.0.0.1",
            dashboard_address=LOCAL_PORT,
            scheduler_kwargs={"dashboard": False},
            security=True,  # TLS with a certificate made for this study: on localhost other users are strangers too
            preload=["medkd.batch.node"],
            env=dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)
            | {"MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS", threads)}
            | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
        )
    if found:
        _one_gpu_each(cluster, n_workers, found)
    return cluster


def _one_gpu_each(cluster: Any, n_workers: int, found: list[str]) -> None:
    """Workers that see one GPU each."""
    import copy

    template = cluster.new_worker_spec()
    (spec,) = template.values()
    for number in range(n_workers):
        own = copy.deepcopy(spec)
        own["options"]["env"] = own["options"].get("env", {}) | {"CUDA_VISIBLE_DEVICES": found[number % len(found)]}
        cluster.worker_spec[f"gpu-{number}"] = own
    cluster.sync(cluster._correct_state)


def _jobqueue_cluster(path: Path) -> Any:
    """A cluster of dask-jobqueue from its YAML file.

    Raises:
        DataError: the file, the package or the class is not there.
    """
    try:
        import dask_jobqueue
    except ImportError as error:
        raise DataError("--jobqueue needs the package dask-jobqueue; install medkd[cluster]") from error
    try:
        settings = read_yaml(path)
        arguments = settings.get("arguments", {})
        # by default dask-jobqueue opens its dashboard to the whole network
        options = {"dashboard_address": LOCAL_PORT} | arguments.get("scheduler_options", {})
        cluster = getattr(dask_jobqueue, settings["cluster"])(**arguments | {"scheduler_options": options})
        cluster.scale(jobs=int(settings["jobs"]))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} must name cluster (such as SLURMCluster), jobs and arguments of dask-jobqueue: {error!r}"
        ) from error
    return cluster


def _died(error: BaseException) -> str:
    if isinstance(error, MedkdError):
        return str(error)
    name = type(error).__name__
    if name == "KilledWorker":
        return f"its worker died {DEATHS + 1} times, most often because memory ran out; run fewer at once (--workers)"
    return f"{name}: {error}"
