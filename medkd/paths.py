"""Where things lie: the project folder, its data cache, its run store and its reports."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The project folder: `MEDKD_HOME`, else the nearest folder upwards with `notebooks/` and `medkd/`, else here."""
    if named := os.environ.get("MEDKD_HOME"):
        return Path(named).expanduser().resolve()  # notebooks run in another folder than the command
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "medkd").is_dir():
            return folder
    return here


def cache_dir() -> Path:
    """Decoded images and other files that can be made again: `data/cache/`."""
    return home() / "data" / "cache"


def runs_dir() -> Path:
    """The run store: `reports/runs/`."""
    return home() / "reports" / "runs"


def reports_dir() -> Path:
    """Reports, one folder each: `reports/`."""
    return home() / "reports"
