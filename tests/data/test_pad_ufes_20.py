import shutil

import numpy as np
import pandas as pd
import pytest
from miniatures import write_jpeg

from medkd.data import pad_ufes_20
from medkd.data.tables import encode_columns
from medkd.errors import DataError

COLUMNS = dict.fromkeys(pad_ufes_20.FLAGS, "False") | dict.fromkeys(pad_ufes_20.CATEGORIES, "X")
# image number, patient, lesion, class
ROWS = [(30, "PAT_2", "7", "BCC"), (10, "PAT_1", "5", "NEV"), (20, "PAT_1", "6", "MEL"), (40, "PAT_3", "5", "ACK")]


def write_table(root, **columns):
    table = pd.DataFrame(ROWS, columns=["number", "patient_id", "lesion_id", "diagnostic"])
    table["img_id"] = [f"PAT_{number}.png" for number in table.pop("number")]
    table = table.assign(age=[50, 60, None, 70], fitspatrick=2.0, diameter_1=None, diameter_2=5.5, biopsed=True)
    table.assign(**COLUMNS).assign(**columns).to_csv(root / "metadata.csv", index=False)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pad"
    for row, (number, *_) in enumerate(ROWS):
        write_jpeg(root / "images" / f"imgs_part_{row % 3 + 1}" / f"PAT_{number}.png", number)
    write_table(root)
    return root


def test_rows_images_and_metadata_stay_together(folder, tmp_path):
    cohort = pad_ufes_20.read(folder, cache_dir=tmp_path / "cache")
    assert cohort.table["id"].tolist() == ["PAT_10", "PAT_20", "PAT_30", "PAT_40"]
    assert cohort.table["class"].tolist() == ["NEV", "MEL", "BCC", "ACK"]
    assert cohort.table["patient"].tolist() == ["PAT_1", "PAT_1", "PAT_2", "PAT_3"]
    assert cohort.table["roi"].tolist() == ["PAT_1/5", "PAT_1/6", "PAT_2/7", "PAT_3/5"]
    grey = cohort.images["clinical"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, [10, 20, 30, 40], atol=1)
    vector = cohort.vectors["metadata"]
    np.testing.assert_array_equal(vector.values[:, vector.names.index("age")], np.float32([60, np.nan, 50, 70]))
    assert (cohort.main, cohort.second) == ("clinical", "metadata")


def test_what_gives_the_label_away_is_no_input(folder):
    assert not any("biops" in name for name in pad_ufes_20.read(folder).vectors["metadata"].names)


def test_parts_may_be_archives_and_kaggles_double_folders(folder, tmp_path):
    plain = pad_ufes_20.read(folder, cache_dir=tmp_path / "one").images["clinical"].load(8)
    shutil.make_archive(folder / "images" / "imgs_part_1", "zip", folder / "images" / "imgs_part_1")
    shutil.rmtree(folder / "images" / "imgs_part_1")
    (folder / "imgs_part_2").mkdir()
    (folder / "images" / "imgs_part_2").rename(folder / "imgs_part_2" / "imgs_part_2")
    packed = pad_ufes_20.read(folder, cache_dir=tmp_path / "two").images["clinical"].load(8)
    np.testing.assert_array_equal(packed, plain)


def test_byte_order_mark_and_line_ends_change_nothing(folder):
    plain = pad_ufes_20.read(folder).fingerprint
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert pad_ufes_20.read(folder).fingerprint == plain


def test_the_folder_of_the_release_may_be_above(folder, tmp_path):
    (tmp_path / "above").mkdir()
    folder.rename(tmp_path / "above" / pad_ufes_20.RELEASE)
    assert len(pad_ufes_20.read(tmp_path / "above")) == len(ROWS)


