"""TCGA-GBMLGG: genomic profile, grade and survival of glioma patients; a cohort of vectors, without images.

Source: the mutation, copy-number and expression table of PORPOISE (Chen et al., Cancer Cell 40:865, 2022), reduced to
one row per patient, with grade and subtype from cBioPortal (Ceccarelli et al., Cell 164:550, 2016). It is not the
80 + 240 table of Pathomic Fusion (Chen et al., IEEE TMI 41:757, 2022), but the same cohort and kinds of columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.tables import encode_columns, existing_folder, read_table, refuse_repeats
from medkd.errors import DataError, first_few

TITLE = "TCGA-GBMLGG genomics"
LICENCE = "TCGA open-access data (NIH Genomic Data Commons), publication guidelines apply"
ATTRIBUTION = "The TCGA Research Network; tables of PORPOISE (Chen et al. 2022) and cBioPortal"
WEBSITE = "https://github.com/mahmoodlab/PORPOISE"

PATIENTS = "patients.csv"
GENOMICS = "genomics.csv.gz"
EXTRA_COLUMNS = ("survival_months", "event", "age_years", "sex", "histology", "idh_codel_subtype")

CLASSES = ("grade II", "grade III", "grade IV")
GRADES = (2, 3, 4)
KINDS = ("mut", "cnv", "rnaseq")
"""Endings of the genomic columns: mutation (0/1), copy number (GISTIC, -2 to 2), expression (z-score)."""
MODALITIES = {"genomic": KINDS, "dna": ("mut", "cnv"), "rna": ("rnaseq",)}
"""Vector modality -> the kinds of columns in it."""


def read(root: str | Path) -> Cohort:
    """The patients whose grade is known, one row per patient.

    Args:
        root: folder with `patients.csv` (patient_id, grade 2 to 4, survival_months, event, age_years, sex, histology,
            idh_codel_subtype) and `genomics.csv.gz` (patient_id, then columns that end in _mut, _cnv or _rnaseq).

    Returns:
        The cohort sorted by patient id, without images; vectors "genomic" (second modality, every column), "dna" and
        "rna". A patient is one sample, so `id`, `patient` and `roi` are the same.

    Raises:
        DataError: if a file or column is missing, the tables have not the same patients once each, or a value is no
            number or outside its range.
    """
    root = existing_folder(root, TITLE)
    patients = _by_patient(
        read_table(root / PATIENTS, ("patient_id", "grade", *EXTRA_COLUMNS), keys=["patient_id"]), PATIENTS
    )
    genomics = _by_patient(read_table(root / GENOMICS, ("patient_id",), keys=["patient_id"]), GENOMICS)
    apart = sorted(set(patients.index) ^ set(genomics.index))
    if apart:
        raise DataError(
            f"{PATIENTS} and {GENOMICS} must have the same patients, and one of them lacks {first_few(apart)}; "
            "use tables of one release"
        )
    grade = pd.Series(encode_columns(patients, numbers=["grade"], file=PATIENTS).values[:, 0], patients.index)
    outside = grade.notna() & ~grade.isin(GRADES)
    if outside.any():
        raise DataError(
            f"{PATIENTS} must have grade 2, 3 or 4, or nothing where it is unknown, and has {grade[outside].iloc[0]:g} "
            f"for {first_few(list(grade.index[outside]))}; correct or remove these rows"
        )
    graded = grade.index[grade.notna()]
    if graded.empty:
        raise DataError(f"{PATIENTS} gives no patient a grade; copy it again from the publisher")

    table = pd.DataFrame({"id": graded, "label": grade[graded].astype(int).to_numpy() - GRADES[0]})
    table["class"] = np.array(CLASSES, object)[table["label"]]
    table["patient"] = table["roi"] = table["id"]
    for column in EXTRA_COLUMNS:
        table[column] = patients[column][graded].to_numpy()
    return Cohort(
        name="tcga-gbmlgg",
        title=TITLE,
        simulated=False,
        classes=CLASSES,
        table=table,
        images={},
        vectors=_vectors(genomics.loc[graded]),
        second="genomic",
        group="patient",
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"n_patients": len(table), "n_without_grade": len(patients) - len(table)},
    )


def _vectors(genomics: pd.DataFrame) -> dict[str, VectorTable]:
    """The vector modalities, rows as in `genomics`."""
    kind = {column: column.rpartition("_")[2] for column in genomics}
    absent = [f"*_{name}" for name in KINDS if name not in kind.values()]
    unknown = [column for column in genomics if kind[column] not in KINDS]
    if absent or unknown:
        found = f"lacks {', '.join(absent)}" if absent else f"also has {first_few(unknown)}"
        raise DataError(
            f"{GENOMICS} must have columns that end in _{', _'.join(KINDS)} and no others beside patient_id, but "
            f"{found}; use the publisher's file as it is"
        )
    columns = {name: [each for each in genomics if kind[each] in kinds] for name, kinds in MODALITIES.items()}
    return {name: encode_columns(genomics, numbers=numbers, file=GENOMICS) for name, numbers in columns.items()}


def _by_patient(table: pd.DataFrame, file: str) -> pd.DataFrame:
    """The table with `patient_id` as its sorted index."""
    refuse_repeats(table, "patient_id", file=file)
    return table.set_index("patient_id").sort_index()
