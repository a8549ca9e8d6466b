"""Plot functions: each takes a table or arrays and `ax`, draws, and returns `ax` (`image_grid`: a figure)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medkd.errors import DataError, ParameterError
from medkd.evaluation.metrics import calibration_table
from medkd.report.style import COLUMN_WIDTH, FONT_POINTS, METHOD_COLOURS, PAGE_WIDTH, PALETTE, method_colour

MARKERS = "os^D"  # once round the palette, classes go on with the next marker


def learning_curves(
    history: pd.DataFrame, columns: Sequence[str], ax: Axes, labels: Sequence[str] | None = None
) -> Axes:
    """Columns of a training history against the epoch; several runs become their mean and a band from min to max.

    Args:
        history: column `epoch` and those asked for; one or more rows an epoch.
        columns: what to draw.
        ax: where; lines that are already there stay.
        labels: names in the legend, default the column names; a method's name gives its colour.
    """
    for column, label in zip(columns, labels or columns, strict=True):
        line = history.groupby("epoch")[column].agg(["mean", "min", "max"])
        colour = method_colour(label) if label in METHOD_COLOURS else PALETTE[len(ax.lines) % len(PALETTE)]
        ax.plot(line.index, line["mean"], color=colour, label=label)
        if history["epoch"].duplicated().any():
            ax.fill_between(line.index, line["min"], line["max"], color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def method_curves(history: pd.DataFrame, column: str, ax: Axes, *, legend: bool = True) -> Axes:
    """One column of several methods' histories against the epoch, one colour a method, mean and band over its runs.

    `history` has columns `method`, `epoch` and the one asked for.
    """
    for method, runs in history.groupby("method", sort=False):
        line = runs.groupby("epoch")[column].agg(["mean", "min", "max"])
        ax.plot(line.index, line["mean"], color=method_colour(str(method)), label=str(method))
        ax.fill_between(line.index, line["min"], line["max"], color=method_colour(str(method)), alpha=0.15, linewidth=0)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(column.replace("_", " "))
    if legend:
        ax.legend()
    return ax


def weights_over_time(history: pd.DataFrame, columns: Sequence[str], ax: Axes) -> Axes:
    """Weights of the distillation terms against the epoch; the legend shows columns without their `weight_`."""
    learning_curves(history, columns, ax, [column.removeprefix("weight_").replace("_", " ") for column in columns])
    ax.set_ylabel("weight")
    ax.set_ylim(bottom=0)
    return ax


def confusion(matrix: np.ndarray, classes: Sequence[str], ax: Axes) -> Axes:
    """Confusion matrix: share of each true class (colour, first line of a cell) and counts (second line).

    `matrix` holds counts, shape (n_classes, n_classes), rows the true class, columns the predicted one.
    """
    matrix = np.asarray(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    roomy = len(matrix) <= 5  # more classes than that leave no room for numbers; they are in the CSV
    text = [
        [(f"{share[i, j]:.2f}\n({n})" if totals[i] else "–") if roomy else "" for j, n in enumerate(row)]
        for i, row in enumerate(matrix)
    ]
    _annotated(share, classes, classes, text, (0, 1), ax)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    return ax


def heatmap(values: np.ndarray, row_names: Sequence[str], column_names: Sequence[str], ax: Axes) -> Axes:
    """A matrix as colours, with its values where they fit.

    `values` has shape (n_rows, n_columns), nan where unknown. Above 24 columns a colour bar stands for the numbers.
    """
    values = np.asarray(values, dtype=float)
    if values.shape[1] > 24:
        return _plain_heatmap(values, row_names, column_names, ax)
    text = [["–" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]
    return _annotated(values, row_names, column_names, text, (min(0.0, np.nanmin(values)), np.nanmax(values)), ax)


def interval_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """One dot a method with its interval, first row on top.

    `table` has columns method, value, low, high; nan in low or high draws the dot alone.
    """
    for place, row in enumerate(table.itertuples()):
        colour = method_colour(row.method)
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        ax.plot([row.value], [place], "o", color=colour, markersize=4.5)
    ax.set_yticks(range(len(table)), labels=list(table["method"]))
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    return ax


def scatter_embedding(
    coordinates: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    ax: Axes,
    *,
    on_top: Sequence[str] = (),
    legend: bool = True,
) -> Axes:
    """UMAP coordinates coloured by class, one collection a class.

    Args:
        coordinates: shape (n, 2).
        labels: index into `classes`, shape (n,).
        classes: names.
        ax: where.
        on_top: names of classes drawn last, larger and outlined, so that rare ones are not buried.
        legend: name the classes beside the axes; one panel of several is enough.

    Raises:
        ParameterError: if `on_top` names an unknown class.
    """
    if unknown := set(on_top) - set(classes):
        raise ParameterError(
            f"on_top names {sorted(unknown)[0]!r}, which is not among the classes {', '.join(classes)}"
        )
    coordinates, labels = np.asarray(coordinates), np.asarray(labels)
    for name in sorted(classes, key=lambda name: name in on_top):
        number = list(classes).index(name)
        points = coordinates[labels == number]
        raised = {"s": 16, "edgecolors": "white", "linewidths": 0.4} if name in on_top else {"s": 5, "linewidths": 0}
        marker = MARKERS[number // len(PALETTE) % len(MARKERS)]
        colour = PALETTE[number % len(PALETTE)]
        # thousands of vector dots make a PDF slow to open
        ax.scatter(*points.T, color=colour, marker=marker, label=name, rasterized=len(labels) > 2000, **raised)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.5, handletextpad=0.2)
    return ax


def image_grid(images: np.ndarray, *, n_columns: int, titles: Sequence[str] | None = None) -> Figure:
    """Images in rows of `n_columns`, as wide as a column (up to four) or a page.

    Args:
        images: shape (n, h, w, 3), uint8, n >= 1.
        n_columns: images a row, >= 1.
        titles: one an image, above it.

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
    cell = width / n_columns * images.shape[1] / images.shape[2] + (0.18 if titles is not None and any(titles) else 0)
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
        frame: one row a patient, one column a variable.
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
    """Bars with numbers, one group of bars a class, first class on top.

    `summary` has a column `class`, and one of counts for each thing counted ("images", "patients").
    """
    counted = [column for column in summary if column != "class"]
    height = 0.8 / len(counted)
    for number, column in enumerate(counted):
        places = np.arange(len(summary)) - 0.4 + height * (number + 0.5)
        bars = ax.barh(places, summary[column], height, color=PALETTE[number % len(PALETTE)], label=column)
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=FONT_POINTS - 2)
    ax.set_yticks(range(len(summary)), labels=list(summary["class"]))
    ax.invert_yaxis()
    ax.margins(x=0.12)
    if len(counted) > 1:
        ax.legend()
    else:
        ax.set_xlabel(str(counted[0]))
    return ax


