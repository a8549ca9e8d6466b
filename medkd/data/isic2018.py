"""ISIC 2018 Task 3 (HAM10000): the challenge's training folder as a cohort of the rare-disease chain.

Source: Tschandl, Rosendahl, Kittler 2018, doi:10.1038/sdata.2018.161; Codella et al. 2019, arXiv:1902.03368.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.images import FileImages, first_few, pixel_size
from medkd.errors import DataError

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
"""A file of this name in the folder lists image ids, one a line, that are left out: the only way to skip an image."""

CLASSES = ("NV", "MEL", "BKL", "BCC", "AKIEC", "VASC", "DF")
"""By size in the full training set: 6705, 1113, 1099, 514, 327, 142, 115."""
BASE_CLASSES = ("NV", "MEL", "BKL", "BCC")
RARE_CLASSES = ("DF", "AKIEC", "VASC")
"""In the order of the paper's A1, A2, A3."""


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """The training split; validation and test images of the challenge are left alone.

    Args:
        root: folder with `ISIC2018_Task3_Training_Input/*.jpg` and `ISIC2018_Task3_Training_GroundTruth.csv` (beside it
            or in a folder of its own name). `HAM10000_metadata.csv` or `ISIC2018_Task3_Training_LesionGroupings.csv`
            gives the lesion of each image; without both every image counts as a lesion and `group` is "image". Images
            that `skip.txt` lists are left out.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort, one row an image sorted by id, modality "dermoscopic".

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
    there = [image for image in skipped if (root / IMAGES / f"{image}.jpg").is_file()]  # a skipped file may be missing
    expected = [f"{image}.jpg" for image in [*truth["image"][kept], *there]]
    check_files(root / IMAGES, "*.jpg", expected, table=f"{TRUTH}.csv")
    truth, names = truth[kept].reset_index(drop=True), names[kept]

    table = pd.DataFrame({"id": truth["image"], "label": [CLASSES.index(name) for name in names], "class": names})
    lesions = _lesions(root, table["id"])
    table["patient"] = table["id"] if lesions is None else lesions["lesion_id"].to_numpy()
    table["roi"] = table["id"]
    for column in EXTRA_COLUMNS if lesions is not None else ():
        if column in lesions:
            table[column] = lesions[column].to_numpy()

    paths = [f"{IMAGES}/{image}.jpg" for image in table["id"]]
    width, height = pixel_size(root / paths[0])
    return Cohort(
        name="isic2018",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={"dermoscopic": _Images(paths, root=root, cache_dir=cache_dir)},
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
        DataError: if it lists an id that the truth table does not have.
    """
    if not (root / SKIP).is_file():
        return []
    listed = sorted({line.strip().removesuffix(".jpg") for line in (root / SKIP).read_text().splitlines()} - {""})
    if unknown := sorted(set(listed) - set(known)):
        raise DataError(f"{root / SKIP} lists images that {TRUTH}.csv does not have: {first_few(unknown)}; correct it")
    return listed


def existing_folder(root: str | Path, title: str) -> Path:
    """`root` as a path.

    Raises:
        DataError: if there is no such folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; set root to the folder with the files of {title}")
    return folder


def read_table(path: Path, columns: Sequence[str], *, keys: Sequence[str]) -> pd.DataFrame:
    """A publisher's CSV with at least these columns; `keys` are the columns of ids, read as text.

    Raises:
        DataError: if the file is missing, is no CSV, has no rows, lacks a column, or has a row without an id.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; set root to the publisher's unpacked folder, which holds it")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(keys, str))
    except (ValueError, OSError) as error:  # pandas' own CSV errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table ({error}); copy it again from the publisher") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(missing)}, it has {first_few(list(table.columns), 12)}; "
            "use the publisher's file as it is"
        )
    if table.empty or table[list(keys)].isna().any(axis=None):
        raise DataError(f"{path} has no rows, or rows without {' or '.join(keys)}; copy it again from the publisher")
    return table


def one_hot_classes(table: pd.DataFrame, classes: Sequence[str], *, key: str, file: str) -> np.ndarray:
    """The class name of each row out of one 0/1 column a class, shape (n,), str objects.

    Raises:
        DataError: if a row has not exactly one 1 among zeros, or a `key` comes twice.
    """
    repeated = table[key][table[key].duplicated()].unique().tolist()
    if repeated:
        raise DataError(f"{file} has several rows for {key} {first_few(repeated)}; each needs one label")
    scores = table[list(classes)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = ~(np.isin(scores, (0.0, 1.0)).all(axis=1) & (scores.sum(axis=1) == 1.0))
    if wrong.any():
        raise DataError(
            f"{file} is not one-hot for {key} {first_few(table[key][wrong].tolist())}: exactly one of "
            f"{', '.join(classes)} must be 1 and the others 0; correct or remove these rows"
        )
    return np.array(classes, dtype=object)[scores.argmax(axis=1)]


def check_files(folder: Path, pattern: str, expected: Sequence[str], *, table: str) -> None:
    """Compare the image files in a folder with the rows of a table.

    Args:
        folder: where the images lie.
        pattern: glob of the image files in `folder`; hidden files (macOS archives hold some) are passed over.
        expected: their names relative to `folder`, as `table` asks for them.
        table: file name of the table, for the message.

    Raises:
        DataError: if the folder is missing, a row has no file, or a file no row.
    """
    if not folder.is_dir():
        raise DataError(f"the image folder {folder} is missing; unpack the publisher's archive into {folder.parent}")
    found = {path.relative_to(folder).as_posix() for path in folder.glob(pattern) if not path.name.startswith(".")}
    absent, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if absent:
        raise DataError(f"{table} names images that {folder} lacks: {first_few(absent)}; unpack the archive again")
    if extra:
        raise DataError(
            f"{folder} holds images without a row in {table}: {first_few(extra)}; remove them or use the full table"
        )


def _lesions(root: Path, ids: pd.Series) -> pd.DataFrame | None:
    """Rows of the first lesion table that is there, in the order of `ids`; None if there is none."""
    for name, key in LESION_TABLES.items():
        if not (root / name).is_file():
            continue
        lesions = (
            read_table(root / name, (key, "lesion_id"), keys=[key, "lesion_id"])
            .drop_duplicates(key)
            .set_index(key)
            .reindex(ids)
        )
        without = lesions.index[lesions["lesion_id"].isna()].tolist()
        if without:
            raise DataError(
                f"{root / name} gives no lesion for images {first_few(without)}, so one lesion could fall into two "
                "splits; use the publisher's full table"
            )
        return lesions
    return None
