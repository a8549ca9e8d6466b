"""What lies in the run store: list it, compare runs, and remove what no report needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medkd.errors import DataError, ParameterError
from medkd.files import locked, walk_once
from medkd.paths import reports_dir, runs_dir
from medkd.stages import SHORT_NAMES
from medkd.stages.store import Run, load_folder, with_upstream

HEADLINES = ("val_balanced_accuracy", "val_auc_macro", "val_c_index", "val_accuracy", "knn_balanced_accuracy")
"""Metrics that stand for a run in a list, best first."""
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Leftover:
    """A folder of the run store that may go.

    Attributes:
        folder: where.
        n_bytes: what it holds.
        reason: why it may go.
    """

    folder: Path
    n_bytes: int
    reason: str


def all_runs(stage: str = "") -> pd.DataFrame:
    """Finished runs: stage, key, title, finished, seconds and one metric each, oldest first.

    Args:
        stage: name of a stage, its short name ("teacher"), or its beginning ("02"); empty for all.

    Raises:
        ParameterError: no stage is called so.
    """
    stage = SHORT_NAMES.get(stage, stage)
    known = sorted({*SHORT_NAMES.values(), *(path.name for path in runs_dir().glob("*") if path.is_dir())})
    if not any(name.startswith(stage) for name in known):
        short = ", ".join(SHORT_NAMES)
        raise ParameterError(f'there is no stage "{stage}"; there are {", ".join(known)}, in short {short}')
    rows = []
    for path in sorted(runs_dir().glob("*/*/run.json")):
        if not path.parts[-3].startswith(stage) or (run := load_folder(path.parent)) is None:
            continue
        headline = next((name for name in HEADLINES if name in run.metrics), "")
        rows.append(
            {name: getattr(run, name) for name in ("stage", "key", "title", "finished", "seconds")}
            | {"metric": f"{headline.removeprefix('val_')} {run.metrics[headline]:.3f}" if headline else ""}
        )
    columns = ["stage", "key", "title", "finished", "seconds", "metric"]
    return pd.DataFrame(rows, columns=columns).sort_values("finished", ignore_index=True)


def find_run(key: str) -> Run:
    """The finished run whose key starts so.

    Raises:
        DataError: none has, or several.
    """
    folders = [path.parent for path in sorted(runs_dir().glob("*/*/run.json")) if path.parent.name.startswith(key)]
    runs = [run for folder in folders if key and (run := load_folder(folder)) is not None]
    if len(runs) != 1:
        several = f"these do: {', '.join(run.key for run in runs)}"
        raise DataError(
            f'no single finished run has a key that starts with "{key}"; '
            f"{several if runs else '`medkd runs list` shows which there are'}"
        )
    return runs[0]


def compared(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Settings that differ between runs, and their metrics: one row each, one column per run."""
    return tuple(
        _side_by_side(runs, [getattr(run, name) for run in runs], only_different=name == "config")
        for name in ("config", "metrics")
    )


def leftovers(keep_days: float = 0.0, now: float = 0.0) -> list[Leftover]:
    """Folders that no report and no other run that is kept refers to, and unfinished ones that nobody works on.

    While a training runs, every finished run stays: what it stands on is noted at its end only.

    Args:
        keep_days: leave what was changed in so many days.
        now: present time in seconds since 1970; only with `keep_days`.

    Raises:
        DataError: a report or study is running.
    """
    if busy := [folder.name for folder in sorted(reports_dir().glob("*")) if _is_locked(folder)]:
        raise DataError(
            f"{', '.join(busy)} is running, and which runs it needs is known at its end only; wait for it, or stop it"
        )
    needed, training = with_upstream(_keys_in_reports()), bool(worked_on())
    found = []
    for folder in sorted(path for path in runs_dir().glob("*/*") if path.is_dir()):
        finished = (folder / "run.json").is_file()
        if (finished and (training or folder.name in needed)) or _is_locked(folder):
            continue
        if keep_days and now - folder.stat().st_mtime < keep_days * 86400:
            continue
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(Leftover(folder, n_bytes, "no report refers to it" if finished else UNFINISHED))
    return found


def worked_on() -> list[Path]:
    """Folders of runs that are being made at this moment."""
    return [folder for folder in sorted(runs_dir().glob("*/*")) if _is_locked(folder)]


def remove(items: Sequence[Leftover]) -> list[Leftover]:
    """Delete these folders, the small file that makes a run valid first, so that a kill leaves no half run.

    Returns:
        What was removed: a folder that a process works on by now, that was finished since it was listed, or that a
        report needs by now, stays.

    Raises:
        DataError: a report or study is running by now.
    """
    removed, free = [], {item.folder for item in leftovers()}
    for item in [item for item in items if item.folder in free]:
        try:
            with locked(item.folder / ".lock", wait=False):
                if item.reason == UNFINISHED and (item.folder / "run.json").is_file():
                    continue
                (item.folder / "run.json").unlink(missing_ok=True)
                gone = item.folder.rename(item.folder.with_name(f".{item.folder.name}.gone"))
                shutil.rmtree(gone)  # under a name that no process looks for; after a kill it is listed again
                removed.append(item)
        except (BlockingIOError, FileNotFoundError):  # the latter: another process has removed it
            continue
    return removed


def _keys_in_reports() -> Iterator[str]:
    """Keys of runs that any report's index names, also of one behind a link.

    Raises:
        DataError: an index, or a folder that may hold one, cannot be read, so that what it names is not known.
    """
    for path in _indexes():
        try:
            yield from json.loads(path.read_text())["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged, so which runs that report needs is not known; run its notebook again, or remove "
                "the report's folder"
            ) from error


def _indexes() -> Iterator[Path]:
    """Index files of all reports and studies, also behind links.

    Raises:
        DataError: a folder cannot be read, or a report's link leads nowhere.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}), so which runs the reports in it need is not known; "
            "give it read permission"
        ) from error

    for folder, subfolders, files in walk_once(reports_dir(), refuse if reports_dir().is_dir() else None):
        if folder == reports_dir():
            subfolders[:] = [name for name in subfolders if name != runs_dir().name]
            if lost := [name for name in files if not name.startswith(".") and not (folder / name).exists()]:
                raise DataError(
                    f"{folder / lost[0]} is a link to a folder that is not there now, so which runs that report needs "
                    "is not known; bring its disk back, or remove the link"
                )
        if folder.name == "index":
            yield from (folder / name for name in sorted(files) if name.endswith(".json"))


def _is_locked(folder: Path) -> bool:
    """Whether a process works on the unit at this moment."""
    lock = folder / ".lock"
    if not lock.exists():
        return False
    try:
        with locked(lock, wait=False):
            return False
    except BlockingIOError:
        return True


def _side_by_side(runs: Sequence[Run], values: Sequence[Any], *, only_different: bool) -> pd.DataFrame:
    names = list(dict.fromkeys(name for each in values for name in each))
    if only_different:  # by value: rounded they may look alike
        names = [name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in values}) > 1]
    rows = [
        {"name": name}
        | {run.key: _told(each.get(name), exact=only_different) for run, each in zip(runs, values, strict=True)}
        for name in names
    ]
    return pd.DataFrame(rows, columns=["name", *(run.key for run in runs)])


def _told(value: Any, *, exact: bool) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) and not exact else json.dumps(value)
