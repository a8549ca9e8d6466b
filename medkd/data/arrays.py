"""Images that are already in memory, behind the same interface as image files."""

from __future__ import annotations

import copy
import hashlib

import numpy as np

from medkd.errors import DataError

RESIZE_CHUNK = 512  # images copied at once: bounds the float32 copy to about 25 MB at 64 pixels


class ArrayImages:
    """ImageSource over one uint8 array, which `take` shares; the last size loaded is kept in memory.

    Args:
        pixels: uint8 RGB, shape (n, h, w, 3). Kept, not copied; must not be written to afterwards.
        rows: rows of `pixels` that this source holds, in order, shape (m,); all of them by default.

    Raises:
        DataError: if `pixels` is not a uint8 array of shape (n, h, w, 3), or a row is outside it.
    """

    def __init__(self, pixels: np.ndarray, rows: np.ndarray | None = None) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise DataError(
                f"images in memory must be a uint8 array of shape (n, height, width, 3), got {pixels.dtype} "
                f"of shape {pixels.shape}; convert them to 8-bit RGB first"
            )
        self._pixels = pixels
        self._rows = np.arange(len(pixels)) if rows is None else np.asarray(rows, np.int64)
        if len(self._rows) and not 0 <= self._rows.min() <= self._rows.max() < len(pixels):
            raise DataError(
                f"rows must lie in 0..{len(pixels) - 1}, the images in memory; check the row numbers passed"
            )
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height of the pixels as they were given."""
        return self._pixels.shape[2], self._pixels.shape[1]

    def load(self, size: int) -> np.ndarray:
        """Images as uint8 RGB, shape (m, size, size, 3), bilinear with antialiasing; not to be written to."""
        if self._last is None or self._last[0] != size:
            same = self._pixels.shape[1:3] == (size, size)  # copied even then: the pixels may be a map of a cache file
            loaded = self._pixels[self._rows] if same else _resize(self._pixels, self._rows, size)
            loaded.flags.writeable = False
            self._last = (size, loaded)
        return self._last[1]

    def take(self, rows: np.ndarray) -> ArrayImages:
        """The source of these rows of this source, in this order."""
        return ArrayImages(self._pixels, self._rows[rows])

    def whole(self) -> tuple[ArrayImages, np.ndarray]:
        """The source of all pixels, and the rows of it that this one holds."""
        source = copy.copy(self)
        source._rows, source._last = np.arange(len(self._pixels)), None
        return source, self._rows

    def fingerprint(self) -> str:
        """SHA-256 of shape and pixels, in row order."""
        digest = hashlib.sha256(repr((len(self._rows), *self._pixels.shape[1:])).encode())
        for start in range(0, len(self._rows), RESIZE_CHUNK):  # a copy of all of them could fill the memory
            digest.update(np.ascontiguousarray(self._pixels[self._rows[start : start + RESIZE_CHUNK]]))
        return digest.hexdigest()


def _resize(pixels: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    import torch  # takes seconds, and who lists cohorts or reads files need not wait for it
    from torch.nn import functional as F

    resized = np.empty((len(rows), size, size, 3), np.uint8)
    for start in range(0, len(rows), RESIZE_CHUNK):
        part = torch.from_numpy(pixels[rows[start : start + RESIZE_CHUNK]]).permute(0, 3, 1, 2).float()
        part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        resized[start : start + RESIZE_CHUNK] = part.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return resized
