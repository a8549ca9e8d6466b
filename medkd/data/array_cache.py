"""Arrays of a cache: made once, with their room reserved before, and made again where the file is damaged."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from medkd.errors import DataError
from medkd.files import check_room, locked, make_once, no_room

NO_RESERVING = (errno.EINVAL, errno.EOPNOTSUPP)
"""What file systems answer that cannot reserve room."""
HASH = re.compile("[0-9a-f]{64}")


def made_array(
    path: Path, write: Callable[[Path], Any], *, dtype: DTypeLike, shape: Sequence[int | None]
) -> np.ndarray:
    """The read-only memory map of a cached `.npy`; made by `write(part)` if it is not there, or damaged.

    Args:
        path: where it lies.
        write: see `medkd.files.make_once`.
        dtype: it must have; a file that has not is damaged.
        shape: likewise; None stands for any length.

    Raises:
        DataError: what was just made is not of this form.
    """
    make_once(path, write)
    if (array := intact_array(path, dtype=dtype, shape=shape)) is not None:
        return array
    with locked(path.with_suffix(".lock")):
        if intact_array(path, dtype=dtype, shape=shape) is None:  # no other process made it again
            path.unlink(missing_ok=True)
    make_once(path, write)
    if (array := intact_array(path, dtype=dtype, shape=shape)) is None:
        raise DataError(f"{path} cannot be read back as it was written; check the disk, or set MEDKD_HOME to another")
    return array


def intact_array(
    path: Path, *, dtype: DTypeLike, shape: Sequence[int | None], mode: Literal["r", "c"] = "r"
) -> np.ndarray | None:
    """The memory map of a `.npy` of this dtype and shape (None: any length); None if it is missing or damaged.

    Pixels or features that were altered are not noticed: only header and length are looked at.
    """
    if not path.is_file():
        return None
    try:
        array = np.lib.format.open_memmap(path, mode=mode)
    except OSError:
        raise
    except Exception:  # a damaged header makes numpy raise whatever Python's parser does
        return None
    fits = len(array.shape) == len(shape) and all(b in (a, None) for a, b in zip(array.shape, shape, strict=True))
    return array if fits and array.dtype == dtype else None


def new_pixels(part: Path, shape: Sequence[int], *, what: str, remedy: str) -> np.ndarray:
    """A new `.npy` of uint8 as a memory map to write to, whose room on the disk is reserved.

    Writing to a map on a disk that has become full does not raise, it kills the process.

    Args:
        part: the file.
        shape: of the array.
        what: it holds, plural.
        remedy: what makes it smaller.

    Raises:
        DataError: the disk lacks the room.
    """
    n_bytes = math.prod(shape)
    check_room(part.parent, n_bytes, what=what, remedy=remedy)
    try:
        pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=tuple(shape))
        if hasattr(os, "posix_fallocate"):
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    except OSError as error:
        if error.errno in NO_RESERVING:
            return pixels
        has = f"has not so much ({error.strerror})"
        raise no_room(part.parent, n_bytes, has, what=what, remedy=remedy) from error
    return pixels


def remembered_hashes(memo: Path, n: int) -> list[str] | None:
    """The n hashes that a file holds; None if it is missing or damaged."""
    try:
        hashes = json.loads(memo.read_text())
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(hashes, list) and len(hashes) == n
    return hashes if whole and all(isinstance(text, str) and HASH.fullmatch(text) for text in hashes) else None
