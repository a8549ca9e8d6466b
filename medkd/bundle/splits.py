"""Who was in which part of a study, by hashes of the ids: whoever has the data can check it.

The ids do not stand there, but the hashes have no secret in them: short or numbered ids can be guessed and tried out,
and then it is known that an image or patient took part, and in which part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from medkd.data.cohort import Cohort
from medkd.stages.context import Context
from medkd.stages.paired import run_folds, split_of
from medkd.stages.pseudo_labelling import task_of
from medkd.stages.store import Run, with_upstream


def hashed(cohort: str, name: str) -> str:
    """Sixteen hex digits of SHA-256 over "<cohort>:<id>"."""
    return hashlib.sha256(f"{cohort}:{name}".encode()).hexdigest()[:16]


def split_tables(cohort: Cohort, params: Any, evaluation: Run) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of every fold, or of every few-shot task, that an evaluation stands on.

    Args:
        cohort: that was split.
        params: checked parameters of the evaluation.
        evaluation: its run.

    Yields:
        Name ("fold0", "task1-k5") and table: image and group (hashes), part ("train", "val", "test", or "support",
        "query", "left out").
    """
    if cohort.rare_classes:
        for run in with_upstream(evaluation.upstream).values():
            if run.stage == "05_pseudo_labelling":
                drawn = task_of(run)
                parts = {"support": drawn.support_ids, "query": drawn.query_ids, "left out": drawn.left_out_ids}
                yield f"task{drawn.task}-k{drawn.k_shot}", _table(cohort, parts)
        return
    ids = cohort.table["id"].to_numpy()
    context = Context(params, cohort, torch.device("cpu"))
    for fold in run_folds(context):
        split = split_of(context, fold)
        yield f"fold{fold}", _table(cohort, {name: ids[getattr(split, name)] for name in ("train", "val", "test")})


def _table(cohort: Cohort, parts: dict[str, Any]) -> pd.DataFrame:
    group_of = cohort.table.set_index("id")["patient"].astype(str)
    rows = [
        {"image": hashed(cohort.name, name), "group": hashed(cohort.name, group_of[name]), "part": part}
        for part, names in parts.items()
        for name in names
    ]
    return pd.DataFrame(rows, columns=["image", "group", "part"]).sort_values(["part", "image"], ignore_index=True)
