"""A cohort: one table of samples, the images and vectors that belong to its rows, and what may be said of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from medkd.errors import DataError, ParameterError

REQUIRED_COLUMNS = ("id", "label", "class", "patient", "roi")
SURVIVAL_COLUMNS = ("survival_months", "event")


class ImageSource(Protocol):
    """Where the images of one modality come from; row i belongs to row i of the cohort's table."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, size: int) -> np.ndarray:
        """Images as uint8 RGB, shape (n, size, size, 3); may be a memory map and must not be written to."""

    def take(self, rows: np.ndarray) -> ImageSource:
        """The source of these rows, in this order."""

    def whole(self) -> tuple[ImageSource, np.ndarray]:
        """The source that this one was taken from, and the rows of it: what is computed for it serves every part."""

    def fingerprint(self) -> str:
        """Hex digest of the content (pixels or file bytes), the same on every machine."""


@dataclass(frozen=True, eq=False)
class VectorTable:
    """A vector modality: one row of numbers per sample (mutations, copy number, encoded metadata).

    Attributes:
        values: shape (n, d), float32; NaN where a value is missing (imputed from training rows, never here).
        names: the d column names.
    """

    values: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Samples of one study.

    Attributes:
        name: the name to ask for it by, e.g. "phantom-glioma", "isic2018".
        title: how figures and tables call it.
        simulated: True if no real patient is in it; figures and tables then say so.
        classes: class names; `label` counts into them.
        table: one row per sample, columns at least `id` (unique string), `label` (int), `class`, `patient`
            (the group that no split may cut: patient id, or lesion id where no patient is published) and
            `roi` (region the image was cut from; equal to `id` where there is none). Optional: `survival_months`
            (time to the event or to the end of follow-up, > 0) and `event` (1 it was observed, 0 censored), NaN
            where unknown. Readers add what else the publisher gives (age, sex, site).
        images: modality name -> ImageSource, aligned with `table`; empty where there are only vectors.
        vectors: modality name -> VectorTable, aligned with `table`.
        main: modality the student keeps; "" if there is none: then the cohort serves the rare-disease chain, or it has
            only a second, vector modality, whose network is trained and evaluated alone.
        second: modality that only the teacher sees, "" if there is none.
        base_classes: common classes (URL learns on them without labels), names out of `classes`.
        rare_classes: classes of the few-shot task, names out of `classes`.
        group: what `patient` holds, for prose: "patient" or "lesion".
        splits: the publisher's splits, rows aligned with `table`, one column per split, cells "train", "val", "test"
            or "" (in none); None where there are none. They are used unless `split_file` asks for others.
        licence: licence of the data, for the report. attribution: credit line that figures with images carry.
        settings: how it was made or read (generator seed, number of patients), for the manifest.
    """

    name: str
    title: str
    simulated: bool
    classes: tuple[str, ...]
    table: pd.DataFrame
    images: Mapping[str, ImageSource]
    vectors: Mapping[str, VectorTable] = field(default_factory=dict)
    main: str = ""
    second: str = ""
    base_classes: tuple[str, ...] = ()
    rare_classes: tuple[str, ...] = ()
    group: str = "patient"
    splits: pd.DataFrame | None = None
    licence: str = ""
    attribution: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [column for column in REQUIRED_COLUMNS if column not in self.table]
        if missing:
            raise DataError(f"the table of cohort {self.name} lacks the column(s) {', '.join(missing)}")
        repeated = self.table["id"][self.table["id"].duplicated()].unique()
        if len(repeated):
            raise DataError(
                f"cohort {self.name} has repeated ids, for example {repeated[0]!r}; each sample needs its own"
            )
        for name, vector in self.vectors.items():
            if len(vector.values) != len(self.table):
                raise DataError(
                    f"modality {name} of cohort {self.name} has {len(vector.values)} rows, "
                    f"the table has {len(self.table)}"
                )
        for name, source in self.images.items():
            if len(source) != len(self.table):
                raise DataError(
                    f"modality {name} of cohort {self.name} has {len(source)} images, the table has "
                    f"{len(self.table)} rows"
                )
        if self.splits is not None and len(self.splits) != len(self.table):
            raise DataError(
                f"the splits of cohort {self.name} have {len(self.splits)} rows, the table has {len(self.table)}"
            )
        self._check_labels()
        self._check_survival()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """Class index of each sample, shape (n,), int64."""
        return self.table["label"].to_numpy(np.int64)

    @property
    def groups(self) -> np.ndarray:
        """Patient (or lesion) id of each sample, shape (n,), str objects."""
        return self.table["patient"].to_numpy(object)

    @property
    def label_text(self) -> str:
        """The title, with the word that simulated data must carry."""
        return f"{self.title} (simulated)" if self.simulated and "simulated" not in self.title.lower() else self.title

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the image modalities, then of the vector modalities."""
        return (*self.images, *self.vectors)

    @property
    def has_survival(self) -> bool:
        """True if the table has `survival_months` and `event`."""
        return all(column in self.table for column in SURVIVAL_COLUMNS)

    def with_slots(self, main: str = "", second: str = "") -> Cohort:
        """The same cohort with these modalities, image or vector, as `main` and `second`.

        Args:
            main: what the student keeps; empty leaves the cohort's own.
            second: what only the teacher sees; empty leaves the cohort's own.

        Raises:
            ParameterError: if the cohort has no such modality, or both slots would hold the same one.
        """
        known = ", ".join(self.modalities)
        for slot, name in (("main", main), ("second", second)):
            if name and name not in self.modalities:
                raise ParameterError(f'{slot} = "{name}" is no modality of {self.name}; known are {known or "none"}')
        main, second = main or self.main, second or self.second
        if main and main == second:
            raise ParameterError(
                f'main and second modality of {self.name} would both be "{main}"; name another one for either of them '
                f"(known are {known})"
            )
        return dataclasses.replace(self, main=main, second=second)

    def rows_of(self, classes: Sequence[str]) -> np.ndarray:
        """Row numbers of the samples of these classes, ascending."""
        return np.flatnonzero(self.table["class"].isin(list(classes)).to_numpy())

    def base_rows(self) -> np.ndarray:
        """Row numbers of the common images to learn from, ascending: none of a patient who has a rare image too.

        Such a patient may be in the query set of a task. Where `patient` holds lesions, as in ISIC 2018, nobody is left
        out.

        Raises:
            DataError: nothing is left.
        """
        rows, groups = self.rows_of(self.base_classes), pd.Series(self.groups)
        left = rows[~groups[rows].isin(groups[self.rows_of(self.rare_classes)]).to_numpy()]
        if not len(left):
            raise DataError(
                f"every common image of {self.name} belongs to a {self.group} who has a rare one too, so nothing is "
                "left to learn from without having seen those who are tested; add others, or name other rare_classes"
            )
        return left

    def take(self, rows: np.ndarray) -> Cohort:
        """The same cohort with these rows only, in this order; classes and labels stay as they are."""
        return dataclasses.replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            images={name: source.take(rows) for name, source in self.images.items()},
            vectors={name: VectorTable(vector.values[rows], vector.names) for name, vector in self.vectors.items()},
            splits=None if self.splits is None else self.splits.iloc[rows].reset_index(drop=True),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of what is in it: ids, labels, groups, survival, slots, splits, vectors and images."""
        digest = hashlib.sha256()
        digest.update(self.table[["id", "label", "class", "patient", "roi"]].to_csv(index=False).encode())
        digest.update(
            "|".join(self.classes + self.base_classes + self.rare_classes + (self.main, self.second)).encode()
        )
        if self.rare_classes:  # the join does not tell where common classes end and rare ones begin
            digest.update(f"{len(self.base_classes)}|{len(self.rare_classes)}".encode())
        for column in SURVIVAL_COLUMNS:
            if column in self.table:  # a cohort without survival keeps the digest it had before there was any
                digest.update(self.table[[column]].astype(float).to_csv(index=False).encode())
        if self.splits is not None:
            digest.update(self.splits.to_csv(index=False).encode())
        for name in sorted(self.vectors):
            digest.update(name.encode() + "|".join(self.vectors[name].names).encode())
            digest.update(np.ascontiguousarray(self.vectors[name].values).tobytes())
        for name in sorted(self.images):
            digest.update(name.encode() + self.images[name].fingerprint().encode())
        return digest.hexdigest()[:16]

    @cached_property
    def shown(self) -> str:
        """Sixteen hex digits of what notebooks may show: the fingerprint, and the other columns of the table."""
        text = self.table.to_csv(index=False)
        return hashlib.sha256(f"{self.fingerprint}\n{text}".encode()).hexdigest()[:16]

    def _check_labels(self) -> None:
        named = dict(enumerate(self.classes))
        wrong = self.table["label"].map(named) != self.table["class"]
        if wrong.any():
            row = self.table[wrong].iloc[0]
            raise DataError(
                f"sample {row['id']} of cohort {self.name} has the label {row['label']} and the class "
                f'"{row["class"]}"; label counts into classes, {", ".join(self.classes)}'
            )

    def _check_survival(self) -> None:
        for column, expected in zip(
            SURVIVAL_COLUMNS, ("finite and above 0", "1 (observed) or 0 (censored)"), strict=True
        ):
            if column not in self.table:
                continue
            numbers = pd.to_numeric(self.table[column], errors="coerce")
            fits = numbers.isin((0, 1)) if column == "event" else (numbers > 0) & np.isfinite(numbers)
            wrong = self.table["id"][~fits & self.table[column].notna()].tolist()
            if wrong:
                raise DataError(
                    f"{column} of cohort {self.name} must be {expected}, or empty where it is unknown, and is not for "
                    f"{wrong[0]!r} ({len(wrong)} in all); correct these rows"
                )
