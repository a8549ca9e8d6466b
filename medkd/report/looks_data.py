"""What notebook 01 looks at: pairs of images, file sizes, and the vectors of single patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.images import FileImages
from medkd.errors import DataError

EVERY = "all classes"
"""Column of all samples beside a column for each class."""


def paired_examples(cohort: Cohort, size: int, n_pairs: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Random samples in all image modalities, the modalities of a sample beside one another.

    Classes take turns, so that each is shown before one is shown twice.

    Returns:
        images (n_pairs * n_modalities, size, size, 3) uint8, fewer if the cohort is smaller, and a title each (class
        and modality).

    Raises:
        DataError: if the cohort has fewer than two image modalities.
    """
    if len(cohort.images) < 2:
        raise DataError(f"{cohort.name} has {len(cohort.images)} image modalities; pairs need two")
    rng = np.random.default_rng([seed, 2])
    by_class = [rng.permutation(np.flatnonzero(cohort.labels == label)) for label in range(len(cohort.classes))]
    turns = [rows[turn] for turn in range(n_pairs) for rows in by_class if turn < len(rows)]
    rows = np.array(turns[:n_pairs])
    sources = {name: source.load(size) for name, source in cohort.images.items()}
    images = np.stack([source[row] for row in rows for source in sources.values()])
    titles = [f"{cohort.table['class'].iloc[row]}, {name}" for row in rows for name in sources]
    return images, titles


def file_sizes(cohort: Cohort, name: str) -> pd.DataFrame:
    """How large the images of a modality are as files: columns `width`, `height` (pixels) and `n_images`.

    Commonest first. Simulated images have the size they were drawn at.
    """
    source = cohort.images[name]
    sizes = source.file_sizes() if isinstance(source, FileImages) else np.tile(source.drawn_size, (len(cohort), 1))
    counts = pd.DataFrame(sizes, columns=["width", "height"]).value_counts().reset_index(name="n_images")
    return counts.sort_values("n_images", ascending=False, ignore_index=True)


def missing_values(cohort: Cohort, name: str) -> pd.DataFrame:
    """Share of missing values of each column of a vector modality that has any: `column`, `EVERY`, one per class.

    Returns:
        Worst first; no rows if nothing is missing.
    """
    vector = cohort.vectors[name]
    missing = np.isnan(vector.values)
    table = pd.DataFrame({"column": vector.names, EVERY: missing.mean(axis=0)})
    for label, title in enumerate(cohort.classes):
        rows = missing[cohort.labels == label]
        table[title] = rows.mean(axis=0) if len(rows) else np.nan
    return table[table[EVERY] > 0].sort_values(EVERY, ascending=False, kind="stable", ignore_index=True)


def class_means(cohort: Cohort, name: str) -> np.ndarray:
    """Mean of each class in each column of a vector modality, in SDs from the cohort's mean, shape (n_classes, d)."""
    scaled = _in_sds(cohort.vectors[name].values)
    return np.stack([_mean(scaled[cohort.labels == label]) for label in range(len(cohort.classes))])


def patient_rows(
    cohort: Cohort, name: str, *, n_columns: int = 40, n_a_class: int = 40
) -> tuple[pd.DataFrame, list[int]]:
    """Vectors of single patients (or lesions) for a heat map: classes one under the other, telling columns first.

    Columns are ranked by the share of their variance that lies between the classes.

    Args:
        cohort: with the vector modality `name`.
        name: vector modality.
        n_columns: columns at most.
        n_a_class: patients of a class at most, the first ones by id.

    Returns:
        The values in SDs from the cohort's mean (NaN where missing), index patient; and the number of patients of each
        class, in label order.
    """
    patients = cohort.take(np.flatnonzero(~cohort.table["patient"].duplicated().to_numpy()))
    vector, labels, groups = patients.vectors[name], patients.labels, patients.groups
    scaled, means = _in_sds(vector.values), class_means(patients, name)
    shares = np.bincount(labels, minlength=len(cohort.classes)) / len(labels)
    between = np.nansum(shares[:, None] * means**2, axis=0)
    columns = np.argsort(-between, kind="stable")[:n_columns]
    order = np.argsort(groups.astype(str), kind="stable")
    rows = np.concatenate([order[labels[order] == label][:n_a_class] for label in range(len(cohort.classes))])
    frame = pd.DataFrame(
        scaled[np.ix_(rows, columns)],
        index=pd.Index(groups[rows], name=cohort.group),
        columns=[vector.names[column] for column in columns],
    )
    return frame, np.bincount(labels[rows], minlength=len(cohort.classes)).tolist()


def _in_sds(values: np.ndarray) -> np.ndarray:
    """Columns in standard deviations from their mean, missing values left out."""
    return (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0).clip(1e-6)


def _mean(values: np.ndarray) -> np.ndarray:
    """Column means without missing values, NaN where nothing is left."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
