"""Batched augmentation on the device: uint8 images in, float views in [0, 1] out, every image with its own draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import DataError, ParameterError
from medkd.transfer import sent

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
CROP_TRIES = 10
BLUR_REFERENCE_SIZE = 224  # px; blur_sigma is given for images of this size
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2 as torchvision rounds it
Range = tuple[float, float]


class ViewDraw(NamedTuple):
    """The random numbers of one view of n images."""

    box: Tensor  # crop as top, left, height, width in whole pixels, (n, 4), float32
    flip: Tensor  # vertical, horizontal; (n, 2), bool
    factors: Tensor  # brightness, contrast, saturation (1 is neutral), hue shift in turns (0 is neutral); (n, 4)
    order: Tensor  # which of the four comes first, second, ...; (n, 3), or (n, 4) with hue; int64
    grey: Tensor  # the image loses its colour, (n,), bool
    sigma: Tensor  # standard deviation of the blur in pixels, 0 for none, (n,)


@dataclass(frozen=True)
class Augment:
    """Random crop, colour jitter, grey, blur and flips, with torchvision's distributions.

    Attributes:
        crop_scale: share of the image's area that the crop has, low and high, in (0, 1].
        crop_ratio: width / height of the crop, low (at most 1) and high (at least 1).
        brightness: factor drawn from 1 +- this. contrast, saturation: likewise.
        hue: shift drawn from +- this, turns, 0 to 0.5.
        jitter_p: probability that the colours of an image are jittered.
        grayscale_p: probability of a grey image.
        blur_p: probability of a Gaussian blur.
        blur_sigma: its standard deviation, low and high, px of a 224 px image; smaller images get less in proportion.
        hflip_p: probability of a left-right flip. vflip_p: of an upside-down flip.
    """

    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0
    jitter_p: float = 0.8
    grayscale_p: float = 0.0
    blur_p: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    hflip_p: float = 0.5
    vflip_p: float = 0.0

    def __post_init__(self) -> None:
        scale, ratio, sigma = self.crop_scale, self.crop_ratio, self.blur_sigma
        shares = ("jitter_p", "grayscale_p", "blur_p", "hflip_p", "vflip_p", "brightness", "contrast", "saturation")
        checks = [(name, 0 <= getattr(self, name) <= 1, "between 0 and 1") for name in shares] + [
            ("hue", 0 <= self.hue <= 0.5, "between 0 and 0.5 turns"),
            ("crop_scale", 0 < scale[0] <= scale[1] <= 1, "two ascending shares of the area, in (0, 1]"),
            ("crop_ratio", 0 < ratio[0] <= 1 <= ratio[1], "two numbers above 0 with 1 between them"),
            ("blur_sigma", 0 < sigma[0] <= sigma[1], "two ascending numbers above 0"),
        ]
        for name, is_fine, expected in checks:
            if not is_fine:
                raise ParameterError(f"{name}={getattr(self, name)} must be {expected}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each image.

        Args:
            images: uint8 RGB, square, shape (n, size, size, 3), on any device.
            generator: source of every random number; on the CPU it gives the same views for every device.

        Returns:
            Views in [0, 1], shape (n, 3, size, size), float32, channels last, on the device of `images`.

        Raises:
            DataError: if the images have another shape or type.
        """
        _check_images(images)
        return self.apply(images, self.draw(*images.shape[:2], generator))

    def draw(self, n: int, size: int, generator: torch.Generator) -> ViewDraw:
        """Random numbers for n images of `size` px, on the generator's device."""
        device = generator.device

        def chance(probability: float) -> Tensor:
            return torch.rand(n, generator=generator, device=device) < probability

        box = draw_crops(n, size, self.crop_scale, self.crop_ratio, generator)
        flip = torch.stack((chance(self.vflip_p), chance(self.hflip_p)), 1)
        spread = torch.tensor((self.brightness, self.contrast, self.saturation, self.hue), device=device)
        neutral = torch.tensor((1.0, 1.0, 1.0, 0.0), device=device)
        unit = torch.rand(n, 4, generator=generator, device=device) * 2 - 1
        factors = neutral + chance(self.jitter_p)[:, None] * spread * unit
        order = torch.rand(n, 4 if self.hue else 3, generator=generator, device=device).argsort(1)
        grey = chance(self.grayscale_p)
        low, high = (sigma * size / BLUR_REFERENCE_SIZE for sigma in self.blur_sigma)
        sigma = low + (high - low) * torch.rand(n, generator=generator, device=device)
        return ViewDraw(box, flip, factors, order, grey, sigma * chance(self.blur_p))

    def apply(self, images: Tensor, draw: ViewDraw) -> Tensor:
        """The views that these numbers describe; arguments and result as in a call."""
        size = images.shape[1]
        # three standard deviations of the widest blur: a radius that no draw changes
        radius = min(math.ceil(3 * self.blur_sigma[1] * size / BLUR_REFERENCE_SIZE), size - 1)
        if images.device.type == "cpu":
            from medkd.data.views_compiled import make_views  # numba takes half a second

            return make_views(images, draw, radius)
        return batched_views(images, draw, radius)


