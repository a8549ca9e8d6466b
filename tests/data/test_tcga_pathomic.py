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
from medkd.data.tiles import tile_boxes
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
    grades["Histology"], grades["Molecular subtype"] = "astrocytoma", ["IDHwt", None, *["IDHwt"] * 8][: len(names)]
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


def test_published_patches_lie_at_three_offsets_in_both_directions():
    boxes = tile_boxes(1024, 1024)
    assert [box[:2] for box in boxes] == [(x, y) for y in (0, 256, 512) for x in (0, 256, 512)]
    assert all(box[2] - box[0] == box[3] - box[1] == 512 for box in boxes)


def test_other_sizes_are_covered_to_the_border_and_small_regions_refused():
    boxes = tile_boxes(100, 70, patch=40, stride=30)
    assert sorted({box[0] for box in boxes}) == [0, 30, 60] and sorted({box[1] for box in boxes}) == [0, 30]
    assert max(box[2] for box in tile_boxes(95, 40, patch=40, stride=30)) == 95
    with pytest.raises(DataError, match="a.png is 100x30 px, smaller than a patch of 40 px"):
        tile_boxes(100, 30, patch=40, name="a.png")


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

    decoded, decode = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda content, *rest: decoded.append(content) or decode(content, *rest))
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
    return {"data_pd": pd.DataFrame({"x": [1.0]}), "cv_splits": {1: split, 2: split}}


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


def test_patients_without_a_subtype_can_be_left_out(load):
    assert set(load().table["patient"]) == {"TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003"}
    assert set(load(ignore_missing_moltype=True).table["patient"]) == {"TCGA-AA-0001", "TCGA-AA-0003"}


def test_faults_are_named(load, root):
    splits = pd.read_csv(root / "pnas_splits.csv")
    splits.replace("Test", "Held").to_csv(root / "pnas_splits.csv", index=False)
    with pytest.raises(DataError, match='pnas_splits.csv has the word "held", known are Train and Test'):
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
    with pytest.raises(DataError, match="no image under .* belongs to a graded patient"):
        load()
    grades.to_csv(root / "grade_data.csv", index=False)
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
    cohort = read(tmp_path, cache_dir=tmp_path / "cache")
    assert len(cohort) == 27
    grade = dict(zip(rois["patient_id"], rois["grade"], strict=True))
    assert [int(label) + 2 for label in cohort.labels] == [grade[patient] for patient in cohort.groups]
    pixels = cohort.images["histology"].load(64)
    file = rois["file"].sort_values().iloc[0]
    region = Image.open(source / "rois" / file).convert("RGB")
    expected = region.crop((256, 512, 768, 1024)).resize((64, 64), Image.Resampling.BILINEAR)
    row = cohort.table["id"].tolist().index(f"{file.removesuffix('.png')}_256_512")
    np.testing.assert_array_equal(pixels[row], np.asarray(expected))
    assert isinstance(cohort.images["histology"], FileImages)
