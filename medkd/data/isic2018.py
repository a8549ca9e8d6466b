"""ISIC 2018 Task 3 (HAM10000): the challenge's training folder as a cohort of the rare-disease chain.

Source: Tschandl, Rosendahl, Kittler 2018, doi:10.1038/sdata.2018.161; Codella et al. 2019, arXiv:1902.03368.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.tables import check_files, existing_folder, one_hot_classes, read_table
from medkd.errors import DataError, first_few

TITLE = "ISIC 2018 Task 3 (HAM10000)"
LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = (
    "HAM10000 / ISIC 2018: ViDIR Group, Department of Dermatology, Medical University of Vienna (CC BY-NC 4.0), resized"
)
WEBSITE = "https://challenge.isic-archive.com/data/#2018"

IMAGES = "ISIC2018_Task3_Training_Input"
TRUTH = "ISIC2018_Task3_Training_GroundTruth"
# The tables that tell which images show one lesion, best first: file name -> its column of image ids.
LESION_TABLES = {"HAM10000_metadata.csv": "image_id", "ISIC2018_Task3_Training_LesionGroupings.csv": "image"}
EXTRA_COLUMNS = ("age", "sex", "localization")
SKIP = "skip.txt"
"""A file of this name in the folder lists image ids, one per line, that are left out: the only way to skip an image."""

CLASSES = ("NV", "MEL", "BKL", "BCC", "AKIEC", "VASC", "DF")
"""By size in the full training set: 6705, 1113, 1099, 514, 327, 142, 115."""
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")
"""In the order of the paper's A1, A2, A3."""


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """The training split; validation and test images of the challenge are left alone.

    Args:
        root: folder with `ISIC2018_Task3_Training_Input/*.jpg` (or that archive, `.zip`, as downloaded) and
            `ISIC2018_Task3_Training_GroundTruth.csv` (beside it or in a folder of its own name).
            `HAM10000_metadata.csv` or `ISIC2018_Task3_Training_LesionGroupings.csv` gives the lesion of each image;
            without both every image counts as a lesion and `group` is "image". Images that `skip.txt` lists are left
            out.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort, one row per image sorted by id, modality "dermoscopic".

    Raises:
        DataError: if a file or column is missing, a label is not one-hot, or images and rows do not match; later, when
            pixels are asked for, if an image cannot be decoded.
    """
    root = existing_folder(root, TITLE)
    beside, inside = root / f"{TRUTH}.csv", root / TRUTH / f"{TRUTH}.csv"
    truth = read_table(
        inside if inside.is_file() and not beside.is_file() else beside, ("image", *CLASSES), keys=["image"]
    )
    truth = truth.sort_values("image", ignore_index=True)
    names = one_hot_classes(truth, CLASSES, key="image", file=f"{TRUTH}.csv")
    skipped = _skipped(root, truth["image"])
    kept = ~np.isin(truth["image"].to_numpy(str), skipped)
    store = FileStore(root)
    there = [image for image in skipped if store.holds(f"{IMAGES}/{image}.jpg")]  # a skipped file may be missing
    expected = [f"{IMAGES}/{image}.jpg" for image in [*truth["image"][kept], *there]]
    check_files(store, IMAGES, expected, table=f"{TRUTH}.csv")
    truth, names = truth[kept].reset_index(drop=True), names[kept]

    table = pd.DataFrame({"id": truth["image"], "label": [CLASSES.index(name) for name in names], "class": names})
    lesions = _lesions(root, table["id"])
    table["patient"] = table["id"] if lesions is None else lesions["lesion_id"].to_numpy()
    table["roi"] = table["id"]
    for column in EXTRA_COLUMNS if lesions is not None else ():
        if column in lesions:
            table[column] = lesions[column].to_numpy()

    paths = [f"{IMAGES}/{image}.jpg" for image in table["id"]]
    images = _Images(paths, root=root, cache_dir=cache_dir)
    width, height = images.file_pixels()
    return Cohort(
        name="isic2018",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={"dermoscopic": images},
        base_classes=BASE_CLASSES,
        rare_classes=RARE_CLASSES,
        group="image" if lesions is None else "lesion",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={
            "split": "training",
            "n_images": len(table),
            "n_skipped": len(skipped),
            "file_pixels": f"{width}x{height}",
        },
    )


class _Images(FileImages):
    """Image files whose error tells how to leave a damaged one out."""

    def load(self, size: int) -> np.ndarray:
        """As `FileImages.load`."""
        try:
            return super().load(size)
        except DataError as error:
            raise DataError(f"{error}, or list their ids in {SKIP} in that folder to leave them out") from error


def _skipped(root: Path, known: pd.Series) -> list[str]:
    """The ids that `skip.txt` lists, ascending; none without such a file.

    Raises:
        DataError: if it is no UTF-8, or lists an id that the truth table does not have.
    """
    if not (root / SKIP).is_file():
        return []
    try:
        lines = (root / SKIP).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{root / SKIP} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    listed = sorted({line.strip().removesuffix(".jpg") for line in lines} - {""})
    if unknown := sorted(set(listed) - set(known)):
        raise DataError(f"{root / SKIP} lists images that {TRUTH}.csv does not have: {first_few(unknown)}; correct it")
    return listed


def _lesions(root: Path, ids: pd.Series) -> pd.DataFrame | None:
    """Rows of the first lesion table that is there, in the order of `ids`; None if there is none."""
    for name, key in LESION_TABLES.items():
        if not (root / name).is_file():
            continue
        rows = read_table(root / name, (key, "lesion_id"), keys=[key, "lesion_id"])
        pairs = rows[[key, "lesion_id"]].drop_duplicates()
        if twice := pairs[key][pairs[key].duplicated()].unique().tolist():
            raise DataError(
                f"{root / name} gives several lesions for images {first_few(twice)}, so one lesion could fall into two "
                "splits; use the publisher's table"
            )
        lesions = rows.drop_duplicates(key).set_index(key).reindex(ids)
        without = lesions.index[lesions["lesion_id"].isna()].tolist()
        if without:
            raise DataError(
                f"{root / name} gives no lesion for images {first_few(without)}, so one lesion could fall into two "
                "splits; use the publisher's full table"
            )
        return lesions
    return None
