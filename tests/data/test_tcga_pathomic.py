import os
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.data import tcga_pathomic
from medkd.data.folds import n_folds_of, split_rows
from medkd.data.images import FileImages
from medkd.data.tcga_pathomic import read
from medkd.errors import DataError

# patient, grade, regions
PATIENTS = [("TCGA-AA-0001", 2, 2), ("TCGA-AA-0002", 3, 1), ("TCGA-AA-0003", 4, 1), ("TCGA-AA-0004", None, 1)]
SIDE, PATCH, STRIDE = 64, 32, 16


def write_tables(root, patients):
    """Genomic value: ten times the patient's number plus the column's; the last patient's is missing."""
    names = [name for name, *_ in patients]
    numbers = np.array([int(name[-4:]) if name[-4:].isdigit() else row for row, name in enumerate(names)], float)
    genomics = pd.DataFrame({"indexes": range(len(names)), "TCGA ID": names, "censored": [0, 1, 0, 1][: len(names)]})
    genomics["Survival months"] = 10.0 + numbers
    genomics["idh mutation"], genomics["codeletion"], genomics["EGFR"] = (10 * numbers + c for c in range(3))
    genomics.loc[len(names) - 1, "EGFR"] = None
    genomics.to_csv(root / "all_dataset.csv", index=False)
    grades = pd.DataFrame({"TCGA ID": names, "Grade": [grade for _, grade, *_ in patients]})
    grades["Histology"], grades["Molecular subtype"] = "astrocytoma", "IDHwt"
    grades["Age"] = 50
    grades[::-1].to_csv(root / "grade_data.csv", index=False)
    splits = pd.DataFrame({"patient": names})
    for k in range(1, 16):
        splits[k] = ["Test" if row == k % len(names) else "Train" for row in range(len(names))]
    splits.to_csv(root / "pnas_splits.csv", index=False)


