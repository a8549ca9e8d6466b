"""HAM10000 as Harvard Dataverse and Kaggle give it: the same images as ISIC 2018 Task 3, in two parts.

Source: Tschandl, Rosendahl, Kittler 2018, doi:10.1038/sdata.2018.161; data doi:10.7910/DVN/DBW86T.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medkd.data import isic2018
from medkd.data.cohort import Cohort
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.tables import existing_folder, find_files, named_classes, read_table

TITLE = "HAM10000"
LICENCE = isic2018.LICENCE
ATTRIBUTION = isic2018.ATTRIBUTION
WEBSITE = "https://doi.org/10.7910/DVN/DBW86T"

TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
"""Names of the table: Kaggle's, and the two of Dataverse's downloads."""
IMAGE_FOLDERS = (
    "HAM10000_images_part_1",
    "HAM10000_images_part_2",
    "ham10000_images_part_1",
    "ham10000_images_part_2",
    "HAM10000_images",
)
"""Folders, or zip archives of these names, that images may lie in; Kaggle unpacks them twice, in both spellings."""
WORDS = {name.lower(): name for name in isic2018.CLASSES}
EXTRA_COLUMNS = ("dx_type", *isic2018.EXTRA_COLUMNS)


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """All images, one row each, with the classes and the rare-disease task of `medkd.data.isic2018`.

    Args:
        root: folder with `HAM10000_metadata.csv` (or Dataverse's `HAM10000_metadata`, `.tab`) and the two parts of
            the images, as folders or as zip archives.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort sorted by image id; `patient` is the lesion.

    Raises:
        DataError: if a file or column is missing, a diagnosis is unknown, or images and rows do not match.
    """
    root = existing_folder(root, TITLE)
    path = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])
    columns = ("lesion_id", "image_id", "dx")
    table = read_table(path, columns, keys=["lesion_id", "image_id"], separator="\t" if path.suffix == ".tab" else ",")
    table = table.sort_values("image_id", ignore_index=True)
    names = named_classes(table, "dx", WORDS, key="image_id", file=path.name)
    missing = f"put {IMAGE_FOLDERS[0]}.zip and {IMAGE_FOLDERS[1]}.zip, or what is in them, there"
    named = {"table": path.name, "missing": missing, "remedy": "get both parts", "name_of": lambda file: file.stem}
    paths = find_files(FileStore(root), IMAGE_FOLDERS, table["image_id"], **named)
    frame = pd.DataFrame({"id": table["image_id"], "label": [isic2018.CLASSES.index(name) for name in names]})
    frame["class"], frame["patient"], frame["roi"] = names, table["lesion_id"], table["image_id"]
    for column in EXTRA_COLUMNS:
        if column in table:
            frame[column] = table[column]
    images = FileImages(paths, root=root, cache_dir=cache_dir)
    width, height = images.file_pixels()
    return Cohort(
        name="ham10000",
        title=TITLE,
        simulated=False,
        classes=isic2018.CLASSES,
        table=frame,
        images={"dermoscopic": images},
        base_classes=isic2018.BASE_CLASSES,
        rare_classes=isic2018.RARE_CLASSES,
        group="lesion",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"n_images": len(frame), "file_pixels": f"{width}x{height}"},
    )
