"""Images as HTML, for widgets."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image


def picture(pixels: np.ndarray, *, side: int, title: str = "") -> str:
    """An image as an HTML element that needs no file and no network.

    Args:
        pixels: uint8 RGB, shape (h, w, 3).
        side: width and height on the screen, px.
        title: shown on hovering, and read out by screen readers.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(title, quote=True)
    return (
        f'<img src="data:image/png;base64,{content}" width="{side}" height="{side}" alt="{text}" title="{text}" '
        'style="margin:1px">'
    )


def side_by_side(pieces: list[str]) -> str:
    """HTML pieces in one line; JupyterLab alone makes every image a block of its own."""
    return f'<div style="display:flex">{"".join(pieces)}</div>'


def gallery(cells: list[tuple[str, str]]) -> str:
    """HTML pieces with captions, side by side, as many in a line as fit."""
    figures = "".join(
        f'<figure style="display:inline-block;margin:4px;text-align:center">{piece}'
        f'<figcaption style="font-size:11px">{html.escape(caption)}</figcaption></figure>'
        for piece, caption in cells
    )
    return f'<div style="line-height:1">{figures}</div>'
