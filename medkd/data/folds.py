"""Training, validation and test rows: our own, stratified by class, or a publisher's; no patient in two of them."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medkd.data.cohort import Cohort
from medkd.data.published_splits import PublishedSplits, published_splits
from medkd.errors import DataError, ParameterError, first_few


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of a cohort's table, each an ascending int64 array, none in two of them.

    Together they hold every row once, unless the split is a published one: rows that it does not name are in none.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def split_rows(
    cohort: Cohort, *, fold: int, n_folds: int = 5, seed: int = 0, val_fraction: float = 0.2, split_file: str = ""
) -> Split:
    """The rows of one fold of a grouped, stratified cross-validation, or of one published split.

    Without a file the test parts of all folds together hold every row once. Validation is one fold of a second such
    division, of the rows outside the test part, so model selection never sees a test patient.

    Published splits (of `split_file`, or of the cohort itself) take the place of our own folds: a split that says
    train, val and test brings its validation part as well; in every other case validation is cut out of the training
    patients as above. Rows of patients that a split does not name are in none of its three parts.

    Args:
        cohort: its `label` is stratified, its `patient` kept whole.
        fold: which of the folds is tested, 0 .. n_folds - 1, or which of the published splits is used.
        n_folds: number of folds, 2 or more, at most the number of groups; ignored where splits are published.
        seed: seed of both divisions, >= 0.
        val_fraction: share of the rows outside the test part, > 0 and <= 0.5; rounded to the nearest 1/k.
        split_file: see `medkd.data.published_splits.published_splits`.

    Raises:
        ParameterError: if a setting is out of range, or there are too few groups for it.
        DataError: if the file is missing or not of this form, knows no patient of the cohort, or leaves a part empty.
    """
    if (published := published_splits(cohort, split_file)) is not None:
        return _published(cohort, published, fold, seed, val_fraction)
    _check(cohort, fold, n_folds, seed, val_fraction)
    test = _part(cohort, np.arange(len(cohort)), fold, n_folds, np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(np.arange(len(cohort)), test)
    val = _validation(cohort, rest, fold, seed, val_fraction)
    split = Split(np.setdiff1d(rest, val), val, test)
    empty = _empty_parts(split)
    if empty:
        raise ParameterError(
            f"fold {fold} of {n_folds} leaves no rows for {' and '.join(empty)}: {cohort.name} has "
            f"{len(cohort)} samples of {len(set(cohort.groups))} {cohort.group}s; lower n_folds"
        )
    return split


def n_folds_of(cohort: Cohort, n_folds: int, split_file: str = "") -> int:
    """Number of folds that `split_rows` knows: of published splits, or `n_folds`.

    Raises:
        DataError: see `medkd.data.published_splits.published_splits`.
    """
    published = published_splits(cohort, split_file)
    return n_folds if published is None else published.parts.shape[1]


def check_disjoint(cohort: Cohort, split: Split) -> None:
    """Refuse a split that has samples of one patient (or lesion) in two parts.

    Raises:
        DataError: names the parts and the first of these patients.
    """
    groups = {name: set(cohort.groups[getattr(split, name)]) for name in ("train", "val", "test")}
    for one, other in itertools.combinations(groups, 2):
        shared = sorted(groups[one] & groups[other], key=str)
        if shared:
            raise DataError(
                f"{cohort.group}s {first_few(shared)} have samples in both {one} and {other}, so metrics would leak; "
                "make the split with medkd.data.folds.split_rows"
            )


def _published(cohort: Cohort, splits: PublishedSplits, fold: int, seed: int, val_fraction: float) -> Split:
    """One published split, with a validation part cut out of its training patients where it has none."""
    _check_settings(seed, val_fraction)
    n_splits = splits.parts.shape[1]
    if not 0 <= fold < n_splits:
        raise ParameterError(
            f"fold = {fold} is outside 0 .. {n_splits - 1}, the splits that {splits.source} holds; choose one of them"
        )
    part = splits.parts.iloc[:, fold]
    train, val, test = (np.flatnonzero(part == name).astype(np.int64) for name in ("train", "val", "test"))
    if len(train) and not len(val):
        val = _validation(cohort, train, fold, seed, val_fraction)
        train = np.setdiff1d(train, val)
    split = Split(train, val, test)
    empty = _empty_parts(split)
    if empty:
        raise DataError(
            f"split {part.name} of {splits.source} leaves no rows of {cohort.name} for {' and '.join(empty)}; "
            "choose another fold or use splits of this cohort"
        )
    return split


def _validation(cohort: Cohort, rest: np.ndarray, fold: int, seed: int, val_fraction: float) -> np.ndarray:
    """The rows out of `rest`, which lie outside the test part, that model selection sees."""
    n_parts, n_groups = round(1 / val_fraction), len(set(cohort.groups[rest]))
    if n_parts > n_groups:
        raise ParameterError(
            f"val_fraction = {val_fraction} asks for one of {n_parts} parts, but outside the test part of fold {fold} "
            f"there are only {n_groups} {cohort.group}s; raise n_folds"
        )
    return rest[_part(cohort, rest, 0, n_parts, np.random.default_rng([seed, 1, fold]))]


def _empty_parts(split: Split) -> list[str]:
    return [name for name in ("train", "val", "test") if not len(getattr(split, name))]


def _part(cohort: Cohort, rows: np.ndarray, part: int, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Positions within `rows` of one part of `n_parts`, ascending."""
    divide = StratifiedGroupKFold(n_splits=n_parts, shuffle=True, random_state=int(rng.integers(2**31)))
    parts = divide.split(np.zeros(len(rows)), cohort.labels[rows], cohort.groups[rows].astype(str))
    with warnings.catch_warnings():
        # A class with fewer samples than parts is missing from some of them: the counts of each split show it.
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            return next(itertools.islice(parts, part, None))[1].astype(np.int64)
        except ValueError as error:  # every class is smaller than n_parts
            raise ParameterError(
                f"{cohort.name} cannot be divided into {n_parts} parts: every class has fewer samples; lower n_folds"
            ) from error


def _check(cohort: Cohort, fold: int, n_folds: int, seed: int, val_fraction: float) -> None:
    n_groups = len(set(cohort.groups))
    if not 2 <= n_folds <= n_groups:
        raise ParameterError(
            f"n_folds = {n_folds} does not fit {cohort.name}, which has {n_groups} {cohort.group}s; "
            f"choose 2 to {n_groups} folds"
        )
    if not 0 <= fold < n_folds:
        raise ParameterError(
            f"fold = {fold} is outside 0 .. {n_folds - 1}, the folds that n_folds = {n_folds} gives; choose one of them"
        )
    _check_settings(seed, val_fraction)


def _check_settings(seed: int, val_fraction: float) -> None:
    if not 0 < val_fraction <= 0.5:
        raise ParameterError(f"val_fraction = {val_fraction} must lie above 0 and be at most 0.5; 0.2 is usual")
    if seed < 0:
        raise ParameterError(f"seed = {seed} must be 0 or larger; choose another seed")
