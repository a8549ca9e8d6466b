"""One notebook of a study as a process of its own: `python -m medkd.batch.node`, with the work as JSON on stdin.

The process dies with the worker that started it, however that one ends, and its kernel with it (ipykernel looks for its
parent every second), so that no orphan keeps the lock of a stage.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
