"""Who wants to watch a training: listeners are told where it stands, a few times a second."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERVAL = 0.25  # seconds between two calls within an epoch


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        title: of the training.
        folder: of its unit.
        epoch: epochs finished.
        n_epochs: of all.
        step: steps done of the present epoch.
        n_steps: of an epoch.
        seconds: since this process started or resumed it.
        epochs_here: epochs that this process has done, in parts too; what `seconds` were spent on.
        history: one record a finished epoch; a live list, not to be changed.
    """

    title: str
    folder: Path
    epoch: int
    n_epochs: int
    step: int
    n_steps: int
    seconds: float
    epochs_here: float
    history: Sequence[Mapping[str, Any]]


Listener = Callable[[Progress], Any]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """From now on every training in this process tells the listener."""
    _listeners.append(listener)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While the block runs, every training in this process tells the listener."""
    listen(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Teller:
    """Tells the listeners, whenever it is asked to; `due` says whether it is time again."""

    def __init__(self) -> None:
        self._last = 0.0
        self._broken: set[int] = set()

    def due(self) -> bool:
        """Whether somebody listens and the last call is long enough ago."""
        return bool(_listeners) and time.monotonic() - self._last >= INTERVAL

    def tell(self, progress: Progress) -> None:
        """Call every listener; one that fails is warned of and left alone: a picture must not end a training."""
        self._last = time.monotonic()
        for listener in [each for each in _listeners if id(each) not in self._broken]:
            try:
                listener(progress)
            except Exception as error:
                self._broken.add(id(listener))
                warnings.warn(f"a listener of {progress.title} failed and is left out: {error!r}", stacklevel=2)
