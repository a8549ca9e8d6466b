"""Stage 05: a few-shot classifier on the rare classes labels every common image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from medkd.data.episodes import FewShotTask, draw_task
from medkd.errors import DataError
from medkd.evaluation.pseudo_labels import label_with_logistic_regression
from medkd.files import write_json, write_table
from medkd.stages.context import Context
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.params import shared
from medkd.stages.rare import RareParams
from medkd.stages.store import Run, Unit, load_or_make

VERSION = 1


class PseudoLabelParams(RareParams):
    """Parameters of the labelling stage."""

    stage: ClassVar[str] = "05_pseudo_labelling"
    upstream: ClassVar[dict] = {"moco": MocoParams}

    k_shots: list[int] = Field(
        [1, 3, 5],
        description="labelled images a rare class (K), one set of tasks each",
        json_schema_extra={"shared": True, "unkeyed": True},
    )
    n_tasks: int = Field(
        2, description="random tasks for each K", ge=1, json_schema_extra={"shared": True, "unkeyed": True}
    )
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    C: float = Field(1.0, description="inverse L2 strength of the logistic regression", gt=0)
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")


def label(params: PseudoLabelParams) -> dict[tuple[int, int], Run]:
    """The finished labellings by (k_shot, task); the URL run is loaded or trained first."""
    context = Context.of(params, "rare")
    url = pretrain(params.of("moco"))
    return {
        (k_shot, task): label_run(context, url, k_shot, task)
        for k_shot in params.k_shots
        for task in range(params.n_tasks)
    }


def label_run(context: Context, url: Run, k_shot: int, task: int) -> Run:
    """Pseudo-labels of every common image, from one task's support set."""
    params, cohort = context.params, context.cohort
    drawn = draw_task(cohort, k_shot=k_shot, task=task, seed=params.seed, by_lesion=params.by_lesion)
    unit = Unit(
        params.stage,
        VERSION,
        params.config() | {"k_shot": k_shot, "task": task},
        cohort.fingerprint,
        [url],
        f"pseudo-labels K={k_shot}, task {task}",
    )
    return load_or_make(unit, lambda folder: _label(context, url, drawn, folder))


def task_of(run: Run) -> FewShotTask:
    """The task that a labelling (or what was made from it) belongs to."""
    return FewShotTask.from_json(json.loads((run.folder / "task.json").read_text()))


def url_features(context_cohort: Any, url: Run) -> np.ndarray:
    """Features of every image of the cohort in the order of its table, shape (n, d), from the URL run."""
    ids = url.table("ids")["id"]
    features = url.tensors("features")["features"].numpy()
    rows = pd.Series(np.arange(len(ids)), index=ids.to_numpy())
    missing = ~context_cohort.table["id"].isin(rows.index)
    if missing.any():
        raise DataError(
            f"the URL run {url.key} has no features of {missing.sum()} images of {context_cohort.name}, "
            f"for example {context_cohort.table['id'][missing].iloc[0]}; run 04_moco_url on this cohort"
        )
    return features[rows.loc[context_cohort.table["id"]].to_numpy()]


def rows_by_id(cohort: Any, ids: Any) -> np.ndarray:
    """Row numbers of these image ids, in their order."""
    rows = pd.Series(np.arange(len(cohort)), index=cohort.table["id"].to_numpy())
    return rows.loc[list(ids)].to_numpy()


def _label(context: Context, url: Run, task: FewShotTask, folder: Path) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    features = url_features(cohort, url)
    support = rows_by_id(cohort, task.support_ids)
    support_labels = np.array([task.classes.index(name) for name in cohort.table["class"].to_numpy()[support]])
    base = cohort.rows_of(cohort.base_classes)
    soft = label_with_logistic_regression(
        features[support], support_labels, features[base], n_way=len(task.classes), C=params.C
    )
    frame = cohort.table.iloc[base][["id", "class"]].reset_index(drop=True)
    for index, name in enumerate(task.classes):
        frame[f"p_{name}"] = soft[:, index]
    write_json(folder / "task.json", task.to_json())
    write_table(folder / "pseudo_labels.csv", frame)
    share = np.bincount(soft.argmax(axis=1), minlength=len(task.classes)) / len(soft)
    return {
        "share": dict(zip(task.classes, share.round(6).tolist(), strict=True)),
        "mean_confidence": float(soft.max(axis=1).mean()),
        "n_labelled": len(soft),
    }
