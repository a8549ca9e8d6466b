"""One image file as squares of RGB, whatever its format, depth, colours and orientation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

UNREADABLE = Exception
"""What Pillow raises on a damaged file: whatever its format's code comes upon (OSError, SyntaxError, struct.error)."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM")
"""What Pillow may take a file for, whatever its name: others are no rasters, or make it start a program (EPS)."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that the tag of a camera knows (Exif 2.3, tag 274)."""
DARK = 16
"""No pixel of 255 as bright as this: 8- or 12-bit values, most likely, in files of 16 bits."""
DECODER = "2"
"""Version of the decoding below, part of every key: of pixels, features and runs."""


def dark(brightest: int) -> str:
    """What is said of images whose largest value is below `DARK`."""
    return f"is brighter than {brightest} of 255, as if 8- or 12-bit values lay in 16-bit files; scale them to 16 bits"


def decode(content: bytes, size: int, boxes: Sequence[Box | None] = (None,)) -> np.ndarray:
    """Boxes of an encoded image (None: all of it) as uint8 RGB squares, shape (n_boxes, size, size, 3)."""
    if not content:
        raise OSError("the file is empty")
    with opened(io.BytesIO(content)) as image:
        whole = _as_rgb(_upright(image))
    parts = (whole if box is None else whole.crop(box) for box in boxes)  # resize(box=) would look over the border
    return np.stack([np.asarray(part.resize((size, size), Image.Resampling.BILINEAR)) for part in parts])


def opened(file: IO[bytes]) -> Image.Image:
    """The image whose pixels are not read yet. Raises: OSError, if it is none."""
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError:  # whose text is the address of a buffer
        raise OSError("it is no image of a known format") from None
    except Image.DecompressionBombError:
        raise OSError(f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None


def _upright(image: Image.Image) -> Image.Image:
    """As `ImageOps.exif_transpose`, which also writes the other tags anew, and fails where a camera's are odd."""
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except UNREADABLE:  # the tags are damaged, and the pixels are not
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"its pixels are {deep.min()} to {deep.max()}, outside 0 to 65535; save it with 16 bits")
        return Image.fromarray((deep.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown scale; save it with 8 or 16 bits")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, (0, 0, 0, 255)), solid).convert("RGB")
    return image.convert("RGB")
