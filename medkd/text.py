"""Numbers and settings as people read them; imports nothing that takes time."""

from __future__ import annotations

import json
import re
from typing import Any


def duration(seconds: float) -> str:
    """A time in the two largest of its units: "42 s", "3 min 5 s", "1 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shown(value: Any, form: str = "{:.3f}") -> str:
    """A value as a format says, with more digits where that would tell zero and the value is none: "0.0002"."""
    text = form.format(value)
    try:
        if float(text):
            return text
    except ValueError:  # no number, or one in per cent
        return text
    if not value:
        return form.format(value + 0.0)  # no -0.000
    return f"{value:+.4f}" if "+" in form and abs(value) >= 0.00005 else f"{value:.3g}"


def with_interval(value: Any, low: Any, high: Any, form: str = ".3f") -> str:
    """A value and the interval around it: "0.812 (0.755 to 0.861)"; the value alone where there is none (nan).

    Args:
        value: a number.
        low: lower bound.
        high: upper bound.
        form: format of each; one digit more where a bound would be told as zero and is not.
    """
    if low != low or high != high:
        return f"{value:{form}}"
    form = form.replace(".", "z.")  # no -0.000
    if any(bound and not float(f"{bound:{form}}") for bound in (low, high)):
        form = re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), form)
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def word(value: Any) -> str:
    """A setting as a command line takes it: lists with commas, all else that is no text as JSON."""
    if isinstance(value, (list, tuple)):
        return ",".join(word(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
