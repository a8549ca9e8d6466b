import io
import random
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest

from medkd.data import archives
from medkd.data.archives import unpack
from medkd.errors import DataError


def write_zip(path, entries):
    """Entries: name (or ZipInfo) -> content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def write_tar(path, *members):
    """Members: TarInfo and content."""
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class Counting:
    """A stream that notes how many bytes each read gave."""

    def __init__(self, source, counts):
        self.source, self.counts = source, counts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()

    def read(self, size):
        content = self.source.read(size)
        self.counts.append(len(content))
        return content


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_zip_is_unpacked_without_what_macos_adds(tmp_path):
    entries = {"set/a.jpg": b"a", "set/sub/b.jpg": b"b", "ü.csv": b"c", "__MACOSX/._a": b"x", "set/.DS_Store": b"x"}
    path = write_zip(tmp_path / "set.zip", entries)
    tops = unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"set/a.jpg": b"a", "set/sub/b.jpg": b"b", "ü.csv": b"c"}
    assert tops == [tmp_path / "out" / "set", tmp_path / "out" / "ü.csv"]


def test_a_tar_is_unpacked_and_files_that_exist_are_replaced(tmp_path):
    path = write_tar(tmp_path / "set.tar.gz", (tarfile.TarInfo("set/a"), b"new"))
    (tmp_path / "out" / "set").mkdir(parents=True)
    (tmp_path / "out" / "set" / "a").write_bytes(b"old")
    (tmp_path / "out" / "set" / "mine").write_bytes(b"mine")
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"set/a": b"new", "set/mine": b"mine"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil", "a\\..\\..\\evil"])
def test_entries_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name  # as an attacker writes it, without zipfile's own tidying
    path = write_zip(tmp_path / "evil.zip", {"good": b"g", info: b"e"})
    with pytest.raises(DataError, match="would lie outside the folder; nothing was unpacked"):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    assert not (tmp_path / "evil").exists()


def test_links_and_devices_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match='entry "link" .* is a link or a device'):
        unpack(write_zip(tmp_path / "a.zip", {info: b"/etc/passwd"}), tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "../../etc/passwd"
    with pytest.raises(DataError, match='entry "link" .* is a link or a device'):
        unpack(write_tar(tmp_path / "a.tar.gz", (info, b"")), tmp_path / "out")
    with pytest.raises(DataError, match="would lie outside"):
        unpack(write_tar(tmp_path / "b.tar.gz", (tarfile.TarInfo("../evil"), b"e")), tmp_path / "out")


def test_an_archive_that_does_not_fit_the_disk_is_refused_by_its_listing(tmp_path, monkeypatch):
    import shutil

    path = write_zip(tmp_path / "bomb.zip", {"zeros": bytes(10**6)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6 - 1))
    with pytest.raises(DataError, match="the unpacked files need"):
        unpack(path, tmp_path / "out")


def test_an_entry_larger_than_it_is_listed_is_refused_and_no_more_is_written(tmp_path, monkeypatch):
    """The listing says 10 bytes; the packed stream holds a million."""
    copied, copy = [], archives._copy
    monkeypatch.setattr(archives, "_copy", lambda source, target, bar: copy(Counting(source, copied), target, bar))
    path = write_zip(tmp_path / "lie.zip", {"zeros": bytes(10**6)})
    content = path.read_bytes()
    true, listed = (10**6).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, listed))
    with pytest.raises(DataError, match=r"lie\.zip is damaged .*download it again"):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    assert sum(copied) <= 10


@pytest.mark.parametrize("at", [1000, 100_000, -6])
def test_a_damaged_tar_is_noticed_by_its_checksum(tmp_path, at):
    noise = random.Random(0).randbytes(200_000)  # other noise may break so early that it is no archive
    path = write_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("a"), noise))
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged .*download it again"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_encrypted_entry_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a": b"x"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flags in the listing
    path.write_bytes(content)
    with pytest.raises(DataError, match='entry "a" .* is encrypted; nothing was unpacked'):
        unpack(path, tmp_path / "out")


def test_an_entry_without_a_name_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = ""
    with pytest.raises(DataError, match="would lie outside the folder"):
        unpack(write_zip(tmp_path / "a.zip", {info: b"x"}), tmp_path / "out")


def test_damaged_and_other_files_are_named_and_nothing_is_kept(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a": random.Random(0).randbytes(5000), "b": b"b"})
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip is damaged .*download it again"):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    path.write_text("<html>")
    with pytest.raises(DataError, match="is no zip or tar archive"):
        unpack(path, tmp_path / "out")


KILLED = """
import sys
from pathlib import Path
from medkd.data import archives
copy = archives._copy
def slow(*arguments):
    copy(*arguments)
    print("one", flush=True)
    import time; time.sleep(60)
archives._copy = slow
archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_unpacking_leaves_nothing_that_counts_and_the_next_one_clears_up(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a": b"a", "b": b"b"})
    process = subprocess.Popen([sys.executable, "-c", KILLED, path, tmp_path / "out"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"one\n"
    process.kill()
    process.wait()
    assert [name for name in tree(tmp_path / "out") if not name.startswith(".")] == []
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"a", "b": b"b"}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "./a")])
def test_an_archive_with_a_file_that_is_a_folder_too_is_refused(tmp_path, names):
    for path in (
        write_zip(tmp_path / "x.zip", {"0": b"0"} | dict.fromkeys(names, b"x")),
        write_tar(tmp_path / "x.tar.gz", *((tarfile.TarInfo(name), b"x") for name in ("0", *names))),
    ):
        with pytest.raises(DataError, match=r'entry "a" of .* is a file and a folder; nothing was unpacked'):
            unpack(path, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "there, packed, message",
    [("b/c", "b", "b is a folder and .* has a file there"), ("b", "b/c/d", "b is a file and .* has a folder there")],
)
def test_nothing_is_moved_where_a_file_meets_a_folder(tmp_path, there, packed, message):
    out = tmp_path / "out"
    (out / there).parent.mkdir(parents=True)
    (out / there).write_bytes(b"mine")
    path = write_zip(tmp_path / "x.zip", {"a": b"a", packed: b"x"})
    with pytest.raises(DataError, match=f"{message}; nothing was unpacked, move it away"):
        unpack(path, out)
    assert tree(out) == {there: b"mine"}
