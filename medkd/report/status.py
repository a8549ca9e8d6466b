"""Where a notebook that nobody watches stands: its kernel writes a line, and the terminal of the study shows it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medkd.training.progress import Progress, listen

VARIABLE = "MEDKD_STATUS"
"""Of the environment: the file for the line."""
WRITE_EVERY = 2.0  # seconds


def follow_trainings() -> None:
    """From now on every training of this process writes its place to the file that `MEDKD_STATUS` names, if any."""
    if path := os.environ.get(VARIABLE):
        listen(StatusLine(Path(path)))


class StatusLine:
    """A listener that keeps one line of text about the present training, such as "training 7: GMCD, fold 1, ...".

    Args:
        path: where the line goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders: set[Path] = set()
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        """Write the line, every two seconds at most."""
        self._folders.add(progress.folder)
        if time.monotonic() - self._written < WRITE_EVERY:
            return
        self._written = time.monotonic()
        epoch = min(progress.epoch + 1, progress.n_epochs)
        line = f"training {len(self._folders)}: {progress.title}, epoch {epoch} of {progress.n_epochs}"
        self.path.write_text(line, encoding="utf-8")  # a reader that comes in between sees nothing, and looks again


def read_status(path: Path) -> str:
    """The line, "" if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
