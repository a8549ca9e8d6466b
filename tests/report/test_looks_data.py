import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort, VectorTable
from medkd.data.images import FileImages
from medkd.errors import DataError
from medkd.report.figures import banded_heatmap
from medkd.report.looks_data import file_sizes, missing_values, paired_examples, patient_rows
from medkd.report.style import figure

CLASSES = ("a", "b")


@pytest.fixture
def cohort():
    """Six samples of five patients; image i is grey i in one modality and 100 + i in the other."""
    labels = np.array([0, 0, 0, 0, 1, 1])
    table = pd.DataFrame({"id": [f"x{i}" for i in range(6)], "label": labels, "patient": list("ppqrst")})
    table["class"], table["roi"] = np.array(CLASSES)[labels], table["id"]
    grey = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 8, 8, 3), np.uint8)
    images = {"one": ArrayImages(grey), "two": ArrayImages(grey + 100)}
    values = np.float32([[0, 5], [0, 5], [0, 7], [0, np.nan], [9, 6], [9, 5]])
    return Cohort("toy", "Toy", True, CLASSES, table, images, {"v": VectorTable(values, ("telling", "noise"))})


def test_pairs_stand_side_by_side_and_classes_take_turns(cohort):
    images, titles = paired_examples(cohort, 8, 4)
    grey = images[:, 0, 0, 0]
    assert (grey[1::2] - grey[::2] == 100).all()
    assert [title.split(",")[0] for title in titles[::2]] == ["a", "b", "a", "b"]
    assert titles[:2] == ["a, one", "a, two"]
    with pytest.raises(DataError, match="toy has 1 image modalities; pairs need two"):
        paired_examples(dataclasses.replace(cohort, images={"one": cohort.images["one"]}), 8, 4)


def test_sizes_of_files_are_counted_commonest_first(cohort, tmp_path):
    sizes = [(10, 6), (4, 4), (10, 6), (10, 6), (4, 4), (3, 5)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    files = FileImages([f"{i}.png" for i in range(6)], root=tmp_path, cache_dir=tmp_path / "cache")
    table = file_sizes(dataclasses.replace(cohort, images={"one": files}), "one")
    assert table.to_numpy().tolist() == [[10, 6, 3], [4, 4, 2], [3, 5, 1]]
    assert file_sizes(cohort, "two").to_numpy().tolist() == [[8, 8, 6]]


def test_gaps_are_counted_by_class(cohort):
    table = missing_values(cohort, "v")
    assert table["column"].tolist() == ["noise"]
    assert table.iloc[0, 1:].tolist() == pytest.approx([1 / 6, 1 / 4, 0])


def test_patients_come_once_by_class_with_the_telling_column_first(cohort):
    frame, bands = patient_rows(cohort, "v")
    assert frame.index.tolist() == ["p", "q", "r", "s", "t"] and bands == [3, 2]
    assert frame.columns.tolist() == ["telling", "noise"]
    assert frame["telling"].iloc[0] < 0 < frame["telling"].iloc[-1]
    assert np.isnan(frame.loc["r", "noise"])
    few, bands = patient_rows(cohort, "v", n_columns=1, n_a_class=1)
    assert few.shape == (2, 1) and bands == [1, 1]


def test_the_heat_map_names_bands_at_their_middle_and_greys_gaps(cohort):
    frame, bands = patient_rows(cohort, "v")
    _, ax = figure()
    banded_heatmap(frame, bands, CLASSES, ax)
    assert ax.get_yticks().tolist() == [1.0, 3.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert np.isnan(ax.images[0].get_array().filled(np.nan)[2, 1])