HYBRID = Augment()
MOCO_V2 = Augment(hue=0.1, grayscale_p=0.2)
# 512 of 1024 px in the published run; here a crop of at least half the area keeps small images legible
GMCD = Augment((0.5, 1), brightness=0.1, contrast=0.1, saturation=0.05, hue=0.01, jitter_p=1, blur_p=0, vflip_p=0.5)


def plain_view(images: Tensor) -> Tensor:
    """Images as they are: uint8 (n, size, size, 3) -> float32 (n, 3, size, size) in [0, 1], channels last.

    Raises:
        DataError: if the images have another shape or type.
    """
    _check_images(images)
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255.0)


def batched_views(images: Tensor, draw: ViewDraw, radius: int) -> Tensor:
    """One view of each image by operations on the whole batch, which is what suits a GPU.

    Args:
        images: uint8, shape (n, size, size, 3).
        draw: crops inside the images, and the other numbers of each view.
        radius: of the blur, whole pixels, below size.

    Returns:
        Shape (n, 3, size, size), float32 in [0, 1], channels last.
    """
    views = _crop_and_flip(plain_view(images), draw.box, draw.flip)
    _jitter(views, draw.factors, draw.order)
    grey = _rows(draw.grey, views.device)
    if len(grey):
        views[grey] = _luma(views[grey]).unsqueeze(1).expand(-1, 3, -1, -1)
    blurred = _rows(draw.sigma > 0, views.device)
    if len(blurred):
        views[blurred] = _blur(views[blurred], sent(draw.sigma, views.device)[blurred], radius)
    return views.contiguous(memory_format=torch.channels_last)


def draw_crops(n: int, size: int, scale: Range, ratio: Range, generator: torch.Generator) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop for n square images of `size` px, as in `ViewDraw.box`.

    Area and log of the side ratio are uniform; of ten tries the first that fits counts, else the whole image.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)

    area = size**2 * uniform(*scale, n, CROP_TRIES)
    side_ratio = uniform(math.log(ratio[0]), math.log(ratio[1]), n, CROP_TRIES).exp()
    sides = torch.stack((area / side_ratio, area * side_ratio), 2).sqrt_().round_()  # height, width
    fits = ((sides >= 1) & (sides <= size)).all(2)
    sides = sides[torch.arange(n, device=sides.device), fits.int().argmax(1)]
    sides = torch.where(fits.any(1, keepdim=True), sides, float(size))
    corner = (uniform(0.0, 1.0, n, 2) * (size - sides + 1)).floor_().minimum(size - sides)
    return torch.cat((corner, sides), 1)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise DataError(
            f"views are made from square uint8 RGB images, shape (n, size, size, 3); got {images.dtype} of shape "
            f"{tuple(images.shape)}; pass what ImageSource.load gives, as a tensor"
        )


def _rows(mask: Tensor, device: torch.device) -> Tensor:
    """Numbers of the true rows; counted where the mask is, so that a CPU generator never waits for the GPU."""
    return sent(mask.nonzero()[:, 0], device)


