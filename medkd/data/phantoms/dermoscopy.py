"""Simulated skin lesions and their dermoscopic images, shared by phantom-rare-skin and phantom-paired-skin.

A lesion is a list of structure strengths (about 0 absent, 1 pronounced), an outline and a skin tone. An image adds
what says nothing about the diagnosis: rotation, scale, position, light, colour cast, hair and the rim of the
instrument. The equations are in docs/phantoms.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from medkd.data.phantoms import drawing

STRUCTURES = (
    "pigment", "red", "network", "globules", "streaks", "vessels", "nests", "veil", "cysts", "ridges", "lacunae",
    "scar", "scale", "irregular",
)  # fmt: skip
ABSENT = -0.35  # mean strength of a structure that a diagnosis lacks: a few of its lesions show it all the same
N_HARMONICS = 4  # of the outline, orders 2 to 5
MELANIN, BLOOD, BLUE = (0.36, 0.76, 1.02), (0.06, 0.86, 0.62), (0.95, 0.62, 0.36)  # optical density in R, G, B
WHITE = (0.97, 0.93, 0.88)  # colour of keratin and scar


@dataclass(frozen=True)
class Lesions:
    """What the images of one lesion have in common; row i is lesion i.

    Attributes:
        strengths: shape (n, 14), columns as in `STRUCTURES`; negative means absent.
        outline: amplitude and phase of the outline's harmonics, shape (n, 2, 4).
        tone: melanin of the surrounding skin, optical density, shape (n,).
        radius: mean radius in image sides, shape (n,).
    """

    strengths: np.ndarray
    outline: np.ndarray
    tone: np.ndarray
    radius: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Lesions:
        """The lesions of these rows."""
        return Lesions(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def strength(self, name: str) -> np.ndarray:
        """Strength of one structure as drawn, 0 to 1.4, shape (n,)."""
        return np.clip(self.strengths[:, STRUCTURES.index(name)], 0.0, 1.4)


def profile(**strengths: float) -> np.ndarray:
    """Mean strengths of a diagnosis, `ABSENT` where not named, shape (14,)."""
    return np.array([strengths.pop(name, ABSENT) for name in STRUCTURES])


def draw_lesions(rng: np.random.Generator, means: np.ndarray, spread: float) -> Lesions:
    """Lesions whose strengths are normal around their diagnosis' profile.

    Args:
        rng: source of every draw.
        means: mean strengths of each lesion's diagnosis, shape (n, 14).
        spread: standard deviation of every strength; diagnoses overlap because of it.
    """
    n = len(means)
    strengths = means + spread * rng.standard_normal(means.shape)
    irregular = np.clip(strengths[:, STRUCTURES.index("irregular")], 0.0, 1.4)
    amplitude = np.abs(rng.normal(0.0, 0.045, (n, N_HARMONICS))) * (0.6 + irregular[:, None])
    outline = np.stack([amplitude, rng.uniform(0, 2 * np.pi, (n, N_HARMONICS))], axis=1)
    tone = np.clip(rng.lognormal(np.log(0.22), 0.45, n), 0.08, 0.7)
    return Lesions(strengths, outline, tone, rng.uniform(0.27, 0.40, n))


def polar(lesions: Lesions, x: np.ndarray, y: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the lesion's centre relative to its outline (1 on the outline), and the angle in radians."""
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for k in range(N_HARMONICS):
        amplitude, phase = (drawing.column(lesions.outline[:, i, k]) for i in (0, 1))
        outline += amplitude * np.cos((k + 2) * angle + phase)
    return np.hypot(x, y) / (drawing.column(lesions.radius * scale) * outline), angle


def render(rng: np.random.Generator, lesions: Lesions, size: int) -> np.ndarray:
    """One dermoscopic image per row of `lesions` as uint8 RGB, shape (n, size, size, 3)."""
    pixels = np.empty((len(lesions.tone), size, size, 3), np.uint8)
    for start in range(0, len(pixels), drawing.CHUNK):
        part = slice(start, start + drawing.CHUNK)
        pixels[part] = _render_chunk(rng, lesions.take(part), size)
    return pixels


