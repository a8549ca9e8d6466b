"""Where a notebook runs: in front of somebody, or headless."""

from __future__ import annotations

import os
from pathlib import Path


def is_interactive() -> bool:
    """Whether somebody can use a widget: a kernel of JupyterLab, Notebook or VS Code, and no headless run of medkd.

    `medkd.report.notebooks.run_notebook` sets MEDKD_HEADLESS for its kernels; Jupyter's server names the session of the
    kernels that it starts. One that a notebook's own kernel started, by papermill, has that name from there.
    """
    if os.environ.get("MEDKD_HEADLESS") or _of_parent("JPY_SESSION_NAME"):
        return False
    return any(os.environ.get(name) for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD"))


def _of_parent(name: str) -> bool:
    """Whether the process that started this one had the variable too; False where that cannot be told."""
    try:
        given = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # not Linux, or not ours to read
        return False
    return any(each.startswith(f"{name}=".encode()) for each in given.split(b"\0"))