def _crop_and_flip(x: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Each box of (n, 3, size, size) enlarged to the whole image, bilinear, and flipped, in one sampling."""
    n, size = x.shape[0], x.shape[2]
    start, length = (part[:, :, None] for part in sent(box, x.device).split(2, dim=1))  # rows and columns, (n, 2, 1)
    share = (torch.arange(size, device=x.device) + 0.5) / size
    share = torch.where(sent(flip, x.device)[:, :, None], 1 - share, share)
    # not beyond the centres of the box's outer pixels: what lies outside the crop must not bleed in
    pixel = (share * length - 0.5).clamp_(min=0).minimum(length - 1) + start
    rows, columns = ((2 * pixel + 1) / size - 1).unbind(1)  # grid_sample's units, -1 to 1
    grid = torch.empty(n, size, size, 2, device=x.device)
    grid[..., 0], grid[..., 1] = columns[:, None, :], rows[:, :, None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _luma(x: Tensor) -> Tensor:
    """Grey value of each pixel, (n, 3, h, w) -> (n, h, w)."""
    return (x[:, 0] * LUMA[0]).add_(x[:, 1], alpha=LUMA[1]).add_(x[:, 2], alpha=LUMA[2])


def _jitter(x: Tensor, factors: Tensor, order: Tensor) -> None:
    """Brightness, contrast, saturation and hue in each image's own order, in place.

    The first three are all x <- clamp(f x + (1 - f) r) with r = 0, the image's mean grey or the pixel's grey, so one
    pass serves a batch in which each image is at another of them.
    """
    for operation in order.unbind(1):
        factor = factors.gather(1, operation[:, None])[:, 0]
        shifted = _rows((operation == HUE) & (factor != 0), x.device)
        factor = sent(torch.where(operation == HUE, 1.0, factor), x.device)[:, None, None]
        kind = sent(operation, x.device)[:, None, None]
        grey = _luma(x)
        pixel_share, mean_share = (1 - factor) * (kind == SATURATION), (1 - factor) * (kind == CONTRAST)
        offset = grey.mean((1, 2), keepdim=True).mul(mean_share) + grey.mul_(pixel_share)
        x.mul_(factor[:, None]).add_(offset[:, None]).clamp_(0, 1)
        if len(shifted):
            x[shifted] = _shift_hue(x[shifted], sent(factors[:, HUE], x.device)[shifted])


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Hue moved by (n,) turns at the same HSV saturation and value.

    Signs and interpolation stand in for comparisons and choices, which torch does several times slower on a CPU.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)
    not_red, not_green = (value - red).sign_(), (value - green).sign_()  # 0 where the channel is the largest, else 1
    sixth = torch.lerp(green - blue, torch.lerp(blue - red, red - green, not_green), not_red)
    sixth.div_(chroma.clamp(min=torch.finfo(x.dtype).tiny))  # 0 / tiny where there is no colour
    sixth.add_(not_green.add_(1).mul_(not_red), alpha=2).add_(6 * turns[:, None, None])
    shifted = torch.empty_like(x)
    # a channel is at `value` for two sixths of the circle, at its minimum for two, and linear between
    for channel, start in enumerate((5.0, 3.0, 1.0)):
        place = sixth + start
        place -= (place / 6).floor_().mul_(6)  # remainder() is several times slower
        torch.sub(value, place.minimum(4 - place).clamp_(0, 1).mul_(chroma), out=shifted[:, channel])
    return shifted


def _blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of (n, 3, h, w) with each image's own sigma (n,), px; the edges are mirrored."""
    taps = torch.exp(-0.5 * (torch.arange(radius + 1, device=x.device) / sigma[:, None]) ** 2)
    taps = taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])
    weights = [tap[:, None, None, None] for tap in taps.unbind(1)]
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(x, padding, mode="reflect"), x.shape[axis]
        x = x * weights[0]
        for step in range(1, radius + 1):
            both = padded.narrow(axis, radius - step, size) + padded.narrow(axis, radius + step, size)
            x.addcmul_(weights[step], both)
    return x
