import numpy as np
import pandas as pd
import pytest

from medkd.data import milk10k
from medkd.errors import DataError, ParameterError

TRUTH = "MILK10k_Training_GroundTruth.csv"
METADATA = "MILK10k_Training_Metadata.csv"
IMAGES = "MILK10k_Training_Input"


def edit(path, change):
    """Rewrite a CSV through a function of its table."""
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)


def test_one_row_a_lesion_with_its_two_images_told_apart_by_the_table(milk_folder, tmp_path):
    """The grey value of an image is the number in its name, up to JPEG rounding."""
    cohort = milk10k.read(milk_folder, cache_dir=tmp_path / "cache")
    assert cohort.table["id"].tolist() == ["IL_1", "IL_2", "IL_3", "IL_4"]
    assert cohort.table["class"].tolist() == ["BCC", "MAL_OTH", "NV", "NV"]
    clinical, dermoscopic = (cohort.images[name].load(8).mean(axis=(1, 2, 3)) for name in (cohort.main, cohort.second))
    np.testing.assert_allclose(clinical, [19, 20, 31, 48], atol=1.0)
    np.testing.assert_allclose(dermoscopic, [11, 21, 39, 40], atol=1.0)


def test_clinical_is_what_the_student_keeps(milk_folder):
    cohort = milk10k.read(milk_folder)
    assert (cohort.main, cohort.second, cohort.group) == ("clinical", "dermoscopic", "lesion")
    assert cohort.table["patient"].tolist() == cohort.table["id"].tolist()


def test_patient_metadata_are_kept_and_model_scores_left_out(milk_folder):
    table = milk10k.read(milk_folder).table
    assert table["age_approx"].tolist() == [10, 20, 0, 30]  # the rows of the file are IL_3, IL_1, IL_2, IL_4
    assert {"sex", "skin_tone_class", "site"} <= set(table.columns)
    assert not [column for column in table.columns if column.startswith("MONET")]


def test_chosen_classes_keep_rows_images_and_labels_together(milk_folder, tmp_path):
    cohort = milk10k.read(milk_folder, classes=("NV", "BCC"), cache_dir=tmp_path / "cache")
    assert cohort.table["id"].tolist() == ["IL_1", "IL_3", "IL_4"]
    assert cohort.labels.tolist() == [1, 0, 0]
    grey = cohort.images["clinical"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, [19, 31, 48], atol=1.0)


def test_choices_of_classes_share_one_decoded_array(milk_folder, tmp_path):
    milk10k.read(milk_folder, cache_dir=tmp_path / "cache").images["clinical"].load(8)
    milk10k.read(milk_folder, classes=("NV", "BCC"), cache_dir=tmp_path / "cache").images["clinical"].load(8)
    assert len(list((tmp_path / "cache" / "images").glob("*.npy"))) == 1


def test_names_and_titles_tell_the_two_registered_cohorts_apart(milk_folder):
    every, five = milk10k.read(milk_folder), milk10k.read(milk_folder, classes=milk10k.FIVE_LARGEST)
    assert (every.name, every.title, len(every.classes)) == ("milk10k", "MILK10k", 11)
    assert (five.name, five.title, five.classes) == (
        "milk10k-5", "MILK10k, 5 classes", ("BCC", "NV", "BKL", "SCCKA", "MEL"),
    )  # fmt: skip


@pytest.mark.parametrize("classes", [("NV", "naevus"), ("NV",), ("NV", "NV")])
def test_a_wrong_choice_of_classes_names_the_known_ones(milk_folder, classes):
    with pytest.raises(ParameterError, match="two or more different classes of MILK10k; known are BCC, NV"):
        milk10k.read(milk_folder, classes=classes)


def test_a_lesion_without_its_pair_is_named(milk_folder):
    edit(milk_folder / METADATA, lambda table: table[table["isic_id"] != "ISIC_11"])
    with pytest.raises(DataError, match='each lesion one "dermoscopic" image, and does not for IL_1;'):
        milk10k.read(milk_folder)


def test_a_lesion_with_two_images_of_a_type_is_named(milk_folder):
    edit(milk_folder / METADATA, lambda table: table.assign(image_type="clinical: close-up"))
    with pytest.raises(DataError, match=r"does not for .*IL_1, .*\(4 in all\)"):
        milk10k.read(milk_folder)


def test_an_unknown_image_type_is_named(milk_folder):
    edit(milk_folder / METADATA, lambda table: table.replace("dermoscopic", "confocal"))
    with pytest.raises(DataError, match="image_type confocal, known are dermoscopic, clinical: close-up"):
        milk10k.read(milk_folder)


def test_tables_of_different_releases_are_refused(milk_folder):
    edit(milk_folder / TRUTH, lambda table: table[table["lesion_id"] != "IL_2"])
    with pytest.raises(DataError, match=f"lesions without a row in {TRUTH}: IL_2"):
        milk10k.read(milk_folder)


