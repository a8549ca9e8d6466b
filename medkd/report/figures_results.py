"""Plot functions of results: each takes a table or arrays and `ax`, draws, and returns `ax`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from medkd.errors import DataError, ParameterError
from medkd.evaluation.words import metric_words
from medkd.report.figures import annotated, on_lines
from medkd.report.style import DASHES, FONT_POINTS, METHOD_COLOURS, PALETTE, line_styles, method_colour, own_colour

MARKERS = "os^D"  # once round the palette, classes go on with the next marker
ROOMY = 5  # classes of a confusion matrix; more leave no room for numbers in its cells, which are in the CSV
FEW = 5  # methods whose bands can be told apart in one panel
SMALLEST_DOT = 4  # of a calibration curve, points squared, so that every bin is seen
LINE = 48  # letters of a method's name beside a figure: in a study it carries that of its condition


def learning_curves(
    history: pd.DataFrame, columns: Sequence[str], ax: Axes, labels: Sequence[str] | None = None, *, legend: bool = True
) -> Axes:
    """Columns of a training history against the epoch; several runs become their mean and a band of one SD.

    Args:
        history: column `epoch` and those asked for; one or more rows per epoch.
        columns: what to draw.
        ax: where; lines that are already there stay.
        labels: names in the legend, default the column names; a method's name gives its colour.
        legend: draw it in the axes.
    """
    for column, label in zip(columns, labels or columns, strict=True):
        n_drawn = len(ax.lines)
        colour = method_colour(label) if label in METHOD_COLOURS else PALETTE[n_drawn % len(PALETTE)]
        dash = DASHES[n_drawn // len(PALETTE) % len(DASHES)]
        _mean_and_band(history, column, ax, label=label, color=colour, linestyle=dash)
    if legend:
        ax.legend()
    return ax


def method_curves(history: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """One column of several methods' histories against the epoch: mean of a method's runs and a band of one SD.

    `history` has columns `method`, `epoch` and the one asked for. Methods with a colour of their own have its full
    line; more than `FEW` are drawn without bands, which would hide one another. The legend is the caller's.
    """
    names = sorted(map(str, pd.unique(history["method"])), key=lambda name: not own_colour(name))
    styles = line_styles({name: method_colour(name) for name in names})
    for method, runs in history.dropna(subset=[column]).groupby("method", sort=False):
        _mean_and_band(runs, column, ax, band=len(names) <= FEW, label=str(method), **styles[str(method)])
    ax.set_ylabel(metric_words(column))
    return ax


def over_parts(history: pd.DataFrame, over: str = "folds") -> str:
    """End of a caption that says what lines and bands of `method_curves` are; "" where each method has one run.

    Args:
        history: columns method and epoch.
        over: what the runs of a method differ in.
    """
    if not history.duplicated(["method", "epoch"]).any():
        return ""
    n_methods = history["method"].nunique()
    return f"; mean over {over}, " + (
        "band of one SD" if n_methods <= FEW else f"no bands of SD for {n_methods} methods"
    )


def weights_over_time(history: pd.DataFrame, columns: Sequence[str], ax: Axes, *, legend: bool = True) -> Axes:
    """Weights of the distillation terms against the epoch; the legend shows columns without their `weight_`."""
    labels = [column.removeprefix("weight_").replace("_", " ") for column in columns]
    learning_curves(history, columns, ax, labels, legend=legend)
    ax.set_ylabel("weight")
    ax.set_ylim(0, max(ax.get_ylim()[1], 1.05 * ax.dataLim.y1))  # panels that share the axis are drawn one by one
    return ax


def confusion(matrix: np.ndarray, classes: Sequence[str], ax: Axes) -> Axes:
    """Confusion matrix: share of each true class (colour, first line of a cell) and counts (second line).

    `matrix` holds counts, shape (n_classes, n_classes), rows the true class, columns the predicted one.
    """
    matrix = np.asarray(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    text = [
        [(f"{share[i, j]:.2f}\n({n})" if totals[i] else "–") if len(matrix) <= ROOMY else "" for j, n in enumerate(row)]
        for i, row in enumerate(matrix)
    ]
    annotated(share, classes, classes, text, (0, 1), ax)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    return ax


def interval_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """One dot per method with its interval, first row on top.

    `table` has columns method, value, low, high; nan in low or high draws the dot alone.
    """
    columns = (table[column] for column in ("method", "value", "low", "high"))
    for place, (method, value, low, high) in enumerate(zip(*columns, strict=True)):
        colour = method_colour(method, other="0.5")
        ax.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        ax.plot([value], [place], "o", color=colour, markersize=4.5)
    ax.set_yticks(range(len(table)), labels=[on_lines(method, LINE) for method in table["method"]])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=6)
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
    """UMAP coordinates coloured by class, one collection per class.

    Args:
        coordinates: shape (n, 2).
        labels: index into `classes`, shape (n,).
        classes: names; "" for one that is nowhere in the figure.
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
    for name in sorted(filter(None, classes), key=lambda name: name in on_top):
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


