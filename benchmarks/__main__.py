"""Run the benchmarks, print one table, and write it to benchmarks/results/.

python -m benchmarks                    all of it
python -m benchmarks --quick            in under three minutes, nothing is written
python -m benchmarks --only input moco  some topics, nothing is written
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.harness import Row, Scale, table
from medkd.files import write_json

TOPICS = (
    "input",
    "moco",
    "distillation",
    "contrast",
    "lowrank",
    "pseudo_labels",
    "evaluation",
    "fixed",
    "memory",
    "growth",
    "gpu",
)
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None, scale: Scale | None = None) -> int:
    """Run what the command line asks for, or at another `scale`; exit status 1 if a benchmark could not be run."""
    asked = _parser().parse_args(arguments)
    scale = scale or Scale("quick" if asked.quick else "full", with_report=asked.with_report)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows: list[Row] = []
    failed, before, started = [], os.getloadavg(), time.time()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDKD_HOME"] = tempfile.tempdir = scratch  # what the benchmarks leave goes with it
        for topic in asked.only or TOPICS:
            start = time.perf_counter()
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                    rows += importlib.import_module(f"benchmarks.bench_{topic}").run(scale)
            except Exception as error:  # one topic that fails must not cost the others
                failed.append(topic)
                rows.append(Row(topic, "could not be run", None, note=f"{type(error).__name__}: {error}"))
            print(f"{topic}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    tempfile.tempdir = None
    here = machine.describe()
    print(table(rows))
    print(", ".join(f"{name} {value}" for name, value in here.items() if value))
    target = Path(asked.output) if asked.output else RESULTS / machine.file_name(here)
    if asked.output or not (asked.quick or asked.only):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            target,
            {
                "machine": here,
                "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(started)),
                "minutes": round((time.time() - started) / 60, 1),
                "load_before": before,
                "load_after": os.getloadavg(),
                "size": scale.size,
                "rows": [row.as_dict() for row in rows],
            },
        )
        print(f"written: {os.path.relpath(target)}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less data and fewer repeats; nothing is written")
    parser.add_argument("--only", nargs="+", choices=TOPICS, metavar="TOPIC", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 1 is steadier on a busy machine")
    parser.add_argument("--with-report", action="store_true", help="run the whole quick report too, for its memory")
    parser.add_argument("--output", default="", help="JSON file to write, also of a part")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
