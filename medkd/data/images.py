"""Image files as one uint8 array: each is decoded and resized once, then read from a memory map."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from medkd import paths as places
from medkd.data.array_cache import made_array, new_pixels, remembered_hashes
from medkd.data.decoding import DARK, DECODER, UNREADABLE, Box, dark, decode, opened
from medkd.data.file_store import FileStore
from medkd.errors import DataError, ParameterError, first_few
from medkd.files import unwritable, write_json

MAX_THREADS = 16


class FileImages:
    """ImageSource over image files of one modality; row i is the i-th path.

    Every file is decoded to RGB and resized to a square without keeping its aspect ratio, bilinear and antialiased,
    as torchvision's `Resize((size, size))` does with Pillow images (both papers do so). The result for a size is made
    once and kept as a uint8 array in the cache, under a key of the content (the hash of every file, remembered as long
    as `FileStore.stamp` stays): a changed file makes a new cache, a moved folder does not. Processes that want the same
    array make it once, and one that is killed leaves nothing that counts. Sources that `take` made share it.

    Colours: 16-bit grey is scaled to 8 bits, transparency is laid over black, CMYK and palettes are converted, and the
    camera's orientation tag is obeyed.

    Args:
        paths: file names relative to `root`, one per row (with `crops` one per region).
        root: the publisher's folder; subfolders may still be zip archives, see `FileStore`.
        cache_dir: where the arrays go, in a subfolder `images`; by default `medkd.paths.cache_dir()`.
        crops: boxes (left, top, right, bottom) in pixels that are cut out of each file, each of them a row, files in
            order; None takes every file as a whole.

    Raises:
        DataError: if `paths` is empty.
    """

    def __init__(
        self,
        paths: Sequence[str | PurePath],
        *,
        root: Path,
        cache_dir: Path | None = None,
        crops: Sequence[Sequence[Box]] | None = None,
    ) -> None:
        if not len(paths):
            raise DataError(
                f"no image file was named under {root}; check that the folder is the publisher's and complete"
            )
        self._files = _Files(tuple(PurePath(path).as_posix() for path in paths), Path(root), cache_dir, crops)
        self._rows = np.arange(len(self._files.file_of))

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
        source._rows = np.arange(len(self._files.file_of))
        return source, self._rows

    def file_pixels(self) -> tuple[int, int]:
        """Width and height of the first file in pixels, from its header.

        Raises:
            DataError: if it is missing or is no image.
        """
        name = self._files.names[self._files.file_of[self._rows[0]]]
        try:
            return self._files.header_size(name)
        except UNREADABLE as error:
            raise DataError(
                f"{self._files.store.root / name} is not a readable image ({error}); copy it again from the publisher"
            ) from error

    def file_sizes(self) -> np.ndarray:
        """Width and height of each row's file in pixels, from the headers, shape (n, 2); 0 where it cannot be read."""
        sizes, failed = self._files.each(self._files.header_size, "look at image sizes")
        every = np.zeros((len(self._files.names), 2), np.int64)
        every[[name not in failed for name in self._files.names]] = sizes
        return every[self._files.file_of[self._rows]]

    def unreadable(self) -> dict[str, str]:
        """Name of each file that cannot be decoded -> the reason; every file is read once."""
        failed = self._files.each(lambda name: decode(self._files.store.read(name), 8), "look at images")[1]
        own = {self._files.names[file] for file in self._files.file_of[self._rows]}
        return {name: reason for name, reason in failed.items() if name in own}

    def content_hashes(self) -> list[str]:
        """SHA-256 of each row's file, as hex; remembered in the cache as long as the listing stays.

        Raises:
            DataError: if files are missing or cannot be read.
        """
        hashes = self._files.hashes
        return [hashes[file] for file in self._files.file_of[self._rows]]

    def fingerprint(self) -> str:
        """SHA-256 over relative path and content of every row's file, the same wherever the folder lies."""
        digest = hashlib.sha256() if DECODER == "2" else hashlib.sha256(DECODER.encode())  # "2" came before it counted
        for row, content in zip(self._rows, self.content_hashes(), strict=True):
            digest.update(f"{self._files.label(row)}\t{content}\n".encode())
        return digest.hexdigest()


