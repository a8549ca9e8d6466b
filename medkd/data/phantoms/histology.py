"""Simulated H&E patches: two stains in optical density, nuclei, vessels and necrosis, as phantom-glioma draws them."""

from __future__ import annotations

import numpy as np

from medkd.data.phantoms import drawing

HEMATOXYLIN, EOSIN = np.array([0.62, 0.70, 0.32]), np.array([0.10, 0.80, 0.38])  # optical density in R, G, B


def render(rng: np.random.Generator, look: dict[str, np.ndarray], stain: np.ndarray, size: int) -> np.ndarray:
    """Patches as uint8 RGB, shape (n, size, size, 3).

    Args:
        rng: source of every draw.
        look: what the tissue is like, each (n,): `n_nuclei` (count), `radius` and `spread` (geometric mean in image
            sides and standard deviation of the log), `chromatin` (coarseness), `dark` (optical density of a nucleus),
            `elongation` (long over short axis), `halo` (clearing around a nucleus), `vessel` and `necrosis` (bool).
        stain: what the laboratory adds, standard normal, shape (n, 6): amounts of hematoxylin and eosin, their hues,
            brightness and colour of the light.
        size: image side in pixels.
    """
    pixels = np.empty((len(stain), size, size, 3), np.uint8)
    for start in range(0, len(pixels), drawing.CHUNK):
        part = slice(start, start + drawing.CHUNK)
        pixels[part] = _render_chunk(rng, {name: values[part] for name, values in look.items()}, stain[part], size)
    return pixels


def _render_chunk(rng: np.random.Generator, look: dict[str, np.ndarray], stain: np.ndarray, size: int) -> np.ndarray:
    n = len(stain)
    lines = [(rng.uniform(0, np.pi, n), rng.uniform(-0.2, 0.2, n), rng.uniform(-0.6, 0.6, n)) for _ in range(2)]
    calibre = rng.uniform(0.03, 0.06, n)
    to_vessel = np.abs(drawing.bent_line(size, *lines[0])[0]) - drawing.column(calibre)
    to_necrosis = drawing.bent_line(size, *lines[1])[0]
    has_vessel, is_necrotic = drawing.column(look["vessel"]), drawing.column(look["necrosis"])
    dead = is_necrotic * drawing.edge(to_necrosis, 0.015)
    lumen = has_vessel * drawing.edge(to_vessel, 0.008)
    wall = has_vessel * np.exp(-np.square(to_vessel / 0.018))

    nuclei, halo = np.zeros((2, n, size, size), np.float32)
    image, x, y, radius, elongation, angle, height = _scatter_nuclei(rng, look)
    alive = 1.0 - np.maximum(dead, lumen)[image, _pixel(y, size), _pixel(x, size)]
    kept = alive > 0.5
    image, x, y, radius, elongation, angle, height = (v[kept] for v in (image, x, y, radius, elongation, angle, height))
    drawing.stamp_ellipses(halo, image, x, y, radius=1.7 * radius, height=look["halo"][image], softness=0.3)
    beside = [_beside_line(rng, look, lines[0], n_mean, side) for n_mean, side in ((11, calibre), (11, -calibre))]
    beside.append(_beside_line(rng, look, lines[1], 34, np.zeros(n)))
    image, x, y, radius, elongation, angle, height = (
        np.concatenate(parts) for parts in zip((image, x, y, radius, elongation, angle, height), *beside, strict=True)
    )
    drawing.stamp_ellipses(
        nuclei, image, x, y, radius=radius, elongation=elongation, angle=angle, height=height, softness=0.2
    )

    fine, coarse, wide = (drawing.smooth_noise(rng, n, size, length) for length in (0.011, 0.03, 0.12))
    hematoxylin = nuclei * (1.0 + drawing.column(look["chromatin"]) * fine) + 0.04 + 0.03 * (dead + wall)
    eosin = (0.40 + 0.05 * fine + 0.07 * coarse + 0.05 * wide) * (1.0 - 0.75 * halo) + 0.22 * wall + 0.14 * dead
    eosin = eosin * (1.0 - 0.85 * lumen) + lumen * 0.55 * drawing.edge(-coarse, 0.15)  # red cells in the lumen
    eosin *= 1.0 - 0.5 * np.minimum(nuclei, 1.0)
    hematoxylin *= drawing.column(np.exp(0.16 * stain[:, 0]))
    eosin *= drawing.column(np.exp(0.18 * stain[:, 1]))
    channels = []
    for c in range(3):
        density = hematoxylin * drawing.column(HEMATOXYLIN[c] * (1.0 + 0.07 * stain[:, 2] * (c - 1)))
        density += eosin * drawing.column(EOSIN[c] * (1.0 + 0.10 * stain[:, 3] * (c - 1)))
        light = drawing.column(0.95 * np.exp(0.03 * stain[:, 4] + 0.02 * stain[:, 5] * (c - 1)))
        channels.append(
            light * np.exp(-np.maximum(density, 0.0)) + 0.012 * rng.standard_normal(density.shape, np.float32)
        )
    return drawing.to_uint8(*channels)


def _pixel(coordinate: np.ndarray, size: int) -> np.ndarray:
    return np.clip(((coordinate + 0.5) * size).astype(np.int64), 0, size - 1)


def _scatter_nuclei(rng: np.random.Generator, look: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Tumour nuclei anywhere: image, x, y, radius, elongation, angle and height of each."""
    image = drawing.repeat_images(look["n_nuclei"])
    k = len(image)
    x, y = rng.uniform(-0.54, 0.54, (2, k))
    return image, x, y, *_nucleus_shape(rng, look, image), rng.uniform(0, np.pi, k), _darkness(rng, look, image)


def _beside_line(
    rng: np.random.Generator, look: dict[str, np.ndarray], line: tuple[np.ndarray, ...], n_mean: int, side: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Endothelial nuclei along a vessel wall (side = +-calibre), or a palisade at the border of necrosis (side = 0)."""
    angle, offset, bend = line
    is_palisade = not side.any()
    flag = look["necrosis"] if is_palisade else look["vessel"]
    image = drawing.repeat_images(rng.poisson(n_mean, len(flag)) * flag)
    k = len(image)
    along = rng.uniform(-0.7, 0.7, k)
    across = side[image] + (rng.gamma(2.0, 0.035, k) if is_palisade else 0.012 * rng.standard_normal(k))
    across += offset[image] + bend[image] * along**2
    cosine, sine = np.cos(angle[image]), np.sin(angle[image])
    direction = angle[image] + np.arctan(2 * bend[image] * along) + (np.pi / 2 if is_palisade else 0.0)
    radius, elongation = _nucleus_shape(rng, look, image)
    x, y = along * cosine - across * sine, along * sine + across * cosine
    return image, x, y, 0.85 * radius, elongation + 0.8, direction, _darkness(rng, look, image)


def _nucleus_shape(rng: np.random.Generator, look: dict[str, np.ndarray], image: np.ndarray) -> tuple[np.ndarray, ...]:
    radius = look["radius"][image] * np.exp(look["spread"][image] * rng.standard_normal(len(image)))
    return np.clip(radius, 0.018, 0.09), np.clip(look["elongation"][image] + 0.2 * rng.random(len(image)), 1.0, 3.0)


def _darkness(rng: np.random.Generator, look: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    return look["dark"][image] * np.exp(0.6 * look["spread"][image] * rng.standard_normal(len(image)))
