import shutil

import numpy as np
import pandas as pd
import pytest

from medkd.data import isic2018
from medkd.errors import DataError

TRUTH = "ISIC2018_Task3_Training_GroundTruth.csv"
IMAGES = "ISIC2018_Task3_Training_Input"


def edit(path, change):
    """Rewrite a CSV through a function of its table."""
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)


def test_rows_carry_label_lesion_and_metadata_of_their_image(isic_folder, tmp_path):
    cohort = isic2018.read(isic_folder, cache_dir=tmp_path / "cache")
    table = cohort.table.set_index("id")
    assert cohort.table["id"].is_monotonic_increasing
    assert table["class"].to_dict()["ISIC_0000008"] == "DF"
    assert table["patient"].to_dict() == {
        "ISIC_0000001": "HAM_1", "ISIC_0000002": "HAM_2", "ISIC_0000003": "HAM_3", "ISIC_0000004": "HAM_4",
        "ISIC_0000005": "HAM_5", "ISIC_0000006": "HAM_6", "ISIC_0000007": "HAM_7", "ISIC_0000008": "HAM_7",
        "ISIC_0000009": "HAM_1",
    }  # fmt: skip
    assert [cohort.classes[label] for label in cohort.labels] == table["class"].tolist()
    assert table["age"].tolist() == [10.0 * int(image[-1]) for image in table.index]
    assert (cohort.group, cohort.simulated, cohort.settings["file_pixels"]) == ("lesion", False, "12x8")


def test_images_are_aligned_with_the_table(isic_folder, tmp_path):
    """An image's grey value is 10 times its last digit, up to JPEG rounding."""
    cohort = isic2018.read(isic_folder, cache_dir=tmp_path / "cache")
    grey = cohort.images["dermoscopic"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, [10 * int(image[-1]) for image in cohort.table["id"]], atol=1.5)


def test_class_sets_are_those_of_the_paper(isic_folder):
    cohort = isic2018.read(isic_folder)
    assert cohort.classes == ("NV", "MEL", "BKL", "BCC", "AKIEC", "VASC", "DF")
    assert cohort.base_classes == ("NV", "MEL", "BKL", "BCC")
    assert cohort.rare_classes == ("DF", "AKIEC", "VASC")
    assert "ViDIR Group" in cohort.attribution
    assert "NC" in cohort.licence


def test_truth_may_lie_in_a_folder_of_its_own_name(isic_folder):
    flat = isic2018.read(isic_folder).table
    (isic_folder / "ISIC2018_Task3_Training_GroundTruth").mkdir()
    (isic_folder / TRUTH).rename(isic_folder / "ISIC2018_Task3_Training_GroundTruth" / TRUTH)
    pd.testing.assert_frame_equal(isic2018.read(isic_folder).table, flat)


def test_the_archive_of_images_may_stay_as_it_was_downloaded(isic_folder, tmp_path):
    plain = isic2018.read(isic_folder, cache_dir=tmp_path / "cache")
    shutil.make_archive(isic_folder / IMAGES, "zip", isic_folder, IMAGES)
    shutil.rmtree(isic_folder / IMAGES)
    packed = isic2018.read(isic_folder, cache_dir=tmp_path / "cache2")
    assert packed.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(packed.images["dermoscopic"].load(8), plain.images["dermoscopic"].load(8))


def test_challenge_lesion_table_serves_where_the_metadata_are_missing(isic_folder):
    full = isic2018.read(isic_folder).table
    metadata = pd.read_csv(isic_folder / "HAM10000_metadata.csv").rename(columns={"image_id": "image"})
    metadata[["image", "lesion_id"]].to_csv(isic_folder / "ISIC2018_Task3_Training_LesionGroupings.csv", index=False)
    (isic_folder / "HAM10000_metadata.csv").unlink()
    cohort = isic2018.read(isic_folder)
    assert cohort.group == "lesion"
    assert cohort.table["patient"].tolist() == full["patient"].tolist()


def test_without_lesion_tables_each_image_is_its_own_group_and_prose_says_image(isic_folder):
    (isic_folder / "HAM10000_metadata.csv").unlink()
    cohort = isic2018.read(isic_folder)
    assert cohort.table["patient"].tolist() == cohort.table["id"].tolist()
    assert cohort.group == "image"
    assert "age" not in cohort.table


def test_missing_folder_and_missing_files_are_named(isic_folder, tmp_path):
    with pytest.raises(DataError, match="there is no folder .*nowhere; set root"):
        isic2018.read(tmp_path / "nowhere")
    (isic_folder / IMAGES).rename(isic_folder / "renamed")
    with pytest.raises(DataError, match=f"image folder .*{IMAGES} is missing"):
        isic2018.read(isic_folder)
    (isic_folder / TRUTH).unlink()
    with pytest.raises(DataError, match=f"{TRUTH} is missing"):
        isic2018.read(isic_folder)


def test_missing_column_is_named(isic_folder):
    edit(isic_folder / TRUTH, lambda table: table.drop(columns=["DF", "VASC"]))
    with pytest.raises(DataError, match=r"lacks the column\(s\) VASC, DF, it has image, MEL"):
        isic2018.read(isic_folder)


@pytest.mark.parametrize("value", ["1.0", "0.5", "", "yes"], ids=["two ones", "fraction", "empty", "text"])
def test_label_rows_that_are_not_one_hot_are_named(isic_folder, value):
    def spoil(table):
        table.loc[table["image"] == "ISIC_0000002", "VASC"] = value
        return table

    edit(isic_folder / TRUTH, spoil)
    with pytest.raises(DataError, match="not one-hot for image ISIC_0000002: exactly one of"):
        isic2018.read(isic_folder)


