import errno
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps
from torchvision.transforms import Resize

from medkd.data import images as module
from medkd.data.decoding import IMAGE_FORMATS, decode
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.errors import DataError, ParameterError, first_few

NAMES = ["a.jpg", "b.png", "sub/c.jpg", "d.png", "e.png"]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def source(image_folder, cache):
    return FileImages(NAMES, root=image_folder, cache_dir=cache)


@pytest.fixture
def count_decodes(monkeypatch):
    """The contents that were decoded while the test ran."""
    decoded, decode = [], module.decode
    monkeypatch.setattr(module, "decode", lambda content, *rest: decoded.append(content) or decode(content, *rest))
    return decoded


def arrays_in(cache):
    """Arrays and parts of arrays in a cache, not the remembered hashes and locks."""
    return [path for path in (cache / "images").iterdir() if path.suffix in (".npy", ".part")]


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
    assert len(count_decodes) == len(set(count_decodes)) == len(NAMES)
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
    monkeypatch.setattr(FileStore, "read", lambda store, name: pytest.fail(f"{name} was read again"))
    assert again.take(np.array([2, 0])).content_hashes() == [hashes[2], hashes[0]]


def test_unreadable_files_are_named_and_counted_and_nothing_is_kept(image_folder, cache):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (image_folder / "a.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])  # truncated
    (image_folder / "d.png").write_text("this is no image")
    with pytest.raises(DataError, match=r"2 of 5 image files under .* cannot be read: a\.jpg, d\.png .*truncated"):
        FileImages(NAMES, root=image_folder, cache_dir=cache).load(16)
    assert arrays_in(cache) == []


def test_missing_files_are_named(image_folder, cache):
    (image_folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 image files under .*: b\.png"):
        FileImages(NAMES, root=image_folder, cache_dir=cache).fingerprint()


def test_an_interrupted_build_leaves_no_array_behind(source, cache, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "decode", stop)
        with pytest.raises(KeyboardInterrupt):
            source.load(16)
    assert arrays_in(cache) == []
    assert source.load(16).shape == (5, 16, 16, 3)


def test_a_disk_without_room_is_refused_before_decoding(source, monkeypatch, count_decodes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 16 * 16 * 3 - 1))
    with pytest.raises(DataError, match="make room, lower image_size, or set MEDKD_HOME"):
        source.load(16)
    assert count_decodes == []


def test_cache_lies_in_the_project_by_default(image_folder, project):
    FileImages(NAMES, root=image_folder).load(8)
    assert len(arrays_in(project / "data" / "cache")) == 1


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_a_size_that_is_no_number_of_pixels_is_refused(source, size):
    with pytest.raises(ParameterError, match="whole number of pixels"):
        source.load(size)


def test_no_paths_are_refused(tmp_path):
    with pytest.raises(DataError, match="no image file was named"):
        FileImages([], root=tmp_path)


def test_file_pixels_are_width_then_height(source, image_folder):
    assert source.file_pixels() == (47, 31)
    assert source.take(np.array([1])).file_pixels() == (20, 50)
    (image_folder / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg is not a readable image"):
        source.file_pixels()


def test_first_few_counts_only_when_something_is_left_out():
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d"]) == "a, b, c, ... (4 in all)"


def grey_of(image_file, tmp_path):
    """The one colour of an image, after loading it as a researcher's file."""
    pixels = FileImages([image_file.name], root=image_file.parent, cache_dir=tmp_path / "cache").load(4)
    assert (pixels == pixels[0, 0, 0]).all()
    return pixels[0, 0, 0].tolist()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((6, 6), 0x4080, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((6, 6), 0x4080, np.uint16)).save(tmp_path / "deep.tif")
    assert grey_of(tmp_path / "deep.png", tmp_path) == grey_of(tmp_path / "deep.tif", tmp_path) == [0x40] * 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_eight_bits_in_deeper_pixels_are_refused_and_twelve_told(tmp_path, cache, dtype):
    Image.fromarray(np.full((6, 6), 255, dtype)).save(tmp_path / "dark.tif")
    with pytest.raises(DataError, match=r"^all 1 images under .* are black; if they hold 8-bit values in files of 16"):
        FileImages(["dark.tif"], root=tmp_path, cache_dir=cache).load(6)
    Image.fromarray(np.full((6, 6), 4095, dtype)).save(tmp_path / "dark.tif")
    with pytest.warns(UserWarning, match="brighter than 15 of 255, as if 8- or 12-bit values lay in 16-bit files"):
        FileImages(["dark.tif"], root=tmp_path, cache_dir=cache).load(6)


def test_a_dark_frame_among_others_is_told_and_kept(tmp_path, cache):
    Image.fromarray(np.full((6, 6), 200, np.uint16)).save(tmp_path / "background.png")
    Image.fromarray(np.full((6, 6), 0x4080, np.uint16)).save(tmp_path / "tissue.png")
    source = FileImages(["background.png", "tissue.png"], root=tmp_path, cache_dir=cache)
    with pytest.warns(UserWarning, match=r"1 of 2 images under .* are black: background.png; if they"):
        pixels = source.load(6)
    assert (pixels[0] == 0).all() and (pixels[1] == 0x40).all()


def test_pixels_of_other_content_are_not_kept_under_its_hash(tmp_path, cache):
    """A copy that is still running when the hashes are made, and is whole when the pixels are."""
    path = tmp_path / "a.png"
    Image.new("L", (6, 6), 70).save(path)
    source = FileImages(["a.png"], root=tmp_path, cache_dir=cache)
    source.fingerprint()
    whole, times = path.read_bytes(), path.stat()
    Image.new("L", (6, 6), 255).save(path)
    with pytest.raises(DataError, match="changed since it was first read; run the command again"):
        source.load(6)
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (FileImages(["a.png"], root=tmp_path, cache_dir=cache).load(6) == 70).all()


def test_another_decoding_is_another_content(source, monkeypatch):
    before = source.fingerprint()
    monkeypatch.setattr(module, "DECODER", "3")
    assert source.fingerprint() != before


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (6, 6), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    np.testing.assert_allclose(grey_of(tmp_path / "print.jpg", tmp_path), (255, 0, 0), atol=3)


@pytest.mark.parametrize("mode, colour", [("RGBA", (200, 100, 50, 0)), ("LA", (200, 0))])
def test_what_is_transparent_is_black_whatever_colour_lies_under_it(tmp_path, mode, colour):
    Image.new(mode, (6, 6), colour).save(tmp_path / "cut_out.png")
    assert (decode((tmp_path / "cut_out.png").read_bytes(), 4) == 0).all()


def test_the_orientation_tag_of_a_camera_is_obeyed(tmp_path):
    """Tag 6: the top of the picture is the stored right side; here the stored left half is white."""
    stored = Image.fromarray(np.repeat(np.array([[255, 0]], np.uint8), 2, axis=0).repeat(8, 0).repeat(8, 1))
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "phone.png", exif=exif)
    pixels = FileImages(["phone.png"], root=tmp_path, cache_dir=tmp_path / "cache").load(16)[0, :, :, 0]
    assert (pixels[0] == 255).all() and (pixels[-1] == 0).all()


@pytest.mark.parametrize("tag", range(10))
def test_every_orientation_is_undone_as_pillow_does(tag):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = tag
    image.save(file := io.BytesIO(), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(file)).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(file.getvalue(), 8)[0], np.asarray(expected))


