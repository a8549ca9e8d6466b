"""Views a second: batched augmentation on the device against torchvision's transforms image by image, side by side.

    .venv/bin/python benchmarks/bench_views.py

Prints both rates and their ratio for three image sizes; each rate is the median of five repeats after a warm-up.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from medkd.data.views import HYBRID

BATCH, REPEATS = 64, 5


def rate(run: Callable[[], object]) -> float:
    """Views a second of one call that makes `BATCH` views."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds)


def one_by_one(size: int) -> v2.Compose:
    """The same augmentation from torchvision, for one image."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=HYBRID.crop_scale, ratio=HYBRID.crop_ratio, antialias=True),
            v2.RandomApply([v2.ColorJitter(HYBRID.brightness, HYBRID.contrast, HYBRID.saturation)], p=HYBRID.jitter_p),
            v2.RandomApply([v2.GaussianBlur(13, HYBRID.blur_sigma)], p=HYBRID.blur_p),
            v2.RandomHorizontalFlip(HYBRID.hflip_p),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor() or 'CPU'}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    generator = torch.Generator().manual_seed(0)
    for size in (48, 64, 128):
        images = torch.randint(0, 256, (BATCH, size, size, 3), dtype=torch.uint8, generator=generator)
        on_device, planar, transform = images.to(device), images.permute(0, 3, 1, 2).contiguous(), one_by_one(size)
        ours = rate(lambda: HYBRID(on_device, generator))  # noqa: B023
        theirs = rate(lambda: [transform(image) for image in planar])  # noqa: B023
        print(f"{size:4} px: batched {ours:8.0f} views/s, one by one {theirs:6.0f} views/s, ratio {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
