"""TCGA-GBMLGG as Pathomic Fusion lays it out: patches of H&E regions with the patient's genomic profile.

Source: Chen et al., IEEE TMI 41:757, 2022 (Pathomic Fusion); regions and splits of Mobadersany et al., PNAS 115:E2970,
2018.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages, first_few
from medkd.data.restricted_pickle import read_pickle
from medkd.data.tables import encode_columns, existing_folder, read_table, refuse_repeats
from medkd.data.tiles import PATCH, STRIDE, tile_boxes
from medkd.errors import DataError

TITLE = "TCGA-GBMLGG, Pathomic Fusion's regions"
LICENCE = "TCGA open-access data (NIH Genomic Data Commons), publication guidelines apply"
ATTRIBUTION = "The TCGA Research Network; regions of Mobadersany et al. 2018, resized"
WEBSITE = "https://github.com/mahmoodlab/PathomicFusion"

GENOMICS = ("all_dataset.csv", "all_datasets.csv")
GRADES, SPLITS, PICKLES = "grade_data.csv", "pnas_splits.csv", "splits"
REGIONS, PATCHES = "all_st", f"all_st_patches_{PATCH}"
PATIENT = "TCGA ID"
METADATA = (PATIENT, "censored", "Survival months", "Histology", "Grade", "Molecular subtype", "indexes", "Unnamed: 0")
"""Columns of the genomic table that are no genomics."""
N_ID = 12
"""Letters of an image's name that are the patient's id."""

CLASSES = ("grade II", "grade III", "grade IV")


def read(
    root: str | Path,
    *,
    patches: bool = True,
    patch: int = PATCH,
    stride: int = STRIDE,
    ignore_missing_moltype: bool = False,
    cache_dir: Path | None = None,
) -> Cohort:
    """The regions whose patient has a grade, cut into patches on the fly, one row a patch.

    Args:
        root: folder `data/TCGA_GBMLGG` of Pathomic Fusion: `all_dataset.csv`, `grade_data.csv`, and the regions in
            `all_st/` (PNG, 1024 px), or the patches already cut in `all_st_patches_512/`. `pnas_splits.csv`, or else
            the one pickle in `splits/`, gives the published splits.
        patches: whether regions are cut; if not, a row is a whole region.
        patch: side of a patch, px.
        stride: distance of neighbouring patches, px.
        ignore_missing_moltype: whether to leave patients without a molecular subtype out, as the released grading does.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort sorted by region; main modality "histology", second the vector "genomic": every column of
        `all_dataset.csv` that is no outcome. Gaps stay gaps and are imputed from training rows (the released code took
        the median over all patients, test patients included). `roi` is the region, `event` 1 - censored.

    Raises:
        DataError: if a file or column is missing, a patient comes twice, a value is no number, or no region has a
            graded patient.
    """
    root = existing_folder(root, TITLE)
    patients = _patients(root)
    without_grade = int(patients["grade"].isna().sum())
    known = patients["grade"].notna()
    if ignore_missing_moltype:
        known &= patients["subtype"].notna()
    patients = patients[known]
    paths, crops = _images(root, patches, patch, stride)
    owner = pd.Series([PurePosixPath(path).name[:N_ID] for path in paths])
    kept = np.flatnonzero(owner.isin(patients.index).to_numpy())
    if not len(kept):
        raise DataError(
            f"no image under {root} belongs to a graded patient of {GRADES}: the images start with "
            f"{first_few(sorted(set(owner)))}, the table has {first_few(list(patients.index))}; use one release"
        )
    paths = [paths[row] for row in kept]
    crops = None if crops is None else [crops[row] for row in kept]
    table = _rows(paths, crops, patients)
    genomic = patients.attrs["genomic"]
    position = pd.Series(range(len(genomic["ids"])), index=genomic["ids"])
    values = genomic["vector"].values[position[table["patient"]].to_numpy()]
    return Cohort(
        name="tcga-gbmlgg-pathomic",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={"histology": FileImages(paths, root=root, cache_dir=cache_dir, crops=crops)},
        vectors={"genomic": VectorTable(values, genomic["vector"].names)},
        main="histology",
        second="genomic",
        group="patient",
        splits=_splits(root, table),
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={
            "n_regions": int(table["roi"].nunique()),
            "n_patients_without_grade": without_grade,
            "n_patients_without_region": len(set(patients.index) - set(owner)),
            "n_images_without_patient": len(owner) - len(kept),
        },
    )


def published_splits(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The splits of a published pickle, which holds `cv_splits`, for the rows of a cohort's table.

    Args:
        path: of the pickle; read by `medkd.data.restricted_pickle.read_pickle`.
        table: with a column `patient`.

    Returns:
        Rows as in `table`, one column a split, cells "train", "test" or "".

    Raises:
        DataError: the file asks for more than arrays and tables, or is not of this form.
    """
    content = read_pickle(path)
    try:
        splits = content["cv_splits"]
        members = {
            f"split_{k}": {part: set(map(str, splits[k][part]["x_patname"])) for part in ("train", "test")}
            for k in sorted(splits)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no cv_splits with train and test x_patname ({error!r}); use a published split pickle"
        ) from error
    return pd.DataFrame(
        {
            name: np.select([table["patient"].isin(parts[part]) for part in ("train", "test")], ["train", "test"], "")
            for name, parts in members.items()
        },
        index=table.index,
    )


