"""Data that benchmarks are measured on: made here, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photographs(folder: Path, n: int, width: int = 600, height: int = 450) -> list[str]:
    """`n` JPEG files that cost as much to decode as photographs of skin do; returns their names.

    They are smooth colours with a darker spot and a little noise, at quality 90 (about 75 kB each).
    """
    rng = np.random.default_rng(0)
    names = [f"{number:05d}.jpg" for number in range(n)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for name in names:
        centre, radius = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(60, 160)
        distance = np.hypot(y - centre[0], x - centre[1])
        spot = 1 / (1 + np.exp((distance - radius) / 12))
        image = rng.uniform(150, 230, 3) - spot[..., None] * rng.uniform(40, 130, 3)
        image = image + rng.normal(0, 4, (height, width, 1)) + 8 * np.sin(x / rng.uniform(3, 40))[..., None]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    return names


def pixels(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images, shape (n, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def predictions(n: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), probabilities (n, n_classes) that agree with most of them, and a patient of about three images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum())
    scores = rng.normal(0, 1, (n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, probabilities, rng.integers(0, max(n // 3, 2), n)
