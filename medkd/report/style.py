"""One look for all figures: widths, fonts, a colour-blind-safe palette, a colour per method, legends, empty figures."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches: one column of a journal page, and both
FONT_POINTS = 8

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which colour-blind readers tell apart; without the yellow, which white paper swallows."""

METHOD_COLOURS = {
    "teacher": "#000000",
    "image only": "#56B4E9",
    "second only": "#E69F00",
    "CE only": "#0072B2",
    "KD": "#009E73",
    "GMCD": "#D55E00",
    "MoCo + LR": "#CC79A7",
    "Hbr.Dst.": "#0072B2",
    "Hbr.Dst.-DIC": "#D55E00",
    "Hbr.Dst.-DDL": "#009E73",
    "cls only": "#E69F00",
    "con + L1": "#56B4E9",
    "oracle": "#000000",
}
"""One colour per method in every figure; the two chains never share a figure, so they may share colours."""


CLASSIFIER = re.compile(r" \+ (LR|ridge|centroid)$")


def use_style() -> None:
    """Set matplotlib's defaults for all figures of a report: paper widths, 8 pt, the palette, embedded fonts."""
    mpl.rcParams.update(
        {
            "figure.figsize": (COLUMN_WIDTH, 2.5),
            "figure.dpi": 120,
            "figure.constrained_layout.use": True,
            "font.size": FONT_POINTS,
            "axes.titlesize": FONT_POINTS,
            "axes.labelsize": FONT_POINTS,
            "xtick.labelsize": FONT_POINTS - 1,
            "ytick.labelsize": FONT_POINTS - 1,
            "legend.fontsize": FONT_POINTS - 1,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=PALETTE),
            "lines.linewidth": 1.2,
            "pdf.fonttype": 42,
            "text.parse_math": False,  # a class may be called "$x_$"
        }
    )


DASHES = ("-", "--", ":", "-.")


def line_styles(colours: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Colour and dash of each name's line, for `ax.plot`: its colour and the first dash that is left of it.

    Where none is left another colour is taken; only the 29th name looks like one before it.
    """
    styles: dict[str, dict[str, str]] = {}
    for name, colour in colours.items():
        mine = [{"color": each, "linestyle": dash} for each in (colour, *PALETTE) for dash in DASHES]
        styles[name] = next((style for style in mine if style not in styles.values()), mine[0])
    return styles


def class_styles(classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """`line_styles` of classes, coloured by the palette in their order."""
    return line_styles({name: PALETTE[number % len(PALETTE)] for number, name in enumerate(classes)})


def with_legend(fig: Figure, axes: Sequence[Axes], loc: str = "outside upper center") -> Figure:
    """One legend outside all panels, in as many columns as fit, whose height the figure gains."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    letters = int(18 * fig.get_figwidth())  # of the legend's size, in a line of the figure
    n_columns = max(1, min(len(handles), letters // (max(map(len, handles)) + 7)))
    names = [textwrap.fill(name, letters - 7) for name in handles]
    n_lines = max(name.count("\n") + 1 for name in names) * -(-len(names) // n_columns)
    fig.set_figheight(fig.get_figheight() + 0.15 * n_lines + 0.1)
    fig.legend(handles.values(), names, loc=loc, ncols=n_columns, markerscale=1.5)
    return fig


def figure(*, wide: bool = False, n_columns: int = 1, n_rows: int = 0) -> tuple[Figure, Any]:
    """An empty figure of a column's width (or a page's) with its axes: one, or an array of `n_columns`.

    `n_rows` lines of text (names of methods) fit beside the axes without touching.
    """
    width = PAGE_WIDTH if wide else COLUMN_WIDTH
    height = max(2.5, 0.17 * n_rows + 0.6) if n_columns < 3 else max(1.7, 1.25 * width / n_columns)
    return plt.subplots(1, n_columns, figsize=(width, height), layout="constrained")


def panels(n: int) -> tuple[Figure, list[Axes]]:
    """A page-wide figure of `n` equal panels, three a row, each row 2.1 inches tall."""
    n_rows = -(-n // 3)
    fig, axes = plt.subplots(n_rows, 3, figsize=(PAGE_WIDTH, 2.1 * n_rows), squeeze=False, layout="constrained")
    for unused in axes.flat[n:]:
        unused.axis("off")
    return fig, list(axes.flat[:n])


def own_colour(method: str) -> str:
    """The colour that a method has in every figure and for every "K=..."; "" of one that has none of its own.

    "<modality> only" is "second only"; a student with a refitted head ("Hbr.Dst. + LR") is the student, and a method
    with another classifier ("MoCo + ridge") that with LR.
    """
    method = method.split(" K=")[0]
    if method not in METHOD_COLOURS:
        method = "second only" if method.endswith(" only") else CLASSIFIER.sub("", method)
    return METHOD_COLOURS.get(method, METHOD_COLOURS.get(f"{method} + LR", ""))


def method_colour(method: str, other: str = "") -> str:
    """The method's own colour; of one that has none `other`, or one of the palette, always the same."""
    return own_colour(method) or other or PALETTE[zlib.crc32(method.split(" K=")[0].encode()) % len(PALETTE)]
