"""Contact sheets: images with what a model says of them, one PNG per page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

N_COLUMNS, N_ROWS = 10, 6
PER_PAGE = N_COLUMNS * N_ROWS
"""Images of a page, at most."""
SIDE, GAP, LINE = 136, 12, 16  # px: a thumbnail, the space around it, a line of text
HEAD = 2 * LINE + GAP
TEXT, SOFT = "#111111", "#555555"


def contact_sheet(pictures: np.ndarray, captions: Sequence[tuple[str, str, str]], head: tuple[str, str]) -> Image.Image:
    """One page.

    Args:
        pictures: uint8 RGB, shape (n, h, w, 3), n up to `PER_PAGE`.
        captions: file name, predicted class and its probability, one of each an image.
        head: two lines on top.
    """
    font, n = ImageFont.load_default(12), len(pictures)
    width = GAP + min(N_COLUMNS, max(n, 4)) * (SIDE + GAP)  # the head needs the width of four
    cell = SIDE + 3 * LINE + GAP
    page = Image.new("RGB", (width, HEAD + GAP + -(-n // N_COLUMNS) * cell), "white")
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(head):
        text = shortened(line, font, width - 2 * GAP)
        draw.text((GAP, GAP + number * LINE), text, fill=SOFT if number else TEXT, font=font)
    for index, (pixels, lines) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + index % N_COLUMNS * (SIDE + GAP), HEAD + GAP + index // N_COLUMNS * cell
        page.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        for number, line in enumerate(lines):
            place = (left, top + SIDE + 2 + number * LINE)
            draw.text(place, shortened(line, font, SIDE), fill=TEXT if number else SOFT, font=font)
    return page


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or its beginning and end with dots between them, in at most so many px."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(short) <= width:
            return short
    return "…"
