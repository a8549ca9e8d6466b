"""How far a study is: on the terminal, and in `study.json`."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medkd.batch.node import BEGUN, ENDED
from medkd.batch.study import Cell, Node, Study
from medkd.errors import DataError
from medkd.files import write_json
from medkd.paths import reports_dir
from medkd.report.entry import code_digest, read_state
from medkd.text import duration

OPEN = ("waiting", "running")
SAY_EVERY = 300.0
"""Seconds between lines that a log gets while notebooks run; a terminal has them at once."""


class Board:
    """States of a study's notebooks: waiting, running, finished, failed or skipped.

    Args:
        study: that is run.
        cells: of the study.
        nodes: notebooks by key.
        of_cell: cell -> keys of its notebooks in order.
        waiting: keys of what is to be run; the others are finished.
        say: where lines go when stderr is no terminal.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        nodes: Mapping[str, Node],
        of_cell: Mapping[str, list[str]],
        *,
        waiting: Sequence[str],
        say: Callable[[str], Any] = print,
    ) -> None:
        self.study, self.cells, self.nodes, self.of_cell, self.say = study, cells, nodes, of_cell, say
        self.states = {
            key: {"state": "waiting"} if key in set(waiting) else self._finished(node) for key, node in nodes.items()
        }
        self.n_workers = 1
        self.live = sys.stderr.isatty()
        self._said = 0.0
        self._at_work: set[str] = set()
        self._lock = threading.Lock()  # Dask calls `heard` from a thread of its own

    def heard(self, node: str, status: str) -> None:
        """A worker has begun a notebook, tells where it stands, or has ended it (what came of it, `ended` is told)."""
        with self._lock:
            if self.states.get(node, {}).get("state") not in OPEN:
                return
            if status == ENDED:
                self._at_work.discard(node)
            elif status == BEGUN:
                self._at_work.add(node)
                self.states[node] = {"state": "running"}
                self._show(f"{self._where(node)}: running")
                self.save()
            elif self.live or time.monotonic() - self._said >= SAY_EVERY:
                self._show(f"{self._where(node)}: {status}")

    def wait_for_stops(self, seconds: float) -> None:
        """Wait until the workers have ended all notebooks that they had begun, for so long at most."""
        deadline = time.monotonic() + seconds
        while self._at_work and time.monotonic() < deadline:
            time.sleep(0.1)

    def ended(self, key: str, result: Mapping[str, Any]) -> None:
        """A notebook has ended, with state, error and seconds."""
        with self._lock:
            self._at_work.discard(key)
            self.states[key] = dict(result)
            text = f"{self._where(key)}: {result['state']}"
            text += f" in {duration(result['seconds'])}" if result["state"] == "finished" else f" ({result['error']})"
            self._show(text)
            self.save()

    def close(self) -> list[str]:
        """End the line on the terminal; returns the cells that did not finish."""
        if self.live:
            print(file=sys.stderr)
        with self._lock:
            for state in self.states.values():
                if state["state"] == "running":  # it was stopped
                    state["state"] = "waiting"
            self.save()
        return [name for name in self.of_cell if self.cell_state(name) != "finished"]

    def cell_state(self, name: str) -> str:
        """State of a cell: that of its notebooks, the worst first."""
        states = {self.states[key]["state"] for key in self.of_cell[name]}
        for state in ("failed", "skipped", "running"):
            if state in states:
                return state if state != "skipped" else "failed"
        return "finished" if states == {"finished"} else "waiting" if states == {"waiting"} else "running"

    def summary(self) -> str:
        """Cells done, running, failed and left, and the time that is left, in one line."""
        counts = dict.fromkeys(("finished", "running", "failed", "waiting"), 0)
        for name in self.of_cell:
            counts[self.cell_state(name)] += 1
        text = f"{counts['finished']} of {len(self.of_cell)} cells finished, {counts['running']} running"
        text += f", {counts['failed']} failed" if counts["failed"] else ""
        left = self.seconds_left()
        return text + (f", about {duration(left)} left" if left else "")

    def seconds_left(self) -> float:
        """Estimate from the notebooks that finished, by the median of the same one; 0 where one never finished yet."""
        times: dict[str, list[float]] = {}
        for key, state in self.states.items():
            if state["state"] == "finished" and state.get("seconds"):
                times.setdefault(self.nodes[key].entry.notebook, []).append(state["seconds"])
        waiting = [self.nodes[key].entry.notebook for key, state in self.states.items() if state["state"] in OPEN]
        if not set(waiting) <= set(times):
            return 0.0
        each = [statistics.median(times[notebook]) for notebook in waiting]
        return sum(each) / max(1, min(self.n_workers, len(each)))

    def save(self) -> None:
        """Write `study.json`, from which `medkd report` knows what there is.

        Raises:
            DataError: it cannot be written.
        """
        cells = [
            {
                "name": cell.name,
                "dataset": cell.dataset,
                "title": cell.title,
                "parameters": cell.parameters,
                "state": self.cell_state(cell.name),
                "notebooks": [self._notebook(key) for key in self.of_cell[cell.name]],
            }
            for cell in self.cells
        ]
        record = {"name": self.study.name, "study": self.study.model_dump(), "code": code_digest(), "cells": cells}
        path = reports_dir() / self.study.name / "study.json"
        try:
            write_json(path, record)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror}); make room or give write permission, then run the same "
                "command again"
            ) from error

    def _notebook(self, key: str) -> dict[str, Any]:
        node, state = self.nodes[key], self.states[key]
        known = {"notebook": node.entry.notebook, "node": key, "folder": node.folder}
        return known | {name: state.get(name) for name in ("state", "seconds", "error")}

    def _finished(self, node: Node) -> dict[str, Any]:
        """State of a notebook that an earlier call finished, with the seconds it took then."""
        state = read_state(reports_dir() / self.study.name / node.folder, node.entry.name)
        return {"state": "finished", "seconds": state.get("seconds"), "error": ""}

    def _where(self, key: str) -> str:
        return f"{self.nodes[key].folder}/{self.nodes[key].entry.notebook}"

    def _show(self, event: str) -> None:
        if self.live:
            print(f"\r\033[K{self.summary()}; {event}"[:200], end="", file=sys.stderr, flush=True)
        else:
            self._said = time.monotonic()
            self.say(f"{event}; {self.summary()}")
