"""Requests to stop a training after the present step: a signal, or a button."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medkd.errors import MedkdError
from medkd.signals import handled

TERMINATED = 143
"""Exit status after SIGTERM: 128 + 15."""
GO_ON = "a checkpoint is kept, run the same cell or command again to go on"

_requested = threading.Event()


class Stopped(MedkdError):
    """A training was asked to stop, and left a checkpoint to go on from."""


def request_stop() -> None:
    """Ask the training that runs in this process to stop after its present step; it keeps a checkpoint.

    Between two trainings it is the next one that stops.
    """
    _requested.set()


def forget_request() -> None:
    """Take back what `request_stop` asked for, if no training has obeyed yet."""
    _requested.clear()


class StopRequests:
    """What was asked for while a training runs.

    Attributes:
        signal: SIGINT or SIGTERM once one came, else 0.
    """

    signal: int = 0

    @property
    def any(self) -> bool:
        """Whether anything was asked for."""
        return bool(self.signal) or _requested.is_set()

    def obey(self, where: str) -> None:
        """End the training in the way that was asked for; a checkpoint must have been written.

        Raises:
            SystemExit: after SIGTERM, with status 143.
            KeyboardInterrupt: after SIGINT.
            Stopped: after `request_stop`.
        """
        forget_request()
        if self.signal == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        if self.signal:
            interrupted = KeyboardInterrupt(f"{where}; {GO_ON}")
            interrupted._render_traceback_ = lambda: [f"KeyboardInterrupt: {interrupted}"]  # all that IPython shows
            raise interrupted
        raise Stopped(f"{where}: stopped as asked; {GO_ON}")


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Collect requests instead of being torn out of a step; a second SIGINT interrupts at once.

    Signals are caught in the main thread only, the one that Python lets do it.
    """
    requests = StopRequests()

    def note(number: int, _: Any) -> None:
        if requests.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.signal = number

    with handled(note, signal.SIGINT, signal.SIGTERM):
        yield requests