def test_missing_and_unlisted_images_are_named(milk_folder):
    image = milk_folder / IMAGES / "IL_1" / "ISIC_11.jpg"
    image.rename(image.with_name("ISIC_12.jpg"))
    with pytest.raises(DataError, match=r"lacks: IL_1/ISIC_11\.jpg"):
        milk10k.read(milk_folder)
    image.with_name("ISIC_12.jpg").rename(image)
    image.with_name("ISIC_13.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"images without a row in .*: IL_1/ISIC_13\.jpg"):
        milk10k.read(milk_folder)


def test_missing_tables_columns_and_ids_are_named(milk_folder):
    edit(
        milk_folder / METADATA, lambda table: table.assign(isic_id=table["isic_id"].mask(table["isic_id"] == "ISIC_11"))
    )
    with pytest.raises(DataError, match="rows without lesion_id or isic_id"):
        milk10k.read(milk_folder)
    edit(milk_folder / METADATA, lambda table: table.drop(columns="site"))
    with pytest.raises(DataError, match=r"lacks the column\(s\) site"):
        milk10k.read(milk_folder)
    (milk_folder / METADATA).unlink()
    with pytest.raises(DataError, match=f"{METADATA} is missing"):
        milk10k.read(milk_folder)


def test_real_set_has_the_sizes_of_its_readme(real_folder, tmp_path):
    root = real_folder("milk10k_128")
    every = milk10k.read(root, cache_dir=tmp_path)
    counts = every.table["class"].value_counts()
    assert [counts[name] for name in every.classes] == [700, 696, 503, 432, 409, 268, 38, 37, 32, 32, 6]
    assert (len(every), len(milk10k.read(root, classes=milk10k.FIVE_LARGEST))) == (3153, 2740)


def test_metadata_are_encoded_by_hand(milk_folder):
    """Rows IL_1 to IL_4; in the file they stand as IL_3, IL_1, IL_2, IL_4, two rows each."""
    edit(
        milk_folder / METADATA,
        lambda table: table.assign(
            age_approx=table["lesion_id"].map({"IL_1": "20", "IL_2": None, "IL_3": "0", "IL_4": "30"}),
            skin_tone_class=table["lesion_id"].map({"IL_1": "3", "IL_2": "0", "IL_3": None, "IL_4": "5"}),
            sex=table["lesion_id"].map({"IL_1": "male", "IL_2": "female", "IL_3": "male", "IL_4": None}),
            site=table["lesion_id"].map({"IL_1": "trunk", "IL_2": None, "IL_3": "foot", "IL_4": "trunk"}),
        ),
    )
    metadata = milk10k.read(milk_folder).vectors["metadata"]
    assert metadata.names == (
        "age_approx", "skin_tone_class", "sex=female", "sex=male", "site=foot", "site=trunk",
    )  # fmt: skip
    by_hand = [[20, 3, 0, 1, 0, 1], [np.nan, 0, 1, 0, 0, 0], [0, np.nan, 0, 1, 1, 0], [30, 5, 0, 0, 0, 1]]
    np.testing.assert_array_equal(metadata.values, np.array(by_hand, np.float32))
    some = milk10k.read(milk_folder, classes=("NV", "BCC")).vectors["metadata"]
    assert some.names == metadata.names  # the columns are those of the file, whichever classes are kept
    np.testing.assert_array_equal(some.values, metadata.values[[0, 2, 3]])


def test_metadata_can_take_the_place_of_the_second_modality(milk_folder):
    cohort = milk10k.read(milk_folder)
    assert cohort.modalities == ("dermoscopic", "clinical", "metadata")
    chosen = cohort.with_slots(second="metadata")
    assert (chosen.main, chosen.second) == ("clinical", "metadata")


def test_an_age_that_is_no_number_is_named(milk_folder):
    edit(milk_folder / METADATA, lambda table: table.assign(age_approx="old"))
    with pytest.raises(DataError, match="has the age_approx old, which is no number"):
        milk10k.read(milk_folder)


def test_real_metadata_hold_no_model_scores(real_folder, tmp_path):
    metadata = milk10k.read(real_folder("milk10k_128"), cache_dir=tmp_path).vectors["metadata"]
    assert metadata.values.shape == (3153, 2 + 2 + 7)
    assert {name.partition("=")[0] for name in metadata.names} == {"age_approx", "skin_tone_class", "sex", "site"}
    assert np.isnan(metadata.values).sum(axis=0).tolist() == [18] + [0] * 10
    assert (metadata.values[:, 2:4].sum(axis=1) == 1).all()
    assert (metadata.values[:, 4:].sum(axis=1) == 0).sum() == 30
