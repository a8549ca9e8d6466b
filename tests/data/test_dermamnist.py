import numpy as np
import pytest

from medkd.data import dermamnist
from medkd.data.folds import split_rows
from medkd.errors import DataError, ParameterError

N = {"train": 21, "val": 14, "test": 7}


def arrays(size):
    """Image i of a part has the grey value i, label i modulo 7."""
    made = {}
    for part, n in N.items():
        made[f"{part}_images"] = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, size, size, 3))
        made[f"{part}_labels"] = np.arange(n)[:, None] % 7
    return made


@pytest.fixture
def folder(tmp_path):
    np.savez_compressed(tmp_path / "dermamnist.npz", **arrays(28))
    np.savez_compressed(tmp_path / "dermamnist_64.npz", **arrays(64))
    return tmp_path


@pytest.fixture
def read(folder, tmp_path):
    return lambda root=folder, **settings: dermamnist.read(root, cache_dir=tmp_path / "cache", **settings)


def test_images_labels_and_parts_stay_together(read):
    cohort = read()
    assert cohort.table["id"].tolist() == [f"{part}_{i:05d}" for part, n in N.items() for i in range(n)]
    order = ["AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC"]
    assert cohort.table["class"].tolist() == [order[i % 7] for n in N.values() for i in range(n)]
    assert [cohort.classes[label] for label in cohort.labels] == cohort.table["class"].tolist()
    grey = cohort.images["dermoscopic"].load(64)[:, 5, 5, 0]
    assert grey.tolist() == [i for n in N.values() for i in range(n)]
    split = split_rows(cohort, fold=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == list(N.values())
    assert cohort.group == "image"


def test_the_largest_size_is_taken_unless_another_is_asked_for(read, folder):
    assert read().settings["file_pixels"] == "64x64"
    assert read(size=28).settings["file_pixels"] == "28x28"
    assert read(folder / "dermamnist.npz").settings["file_pixels"] == "28x28"
    with pytest.raises(ParameterError, match="size = 224 is not in .*, which holds 28, 64"):
        read(size=224)


def test_pixels_are_a_memory_map_that_is_unpacked_once(read, folder, tmp_path):
    read()
    (unpacked,) = (tmp_path / "cache" / "arrays").glob("*.npy")
    before = unpacked.stat().st_mtime_ns
    read()
    assert unpacked.stat().st_mtime_ns == before
    assert np.load(unpacked, mmap_mode="r").shape == (42, 64, 64, 3)


def changed(folder, **arrays_):
    np.savez(folder / "dermamnist_64.npz", **(arrays(64) | arrays_))


def test_files_of_another_form_are_refused(read, folder):
    changed(folder, val_labels=np.full((14, 1), 9))
    with pytest.raises(DataError, match="val_labels of .* must be whole numbers 0 to 6"):
        read()
    changed(folder, test_images=np.zeros((7, 64, 64), np.uint8))
    with pytest.raises(DataError, match=r"test_images of .* must be uint8 of shape \(7, size, size, 3\)"):
        read()
    changed(folder, test_images=np.zeros((7, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="test_images of .* differ in size"):
        read()
    changed(folder, train_labels=np.array([[object()]] * 21))
    with pytest.raises(DataError, match="cannot be read as an npz file .*allow_pickle"):
        read()
    (folder / "dermamnist_64.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be read as an npz file"):
        read()
    np.savez(folder / "dermamnist_64.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="has no array train_labels"):
        read()


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no dermamnist\.npz"):
        dermamnist.read(tmp_path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: np.save(path, np.zeros(3))])
def test_damaged_pixels_in_the_cache_are_unpacked_again(read, tmp_path, damage):
    before = np.asarray(read().images["dermoscopic"].load(64))
    (unpacked,) = (tmp_path / "cache" / "arrays").glob("*.npy")
    damage(unpacked)
    np.testing.assert_array_equal(read().images["dermoscopic"].load(64), before)
