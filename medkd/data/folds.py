"""Training, validation and test rows: our own, stratified by class, or a publisher's; no patient in two of them."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from medkd.data.cohort import Cohort
from medkd.data.images import first_few
from medkd.errors import DataError, ParameterError

PATIENT_COLUMNS = ("patient_id", "patient", "lesion_id", "case")
"""Names that the column of patients may have in a file of published splits, best first."""
PARTS = {"train": "train", "test": "test", "val": "val", "validation": "val"}
"""The words of such a file, in lower case -> the part they mean."""


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of a cohort's table, each an ascending int64 array, none in two of them.

    Together they hold every row once, unless the split comes from a file: rows of patients that the file does not name
    are in none of the three.
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

    A `split_file` is a CSV with a column of patients (one of `PATIENT_COLUMNS`) and one column a split, with the words
    train and test, in any case. A split that says val (or validation) but never test has held its val part out, so
    that is our test part; one that says all three brings our validation part as well. In every other case validation
    is cut out of the training patients as above. Rows of patients that the file does not name, or leaves empty in this
    column, are in none of the three parts.

    Args:
        cohort: its `label` is stratified, its `patient` kept whole.
        fold: which of the folds is tested, 0 .. n_folds - 1; with a file, which of its splits, 0 .. n_splits - 1.
        n_folds: number of folds, 2 or more, at most the number of groups; ignored with a file.
        seed: seed of both divisions, >= 0.
        val_fraction: share of the rows outside the test part, > 0 and <= 0.5; rounded to the nearest 1/k.
        split_file: path of the published splits; empty for our own.

    Raises:
        ParameterError: if a setting is out of range, or there are too few groups for it.
        DataError: if the file is missing or not of this form, knows no patient of the cohort, or leaves a part empty.
    """
    if split_file:
        return _published(cohort, fold, seed, val_fraction, Path(split_file).expanduser())
    _check(cohort, fold, n_folds, seed, val_fraction)
    test = _part(cohort, np.arange(len(cohort)), fold, n_folds, np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(np.arange(len(cohort)), test)
    val = _validation(cohort, rest, fold, seed, val_fraction)
    split = Split(np.setdiff1d(rest, val), val, test)
    empty = _empty_parts(split)
    if empty:
        raise ParameterError(
            f"fold {fold} of {n_folds} leaves no rows for {' and '.join(empty)}: {cohort.name} has "
            f"{len(cohort)} samples of {len(set(cohort.groups))} {cohort.group}s; lower n_folds or raise val_fraction"
        )
    return split


def n_splits(split_file: str) -> int:
    """Number of splits in a file of published splits, see `split_rows`.

    Raises:
        DataError: if the file is missing or not of this form.
    """
    return _read_splits(Path(split_file).expanduser()).shape[1]


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


def _published(cohort: Cohort, fold: int, seed: int, val_fraction: float, path: Path) -> Split:
    """One split of a file; see `split_rows`."""
    _check_settings(seed, val_fraction)
    splits = _read_splits(path)
    if not 0 <= fold < splits.shape[1]:
        raise ParameterError(
            f"fold = {fold} is outside 0 .. {splits.shape[1] - 1}, the splits that {path} holds; choose one of them"
        )
    parts = _part_of_patient(splits.iloc[:, fold], path)
    part = pd.Series(cohort.groups).astype(str).map(parts).to_numpy(object)
    if pd.isna(part).all():
        raise DataError(
            f"{path} puts no {cohort.group} of {cohort.name} into split {parts.name}: it names "
            f"{first_few(list(splits.index))}, the cohort has {first_few(sorted(set(cohort.groups)))}; "
            "use splits of this cohort"
        )
    train, val, test = (np.flatnonzero(part == name).astype(np.int64) for name in ("train", "val", "test"))
    if len(train) and not (parts == "val").any():
        val = _validation(cohort, train, fold, seed, val_fraction)
        train = np.setdiff1d(train, val)
    split = Split(train, val, test)
    empty = _empty_parts(split)
    if empty:
        raise DataError(
            f"split {parts.name} of {path} leaves no rows of {cohort.name} for {' and '.join(empty)}; "
            "choose another fold or use splits of this cohort"
        )
    return split


def _read_splits(path: Path) -> pd.DataFrame:
    """Words in lower case, one row a line of the file with the patient as index, one column a split; "" if empty."""
    if not path.is_file():
        raise DataError(f"{path} is missing; set split_file to a CSV with a column of patients and one column a split")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' own CSV errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table ({error}); copy it again from the publisher") from error
    patient = next((name for name in PATIENT_COLUMNS if name in table), None)
    if patient is None:
        raise DataError(
            f"{path} has no column of patients: expected one of {', '.join(PATIENT_COLUMNS)}, it has "
            f"{first_few(list(table.columns), 6)}; rename that column"
        )
    splits = table.set_index(table[patient].str.strip()).drop(columns=patient)
    if splits.empty:
        raise DataError(f"{path} has no rows, or no column of a split beside {patient}; use a file with one a split")
    splits = splits.apply(lambda words: words.str.strip().str.lower())
    for name, words in splits.items():
        unknown = sorted(set(words) - {"", *PARTS})
        if unknown:
            raise DataError(
                f'{path} has the word "{unknown[0]}" in column {name}, known are {", ".join(PARTS)}; '
                "keep one column of patients and one column a split"
            )
    return splits


def _part_of_patient(words: pd.Series, path: Path) -> pd.Series:
    """Patient -> "train", "val" or "test" in one split; patients without a word are left out."""
    parts = words[words != ""].map(PARTS)
    if not (parts == "test").any():
        parts = parts.replace("val", "test")  # PORPOISE's folds call the held-out part val
    parts = parts[~pd.DataFrame({"patient": parts.index, "part": parts.to_numpy()}).duplicated().to_numpy()]
    several = parts.index[parts.index.duplicated()].unique().tolist()
    if several:
        raise DataError(
            f"{path} puts {first_few(several)} into several parts of split {words.name}, so metrics would leak; "
            "each patient needs one"
        )
    return parts


def _validation(cohort: Cohort, rest: np.ndarray, fold: int, seed: int, val_fraction: float) -> np.ndarray:
    """The rows out of `rest`, which lie outside the test part, that model selection sees."""
    n_parts, n_groups = round(1 / val_fraction), len(set(cohort.groups[rest]))
    if n_parts > n_groups:
        raise ParameterError(
            f"val_fraction = {val_fraction} asks for one of {n_parts} parts, but outside the test part of fold {fold} "
            f"there are only {n_groups} {cohort.group}s; raise val_fraction or n_folds"
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
    _check_settings(seed, val_fraction)


def _check_settings(seed: int, val_fraction: float) -> None:
    if not 0 < val_fraction <= 0.5:
        raise ParameterError(f"val_fraction = {val_fraction} must lie above 0 and be at most 0.5; 0.2 is usual")
    if seed < 0:
        raise ParameterError(f"seed = {seed} must be 0 or larger; choose another seed")
