"""How every benchmark measures: calls in turn, medians after a warm-up, ratios with their spread; rows of one table."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SIZES = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Scale:
    """How large the benchmarks are.

    Attributes:
        size: "full", "quick" (a few repeats on less data) or "tiny" (to see that a benchmark runs; times mean nothing).
        peers: False measures as if no other package was installed.
        with_report: also run the whole quick report, for its memory.
    """

    size: str = "full"
    peers: bool = True
    with_report: bool = False

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The value for this size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]

    @property
    def repeats(self) -> int:
        """Repeats of a call that takes up to about a second."""
        return self.pick(9, 5, 1)

    def has(self, package: str) -> bool:
        """Whether the peer `package` can be measured."""
        return self.peers and importlib.util.find_spec(package) is not None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        item: what it belongs to, such as "1 input".
        what: what was measured, and against what.
        value: the number, None where it could not be measured (`note` tells why).
        unit: "x" for ratios, else "s", "%", "GB", ...
        low, high: quartiles of the value over the repeats.
        at_least, at_most: the target; both None where there is none.
        medians: what was compared, name -> median (seconds, unless the name says otherwise).
        note: what a reader must know.
    """

    item: str
    what: str
    value: float | None
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    medians: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None without a target or a value."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every attribute and `met`."""
        return asdict(self) | {"medians": dict(self.medians), "met": self.met}


def alternate(calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each repeat; all calls are made in turn, in reverse order every other time.

    What else the machine does then slows all of them alike, and no call always comes first.

    Args:
        calls: name -> what is timed.
        repeats: rounds that count.
        warm_up: rounds before them that do not.

    Returns:
        Name -> `repeats` durations, seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + repeats):
        for name in list(calls) if number % 2 == 0 else reversed(list(calls)):
            _wait_for_device()
            start = time.perf_counter()
            calls[name]()
            _wait_for_device()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def repeat_for(
    calls: Mapping[str, Callable[[], Any]], repeats: int, least_seconds: float = 0.05
) -> dict[str, list[float]]:
    """As `alternate` for calls that are too short to time: each is made often enough to last `least_seconds`.

    Returns:
        Name -> seconds of one call, one a repeat.
    """
    once = {name: max(min(taken), 1e-7) for name, taken in alternate(calls, 2).items()}
    often = {name: max(1, math.ceil(least_seconds / seconds)) for name, seconds in once.items()}
    found = alternate({name: _many(call, often[name]) for name, call in calls.items()}, repeats, warm_up=0)
    return {name: [second / often[name] for second in seconds] for name, seconds in found.items()}


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of repeats as `value`, `low` and `high` of a `Row`."""
    values = sorted(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"value": statistics.median(values), "low": low, "high": high}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of over / under, repeat by repeat, as `spread`: load that comes and goes hits both."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def seed_everything() -> torch.Generator:
    """Seed torch's global generator, and a generator of the benchmark's own data."""
    torch.manual_seed(0)
    return torch.Generator().manual_seed(0)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one per line, aligned."""
    head = ("item", "measured", "value", "quartiles", "target", "met", "medians")
    lines = [head] + [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    value = "-" if row.value is None else f"{_short(row.value)} {row.unit}"
    quartiles = "" if row.low is None or row.high is None else f"{_short(row.low)} to {_short(row.high)}"
    target = " ".join(
        f"{sign} {_short(limit)}" for sign, limit in ((">=", row.at_least), ("<=", row.at_most)) if limit is not None
    )
    met = {True: "yes", False: "NO", None: ""}[row.met]
    compared = ", ".join(f"{name} {_seconds(name, value)}" for name, value in row.medians.items())
    return row.item, row.what, value, quartiles, target, met, "; ".join(filter(None, (compared, row.note)))


def _seconds(name: str, value: float) -> str:
    """A median for the table: seconds with a fitting unit, unless the name ends in a unit of its own."""
    if name.endswith(("/s", "GB", "%")):
        return _short(value)
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{_short(value * factor)} {unit}"
    return f"{_short(value * 1e6)} us"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _many(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
