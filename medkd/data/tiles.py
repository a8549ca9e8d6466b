"""Patches of regions of interest: where they are cut, as Pathomic Fusion does with its 1024-pixel regions."""

from __future__ import annotations

from medkd.data.decoding import Box
from medkd.errors import DataError, ParameterError

PATCH, STRIDE = 512, 256
"""Nine patches of a 1024-pixel region, at offsets 0, 256 and 512 in both directions."""


def tile_boxes(width: int, height: int, *, patch: int = PATCH, stride: int = STRIDE, name: str = "region") -> list[Box]:
    """Boxes of square patches over a region, row by row; the last of a row or column ends at the border.

    Args:
        width: of the region, px.
        height: of the region, px.
        patch: side of a patch, px.
        stride: distance of neighbouring patches, px.
        name: of the region, for the message.

    Raises:
        ParameterError: if `patch` or `stride` is no whole number of pixels.
        DataError: if the region is smaller than a patch.
    """
    for parameter, value in (("patch", patch), ("stride", stride)):
        if int(value) != value or value < 1:
            raise ParameterError(f"{parameter} = {value} is no length in pixels; give a whole number, 1 or more")
    if min(width, height) < patch:
        raise DataError(f"{name} is {width}x{height} px, smaller than a patch of {patch} px; use larger regions")
    lefts, tops = (sorted({*range(0, side - patch + 1, stride), side - patch}) for side in (width, height))
    return [(left, top, left + patch, top + patch) for top in tops for left in lefts]
