import numpy as np
import pandas as pd
import pytest

from medkd.data import checks, registry, tcga_gbmlgg
from medkd.errors import DataError

PATIENTS, GENOMICS = tcga_gbmlgg.PATIENTS, tcga_gbmlgg.GENOMICS


def edit(path, change):
    """Rewrite a CSV through a function of its table."""
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_one_row_a_patient_whose_grade_is_known(tcga_folder):
    cohort = tcga_gbmlgg.read(tcga_folder)
    assert cohort.table["id"].tolist() == ["T-1", "T-2", "T-3", "T-5"]
    assert cohort.table["class"].tolist() == ["grade II", "grade III", "grade II", "grade IV"]
    assert cohort.labels.tolist() == [0, 1, 0, 2]
    assert (cohort.table["patient"] == cohort.table["id"]).all() and (cohort.table["roi"] == cohort.table["id"]).all()
    assert cohort.settings == {"n_patients": 4, "n_without_grade": 1}


def test_there_is_no_image_and_the_vectors_follow_their_patients(tcga_folder):
    cohort = tcga_gbmlgg.read(tcga_folder)
    assert (cohort.main, cohort.second, dict(cohort.images)) == ("", "genomic", {})
    assert cohort.modalities == ("genomic", "dna", "rna")
    assert cohort.vectors["dna"].names == ("A_mut", "B_mut", "A_cnv")
    assert cohort.vectors["rna"].names == ("A_rnaseq", "C_rnaseq")
    assert cohort.vectors["genomic"].names == cohort.vectors["dna"].names + cohort.vectors["rna"].names
    by_hand = np.array([[10 * number + column for column in range(5)] for number in (1, 2, 3, 5)], np.float32)
    np.testing.assert_array_equal(cohort.vectors["genomic"].values, by_hand)
    np.testing.assert_array_equal(cohort.vectors["rna"].values, by_hand[:, 3:])


def test_survival_and_patient_metadata_are_in_the_table(tcga_folder):
    cohort = tcga_gbmlgg.read(tcga_folder)
    assert cohort.has_survival
    assert cohort.table["survival_months"].tolist() == [1.5, 3.0, 4.5, 7.5]
    assert cohort.table["event"].tolist() == [1, 0, 1, 1]
    assert {"age_years", "sex", "histology", "idh_codel_subtype"} <= set(cohort.table.columns)


def test_check_and_summary_work_without_images(tcga_folder):
    for file in (PATIENTS, GENOMICS):  # four of each patient, so that every class can be divided
        edit(tcga_folder / file, lambda t: pd.concat([t.assign(patient_id=t["patient_id"] + end) for end in "abcd"]))
    cohort = registry.load_cohort("tcga-gbmlgg", str(tcga_folder))
    assert registry.summary(cohort)["n_groups"].tolist() == [8, 4, 4]
    assert checks.check(cohort, n_folds=2, val_fraction=0.5) == []


@pytest.mark.parametrize(
    "file, change, message",
    [
        (PATIENTS, lambda t: t.drop(columns="event"), r"patients.csv lacks the column\(s\) event"),
        (PATIENTS, lambda t: t.assign(patient_id="T-1"), "patients.csv has several rows for patient_id T-1; each"),
        (GENOMICS, lambda t: t[t["patient_id"] != "T-2"], "must have the same patients, .* lacks T-2;"),
        (PATIENTS, lambda t: t.replace({"grade": {4: 5}}), "grade 2, 3 or 4, .* and has 5 for T-5;"),
        (PATIENTS, lambda t: t.replace({"grade": {4: 2.5}}), "grade 2, 3 or 4, .* and has 2.5 for T-5;"),
        (PATIENTS, lambda t: t.assign(grade="G2"), "patients.csv has the grade G2, which is no number"),
        (PATIENTS, lambda t: t.assign(grade=np.nan), "patients.csv gives no patient a grade"),
        (PATIENTS, lambda t: t.assign(survival_months=0.0), "survival_months of cohort tcga-gbmlgg must be finite"),
        (GENOMICS, lambda t: t.assign(A_cnv="loss"), "genomics.csv.gz has the A_cnv loss, which is no number"),
        (GENOMICS, lambda t: t.assign(A_rnaseq=np.inf), "genomics.csv.gz has the A_rnaseq inf, .* no finite one"),
        (GENOMICS, lambda t: t.drop(columns=["A_rnaseq", "C_rnaseq"]), r"but lacks \*_rnaseq;"),
        (GENOMICS, lambda t: t.assign(age=3), "no others beside patient_id, but also has age;"),
    ],
)
def test_tables_that_are_not_in_order_are_refused_in_a_sentence(tcga_folder, file, change, message):
    edit(tcga_folder / file, change)
    with pytest.raises(DataError, match=message):
        tcga_gbmlgg.read(tcga_folder)


@pytest.mark.parametrize("file", [PATIENTS, GENOMICS])
def test_missing_tables_and_folders_are_named(tcga_folder, file):
    (tcga_folder / file).unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        tcga_gbmlgg.read(tcga_folder)
    with pytest.raises(DataError, match="there is no folder .*; set root to the folder with the files of TCGA-GBMLGG"):
        tcga_gbmlgg.read(tcga_folder / "elsewhere")


def test_an_empty_genomic_value_stays_missing(tcga_folder):
    edit(tcga_folder / GENOMICS, lambda t: t.assign(A_rnaseq=t["A_rnaseq"].where(t["patient_id"] != "T-2")))
    values = tcga_gbmlgg.read(tcga_folder).vectors["rna"].values
    assert np.isnan(values).tolist() == [[False, False], [True, False], [False, False], [False, False]]


def test_real_set_has_the_counts_of_its_readme(real_folder):
    cohort = tcga_gbmlgg.read(real_folder("tcga_gbmlgg"))
    assert np.bincount(cohort.labels).tolist() == [204, 224, 80]
    assert [len(cohort.vectors[name].names) for name in ("genomic", "dna", "rna")] == [1590, 46, 1544]
    assert not np.isnan(cohort.vectors["genomic"].values).any()
    assert set(np.unique(cohort.vectors["dna"].values[:, :16])) == {0.0, 1.0}
    assert cohort.table["event"].sum() == 167 and cohort.table["survival_months"].gt(0).all()