def _patients(root: Path) -> pd.DataFrame:
    """One row a patient of both tables, index patient id; `attrs["genomic"]` holds the vectors."""
    path = next((root / name for name in GENOMICS if (root / name).is_file()), root / GENOMICS[0])
    genomics = read_table(path, (PATIENT, "censored", "Survival months"), keys=[PATIENT])
    grades = read_table(root / GRADES, (PATIENT, "Grade", "Histology", "Molecular subtype"), keys=[PATIENT])
    for table, file in ((genomics, path.name), (grades, GRADES)):
        refuse_repeats(table, PATIENT, file=file)
    columns = [name for name in genomics if name not in (*METADATA, *grades.columns)]
    if not columns:
        raise DataError(f"{path} has no genomic columns beside the outcomes; use the publisher's file as it is")
    vector = encode_columns(genomics, numbers=columns, file=path.name)
    followed = encode_columns(genomics, numbers=("censored", "Survival months"), file=path.name).values
    grade = encode_columns(grades, numbers=("Grade",), file=GRADES).values[:, 0]
    if not np.isin(grade[~np.isnan(grade)], (2, 3, 4)).all():
        raise DataError(f"{root / GRADES} must have Grade 2, 3 or 4, or nothing where unknown; correct these rows")
    months = np.where(followed[:, 1] > 0, followed[:, 1], np.nan)
    outcome = pd.DataFrame({"survival_months": months, "event": 1 - followed[:, 0]}, index=genomics[PATIENT])
    outcome.loc[outcome["survival_months"].isna(), "event"] = np.nan
    histology = pd.DataFrame(
        {
            "grade": grade,
            "histology": grades["Histology"].to_numpy(),
            "subtype": grades["Molecular subtype"].to_numpy(),
        },
        index=grades[PATIENT],
    )
    patients = outcome.join(histology, how="inner")
    patients.attrs["genomic"] = {"ids": genomics[PATIENT].tolist(), "vector": vector}
    return patients


def _images(root: Path, patches: bool, patch: int, stride: int) -> tuple[list[str], list | None]:
    """Image files, and the boxes to cut out of each (None: none)."""
    store = FileStore(root)
    if not store.has(REGIONS) and store.has(PATCHES) and patches:
        return store.images(PATCHES), None
    paths = store.images(REGIONS)
    if not patches:
        return paths, None
    sizes = FileImages(paths, root=root).file_sizes()
    unreadable = [path for path, (width, _) in zip(paths, sizes, strict=True) if not width]
    if unreadable:
        raise DataError(f"{root} has regions that are no images: {first_few(unreadable)}; copy them again")
    return paths, [
        tile_boxes(int(width), int(height), patch=patch, stride=stride, name=path)
        for path, (width, height) in zip(paths, sizes, strict=True)
    ]


def _rows(paths: list[str], crops: list | None, patients: pd.DataFrame) -> pd.DataFrame:
    """The cohort's table: one row a patch (or image), in the order of the files."""
    stems = [PurePosixPath(path).stem for path in paths]
    if crops is None:
        cut = [PurePosixPath(path).parts[0] == PATCHES for path in paths]
        regions = [stem.rsplit("_", 2)[0] if is_cut else stem for stem, is_cut in zip(stems, cut, strict=True)]
        ids = stems
    else:
        regions = [stem for stem, boxes in zip(stems, crops, strict=True) for _ in boxes]
        ids = [f"{stem}_{box[0]}_{box[1]}" for stem, boxes in zip(stems, crops, strict=True) for box in boxes]
    table = pd.DataFrame({"id": ids, "roi": regions, "patient": [region[:N_ID] for region in regions]})
    own = patients.loc[table["patient"]].reset_index(drop=True)
    table["label"] = own["grade"].astype(int) - 2
    table["class"] = np.array(CLASSES, object)[table["label"]]
    for column in ("survival_months", "event", "histology", "subtype"):
        table[column] = own[column]
    return table


def _splits(root: Path, table: pd.DataFrame) -> pd.DataFrame | None:
    """The published splits that lie in the folder, None if there are none."""
    if (root / SPLITS).is_file():
        splits = read_table(root / SPLITS, ())
        splits = splits.set_index(splits.iloc[:, 0].astype(str)).iloc[:, 1:]
        words = splits.apply(lambda column: column.astype(str).str.strip().str.lower())
        unknown = sorted(set(words.to_numpy().ravel()) - {"train", "test", "nan", ""})
        if unknown:
            raise DataError(f'{root / SPLITS} has the word "{unknown[0]}", known are Train and Test; copy it again')
        own = words.reindex(table["patient"]).fillna("").replace("nan", "").reset_index(drop=True)
        return own.set_axis([f"split_{number + 1}" for number in range(own.shape[1])], axis="columns")
    pickles = sorted((root / PICKLES).glob("*.pkl"))
    return published_splits(pickles[0], table) if len(pickles) == 1 else None
