"""What lies in a report: the index that each stage's `Artifacts` keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medkd.errors import DataError


def forget(folder: Path, stage: str) -> None:
    """Forget what an earlier execution of the stage left, so that nothing of it stands beside what this one makes.

    Also that it finished: what is made now counts for a report only where the report itself makes it.
    """
    for path in (index_file(folder, stage), state_file(folder, stage)):
        path.unlink(missing_ok=True)


@contextmanager
def replaced(folder: Path, stages: list[str]) -> Iterator[None]:
    """Inside, the stages are run anew; then the files that they made before and no longer make are taken away.

    After an error they stay, though in no index.
    """
    before = _files(folder, stages)
    for stage in stages:
        forget(folder, stage)
    yield
    for file in before - _files(folder, stages):
        (folder / file).unlink(missing_ok=True)


def read_index(folder: Path) -> list[dict[str, Any]]:
    """All figures and tables of a report: stages by name, inside a stage in the order of writing.

    Args:
        folder: the report folder; one without artifacts gives an empty list.

    Returns:
        Entries with stage, kind ("figure" or "table"), name, caption, files (kind of file -> path relative to
        `folder`), simulated; for tables summary, for figures photographs, and draw where they can be drawn again.

    Raises:
        DataError: if an index file cannot be read.
    """
    return [entry for path in _index_files(folder) for entry in load_index(path)["entries"]]


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Key numbers of a report by stage, stages by name; stages without any are left out. Raises: as `read_index`."""
    found = {path.stem: load_index(path)["metrics"] for path in _index_files(folder)}
    return {stage: numbers for stage, numbers in found.items() if numbers}


def read_runs(folder: Path) -> dict[str, list[str]]:
    """Keys of the runs behind a report by stage, as `Artifacts.uses` noted them. Raises: as `read_index`."""
    return {path.stem: load_index(path).get("runs", []) for path in _index_files(folder)}


def _files(folder: Path, stages: list[str]) -> set[str]:
    """Figures and tables of the stages that can be told, relative to the folder."""
    found: set[str] = set()
    for stage in stages:
        with suppress(FileNotFoundError, DataError):
            entries = load_index(index_file(folder, stage))["entries"]
            found.update(file for entry in entries for file in entry["files"].values())
    return found


def index_file(folder: Path, stage: str) -> Path:
    """Where the index of a stage lies."""
    return Path(folder) / "index" / f"{stage}.json"


def state_file(folder: Path, stage: str) -> Path:
    """Where a report notes how its notebook of a stage ended."""
    return Path(folder) / "notebooks" / f"{stage}.json"


def _index_files(folder: Path) -> list[Path]:
    return sorted((Path(folder) / "index").glob("*.json"))


def load_index(path: Path) -> dict[str, Any]:
    """The index of one stage. Raises: as `read_index`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not readable JSON ({error}); delete it and run the stage's notebook again"
        ) from None
