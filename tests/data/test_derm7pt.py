import numpy as np
import pandas as pd
import pytest
from miniatures import write_jpeg

from medkd.data import derm7pt
from medkd.data.folds import split_rows
from medkd.errors import DataError

# diagnosis, dermoscopic and clinical file; the numbers are grey values
ROWS = [
    ("basal cell carcinoma", "NEL/N10.jpg", "NEL/N15.JPG"),
    ("Clark nevus", "NEL/N20.jpg", "NEL/N25.jpg"),
    ("melanoma (in situ)", "Fgl/N30.jpg", "Fgl/N35.jpg"),
    ("vascular lesion", "Fgl/N40.jpg", "Fgl/N45.jpg"),
    ("seborrheic keratosis", "Fgl/N50.jpg", "Fgl/N55.jpg"),
]
CRITERIA = {
    "pigment_network": "typical",
    "streaks": "irregular",
    "pigmentation": "localized regular",
    "regression_structures": "white areas",
    "dots_and_globules": "absent",
    "blue_whitish_veil": "present",
    "vascular_structures": "dotted",
}


def write_meta(root, rows=ROWS, **columns):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["diagnosis", "derm", "clinic"])
    table.insert(0, "case_num", range(1, len(rows) + 1))
    table = table.assign(**CRITERIA, seven_point_score=3, sex="female", location="back", elevation="flat")
    table = table.assign(case_id=None, notes=None).assign(**columns)
    table.to_csv(root / "meta" / "meta.csv", index=False)
    for part, numbers in (("train", [4, 0, 1]), ("valid", [2]), ("test", [3])):
        pd.DataFrame({"indexes": numbers}).to_csv(root / "meta" / f"{part}_indexes.csv", index=False)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "release_v0"
    for _, *files in ROWS:
        for file in files:
            write_jpeg(root / "images" / file, int(file.split("N")[-1].split(".")[0]))
    write_meta(root)
    return root


def test_pairs_classes_and_official_parts(folder, tmp_path):
    cohort = derm7pt.read(folder, cache_dir=tmp_path / "cache")
    assert cohort.table["id"].tolist() == [f"case_{i:04d}" for i in range(1, 6)]
    assert cohort.table["class"].tolist() == ["BCC", "NEV", "MEL", "MISC", "SK"]
    assert cohort.labels.tolist() == [0, 1, 2, 3, 4]
    for modality, first in (("dermoscopic", 10), ("clinical", 15)):
        grey = cohort.images[modality].load(8).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(grey, first + 10 * np.arange(5), atol=1.5)
    split = split_rows(cohort, fold=0)
    assert [part.tolist() for part in (split.train, split.val, split.test)] == [[0, 1, 4], [2], [3]]
    assert (cohort.main, cohort.second, cohort.group) == ("dermoscopic", "clinical", "case")


def test_criteria_are_grouped_as_in_the_paper(folder):
    table = derm7pt.read(folder).table
    assert table.loc[0, list(CRITERIA)].tolist() == [
        "typical", "irregular", "regular", "present", "absent", "present", "irregular",
    ]  # fmt: skip
    vector = derm7pt.read(folder).vectors["seven_point"]
    assert "pigmentation=regular" in vector.names and vector.values.sum(axis=1).tolist() == [7.0] * 5


def test_the_folder_above_the_release_serves_and_case_of_file_names_does_not_matter(folder):
    (folder / "images" / "NEL" / "N15.JPG").rename(folder / "images" / "NEL" / "n15.jpg")
    assert len(derm7pt.read(folder.parent)) == 5


def test_replaced_clinical_images_are_counted(folder):
    write_meta(folder, notes=[None, "Clinical missing and replaced with derm", None, None, None])
    assert derm7pt.read(folder).settings["n_replaced"] == 1


def test_indexes_that_do_not_divide_the_cases_are_refused(folder):
    path = folder / "meta" / "test_indexes.csv"
    for numbers, message in (([2], "rows that another part has, too: 2"), ([9], "must hold row numbers 0 to 4")):
        pd.DataFrame({"indexes": numbers}).to_csv(path, index=False)
        with pytest.raises(DataError, match=message):
            derm7pt.read(folder)
    pd.DataFrame({"indexes": [3]}).to_csv(path, index=False)
    pd.DataFrame({"indexes": [0, 1]}).to_csv(folder / "meta" / "train_indexes.csv", index=False)
    with pytest.raises(DataError, match="leave rows out: 4"):
        derm7pt.read(folder)


def test_unknown_words_repeated_cases_and_missing_images_are_named(folder):
    write_meta(folder, streaks="many")
    with pytest.raises(DataError, match='has the streaks "many" for case_num 1'):
        derm7pt.read(folder)
    write_meta(folder, case_num=[1, 2, 3, 3, 4])
    with pytest.raises(DataError, match="several rows for case_num 3"):
        derm7pt.read(folder)
    write_meta(folder)
    (folder / "images" / "Fgl" / "N30.jpg").unlink()
    with pytest.raises(DataError, match=r"names images that .*images lacks: images/Fgl/N30\.jpg"):
        derm7pt.read(folder)


def test_the_real_tables_have_the_published_counts(real_folder, tmp_path):
    """With drawn images under the published names, as the images may not be redistributed."""
    meta = pd.read_csv(real_folder("derm7pt_tables") / "meta" / "meta.csv")
    (tmp_path / "meta").symlink_to(real_folder("derm7pt_tables") / "meta")
    for file in pd.unique(meta[["derm", "clinic"]].to_numpy().ravel()):
        path = tmp_path / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cohort = derm7pt.read(tmp_path)
    counts = cohort.table["class"].value_counts().to_dict()
    assert counts == {"NEV": 575, "MEL": 252, "MISC": 97, "SK": 45, "BCC": 42}
    split = split_rows(cohort, fold=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [413, 203, 395]
    assert cohort.settings == {"n_cases": 1011, "n_replaced": 9}
