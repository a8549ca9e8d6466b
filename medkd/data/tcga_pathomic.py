"""TCGA-GBMLGG as Pathomic Fusion lays it out: patches of H&E regions with the patient's genomic profile.

Source: Chen et al., IEEE TMI 41:757, 2022 (Pathomic Fusion); regions and splits of Mobadersany et al., PNAS 115:E2970,
2018.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.decoding import Box
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.restricted_pickle import read_pickle
from medkd.data.tables import encode_columns, existing_folder, read_table, refuse_repeats
from medkd.data.tiles import PATCH, STRIDE, tile_boxes
from medkd.errors import DataError, first_few

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
    complete: bool = True,
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
        complete: whether to leave patients without a molecular subtype or histology out, as the released grading does.
        cache_dir: where decoded images go, see `FileImages`.

    Returns:
        The cohort sorted by region; second modality is the vector "genomic": every column of `all_dataset.csv` that is
        no outcome. Gaps stay gaps and are imputed from training rows (the released code took the median over all
        patients, test patients included). `roi` is the region, `event` 1 - censored.

    Raises:
        ParameterError: if `patch` or `stride` is no whole number of pixels.
        DataError: if a file or column is missing, a patient comes twice, a value is no number, a region is smaller than
            a patch, no region has a graded patient, or the splits are of other patients.
    """
    root = existing_folder(root, TITLE)
    patients, genomic = _patients(root)
    graded = patients.dropna(subset="grade")
    used = graded.dropna(subset=["subtype", "histology"]) if complete else graded
    store = FileStore(root)
    ready = patches and not store.has(REGIONS) and store.has(PATCHES)
    names = store.images(PATCHES if ready else REGIONS)
    paths = _of_patients(names, used.index, root)
    crops = _crops(paths, root, patch, stride) if patches and not ready else None
    table = _rows(paths, crops, used)
    return Cohort(
        name="tcga-gbmlgg-pathomic",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={"histology": FileImages(paths, root=root, cache_dir=cache_dir, crops=crops)},
        vectors={"genomic": VectorTable(genomic.values[used.loc[table["patient"], "row"]], genomic.names)},
        main="histology",
        second="genomic",
        splits=_splits(root, table),
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={
            "n_regions": int(table["roi"].nunique()),
            "n_patients_without_grade": int(patients["grade"].isna().sum()),
            "n_patients_incomplete": len(graded) - len(used),
            "n_patients_without_region": len(used) - table["patient"].nunique(),
            "n_images_without_patient": len(names) - len(paths),
        },
    )


def published_splits(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The splits of a published pickle, which holds `cv_splits`, for the rows of a cohort's table.

    Args:
        path: of the pickle; read by `medkd.data.restricted_pickle.read_pickle`.
        table: with a column `patient`.

    Returns:
        Rows as in `table`, one column per split, cells "train", "test" or "".

    Raises:
        DataError: the file asks for more than arrays and tables, is not of this form, puts a patient into both parts of
            a split, or knows no patient of the table.
    """
    content = read_pickle(path)
    try:
        splits = content["cv_splits"]
        members = {
            f"split_{k}": {part: set(map(str, splits[k][part]["x_patname"])) for part in ("train", "test")}
            for k in sorted(splits)
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} holds no cv_splits with train and test x_patname ({error!r}); use a published split pickle"
        ) from error
    for name, parts in members.items():
        both = sorted(parts["train"] & parts["test"])
        if both:
            raise DataError(
                f"{path} puts {first_few(both)} into both parts of {name}, so metrics would leak; "
                "each patient needs one"
            )
    words = {
        name: np.select([table["patient"].isin(parts[part]) for part in ("train", "test")], ["train", "test"], "")
        for name, parts in members.items()
    }
    return _of_this_cohort(pd.DataFrame(words, index=table.index), table, path)


def _patients(root: Path) -> tuple[pd.DataFrame, VectorTable]:
    """One row per patient of both tables, index patient id; the genomics, and in the column `row` where they are."""
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
    outcome["row"] = range(len(outcome))
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
    if patients.empty:
        raise DataError(
            f"{path} and {GRADES} share no {PATIENT}: they have {first_few(list(outcome.index))} and "
            f"{first_few(list(histology.index))}; use both tables of one release"
        )
    return patients, vector


def _of_patients(names: list[str], patients: pd.Index, root: Path) -> list[str]:
    """The image files that belong to one of the patients."""
    owners = [PurePosixPath(name).name[:N_ID] for name in names]
    own = [name for name, owner in zip(names, owners, strict=True) if owner in patients]
    if not own:
        raise DataError(
            f"no image under {root} belongs to a graded patient of {GRADES}: the images start with "
            f"{first_few(sorted(set(owners))) or 'nothing'}, the patients are {first_few(list(patients)) or 'none'}; "
            "use one release"
        )
    return own


def _crops(paths: list[str], root: Path, patch: int, stride: int) -> list[list[Box]]:
    """The boxes to cut out of each region."""
    sizes = FileImages(paths, root=root).file_sizes()
    unreadable = [path for path, (width, _) in zip(paths, sizes, strict=True) if not width]
    if unreadable:
        raise DataError(f"{root} has regions that are no images: {first_few(unreadable)}; copy them again")
    return [
        tile_boxes(int(width), int(height), patch=patch, stride=stride, name=path)
        for path, (width, height) in zip(paths, sizes, strict=True)
    ]


def _rows(paths: list[str], crops: list[list[Box]] | None, patients: pd.DataFrame) -> pd.DataFrame:
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
        return _pnas_splits(root / SPLITS, table)
    pickles = sorted((root / PICKLES).glob("*.pkl"))
    if len(pickles) > 1:
        raise DataError(
            f"{root / PICKLES} holds several pickles ({first_few([path.name for path in pickles])}) and {root} no "
            f"{SPLITS} that says which splits count; keep one of them"
        )
    return published_splits(pickles[0], table) if pickles else None


def _pnas_splits(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Splits of a CSV whose first column holds the patients and every other one is a split."""
    splits = read_table(path, ())
    patient = splits.columns[0]
    refuse_repeats(splits, patient, file=SPLITS)
    words = splits.set_index(splits[patient].astype(str).str.strip()).drop(columns=patient)
    words = words.apply(lambda column: column.fillna("").astype(str).str.strip().str.lower())
    unknown = sorted(set(words.to_numpy().ravel()) - {"train", "test", ""})
    if unknown:
        raise DataError(f'{path} has the word "{unknown[0]}", known are Train and Test; copy it again')
    own = words.reindex(table["patient"]).fillna("").reset_index(drop=True)
    return _of_this_cohort(own.set_axis([f"split_{k + 1}" for k in range(own.shape[1])], axis="columns"), table, path)


def _of_this_cohort(splits: pd.DataFrame, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Refuse `splits` that put none of the table's rows anywhere."""
    if (splits == "").all(axis=None):
        raise DataError(
            f"{path} puts none of the patients {first_few(sorted(set(table['patient'])))} into a split; "
            "use the splits of this release"
        )
    return splits