@pytest.fixture
def root(tmp_path):
    """Regions whose four quarters are grey by patient and quarter: 40 a patient, 10 a quarter."""
    folder = tmp_path / "TCGA_GBMLGG"
    (folder / "all_st").mkdir(parents=True)
    for number, (patient, _, n_regions) in enumerate(PATIENTS):
        for region in range(n_regions):
            grey = np.kron(np.array([[0, 10], [20, 30]]), np.ones((SIDE // 2, SIDE // 2))) + 40 * number
            name = f"{patient}-01Z-00-DX1.ABC_{region + 1}.png"
            Image.fromarray(grey.astype(np.uint8)).convert("RGB").save(folder / "all_st" / name)
    write_tables(folder, PATIENTS)
    return folder


@pytest.fixture
def load(root, tmp_path):
    return lambda **settings: read(
        root, **({"patch": PATCH, "stride": STRIDE, "cache_dir": tmp_path / "cache"} | settings)
    )


def test_every_patch_has_the_pixels_patient_and_genomics_of_its_region(load):
    cohort = load()
    assert len(cohort) == 4 * 9
    assert cohort.table["roi"].nunique() == 4
    assert cohort.table["class"].tolist() == ["grade II"] * 18 + ["grade III"] * 9 + ["grade IV"] * 9
    pixels = cohort.images["histology"].load(PATCH)[..., 0].astype(int)
    number = cohort.table["patient"].str[-4:].astype(int).to_numpy()
    corners = [0, 2, 6, 8]  # the patches that lie in one quarter each
    for start, owner in zip(range(0, len(cohort), 9), number[::9], strict=True):
        for quarter, patch in enumerate(corners):
            assert (pixels[start + patch] == 40 * (owner - 1) + 10 * quarter).all()
    vector = cohort.vectors["genomic"]
    assert vector.names == ("idh mutation", "codeletion", "EGFR")
    np.testing.assert_array_equal(vector.values[:, 0], 10 * number)
    assert cohort.table["event"].tolist() == [1.0] * 18 + [0.0] * 9 + [1.0] * 9
    assert cohort.table["survival_months"].iloc[0] == 11.0
    assert cohort.settings["n_patients_without_grade"] == 1 and cohort.settings["n_images_without_patient"] == 1


def test_each_region_is_decoded_once_for_all_of_its_patches(load, monkeypatch):
    from medkd.data import images

    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda content, *rest: decoded.append(content) or decode(content, *rest))
    cohort = load()
    cohort.images["histology"].load(8)
    assert len(decoded) == 4
    taken = cohort.take(np.array([20, 3])).images["histology"]
    np.testing.assert_array_equal(taken.load(8), cohort.images["histology"].load(8)[[20, 3]])
    assert len(taken.content_hashes()) == 2
    assert taken.fingerprint() != cohort.take(np.array([20, 4])).images["histology"].fingerprint()


def test_whole_regions_and_ready_patches_are_read_too(load, root, tmp_path):
    whole = load(patches=False)
    assert len(whole) == 4 and whole.table["roi"].tolist() == whole.table["id"].tolist()
    cut = load()
    ready = root / tcga_pathomic.PATCHES
    ready.mkdir()
    pixels = cut.images["histology"].load(PATCH)
    for name, patch in zip(cut.table["id"], pixels, strict=True):
        Image.fromarray(patch).save(ready / f"{name}.png")
    shutil.rmtree(root / "all_st")
    again = load(cache_dir=tmp_path / "other")
    assert sorted(again.table["id"]) == sorted(cut.table["id"])
    order = [again.table["id"].tolist().index(name) for name in cut.table["id"]]
    assert again.table["roi"].iloc[order].tolist() == cut.table["roi"].tolist()
    np.testing.assert_array_equal(again.images["histology"].load(PATCH)[order], pixels)


def test_published_splits_divide_patients_not_patches(load):
    cohort = load()
    assert n_folds_of(cohort, 5) == 15
    split = split_rows(cohort, fold=0, val_fraction=0.5)  # split 1 tests the second patient
    assert set(cohort.groups[split.test]) == {"TCGA-AA-0002"}
    assert len(split.test) == 9


def pickle_of(cohort, **extra):
    train, test = cohort.table["roi"].str[:12].unique()[:2], cohort.table["roi"].str[:12].unique()[2:]
    split = {"train": {"x_patname": list(train)}, "test": {"x_patname": list(test)} | extra}
    genes = pd.DataFrame([[1.0]], columns=pd.Index(["x"], dtype=object))  # as the pandas of 2020 wrote it
    return {"data_pd": genes, "cv_splits": {1: split, 2: split}}


class Attack:
    def __reduce__(self):
        return os.system, ("touch canary",)


def test_the_split_pickle_serves_where_the_table_is_missing_and_runs_nothing(load, root):
    content = pickle_of(load())
    (root / "pnas_splits.csv").unlink()
    assert load().splits is None
    (root / "splits").mkdir()
    path = root / "splits" / "gbmlgg15cv_all_st_1_1_0.pkl"
    path.write_bytes(pickle.dumps(content))
    cohort = load()
    assert list(cohort.splits) == ["split_1", "split_2"]
    assert set(cohort.groups[split_rows(cohort, fold=1, val_fraction=0.5).test]) == {"TCGA-AA-0003"}
    path.write_bytes(pickle.dumps(pickle_of(cohort, x_omic=Attack())))
    with pytest.raises(DataError, match="asks for posix.system, which no table"):
        load()
    path.write_bytes(pickle.dumps({"other": 1}))
    with pytest.raises(DataError, match="holds no cv_splits"):
        load()
    content["cv_splits"][2] = {part: {"x_patname": ["TCGA-AA-0001"]} for part in ("train", "test")}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="puts TCGA-AA-0001 into both parts of split_2"):
        load()
    content["cv_splits"] = {1: {part: {"x_patname": [f"TCGA-ZZ-{part}"]} for part in ("train", "test")}}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="puts none of the patients TCGA-AA-0001, .* into a split"):
        load()
    path.with_name("another.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="holds several pickles"):
        load()


def test_patients_without_a_subtype_or_histology_are_left_out_as_in_the_released_grading(load, root):
    everyone = {"TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003"}
    for column, empty in (("Molecular subtype", "TCGA-AA-0002"), ("Histology", "TCGA-AA-0003")):
        grades = pd.read_csv(root / "grade_data.csv")
        grades.loc[grades["TCGA ID"] == empty, column] = None
        grades.to_csv(root / "grade_data.csv", index=False)
        assert set(load().table["patient"]) == (everyone := everyone - {empty})
    assert load().settings["n_patients_incomplete"] == 2
    assert set(load(complete=False).table["patient"]) == {"TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003"}


def test_gaps_of_the_genomics_stay_gaps(load, root):
    genomics = pd.read_csv(root / "all_dataset.csv")
    genomics.loc[1, ["EGFR", "Survival months"]] = None
    genomics.to_csv(root / "all_dataset.csv", index=False)
    cohort = load()
    own = (cohort.table["patient"] == "TCGA-AA-0002").to_numpy()
    assert np.isnan(cohort.vectors["genomic"].values[own, 2]).all()
    assert not np.isnan(cohort.vectors["genomic"].values[~own]).any()
    assert cohort.table[["survival_months", "event"]].isna().all(axis=1).tolist() == own.tolist()


def test_byte_order_marks_line_ends_and_other_letters_are_read(load, root):
    expected = load()
    for name in ("grade_data.csv", "all_dataset.csv", "pnas_splits.csv"):
        text = (root / name).read_text().replace("astrocytoma", "Astrozytom, größer")
        text = text.replace("Astrozytom, größer", '"Astrozytom, größer"').replace("EGFR", "EGFR-α")
        (root / name).write_text(text, encoding="utf-8-sig", newline="\r\n")
    (root / "all_dataset.csv").rename(root / "all_datasets.csv")  # as the publisher's README spells it
    found = load()
    assert found.table["histology"].unique().tolist() == ["Astrozytom, größer"]
    assert found.vectors["genomic"].names == ("idh mutation", "codeletion", "EGFR-α")
    np.testing.assert_array_equal(found.vectors["genomic"].values, expected.vectors["genomic"].values)
    pd.testing.assert_frame_equal(found.table.drop(columns="histology"), expected.table.drop(columns="histology"))
    pd.testing.assert_frame_equal(found.splits, expected.splits)


def test_images_of_strangers_and_patients_without_images_are_counted(load, root):
    (root / "all_st" / "TCGA-ZZ-0009-01Z-00-DX1.ö_1.png").write_text("of a stranger, so never opened")
    (root / "all_st" / "TCGA-AA-0003-01Z-00-DX1.ABC_1.png").unlink()
    settings = load().settings
    assert settings["n_images_without_patient"] == 2 and settings["n_patients_without_region"] == 1
    assert settings["n_regions"] == 3


def test_faults_are_named(load, root):
    splits = pd.read_csv(root / "pnas_splits.csv")
    splits.replace("Test", "Held").to_csv(root / "pnas_splits.csv", index=False)
    with pytest.raises(DataError, match='pnas_splits.csv has the word "held", known are Train and Test'):
        load()
    pd.concat([splits, splits[:1]]).to_csv(root / "pnas_splits.csv", index=False)
    with pytest.raises(DataError, match=r"pnas_splits\.csv has several rows for patient TCGA-AA-0001"):
        load()
    splits.assign(patient="TCGA-ZZ-" + splits["patient"]).to_csv(root / "pnas_splits.csv", index=False)
    with pytest.raises(DataError, match=r"pnas_splits\.csv puts none of the patients"):
        load()
    splits.to_csv(root / "pnas_splits.csv", index=False)
    grades = pd.read_csv(root / "grade_data.csv")
    grades.assign(Grade=5).to_csv(root / "grade_data.csv", index=False)
    with pytest.raises(DataError, match="must have Grade 2, 3 or 4"):
        load()
    pd.concat([grades, grades[:1]]).to_csv(root / "grade_data.csv", index=False)
    with pytest.raises(DataError, match="grade_data.csv has several rows for TCGA ID"):
        load()
    grades.assign(**{"TCGA ID": [f"TCGA-ZZ-000{i}" for i in range(4)]}).to_csv(root / "grade_data.csv", index=False)
    with pytest.raises(DataError, match=r"all_dataset\.csv and grade_data\.csv share no TCGA ID"):
        load()
    grades.assign(Grade=None).to_csv(root / "grade_data.csv", index=False)
    with pytest.raises(DataError, match="no image under .* belongs to a graded patient .* the patients are none"):
        load()
    grades.drop(columns="Histology").to_csv(root / "grade_data.csv", index=False)
    with pytest.raises(DataError, match=r"grade_data\.csv lacks the column\(s\) Histology"):
        load()
    grades.to_csv(root / "grade_data.csv", index=False)
    genomics = pd.read_csv(root / "all_dataset.csv")
    genomics.assign(EGFR="high").to_csv(root / "all_dataset.csv", index=False)
    with pytest.raises(DataError, match=r"all_dataset\.csv has the EGFR high, which is no number"):
        load()
    genomics[["TCGA ID", "censored", "Survival months"]].to_csv(root / "all_dataset.csv", index=False)
    with pytest.raises(DataError, match="has no genomic columns beside the outcomes"):
        load()
    genomics.to_csv(root / "all_dataset.csv", index=False)
    with pytest.raises(DataError, match="is 64x64 px, smaller than a patch of 512 px"):
        load(patch=512)
    (root / "all_st" / "TCGA-AA-0002-01Z-00-DX1.ABC_1.png").write_text("no image")
    with pytest.raises(DataError, match=r"regions that are no images: all_st/TCGA-AA-0002"):
        load()
    shutil.rmtree(root / "all_st")
    with pytest.raises(DataError, match="image folder .*all_st is missing"):
        load()


def test_the_real_regions_give_nine_patches_each(real_folder, tmp_path):
    """Three published regions under tables with the form of Pathomic Fusion's, made here from their real grades."""
    source = real_folder("tcga_gbmlgg")
    rois = pd.read_csv(source / "rois.csv")
    (tmp_path / "all_st").symlink_to(source / "rois")
    write_tables(tmp_path, [(row.patient_id, row.grade) for row in rois.itertuples()])
    shutil.copy(source / "splits_15fold_pathomicfusion.csv", tmp_path / "pnas_splits.csv")
    cohort = read(tmp_path, cache_dir=tmp_path / "cache")
    assert len(cohort) == 27
    published = pd.read_csv(tmp_path / "pnas_splits.csv", index_col="patient_id")
    assert cohort.splits.to_numpy().tolist() == published.loc[cohort.groups].to_numpy().tolist()
    grade = dict(zip(rois["patient_id"], rois["grade"], strict=True))
    assert [int(label) + 2 for label in cohort.labels] == [grade[patient] for patient in cohort.groups]
    pixels = cohort.images["histology"].load(64)
    file = rois["file"].sort_values().iloc[0]
    region = Image.open(source / "rois" / file).convert("RGB")
    expected = region.crop((256, 512, 768, 1024)).resize((64, 64), Image.Resampling.BILINEAR)
    row = cohort.table["id"].tolist().index(f"{file.removesuffix('.png')}_256_512")
    np.testing.assert_array_equal(pixels[row], np.asarray(expected))
    assert isinstance(cohort.images["histology"], FileImages)
