"""PAD-UFES-20: smartphone photographs of skin lesions with clinical data of the patient as the second modality.

Source: Pacheco et al., Data in Brief 32:106221, 2020, doi:10.1016/j.dib.2020.106221; data doi:10.17632/zr7vgbcyr2.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.tables import encode_columns, existing_folder, find_files, named_classes, read_table

TITLE = "PAD-UFES-20"
LICENCE = "CC BY 4.0"
ATTRIBUTION = "PAD-UFES-20: Pacheco et al. 2020 (CC BY 4.0), resized"
WEBSITE = "https://data.mendeley.com/datasets/zr7vgbcyr2"

TABLE = "metadata.csv"
RELEASE = "zr7vgbcyr2-1"
"""Folder that Mendeley's archive may unpack into."""
FOLDERS = tuple(f"{above}imgs_part_{part}" for above in ("", "images/") for part in (1, 2, 3))
"""Folders, or zip archives of these names, that the images may lie in."""

CLASSES = ("BCC", "ACK", "NEV", "SEK", "SCC", "MEL")
"""By size."""
NUMBERS = ("age", "fitspatrick", "diameter_1", "diameter_2")
FLAGS = (
    "smoke", "drink", "pesticide", "skin_cancer_history", "cancer_history", "has_piped_water", "has_sewage_system",
    "itch", "grew", "hurt", "changed", "bleed", "elevation",
)  # fmt: skip
CATEGORIES = ("gender", "region", "background_father", "background_mother")
"""Columns of the metadata vector. `biopsed` stays out: every cancer was biopsied, so it gives the label away.

So do the gaps, in part: gender, history, background, skin type and diameters are empty together, in most lesions that
were not biopsied and in no other. A teacher that sees them may use that; age, region and symptoms have no such gaps.
"""
EXTRA_COLUMNS = ("lesion_id", "age", "gender", "region", "fitspatrick")


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """All images, one row each; several may show one lesion, and a patient may have several lesions.

    Args:
        root: folder with `metadata.csv` and the images in `imgs_part_1` to `_3` (folders or zip archives, also inside
            `images/`, also unpacked twice as Kaggle does).
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort sorted by image; main modality "clinical", second the vector "metadata"; `roi` is the lesion.

    Raises:
        DataError: if a file or column is missing, a diagnosis is unknown, a value is none of its kind, a row has no
            image or an image no row.
    """
    root = existing_folder(root, TITLE)
    root = root / RELEASE if (root / RELEASE / TABLE).is_file() else root
    columns = ("patient_id", "lesion_id", "img_id", "diagnostic", *NUMBERS, *FLAGS, *CATEGORIES)
    rows = read_table(root / TABLE, columns, keys=["patient_id", "lesion_id", "img_id"])
    rows = rows.sort_values("img_id", ignore_index=True)
    names = named_classes(rows, "diagnostic", {name.lower(): name for name in CLASSES}, key="img_id", file=TABLE)
    table = pd.DataFrame({"id": rows["img_id"].map(lambda name: PurePosixPath(name).stem), "class": names})
    table["label"] = [CLASSES.index(name) for name in names]
    table["patient"], table["roi"] = rows["patient_id"], rows["patient_id"] + "/" + rows["lesion_id"]
    for column in EXTRA_COLUMNS:
        table[column] = rows[column]
    missing = "put imgs_part_1.zip, imgs_part_2.zip and imgs_part_3.zip there, or their content"
    named = {"table": TABLE, "missing": missing, "remedy": "get all three parts"}
    paths = find_files(FileStore(root), FOLDERS, rows["img_id"], **named)
    images = FileImages(paths, root=root, cache_dir=cache_dir)
    return Cohort(
        name="pad-ufes-20",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={"clinical": images},
        vectors={"metadata": encode_columns(rows, numbers=NUMBERS, flags=FLAGS, categories=CATEGORIES, file=TABLE)},
        main="clinical",
        second="metadata",
        group="patient",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"n_images": len(table), "n_lesions": int(table["roi"].nunique())},
    )
