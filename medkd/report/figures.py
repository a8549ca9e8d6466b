"""Plot functions of data: each takes a table or arrays and `ax`, draws, and returns `ax` (`image_grid`: a figure)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medkd.errors import DataError
from medkd.report.style import COLUMN_WIDTH, FONT_POINTS, PAGE_WIDTH, PALETTE, class_styles

NAME_LETTERS = 14
"""Letters of a line of a name beside a matrix."""


def heatmap(values: np.ndarray, row_names: Sequence[str], column_names: Sequence[str], ax: Axes) -> Axes:
    """A matrix as colours with its values; `values` has shape (n_rows, n_columns), nan where unknown."""
    values = np.asarray(values, dtype=float)
    text = [["–" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]
    return annotated(values, row_names, column_names, text, (min(0.0, np.nanmin(values)), np.nanmax(values)), ax)


def image_grid(images: np.ndarray, *, n_columns: int, titles: Sequence[str] | None = None) -> Figure:
    """Images in rows of `n_columns`, as wide as a column (up to four) or a page.

    Args:
        images: shape (n, h, w, 3), uint8, n >= 1.
        n_columns: images per row, >= 1.
        titles: one per image, above it; long ones are wrapped.

    Raises:
        DataError: if the images are not RGB bytes, or the number of titles differs.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise DataError(f"image_grid draws uint8 RGB images (n, h, w, 3), n >= 1; got {images.dtype} {images.shape}")
    if titles is not None and len(titles) != len(images):
        raise DataError(f"image_grid needs a title for each of {len(images)} images; got {len(titles)}")
    n_rows = -(-len(images) // n_columns)
    width = COLUMN_WIDTH if n_columns <= 4 else PAGE_WIDTH
    cell = width / n_columns * images.shape[1] / images.shape[2]
    if titles is not None and any(titles):
        room = max(6, int(width / n_columns * 72 / (0.55 * (FONT_POINTS - 1))))  # letters above an image
        titles = ["\n".join(textwrap.fill(line, room) for line in title.split("\n")) for title in titles]
        cell += 0.18 + 0.13 * max(title.count("\n") for title in titles)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(width, cell * n_rows), squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for place, ax in enumerate(axes.flat):
        ax.axis("off")
        if place < len(images):
            ax.imshow(images[place], interpolation="nearest")
            ax.set_title(titles[place] if titles is not None else "", fontsize=FONT_POINTS - 1, pad=2)
    return fig


def banded_heatmap(frame: pd.DataFrame, bands: Sequence[int], names: Sequence[str], ax: Axes) -> Axes:
    """Rows of values in SDs as colours from -3 to 3, grey where missing; bands of rows are named and set apart.

    Args:
        frame: one row per patient, one column a variable.
        bands: rows of each band, from the top; they sum to the number of rows.
        names: of the bands.
        ax: where.
    """
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.75")
    image = ax.imshow(frame.to_numpy(float), cmap=colours, vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    ends = np.cumsum(bands)
    ax.hlines(ends[:-1] - 0.5, -0.5, frame.shape[1] - 0.5, color="black", linewidth=0.8)
    ax.set_yticks(ends - np.asarray(bands) / 2 - 0.5, labels=[str(name) for name in names])
    ax.set_xticks(range(frame.shape[1]), labels=list(frame), rotation=90, fontsize=max(4, min(7, 260 / frame.shape[1])))
    ax.tick_params(length=0)
    ax.get_figure().colorbar(image, ax=ax, label="SDs from the mean", shrink=0.6)
    return ax


def class_counts(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Bars with numbers, one group of bars per class, first class on top.

    `summary` has a column `class`, and one of counts for each thing counted ("images", "patients").
    """
    counted = [column for column in summary if column != "class"]
    long = summary.melt("class", counted, "counted", "n")
    colours = dict(zip(counted, PALETTE, strict=False))
    sns.barplot(long, x="n", y="class", hue="counted", palette=colours, saturation=1, errorbar=None, ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=FONT_POINTS - 2)
    ax.margins(x=0.12)
    ax.set(xlabel=" or ".join(counted), ylabel="")
    ax.legend(title=None, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(counted), borderaxespad=0)  # off the bars
    return ax


def histogram_by_group(values: np.ndarray, groups: np.ndarray, ax: Axes, order: Sequence[str] = ()) -> Axes:
    """Outlined densities of the values of each group, on shared bins; the legend is the caller's.

    Args:
        values: finite, shape (n,).
        groups: name of each value's group, shape (n,).
        ax: where.
        order: of all groups that may be there, which gives them their lines; by default that of first appearance.
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    names = [name for name in order if (groups == name).any()] or list(pd.unique(groups))
    edges = np.histogram_bin_edges(values, bins=30)
    for name, style in class_styles(names).items():
        heights = np.histogram(values[groups == name], bins=edges, density=True)[0]
        ax.plot(edges, [*heights, heights[-1]], drawstyle="steps-post", label=name, **style)
    ax.set(ylabel="density", ylim=(0, None))
    return ax


def on_lines(name: object, letters: int = NAME_LETTERS) -> str:
    """A name on lines of so many letters, cut where a word is longer than that."""
    return textwrap.fill(str(name), letters)


def annotated(
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    text: Sequence[Sequence[str]],
    limits: tuple[float, float],
    ax: Axes,
) -> Axes:
    """A matrix as colours with a text in each cell."""
    ax.imshow(values, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    middle = (limits[0] + limits[1]) / 2
    for (i, j), value in np.ndenumerate(values):
        shade = "white" if value > middle else "black"
        ax.text(j, i, text[i][j], ha="center", va="center", color=shade, fontsize=FONT_POINTS - 2)
    many = len(column_names) > 6
    rows = [on_lines(name) for name in row_names]
    letters = NAME_LETTERS * (1 + many)  # names of many columns stand on end, where there is room
    columns = [on_lines(name, letters) for name in column_names]
    longest = max(len(line) for name in columns for line in name.split("\n"))
    slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if longest > 6 else {}
    turned = {"rotation": 90} if longest > 2 and many else slanted
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        small = {"fontsize": FONT_POINTS - 3, "linespacing": 0.9} if any("\n" in name for name in names) else {}
        axis.set_ticks(range(len(names)), labels=names, **small, **(turned if axis is ax.xaxis else {}))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
