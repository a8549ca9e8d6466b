"""A publisher's folder, in which any subfolder may still be the zip archive that was downloaded."""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from medkd.errors import DataError
from medkd.files import walk_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What reading a member of a damaged or encrypted archive raises, besides OSError.
DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


class FileStore:
    """Files by a name relative to a folder; `A/b.jpg` may lie in `A/`, or in `A.zip` with or without a leading `A/`.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._archives: dict[str, _Archive] = {}

    def open(self, name: str) -> IO[bytes]:
        """A file to read from, so that the header of a large one can be read alone.

        Raises:
            OSError: it is not there or cannot be read, also where its archive is damaged.
        """
        archive = self._archive_of(name)
        return (self.root / name).open("rb") if archive is None else io.BytesIO(archive.read(name))

    def read(self, name: str) -> bytes:
        """Content of a file. Raises: as `open`."""
        with self.open(name) as file:
            return file.read()

    def stamp(self, name: str) -> tuple[int, ...]:
        """What a changed file, and a file of another folder, has differently, so that its content need not be read.

        Size in bytes, times of modification and of change in ns, inode, device; in an archive size and checksum.

        Raises:
            OSError: it is not there.
        """
        archive = self._archive_of(name)
        if archive is None:
            stat = (self.root / name).stat()
            return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev
        return archive.stamp(name)

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            archive = self._archive_of(name)
            return (self.root / name).is_file() if archive is None else name in archive.members
        except OSError:  # a name that is too long for any file
            return False

    def has(self, folder: str) -> bool:
        """Whether there is such a subfolder, or its archive."""
        return (self.root / folder).is_dir() or (self.root / f"{folder}.zip").is_file()

    def images(self, folder: str) -> list[str]:
        """Names of the image files in a subfolder and below it, sorted; hidden ones (macOS makes some) are passed over.

        Raises:
            DataError: there is neither the folder nor its archive, or the archive is damaged.
        """
        path = self.root / folder
        if path.is_dir():
            files = (Path(place, name) for place, _, names in walk_once(path) for name in names)
            names = [file.relative_to(self.root).as_posix() for file in files if file.is_file()]
        elif (archive := self._archive_of(f"{folder}/x")) is not None:
            names = list(archive.members)
        else:
            raise DataError(
                f"the image folder {path} is missing; put the publisher's archive {folder}.zip, or what is in it, "
                f"into {self.root}"
            )
        return sorted(name for name in names if _is_image(PurePosixPath(name)))

    def _archive_of(self, name: str) -> _Archive | None:
        """The archive that holds a name, None for a plain file."""
        for folder in list(PurePosixPath(name).parents)[-2::-1]:  # from the outermost
            top = folder.as_posix()
            if top in self._archives:
                return self._archives[top]
            if (self.root / folder).exists():
                continue
            path = self.root / f"{top}.zip"
            if path.is_file():
                return self._archives.setdefault(top, _Archive(path, top))
            return None
        return None


class _Archive:
    """A zip archive read in place; several threads may read at once."""

    def __init__(self, path: Path, top: str) -> None:
        self.path, self.top = path, top

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, *DAMAGED) as error:
            raise DataError(f"{self.path} is no readable zip archive ({error}); download it again") from error

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """Name as if the archive were unpacked into a folder of its own name -> entry."""
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        start = PurePosixPath(self.top).name + "/"
        return {f"{self.top}/{entry.filename.removeprefix(start)}": entry for entry in entries}

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._entry(name))
        except DAMAGED as error:
            raise OSError(f"entry {name} of {self.path.name} is damaged: {error}") from error

    def stamp(self, name: str) -> tuple[int, ...]:
        entry = self._entry(name)
        return entry.file_size, entry.CRC

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self.members:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        return self.members[name]


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden
