"""Whether a cohort can be used honestly: unreadable images, copies, leaking splits, classes that are too small."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.folds import Split, check_disjoint, n_folds_of, split_rows
from medkd.data.published_splits import published_splits
from medkd.errors import DataError, ParameterError, first_few


@dataclass(frozen=True)
class Finding:
    """One sentence about a cohort.

    Attributes:
        kind: "unreadable", "leak" or "small".
        error: whether it spoils results; if not, it is a warning.
        text: the sentence.
    """

    kind: str
    error: bool
    text: str


def check(
    cohort: Cohort, *, n_folds: int = 5, seed: int = 0, val_fraction: float = 0.2, split_file: str = ""
) -> list[Finding]:
    """What is wrong with a cohort, errors first; an empty list if nothing is.

    Errors are images that cannot be read, a patient (or lesion) in two parts of a fold, fold settings or published
    splits that are not usable, and one image file under two patients. Warnings are a grouping that is not published,
    classes with fewer groups than folds, or without samples in a part of a published split, and, in the rare-disease
    chain, common images that nothing is learned from, see `Cohort.base_rows`.

    Args:
        cohort: to look at.
        n_folds: of the splits that are looked at, see `medkd.data.folds.split_rows`.
        seed: likewise.
        val_fraction: likewise.
        split_file: likewise.
    """
    findings = _unreadable(cohort)
    findings += _leaks(cohort, n_folds, seed, val_fraction, split_file)
    if not any(finding.kind == "unreadable" for finding in findings):
        findings += [finding for modality in cohort.images for finding in _copies(cohort, modality)]
    findings += _seen_patients(cohort)
    if cohort.group == "image":
        text = "images of one lesion may fall into two splits; add the publisher's lesion table if there is one"
        findings.append(Finding("leak", False, f"{cohort.name} has no patient or lesion ids, so {text}"))
    findings += _small_classes(cohort, n_folds, split_file)
    return sorted(findings, key=lambda finding: not finding.error)


def split_counts(cohort: Cohort, split: Split) -> pd.DataFrame:
    """One row per class in label order: class, then samples and groups of each part ("train samples", ...)."""
    table = pd.DataFrame({"class": cohort.classes})
    for part in ("train", "val", "test"):
        rows = cohort.table.iloc[getattr(split, part)]
        by_class = rows.groupby("class")["patient"]
        table[f"{part} samples"] = by_class.size().reindex(cohort.classes, fill_value=0).to_numpy()
        table[f"{part} {cohort.group}s"] = by_class.nunique().reindex(cohort.classes, fill_value=0).to_numpy()
    return table


def imbalance(cohort: Cohort) -> float:
    """Samples of the largest class for each of the smallest one that has any; 1 if all are equal."""
    counts = np.bincount(cohort.labels)
    return float(counts.max() / counts[counts > 0].min())


def _unreadable(cohort: Cohort) -> list[Finding]:
    findings = []
    for modality, source in cohort.images.items():
        failed = source.unreadable() if hasattr(source, "unreadable") else {}
        if failed:
            name, reason = next(iter(failed.items()))
            findings.append(
                Finding(
                    "unreadable",
                    True,
                    f"{len(failed)} {modality} image files cannot be read: {first_few(list(failed), 10)} "
                    f"({name}: {reason}); copy them again from the publisher",
                )
            )
    return findings


def _leaks(cohort: Cohort, n_folds: int, seed: int, val_fraction: float, split_file: str) -> list[Finding]:
    """Folds that cannot be made, or have a patient in two parts."""
    try:
        n_folds = n_folds_of(cohort, n_folds, split_file)
    except DataError as error:
        return [Finding("leak", True, str(error))]
    findings: list[Finding] = []
    for fold in range(n_folds):
        settings = {"n_folds": n_folds, "seed": seed, "val_fraction": val_fraction, "split_file": split_file}
        try:
            check_disjoint(cohort, split_rows(cohort, fold=fold, **settings))
        except ParameterError as error:  # most often a cohort that is too small; the other folds lack the same
            return [*findings, Finding("leak", True, str(error))]
        except DataError as error:
            findings.append(Finding("leak", True, f"fold {fold}: {error}"))
    return findings


def _copies(cohort: Cohort, modality: str) -> list[Finding]:
    """Image files with the same bytes in different groups; only for sources that know their files' hashes."""
    source = cohort.images[modality]
    if not hasattr(source, "content_hashes"):
        return []
    groups: dict[str, set[str]] = defaultdict(set)
    for content, group in zip(source.content_hashes(), cohort.groups, strict=True):
        groups[content].add(str(group))
    pairs = sorted(" = ".join(sorted(members)) for members in groups.values() if len(members) > 1)
    if not pairs:
        return []
    text = (
        f"one {modality} image file is filed under several {cohort.group}s, {first_few(pairs)}; a split may part them"
    )
    return [Finding("leak", True, text)]


def _seen_patients(cohort: Cohort) -> list[Finding]:
    """Patients with common and rare images, whose common ones nothing is learned from."""
    if not cohort.rare_classes:
        return []
    try:
        left = len(cohort.base_rows())
    except DataError as error:
        return [Finding("leak", True, str(error))]
    if not (out := len(cohort.rows_of(cohort.base_classes)) - left):
        return []
    text = (
        f"{cohort.group}s who have rare images too; nothing is learned from these, since who has a rare one is tested"
    )
    return [Finding("leak", False, f"{out} common images of {cohort.name} are of {text}")]


def _small_classes(cohort: Cohort, n_folds: int, split_file: str) -> list[Finding]:
    try:
        published = published_splits(cohort, split_file)
    except DataError:  # `_leaks` has told it
        return []
    if published is not None:
        return _absent_classes(cohort, published.parts)
    n_groups = cohort.table.groupby("class")["patient"].nunique().reindex(cohort.classes, fill_value=0)
    small = [f"{name} ({count})" for name, count in n_groups.items() if count < n_folds]
    if not small:
        return []
    text = f"fewer {cohort.group}s than the {n_folds} folds, so some folds cannot test it"
    return [Finding("small", False, f"{cohort.name} has classes with {text}: {first_few(small, 10)}")]


def _absent_classes(cohort: Cohort, parts: pd.DataFrame) -> list[Finding]:
    """Classes without samples in a part that a published split has."""
    absent = [
        f"{name} ({part} of {split})"
        for split, words in parts.items()
        for part in ("train", "val", "test")
        if (there := (words == part).to_numpy()).any()
        for name in cohort.classes
        if name not in set(cohort.table["class"][there])
    ]
    text = f"{cohort.name} has classes without samples in a part of its published splits: {first_few(absent, 10)}"
    return [Finding("small", False, text)] if absent else []
