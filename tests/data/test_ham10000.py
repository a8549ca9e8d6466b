import shutil

import numpy as np
import pandas as pd
import pytest
from miniatures import ISIC_ROWS, write_jpeg

from medkd.data import ham10000, isic2018
from medkd.errors import DataError

PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")


@pytest.fixture
def ham_folder(tmp_path):
    """Nine images in two parts; the grey value is 10 times the last digit of the name."""
    root = tmp_path / "ham"
    for number, (image, _, _) in enumerate(ISIC_ROWS):
        write_jpeg(root / PARTS[number % 2] / f"{image}.jpg", 10 * int(image[-1]))
    images, names, lesions = map(list, zip(*ISIC_ROWS, strict=True))
    table = pd.DataFrame({"lesion_id": lesions, "image_id": images, "dx": [name.lower() for name in names]})
    table = table.assign(dx_type="histo", age=50.0, sex="female", localization="back")
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    return root


def test_rows_images_and_lesions_are_those_of_the_table(ham_folder, tmp_path):
    cohort = ham10000.read(ham_folder, cache_dir=tmp_path / "cache")
    expected = {image: (name, lesion) for image, name, lesion in ISIC_ROWS}
    assert cohort.table["id"].tolist() == sorted(expected)
    assert list(zip(cohort.table["class"], cohort.table["patient"], strict=True)) == [
        expected[image] for image in cohort.table["id"]
    ]
    assert [cohort.classes[label] for label in cohort.labels] == cohort.table["class"].tolist()
    grey = cohort.images["dermoscopic"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, [10 * int(image[-1]) for image in cohort.table["id"]], atol=1.5)
    assert (cohort.classes, cohort.rare_classes) == (isic2018.CLASSES, isic2018.RARE_CLASSES)
    assert cohort.table["dx_type"].tolist() == ["histo"] * 9


def test_parts_may_be_archives_and_kaggles_double_folders(ham_folder, tmp_path):
    plain = ham10000.read(ham_folder, cache_dir=tmp_path / "cache").images["dermoscopic"].load(8)
    shutil.make_archive(ham_folder / PARTS[0], "zip", ham_folder / PARTS[0])
    shutil.rmtree(ham_folder / PARTS[0])
    (ham_folder / PARTS[1]).rename(ham_folder / "inner")
    (ham_folder / PARTS[1]).mkdir()
    (ham_folder / "inner").rename(ham_folder / PARTS[1] / PARTS[1])
    shutil.copytree(ham_folder / PARTS[1], ham_folder / PARTS[1].lower())  # Kaggle has it in both spellings
    packed = ham10000.read(ham_folder, cache_dir=tmp_path / "two").images["dermoscopic"].load(8)
    np.testing.assert_array_equal(packed, plain)


def test_dataverses_tab_separated_table_is_read(ham_folder):
    table = pd.read_csv(ham_folder / "HAM10000_metadata.csv")
    (ham_folder / "HAM10000_metadata.csv").unlink()
    table.to_csv(ham_folder / "HAM10000_metadata.tab", sep="\t", index=False)
    assert len(ham10000.read(ham_folder)) == 9


def test_missing_parts_strangers_and_unknown_words_are_named(ham_folder):
    table = pd.read_csv(ham_folder / "HAM10000_metadata.csv")
    table[1:].to_csv(ham_folder / "HAM10000_metadata.csv", index=False)
    with pytest.raises(DataError, match="images without a row in HAM10000_metadata.csv: ISIC_0000009"):
        ham10000.read(ham_folder)
    table.assign(dx="wart").to_csv(ham_folder / "HAM10000_metadata.csv", index=False)
    with pytest.raises(DataError, match='HAM10000_metadata.csv has the dx "wart" .* known are nv, mel'):
        ham10000.read(ham_folder)
    table.to_csv(ham_folder / "HAM10000_metadata.csv", index=False)
    shutil.rmtree(ham_folder / PARTS[1])
    with pytest.raises(DataError, match="names images that are not in .*: ISIC_0000001, .*get both parts"):
        ham10000.read(ham_folder)
    shutil.rmtree(ham_folder / PARTS[0])
    with pytest.raises(DataError, match=r"holds no images; put HAM10000_images_part_1\.zip"):
        ham10000.read(ham_folder)
    (ham_folder / "HAM10000_metadata.csv").unlink()
    with pytest.raises(DataError, match="HAM10000_metadata.csv is missing"):
        ham10000.read(ham_folder)