def test_a_photograph_with_an_odd_tag_is_read_and_turned():
    """Tag 6 and a resolution that is text, which Pillow cannot write: its own `exif_transpose` fails here."""
    tags = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 282, 2, 3, b"72\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + struct.pack("<I", 0)
    stored = Image.fromarray(np.repeat(np.array([[255, 0]], np.uint8), 2, axis=0).repeat(8, 0).repeat(8, 1))
    stored.save(file := io.BytesIO(), "JPEG", exif=exif, quality=100)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(file))
    pixels = decode(file.getvalue(), 16)[0, :, :, 0]
    assert (pixels[0] == 255).all() and (pixels[-1] == 0).all()


def test_damaged_tags_of_a_sound_picture_do_no_harm():
    Image.new("RGB", (6, 6), (9, 99, 199)).save(file := io.BytesIO(), "JPEG", exif=b"Exif\0\0no tags at all")
    np.testing.assert_allclose(decode(file.getvalue(), 4)[0, 0, 0], (9, 99, 199), atol=2)


def test_what_is_no_image_and_what_is_too_large_say_so(monkeypatch):
    with pytest.raises(OSError, match="^it is no image of a known format$"):
        decode(b"some text", 4)
    Image.new("RGB", (30, 10)).save(file := io.BytesIO(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="^it has more than 200 pixels; make it smaller$"):
        decode(file.getvalue(), 4)


def test_hashes_are_used_where_they_cannot_be_remembered_and_pixels_that_cannot_be_kept_are_told(
    image_folder, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    source = FileImages(["a.jpg", "b.png"], root=image_folder, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(module.Path, "mkdir", refuse)
    expected = [hashlib.sha256((image_folder / name).read_bytes()).hexdigest() for name in ("a.jpg", "b.png")]
    assert source.content_hashes() == expected and not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match=r"cache/images cannot be written to \(Permission denied\); give it write"):
        source.load(8)


def test_floating_point_and_empty_files_are_unreadable_with_the_reason(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty.jpg").touch()
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    source = FileImages(["good.png", "float.tif", "empty.jpg"], root=tmp_path, cache_dir=tmp_path / "cache")
    reasons = source.unreadable()
    assert sorted(reasons) == ["empty.jpg", "float.tif"]
    assert "empty" in reasons["empty.jpg"] and "floating-point" in reasons["float.tif"]
    assert source.take(np.array([0])).unreadable() == {}


def zipped(folder, *, top):
    """The folder as a zip archive beside it, with its name as first folder of every entry or without; it is removed."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder.parent if top else folder))
        archive.writestr("__MACOSX/._a.jpg", b"resource fork")
    shutil.rmtree(folder)


@pytest.mark.parametrize("top", [True, False])
def test_a_folder_may_still_be_its_archive(image_folder, tmp_path, top):
    root, names = image_folder.parent, [f"photos/{name}" for name in NAMES]
    plain = FileImages(names, root=root, cache_dir=tmp_path / "one")
    pixels, fingerprint = np.asarray(plain.load(16)), plain.fingerprint()
    listed = FileStore(root).images("photos")
    zipped(image_folder, top=top)
    packed = FileImages(names, root=root, cache_dir=tmp_path / "two")
    np.testing.assert_array_equal(packed.load(16), pixels)
    assert packed.fingerprint() == fingerprint
    assert FileStore(root).images("photos") == listed == sorted(names)


def test_damaged_archives_and_missing_folders_are_named(image_folder, tmp_path):
    root = image_folder.parent
    zipped(image_folder, top=False)
    content = bytearray((root / "photos.zip").read_bytes())
    content[60:200] = bytes(140)  # inside the first entry
    (root / "photos.zip").write_bytes(content)
    source = FileImages([f"photos/{name}" for name in NAMES], root=root, cache_dir=tmp_path / "cache")
    assert list(source.unreadable()) == ["photos/a.jpg"]
    with pytest.raises(DataError, match=r"1 of 5 image files .* photos/a\.jpg .*damaged"):
        source.load(16)
    (root / "photos.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"photos\.zip is no readable zip archive"):
        FileStore(root).images("photos")
    with pytest.raises(DataError, match=r"image folder .*nowhere is missing; put the publisher's archive nowhere\.zip"):
        FileStore(root).images("nowhere")


BUILD = """
import sys, time
from pathlib import Path
from medkd.data import images as module

decode = module.decode
def slow(*arguments):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[3]))
    return decode(*arguments)
module.decode = slow
names = sys.argv[4:]
source = module.FileImages(names, root=Path(sys.argv[1]), cache_dir=Path(sys.argv[2]))
print("sum", int(source.load(16).astype(int).sum()), flush=True)
"""


def builder(image_folder, cache, seconds):
    command = [sys.executable, "-c", BUILD, str(image_folder), str(cache), str(seconds), *NAMES]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_one_array_make_it_once(source, image_folder, cache):
    builders = [builder(image_folder, cache, 0.05) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in builders]
    assert sum(output.count("decoding") for output in outputs) == len(NAMES)
    assert all(f"sum {int(np.asarray(source.load(16)).astype(int).sum())}" in output for output in outputs)


def test_a_killed_build_leaves_nothing_that_counts_and_the_next_one_clears_up(source, image_folder, cache):
    process = builder(image_folder, cache, 60)
    assert "decoding" in process.stdout.readline()
    process.kill()
    process.wait()
    assert [path.suffix for path in arrays_in(cache)] == [".part"]
    assert source.load(16).shape == (5, 16, 16, 3)
    assert [path.suffix for path in arrays_in(cache)] == [".npy"]


def test_a_moved_or_touched_folder_is_not_decoded_again(source, image_folder, tmp_path, cache, count_decodes):
    source.load(16)
    shutil.copytree(image_folder, tmp_path / "moved", copy_function=shutil.copyfile)  # new modification times
    FileImages(NAMES, root=tmp_path / "moved", cache_dir=cache).load(16)
    assert len(count_decodes) == len(NAMES)


def grey_files(folder, *greys):
    """Uncompressed files of one size and one modification time; their names."""
    folder.mkdir()
    for number, grey in enumerate(greys):
        path = folder / f"{number}.bmp"
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    return [f"{number}.bmp" for number in range(len(greys))]


def greys(folder, names, cache):
    return FileImages(names, root=folder, cache_dir=cache).load(4)[:, 0, 0, 0].tolist()


def test_folders_with_the_same_names_sizes_and_times_do_not_share_pixels(tmp_path, cache):
    names = grey_files(tmp_path / "a", 10, 20)
    grey_files(tmp_path / "b", 110, 120)
    assert greys(tmp_path / "a", names, cache) == [10, 20]
    assert greys(tmp_path / "b", names, cache) == [110, 120]


def damages():
    yield "empty", lambda path: path.write_bytes(b"")
    yield "truncated", lambda path: path.write_bytes(path.read_bytes()[:100])
    yield "zeroed", lambda path: path.write_bytes(bytes(path.stat().st_size))
    yield "null", lambda path: path.write_text("null")


ALL_DAMAGES = [
    *(pytest.param(kind, damage, id=f"{name} {kind}") for name, damage in damages() for kind in ("npy", "json")),
    pytest.param("json", lambda path: path.write_text('["a", "b"]'), id="other hashes"),
    pytest.param("npy", lambda path: np.save(path, np.zeros((2, 4, 4, 3))), id="other dtype"),
    pytest.param("npy", lambda path: np.save(path, np.zeros((3, 4, 4, 3), np.uint8)), id="other shape"),
]


@pytest.mark.parametrize("kind, damage", ALL_DAMAGES)
def test_damaged_files_of_the_cache_are_made_again(tmp_path, cache, kind, damage):
    names = grey_files(tmp_path / "a", 10, 20)
    greys(tmp_path / "a", names, cache)
    (path,) = (cache / "images").glob(f"*.{kind}")
    damage(path)
    assert greys(tmp_path / "a", names, cache) == [10, 20]
    assert len(list((cache / "images").glob(f"*.{kind}"))) == 1


def test_a_program_is_never_started_for_a_file(tmp_path, cache, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *given, **_: started.append(given))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", "EPS")
    source = FileImages(["photo.jpg"], root=tmp_path, cache_dir=cache)
    with pytest.raises(DataError, match=r"photo\.jpg"):
        source.load(4)
    with pytest.raises(DataError, match=r"photo\.jpg is not a readable image"):
        source.file_pixels()
    assert started == []


@pytest.mark.parametrize("kind", [*IMAGE_FORMATS, "MPO"])
def test_every_supported_format_is_read(tmp_path, cache, kind):
    more = {"append_images": [Image.new("RGB", (8, 8))], "save_all": True} if kind == "MPO" else {}
    Image.new("RGB", (8, 8), (99, 99, 99)).save(tmp_path / "x.jpg", kind, **more)
    np.testing.assert_allclose(FileImages(["x.jpg"], root=tmp_path, cache_dir=cache).load(4), 99, atol=2)


@pytest.mark.parametrize("value", [-5, 70_000])
def test_pixels_outside_sixteen_bits_are_refused(tmp_path, cache, value):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=rf"deep\.tif \(the first: its pixels are {value} to {value}, outside 0"):
        FileImages(["deep.tif"], root=tmp_path, cache_dir=cache).load(4)


def test_a_disk_that_fills_up_is_told_and_nothing_is_kept(source, cache, monkeypatch, count_decodes):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match=r"the decoded images need .* \(No space left on device\); make room, lower"):
        source.load(16)
    assert count_decodes == [] and arrays_in(cache) == []


def test_a_file_system_that_cannot_reserve_room_serves_too(source, monkeypatch):
    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert source.load(16).shape == (5, 16, 16, 3)


def test_linked_folders_are_entered_once_and_loops_end(image_folder, tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a_link").symlink_to(root / "real")  # before the folder itself in the alphabet
    (root / "images" / "loop").symlink_to(root)
    (root / "images" / "elsewhere").symlink_to(image_folder)
    (root / "real").mkdir()
    Image.new("RGB", (4, 4)).save(root / "real" / "x.png")
    names = FileStore(root).images(".")
    assert names == sorted([*(f"images/elsewhere/{name}" for name in NAMES), "real/x.png"])
    assert FileImages(names, root=root, cache_dir=tmp_path / "cache").load(4).shape == (6, 4, 4, 3)


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    assert not FileStore(tmp_path).holds(f"{'a' * 300}/{'b' * 300}.png")
