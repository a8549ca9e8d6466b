"""What `medkd batch` wrote of a study: its record, and the evaluation that each of its cells ended in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medkd.data.registry import cohort_names
from medkd.errors import DataError
from medkd.files import key_of
from medkd.paths import reports_dir, runs_dir
from medkd.report.entry import read_state
from medkd.report.index import index_file, load_index
from medkd.report.pooling import Evaluated
from medkd.stages.store import load_folder
from medkd.text import word

EVALUATION = "07_evaluation"
REPLICATE = "seed"
"""What is varied to see the spread; cells that differ in it alone are one condition."""


def read_record(folder: Path) -> dict[str, Any]:
    """What `medkd batch` wrote of a study: name, study, cells.

    Raises:
        DataError: there is none.
    """
    try:
        record = json.loads((folder / "study.json").read_text())
        if lacking := {"name", "study", "cells"} - set(record):
            raise ValueError(f"it has no {min(lacking)}")
        return record
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{folder / 'study.json'} is damaged ({error}); run `medkd batch` with its file again"
        ) from None
    except FileNotFoundError:
        studies = sorted(path.parent.name for path in reports_dir().glob("*/study.json"))
        known = f"there are {', '.join(studies)}" if studies else "there are none yet"
        meant = f"; of the cohort: `medkd report --dataset {folder.name}`" if folder.name in cohort_names() else ""
        raise DataError(
            f"there is no study {folder.name} in {folder.parent} ({known}); run `medkd batch` with its file "
            f"first{meant}"
        ) from None


def digest_of_record(record: Mapping[str, Any]) -> str:
    """Changes when a study's file, its notebooks, or how far they are, change."""
    nodes = [[each[name] for name in ("node", "state")] for cell in record["cells"] for each in cell["notebooks"]]
    return key_of([record["study"], [cell["name"] for cell in record["cells"]], nodes])


def evaluation_of(folder: Path, cell: Mapping[str, Any], names: Iterable[str] = (), seed: Any = "") -> Evaluated | None:
    """The cell's evaluation, None if it is not finished.

    Args:
        folder: of the study.
        cell: of its record.
        names: parameters that any cell sets; of "teacher.epochs" the condition tells "epochs", if no other ends so.
        seed: of the study, which a cell has that sets none.

    Raises:
        DataError: it is finished, and its run is gone, or its notebook was run by hand since.
    """
    last = cell["notebooks"][-1]
    if last["state"] != "finished" or last["notebook"] != EVALUATION:
        return None
    stage = f"{EVALUATION}.{cell['dataset']}"
    if read_state(folder / last["folder"], stage).get("key") != last["node"]:
        raise DataError(
            f"{EVALUATION} of cell {cell['name']} was run by hand since the study ran it; run `medkd batch` with the "
            "study's file again"
        )
    runs = load_index(index_file(folder / last["folder"], stage)).get("runs", [])
    run = load_folder(runs_dir() / EVALUATION / runs[0]) if len(runs) == 1 else None
    if run is None:
        key = " ".join(runs)
        raise DataError(f"run {key} of cell {cell['name']} is gone from the run store; run `medkd batch` again")
    varied = {name: value for name, value in cell["parameters"].items() if name != REPLICATE}
    ends = Counter(name.rpartition(".")[2] for name in {*names, *varied})
    short = {name: end if ends[end := name.rpartition(".")[2]] == 1 else name for name in varied}
    told = ", ".join(f"{short[name]}={word(value)}" for name, value in varied.items())
    condition = cell.get("title") or told
    replicate = cell["parameters"].get(REPLICATE, seed if REPLICATE in names else "")
    return Evaluated(cell["name"], condition, str(replicate), run)
