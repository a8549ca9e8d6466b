"""Downloads that can be interrupted: resumed, checked, and only after the licence is accepted."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from medkd import __version__
from medkd.data.archives import is_unpacked, unpack
from medkd.data.file_store import DAMAGED
from medkd.errors import DataError, ParameterError
from medkd.files import check_room, digest_of, locked, write_json

CHUNK = 2**16  # what a dropped connection loses at most: the rest of a chunk that had begun
TIMEOUT = 60  # seconds without a byte, after which a connection counts as dropped
AGENT = {"User-Agent": f"medkd/{__version__}"}  # Harvard Dataverse answers 403 to the name that `requests` goes by
PAUSES = (1.0, 4.0, 15.0)  # seconds before each further attempt; progress starts over
RECORD = "fetched.json"
"""Beside the files: URL, bytes and SHA-256 of each, as it was when it was loaded."""


@dataclass(frozen=True)
class Download:
    """One file of a publisher.

    Attributes:
        url: where it lies.
        file: the name it gets.
        n_bytes: its size; 0 where the publisher does not tell.
        checksum: "md5:<hex>" or "sha256:<hex>"; "" where the publisher gives none.
        unpack: whether it is an archive to unpack; archives of images are read in place.
    """

    url: str
    file: str
    n_bytes: int = 0
    checksum: str = ""
    unpack: bool = False


def fetch(
    name: str, folder: Path, *, consent: Callable[[str], bool], say: Callable[[str], Any] = print, size: int = 0
) -> Path | None:
    """Load a cohort's files into a folder, once the licence is accepted.

    Args:
        name: cohort, see `medkd.data.registry.cohort_names`.
        folder: where the files go; made if it is not there.
        consent: asked with a question before anything is loaded.
        say: where lines for the reader go.
        size: image side, for sets that are published in several sizes; 0 takes the usual one.

    Returns:
        The folder to give as root; None if nothing was loaded (no consent; simulated; a form or login is needed, and
        what to do was said).

    What an archive held and is there stays as it is, also where it was edited since; a new version replaces it.

    Raises:
        DataError: no such cohort, no connection, a file that is not what the publisher describes, or a full disk.
        ParameterError: the set is not published in this size.
    """
    from medkd.data.registry import describe
    from medkd.data.sources import SOURCES

    about = describe(name)
    if not about["needs_root"]:
        say(f"{name} is simulated: nothing needs to be fetched")
        return None
    source = SOURCES[name]
    say(f"{about['title']}: licence {about['licence']}; from {about['source']}")
    if source.note:
        say(source.note)
    if source.downloads is None:
        say(source.instructions.format(folder=folder, name=name))
        return None
    if size and size not in source.sizes:
        known = f"known are {', '.join(map(str, source.sizes))}" if source.sizes else "leave size out"
        raise ParameterError(f"size = {size} is not published for {name}; {known}")
    items = source.downloads(size)
    amount = f", {sum(item.n_bytes for item in items) / 1e6:,.0f} MB" if all(item.n_bytes for item in items) else ""
    say(f"to load into {folder}: {', '.join(item.file for item in items)}{amount}")
    if not consent(f"Do you accept the licence ({about['licence']}) and want to load them?"):
        say("nothing was loaded")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".fetch.lock"):
            for item in items:
                path = download(item, folder)
                if item.unpack:
                    _unpack_once(item, path)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}); make room or choose another folder") from error
    return folder


def download(item: Download, folder: Path, *, pause: Callable[[float], Any] = time.sleep) -> Path:
    """Load one file, or what is missing of it, and check it.

    An interrupted download lies beside as `.<file>.part`; the next call asks the server for the rest of the same
    version of the file. A file that is there and unchanged since it was loaded is not loaded again.

    Args:
        item: what to load.
        folder: where to.
        pause: waits so many seconds before another attempt.

    Raises:
        DataError: the server cannot be reached or refuses, the disk is too full, or the file is empty or has not the
            size or checksum that the publisher gives; a file that is wrong is removed.
    """
    if urlsplit(item.url).scheme not in ("http", "https"):
        raise DataError(f"{item.url} is no http or https address; correct the source of {item.file}")
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / item.file, folder / f".{item.file}.part"
    if path.is_file() and _is_known(item, path):
        return path
    remaining, most = list(PAUSES), _size(part)
    while True:
        try:
            _load_rest(item, part)
            break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, _Busy) as error:
            if _size(part) > most:
                remaining, most = list(PAUSES), _size(part)
            if not remaining:
                raise DataError(
                    f"{item.url} cannot be loaded ({_reason(error)}); what arrived is kept, check the network and run "
                    "the same command again"
                ) from error
            pause(remaining.pop(0))
        except requests.RequestException as error:
            raise DataError(f"{item.url} cannot be loaded ({_reason(error)}); get {item.file} by hand") from error
    _check(item, part)
    _remember(item, part)  # first: a file without a record would be loaded once more
    part.replace(path)
    _stamp_of(part).unlink(missing_ok=True)
    return path


class _Busy(Exception):
    """Status of a server that may work in a moment."""


def _load_rest(item: Download, part: Path) -> None:
    """One attempt: append to `part` what it lacks, or load it from the start where the server wants that."""
    stamp_file = _stamp_of(part)
    there = _size(part)
    stamp, _, known_total = (stamp_file.read_text() if stamp_file.is_file() else "").partition("\n")
    headers = {"Range": f"bytes={there}-", "If-Range": stamp} if there and stamp else {}
    headers["Accept-Encoding"] = "identity"  # the bytes as they lie there, so that lengths and offsets count them
    with requests.get(item.url, headers=headers | AGENT, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416 and there and _range(answer)[1] == there:  # nothing is missing
            return
        if answer.status_code == 416:
            part.unlink(missing_ok=True)
            raise _Busy("the server has another version of the file")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Busy(f"status {answer.status_code}")
        _refuse_page(item, answer)
        length = _number(answer.headers.get("Content-Length", "")) or 0
        start, total = _range(answer) if answer.status_code == 206 else (0, length or None)
        tag = answer.headers.get("ETag", "")
        other = tag[:1] == stamp[:1] == '"' and tag != stamp
        other |= total is not None and bool(known_total) and total != _number(known_total)
        if answer.status_code == 206 and (start != there or (there and (other or not stamp))):
            part.unlink(missing_ok=True)
            raise _Busy("the server sent another part of the file, or of another version, than was asked for")
        if not start:
            part.unlink(missing_ok=True)  # before the stamp: bytes of the old version must not meet the new one's stamp
        stamp_file.write_text(f"{_stamp(answer)}\n{total or known_total}")
        check_room(part.parent, length, what=f"{item.file}: the bytes to load", remedy="choose another folder")
        bar = tqdm(total=start + length or None, initial=start, desc=item.file, unit="B", unit_scale=True)
        with part.open("ab") as file, bar:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if _size(part) < (total or start + length):
        raise _Busy("the connection ended early")


def _refuse_page(item: Download, answer: requests.Response) -> None:
    """Errors of the server, and login pages in place of a file."""
    if answer.status_code not in (200, 206):
        raise DataError(
            f"{item.url} answers {answer.status_code} ({answer.reason}); the publisher may have moved it, get "
            f"{item.file} by hand"
        )
    if "text/html" in answer.headers.get("Content-Type", "") and not item.file.endswith((".html", ".htm")):
        raise DataError(
            f"{item.url} answers with a web page in place of {item.file}, most often a login; "
            "get it by hand in a browser"
        )


def _check(item: Download, part: Path) -> None:
    """Size, checksum, and of archives the checksums inside; a wrong file is removed."""
    n_bytes, fault = part.stat().st_size, ""
    if item.n_bytes and n_bytes != item.n_bytes:
        fault = f"has {n_bytes:,} bytes where the publisher tells {item.n_bytes:,}"
    elif not n_bytes:
        fault = "is empty"
    elif item.checksum:
        kind, _, expected = item.checksum.partition(":")
        found = digest_of(part, kind)
        fault = "" if found == expected else f"has the {kind} {found} where the publisher tells {expected}"
    elif item.file.endswith(".zip"):
        try:
            with zipfile.ZipFile(part) as archive:
                damaged = archive.testzip()
            fault = f"is damaged at {damaged}" if damaged else ""
        except (OSError, EOFError, *DAMAGED) as error:
            fault = f"is no readable archive ({error})"
    if fault:
        part.unlink()
        _stamp_of(part).unlink(missing_ok=True)
        raise DataError(f"{item.file} from {item.url} {fault}; it was removed, run the same command again")


def _is_known(item: Download, path: Path) -> bool:
    """Whether the file is what the publisher describes, or what was loaded before where it describes nothing."""
    if item.n_bytes and path.stat().st_size != item.n_bytes:
        return False
    if item.checksum:
        kind, _, expected = item.checksum.partition(":")
        return digest_of(path, kind) == expected
    known = _record(path.parent).get(item.file, {})
    return known.get("url") == item.url and known.get("sha256") == digest_of(path)


def _unpack_once(item: Download, path: Path) -> None:
    known = _record(path.parent).get(item.file, {})
    if not (known.get("unpacked") and is_unpacked(path, path.parent)):
        unpack(path, path.parent)
        _remember(item, path, unpacked=True)


def _remember(item: Download, path: Path, *, unpacked: bool = False) -> None:
    entry = {"url": item.url, "n_bytes": path.stat().st_size, "sha256": digest_of(path), "unpacked": unpacked}
    entry["checked"] = item.checksum or "no checksum is published: this is the file as it was loaded"
    write_json(path.parent / RECORD, _record(path.parent) | {item.file: entry})


def _record(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _stamp_of(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _stamp(answer: requests.Response) -> str:
    """What names this version of the file for If-Range; weak tags do not serve."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _range(answer: requests.Response) -> tuple[int | None, int | None]:
    """Where the bytes of an answer start in the file, and how many the file has; None where the server tells none."""
    part, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes").partition("/")
    return _number(part.partition("-")[0].strip()), _number(total.strip())


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
