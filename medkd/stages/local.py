"""Several processes of one stage on this machine: `python -m medkd.stages.local N STAGE CONFIG`.

torchrun has its processes meet at a server that listens on every network of the machine. Here they meet in a file that
the user alone may read, and talk on the loopback interface, see `medkd.parallel.join`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

END_WITHIN = 30.0
"""Seconds that the others have to end after one process has failed; one that waits for it never would."""
LOOK_EVERY = 0.1  # seconds


def run(command: Sequence[str], n: int) -> int:
    """Run a command in `n` processes that know their number and, as last argument, the file they meet in.

    Ctrl-C, and the signals that ask to end, are passed on; a second one ends all at once, since a process that waits
    for another heeds none.

    Returns:
        Exit status: 0, or that of the first process that failed.
    """
    processes: list[subprocess.Popen] = []
    asked: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        first = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        for process in processes:
            process.send_signal(signal.SIGKILL if asked else first)
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    # as torchrun does: more threads than cores slow all of them down
    shared = {"WORLD_SIZE": str(n), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with tempfile.TemporaryDirectory(prefix="medkd-") as scratch:
        line = [*command, str(Path(scratch, "store"))]
        for rank in range(n):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # a session each, so that Ctrl-C in a terminal comes once
            processes.append(subprocess.Popen(line, env=os.environ | shared | own, start_new_session=True))
        return _ended(processes)


def _ended(processes: Sequence[subprocess.Popen]) -> int:
    """Wait for all; the status of the first that failed."""
    status, deadline = 0, float("inf")
    while None in [process.poll() for process in processes]:
        time.sleep(LOOK_EVERY)
        status = status or _failure(processes)
        if status and deadline == float("inf"):
            deadline = time.monotonic() + END_WITHIN
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return status or _failure(processes)


def _failure(processes: Sequence[subprocess.Popen]) -> int:
    """A status other than 0 of processes that have ended; 128 and its number after a signal."""
    codes = [process.returncode for process in processes if process.returncode]
    return 0 if not codes else codes[0] if codes[0] > 0 else 128 - codes[0]


if __name__ == "__main__":
    sys.exit(run([sys.executable, "-m", "medkd.stages.worker", *sys.argv[2:]], int(sys.argv[1])))
