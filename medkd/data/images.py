"""Image files as one uint8 array: each is decoded and resized once, then read from a memory map."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from medkd import paths as places
from medkd.errors import DataError, ParameterError
from medkd.files import check_room, write_atomically, write_json

# What Pillow raises on damaged files: SyntaxError comes from its PNG reader, the bomb error from absurd sizes.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, UnidentifiedImageError)
MAX_THREADS = 16

_building = threading.Lock()  # two threads of one process would share a temporary name


def first_few(names: Sequence[object], n: int = 3) -> str:
    """The first `n` names, and how many there are if that is not all, for an error message."""
    shown = ", ".join(str(name) for name in names[:n])
    return shown if len(names) <= n else f"{shown}, ... ({len(names)} in all)"


def pixel_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file in pixels, from its header.

    Raises:
        DataError: if the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable image ({error}); copy it again from the publisher") from error


class FileImages:
    """ImageSource over image files of one modality; row i is the i-th path.

    Every file is decoded to RGB and resized to a square without keeping its aspect ratio, bilinear and antialiased,
    as torchvision's `Resize((size, size))` does with Pillow images (both papers do so). The result for a size is made
    once and kept as a uint8 array in the cache, under a key of the listing (relative path, bytes and modification time
    of every file): a changed file makes a new cache. Sources that `take` made share one cache.

    Args:
        paths: file names relative to `root`, one a row.
        root: the publisher's folder.
        cache_dir: where the arrays go, in a subfolder `images`; by default `medkd.paths.cache_dir()`.

    Raises:
        DataError: if `paths` is empty.
    """

    def __init__(self, paths: Sequence[str | PurePath], *, root: Path, cache_dir: Path | None = None) -> None:
        if not len(paths):
            raise DataError(
                f"no image file was named under {root}; check that the folder is the publisher's and complete"
            )
        self._files = _Files(tuple(PurePath(path).as_posix() for path in paths), Path(root), cache_dir)
        self._rows = np.arange(len(paths))

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, size: int) -> np.ndarray:
        """Images as uint8 RGB, shape (n, size, size, 3), read-only.

        A memory map if this source holds every file in its first order, else a copy of the chosen rows.

        Raises:
            ParameterError: if `size` is not a positive whole number.
            DataError: if files are missing or cannot be decoded, or the disk is too full; nothing is kept then.
        """
        if int(size) != size or size < 1:
            raise ParameterError(f"image_size = {size} is no image side; give a whole number of pixels, 1 or more")
        pixels = self._files.pixels(int(size))
        if np.array_equal(self._rows, np.arange(len(pixels))):
            return pixels
        chosen = np.asarray(pixels[self._rows])
        chosen.flags.writeable = False
        return chosen

    def take(self, rows: np.ndarray) -> FileImages:
        """The source of these rows of this source, in this order."""
        taken = copy.copy(self)
        taken._rows = self._rows[np.asarray(rows, np.int64)]
        return taken

    def whole(self) -> tuple[FileImages, np.ndarray]:
        """The source of all files, in their first order, and the rows of it that this one holds."""
        source = copy.copy(self)
        source._rows = np.arange(len(self._files.names))
        return source, self._rows

    def content_hashes(self) -> list[str]:
        """SHA-256 of each row's file, as hex; remembered in the cache as long as the listing stays.

        Raises:
            DataError: if files are missing or cannot be read.
        """
        hashes = self._files.hashes
        return [hashes[row] for row in self._rows]

    def fingerprint(self) -> str:
        """SHA-256 over relative path and content of every row's file, the same wherever the folder lies."""
        digest = hashlib.sha256()
        for row, content in zip(self._rows, self.content_hashes(), strict=True):
            digest.update(f"{self._files.names[row]}\t{content}\n".encode())
        return digest.hexdigest()


class _Files:
    """All files of one source and what the cache holds of them; shared by the sources that `take` made."""

    def __init__(self, names: tuple[str, ...], root: Path, cache_dir: Path | None) -> None:
        self.names = names
        self.root = root
        self.cache = (places.cache_dir() if cache_dir is None else Path(cache_dir)) / "images"

    @cached_property
    def key(self) -> str:
        """Twenty hex digits of the listing."""
        stats = self._each(lambda path: path.stat(), "")
        listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(self.names, stats, strict=True)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:20]

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of every file."""
        memo = self.cache / f"{self.key}.sha256.json"
        if memo.is_file():
            return json.loads(memo.read_text())
        hashes = self._each(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), "check images")
        self.cache.mkdir(parents=True, exist_ok=True)
        write_json(memo, hashes)
        return hashes

    def pixels(self, size: int) -> np.ndarray:
        """The memory map of all files at this size, made if it is not there."""
        path = self.cache / f"{self.key}-{size}.npy"
        with _building:
            if not path.is_file():
                self._make_room(size)
                write_atomically(path, lambda part: self._decode(part, size))
        return np.load(path, mmap_mode="r")

    def _make_room(self, size: int) -> None:
        # A memory map on a full disk does not raise, it kills the process; so the space is counted first.
        self.cache.mkdir(parents=True, exist_ok=True)
        n_bytes = len(self.names) * size * size * 3
        check_room(self.cache, n_bytes, what="the decoded images", remedy="lower image_size")

    def _decode(self, part: Path, size: int) -> None:
        pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(self.names), size, size, 3))
        self._each(lambda path: _decode_file(path, size), f"decode images at {size} px", into=pixels)
        pixels.flush()

    def _each(self, work: Callable[[Path], Any], title: str, into: np.ndarray | None = None) -> list[Any]:
        """`work(path)` of every file, in order, on several threads (Pillow and hashlib release the GIL).

        With `into`, result i goes to `into[i]` as soon as it is there, and the list stays empty.
        """
        results: list[Any] = []
        failed: list[str] = []
        reason = ""

        def attempt(row: int) -> Any:
            try:
                result = work(self.root / self.names[row])
            except UNREADABLE as error:
                return error
            if into is None:
                return result
            into[row] = result
            return None

        pool = ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1))
        bar = tqdm(total=len(self.names), desc=title, unit="image", leave=False, disable=not title)
        try:
            for name, result in zip(self.names, pool.map(attempt, range(len(self.names))), strict=True):
                bar.update()
                if isinstance(result, Exception):
                    failed.append(name)
                    reason = reason or str(result)
                elif into is None:
                    results.append(result)
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)  # an interrupt must not wait for thousands of files
        if failed:
            raise DataError(
                f"{len(failed)} of {len(self.names)} image files under {self.root} cannot be read: "
                f"{first_few(failed)} (the first: {reason}); copy them again from the publisher"
            )
        return results


def _decode_file(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
