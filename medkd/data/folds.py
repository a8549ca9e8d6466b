"""Training, validation and test rows: stratified by class, and no patient (or lesion) in two of them."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medkd.data.cohort import Cohort
from medkd.data.images import first_few
from medkd.errors import DataError, ParameterError


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of a cohort's table, each an ascending int64 array; together they hold every row once."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def split_rows(cohort: Cohort, *, fold: int, n_folds: int = 5, seed: int = 0, val_fraction: float = 0.2) -> Split:
    """The rows of one fold of a grouped, stratified cross-validation.

    The test parts of all folds together hold every row once. Validation is one fold of a second such division, of the
    rows outside the test part, so model selection never sees a test patient.

    Args:
        cohort: its `label` is stratified, its `patient` kept whole.
        fold: which of the folds is tested, 0 .. n_folds - 1.
        n_folds: number of folds, 2 or more, at most the number of groups.
        seed: seed of both divisions, >= 0.
        val_fraction: share of the rows outside the test part, > 0 and <= 0.5; rounded to the nearest 1/k.

    Raises:
        ParameterError: if a setting is out of range, or there are too few groups for it.
    """
    _check(cohort, fold, n_folds, seed, val_fraction)
    test = _part(cohort, np.arange(len(cohort)), fold, n_folds, np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(np.arange(len(cohort)), test)
    n_parts, n_groups = round(1 / val_fraction), len(set(cohort.groups[rest]))
    if n_parts > n_groups:
        raise ParameterError(
            f"val_fraction = {val_fraction} asks for one of {n_parts} parts, but outside the test part of fold {fold} "
            f"there are only {n_groups} {cohort.group}s; raise val_fraction or n_folds"
        )
    val = rest[_part(cohort, rest, 0, n_parts, np.random.default_rng([seed, 1, fold]))]
    split = Split(np.setdiff1d(rest, val), val, test)
    empty = [name for name in ("train", "val", "test") if not len(getattr(split, name))]
    if empty:
        raise ParameterError(
            f"fold {fold} of {n_folds} leaves no rows for {' and '.join(empty)}: {cohort.name} has "
            f"{len(cohort)} samples of {len(set(cohort.groups))} {cohort.group}s; lower n_folds or raise val_fraction"
        )
    return split


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
                f"{cohort.name} cannot be divided into {n_parts} parts: every class has fewer samples; "
                "lower n_folds or raise val_fraction"
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
    if not 0 < val_fraction <= 0.5:
        raise ParameterError(f"val_fraction = {val_fraction} must lie above 0 and be at most 0.5; 0.2 is usual")
    if seed < 0:
        raise ParameterError(f"seed = {seed} must be 0 or larger; choose another seed")
