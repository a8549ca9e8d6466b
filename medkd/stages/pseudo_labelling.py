"""Stage 05: a few-shot classifier on the rare classes labels every common image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import nn

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask, draw_task
from medkd.errors import DataError, first_few
from medkd.evaluation.pseudo_labels import label_tasks
from medkd.files import write_json, write_table
from medkd.models.device import autocast
from medkd.seeds import generator_for
from medkd.stages.context import Context
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.paired import tensor_rows
from medkd.stages.params import shared, unkeyed
from medkd.stages.rare import RareParams, images_of, trained_encoder
from medkd.stages.store import Run, Unit, load_or_make

VERSION = 3
N_VIEWS = 5
"""Views of each support image with support_views = "aug5", as in the released code."""


class PseudoLabelParams(RareParams):
    """Parameters of the labelling stage."""

    stage: ClassVar[str] = "05_pseudo_labelling"
    upstream: ClassVar[dict] = {"moco": MocoParams}

    k_shots: list[int] = unkeyed(
        [1, 3, 5],
        "labelled images per rare class (K), one set of tasks each (paper: 1, 3, 5; also 10, 20)",
        min_length=1,
    )
    n_tasks: int = unkeyed(2, "random tasks for each K", ge=1)
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    classifier: Literal["lr", "ridge", "centroid"] = Field(
        "lr", description='teacher on the support set: "lr" (logistic regression), "ridge" or "centroid"'
    )
    C: float = Field(1.0, description="inverse L2 strength of lr and ridge", gt=0)
    normalize: Literal["none", "l2"] = Field("none", description='"l2" gives features unit length before the teacher')
    support_views: Literal["plain", "aug5"] = Field(
        "plain", description='"plain", or "aug5": five augmented views of every support image (released code)'
    )
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; views of support images must have the size that the URL encoder reads."""
        params = super().checked(values)
        if params.support_views == "aug5":
            params.refuse_other("moco", "image_size", "support views are made at the size that the features are of")
        return params


def label(params: PseudoLabelParams) -> dict[tuple[int, int], Run]:
    """The finished labellings by (k_shot, task); the URL run is loaded or trained first."""
    context = Context.of(params, "rare")
    refuse_tasks(context)
    url = pretrain(params.of("moco"))
    return {
        (k_shot, task): label_run(context, url, k_shot, task)
        for k_shot in params.k_shots
        for task in range(params.n_tasks)
    }


def label_run(context: Context, url: Run, k_shot: int, task: int) -> Run:
    """Pseudo-labels of every common image, from one task's support set.

    Raises:
        DataError: a rare class has too few images for K, see `medkd.data.episodes.draw_task`.
    """
    params, cohort = context.params, context.cohort
    drawn = drawn_task(context, k_shot, task)
    unit = Unit(
        params.stage,
        VERSION,
        params.config() | {"k_shot": k_shot, "task": task},
        cohort.fingerprint,
        [url],
        f"pseudo-labels K={k_shot}, task {task}",
    )
    return load_or_make(unit, lambda folder: _label(context, url, drawn, folder))


def drawn_task(context: Context, k_shot: int, task: int) -> FewShotTask:
    """The task that the stage's seed and settings draw."""
    params = context.params
    return draw_task(context.cohort, k_shot=k_shot, task=task, seed=params.seed, by_lesion=params.by_lesion)


def refuse_tasks(context: Context) -> None:
    """Draw every task once: what cannot be drawn is told before anything is trained.

    Raises: see `medkd.data.episodes.draw_task`.
    """
    for k_shot in context.params.k_shots:
        for task in range(context.params.n_tasks):
            drawn_task(context, k_shot, task)


def task_of(run: Run) -> FewShotTask:
    """The task that a labelling (or what was made from it) belongs to."""
    return FewShotTask.from_json(json.loads((run.folder / "task.json").read_text()))


