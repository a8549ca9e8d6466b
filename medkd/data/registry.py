"""Cohorts by name: which there are, what each serves, how to load and check one."""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medkd.data import isic2018, milk10k, tcga_gbmlgg
from medkd.data.cohort import Cohort
from medkd.data.folds import check_disjoint, split_rows
from medkd.data.images import first_few
from medkd.errors import DataError, ParameterError

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


def _phantom(name: str, title: str, chain: str) -> Entry:
    def load(**settings: Any) -> Cohort:
        return _phantom_maker(name)(**settings)

    return Entry(
        title, chain, "none: drawn by medkd, holds no real patient", "made by medkd, see docs/phantoms.md", load, False
    )


def _phantom_maker(name: str) -> Callable[..., Cohort]:
    from medkd.data.phantoms import PHANTOMS  # late: listing the names must not import torch

    return PHANTOMS[name]


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
    "isic2018": Entry(isic2018.TITLE, RARE, isic2018.LICENCE, isic2018.WEBSITE, isic2018.read),
    "milk10k": Entry(milk10k.TITLE, TEACHER_STUDENT, milk10k.LICENCE, milk10k.WEBSITE, milk10k.read),
    "milk10k-5": Entry(
        f"{milk10k.TITLE}, five largest classes",
        TEACHER_STUDENT,
        milk10k.LICENCE,
        milk10k.WEBSITE,
        lambda root, *, cache_dir=None: milk10k.read(root, classes=milk10k.FIVE_LARGEST, cache_dir=cache_dir),
    ),
    "tcga-gbmlgg": Entry(tcga_gbmlgg.TITLE, VECTOR, tcga_gbmlgg.LICENCE, tcga_gbmlgg.WEBSITE, tcga_gbmlgg.read),
}


def cohort_names() -> tuple[str, ...]:
    """The names that `load_cohort` knows, simulated cohorts first."""
    return tuple(_ENTRIES)


def chain_of(name: str) -> str:
    """The chain that a cohort serves: "teacher-student", "rare" or "vector".

    Raises:
        DataError: if no cohort has this name.
    """
    return _entry(name).chain


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
    if entry.needs_root and not root:
        raise DataError(
            f"{name} needs root, the folder with the files of {entry.title}; get them from {entry.source} and pass root"
        )
    if root and not entry.needs_root:
        raise DataError(f"{name} is simulated and reads no files, but root = {root} was given; leave root empty")
    known = [
        key
        for key in inspect.signature(entry.load if entry.needs_root else _phantom_maker(name)).parameters
        if key != "root"
    ]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ParameterError(f"{name} has no setting {', '.join(unknown)}; known are {', '.join(known)}")
    return entry.load(root, **settings) if entry.needs_root else entry.load(**settings)


def summary(cohort: Cohort) -> pd.DataFrame:
    """One row a class in label order: class, role (base, rare or empty), n_samples, n_groups (patients or lesions)."""
    roles = dict.fromkeys(cohort.base_classes, "base") | dict.fromkeys(cohort.rare_classes, "rare")
    rows = []
    for name in cohort.classes:
        groups = cohort.table["patient"][cohort.table["class"] == name]
        rows.append(
            {"class": name, "role": roles.get(name, ""), "n_samples": len(groups), "n_groups": groups.nunique()}
        )
    return pd.DataFrame(rows)


def check(cohort: Cohort, *, n_folds: int = 5, seed: int = 0, val_fraction: float = 0.2) -> list[str]:
    """Leakage findings, one sentence each; an empty list if there are none.

    Looked for: a patient (or lesion) in two parts of any fold, one image file under two patients, and a cohort whose
    publisher's grouping is not there.

    Raises:
        ParameterError: if the fold settings do not fit the cohort.
        DataError: if image files cannot be read.
    """
    findings = []
    if cohort.group == "image":
        findings.append(
            f"{cohort.name} was read without lesion ids, so images of one lesion may fall into two splits; "
            "add the publisher's lesion table"
        )
    for fold in range(n_folds):
        try:
            check_disjoint(cohort, split_rows(cohort, fold=fold, n_folds=n_folds, seed=seed, val_fraction=val_fraction))
        except DataError as error:
            findings.append(f"fold {fold}: {error}")
    for modality in cohort.images:
        findings += _copies(cohort, modality)
    return findings


def _copies(cohort: Cohort, modality: str) -> list[str]:
    """Image files with the same bytes in different groups; only for sources that know their files' hashes."""
    hashes = getattr(cohort.images[modality], "content_hashes", None)
    if hashes is None:
        return []
    groups: dict[str, set[str]] = defaultdict(set)
    for content, group in zip(hashes(), cohort.groups, strict=True):
        groups[content].add(str(group))
    pairs = sorted(" = ".join(sorted(members)) for members in groups.values() if len(members) > 1)
    if not pairs:
        return []
    return [
        f"one {modality} image file is filed under several {cohort.group}s, {first_few(pairs)}; a split may part them"
    ]


def _entry(name: str) -> Entry:
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"? Known' if near else "known"
        raise DataError(f'there is no cohort "{name}"; {hint} are {", ".join(_ENTRIES)}')
    return _ENTRIES[name]
