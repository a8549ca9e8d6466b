"""Drawing for the simulated cohorts: whole stacks of images at once, in NumPy.

Lengths are fractions of the image side, so that a phantom looks the same at every `image_size`; coordinates run
from -0.5 (left, top) to 0.5 (right, bottom). Per-image numbers have shape (n,), fields (n, size, size), all float32.
"""

from __future__ import annotations

import numpy as np

from medkd.errors import ParameterError

CHUNK = 128  # images drawn at once: the fields of a chunk stay in the processor's cache


def check_settings(name: str, **settings: tuple[float, float, float]) -> None:
    """Refuse settings out of range.

    Args:
        name: the cohort, for the message.
        settings: setting name -> (value, lowest, highest allowed).

    Raises:
        ParameterError: for the first value out of its range.
    """
    for setting, (value, low, high) in settings.items():
        if not low <= value <= high:
            raise ParameterError(f"{setting} of {name} must lie between {low} and {high}, got {value}; choose it there")


def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x (to the right) and y (downwards) of the pixel centres, each (1, size, size)."""
    line = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def column(values: np.ndarray) -> np.ndarray:
    """Per-image numbers (n,) as (n, 1, 1) float32, to multiply fields with."""
    return np.asarray(values, np.float32)[:, None, None]


def smooth_noise(rng: np.random.Generator, n: int, size: int, length: float) -> np.ndarray:
    """Gaussian random fields of mean 0 and variance 1, shape (n, size, size).

    White noise filtered with a Gaussian of standard deviation `length` (fraction of the image side); the
    correlation of two pixels at distance d is exp(-d^2 / (4 length^2)), periodic at the borders.
    """
    frequency = np.fft.fftfreq(size, 1.0 / size)  # cycles per image side
    squared = frequency[:, None] ** 2 + frequency[None, : size // 2 + 1] ** 2
    transfer = np.exp(-2.0 * (np.pi * length) ** 2 * squared)
    one_sided = np.exp(-4.0 * (np.pi * length * frequency) ** 2).sum()  # power of the separable filter along one axis
    transfer *= size / one_sided  # unit variance: total power is one_sided^2 over size^2 frequencies
    white = rng.standard_normal((n, size, size), dtype=np.float32)
    return np.fft.irfft2(np.fft.rfft2(white) * transfer.astype(np.float32), s=(size, size)).astype(np.float32)


def edge(distance: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Soft step from 1 (distance << 0, inside) to 0 (distance >> 0), logistic with scale `width`."""
    scaled = np.clip(distance / width, -30.0, 30.0)
    return 1.0 / (1.0 + np.exp(scaled))


def ridges(field: np.ndarray, width: float) -> np.ndarray:
    """Curved lines, 1 on the zero level of a unit-variance field and falling off as a Gaussian of scale `width`."""
    return np.exp(-0.5 * np.square(field / width))


