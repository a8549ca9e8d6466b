"""One notebook of a study on a Dask worker, in a process of its own: `python -m medkd.batch.node`.

Nothing here imports torch: neither the worker nor that process needs it, only the notebook's kernel. The process dies
with the worker that started it, however that one ends, and its kernel with it (ipykernel looks for its parent every
second), so that no orphan keeps the lock of a stage. When the study is interrupted or its client is gone, the scheduler
takes the task back, and the notebook is stopped as by Ctrl-C.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from medkd.report.status import VARIABLE, read_status

if TYPE_CHECKING:
    from distributed import Worker

TOPIC = "medkd"
"""Of the events by which workers say what they have begun, where it stands, and that it has ended."""
BEGUN, ENDED = "running", "ended"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY = 1.0  # seconds


def dask_setup(_: Worker) -> None:
    """Dask calls it in the workers that are started here: Ctrl-C, and the end of a terminal, reach all in it.

    The client acts on them.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def run_node(work: Mapping[str, Any], *needed: Mapping[str, Any]) -> dict[str, Any]:
    """Run one notebook on a Dask worker, once all that it needs are finished; returns state, error and seconds."""
    from distributed import get_worker

    if failed := [result for result in needed if result["state"] != "finished"]:
        return {"state": "skipped", "error": f"a notebook before it failed: {failed[0]['error']}", "seconds": 0.0}
    worker = get_worker()
    worker.log_event(TOPIC, {"node": work["node"], "status": BEGUN})
    memory = 0 if gpus() else int(worker.memory_manager.memory_limit or 0)  # drivers of GPUs map more than they use
    status = Path(work["folder"]) / "notebooks" / f".{work['name']}.status"
    environment = os.environ | {"MEDKD_HOME": work["home"], "MEDKD_COMMAND": work["command"], VARIABLE: str(status)}
    process = subprocess.Popen(
        [sys.executable, "-m", "medkd.batch.node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=work["home"],
        start_new_session=True,  # Ctrl-C of a terminal is for the client, which may ignore it (a script's `&`)
    )
    try:
        output, errors = _told_to_the_end(process, json.dumps({**work, "memory": memory}), worker, work["node"], status)
    finally:
        status.unlink(missing_ok=True)
        worker.log_event(TOPIC, {"node": work["node"], "status": ENDED})
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        reason = errors.strip().splitlines()[-1] if errors.strip() else f"its process ended with {process.returncode}"
        return {"state": "failed", "error": f"{work['notebook']}: {reason}", "seconds": 0.0}
    return json.loads(lines[-1])


def _told_to_the_end(
    process: subprocess.Popen, text: str | None, worker: Worker, node: str, status: Path
) -> tuple[str, str]:
    """What the process prints, once it has read `text`; it is stopped when nobody waits for the task any more.

    What its kernel writes to `status` is passed on meanwhile.
    """
    task = worker.state.tasks[worker.get_current_task()]
    asked, told = False, ""
    while True:
        try:
            return process.communicate(text, timeout=LOOK_EVERY)
        except subprocess.TimeoutExpired:  # nothing is lost when `communicate` is called again, without the text
            text = None
            if (line := read_status(status)) not in ("", told):
                told = line
                worker.log_event(TOPIC, {"node": node, "status": line})
            if task.state == "cancelled" and not asked:
                asked = True
                process.terminate()


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without torch, whose import takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return []
    if (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def die_with_parent() -> None:
    """Ask the kernel of the operating system for SIGKILL when the parent ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(n_bytes: int) -> None:
    """Make allocations beyond this fail in this process and its children: a message instead of a machine that swaps."""
    if n_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))


def main() -> None:
    """Run the notebook that stdin describes, and print its record as the last line."""
    parent = os.getppid()
    die_with_parent()
    work: dict[str, Any] = json.load(sys.stdin)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    limit_memory(work["memory"])
    from medkd.report.entry import run_entry

    entry = SimpleNamespace(
        notebook=work["notebook"], name=work["name"], dataset=work["dataset"], parameters=work["parameters"]
    )
    record, _ = run_entry(Path(work["folder"]), entry, work["key"], cell_timeout=work["cell_timeout"])
    print(json.dumps({name: record[name] for name in ("state", "error", "seconds")}), flush=True)


if __name__ == "__main__":
    main()