class _Files:
    """All files of one source and what the cache holds of them; shared by the sources that `take` made."""

    def __init__(
        self,
        names: tuple[str, ...],
        root: Path,
        cache_dir: Path | None,
        crops: Sequence[Sequence[Box]] | None,
    ) -> None:
        self.names = names
        self.crops = None if crops is None else [tuple(boxes) for boxes in crops]
        n_rows = [1] * len(names) if self.crops is None else [len(boxes) for boxes in self.crops]
        self.file_of = np.repeat(np.arange(len(names)), n_rows)
        """File of each row of the decoded array."""
        self.starts = np.cumsum([0, *n_rows])
        self.store = FileStore(root)
        self.cache = (places.cache_dir() if cache_dir is None else Path(cache_dir)) / "images"

    def label(self, row: int) -> str:
        """Name of a row's file, with the box that is cut out of it."""
        file = self.file_of[row]
        name = self.names[file]
        return name if self.crops is None else f"{name} {self.crops[file][row - self.starts[file]]}"

    def header_size(self, name: str) -> tuple[int, int]:
        """Width and height of a file; OSError if it is no image."""
        with self.store.open(name) as file, opened(file) as image:
            return image.size

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of every file, remembered under a key of the listing: name and `FileStore.stamp`."""
        stamps, failed = self.each(self.store.stamp, "")
        self._refuse(failed)
        listing = json.dumps([(name, *stamp) for name, stamp in zip(self.names, stamps, strict=True)])
        memo = self.cache / f"{hashlib.sha256(listing.encode()).hexdigest()[:20]}.sha256.json"
        if (known := remembered_hashes(memo, len(self.names))) is not None:
            return known
        hashes, failed = self.each(lambda name: hashlib.sha256(self.store.read(name)).hexdigest(), "check images")
        self._refuse(failed)
        with suppress(OSError):  # a cache that others share may be read-only, and have the pixels all the same
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(memo, hashes)
        return hashes

    def pixels(self, size: int) -> np.ndarray:
        """The memory map of all files at this size, made if it is not there."""
        boxes = "" if self.crops is None else repr(self.crops)
        key = hashlib.sha256("".join((DECODER, *self.hashes, boxes)).encode()).hexdigest()[:20]
        path = self.cache / f"{key}-{size}.npy"
        shape = (len(self.file_of), size, size, 3)
        try:
            return made_array(path, lambda part: self._decode_all(part, size), dtype=np.uint8, shape=shape)
        except OSError as error:
            raise unwritable(self.cache, error) from error

    def _decode_all(self, part: Path, size: int) -> None:
        shape = (len(self.file_of), size, size, 3)
        pixels = new_pixels(part, shape, what="the decoded images", remedy="lower image_size")
        boxes = dict(zip(self.names, self.crops or [(None,)] * len(self.names), strict=True))
        hashes = dict(zip(self.names, self.hashes, strict=True))

        def pixels_of(name: str) -> np.ndarray:
            content = self.store.read(name)
            if hashlib.sha256(content).hexdigest() != hashes[name]:  # the array would lie under the older content's key
                raise OSError("it changed since it was first read; run the command again once it is whole")
            return decode(content, size, boxes[name])

        failed = self.each(pixels_of, f"decode images at {size} px", into=pixels)[1]
        self._refuse(failed)
        self._tell_dark(pixels.reshape(len(pixels), -1).max(axis=1))
        pixels.flush()

    def _tell_dark(self, brightest: np.ndarray) -> None:
        """Refuse a source that is all black, and warn of one that nearly is, or of images that are."""
        n, where, black = len(brightest), f"under {self.store.root}", np.flatnonzero(brightest == 0)
        remedy = "if they hold 8-bit values in files of 16 bits, save them with 8 bits"
        if len(black) == n:
            raise DataError(f"all {n:,} images {where} are black; {remedy}")
        if brightest.max() < DARK:
            warnings.warn(f"no pixel of {n:,} images {where} {dark(brightest.max())}", stacklevel=2)
        elif len(black):
            names = first_few([self.label(row) for row in black])
            warnings.warn(f"{len(black):,} of {n:,} images {where} are black: {names}; {remedy}", stacklevel=2)

    def each(
        self, work: Callable[[str], Any], title: str, into: np.ndarray | None = None
    ) -> tuple[list[Any], dict[str, str]]:
        """`work(name)` of every file, and name -> reason of those that cannot be read.

        On several threads: Pillow and hashlib release the GIL. With `into`, the result of a file goes to its rows there
        as soon as it is made, and the list stays empty.
        """
        results: list[Any] = []
        failed: dict[str, str] = {}

        def attempt(file: int) -> Any:
            try:
                result = work(self.names[file])
            except UNREADABLE as error:
                return error
            if into is None:
                return result
            into[self.starts[file] : self.starts[file + 1]] = result
            return None

        pool = ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1))
        bar = tqdm(total=len(self.names), desc=title, unit="image", leave=False, disable=not title)
        try:
            for name, result in zip(self.names, pool.map(attempt, range(len(self.names))), strict=True):
                bar.update()
                if isinstance(result, Exception):
                    failed[name] = str(result) or type(result).__name__
                elif into is None:
                    results.append(result)
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)  # an interrupt must not wait for thousands of files
        return results, failed

    def _refuse(self, failed: dict[str, str]) -> None:
        if failed:
            raise DataError(
                f"{len(failed)} of {len(self.names)} image files under {self.store.root} cannot be read: "
                f"{first_few(list(failed))} (the first: {next(iter(failed.values()))}); "
                "copy them again from the publisher"
            )
