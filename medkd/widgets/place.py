"""Where a notebook runs: in front of somebody, or headless."""

from __future__ import annotations

import os


def is_interactive() -> bool:
    """Whether somebody can use a widget: a kernel of JupyterLab, Notebook or VS Code, and no headless run of medkd.

    `medkd.report.notebooks.run_notebook` sets MEDKD_HEADLESS for its kernels; Jupyter's server names the session of the
    kernels that it starts.
    """
    if os.environ.get("MEDKD_HEADLESS"):
        return False
    return any(os.environ.get(name) for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD"))
