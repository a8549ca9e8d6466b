import dataclasses
import hashlib
import io
import json
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from http_server import serving

from medkd import __version__
from medkd.data import fetch as module
from medkd.data import sources
from medkd.data.fetch import PAUSES, Download, download, fetch
from medkd.data.registry import cohort_names, describe
from medkd.data.sources import SOURCES, Source, dataverse
from medkd.errors import DataError, ParameterError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serving() as faulty:
        faulty.files["/set.bin"] = CONTENT
        yield faulty


@pytest.fixture
def item(server):
    return Download(f"{server.url}/set.bin", "set.bin", len(CONTENT), MD5)


def load(item, folder):
    """Download without waiting; returns the pauses that were asked for, too."""
    pauses = []
    return download(item, folder, pause=pauses.append), pauses


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_loaded_checked_and_recorded(item, tmp_path):
    path, _ = load(item, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["fetched.json", "set.bin"]
    record = json.loads((path.parent / "fetched.json").read_text())["set.bin"]
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (record["n_bytes"], record["checked"]) == (len(CONTENT), MD5)


def test_a_file_that_is_there_is_not_loaded_again_but_a_changed_one_is(item, server, tmp_path):
    load(item, tmp_path)
    load(item, tmp_path)
    assert len(server.seen) == 1
    (tmp_path / "set.bin").write_bytes(CONTENT[:-1] + b"x")
    load(item, tmp_path)
    assert len(server.seen) == 2
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_dropped_connections_are_taken_up_where_they_ended(item, server, tmp_path):
    server.faults = ["drop", "drop"]
    path, pauses = load(item, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ["", "bytes=131072-", "bytes=196608-"]  # whole chunks
    assert pauses == [PAUSES[0], PAUSES[0]]  # bytes arrived, so the patience starts over


def test_an_interrupted_download_loads_only_the_rest_next_time(item, server, tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, answer):
            self.answer = answer

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.answer.close()

        def __getattr__(self, name):
            return getattr(self.answer, name)

        def iter_content(self, size):
            yield self.answer.raw.read(100_000)
            raise KeyboardInterrupt

    get = requests.get
    with monkeypatch.context() as patched:
        patched.setattr(module.requests, "get", lambda *a, **k: Interrupted(get(*a, **k)))
        with pytest.raises(KeyboardInterrupt):
            load(item, tmp_path)
    assert not (tmp_path / "set.bin").exists()
    load(item, tmp_path)
    assert [wanted for _, wanted in server.seen] == ["", "bytes=100000-"]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_loaded_from_the_start(item, server, tmp_path):
    server.faults = ["drop", "500", "500", "500", "500"]
    with pytest.raises(DataError, match=r"cannot be loaded \(status 500\); what arrived is kept"):
        load(item, tmp_path)
    other = CONTENT[::-1]
    server.files["/set.bin"], server.etag = other, '"two"'
    changed = Download(item.url, "set.bin", len(other), "sha256:" + hashlib.sha256(other).hexdigest())
    assert load(changed, tmp_path)[0].read_bytes() == other


def test_bytes_of_the_old_version_never_meet_the_stamp_of_the_new_one(server, tmp_path, monkeypatch):
    """No checksum would notice. The attempt between the two versions fails for want of room, after the answer."""
    item = Download(f"{server.url}/set.bin", "set.bin")
    server.faults = ["drop", "500", "500", "500", "500"]
    with pytest.raises(DataError, match="status 500"):
        load(item, tmp_path)
    server.files["/set.bin"], server.etag = CONTENT[::-1], '"two"'
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        with pytest.raises(DataError, match="the bytes to load need"):
            load(item, tmp_path)
    assert load(item, tmp_path)[0].read_bytes() == CONTENT[::-1]


def test_a_server_that_never_gets_further_is_given_up(item, server, tmp_path):
    """It names no version, so every attempt starts over; the first one made progress, the others repeat it."""
    server.etag, server.faults = "", ["drop"] * 50
    with pytest.raises(DataError, match="cannot be loaded"):
        load(item, tmp_path)
    assert len(server.seen) == 2 + len(PAUSES) - 1


def test_redirects_are_followed_also_for_the_rest_but_not_for_ever(item, server, tmp_path):
    server.redirects = {"/old.bin": "/set.bin", "/loop": "/loop"}
    server.faults = ["drop"]
    moved = Download(f"{server.url}/old.bin", "set.bin", len(CONTENT), MD5)
    assert load(moved, tmp_path)[0].read_bytes() == CONTENT
    assert server.seen[-1] == ("/set.bin", "bytes=131072-")
    with pytest.raises(DataError, match=r"/loop cannot be loaded \(.*redirects.*\); get loop\.zip by hand"):
        load(Download(f"{server.url}/loop", "loop.zip"), tmp_path)


def test_requests_carry_the_programs_own_name(item, server, tmp_path):
    load(item, tmp_path)
    with pytest.raises(DataError, match="404"):
        dataverse("doi:x", ("part.zip",), host=server.url)
    assert server.agents == {f"medkd/{__version__}"}


def test_a_server_that_ignores_ranges_is_taken_from_the_start(item, server, tmp_path):
    server.faults = ["drop", "ignore range"]
    assert load(item, tmp_path)[0].read_bytes() == CONTENT


def test_without_a_version_nothing_is_appended_to_a_part(item, server, tmp_path):
    """If the server names no version, the rest could belong to another file."""
    server.etag, server.faults = "", ["drop"]
    assert load(item, tmp_path)[0].read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ["", ""]


def test_a_part_that_is_complete_needs_no_byte(item, server, tmp_path):
    tmp_path.joinpath(".set.bin.part").write_bytes(CONTENT)
    tmp_path.joinpath(".set.bin.part.version").write_text(server.etag)
    assert load(item, tmp_path)[0].read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ["bytes=300000-"]


@pytest.mark.parametrize(
    "fault, message",
    [("corrupt", "md5 .* where the publisher tells"), ("truncate", "150,000 bytes where the publisher tells 300,000")],
)
def test_a_wrong_file_is_removed_and_both_values_are_told(item, server, tmp_path, fault, message):
    server.faults = [fault]
    with pytest.raises(DataError, match=message):
        load(item, tmp_path)
    assert files_in(tmp_path) == []
    assert load(item, tmp_path)[0].read_bytes() == CONTENT


@pytest.mark.parametrize(
    "fault, message",
    [("404", r"answers 404 .*get set\.bin by hand"), ("html", "a web page in place of set.bin, most often a login")],
)
def test_what_no_repetition_mends_is_told_at_once(item, server, tmp_path, fault, message):
    server.faults = [fault]
    with pytest.raises(DataError, match=message):
        load(item, tmp_path)
    assert len(server.seen) == 1


def test_a_server_that_is_not_there_is_named_after_a_few_attempts(tmp_path):
    pauses = []
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x\.zip cannot be loaded"):
        download(Download("http://127.0.0.1:9/x.zip", "x.zip"), tmp_path, pause=pauses.append)
    assert pauses == list(PAUSES)


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(DataError, match="file:///etc/passwd is no http or https address"):
        load(Download("file:///etc/passwd", "x"), tmp_path)


def test_a_full_disk_is_told_before_a_byte_is_written(item, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DataError, match=r"set\.bin: the bytes to load need 0\.00 GB"):
        load(item, tmp_path)
    assert not (tmp_path / ".set.bin.part").exists()


def zip_of(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_without_a_published_checksum_the_archive_is_tested(server, tmp_path):
    content = bytearray(zip_of(a=b"a" * 5000))
    content[2000] ^= 255
    server.files["/a.zip"] = bytes(content)
    with pytest.raises(DataError, match="a.zip from .* is damaged at a; it was removed"):
        load(Download(f"{server.url}/a.zip", "a.zip"), tmp_path)
    server.files["/a.zip"] = zip_of(a=b"a" * 5000)
    load(Download(f"{server.url}/a.zip", "a.zip"), tmp_path)
    record = json.loads((tmp_path / "fetched.json").read_text())["a.zip"]
    assert "no checksum is published" in record["checked"]
    load(Download(f"{server.url}/a.zip", "a.zip"), tmp_path)
    assert len(server.seen) == 2


def test_an_archive_whose_stream_is_damaged_is_removed_and_loaded_again(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 40)
    whole, content = buffer.getvalue(), bytearray(buffer.getvalue())
    content[31:60] = b"\xff" * 29  # the header of the member is 31 bytes long: a block of a type that is none
    server.files["/a.zip"] = bytes(content)
    with pytest.raises(DataError, match="a.zip from .* is no readable archive .*; it was removed"):
        load(Download(f"{server.url}/a.zip", "a.zip"), tmp_path)
    server.files["/a.zip"] = whole
    assert load(Download(f"{server.url}/a.zip", "a.zip"), tmp_path)[0].read_bytes() == whole


@pytest.fixture
def published(server, monkeypatch):
    """The source of isic2018, as if it lay on the local server: an archive to unpack and one that stays."""
    server.files |= {"/truth.zip": zip_of(**{"truth/truth.csv": b"image\n"}), "/images.zip": zip_of(a=b"x")}
    items = (
        Download(f"{server.url}/truth.zip", "truth.zip", unpack=True),
        Download(f"{server.url}/images.zip", "images.zip"),
    )
    monkeypatch.setitem(SOURCES, "isic2018", Source(lambda size: items, note="a note"))
    return server


def test_fetch_tells_licence_and_files_and_asks_before_anything_is_loaded(published, tmp_path):
    said, asked = [], []
    assert fetch("isic2018", tmp_path / "x", consent=lambda text: asked.append(text), say=said.append) is None
    assert published.seen == []
    assert not (tmp_path / "x").exists()
    text = "\n".join(said)
    assert "CC BY-NC 4.0" in text and "truth.zip, images.zip" in text and "a note" in text
    assert "Do you accept the licence (CC BY-NC 4.0)" in asked[0]


def test_fetch_with_consent_loads_and_unpacks_what_is_to_be_unpacked(published, tmp_path):
    root = fetch("isic2018", tmp_path / "x", consent=lambda text: True, say=lambda line: None)
    assert files_in(root) == [".fetch.lock", "fetched.json", "images.zip", "truth", "truth.zip"]
    assert (root / "truth" / "truth.csv").read_bytes() == b"image\n"


def test_what_was_unpacked_is_left_as_it_was_edited_until_it_is_gone_or_has_a_new_version(published, tmp_path):
    def again():
        fetch("isic2018", tmp_path, consent=bool, say=lambda line: None)
        return (tmp_path / "truth" / "truth.csv").read_bytes()

    assert again() == b"image\n"
    (tmp_path / "truth" / "truth.csv").write_bytes(b"corrected")
    assert again() == b"corrected"
    (tmp_path / "truth" / "truth.csv").unlink()
    assert again() == b"image\n"
    published.files["/truth.zip"] = zip_of(**{"truth/truth.csv": b"second version"})
    (tmp_path / "truth.zip").unlink()
    assert again() == b"second version"


def test_a_file_that_was_loaded_when_its_process_was_killed_is_not_loaded_again(item, server, tmp_path, monkeypatch):
    item = dataclasses.replace(item, checksum="", n_bytes=0)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "replace", killed)  # the rename is what comes last
        with pytest.raises(KeyboardInterrupt):
            load(item, tmp_path)
    load(item, tmp_path)
    assert [wanted for _, wanted in server.seen] == ["", f"bytes={len(CONTENT)}-"]
    load(item, tmp_path)
    assert len(server.seen) == 2 and (tmp_path / "set.bin").read_bytes() == CONTENT


def test_two_fetches_into_one_folder_load_every_file_once(published, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(lambda _: fetch("isic2018", tmp_path, consent=bool, say=lambda line: None), range(2)))
    assert roots == [tmp_path, tmp_path]
    assert sorted(path for path, _ in published.seen) == ["/images.zip", "/truth.zip"]


def test_a_folder_that_cannot_be_written_is_named(published, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/x cannot be written .*choose another folder"):
        fetch("isic2018", tmp_path / "file" / "x", consent=bool, say=lambda line: None)


def test_fetch_says_what_to_do_where_a_form_is_needed_and_nothing_for_simulated_cohorts(tmp_path):
    said = []
    assert fetch("derm7pt", tmp_path, consent=lambda text: pytest.fail("asked"), say=said.append) is None
    assert f"medkd data check derm7pt --root {tmp_path}" in said[-1]
    assert fetch("phantom-glioma", tmp_path, consent=lambda text: pytest.fail("asked"), say=said.append) is None
    assert "simulated" in said[-1]
    with pytest.raises(DataError, match='no cohort "isic"'):
        fetch("isic", tmp_path, consent=lambda text: True)


def test_sizes_that_are_not_published_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="size = 100 is not published for dermamnist; known are 28, 64, 128, 224"):
        fetch("dermamnist", tmp_path, consent=lambda text: True, say=lambda line: None, size=100)
    with pytest.raises(ParameterError, match="size = 64 is not published for isic2018; leave size out"):
        fetch("isic2018", tmp_path, consent=lambda text: True, say=lambda line: None, size=64)


@pytest.mark.parametrize("name", [name for name in cohort_names() if describe(name)["needs_root"]])
def test_every_real_cohort_has_a_source_with_files_or_instructions(name, tmp_path):
    source = SOURCES[name]
    assert (source.downloads is None) == bool(source.instructions)
    if source.instructions:
        assert "medkd data" in source.instructions.format(folder=tmp_path, name=name)
    elif name != "ham10000":  # that one asks the network
        assert all(item.url.startswith("https://") and item.file for item in source.downloads(0))


def test_dataverse_listings_give_sizes_and_checksums_and_the_originals_of_converted_tables(server):
    original = {"originalFileFormat": "text/csv", "originalFileSize": 4}
    files = [
        {"dataFile": {"id": 7, "filename": "part.zip", "filesize": 9, "md5": "ab"}},
        {"dataFile": {"id": 8, "filename": "table.tab", "filesize": 5, "md5": "cd", **original}},
    ]
    listing = {"data": {"latestVersion": {"files": files}}}
    server.files["/api/datasets/:persistentId/"] = json.dumps(listing).encode()
    part, table = dataverse("doi:x", ("part.zip", "table.csv"), host=server.url)
    assert part == Download(f"{server.url}/api/access/datafile/7", "part.zip", 9, "md5:ab")
    assert table == Download(f"{server.url}/api/access/datafile/8?format=original", "table.csv", 4, "md5:cd")
    with pytest.raises(DataError, match="lists no other.zip"):
        dataverse("doi:x", ("other.zip",), host=server.url)
    server.files["/api/datasets/:persistentId/"] = b"down for maintenance"
    with pytest.raises(DataError, match="cannot be read"):
        dataverse("doi:x", ("part.zip",), host=server.url)


def test_the_usual_size_of_dermamnist_is_64_and_checksums_are_md5():
    (item,) = SOURCES["dermamnist"].downloads(0)
    assert (item.file, item.checksum) == ("dermamnist_64.npz", f"md5:{sources.DERMAMNIST_MD5[64]}")
    assert all(len(digest) == 32 for digest in sources.DERMAMNIST_MD5.values())


@pytest.mark.parametrize("fault", ["whole as rest", "other total", "other tag", "no place"])
def test_a_rest_that_is_not_the_one_asked_for_is_not_appended(server, tmp_path, fault):
    """No checksum would notice."""
    server.faults = ["drop", fault]
    path, _ = load(Download(f"{server.url}/set.bin", "set.bin"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ["", "bytes=131072-", ""]


def test_a_rest_that_comes_in_parts_is_taken_up_until_the_file_is_whole(server, tmp_path):
    server.faults = ["drop", "short rest"]
    path, _ = load(Download(f"{server.url}/set.bin", "set.bin"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ["", "bytes=131072-", "bytes=131172-"]


def test_an_empty_file_is_refused(server, tmp_path):
    server.files["/set.bin"] = b""
    with pytest.raises(DataError, match=r"set\.bin from .* is empty; it was removed"):
        load(Download(f"{server.url}/set.bin", "set.bin"), tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fault", ["length abc", "length -5"])
def test_a_length_that_is_no_number_counts_as_none(item, server, tmp_path, fault):
    server.faults = [fault]
    assert load(item, tmp_path)[0].read_bytes() == CONTENT