def read_labels(cohort: Cohort, run: Run, expected: FewShotTask) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the common images and their soft labels, shapes (n,) and (n, n_way), checked against cohort and task.

    Args:
        cohort: whose common images were labelled; the order of its table does not matter.
        run: a labelling.
        expected: the task that the labels must come from.

    Raises:
        DataError: the labels belong to another task, have other classes, name images that are not in the cohort or
            not common, leave a common image out, or do not sum to 1.
    """
    found, where = task_of(run), run.folder / "pseudo_labels.csv"
    if found != expected:
        raise DataError(
            f"{where} holds pseudo-labels of task {found.name} (seed {found.seed}), but task {expected.name} "
            f"(seed {expected.seed}) is asked for; run 05_pseudo_labelling with the same k_shots, seed and by_lesion"
        )
    frame = run.table("pseudo_labels")
    columns = [f"p_{name}" for name in expected.classes]
    others = [column for column in frame if column.startswith("p_") and column not in columns]
    if others or not {"id", "task", *columns} <= set(frame):
        raise DataError(
            f"{where} must have the columns id, task, {', '.join(columns)}; it has {', '.join(frame.columns)}: "
            "run 05_pseudo_labelling on this cohort"
        )
    if strange := sorted(set(frame["task"]) - {expected.name}):
        raise DataError(
            f"{where} holds pseudo-labels of task {first_few(strange)}, but task {expected.name} is asked for; "
            "run 05_pseudo_labelling again"
        )
    rows, base = rows_by_id(cohort, frame["id"], where), cohort.base_rows()
    if absent := np.setdiff1d(base, rows).tolist():
        raise DataError(
            f"{where} has no label for {len(absent)} common images of {cohort.name}, "
            f"{first_few(cohort.table['id'].iloc[absent].tolist())}; run 05_pseudo_labelling again"
        )
    soft = frame[columns].to_numpy(np.float64)
    if len(rows) != len(base) or not np.allclose(soft.sum(axis=1), 1, atol=1e-4):
        raise DataError(
            f"{where} must hold each common image once with probabilities that sum to 1; run 05_pseudo_labelling again"
        )
    return rows, soft


def url_features(cohort: Cohort, url: Run) -> np.ndarray:
    """Features of every image of the cohort in the order of its table, shape (n, d), from a URL run.

    Raises:
        DataError: if the run has no features of some images.
    """
    ids = url.table("ids")["id"]
    features = url.tensors("features")["features"].numpy()
    rows = pd.Series(np.arange(len(ids)), index=ids.to_numpy())
    missing = ~cohort.table["id"].isin(rows.index)
    if missing.any():
        raise DataError(
            f"the URL run {url.key} has no features of {missing.sum()} images of {cohort.name}, "
            f"for example {cohort.table['id'][missing].iloc[0]}; run 04_moco_url on this cohort"
        )
    return features[rows.loc[cohort.table["id"]].to_numpy()]


def rows_by_id(cohort: Cohort, ids: Sequence[str], where: object = "the list") -> np.ndarray:
    """Row numbers of these image ids, in their order.

    Raises:
        DataError: if an id is not in the cohort; `where` says what named it.
    """
    ids = list(ids)
    rows = pd.Series(np.arange(len(cohort)), index=cohort.table["id"].to_numpy())
    if unknown := [name for name in ids if name not in rows.index]:
        raise DataError(
            f"{where} names {len(unknown)} images that are not in {cohort.name}: {first_few(unknown)}; "
            "use what was made from this cohort, with the same root"
        )
    return rows.loc[ids].to_numpy()


def support_of(
    context: Context, features: np.ndarray, drawn: FewShotTask, encoder: nn.Module | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Support features and their classes: cached plain ones, or those of `N_VIEWS` augmented views of each image.

    Args:
        context: of the labelling stage; its `support_views` decides.
        features: of every image of the cohort, shape (n, d).
        drawn: the task.
        encoder: what made `features`, in eval mode; needed for augmented views only.
    """
    rows, labels = rows_by_id(context.cohort, drawn.support_ids, f"task {drawn.name}"), drawn.support_labels
    if context.params.support_views == "plain":
        return features[rows], labels
    repeated = tensor_rows(np.tile(rows, N_VIEWS))
    generator = generator_for(context.params.seed, "support views", drawn.task)
    views = images_of(context).augmented(repeated, generator)
    with torch.inference_mode(), autocast(context.device, context.params.precision):
        return encoder(views).float().cpu().numpy(), np.tile(labels, N_VIEWS)


def classify(
    context: Context, features: np.ndarray, tasks: Mapping[Any, FewShotTask], rows: np.ndarray, encoder: Any = None
) -> dict[Any, np.ndarray]:
    """Soft labels of `rows` by the teacher of each task, as the labelling stage's parameters want it.

    Args: as `support_of`; `tasks` must have the same classes, `rows` are row numbers of the cohort.
    """
    params = context.params
    supports = {key: support_of(context, features, drawn, encoder) for key, drawn in tasks.items()}
    options = {"classifier": params.classifier, "normalize": params.normalize, "C": params.C}
    return label_tasks(supports, features[rows], n_way=len(context.cohort.rare_classes), **options)


def _label(context: Context, url: Run, drawn: FewShotTask, folder: Path) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    encoder = trained_encoder(context, url, params.of("moco")) if params.support_views == "aug5" else None
    base = cohort.base_rows()
    soft = classify(context, url_features(cohort, url), {0: drawn}, base, encoder)[0]
    frame = cohort.table.iloc[base][["id", "class"]].reset_index(drop=True).assign(task=drawn.name)
    for index, name in enumerate(drawn.classes):
        frame[f"p_{name}"] = soft[:, index]
    write_json(folder / "task.json", drawn.to_json())
    write_table(folder / "pseudo_labels.csv", frame)
    share = np.bincount(soft.argmax(axis=1), minlength=len(drawn.classes)) / len(soft)
    return {
        "share": dict(zip(drawn.classes, share.round(6).tolist(), strict=True)),
        "mean_confidence": float(soft.max(axis=1).mean()),
        "n_labelled": len(soft),
    }
