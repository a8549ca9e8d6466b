"""A publisher's division into training, validation and test part: of a CSV, or of the cohort itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkd.data.cohort import Cohort
from medkd.errors import DataError, first_few

PATIENT_COLUMNS = ("patient_id", "patient", "lesion_id", "case")
"""Names that the column of patients may have in a file of published splits, best first."""
PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
"""The words of such a file, in lower case -> the part they mean."""
OWN_FOLDS = "none"
"""The `split_file` that asks for our own folds also where a publisher has made some."""


@dataclass(frozen=True, eq=False)
class PublishedSplits:
    """Published splits of one cohort.

    Attributes:
        parts: rows as in the cohort's table, one column per split, cells "train", "val", "test" or "" (in none).
        source: the file, or the cohort, for messages.
    """

    parts: pd.DataFrame
    source: str


def published_splits(cohort: Cohort, split_file: str = "") -> PublishedSplits | None:
    """The published splits to use, None for our own folds.

    A file is a CSV with a column of patients (one of `PATIENT_COLUMNS`) and one column per split, with the words train
    and test, in any case. A split that says val (or validation) but never test has held its val part out, so that is
    our test part. Patients that the file does not name, or leaves empty, are in no part.

    Args:
        cohort: whose rows are divided.
        split_file: path of a CSV; empty for the cohort's own `splits`, if it has any; "none" for our own folds.

    Raises:
        DataError: if the file is missing or not of this form or knows no patient of the cohort, or a patient is in two
            parts.
    """
    if split_file == OWN_FOLDS:
        return None
    if split_file:
        return _of_file(cohort, Path(split_file).expanduser())
    if cohort.splits is None:
        return None
    source = f"the publisher of {cohort.name}"
    for name, parts in cohort.splits.items():
        _refuse_leaks(pd.Series(parts.to_numpy(), index=cohort.groups.astype(str), name=name), source)
    return PublishedSplits(cohort.splits.apply(_held_out), source)


def _of_file(cohort: Cohort, path: Path) -> PublishedSplits:
    words = _read_splits(path)
    patients = pd.Series(cohort.groups).astype(str)
    parts = pd.DataFrame({name: patients.map(_part_of_patient(words[name], str(path))) for name in words})
    strangers = [name for name in parts if parts[name].isna().all()]
    if strangers:
        raise DataError(
            f"{path} puts no {cohort.group} of {cohort.name} into split {strangers[0]}: it names "
            f"{first_few(list(words.index))}, the cohort has {first_few(sorted(set(cohort.groups)))}; "
            "use splits of this cohort"
        )
    return PublishedSplits(parts.fillna(""), str(path))


def _read_splits(path: Path) -> pd.DataFrame:
    """Words in lower case, one row per line of the file, the patient as index, one column per split; "" if empty."""
    if not path.is_file():
        raise DataError(f"{path} is missing; set split_file to a CSV with a column of patients and one per split")
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
        raise DataError(f"{path} has no rows, or no column of a split beside {patient}; use a file with one per split")
    splits = splits.apply(lambda words: words.str.strip().str.lower())
    for name, words in splits.items():
        unknown = sorted(set(words) - {"", *PARTS})
        if unknown:
            raise DataError(
                f'{path} has the word "{unknown[0]}" in column {name}, known are {", ".join(PARTS)}; '
                "keep one column of patients and one column per split"
            )
    return splits


def _part_of_patient(words: pd.Series, source: str) -> pd.Series:
    """Patient -> "train", "val" or "test" in one split; patients without a word are left out."""
    parts = words[words != ""].map(PARTS)
    return _refuse_leaks(_held_out(parts), source)


def _held_out(parts: pd.Series) -> pd.Series:
    """Where no part is called test, the one called val is held out (as in PORPOISE's folds), so it is the test part."""
    return parts if (parts == "test").any() else parts.replace("val", "test")


def _refuse_leaks(parts: pd.Series, source: str) -> pd.Series:
    """Patient -> part, each patient once.

    Raises:
        DataError: a patient is in two parts.
    """
    parts = parts[parts != ""]
    parts = parts[~pd.DataFrame({"patient": parts.index, "part": parts.to_numpy()}).duplicated().to_numpy()]
    several = parts.index[parts.index.duplicated()].unique().tolist()
    if several:
        raise DataError(
            f"{source} puts {first_few(several)} into several parts of split {parts.name}, so metrics would leak; "
            "each patient needs one"
        )
    return parts
