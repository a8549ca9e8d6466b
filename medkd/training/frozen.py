"""Training on features of a frozen pre-trained encoder: computed once for every image and view, then read from a file.

The encoder runs in eval mode over the plain image and a fixed number of random views of it; what is trained is a
small head (`frozen_head`). A training step then costs less than reading the image would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medkd import paths
from medkd.data.array_cache import intact_array
from medkd.data.cohort import ImageSource
from medkd.data.views import Augment, ViewDraw, plain_view
from medkd.errors import DataError, ParameterError
from medkd.files import check_room, key_of, locked, write_atomically
from medkd.models.device import autocast, has_native_bfloat16, to_device
from medkd.models.encoders import FeatureHead, trunk, trunk_width
from medkd.models.pretrained import weights_sha256
from medkd.seeds import generator_for
from medkd.training.inputs import RESIDENT_BYTES
from medkd.transfer import sent

__all__ = ["FrozenModality", "frozen_features", "frozen_head", "trunk", "trunk_width"]

VERSION = 1  # part of every key: raise it when the same settings give other features


class FrozenModality:
    """Features of a frozen encoder in place of images; see `medkd.training.inputs.Modality`.

    Args:
        views: what `frozen_features` gave: the plain view first, each (n, d), may be memory maps.
        device: where batches go.

    Attributes:
        dim: d, the length of the features.
    """

    def __init__(self, views: Sequence[np.ndarray], device: torch.device) -> None:
        self.device = device
        self.dim = views[0].shape[1]
        resident = device.type != "cpu" and sum(view.nbytes for view in views) <= RESIDENT_BYTES
        # copy-on-write maps count as writable, so that torch does not warn; nothing writes to them
        mapped = [torch.from_numpy(view) for view in views]
        self.stack = torch.stack(mapped).to(device) if resident else None  # (n_views, n, d)
        self.views = mapped if self.stack is None else list(self.stack)

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Features of a random one of each row's augmented views (the plain one if there is none), (n_rows, d)."""
        if len(self.views) == 1:
            return self.plain(rows)
        chosen = torch.randint(1, len(self.views), (len(rows),), generator=generator, device=generator.device)
        if self.stack is not None:
            return self.stack[sent(chosen, self.device), sent(rows, self.device)].float()
        chosen = chosen.to(rows.device)
        features = torch.empty(len(rows), self.dim, device=self.device)
        for number, view in enumerate(self.views[1:], start=1):
            places = (chosen == number).nonzero()[:, 0]
            features[sent(places, self.device)] = self._rows(view, rows[places])
        return features

    def plain(self, rows: Tensor) -> Tensor:
        """Features of the unchanged images, float32, shape (n_rows, d)."""
        return self._rows(self.views[0], rows)

    def _rows(self, view: Tensor, rows: Tensor) -> Tensor:
        return sent(view[sent(rows, view.device)], self.device).float()


def frozen_head(in_dim: int, dim: int = 128, *, dropout: float = 0.0) -> nn.Module:
    """What is trained on the features of a frozen encoder: dropout and a `FeatureHead`, (n, in_dim) -> (n, dim), >= 0.

    It stands where an image encoder stands otherwise, in teacher and student alike.
    """
    return nn.Sequential(nn.Dropout(dropout), FeatureHead(in_dim, dim))


def check_weights(encoder: str, weights: str | Path) -> None:
    """Refuse to freeze an encoder that starts from nothing.

    Raises:
        ParameterError: without weights.
    """
    if not str(weights):
        raise ParameterError(
            f'a frozen {encoder} needs pre-trained weights: "imagenet" with tf_efficientnet_lite0, or a state dict file'
        )


