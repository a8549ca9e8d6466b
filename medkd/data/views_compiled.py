"""The views of `medkd.data.views` on a CPU, one image after the other while it lies in the cache: compiled by numba.

A batch of torch operations writes and reads the whole batch some sixty times; here an image is read once, and cores
share a batch without waiting for each other. `tests/data/test_views.py` compares the two, and both with torchvision.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import torch
from numba import float32, int32, int64
from torch import Tensor

from medkd.compiled import keep_compiled
from medkd.data.views import CONTRAST, HUE, LUMA, SATURATION, ViewDraw

keep_compiled(__file__)
_compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


def make_views(images: Tensor, draw: ViewDraw, radius: int) -> Tensor:
    """One view of each image, as `Augment.apply` makes it.

    Args:
        images: uint8, shape (n, size, size, 3), on the CPU.
        draw: crops inside the images, and the other numbers of each view.
        radius: of the blur, whole pixels, below size.

    Returns:
        Shape (n, 3, size, size), float32 in [0, 1], channels last.
    """
    n, size = images.shape[:2]
    views = torch.empty(n, size, size, 3)
    arrays = [views.numpy(), *(each.cpu().contiguous().numpy() for each in (images, *draw))]
    n_parts = max(1, min(n, torch.get_num_threads()))
    cuts = np.linspace(0, n, n_parts + 1).astype(int)
    first, *others = ([array[a:b] for array in arrays] for a, b in zip(cuts[:-1], cuts[1:], strict=True))
    # these threads never run operations of torch: each would get OpenMP threads of its own, which slow later steps down
    waiting = [_threads(n_parts - 1).submit(_make_part, *part, radius) for part in others]
    _make_part(*first, radius)
    for part in waiting:
        part.result()
    return views.permute(0, 3, 1, 2)


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="views")


@_compiled
def _make_part(out, images, box, flip, factors, order, grey, sigma, radius):
    size = images.shape[1]
    x, spare = np.empty((3, size, size), np.float32), np.empty((3, size, size), np.float32)
    for i in range(len(images)):
        _crop_and_flip(x, images[i], box[i], flip[i])
        for step in range(order.shape[1]):
            _jitter(x, order[i, step], factors[i, order[i, step]])
        if grey[i]:
            for row in range(size):
                for column in range(size):
                    luma = _luma(x[0, row, column], x[1, row, column], x[2, row, column])
                    x[0, row, column] = x[1, row, column] = x[2, row, column] = luma
        if sigma[i] > 0:
            _blur(x, spare, sigma[i], radius)
        for row in range(size):
            for column in range(size):
                for channel in range(3):
                    out[i, row, column, channel] = x[channel, row, column]


@_compiled
def _luma(red, green, blue):
    return red * float32(LUMA[0]) + green * float32(LUMA[1]) + blue * float32(LUMA[2])


@_compiled
def _places(start, length, size, flipped):
    """Pixel before each of `size` sampling places in a crop, and the share of the pixel after it."""
    first, share = np.empty(size, np.int64), np.empty(size, np.float32)
    for k in range(size):
        place = float32((size - 1 - k if flipped else k) + 0.5) / float32(size) * length - float32(0.5)
        place = min(max(place, float32(0)), length - float32(1)) + start
        first[k] = max(0, min(int64(place), size - 1))
        share[k] = place - float32(first[k])
    return first, share


@_compiled
def _crop_and_flip(x, image, box, flip):
    size = len(image)
    rows, row_shares = _places(box[0], box[2], size, flip[0])
    columns, column_shares = _places(box[1], box[3], size, flip[1])
    line = np.empty(3 * size + 3, np.float32)  # the last pixel twice
    pixels = image.reshape(size, 3 * size)
    unit = float32(1 / 255)
    for row in range(size):
        after = row_shares[row] * unit
        before = unit - after
        upper, lower = pixels[rows[row]], pixels[min(rows[row] + 1, size - 1)]
        for k in range(3 * size):
            line[k] = upper[k] * before + lower[k] * after
        line[3 * size :] = line[3 * size - 3 : 3 * size]
        for column in range(size):
            k, share = 3 * columns[column], column_shares[column]
            for channel in range(3):
                x[channel, row, column] = line[k + channel] + (line[k + channel + 3] - line[k + channel]) * share


@_compiled
def _jitter(x, kind, factor):
    """Brightness, contrast, saturation or hue, in place: x <- clamp(factor x + (1 - factor) r) but for the hue."""
    if kind == HUE:
        if factor != 0:
            _shift_hue(x, factor)
        return
    if factor == 1:
        return
    one, zero, size = float32(1), float32(0), x.shape[1]
    mean = zero
    if kind == CONTRAST:
        for row in range(size):
            total = zero
            for column in range(size):
                total += _luma(x[0, row, column], x[1, row, column], x[2, row, column])
            mean += total / float32(size)
        mean /= float32(size)
    offset, grey_share = (one - factor) * mean, one - factor if kind == SATURATION else zero
    for row in range(size):
        for column in range(size):
            red, green, blue = x[0, row, column], x[1, row, column], x[2, row, column]
            shift = offset + grey_share * _luma(red, green, blue)
            x[0, row, column] = min(max(red * factor + shift, zero), one)
            x[1, row, column] = min(max(green * factor + shift, zero), one)
            x[2, row, column] = min(max(blue * factor + shift, zero), one)


@_compiled
def _shift_hue(x, turns):
    """Hue moved by `turns` at the same HSV saturation and value."""
    zero, one, four, six = float32(0), float32(1), float32(4), float32(6)
    start = six * (one + turns)  # a whole turn more, so that what is cut to an integer is not negative
    for row in range(x.shape[1]):
        reds, greens, blues = x[0, row], x[1, row], x[2, row]
        for column in range(x.shape[2]):
            red, green, blue = reds[column], greens[column], blues[column]
            value = max(max(red, green), blue)
            chroma = value - min(min(red, green), blue)
            from_green = blue - red if value == green else red - green
            base = float32(2) if value == green else four
            difference = green - blue if value == red else from_green
            base = zero if value == red else base
            sixth = difference / max(chroma, float32(1e-30)) + base + start
            reds[column] = value - chroma * _share(sixth + float32(5))
            greens[column] = value - chroma * _share(sixth + float32(3))
            blues[column] = value - chroma * _share(sixth + one)


@_compiled
def _share(place):
    """How far a channel is below the largest one: two sixths of the circle 0, two 1, linear between."""
    place -= float32(6) * float32(int32(place * float32(1 / 6)))
    return min(max(min(place, float32(4) - place), float32(0)), float32(1))


@_compiled
def _blur(x, spare, sigma, radius):
    """Gaussian blur in place; edges are mirrored."""
    size = x.shape[1]
    taps = np.empty(radius + 1, np.float32)
    total = float32(0)
    for k in range(radius + 1):
        taps[k] = math.exp(-0.5 * (k / sigma) ** 2)
        total += taps[k] if k == 0 else 2 * taps[k]
    taps /= total
    padded = np.empty(size + 2 * radius, np.float32)
    for channel in range(3):
        for row in range(size):
            target = spare[channel, row]
            source = x[channel, row]
            for column in range(size):
                target[column] = taps[0] * source[column]
            for k in range(1, radius + 1):
                above, below = x[channel, abs(row - k)], x[channel, size - 1 - abs(size - 1 - row - k)]
                for column in range(size):
                    target[column] += taps[k] * (above[column] + below[column])
        for row in range(size):
            source, target = spare[channel, row], x[channel, row]
            for column in range(size):
                padded[radius + column] = source[column]
            for k in range(1, radius + 1):
                padded[radius - k] = source[k]
                padded[radius + size - 1 + k] = source[size - 1 - k]
            for column in range(size):
                target[column] = taps[0] * padded[radius + column]
            for k in range(1, radius + 1):
                for column in range(size):
                    target[column] += taps[k] * (padded[radius + column - k] + padded[radius + column + k])
