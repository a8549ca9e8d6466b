"""MILK10k: a clinical close-up and a dermoscopic image of each lesion, a cohort of the teacher-student chain.

Source: MILK study team, MILK10k, ISIC Archive 2025; Tschandl et al., Journal of Investigative Dermatology 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.tables import check_files, encode_columns, existing_folder, one_hot_classes, read_table
from medkd.errors import DataError, ParameterError, first_few

TITLE = "MILK10k"
LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = "MILK10k: MILK study team (CC BY-NC 4.0), resized"
WEBSITE = "https://challenge.isic-archive.com/data/#milk10k"

IMAGES = "MILK10k_Training_Input"
TRUTH = "MILK10k_Training_GroundTruth.csv"
METADATA = "MILK10k_Training_Metadata.csv"
MODALITIES = {"dermoscopic": "dermoscopic", "clinical: close-up": "clinical"}
"""The publisher's `image_type` -> our modality. The file names tell nothing."""
# The MONET scores stay out: a model that saw the images made them, so they are no patient metadata.
EXTRA_COLUMNS = ("age_approx", "sex", "skin_tone_class", "site")
NUMBERS, CATEGORIES = ("age_approx", "skin_tone_class"), ("sex", "site")
"""The columns of the metadata vector; the skin tone is ordinal, 0 dark to 5 light."""

CLASSES = ("BCC", "NV", "BKL", "SCCKA", "MEL", "AKIEC", "INF", "DF", "BEN_OTH", "VASC", "MAL_OTH")
"""By size."""
FIVE_LARGEST = CLASSES[:5]


def read(root: str | Path, *, classes: Sequence[str] | None = None, cache_dir: Path | None = None) -> Cohort:
    """The training lesions, one row per lesion with both of its images; the official set has no other labelled split.

    Args:
        root: folder with `MILK10k_Training_Input/<lesion_id>/<isic_id>.jpg` (or that archive, `.zip`, as downloaded),
            `MILK10k_Training_GroundTruth.csv` and `MILK10k_Training_Metadata.csv`.
        classes: classes to keep, labels count in this order; all eleven, by size, by default.
        cache_dir: where decoded images go, see `FileImages`; every choice of classes shares one cache.

    Returns:
        The cohort sorted by lesion id; `patient` is the lesion, because no patient ids are published. Its vectors
        "metadata" (age, skin tone, sex, site) can take a slot with `with_slots(second="metadata")`.

    Raises:
        DataError: if a file or column is missing, a label is not one-hot, or a lesion has not one image of each type.
        ParameterError: if `classes` names an unknown class, one class twice, or fewer than two.
    """
    kept = CLASSES if classes is None else tuple(classes)
    if len(kept) < 2 or len(set(kept)) < len(kept) or not set(kept) <= set(CLASSES):
        raise ParameterError(
            f"classes = {kept} is no choice of two or more different classes of MILK10k; known are {', '.join(CLASSES)}"
        )
    root = existing_folder(root, TITLE)
    truth = read_table(root / TRUTH, ("lesion_id", *CLASSES), keys=["lesion_id"]).sort_values(
        "lesion_id", ignore_index=True
    )
    names = one_hot_classes(truth, CLASSES, key="lesion_id", file=TRUTH)
    metadata = read_table(
        root / METADATA, ("lesion_id", "image_type", "isic_id", *EXTRA_COLUMNS), keys=["lesion_id", "isic_id"]
    )
    pairs = _pair(metadata, truth["lesion_id"])
    files = {
        name: (f"{IMAGES}/" + pair["lesion_id"] + "/" + pair["isic_id"] + ".jpg").tolist()
        for name, pair in pairs.items()
    }
    check_files(FileStore(root), IMAGES, [path for paths in files.values() for path in paths], table=METADATA)

    table = pd.DataFrame(
        {"id": truth["lesion_id"], "class": names, "patient": truth["lesion_id"], "roi": truth["lesion_id"]}
    )
    for column in EXTRA_COLUMNS:
        table[column] = pairs["clinical"][column].to_numpy()
    encoded = encode_columns(table, numbers=NUMBERS, categories=CATEGORIES, file=METADATA)
    rows = np.flatnonzero(table["class"].isin(kept).to_numpy())
    table = table.iloc[rows].reset_index(drop=True)
    table.insert(1, "label", [kept.index(name) for name in table["class"]])
    images = {name: FileImages(paths, root=root, cache_dir=cache_dir).take(rows) for name, paths in files.items()}
    width, height = images["clinical"].file_pixels()
    return Cohort(
        name="milk10k-5" if kept == FIVE_LARGEST else "milk10k",
        title=TITLE if kept == CLASSES else f"{TITLE}, {len(kept)} classes",
        simulated=False,
        classes=kept,
        table=table,
        images=images,
        vectors={"metadata": VectorTable(encoded.values[rows], encoded.names)},
        main="clinical",
        second="dermoscopic",
        group="lesion",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"split": "training", "n_lesions": len(table), "file_pixels": f"{width}x{height}"},
    )


def _pair(metadata: pd.DataFrame, lesions: pd.Series) -> dict[str, pd.DataFrame]:
    """Modality -> the metadata rows of its images, one per lesion in the order of `lesions`."""
    unknown = sorted(set(metadata["image_type"].astype(str)) - set(MODALITIES))
    if unknown:
        raise DataError(
            f"{METADATA} has the image_type {first_few(unknown)}, known are {', '.join(MODALITIES)}; "
            "use the publisher's file as it is"
        )
    pairs = {}
    for image_type, modality in MODALITIES.items():
        images = metadata[metadata["image_type"] == image_type]
        n_images = images["lesion_id"].value_counts().reindex(lesions, fill_value=0)
        wrong = n_images.index[n_images != 1].tolist()
        if wrong:
            raise DataError(
                f'{METADATA} must give each lesion one "{image_type}" image, and does not for {first_few(wrong)}; '
                "use the publisher's full table"
            )
        pairs[modality] = images.set_index("lesion_id", drop=False).loc[lesions].reset_index(drop=True)
    unlabelled = sorted(set(metadata["lesion_id"]) - set(lesions))
    if unlabelled:
        raise DataError(
            f"{METADATA} has lesions without a row in {TRUTH}: {first_few(unlabelled)}; use tables of one release"
        )
    return pairs