def test_a_row_of_zeros_is_not_one_hot(isic_folder):
    edit(isic_folder / TRUTH, lambda table: table.assign(NV="0.0"))
    with pytest.raises(DataError, match="not one-hot for image ISIC_0000001, ISIC_0000009"):
        isic2018.read(isic_folder)


def test_two_rows_of_one_image_are_refused(isic_folder):
    edit(isic_folder / TRUTH, lambda table: pd.concat([table, table.iloc[[0]]]))
    with pytest.raises(DataError, match="several rows for image ISIC_0000009"):
        isic2018.read(isic_folder)


def test_rows_without_file_and_files_without_row_are_named_and_counted(isic_folder):
    for number in (1, 2, 3, 4):
        (isic_folder / IMAGES / f"ISIC_000000{number}.jpg").rename(isic_folder / IMAGES / f"ISIC_100000{number}.jpg")
    with pytest.raises(DataError, match=r"lacks: ISIC_0000001\.jpg, ISIC_0000002\.jpg, .*\(4 in all\)"):
        isic2018.read(isic_folder)
    for number in (1, 2, 3, 4):
        (isic_folder / IMAGES / f"ISIC_100000{number}.jpg").rename(isic_folder / IMAGES / f"ISIC_000000{number}.jpg")
    (isic_folder / IMAGES / "ISIC_0000077.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"images without a row in .*: ISIC_0000077\.jpg"):
        isic2018.read(isic_folder)


def test_files_that_are_no_images_of_the_set_are_passed_over(isic_folder):
    (isic_folder / IMAGES / "ATTRIBUTION.txt").write_text("text")
    (isic_folder / IMAGES / "._ISIC_0000001.jpg").write_bytes(b"")  # what macOS archives leave
    assert len(isic2018.read(isic_folder)) == 9


def test_a_lesion_table_with_gaps_is_refused(isic_folder):
    edit(isic_folder / "HAM10000_metadata.csv", lambda table: table[table["image_id"] != "ISIC_0000003"])
    with pytest.raises(DataError, match="gives no lesion for images ISIC_0000003"):
        isic2018.read(isic_folder)


def test_a_file_that_is_no_table_is_refused(isic_folder):
    (isic_folder / TRUTH).write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(DataError, match="cannot be read as a CSV table"):
        isic2018.read(isic_folder)


def test_real_training_set_has_the_published_sizes(real_folder, tmp_path):
    cohort = isic2018.read(real_folder("isic2018_task3_128"), cache_dir=tmp_path)
    counts = cohort.table["class"].value_counts()
    assert [counts[name] for name in cohort.classes] == [6705, 1113, 1099, 514, 327, 142, 115]
    assert len(cohort.rows_of(cohort.base_classes)) == 9431
    assert cohort.table["patient"].nunique() == 7470
    assert (cohort.table.groupby("patient")["label"].nunique() == 1).all()


def damage(folder, image):
    """Cut the file of an image in half."""
    path = folder / IMAGES / f"{image}.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_image_is_named_with_the_way_to_leave_it_out(isic_folder, tmp_path):
    damage(isic_folder, "ISIC_0000004")
    cohort = isic2018.read(isic_folder, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"ISIC_0000004\.jpg .*or list their ids in skip\.txt"):
        cohort.images["dermoscopic"].load(8)


def test_images_are_left_out_only_when_skip_txt_lists_them(isic_folder, tmp_path):
    damage(isic_folder, "ISIC_0000004")
    (isic_folder / IMAGES / "ISIC_0000002.jpg").unlink()
    (isic_folder / "skip.txt").write_text("ISIC_0000004\n\nISIC_0000002.jpg\n")
    cohort = isic2018.read(isic_folder, cache_dir=tmp_path / "cache")
    assert not {"ISIC_0000002", "ISIC_0000004"} & set(cohort.table["id"]) and len(cohort) == 7
    assert cohort.settings["n_skipped"] == 2
    grey = cohort.images["dermoscopic"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, [10 * int(image[-1]) for image in cohort.table["id"]], atol=1.5)
    (isic_folder / "skip.txt").write_text("ISIC_9")
    with pytest.raises(DataError, match="skip.txt lists images that .* does not have: ISIC_9"):
        isic2018.read(isic_folder)


def test_an_image_with_two_lesions_is_refused_but_a_row_may_come_twice(isic_folder):
    path = isic_folder / "HAM10000_metadata.csv"
    edit(path, lambda table: pd.concat([table, table.iloc[[2]]]))
    assert len(isic2018.read(isic_folder)) == 9
    edit(path, lambda table: pd.concat([table, table[table["image_id"] == "ISIC_0000003"].assign(lesion_id="HAM_9")]))
    with pytest.raises(DataError, match=r"HAM10000_metadata\.csv gives several lesions for images ISIC_0000003"):
        isic2018.read(isic_folder)


def test_skip_txt_is_utf_8_with_or_without_byte_order_mark(isic_folder):
    (isic_folder / "skip.txt").write_text("ISIC_0000004\n", encoding="utf-8-sig")
    assert isic2018.read(isic_folder).settings["n_skipped"] == 1
    (isic_folder / "skip.txt").write_text("ISIC_0000004\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"skip\.txt is not UTF-8 text \(.*\); save it as UTF-8"):
        isic2018.read(isic_folder)
