"""The errors of a classifier as pictures: images of a cell of its confusion matrix, plain and under activation maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from medkd.data.cohort import Cohort
from medkd.evaluation.judged import Judged
from medkd.report.figures import image_grid, on_lines
from medkd.report.style import FONT_POINTS, figure

Maps = Callable[[pd.DataFrame, str, Sequence[int]], Mapping[str, np.ndarray]]
"""Samples, a method and a class per sample -> image modality -> maps (n, h, w), 0 to 1, of any size; such as
`medkd.stages.activation.ActivationMaps`.

An attribute `left_out` (method -> sentence), where there is one, tells why a method has no maps.
"""
TARGETS = ("predicted class", "true class", "what each method says")
"""Whose score the maps explain: that of the cell's column, of its row, or of each method's own prediction."""
OPACITY = 0.55
"""Of a map over its image."""
COLOURS = mpl.colormaps["viridis"]
EMPTY = "map is 0"
"""Told of a map that is 0 everywhere: no part of the image raises the score."""
N_VIEWS = 6  # pictures a line of the figure


def error_pages(
    predictions: pd.DataFrame,
    cohort: Cohort,
    *,
    method: str | None = None,
    beside: str | None = None,
    setting: str | None = None,
    maps: Maps | None = None,
    n_cells: int = 3,
    n_examples: int = 2,
    size: int = 96,
) -> Figure:
    """The most frequent errors as a figure: the most confident images of each, plain and under the maps.

    Args:
        predictions: table `predictions` of stage 07.
        cohort: whose images they are; the title says so where it is simulated.
        method: whose errors; None takes the last of the table.
        beside: method whose maps stand beside; None takes the first other one of the table.
        setting: "K=5"; None takes the last.
        maps: see `Maps`; None leaves them out.
        n_cells: cells off the diagonal, those with most images.
        n_examples: images of each.
        size: side of the pictures, px.

    Raises:
        DataError, ParameterError: see `medkd.evaluation.judged.Judged`.
    """
    judged = Judged(predictions, cohort)
    names = judged.chosen(method, beside, setting)
    method, beside, setting = names["method"], names["beside"], names["setting"]
    counts = judged.counts(setting, method)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:n_cells]
    cells = [divmod(int(place), len(counts)) for place in order if counts.flat[place]]
    title = f"{cohort.label_text}: errors of {', '.join(filter(None, [method, setting]))}"
    if not cells or not cohort.images:
        fig, ax = figure(wide=True)
        ax.text(0.5, 0.5, "the cohort has no images" if cells else "no errors", ha="center")
        ax.axis("off")
    else:
        groups = [judged.cell(setting, method, *cell).head(n_examples) for cell in cells]
        samples = pd.concat(groups, ignore_index=True)
        fig = _grid(judged, groups, views(judged, samples, size, maps, (beside, method), TARGETS[0]))
    title += "" if maps is None else "; maps of the predicted class"
    title = on_lines(title, int(14 * fig.get_figwidth()))  # letters of its size in a line of the figure
    fig.set_figheight(fig.get_figheight() + 0.15 * title.count("\n"))
    fig.suptitle(title, fontsize=FONT_POINTS)
    plt.close(fig)  # the notebook shows what is returned, once
    return fig


def views(
    judged: Judged, samples: pd.DataFrame, size: int, maps: Maps | None, methods: Sequence[str], target: str
) -> list[list[tuple[np.ndarray, str]]]:
    """For each sample its pictures with captions: each modality plain, then under the maps of the methods on it.

    Args:
        judged: what was said of the samples.
        samples: rows of cells, at least one.
        size: side of the pictures, px.
        maps: see `Maps`; None for none.
        methods: whose maps.
        target: one of `TARGETS`.

    Returns:
        One list a sample of (uint8 RGB, shape (size, size, 3); caption).
    """
    cohort = judged.cohort
    rows = pd.Index(cohort.table["id"]).get_indexer(samples["id"])
    tiles: list[list[tuple[np.ndarray, str]]] = [[] for _ in rows]
    under: dict[str, list[tuple[np.ndarray, list[str]]]] = {name: [] for name in cohort.images}
    for method in dict.fromkeys(methods if maps is not None else ()):
        said = judged.said(samples, method)
        own = said["predicted"].fillna(samples["predicted"])
        wanted = {TARGETS[0]: samples["predicted"], TARGETS[1]: samples["label"]}.get(target, own)
        texts = [
            method if np.isnan(label) else f"{method}: {judged.classes[int(label)]} {confidence:.2f}"
            for label, confidence in zip(said["predicted"], said["confidence"], strict=True)
        ]
        for name, found in maps(samples, method, wanted.to_numpy(int)).items():
            captions = [text if own.any() else f"{text} ({EMPTY})" for text, own in zip(texts, found, strict=True)]
            under[name].append((found, captions))
    for name, source in cohort.images.items():
        for place, image in enumerate(source.take(rows).load(size)):
            tiles[place].append((image, name))
            tiles[place] += [(overlay(image, found[place]), captions[place]) for found, captions in under[name]]
    return tiles


def overlay(pixels: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """An image under its activation map, uint8, shape (h, w, 3).

    Args:
        pixels: uint8 RGB, shape (h, w, 3).
        activation: 0 to 1, of any size; resized bilinearly.
    """
    size = (pixels.shape[1], pixels.shape[0])
    resized = np.asarray(Image.fromarray(activation.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    blended = (1 - OPACITY) * pixels + OPACITY * 255 * COLOURS(resized)[..., :3]
    return blended.round().astype(np.uint8)


def _grid(judged: Judged, groups: Sequence[pd.DataFrame], shown: list[list[tuple[np.ndarray, str]]]) -> Figure:
    """Pictures of each cell's samples; every cell starts a line."""
    n_views = max(map(len, shown))
    n_columns = max(1, N_VIEWS // n_views) * n_views
    blank = (np.full_like(shown[0][0][0], 255), "")
    tiles, rest = [], iter(shown)
    for samples in groups:
        for row in samples.itertuples():
            (image, name), *others = next(rest)
            names = [judged.classes[number] for number in (row.label, row.predicted)]
            told = f"{names[0]} -> {names[1]}, {row.confidence:.2f}\n{name} of {row.id}"
            tiles += [(image, told), *others, *[blank] * (n_views - 1 - len(others))]
        tiles += [blank] * (-len(tiles) % n_columns)
    images, titles = zip(*tiles, strict=True)
    fig = image_grid(np.stack(images), n_columns=n_columns, titles=titles)
    width, height = fig.get_size_inches()
    fig.set_size_inches(width, height + 0.3)  # for the title
    return fig
