"""1. Input: JPEG files of 600 x 450 px in, two augmented views per sample at 84 px out, batches of 64.

Lightly draws its crops from the whole file, medkd from the 84 px image that it keeps: the same augmentation, but a
small crop shows less detail. That is what decoding once costs, and why it is fast.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.transforms import v2

from benchmarks.harness import Row, Scale, alternate, medians, ratio, seed_everything
from benchmarks.made_data import photographs, pixels
from medkd.data.images import FileImages
from medkd.data.views import MOCO_V2, Augment
from medkd.models.device import pick_device
from medkd.training.inputs import ImageModality

SIZE, BATCH = 84, 64


def run(scale: Scale) -> list[Row]:
    """Views a second of later epochs and of the first one against lightly, and of the augmentation alone."""
    seed_everything()
    n = scale.pick(512, 256, 8)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        names = photographs(folder, n)
        rows = _against_lightly(scale, folder, names)
        rows.append(_without_files(folder, names))
    return [*rows, _batched_views(scale)]


def _against_lightly(scale: Scale, folder: Path, names: list[str]) -> list[Row]:
    n_views = 2 * (len(names) // BATCH or 1) * min(BATCH, len(names))
    caches = (Path(tempfile.mkdtemp(dir=folder.parent)) for _ in iter(int, 1))

    def first() -> None:
        _epoch(_images(folder, names, next(caches)))

    kept = _images(folder, names, next(caches))
    ours_later = {"medkd": lambda: _epoch(kept)}
    ours_first = {"medkd": first}
    theirs_later, theirs_first = {}, {}
    if scale.has("lightly"):
        loader = lightly_loader(folder, SIZE, BATCH, persistent=True)
        theirs_later = {"lightly": lambda: _drain(loader)}
        theirs_first = {"lightly": lambda: _drain(lightly_loader(folder, SIZE, BATCH, persistent=False))}
    later = alternate(ours_later | theirs_later, scale.pick(7, 4, 1))
    first_epoch = alternate(ours_first | theirs_first, scale.pick(5, 3, 1))
    rates = [
        {f"{name} views/s": n_views / value for name, value in medians(each).items()} for each in (later, first_epoch)
    ]
    what = ("views of an epoch after the first", "views of the first epoch, decoding included")
    if not theirs_later:
        return [
            Row("1 input", title, rate["medkd views/s"], "views/s", note="lightly is not installed")
            for title, rate in zip(what, rates, strict=True)
        ]
    return [
        Row(
            "1 input",
            f"{what[0]}, lightly / medkd",
            **ratio(later["lightly"], later["medkd"]),
            at_least=10,
            medians=rates[0],
        ),
        Row(
            "1 input",
            f"{what[1]}, lightly / medkd",
            **ratio(first_epoch["lightly"], first_epoch["medkd"]),
            at_least=1,
            medians=rates[1],
        ),
    ]


def _without_files(folder: Path, names: list[str]) -> Row:
    """JPEG files that an epoch after the first opens: an epoch is run after all of them were deleted."""
    images = _images(folder, names, folder.parent / "kept")
    for name in names:
        (folder / name).unlink()
    _epoch(images)
    return Row(
        "1 input", "JPEG files read after the first epoch", 0, "files", at_most=0, note="run with the files deleted"
    )


def _batched_views(scale: Scale) -> Row:
    """The augmentation alone, on images in memory: all images of a batch at once against torchvision one by one."""
    device, generator = pick_device(), seed_everything()
    batch = torch.from_numpy(pixels(scale.pick(BATCH, BATCH, 4), SIZE))
    on_device, planar, transform = batch.to(device), batch.permute(0, 3, 1, 2).contiguous(), one_by_one(MOCO_V2, SIZE)
    found = alternate(
        {
            "medkd": lambda: MOCO_V2(on_device, generator),
            "torchvision": lambda: [transform(image) for image in planar],
        },
        scale.repeats,
    )
    rates = {f"{name} views/s": len(batch) / value for name, value in medians(found).items()}
    return Row(
        "1 input",
        "augmentation of a batch in memory, torchvision image by image / medkd",
        **ratio(found["torchvision"], found["medkd"]),
        medians=rates,
    )


def one_by_one(augment: Augment, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The augmentation from torchvision, for one image of `size` px."""
    blur = tuple(sigma * size / 224 for sigma in augment.blur_sigma)
    radius = -int(-3 * blur[1] // 1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=augment.crop_scale, ratio=augment.crop_ratio, antialias=True),
            v2.RandomApply(
                [v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)],
                augment.jitter_p,
            ),
            v2.RandomGrayscale(augment.grayscale_p),
            v2.RandomApply([v2.GaussianBlur(2 * radius + 1, blur)], augment.blur_p),
            v2.RandomHorizontalFlip(augment.hflip_p),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def lightly_loader(folder: Path, size: int, batch: int, *, persistent: bool) -> torch.utils.data.DataLoader:
    """Lightly's MoCo v2 views of a folder, with one worker process per core."""
    from lightly.data import LightlyDataset
    from lightly.transforms import MoCoV2Transform

    data = LightlyDataset(str(folder), transform=MoCoV2Transform(input_size=size, normalize=None))
    return torch.utils.data.DataLoader(
        data,
        batch_size=min(batch, len(data)),
        shuffle=True,
        drop_last=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=persistent,
        pin_memory=torch.cuda.is_available(),
    )


def _images(folder: Path, names: list[str], cache: Path) -> ImageModality:
    return ImageModality(FileImages(names, root=folder, cache_dir=cache).load(SIZE), MOCO_V2, pick_device())


def _epoch(images: ImageModality) -> None:
    """Two views of every image, batch by batch, as `MocoStep` makes them."""
    generator = torch.Generator().manual_seed(0)
    n = len(images.images)
    order = torch.randperm(n, generator=generator)
    for start in range(0, n - min(BATCH, n) + 1, BATCH):
        raw = images.raw(order[start : start + BATCH])
        images.augment(raw, generator), images.augment(raw, generator)


def _drain(loader: torch.utils.data.DataLoader) -> None:
    device = pick_device()
    for (query, key), *_ in loader:
        query.to(device, non_blocking=True), key.to(device, non_blocking=True)