def bent_line(size: int, angle: np.ndarray, offset: np.ndarray, bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to a parabola-shaped line, and the position along it; both (n, size, size).

    Args:
        size: image side in pixels.
        angle: direction of the line in radians, shape (n,).
        offset: distance of its middle from the image centre, shape (n,).
        bend: curvature; the line departs by bend * t^2 at position t.
    """
    x, y = pixel_grid(size)
    cosine, sine = column(np.cos(angle)), column(np.sin(angle))
    along = x * cosine + y * sine
    return y * cosine - x * sine - column(offset) - column(bend) * np.square(along), along


def hexagonal_net(
    x: np.ndarray, y: np.ndarray, angle: np.ndarray, period: np.ndarray, warp: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """A net of round holes in a hexagonal lattice: about 1 on the strands, 0 in the holes, shape (n, size, size).

    Args:
        x: horizontal coordinates, (n or 1, size, size).
        y: vertical coordinates, same shape.
        angle: orientation of the lattice in radians, (n,).
        period: distance of neighbouring rows of holes, (n,).
        warp: displacement fields in x and y, each (n, size, size); they make the net irregular.
    """
    waves = np.zeros(np.broadcast_shapes(x.shape, warp[0].shape), np.float32)
    for third in range(3):
        theta = angle + third * np.pi / 3.0
        wave_x, wave_y = (column(2 * np.pi / period * part) for part in (np.cos(theta), np.sin(theta)))
        waves += np.cos(wave_x * (x + warp[0]) + wave_y * (y + warp[1]))
    return 1.0 - (waves + 1.5) / 4.5  # the sum of three such waves lies between -1.5 (strands) and 3 (holes)


def stamp_ellipses(
    canvas: np.ndarray,
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    radius: np.ndarray,
    elongation: np.ndarray | float = 1.0,
    angle: np.ndarray | float = 0.0,
    height: np.ndarray | float = 1.0,
    softness: float = 0.15,
) -> None:
    """Draw filled ellipses into `canvas` in place, keeping the larger value where they meet.

    Each ellipse is computed in a window of its own, so the cost is the number of ellipses times the window.

    Args:
        canvas: fields to draw into, (n, size, size), float32.
        image: which image each of the k ellipses goes to, (k,), int.
        x: horizontal centre, (k,).
        y: vertical centre, (k,).
        radius: geometric mean of the half-axes, (k,).
        elongation: long over short axis, >= 1.
        angle: direction of the long axis in radians.
        height: value inside.
        softness: width of the soft edge relative to the radius.
    """
    if not len(image):
        return
    n, size, _ = canvas.shape
    shape = image.shape
    radius, elongation, angle, height = (
        np.broadcast_to(np.asarray(value, np.float32), shape)[:, None, None] * np.float32(1)
        for value in (radius * size, elongation, angle, height)
    )
    half = int(np.ceil((radius * np.sqrt(elongation)).max() * (1.0 + 3.0 * softness))) + 1
    pad = half + 1
    padded = np.zeros((n, size + 2 * pad, size + 2 * pad), np.float32)
    padded[:, pad:-pad, pad:-pad] = canvas
    centre_x = np.clip((np.asarray(x, np.float32) + 0.5) * size - 0.5, -1, size)
    centre_y = np.clip((np.asarray(y, np.float32) + 0.5) * size - 0.5, -1, size)
    first_x, first_y = np.rint(centre_x).astype(np.int64), np.rint(centre_y).astype(np.int64)
    window = np.arange(-half, half + 1)
    dx = (window[None, None, :] + (first_x - centre_x)[:, None, None]).astype(np.float32)
    dy = (window[None, :, None] + (first_y - centre_y)[:, None, None]).astype(np.float32)
    cosine, sine, stretch = np.cos(angle), np.sin(angle), np.sqrt(elongation)
    long, short = (dx * cosine + dy * sine) / stretch, (dy * cosine - dx * sine) * stretch
    distance = np.sqrt(np.square(long) + np.square(short)) / radius - 1.0
    # half a pixel of softness at least: an ellipse much smaller than a pixel then fades instead of flickering
    values = height * edge(distance, np.maximum(softness, 0.5 / radius) / 2.0)
    rows = first_y[:, None, None] + window[None, :, None] + pad
    columns = first_x[:, None, None] + window[None, None, :] + pad
    flat = (image[:, None, None] * padded.shape[1] + rows) * padded.shape[2] + columns
    np.maximum.at(padded.reshape(-1), flat.reshape(-1), values.reshape(-1))
    canvas[:] = padded[:, pad:-pad, pad:-pad]


def stamp_curves(
    canvas: np.ndarray, image: np.ndarray, control: np.ndarray, *, radius: np.ndarray, height: np.ndarray | float = 1.0
) -> None:
    """Draw quadratic Bezier curves into `canvas` in place (hair, vessels), as discs half a pixel apart or less.

    Args:
        canvas: fields to draw into, (n, size, size), float32.
        image: which image each of the k curves goes to, (k,), int.
        control: start, control and end points, (k, 3, 2), x then y.
        radius: half the thickness, (k,).
        height: value on the curve, (k,) or a number.
    """
    if not len(image):
        return
    reach = np.linalg.norm(np.diff(control, axis=1), axis=2).sum(axis=1).max()
    n_points = int(np.ceil(reach * canvas.shape[1])) + 2
    t = np.linspace(0.0, 1.0, n_points)[None, :, None]
    points = (1 - t) ** 2 * control[:, :1] + 2 * t * (1 - t) * control[:, 1:2] + t**2 * control[:, 2:]
    height = np.broadcast_to(np.asarray(height, np.float32), image.shape)
    inside = (np.abs(points) < 0.55).all(axis=2)
    curve = np.nonzero(inside)[0]
    x, y = points[inside].T
    stamp_ellipses(canvas, image[curve], x, y, radius=radius[curve], height=height[curve])


def repeat_images(counts: np.ndarray) -> np.ndarray:
    """Image number of each object when image i has counts[i] of them, shape (counts.sum(),), int64."""
    return np.repeat(np.arange(len(counts)), counts)


def to_uint8(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Three channels of intensity 0..1 as uint8 RGB, shape (n, size, size, 3)."""
    return np.rint(np.clip(np.stack([red, green, blue], axis=-1), 0.0, 1.0) * 255.0).astype(np.uint8)