def test_faults_are_named(folder):
    write_table(folder, img_id="PAT_10.png")
    with pytest.raises(DataError, match=r"metadata\.csv has several rows for img_id PAT_10\.png"):
        pad_ufes_20.read(folder)
    table = pd.read_csv(folder / "metadata.csv").drop(columns=["itch"])
    table.to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(DataError, match=r"metadata\.csv lacks the column\(s\) itch"):
        pad_ufes_20.read(folder)
    (folder / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata\.csv is missing"):
        pad_ufes_20.read(folder)
    write_table(folder, smoke="sometimes")
    with pytest.raises(DataError, match="metadata.csv has the smoke sometimes, which is neither true nor false"):
        pad_ufes_20.read(folder)
    write_table(folder, diagnostic="WART")
    with pytest.raises(DataError, match='has the diagnostic "WART"'):
        pad_ufes_20.read(folder)
    write_table(folder)
    write_jpeg(folder / "images" / "imgs_part_1" / "PAT_50.png", 50)
    with pytest.raises(DataError, match=r"holds images without a row in metadata\.csv: PAT_50\.png"):
        pad_ufes_20.read(folder)
    (folder / "images" / "imgs_part_1" / "PAT_50.png").unlink()
    (folder / "images" / "imgs_part_2" / "PAT_10.png").unlink()
    with pytest.raises(DataError, match=r"names images that are not in .*: PAT_10\.png; get all three parts"):
        pad_ufes_20.read(folder)
    shutil.rmtree(folder / "images")
    with pytest.raises(DataError, match=r"holds no images; put imgs_part_1\.zip"):
        pad_ufes_20.read(folder)


def test_the_real_table_is_encoded_with_its_gaps_left_open(real_folder, tmp_path):
    root = real_folder("pad_ufes_20_tabular")
    rows = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False).sort_values("img_id")
    (tmp_path / "metadata.csv").symlink_to(root / "metadata.csv")
    (tmp_path / "imgs_part_1").mkdir()
    for name in rows["img_id"]:
        (tmp_path / "imgs_part_1" / name).touch()
    write_jpeg(tmp_path / "imgs_part_1" / rows["img_id"].iloc[0], 10)
    cohort = pad_ufes_20.read(tmp_path)
    counts = cohort.table["class"].value_counts().to_dict()
    assert counts == {"BCC": 833, "ACK": 702, "NEV": 238, "SEK": 219, "SCC": 190, "MEL": 49}
    assert cohort.table["patient"].nunique() == 1337
    vector = cohort.vectors["metadata"]
    smoke = vector.values[:, vector.names.index("smoke")]
    assert np.isnan(smoke).sum() == (rows["smoke"] == "").sum() > 700
    assert (smoke == 1).sum() == (rows["smoke"] == "True").sum()
    bleed = vector.values[:, vector.names.index("bleed")]
    assert np.isnan(bleed).sum() == rows["bleed"].isin(["", "UNK"]).sum()
    assert not rows.loc[rows["gender"] == "", "biopsed"].eq("True").any()  # why the reader warns of gaps
    assert all((rows["gender"] == "").equals(rows[name] == "") for name in ("diameter_1", "smoke", "fitspatrick"))
    assert {"gender=FEMALE", "region=FACE", "background_father=POMERANIA"} <= set(vector.names)
    assert not np.isnan(vector.values[:, vector.names.index("gender=FEMALE")]).any()


def test_encoding_keeps_the_order_of_rows_and_columns():
    table = pd.DataFrame({"n": ["1", "", "unk", "2.5"], "f": ["yes", "NO", "?", ""], "c": ["b", "a", "", "b"]})
    encoded = encode_columns(table, numbers=("n",), flags=("f",), categories=("c",), file="t.csv")
    assert encoded.names == ("n", "f", "c=a", "c=b")
    expected = np.float32([[1, 1, 0, 1], [np.nan, 0, 1, 0], [np.nan, np.nan, 0, 0], [2.5, np.nan, 0, 1]])
    np.testing.assert_array_equal(encoded.values, expected)
    with pytest.raises(DataError, match="t.csv has the c b, a, which is no number"):
        encode_columns(table, numbers=("c",), file="t.csv")
