"""Unpack an archive that came from elsewhere: all of it or nothing, and nothing outside the folder."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from medkd.data.file_store import DAMAGED
from medkd.errors import DataError
from medkd.files import check_room

CHUNK = 2**20


@dataclass(frozen=True)
class _Entry:
    """One file of an archive: its name, its size in bytes as listed, and what the archive opens it by."""

    name: str
    n_bytes: int
    handle: Any


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip or tar archive into a folder; a killed or failed call leaves what was there before.

    Files that exist are replaced. Folders that macOS adds are passed over.

    Args:
        archive: `.zip`, `.tar` or `.tar.gz`.
        folder: where its entries go.

    Returns:
        What lies at the archive's top level, as paths in `folder`.

    Raises:
        DataError: the archive is damaged or encrypted, does not fit the disk, or has an entry that is a link, a device,
            a file where another entry or the folder has a folder (or the reverse), or would lie outside the folder;
            nothing was written then.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{archive.name}.unpacking"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        with _opened(archive) as (entries, open_entry):
            n_bytes = sum(entry.n_bytes for entry in entries)
            _refuse_clashes([entry.name for entry in entries], archive, folder)
            check_room(folder, n_bytes, what="the unpacked files", remedy="choose another folder")
            part.mkdir()
            with tqdm(total=n_bytes, desc=f"unpack {archive.name}", unit="B", unit_scale=True) as bar:
                for entry in entries:
                    _copy(open_entry(entry.handle), part / entry.name, bar)
        tops = sorted(path.name for path in part.iterdir())
        _move(part, folder)
        return [folder / name for name in tops]
    except (*DAMAGED, tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{archive} is damaged ({error}); download it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_unpacked(archive: Path, folder: Path) -> bool:
    """Whether every file of an archive lies in a folder, with any content. Raises: DataError, as `unpack`."""
    with _opened(archive) as (entries, _):
        return all((folder / entry.name).is_file() for entry in entries)


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[_Entry], Any]]:
    """The checked entries of an archive, and a function that opens one by its handle."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            entries = [_zip_entry(info, archive) for info in opened.infolist() if _wanted(info.filename)]
            yield _consistent(entries, archive), opened.open
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            members = [member for member in opened if not member.isdir() and _wanted(member.name)]
            while opened.fileobj.read(CHUNK):  # gzip's checksum stands at its end, where tarfile does not look
                pass
            yield _consistent([_tar_entry(member, archive) for member in members], archive), opened.extractfile
    else:
        raise DataError(f"{archive} is no zip or tar archive, or is damaged; download it again")


def _wanted(name: str) -> bool:
    return not name.endswith("/") and not name.startswith("__MACOSX/") and PurePosixPath(name).name != ".DS_Store"


def _zip_entry(info: zipfile.ZipInfo, archive: Path) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(archive, info.filename, "is a link or a device")
    if info.flag_bits & 1:
        raise _refused(archive, info.filename, "is encrypted")
    return _Entry(_inside(info.filename, archive), info.file_size, info)


def _tar_entry(member: tarfile.TarInfo, archive: Path) -> _Entry:
    if not member.isreg():
        raise _refused(archive, member.name, "is a link or a device")
    return _Entry(_inside(member.name, archive), member.size, member)


def _inside(name: str, archive: Path) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise _refused(archive, name, "would lie outside the folder")
    return path.as_posix()


def _consistent(entries: list[_Entry], archive: Path) -> list[_Entry]:
    """The entries, none of which is a file and the folder of another one."""
    folders = _folders([entry.name for entry in entries])
    for entry in entries:
        if entry.name in folders:
            raise _refused(archive, entry.name, "is a file and a folder")
    return entries


def _refuse_clashes(names: list[str], archive: Path, folder: Path) -> None:
    """Files of the archive where the folder has folders, and the reverse: they cannot be replaced."""
    for name in names:
        if (folder / name).is_dir():
            raise _clash(folder / name, "folder", archive, "file")
    for name in sorted(_folders(names)):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise _clash(folder / name, "file", archive, "folder")


def _folders(names: list[str]) -> set[str]:
    return {parent.as_posix() for name in names for parent in PurePosixPath(name).parents} - {"."}


def _clash(path: Path, kind: str, archive: Path, other: str) -> DataError:
    return DataError(f"{path} is a {kind} and {archive} has a {other} there; nothing was unpacked, move it away")


def _refused(archive: Path, name: str, what: str) -> DataError:
    return DataError(f'entry "{name}" of {archive} {what}; nothing was unpacked, get the archive from its publisher')


def _copy(source: IO[bytes], target: Path, bar: tqdm) -> None:
    """Write one entry; `zipfile` and `tarfile` hand out no more of it than it is listed with."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _move(source: Path, target: Path) -> None:
    """Rename into place, whole; folders that are there already are merged."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name)
    else:
        source.replace(target)
