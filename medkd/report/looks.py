"""What a notebook looks at: tables and pictures drawn from cohorts and runs, for figures to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from medkd.data.cohort import Cohort
from medkd.data.folds import split_rows
from medkd.data.views import Augment
from medkd.stages.store import Run


def class_examples(
    cohort: Cohort, name: str, size: int, n_examples: int, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Random images of every class, one class a row; the same samples for every modality of the cohort.

    Returns:
        images (n_classes * n_examples, size, size, 3) uint8, black where a class has fewer, and a title each
        (class name above the first of a row).
    """
    source = cohort.images[name].load(size)
    images, titles = [], []
    for label, title in enumerate(cohort.classes):
        rows = np.flatnonzero(cohort.labels == label)
        rows = np.random.default_rng([seed, label]).permutation(rows)[:n_examples]
        shown = np.zeros((n_examples, size, size, 3), np.uint8)
        shown[: len(rows)] = source[np.sort(rows)]
        images.append(shown)
        titles += [title] + [""] * (n_examples - 1)
    return np.concatenate(images), titles


def views_of(cohort: Cohort, name: str, size: int, augment: Augment, n_views: int = 8, seed: int = 0) -> np.ndarray:
    """One image followed by `n_views` random views of it, uint8, shape (1 + n_views, size, size, 3)."""
    row = int(np.random.default_rng(seed).integers(len(cohort)))
    image = np.ascontiguousarray(cohort.images[name].load(size)[row])
    batch = torch.from_numpy(np.repeat(image[None], n_views, axis=0))
    views = augment(batch, torch.Generator().manual_seed(seed))
    drawn = (views.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return np.concatenate([image[None], drawn])


def class_means(cohort: Cohort, name: str) -> np.ndarray:
    """Mean of each class in each column of a vector modality, in SDs from the cohort's mean, shape (n_classes, d)."""
    values = cohort.vectors[name].values
    scaled = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0).clip(1e-6)
    return np.stack([np.nanmean(scaled[cohort.labels == label], axis=0) for label in range(len(cohort.classes))])


def fold_table(cohort: Cohort, n_folds: int, seed: int) -> pd.DataFrame:
    """Samples and groups of each fold's training, validation and test split."""
    rows = []
    for fold in range(n_folds):
        split = split_rows(cohort, fold=fold, n_folds=n_folds, seed=seed)
        row: dict[str, Any] = {"fold": fold}
        for part in ("train", "val", "test"):
            members = getattr(split, part)
            row[f"{part} samples"], row[f"{part} {cohort.group}s"] = len(members), len(set(cohort.groups[members]))
        rows.append(row)
    return pd.DataFrame(rows)


def histories(runs: Mapping[Any, Run], names: Mapping[Any, str]) -> pd.DataFrame:
    """The histories of several runs under one another, with a column `method` and one `part` (fold or task)."""
    tables = []
    for key, run in runs.items():
        tables.append(run.table("history").assign(method=names.get(key[0], str(key[0])), part=key[-1]))
    return pd.concat(tables, ignore_index=True)


def metrics_table(runs: Mapping[Any, Run], names: Mapping[Any, str], columns: list[str]) -> pd.DataFrame:
    """One row a run: method, fold or task, the metrics asked for, and its wall time."""
    rows = []
    for key, run in runs.items():
        row = {"method": names.get(key[0], str(key[0])), "part": key[-1]}
        rows.append(row | {column: run.metrics.get(column) for column in columns} | {"seconds": run.seconds})
    return pd.DataFrame(rows)


def label_mix(runs: Mapping[tuple[int, int], Run]) -> pd.DataFrame:
    """Share of each rare class among the hard pseudo-labels, one row a (K, task)."""
    return pd.DataFrame(
        [
            {"K": k_shot, "task": task, **run.metrics["share"], "mean confidence": run.metrics["mean_confidence"]}
            for (k_shot, task), run in runs.items()
        ]
    )


def labels_by_base_class(run: Run, base_classes: tuple[str, ...], rare_classes: tuple[str, ...]) -> pd.DataFrame:
    """Share of each rare class among the hard pseudo-labels of each common class, shape (n_base, n_rare)."""
    frame = run.table("pseudo_labels")
    hard = frame[[f"p_{name}" for name in rare_classes]].to_numpy().argmax(axis=1)
    counts = pd.crosstab(frame["class"], hard).reindex(
        index=list(base_classes), columns=range(len(rare_classes)), fill_value=0
    )
    counts.columns = list(rare_classes)
    return counts.div(counts.sum(axis=1), axis=0)


def headline(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as a wide table: one row a method (and setting), 'value (low to high)' for each metric."""
    level = summary["level"].iloc[-1]
    chosen = summary[summary["level"] == level]
    cells = chosen.assign(cell=[f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in chosen.itertuples()])
    wide = cells.pivot_table(
        index=["setting", "method"], columns="metric", values="cell", aggfunc="first", sort=False
    ).reset_index()
    wide.columns.name = None
    if not wide["setting"].astype(bool).any():
        wide = wide.drop(columns="setting")
    return wide
