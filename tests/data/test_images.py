import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Resize

from medkd.data import images as module
from medkd.data.images import FileImages, first_few, pixel_size
from medkd.errors import DataError, ParameterError

NAMES = ["a.jpg", "b.png", "sub/c.jpg", "d.png", "e.png"]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def source(image_folder, cache):
    return FileImages(NAMES, root=image_folder, cache_dir=cache)


@pytest.fixture
def count_decodes(monkeypatch):
    """The list of files that were decoded while the test ran."""
    decoded, decode = [], module._decode_file
    monkeypatch.setattr(module, "_decode_file", lambda path, size: decoded.append(path.name) or decode(path, size))
    return decoded


@pytest.mark.parametrize("size", [16, 40])
def test_equals_torchvisions_square_resize_of_the_rgb_image(source, image_folder, size):
    """The slow reference: one file after the other, through torchvision (shrinks some files, enlarges others)."""
    expected = [np.asarray(Resize((size, size))(Image.open(image_folder / name).convert("RGB"))) for name in NAMES]
    loaded = source.load(size)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, np.stack(expected))


def test_all_rows_come_as_a_read_only_memory_map(source):
    loaded = source.load(16)
    assert isinstance(loaded, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 0


def test_each_file_is_decoded_once_a_size_also_for_another_reader(source, image_folder, cache, count_decodes):
    source.load(16)
    source.take(np.array([3])).load(16)
    FileImages(NAMES, root=image_folder, cache_dir=cache).load(16)
    assert sorted(count_decodes) == sorted(name.split("/")[-1] for name in NAMES)
    source.load(24)
    assert len(count_decodes) == 2 * len(NAMES)


def test_take_chooses_rows_in_order_and_composes(source):
    everything = np.asarray(source.load(16))
    taken = source.take(np.array([4, 1, 1, 0]))
    np.testing.assert_array_equal(taken.load(16), everything[[4, 1, 1, 0]])
    np.testing.assert_array_equal(taken.take(np.array([3, 0])).load(16), everything[[0, 4]])
    assert (len(source), len(taken)) == (5, 4)
    np.testing.assert_array_equal(source.load(16), everything)


def test_a_reordered_source_is_not_mistaken_for_the_whole_map(source):
    everything = np.asarray(source.load(16))
    np.testing.assert_array_equal(source.take(np.arange(5)[::-1]).load(16), everything[::-1])


def test_a_changed_file_is_decoded_again_and_changes_the_fingerprint(source, image_folder, cache):
    before, old = source.fingerprint(), np.asarray(source.load(16))
    Image.new("RGB", (10, 10), (255, 0, 0)).save(image_folder / "e.png")
    again = FileImages(NAMES, root=image_folder, cache_dir=cache)
    assert (again.load(16)[4] == (255, 0, 0)).all()
    np.testing.assert_array_equal(again.load(16)[:4], old[:4])
    assert again.fingerprint() != before


def test_a_file_rewritten_with_as_many_bytes_is_noticed_by_its_time(tmp_path, cache):
    path = tmp_path / "x.bmp"  # uncompressed: every 8 x 8 picture has the same number of bytes
    for time, grey in ((10**18, 10), (10**18 + 10**9, 200)):
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
        os.utime(path, ns=(time, time))
        assert (FileImages(["x.bmp"], root=tmp_path, cache_dir=cache).load(8) == grey).all()


def test_fingerprint_depends_on_content_and_rows_but_not_on_place_and_time(source, image_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(image_folder, moved, copy_function=shutil.copyfile)  # new modification times
    copied = FileImages(NAMES, root=moved, cache_dir=tmp_path / "other-cache")
    assert copied.fingerprint() == source.fingerprint()
    assert source.take(np.array([1, 0])).fingerprint() != source.take(np.array([0, 1])).fingerprint()
    assert source.take(np.array([0])).fingerprint() != source.fingerprint()


def test_hashes_are_remembered_until_a_file_changes(source, image_folder, cache, monkeypatch):
    hashes = source.content_hashes()
    assert len(set(hashes)) == 5
    again = FileImages(NAMES, root=image_folder, cache_dir=cache)
    monkeypatch.setattr(module.Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert again.take(np.array([2, 0])).content_hashes() == [hashes[2], hashes[0]]


def test_unreadable_files_are_named_and_counted_and_nothing_is_kept(image_folder, cache):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (image_folder / "a.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])  # truncated
    (image_folder / "d.png").write_text("this is no image")
    with pytest.raises(DataError, match=r"2 of 5 image files under .* cannot be read: a\.jpg, d\.png .*truncated"):
        FileImages(NAMES, root=image_folder, cache_dir=cache).load(16)
    assert list((cache / "images").iterdir()) == []


def test_missing_files_are_named(image_folder, cache):
    (image_folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 image files under .*: b\.png"):
        FileImages(NAMES, root=image_folder, cache_dir=cache).fingerprint()


def test_an_interrupted_build_leaves_no_array_behind(source, cache, monkeypatch):
    def stop(path, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_decode_file", stop)
        with pytest.raises(KeyboardInterrupt):
            source.load(16)
    assert list((cache / "images").iterdir()) == []
    assert source.load(16).shape == (5, 16, 16, 3)


def test_a_disk_without_room_is_refused_before_decoding(source, monkeypatch, count_decodes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 16 * 16 * 3 - 1))
    with pytest.raises(DataError, match="make room, lower image_size, or set MEDKD_HOME"):
        source.load(16)
    assert count_decodes == []


def test_cache_lies_in_the_project_by_default(image_folder, project):
    FileImages(NAMES, root=image_folder).load(8)
    assert [path.suffix for path in (project / "data" / "cache" / "images").iterdir()] == [".npy"]


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_a_size_that_is_no_number_of_pixels_is_refused(source, size):
    with pytest.raises(ParameterError, match="whole number of pixels"):
        source.load(size)


def test_no_paths_are_refused(tmp_path):
    with pytest.raises(DataError, match="no image file was named"):
        FileImages([], root=tmp_path)


def test_pixel_size_is_width_then_height(image_folder):
    assert pixel_size(image_folder / "a.jpg") == (47, 31)
    (image_folder / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg is not a readable image"):
        pixel_size(image_folder / "a.jpg")


def test_first_few_counts_only_when_something_is_left_out():
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d"]) == "a, b, c, ... (4 in all)"
