"""What a network is fed: rows of a cohort as augmented or plain tensors on the device."""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medkd.data.cohort import Cohort
from medkd.data.views import Augment, plain_view
from medkd.transfer import sent

RESIDENT_BYTES = 2**31
"""Images up to this size are copied to the GPU once; larger sets are read from the memory map batch by batch."""
MAPPED_BYTES = 2**28
"""Of a larger memory map about this much stays in the resident memory; the system's cache keeps all of it."""
PAGES_AROUND = 2**16  # bytes that Linux maps beside what was read


class Modality(Protocol):
    """One modality of a cohort, ready for a network."""

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of each of these rows."""

    def plain(self, rows: Tensor) -> Tensor:
        """The rows as they are."""


class ImageModality:
    """Images held as uint8, augmented by batch on the device.

    Args:
        images: uint8, shape (n, size, size, 3), may be a memory map.
        augment: how random views are made.
        device: where batches go.
    """

    def __init__(self, images: np.ndarray, augment: Augment, device: torch.device) -> None:
        self.augment, self.device = augment, device
        self.images = torch.from_numpy(np.asarray(images)) if images.flags.writeable else _read_only(images)
        self._map = _large_map(images)
        self._mapped = 0
        if device.type != "cpu" and self.images.nbytes <= RESIDENT_BYTES:
            self.images = self.images.to(device)
            self._let_go(self.images.nbytes)
            self._map = None

    def raw(self, rows: Tensor) -> Tensor:
        """Pixels of the rows on the device, uint8, shape (n_rows, size, size, 3)."""
        # indexing takes twenty times as long on a CPU
        pixels = self.images.index_select(0, sent(rows, self.images.device))
        self._let_go(pixels.nbytes + len(pixels) * PAGES_AROUND)
        return sent(pixels, self.device)

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of each row, float in [0, 1], shape (n_rows, 3, size, size)."""
        return self.augment(self.raw(rows), generator)

    def plain(self, rows: Tensor) -> Tensor:
        """The rows without augmentation, float in [0, 1], shape (n_rows, 3, size, size)."""
        return plain_view(self.raw(rows))

    def _let_go(self, n_bytes: int) -> None:
        """Count bytes that were read from the map, and unmap its pages when they are many."""
        self._mapped += n_bytes
        if self._map is not None and self._mapped > MAPPED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)  # read-only: what is read again comes from the system's cache
            self._mapped = 0


class VectorModality:
    """Vectors, imputed with the median and standardised by mean and SD of the training rows only.

    Args:
        values: shape (n, d), float32, NaN where missing.
        train_rows: rows whose statistics are used; a column that is constant there becomes zero.
        device: where batches go.
    """

    def __init__(self, values: np.ndarray, train_rows: np.ndarray, device: torch.device) -> None:
        train = values[train_rows]
        known = ~np.isnan(train).all(axis=0)
        median = np.zeros(values.shape[1], np.float32)
        median[known] = np.nanmedian(train[:, known], axis=0)
        filled = np.where(np.isnan(values), median, values)
        own = filled[train_rows]
        mean, sd = own.mean(axis=0), own.std(axis=0)
        constant = (own.min(axis=0) == own.max(axis=0)) | (sd == 0)  # by values: rounding gives a constant an SD
        scaled = np.where(constant, 0, (filled - mean) / np.where(constant, 1, sd))
        self.values = torch.from_numpy(scaled.astype(np.float32)).to(device)

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows themselves: both views of a vector are the same (GMCD does not corrupt omics)."""
        return self.plain(rows)

    def plain(self, rows: Tensor) -> Tensor:
        """Standardised rows, shape (n_rows, d)."""
        return self.values[sent(rows, self.values.device)]


def modality(
    cohort: Cohort, name: str, *, size: int, augment: Augment, train_rows: np.ndarray, device: torch.device
) -> Modality:
    """The modality `name` of a cohort, image or vector."""
    if name in cohort.vectors:
        return VectorModality(cohort.vectors[name].values, train_rows, device)
    return ImageModality(cohort.images[name].load(size), augment, device)


def _large_map(images: np.ndarray) -> mmap.mmap | None:
    """The read-only memory map that the images lie in, if it is worth unmapping and the system can."""
    worth = isinstance(images, np.memmap) and not images.flags.writeable and images.nbytes > MAPPED_BYTES
    return images._mmap if worth and hasattr(mmap, "MADV_DONTNEED") else None


def _read_only(images: np.ndarray) -> Tensor:
    """A tensor over a read-only memory map; nothing writes to it, so torch's warning does not apply."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
