"""The errors a user can meet; each message is one sentence that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MedkdError(ValueError):
    """Bad input or a bad setting: names the file or parameter, what was expected and the way out."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the sentence alone."""
        return [f"{type(self).__name__}: {self}"]


class DataError(MedkdError):
    """A cohort's files are missing, unreadable or not in the layout that the reader expects."""


class ParameterError(MedkdError):
    """A stage parameter is unknown or out of range."""


class TrainingError(MedkdError):
    """Training cannot go on, for example because the loss is no longer finite."""


def first_few(names: Sequence[object], n: int = 3) -> str:
    """The first `n` names, and how many there are if that is not all, for an error message."""
    shown = ", ".join(str(name) for name in names[:n])
    return shown if len(names) <= n else f"{shown}, ... ({len(names)} in all)"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`; did you mean "x"?` with the known name that is nearest to a misspelt one, `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else otherwise