def _render_chunk(rng: np.random.Generator, lesions: Lesions, size: int) -> np.ndarray:
    n = len(lesions.tone)
    strength = {name: drawing.column(lesions.strength(name)) for name in STRUCTURES}
    scale, turn = np.exp(rng.normal(0.0, 0.20, n)), rng.uniform(0, 2 * np.pi, n)
    at_x, at_y = rng.normal(0.0, 0.05, (2, n))
    grid_x, grid_y = drawing.pixel_grid(size)
    x0, y0 = grid_x - drawing.column(at_x), grid_y - drawing.column(at_y)
    cosine, sine = drawing.column(np.cos(turn)), drawing.column(np.sin(turn))
    x, y = x0 * cosine + y0 * sine, y0 * cosine - x0 * sine
    relative, angle = polar(lesions, x, y, scale)
    fine, small, middle, other, wide = (
        drawing.smooth_noise(rng, n, size, s) for s in (0.012, 0.026, 0.045, 0.045, 0.11)
    )
    relative = relative + 0.04 * middle
    inside = drawing.edge(relative - 1.0, drawing.column(rng.uniform(0.02, 0.07, n)))

    def blobs(count: np.ndarray, low: float, high: float, reach: float, softness: float) -> np.ndarray:
        field = np.zeros((n, size, size), np.float32)
        image = drawing.repeat_images(rng.poisson(np.maximum(count, 0.0)))
        radius = lesions.radius[image] * scale[image] * reach * np.sqrt(rng.random(len(image)))
        theta = rng.uniform(0, 2 * np.pi, len(image))
        drawing.stamp_ellipses(
            field, image, at_x[image] + radius * np.cos(theta), at_y[image] + radius * np.sin(theta),
            radius=scale[image] * rng.uniform(low, high, len(image)), elongation=1.0 + 0.5 * rng.random(len(image)),
            angle=theta, height=rng.uniform(0.6, 1.0, len(image)), softness=softness,
        )  # fmt: skip
        return field

    # structures: a stronger one has more blobs, or more contrast where it is a field
    shift = 0.010 + 0.016 * strength["irregular"]
    net = drawing.hexagonal_net(
        x, y, np.zeros(n), scale * rng.uniform(0.050, 0.066, n), (shift * middle, shift * other)
    )
    globules = blobs(34 * lesions.strength("globules"), 0.013, 0.026, 0.95, 0.25)
    nests = blobs(7 * lesions.strength("nests"), 0.035, 0.065, 0.85, 0.25)
    cysts = blobs(26 * lesions.strength("cysts"), 0.009, 0.018, 0.9, 0.4)
    lacunae = blobs(15 * lesions.strength("lacunae"), 0.035, 0.070, 0.8, 0.2)
    rays = np.maximum(np.cos(drawing.column(rng.integers(14, 24, n)) * angle + 1.5 * middle), 0.0)
    streaks = rays * np.exp(-np.square((relative - 1.02) / 0.16))
    vessels = drawing.ridges(other + 0.35 * small, 0.16)
    furrows = drawing.ridges(small, 0.35)
    patch = drawing.edge(0.5 - wide, 0.2)
    centre = np.exp(-np.square(relative / 0.55))

    outer = 1.0 - np.minimum(strength["scar"], 1.0) * centre
    melanin = 0.52 * strength["pigment"] * (1.0 + 0.18 * middle + 0.45 * strength["irregular"] * wide)
    melanin = melanin * outer + 0.70 * strength["network"] * outer * (net - 0.62)
    melanin += 0.60 * globules + 0.28 * strength["ridges"] * (furrows - 0.4)
    melanin = np.maximum(melanin, 0.0) * inside + 0.45 * strength["streaks"] * streaks + drawing.column(lesions.tone)
    blood = 0.10 + 0.03 * wide + inside * (0.22 * strength["red"] * (1.0 + 0.25 * middle) + 0.75 * lacunae)
    blood += 0.42 * strength["vessels"] * vessels * drawing.edge(relative - 1.1, 0.1)
    blue = inside * (0.50 * nests + 0.42 * strength["veil"] * patch + 0.10 * lacunae)
    keratin = inside * (0.60 * cysts + 0.70 * strength["scar"] * centre * (0.8 + 0.2 * fine))
    keratin += inside * strength["scale"] * 0.62 * drawing.edge(0.35 - fine - 0.6 * wide, 0.25)
    channels = _densities_to_channels(rng, melanin, blood, blue, np.clip(keratin, 0.0, 0.9))
    return drawing.to_uint8(*_nuisance(rng, channels, size))


def _densities_to_channels(
    rng: np.random.Generator, melanin: np.ndarray, blood: np.ndarray, blue: np.ndarray, keratin: np.ndarray
) -> list[np.ndarray]:
    light = np.exp(rng.normal(0.0, 0.10, len(melanin)))
    channels = []
    for c in range(3):
        cast = drawing.column(0.98 * light * np.exp(rng.normal(0.0, 0.05, len(melanin))))
        density = MELANIN[c] * melanin + BLOOD[c] * blood + BLUE[c] * blue
        channels.append(cast * ((1.0 - keratin) * np.exp(-density) + keratin * WHITE[c]))
    return channels


def _nuisance(rng: np.random.Generator, channels: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Uneven light, hair, the dark rim of the instrument and camera noise."""
    n = len(channels[0])
    x, y = drawing.pixel_grid(size)
    slope_x, slope_y = (drawing.column(rng.normal(0.0, 0.16, n)) for _ in range(2))
    shade = 1.0 + slope_x * x + slope_y * y
    rim = drawing.column(np.where(rng.random(n) < 0.35, rng.uniform(0.48, 0.62, n), 1.0))
    shade = shade * (0.06 + 0.94 * drawing.edge(np.hypot(x, y) - rim, 0.012))
    hair = np.zeros((n, size, size), np.float32)
    image = drawing.repeat_images(rng.poisson(5.0, n) * (rng.random(n) < 0.25))
    start, bow = rng.uniform(-0.6, 0.6, (len(image), 1, 2)), rng.normal(0.0, 0.10, (len(image), 1, 2))
    heading = rng.uniform(0, 2 * np.pi, len(image))
    reach = np.stack([np.cos(heading), np.sin(heading)], axis=1)[:, None] * 1.1
    control = np.concatenate([start, start + 0.5 * reach + bow, start + reach], axis=1)
    drawing.stamp_curves(hair, image, control, radius=rng.uniform(0.005, 0.010, len(image)), height=0.75)
    shade = shade * (1.0 - hair)
    return [
        channel * shade + tint * hair + 0.012 * rng.standard_normal(shade.shape, np.float32)
        for channel, tint in zip(channels, (0.16, 0.11, 0.08), strict=True)
    ]