def histogram_by_group(values: np.ndarray, groups: np.ndarray, ax: Axes) -> Axes:
    """Outlined densities of the values of each group, on shared bins, groups in order of first appearance.

    `values` are finite, shape (n,); `groups` holds the name of each value's group, shape (n,).
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    edges = np.histogram_bin_edges(values, bins=30)
    for number, name in enumerate(pd.unique(groups)):
        colour = METHOD_COLOURS.get(name, PALETTE[number % len(PALETTE)])
        density, _ = np.histogram(values[groups == name], bins=edges, density=True)
        ax.stairs(density, edges, color=colour, label=str(name), linewidth=1.2)
    ax.set_ylabel("density")
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax


def calibration(labels: np.ndarray, probabilities: np.ndarray, ax: Axes) -> Axes:
    """Reliability diagram: accuracy against confidence in 15 bins, the diagonal, and the calibration error (ECE).

    `labels` are class indices, shape (n,); `probabilities` have shape (n, n_classes).
    """
    table = calibration_table(labels, probabilities)
    error = np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["n_samples"])
    ax.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=0.8)
    ax.plot(table["confidence"], table["accuracy"], "-", color=PALETTE[0])
    sizes = 10 + 90 * table["n_samples"] / table["n_samples"].sum()  # area: share of the samples in the bin
    ax.scatter(table["confidence"], table["accuracy"], s=sizes, color=PALETTE[0], clip_on=False)
    ax.text(0.04, 0.94, f"ECE {error:.3f}", transform=ax.transAxes, va="top")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    return ax


def kaplan_meier(table: pd.DataFrame, ax: Axes) -> Axes:
    """Survival curves with their 95% bands, one colour a risk group, group sizes in the legend.

    `table` is that of `medkd.evaluation.survival.kaplan_meier_table`: columns group, months, survival, low, high,
    at_risk; the first row of a group is month 0, where at_risk is its size.
    """
    for number, (group, curve) in enumerate(table.groupby("group", sort=False)):
        colour = PALETTE[number % len(PALETTE)]
        name = f"{group} (n = {curve['at_risk'].iloc[0]:.0f})"
        ax.step(curve["months"], curve["survival"], where="post", color=colour, label=name)
        ax.fill_between(
            curve["months"], curve["low"], curve["high"], step="post", color=colour, alpha=0.15, linewidth=0
        )
    ax.set(xlabel="months", ylabel="survival", ylim=(0, 1.02))
    ax.set_xlim(left=0)
    ax.legend()
    return ax


def singular_spectrum(table: pd.DataFrame, ax: Axes) -> Axes:
    """Singular values before and after shrinkage, all frequencies together, largest first, on a log axis.

    Values below a millionth of the largest are zero to float32 precision. A log axis has no zero: they are drawn a
    decade below the smallest other value, on a dotted line that says so.

    `table` has columns rank, frequency, value (>= 0) and state ("before", "after"), one row a singular value.

    Raises:
        DataError: if a value is negative or nan, or all of them are zero.
    """
    if not (table["value"] >= 0).all() or not table["value"].max() > 0:
        raise DataError("a spectrum needs singular values >= 0 and one above 0; look at the table's column value")
    is_zero = table["value"] <= 1e-6 * table["value"].max()
    floor = 10.0 ** np.floor(np.log10(table.loc[~is_zero, "value"].min()) - 1)
    for number, (state, values) in enumerate(table["value"].mask(is_zero, floor).groupby(table["state"], sort=False)):
        n_zero = int(is_zero[values.index].sum())
        name = f"{state} ({n_zero} of {len(values)} zero)" if n_zero else str(state)
        ax.plot(
            np.arange(1, len(values) + 1),
            np.sort(values)[::-1],
            color=PALETTE[number % len(PALETTE)],
            drawstyle="steps-mid",
            label=name,
        )
    ax.set_yscale("log")
    if is_zero.any():
        ax.axhline(floor, color="0.7", linestyle=":", linewidth=0.8)
        ax.text(0.02, floor, "zero", transform=ax.get_yaxis_transform(), va="bottom", color="0.4")
    ax.set(xlabel="singular value, largest first", ylabel="size")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def _plain_heatmap(values: np.ndarray, row_names: Sequence[str], column_names: Sequence[str], ax: Axes) -> Axes:
    """A wide matrix: a colour bar in place of numbers, and every fourth column named, or about thirty of very many."""
    limit = np.nanmax(np.abs(values))
    low, colours = (-limit, "PuOr_r") if np.nanmin(values) < 0 else (0.0, "Blues")
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    places = range(0, len(column_names), max(4, len(column_names) // 30))
    ax.set_xticks(places, labels=[column_names[place] for place in places], rotation=90, fontsize=FONT_POINTS - 3)
    ax.set_yticks(range(len(row_names)), labels=list(row_names))
    return ax


def _annotated(
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
    turned = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, map(str, column_names))) > 6 else {}
    )
    ax.set_xticks(range(len(column_names)), labels=list(column_names), **turned)
    ax.set_yticks(range(len(row_names)), labels=list(row_names))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
