"""DermaMNIST of MedMNIST: HAM10000 as one array file, at 28, 64, 128 or 224 pixels.

Source: Yang et al., Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8. Its images come without lesion ids,
and Abhishek, Jain, Hamarneh (arXiv:2401.14497) found images of one lesion in several of its splits: use it to try
things out, and `medkd.data.ham10000` or `medkd.data.isic2018` for results.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from medkd import paths as places
from medkd.data import isic2018
from medkd.data.array_cache import made_array, new_pixels
from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError
from medkd.files import digest_of

TITLE = "DermaMNIST"
LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = "DermaMNIST (MedMNIST), from HAM10000: ViDIR Group, Medical University of Vienna (CC BY-NC 4.0)"
WEBSITE = "https://medmnist.com"

FILE = re.compile(r"dermamnist(?:_(\d+))?\.npz")
LABELS = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")
"""The publisher's label -> our class."""
PARTS = ("train", "val", "test")


def read(root: str | Path, *, size: int = 0, cache_dir: Path | None = None) -> Cohort:
    """All three parts, with the classes and the rare-disease task of `medkd.data.isic2018`.

    Args:
        root: `dermamnist.npz`, `dermamnist_64.npz`, ..., or a folder with such files.
        size: side of the images in pixels, chooses among several files; 0 takes the largest.
        cache_dir: where the pixels go as a memory map, `data/cache` by default.

    Returns:
        The cohort, ids "train_00000", ...; `group` is "image", and the publisher's parts are the one split "official",
        which the rare-disease chain does not use.

    Raises:
        DataError: if the file is missing, damaged, or not of this form.
        ParameterError: if there is no file of this size.
    """
    path = _file(Path(root).expanduser(), size)
    labels = {part: _labels(path, part) for part in PARTS}
    part = np.repeat(PARTS, [len(labels[name]) for name in PARTS])
    names = np.array(LABELS, object)[np.concatenate(list(labels.values()))]
    ids = [f"{name}_{number:05d}" for name in PARTS for number in range(len(labels[name]))]
    table = pd.DataFrame({"id": ids, "label": [isic2018.CLASSES.index(name) for name in names], "class": names})
    table["patient"] = table["roi"] = table["id"]
    pixels = _pixels(path, [len(labels[name]) for name in PARTS], cache_dir)
    return Cohort(
        name="dermamnist",
        title=f"{TITLE}, {pixels.shape[1]} px",
        simulated=False,
        classes=isic2018.CLASSES,
        table=table,
        images={"dermoscopic": ArrayImages(pixels)},
        base_classes=isic2018.BASE_CLASSES,
        rare_classes=isic2018.RARE_CLASSES,
        group="image",
        splits=pd.DataFrame({"official": part}),
        licence=LICENCE,
        attribution=ATTRIBUTION,
        settings={"n_images": len(table), "file_pixels": f"{pixels.shape[2]}x{pixels.shape[1]}"},
    )


def _file(root: Path, size: int) -> Path:
    if root.is_file():
        return root
    sizes = {int(found[1] or 28): path for path in root.glob("*.npz") if (found := FILE.fullmatch(path.name))}
    if not sizes:
        raise DataError(f"{root} holds no dermamnist.npz, dermamnist_64.npz, ...; get one with `medkd data fetch`")
    if size and size not in sizes:
        raise ParameterError(
            f"size = {size} is not in {root}, which holds {', '.join(map(str, sorted(sizes)))}; choose one of them"
        )
    return sizes[size or max(sizes)]


def _member(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except KeyError:
        raise DataError(f"{path} has no array {name}; use the publisher's file as it is") from None
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on damaged files
        raise DataError(f"{path} cannot be read as an npz file ({error}); download it again") from error


def _labels(path: Path, part: str) -> np.ndarray:
    labels = _member(path, f"{part}_labels").reshape(-1)
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < len(LABELS)):
        raise DataError(f"{part}_labels of {path} must be whole numbers 0 to {len(LABELS) - 1}; is it dermamnist?")
    return labels.astype(np.int64)


def _pixels(path: Path, n_images: list[int], cache_dir: Path | None) -> np.ndarray:
    """The images of all parts under one another as a memory map, unpacked once."""
    folder = (places.cache_dir() if cache_dir is None else Path(cache_dir)) / "arrays"
    target = folder / f"{digest_of(path)[:20]}.npy"
    shape = (sum(n_images), None, None, 3)
    return made_array(target, lambda written: _unpack(path, n_images, written), dtype=np.uint8, shape=shape)


def _unpack(path: Path, n_images: list[int], target: Path) -> None:
    start, whole = 0, None
    for part, n in zip(PARTS, n_images, strict=True):
        images = _member(path, f"{part}_images")
        if images.dtype != np.uint8 or images.shape[0] != n or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"{part}_images of {path} must be uint8 of shape ({n}, size, size, 3), got {images.dtype} "
                f"{images.shape}; use the publisher's file as it is"
            )
        if whole is None:
            shape = (sum(n_images), *images.shape[1:])
            whole = new_pixels(target, shape, what="the unpacked images", remedy="take a smaller size")
        if images.shape[1:] != whole.shape[1:]:
            raise DataError(f"{part}_images of {path} differ in size from {PARTS[0]}_images; download it again")
        whole[start : start + n] = images
        start += n
    whole.flush()
