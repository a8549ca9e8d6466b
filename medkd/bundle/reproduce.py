"""Run the study of this bundle again, and compare its tables with those that came with it.

    python3 reproduce.py [--root COHORT=FOLDER ...] [--python PROGRAM] [--workers N] [--tolerance 0.02]

Needs Python 3.11 or newer, `make` and a package index, and nothing from elsewhere but the cohort's files where they are
real (--root). With --python it takes an environment that is there. Exit status: 0 the same within the tolerance, 1 not,
2 bad input, or a study that could not be run.

The same code on the same processor with as many threads gives the same digits. Another number of threads (which follows
from --workers, see `medkd batch`) or another processor sums in another order: small differences that training enlarges.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
FOLLOWS = ("mark", "wins", "losses", "p_value")
"""Columns that are not compared: they jump where a number that is compared moves a little."""


def main() -> int:
    """Set up, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", action="append", default=[], metavar="COHORT=FOLDER", help="where a cohort lies")
    parser.add_argument("--python", default="", help="Python of an environment with medkd's packages")
    parser.add_argument("--workers", type=int, default=0, help="notebooks at once, as in the original run")
    parser.add_argument("--tolerance", type=float, default=0.02, help="largest difference of a number that is let pass")
    parser.add_argument("--compare-only", metavar="FOLDER", default="", help="compare with the report in this folder")
    options = parser.parse_args()
    for root in options.root:
        name, _, folder = root.partition("=")
        if not name or not Path(folder).is_dir() or not folder:
            parser.error(f"--root {root}: write the name of a cohort, = and a folder that is there")
        known = re.findall(r"dataset: (\S+)", (HERE / "study.yaml").read_text(encoding="utf-8"))
        if name not in known:
            parser.error(f"--root {root}: the study has no cohort {name}; it has {', '.join(known)}")
        if (place := HERE / "data" / name).exists() and not place.is_symlink():
            parser.error(f"--root {root}: {place} is there already; leave --root out to read it, or move it away")
    try:
        made = Path(options.compare_only or run_study(options.root, options.python, options.workers))
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))} ended with status {error.returncode}", file=sys.stderr)
        return 2
    return compare(HERE / "report" / "tables", made / "tables", options.tolerance)


def run_study(roots: list[str], python: str, workers: int) -> Path:
    """Run the study with the code of this bundle; the folder of its report."""
    code = HERE / "code"
    if not python:
        subprocess.run(["make", "-C", str(code), ".venv/.ready"], check=True)
        python = str(code / ".venv" / "bin" / "python")
    for name, folder in (root.split("=", 1) for root in roots):
        link = HERE / "data" / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(folder).resolve())
    environment = os.environ | {"MEDKD_HOME": str(code), "PYTHONPATH": str(code)}
    name = (HERE / "name.txt").read_text().strip()
    for command in (["batch", str(HERE / "study.yaml"), "--workers", str(workers)], ["report", name]):
        subprocess.run([python, "-m", "medkd", *command], check=True, env=environment, cwd=HERE)
    return code / "reports" / name


def compare(expected: Path, found: Path, tolerance: float) -> int:
    """Print each table's largest difference; 1 if one is missing, differs by more or in shape, or none is there."""
    failed, tables = 0, sorted(expected.glob("*.csv"))
    if not tables:
        print(f"DIFFERS  {expected} holds no tables to compare with; unpack the bundle again")
        return 1
    for path in tables:
        other = found / path.name
        said = _difference(path, other) if other.is_file() else "is missing"
        bad = isinstance(said, str) or not said <= tolerance
        failed |= bad
        told = said if isinstance(said, str) else f"largest difference {said:.2g}"
        print(f"{'DIFFERS' if bad else 'same   '}  {path.name}: {told}")
    return int(failed)


def _difference(path: Path, other: Path) -> float | str:
    """The largest difference of two numbers in the same place, or what else is not the same."""
    first, second = ([row for row in csv.reader(each.open(encoding="utf-8"))] for each in (path, other))
    if [len(row) for row in first] != [len(row) for row in second]:
        return "has other rows or columns"
    largest = 0.0
    for row, twin in zip(first, second, strict=True):
        for name, mine, its in zip(first[0], row, twin, strict=True):
            if mine == its or (name in FOLLOWS and row is not first[0]):
                continue
            if (gap := _gap(mine, its)) is None:
                return f'has "{its}" in place of "{mine}"'
            largest = max(largest, gap)
    return largest


def _gap(mine: str, its: str) -> float | None:
    """The largest difference of the numbers in two texts; None where other things differ, or a value is nan."""
    words, others = (NUMBER.split(text) for text in (mine, its))
    if words != others:
        return None
    numbers = (map(float, NUMBER.findall(text)) for text in (mine, its))
    return max((abs(a - b) for a, b in zip(*numbers, strict=True)), default=None)


if __name__ == "__main__":
    sys.exit(main())
