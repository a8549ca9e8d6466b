"""Derm7pt: a dermoscopic and a clinical image of each case, with the seven-point checklist.

Source: Kawahara, Daneshvar, Argenziano, Hamarneh, IEEE JBHI 23:538, 2019, doi:10.1109/JBHI.2018.2824327; the grouping
of diagnoses and criteria is that of its section on the data set. The 25-pixel border that the authors' code crops is
left on: crop the files where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.tables import encode_columns, existing_folder, named_classes, read_table
from medkd.errors import DataError, first_few

TITLE = "Derm7pt"
LICENCE = "academic research only, no redistribution (release note of the data set)"
ATTRIBUTION = "Derm7pt: G. Argenziano; Kawahara et al. 2019 (academic use, not for redistribution), resized"
WEBSITE = "https://derm.cs.sfu.ca"

META = "meta/meta.csv"
INDEXES = {"train": "meta/train_indexes.csv", "val": "meta/valid_indexes.csv", "test": "meta/test_indexes.csv"}
IMAGES = "images"
RELEASE = "release_v0"
MODALITIES = {"dermoscopic": "derm", "clinical": "clinic"}
"""Modality -> the column of its file names."""

CLASSES = ("BCC", "NEV", "MEL", "MISC", "SK")
_NEVI = ("blue", "clark", "combined", "congenital", "dermal", "recurrent", "reed or spitz")
_MELANOMAS = ("", " (in situ)", " (less than 0.76 mm)", " (0.76 to 1.5 mm)", " (more than 1.5 mm)", " metastasis")
_MISCELLANEOUS = ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion")
DIAGNOSES = (
    {"basal cell carcinoma": "BCC", "seborrheic keratosis": "SK", "nevus": "NEV"}
    | {f"{kind} nevus": "NEV" for kind in _NEVI}
    | {f"melanoma{stage}": "MEL" for stage in _MELANOMAS}
    | dict.fromkeys(_MISCELLANEOUS, "MISC")
)
"""The publisher's diagnosis -> class."""

_REGULAR = {"absent": "absent", "regular": "regular", "irregular": "irregular"}
_PIGMENTATION = {f"{where} {how}": how for where in ("diffuse", "localized") for how in ("regular", "irregular")}
_VESSELS = dict.fromkeys(("arborizing", "comma", "hairpin", "within regression", "wreath"), "regular")
_VESSELS |= dict.fromkeys(("dotted", "linear irregular"), "irregular")
_REGRESSION = dict.fromkeys(("blue areas", "white areas", "combinations"), "present")
CRITERIA = {
    "pigment_network": {"absent": "absent", "typical": "typical", "atypical": "atypical"},
    "streaks": _REGULAR,
    "pigmentation": {"absent": "absent"} | _PIGMENTATION,
    "regression_structures": {"absent": "absent"} | _REGRESSION,
    "dots_and_globules": _REGULAR,
    "blue_whitish_veil": {"absent": "absent", "present": "present"},
    "vascular_structures": {"absent": "absent"} | _VESSELS,
}
"""Column of a criterion -> the publisher's word -> the group of the paper."""
METADATA = ("sex", "location", "elevation")


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """All cases, one row each, with the publisher's training, validation and test part as the split "official".

    Args:
        root: the release's folder, with `meta/meta.csv`, `meta/{train,valid,test}_indexes.csv` and `images/` (or
            `images.zip`); or the folder that `release_v0` lies in.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort in the publisher's order; main modality "dermoscopic", second "clinical". A case is its own group:
        the few `case_id`s that are filled in differ from one another. Vectors: "metadata" (sex, location, elevation)
        and "seven_point" (the grouped criteria, which an expert read off the dermoscopic image: a teacher may see
        them, a student that is to work without the expert may not). The groups are columns of the table, too. In
        `settings`, `n_replaced` counts cases whose missing clinical image the publisher replaced by the dermoscopic.

    Raises:
        DataError: if a file or column is missing, a word is unknown, the indexes do not divide the cases, or an image
            is missing.
    """
    root = existing_folder(root, TITLE)
    root = root / RELEASE if (root / RELEASE).is_dir() else root
    columns = ("case_num", "diagnosis", *CRITERIA, "seven_point_score", *METADATA, *MODALITIES.values())
    meta = read_table(root / META, columns, keys=["case_num", *MODALITIES.values()])
    names = named_classes(meta, "diagnosis", DIAGNOSES, key="case_num", file=META)
    table = pd.DataFrame({"id": "case_" + meta["case_num"].str.strip().str.zfill(4), "class": names})
    table["label"] = [CLASSES.index(name) for name in names]
    table["patient"] = table["roi"] = table["id"]
    for column, words in CRITERIA.items():
        table[column] = named_classes(meta, column, words, key="case_num", file=META)
    for column in ("diagnosis", "seven_point_score", *METADATA):
        table[column] = meta[column]
    images = {
        modality: FileImages(_paths(root, meta[column]), root=root, cache_dir=cache_dir)
        for modality, column in MODALITIES.items()
    }
    replaced = meta["notes"].notna() if "notes" in meta else pd.Series(False, index=meta.index)
    return Cohort(
        name="derm7pt",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images=images,
        vectors={
            "metadata": encode_columns(table, categories=METADATA, file=META),
            "seven_point": encode_columns(table, categories=tuple(CRITERIA), file=META),
        },
        main="dermoscopic",
        second="clinical",
        group="case",
        splits=pd.DataFrame({"official": _parts(root, len(meta))}),
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"n_cases": len(table), "n_replaced": int(replaced.sum())},
    )


def _parts(root: Path, n_cases: int) -> np.ndarray:
    """The part of every case, from the files of row numbers."""
    parts = np.full(n_cases, "", object)
    for part, name in INDEXES.items():
        rows = read_table(root / name, ("indexes",))["indexes"]
        numbers = pd.to_numeric(rows, errors="coerce")
        if not numbers.isin(range(n_cases)).all():
            raise DataError(
                f"{root / name} must hold row numbers 0 to {n_cases - 1} of {META}; use one release's files"
            )
        if (taken := parts[numbers.astype(int)] != "").any():
            several = numbers[taken].astype(int).tolist()
            raise DataError(f"{root / name} has rows that another part has, too: {first_few(several)}; copy it again")
        parts[numbers.astype(int)] = part
    if missing := np.flatnonzero(parts == "").tolist():
        raise DataError(f"the index files beside {root / META} leave rows out: {first_few(missing)}; copy them again")
    return parts


def _paths(root: Path, files: Sequence[str]) -> list[str]:
    """Names in the store of the files that the table names; their case may differ from that of the disk."""
    there = {name.lower(): name for name in FileStore(root).images(IMAGES)}
    wanted = [f"{IMAGES}/{file.strip()}" for file in files]
    absent = [name for name in wanted if name.lower() not in there]
    if absent:
        raise DataError(
            f"{META} names images that {root / IMAGES} lacks: {first_few(absent)}; unpack the release again"
        )
    return [there[name.lower()] for name in wanted]