def class_curves(table: pd.DataFrame, area: str, styles: Mapping[str, Mapping[str, str]], ax: Axes) -> Axes:
    """ROC or precision-recall curves of one method, one line per class, with the areas above.

    Args:
        table: columns class, x, y (0..1) and `area`, as `medkd.evaluation.curves` gives them.
        area: "auc" or "average_precision"; written in the colours of the classes, of more than five their mean.
        styles: class -> style of its line.
        ax: where.
    """
    is_roc = area == "auc"
    if is_roc:
        ax.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=0.8)
    for name, curve in table.groupby("class", sort=False):
        ax.plot(curve["x"], curve["y"], label=str(name), **styles[str(name)])
    areas = table.groupby("class", sort=False)[area].first()
    numbers = [(f"{value:.2f}", styles[str(name)]["color"]) for name, value in areas.items()]
    if len(numbers) > 5:
        numbers = [(f"mean {areas.mean():.2f}", "black")]
    for place, (text, colour) in enumerate(reversed(numbers)):
        _above(text, ax, color=colour, xytext=(-17 * place, 2))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set(xlabel="false positive rate" if is_roc else "recall", ylabel="true positive rate" if is_roc else "precision")
    return ax


def calibration(table: pd.DataFrame, ax: Axes) -> Axes:
    """Reliability diagram: accuracy against confidence in bins, the diagonal, and the calibration error (ECE).

    `table` is that of `medkd.evaluation.metrics.calibration_table`: columns confidence, accuracy, n_samples.
    """
    from medkd.evaluation.metrics import calibration_error  # brings scikit-learn, which the explorer need not wait for

    ax.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=0.8)
    ax.plot(table["confidence"], table["accuracy"], "-", color=PALETTE[0])
    sizes = np.maximum(SMALLEST_DOT, 100 * table["n_samples"] / table["n_samples"].sum())  # area: % of the samples
    ax.scatter(table["confidence"], table["accuracy"], s=sizes, color=PALETTE[0])
    _above(f"ECE {calibration_error(table):.3f}", ax)
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xlabel="confidence", ylabel="accuracy")
    return ax


def kaplan_meier(table: pd.DataFrame, ax: Axes, *, groups: Sequence[str] = (), legend: bool = True) -> Axes:
    """Survival curves with their 95% bands, one colour a risk group; the log-rank p where the table has it.

    Args:
        table: of `medkd.evaluation.survival.kaplan_meier_table`: columns group, months, survival, low, high, at_risk;
            the first row of a group is month 0, where at_risk is its size; and p_value, the same in all rows.
        ax: where.
        groups: all that panels beside may have, in the order of the palette; by default those of the table.
        legend: name the groups, with their sizes, in the axes.
    """
    order = list(groups) or list(pd.unique(table["group"]))
    for group, curve in table.groupby("group", sort=False):
        colour = PALETTE[order.index(group) % len(PALETTE)]
        name = f"{group} (n = {curve['at_risk'].iloc[0]:.0f})" if legend else str(group)
        ax.step(curve["months"], curve["survival"], where="post", color=colour, label=name)
        band = {"step": "post", "color": colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(curve["months"], curve["low"], curve["high"], **band)
    if "p_value" in table and not table["p_value"].isna().any():  # of one group there is none
        p_value = table["p_value"].iloc[0]
        _above("log-rank p < 0.001" if p_value < 0.001 else f"log-rank p = {p_value:.3f}", ax)
    ax.set(xlabel="months", ylabel="survival", ylim=(0, 1.02))
    ax.set_xlim(left=0)
    if legend:
        ax.legend()
    return ax


def singular_spectrum(table: pd.DataFrame, ax: Axes) -> Axes:
    """Singular values before and after shrinkage, all frequencies together, largest first, on a log axis.

    Values below a millionth of the largest are zero to float32 precision. A log axis has no zero: they are drawn a
    decade below the smallest other value, on a dotted line that says so.

    `table` has columns rank, frequency, value (>= 0) and state ("before", "after"), one row per singular value.

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
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # that of a logarithm writes LaTeX
    ax.yaxis.set_minor_formatter(NullFormatter())
    if is_zero.any():
        ax.axhline(floor, color="0.7", linestyle=":", linewidth=0.8)
        ax.text(0.02, floor, "zero", transform=ax.get_yaxis_transform(), va="bottom", color="0.4")
    ax.set(xlabel="singular value, largest first", ylabel="size")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def _above(text: str, ax: Axes, **options: object) -> None:
    """A small number above the upper right corner, where no curve runs; titles need a line of padding."""
    place = {"xy": (1, 1), "xytext": (0, 2), "xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
    ax.annotate(text, fontsize=FONT_POINTS - 2, **place | options)


def _mean_and_band(history: pd.DataFrame, column: str, ax: Axes, *, band: bool = True, **style: str) -> None:
    """Mean of a column over the rows of each epoch, and where an epoch has several a band of one SD to each side."""
    line = history.groupby("epoch")[column].agg(["mean", "std"])
    ax.plot(line.index, line["mean"], marker="." if len(line) == 1 else None, **style)  # one epoch makes no line
    if band and line["std"].notna().any():
        low, high = line["mean"] - line["std"], line["mean"] + line["std"]
        ax.fill_between(line.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