def frozen_features(
    source: ImageSource,
    encoder: str,
    weights: str | Path,
    *,
    size: int,
    augment: Augment,
    n_views: int,
    seed: int,
    device: torch.device,
    width: float = 1.0,
    precision: str = "auto",
    batch_size: int = 64,
    folder: Path | None = None,
    title: str = "",
) -> list[np.ndarray]:
    """Features of every image of a source, unchanged and in `n_views` random views; computed once, then loaded.

    Every view is a file of its own whose name depends on images, size, encoder, content of the weights, precision
    and, for random views, augmentation, seed and the view's number: an interrupted run keeps the views it finished,
    and more views are added to those that exist. A damaged file is made again.

    Args:
        source: the images, e.g. `cohort.images[cohort.main]`; opened only if a view is missing.
        encoder: backbone by name, see `medkd.models.encoders.build_image_encoder`.
        weights: "imagenet" or a state dict file.
        size: side of the images, px.
        augment: how random views are made.
        n_views: random views of each image, at least 0.
        seed: of the random views; which views there are does not depend on encoder, device or batch size.
        device: where the encoder runs.
        width: of "resnet12" and "conv4".
        precision: see `medkd.models.device.autocast`.
        batch_size: images at once.
        folder: where the files lie, by default `data/cache/features`.
        title: for the progress bar, "" for the encoder's name.

    Returns:
        1 + n_views arrays of shape (n, d), float16, row i for image i; the plain view first. They are memory maps if
        the source is whole; parts of one source (a choice of classes) share what is computed.

    Raises:
        ParameterError: without weights, for an unknown encoder, or `n_views` below 0.
        DataError: if weights or images are missing or do not fit, the disk is full, or a feature is not finite.
    """
    check_weights(encoder, weights)
    if n_views < 0:
        raise ParameterError(f"n_views={n_views} must be at least 0 (0 trains on the unchanged images)")
    source, rows = source.whole()
    if precision == "auto":
        precision = "bfloat16" if has_native_bfloat16(device) else "float32"
    base = {
        "version": VERSION,
        "images": source.fingerprint(),
        "size": size,
        "encoder": encoder,
        "width": width,
        "weights": weights_sha256(encoder, weights),
        "precision": precision,
    }
    random = {"augment": asdict(augment), "seed": seed}
    folder = paths.cache_dir() / "features" if folder is None else Path(folder)
    files = [folder / f"{key_of(base, 20)}-plain.npy"] + [
        folder / f"{key_of(base | random | {'view': number}, 20)}-view{number}.npy" for number in range(1, n_views + 1)
    ]
    form = {"dtype": np.float16, "shape": (len(source), trunk_width(encoder, width)), "mode": "c"}
    found = [intact_array(path, **form) for path in files]
    if any(view is None for view in found):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key_of(base, 20)}.lock"):  # a second process waits and then loads
            missing = [(number, path) for number, path in enumerate(files) if intact_array(path, **form) is None]
            if missing:
                images = source.load(size)
                with torch.random.fork_rng(devices=[]):  # what comes next must not depend on what the cache holds
                    network, dim = trunk(encoder, weights, width=width)
                network = to_device(network, device).eval()
                n_bytes = len(missing) * len(images) * dim * 2
                check_room(folder, n_bytes, what="the frozen features", remedy="lower n_views")
                bar = tqdm(
                    total=len(missing) * len(images), desc=title or f"features of {encoder}", unit="image", leave=False
                )
                with bar:
                    for number, path in missing:
                        views = _views(images, augment, number, seed, batch_size, device)
                        _save(path, _features(network, views, precision, device, bar))
        found = [intact_array(path, **form) for path in files]
    views = [view for view in found if view is not None]
    return views if np.array_equal(rows, np.arange(len(views[0]))) else [np.asarray(view[rows]) for view in views]


def _views(
    images: np.ndarray, augment: Augment, number: int, seed: int, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """View `number` of all images by batch, float in [0, 1]; number 0 is the unchanged image."""
    n, size = images.shape[:2]
    if number:
        # of all images at once: the batch size must not matter
        draw = augment.draw(n, size, generator_for(seed, "frozen view", number))
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        batch = torch.from_numpy(np.array(images[rows])).to(device)
        yield augment.apply(batch, ViewDraw(*(part[rows] for part in draw))) if number else plain_view(batch)


@torch.inference_mode()
def _features(network: nn.Module, views: Iterator[Tensor], precision: str, device: torch.device, bar: tqdm) -> Tensor:
    """Features of all batches, shape (n, d), float16 on the CPU."""
    parts = []
    for batch in views:
        with autocast(device, precision):
            parts.append(network(batch).half().cpu())
        bar.update(len(batch))
    features = torch.cat(parts)
    if not features.isfinite().all():
        raise DataError(
            "the frozen encoder gave features that are not finite or above 65504, more than float16 holds; "
            "check that the weights are of this encoder"
        )
    return features


def _save(path: Path, features: Tensor) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as handle:  # a handle, for np.save would add .npy to a name
            np.save(handle, features.numpy())

    write_atomically(path, write)
