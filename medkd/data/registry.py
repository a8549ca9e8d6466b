"""Cohorts by name: which there are, what each serves, how to load one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pandas as pd

from medkd.data import (
    derm7pt,
    dermamnist,
    ham10000,
    isic2018,
    milk10k,
    own,
    pad_ufes_20,
    tcga_gbmlgg,
    tcga_pathomic,
)
from medkd.data.cohort import Cohort
from medkd.data.phantoms import PHANTOMS
from medkd.errors import DataError, ParameterError, did_you_mean

TEACHER_STUDENT, RARE, VECTOR = "teacher-student", "rare", "vector"
"""The chains; "vector" is the teacher-student chain of a cohort without images, one network on its vectors."""


@dataclass(frozen=True)
class Entry:
    """What is known of a cohort before it is read."""

    title: str
    chain: str
    licence: str
    source: str
    load: Callable[..., Cohort]
    needs_root: bool = True
    chain_at: Callable[[str], str] | None = None


def _published(reader: ModuleType, chain: str) -> Entry:
    return Entry(reader.TITLE, chain, reader.LICENCE, reader.WEBSITE, reader.read)


def _phantom(name: str, title: str, chain: str) -> Entry:
    licence, source = "none: drawn by medkd, holds no real patient", "made by medkd, see docs/phantoms.md"
    return Entry(title, chain, licence, source, PHANTOMS[name], False)


_ENTRIES = {
    "phantom-glioma": _phantom(
        "phantom-glioma", "simulated H&E patches and genomic profile, grade II to IV", TEACHER_STUDENT
    ),
    "phantom-glioma-600": _phantom(
        "phantom-glioma-600", "the same of 600 patients, a third of the recorded grades off by one", TEACHER_STUDENT
    ),
    "phantom-paired-skin": _phantom(
        "phantom-paired-skin", "simulated clinical and dermoscopic images of one lesion", TEACHER_STUDENT
    ),
    "phantom-rare-skin": _phantom(
        "phantom-rare-skin", "simulated dermoscopy with four common and three rare classes", RARE
    ),
    "isic2018": _published(isic2018, RARE),
    "ham10000": _published(ham10000, RARE),
    "dermamnist": _published(dermamnist, RARE),
    "milk10k": _published(milk10k, TEACHER_STUDENT),
    "milk10k-5": Entry(
        f"{milk10k.TITLE}, five largest classes",
        TEACHER_STUDENT,
        milk10k.LICENCE,
        milk10k.WEBSITE,
        lambda root, *, cache_dir=None: milk10k.read(root, classes=milk10k.FIVE_LARGEST, cache_dir=cache_dir),
    ),
    "derm7pt": _published(derm7pt, TEACHER_STUDENT),
    "pad-ufes-20": _published(pad_ufes_20, TEACHER_STUDENT),
    "tcga-gbmlgg": _published(tcga_gbmlgg, VECTOR),
    "tcga-gbmlgg-pathomic": _published(tcga_pathomic, TEACHER_STUDENT),
    "own": Entry(own.TITLE, "by medkd.yaml", "your own", own.WEBSITE, own.read, chain_at=own.chain_at),
}


def cohort_names() -> tuple[str, ...]:
    """The names that `load_cohort` knows, simulated cohorts first."""
    return tuple(_ENTRIES)


def chain_of(name: str, root: str = "") -> str:
    """The chain that a cohort serves: "teacher-student", "rare" or "vector".

    Args:
        name: one of `cohort_names()`.
        root: folder of the files; only a researcher's own data need it.

    Raises:
        DataError: if no cohort has this name, or the folder of own data has no confirmed `medkd.yaml`.
    """
    entry = _entry(name)
    return entry.chain if entry.chain_at is None else entry.chain_at(_required(name, entry, root))


def describe(name: str) -> dict[str, Any]:
    """Title, chain, whether a root is needed, licence and where to get it; nothing is read.

    Raises:
        DataError: if no cohort has this name.
    """
    entry = _entry(name)
    return {field: getattr(entry, field) for field in ("title", "chain", "needs_root", "licence", "source")}


def load_cohort(name: str, root: str = "", **settings: Any) -> Cohort:
    """The cohort of this name.

    Args:
        name: one of `cohort_names()`.
        root: folder with the publisher's files; empty for a simulated cohort.
        settings: keyword arguments of the reader or of the generator, e.g. `n_patients=40`.

    Raises:
        DataError: if the name is unknown, `root` is missing or not wanted, or the files are not in order.
        ParameterError: if a setting is unknown or out of range.
    """
    entry = _entry(name)
    if entry.needs_root:
        _required(name, entry, root)
    if root and not entry.needs_root:
        raise DataError(f"{name} is simulated and reads no files, but root = {root} was given; leave root empty")
    known = [key for key in inspect.signature(entry.load).parameters if key != "root"]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ParameterError(f"{name} has no setting {', '.join(unknown)}; known are {', '.join(known)}")
    return entry.load(root, **settings) if entry.needs_root else entry.load(**settings)


def summary(cohort: Cohort) -> pd.DataFrame:
    """One row per class in label order: class, role (base, rare or empty), n_samples, n_groups (patients, lesions)."""
    roles = dict.fromkeys(cohort.base_classes, "base") | dict.fromkeys(cohort.rare_classes, "rare")
    rows = []
    for name in cohort.classes:
        groups = cohort.table["patient"][cohort.table["class"] == name]
        rows.append(
            {"class": name, "role": roles.get(name, ""), "n_samples": len(groups), "n_groups": groups.nunique()}
        )
    return pd.DataFrame(rows)


def _required(name: str, entry: Entry, root: str) -> str:
    """`root`, if it is given."""
    if not root:
        raise DataError(
            f"{name} needs root, the folder with the files of {entry.title} ({entry.source}): "
            + ("" if name == "own" else f"`medkd data fetch {name}` gets them, or says how; then ")
            + "give --root FOLDER"
        )
    return root


def _entry(name: str) -> Entry:
    if name not in _ENTRIES:
        hint = did_you_mean(name, _ENTRIES, ";")
        raise DataError(f'there is no cohort "{name}"{hint} known are {", ".join(_ENTRIES)}')
    return _ENTRIES[name]
