"""The run store: a unit's finished result in a folder keyed by its configuration, its cohort and its upstream units."""

from __future__ import annotations

import glob
import json
import string
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medkd.errors import DataError
from medkd.files import key_of, locked_folder, write_json
from medkd.paths import runs_dir

if TYPE_CHECKING:
    from torch import Tensor


LOOK_EVERY = 5.0
"""Seconds between looks at a lock by one of several processes."""
TEXTS = ("id", "patient", "roi", "setting", "class", "method", "task", "anchor", "candidate", "shortcut", "reference")
"""Columns of tables that hold names, which may look like numbers."""


@dataclass(frozen=True)
class Run:
    """A finished unit: its folder, what made it and what came out.

    Attributes:
        folder: where its files lie.
        stage: the stage that made it. key: its name in the store.
        config: the configuration its key was made of.
        metrics: numbers of the run, JSON values.
        upstream: keys of the units it was made from.
        cohort: fingerprint of the cohort it was made on.
        seconds: wall time of the making.
        title: how progress lines called it.
        finished: local time of its end, such as "2026-01-31T12:00:00".
        made: False if it was found in the store.
    """

    folder: Path
    stage: str
    key: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    upstream: tuple[str, ...]
    cohort: str
    seconds: float
    title: str = ""
    finished: str = ""
    made: bool = field(default=False, compare=False)

    def table(self, name: str) -> pd.DataFrame:
        """The table `name`.csv of the run; names and ids stay texts, also "1", "None" and empty ones.

        Raises:
            DataError: it is not there, or cannot be read.
        """
        path = self.folder / f"{name}.csv"
        try:
            frame = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
        except (OSError, ValueError) as error:  # pandas' own CSV errors are ValueErrors
            raise self._damaged(path, error) from error
        texts = frame.select_dtypes(exclude=["number", "bool"]).columns
        return frame.fillna(dict.fromkeys(texts, ""))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name`.safetensors, on the CPU.

        Raises:
            DataError: it is not there, or cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> DataError:
        return DataError(
            f"{path.name} of the finished run {self.stage} {self.key} cannot be read ({error}); delete the folder "
            f"{self.folder}, and what needs the run makes it again"
        )


@dataclass(frozen=True)
class Unit:
    """One job of a stage, before it is run.

    Attributes:
        stage: stage name. version: raised when the stage's code changes its results.
        config: JSON values that decide the result.
        cohort: fingerprint of the cohort's content.
        upstream: finished runs it reads.
        title: how progress lines call it.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    cohort: str
    upstream: Sequence[Run] = ()
    title: str = ""

    @property
    def key(self) -> str:
        """Sixteen hex digits over everything the result depends on."""
        parts = {
            "stage": self.stage,
            "version": self.version,
            "config": dict(self.config),
            "cohort": self.cohort,
            "upstream": [run.key for run in self.upstream],
        }
        return key_of(parts)

    @property
    def folder(self) -> Path:
        """Where the result lies or will lie."""
        return runs_dir() / self.stage / self.key


def load(unit: Unit) -> Run | None:
    """The finished run of this unit, or None if there is none (an unfinished folder does not count)."""
    return load_folder(unit.folder)


def load_folder(folder: Path) -> Run | None:
    """The finished run in this folder, or None; one whose record is damaged counts as unfinished."""
    names = ("stage", "key", "config", "metrics", "upstream", "cohort", "seconds", "title", "finished")
    try:
        record = json.loads((folder / "run.json").read_text())
        found = {name: record[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return None
    return Run(folder, **(found | {"upstream": tuple(found["upstream"])}))


def with_upstream(keys: Iterable[str]) -> dict[str, Run]:
    """The finished runs with these keys and every run that they were made from, by key; those that are gone are not."""
    folders = {path.parent.name: path.parent for path in runs_dir().glob("*/*/run.json")}
    waiting, found = list(keys), {}
    while waiting:
        key = waiting.pop()
        if key in folders and key not in found and (run := load_folder(folders[key])) is not None:
            found[key] = run
            waiting += run.upstream
    return found


def missing(keys: Iterable[str]) -> set[str]:
    """Of runs with these keys, and of all that they were made from, the keys that no finished run has (any more)."""
    asked = set(keys)
    found = with_upstream(asked)
    return asked.union(*(run.upstream for run in found.values())) - found.keys()


def finished_runs(stage: str, key: str = "") -> list[Run]:
    """Finished runs of a stage whose key starts with `key`, by key."""
    folders = sorted((runs_dir() / stage).glob(f"{glob.escape(key)}*")) if set(key) <= set(string.hexdigits) else []
    return [run for folder in folders if (run := load_folder(folder)) is not None]


def load_or_make(unit: Unit, make: Callable[[Path], dict[str, Any]]) -> Run:
    """Load the unit's run, or make it: `make(folder)` writes its files and returns its metrics.

    Two processes that want the same unit do not make it twice: the second waits and loads. `make` finds in the
    folder what an interrupted attempt left (its checkpoint), and `run.json` is written last, by rename.
    """
    from medkd import parallel  # late: listing runs must not import torch
    from medkd.training.checkpoint import clear_checkpoints

    if (run := parallel.told_by_main(load(unit))) is not None:
        return run
    with ExitStack() as held:
        # of several processes that train one network the main one holds the lock and writes the record
        while not parallel.told_by_main(parallel.is_main() and _has_locked(unit.folder, held)):
            continue
        if (run := parallel.told_by_main(load(unit))) is not None:  # finished by another process while this one waited
            return run
        start = time.monotonic()
        metrics = make(unit.folder)
        seconds = round(time.monotonic() - start, 3)
        record = {
            "stage": unit.stage,
            "key": unit.key,
            "title": unit.title,
            "version": unit.version,
            "config": dict(unit.config),
            "cohort": unit.cohort,
            "upstream": [run.key for run in unit.upstream],
            "metrics": metrics,
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        parallel.barrier()
        if parallel.is_main():
            write_json(unit.folder / "run.json", record)
            clear_checkpoints(unit.folder)
            for left in unit.folder.glob(".*.part"):  # of an attempt that was killed
                left.unlink()
        parallel.barrier()
    return replace(parallel.told_by_main(load_folder(unit.folder)), made=True)


def _has_locked(folder: Path, held: ExitStack) -> bool:
    """Whether the unit's folder could be locked; waits for it, but not while other processes wait for this one.

    They would take a long silence for the end of it.
    """
    from medkd import parallel

    alone = parallel.world_size() == 1
    try:
        held.enter_context(locked_folder(folder, wait=alone))
    except BlockingIOError:
        time.sleep(LOOK_EVERY)
        return False
    return True
