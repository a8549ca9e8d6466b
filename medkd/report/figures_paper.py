"""Whole figures of a paper, each from one table as it lies in its CSV, so that it is drawn again without any run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medkd.errors import DataError, ParameterError
from medkd.evaluation.words import metric_words
from medkd.report import figures_results as results
from medkd.report.figures import on_lines
from medkd.report.style import COLUMN_WIDTH, FONT_POINTS, PAGE_WIDTH, class_styles, figure, use_style, with_legend

TEXT_COLUMNS = (
    *("method", "minus", "setting", "level", "metric", "class", "true", "predicted", "group", "state", "modality"),
    *("id", "patient", "reference", "shortcut", "shortcut_kind"),
)
MAX_COLOURED = 10  # values of a shortcut that colours and markers tell apart at a glance


@contextmanager
def paper_style() -> Iterator[None]:
    """The style of all figures, whatever was set before, so that a figure drawn again has the same bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()
        use_style()
        yield


def draw(kind: str, path: Path) -> Figure:
    """The figure `kind` (a key of `DRAW`) of the table in the CSV `path`; call it, and save, inside `paper_style`.

    Raises:
        ParameterError: if the kind is unknown.
        DataError: if the file is missing, or it lacks rows or a column that the figure needs.
    """
    if kind not in DRAW:
        raise ParameterError(f'draw = "{kind}" is no figure of medkd.report.figures_paper; known are {", ".join(DRAW)}')
    texts = dict.fromkeys(TEXT_COLUMNS, str)
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])  # a method may be called "NA"
    except FileNotFoundError:
        raise DataError(f"{path}, the table of a figure, is missing; run the notebook that wrote it again") from None
    table = table.fillna({column: "" for column in table if column in texts})
    if table.empty:
        raise DataError(f'{path} has no rows, so "{kind}" cannot be drawn; run the notebook that wrote it again')
    try:
        return DRAW[kind](table)
    except KeyError as error:
        raise DataError(
            f'{path} lacks the column {error} that "{kind}" needs; run the notebook that wrote it again'
        ) from None


def _learning_curves(table: pd.DataFrame) -> Figure:
    """Columns method, part (fold or task), epoch; each other column is a panel: mean over parts, band of one SD."""
    columns = [column for column in table if column not in ("method", "part", "epoch")]
    fig, axes = _grid(len(columns), ratio=0.75, share=False)
    for ax, column in zip(axes, columns, strict=True):
        results.method_curves(table, column, ax)
    return with_legend(fig, axes)


def _class_curves(table: pd.DataFrame, area: str) -> Figure:
    """Columns method, class, label, x, y and the area, see `medkd.evaluation.curves`; a panel per method."""
    styles = class_styles(_numbered(table))

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        results.class_curves(rows, area, styles, ax)

    fig, axes = _by_method(table, panel, ratio=1.05, numbers=True)
    return with_legend(fig, axes)


def _confusion(table: pd.DataFrame) -> Figure:
    """Columns method, true, predicted, n (counts); a panel per method, classes in order of appearance."""
    classes = list(pd.unique(table["true"]))

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        # summed: whoever draws it again may have given two classes one name
        counts = rows.pivot_table(index="true", columns="predicted", values="n", aggfunc="sum").loc[classes, classes]
        results.confusion(counts.to_numpy(), classes, ax)

    n_lines = max(on_lines(name).count("\n") + 1 for name in classes)
    # inches: each row as high as its name, and below them names and title
    room = 0.085 * n_lines * len(classes) + (1.6 if len(classes) > 6 else 1.0) if n_lines > 1 else 0.0
    ratio = max(1.05 if len(classes) <= 6 else 1.25, room / _panel_width(table["method"].nunique()))
    fig, axes = _by_method(table, panel, ratio=ratio)
    if len(classes) > results.ROOMY:
        fig.colorbar(axes[0].images[0], ax=axes, label="share of the true class", shrink=0.6)
    return fig


def _calibration(table: pd.DataFrame) -> Figure:
    """Columns method, confidence, accuracy, n_samples; a panel per method."""
    return _by_method(table, results.calibration, ratio=1.05, numbers=True)[0]


def _kaplan_meier(table: pd.DataFrame) -> Figure:
    """Columns method, group, months, survival, low, high, at_risk, p_value (log-rank); a panel per method."""
    groups = list(pd.unique(table["group"]))

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        results.kaplan_meier(rows, ax, groups=groups, legend=False)

    fig, axes = _by_method(table, panel, ratio=0.95, numbers=True)
    return with_legend(fig, axes)


def _umap(table: pd.DataFrame) -> Figure:
    """Columns method, class, label, x, y, reference and the four numbers of `embedding.quality` for the classes.

    Classes whose rows have on_top set (where there is such a column) are drawn last and larger.
    """
    classes = _numbered(table)
    on_top = list(table.loc[table["on_top"], "class"].unique()) if "on_top" in table else []

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        numbers = rows["class"].map(classes.index).to_numpy()
        results.scatter_embedding(rows[["x", "y"]].to_numpy(), numbers, classes, ax, on_top=on_top, legend=False)

    return _embedding(table, panel)


def _numbered(table: pd.DataFrame) -> list[str]:
    """Names of the classes at their numbers (column label, where there is one), which give them their colours.

    "" stands for a number that no row has: a class may be in one figure and not in another.
    """
    if "label" not in table:
        return list(pd.unique(table["class"]))
    names = dict(zip(table["label"], table["class"], strict=True))
    return [names.get(number, "") for number in range(int(max(names)) + 1)]


def _umap_shortcut(table: pd.DataFrame) -> Figure:
    """As `umap`, with columns shortcut (site or patient of each image) and shortcut_kind in place of the class."""
    counts = table[table["method"] == table["method"].iloc[0]]["shortcut"].value_counts(sort=False)
    few = len(counts) <= MAX_COLOURED
    names = sorted(counts.sort_values(ascending=False, kind="stable").index[:MAX_COLOURED])

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        named = rows["shortcut"].isin(names)
        if not few:
            others = rows.loc[~named, ["x", "y"]].to_numpy()
            ax.scatter(*others.T, s=3, color="0.8", linewidths=0, rasterized=len(others) > 2000)
        numbers = rows.loc[named, "shortcut"].map(names.index).to_numpy()
        results.scatter_embedding(rows.loc[named, ["x", "y"]].to_numpy(), numbers, names, ax, legend=False)

    kind = table["shortcut_kind"].iloc[0]
    n_others = len(counts) - len(names)
    note = f"colours: the {MAX_COLOURED} {kind}s with the most images; grey: {n_others} others"
    return _embedding(table, panel, "" if few else note)


def _embedding(table: pd.DataFrame, scatter: Callable[[pd.DataFrame, Axes], object], note: str = "") -> Figure:
    """Panels of an embedding with the quality below each; a note stands in place of a legend that would not fit."""

    def panel(rows: pd.DataFrame, ax: Axes) -> None:
        scatter(rows, ax)
        first = rows.iloc[0]
        ax.set_xlabel(
            f"silhouette {first['silhouette_features']:z.2f} | {first['silhouette_plane']:z.2f}\n"
            f"kNN purity {first['purity_features']:.2f} | {first['purity_plane']:.2f}",
            fontsize=FONT_POINTS - 1,
        )
        ax.set_ylabel("")
        ax.spines[:].set(visible=True, color="0.8")  # the same part of the plane in every panel

    # methods that were fitted alone have no plane in common
    fig, axes = _by_method(table, panel, ratio=1.25, share=bool(table["reference"].iloc[0]), outer=False)
    if not note:
        return with_legend(fig, axes)
    fig.set_figheight(fig.get_figheight() + 0.2)
    fig.suptitle(note, fontsize=FONT_POINTS - 1)
    return fig


def _gkm_weights(table: pd.DataFrame) -> Figure:
    """Columns epoch and weight_<term>, one or more rows per epoch; and method, a panel each, where several are."""
    columns = [column for column in table if column.startswith("weight_")]
    if "method" not in table:
        fig, ax = figure()
        results.weights_over_time(table, columns, ax)
        return fig
    draw = partial(results.weights_over_time, columns=columns, legend=False)
    fig, axes = _by_method(table, lambda rows, ax: draw(rows, ax=ax), ratio=0.75)
    return with_legend(fig, axes)


def _singular_values(table: pd.DataFrame) -> Figure:
    """Columns modality, value and state ("before", "after"), a row per singular value; a panel per modality."""
    modalities = list(table.groupby("modality", sort=False))
    fig, axes = _grid(len(modalities), ratio=0.75, share=False)
    for ax, (modality, rows) in zip(axes, modalities, strict=True):
        results.singular_spectrum(rows, ax)
        ax.set_title(modality)
    return fig


def _interval_bars(table: pd.DataFrame) -> Figure:
    """Columns method, metric, value (or difference, and minus: whose value is taken away), low, high, setting."""
    setting = table["setting"] if "setting" in table else ""
    named = (table["method"] + " " + setting).str.strip()
    labels = named.map(lambda name: on_lines(name, results.LINE))
    n_lines = labels.str.count("\n").max() + 1
    wide = labels.str.len().max() > results.LINE // 2
    fig, ax = figure(wide=wide, n_rows=len(table) * n_lines)
    results.interval_bars(table.rename(columns={"difference": "value"}).assign(method=named), ax)
    label = metric_words(table["metric"].iloc[0])
    if "minus" in table:
        ax.axvline(0, color="0.4", linewidth=0.8)
        label += f"\nminus that of {on_lines(table['minus'].iloc[0], results.LINE)}"
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins=6 if wide else 5)  # small differences have long numbers
    return fig


DRAW: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "learning curves": _learning_curves,
    "roc": lambda table: _class_curves(table, "auc"),
    "pr": lambda table: _class_curves(table, "average_precision"),
    "confusion": _confusion,
    "calibration": _calibration,
    "kaplan-meier": _kaplan_meier,
    "umap": _umap,
    "umap shortcut": _umap_shortcut,
    "gkm weights": _gkm_weights,
    "singular values": _singular_values,
    "interval bars": _interval_bars,
}
"""Figures by name; the docstring of each says which columns its table needs."""


def _by_method(
    table: pd.DataFrame,
    panel: Callable[[pd.DataFrame, Axes], object],
    *,
    ratio: float,
    share: bool = True,
    outer: bool = True,
    numbers: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A panel per method, in order of appearance.

    With `outer`, only panels at the left and the bottom have labels; with `numbers`, titles leave a line for them.
    """
    groups = list(table.groupby("method", sort=False))
    fig, axes = _grid(len(groups), ratio=ratio, share=share)
    n_columns = _columns(len(groups))
    for place, (ax, (method, rows)) in enumerate(zip(axes, groups, strict=True)):
        panel(rows, ax)
        ax.set_title(on_lines(method, 26), pad=FONT_POINTS + 4 if numbers else None)
        if outer and place % n_columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if outer and place + n_columns < len(groups):
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
    return fig, axes


def _grid(n: int, *, ratio: float, share: bool) -> tuple[Figure, list[Axes]]:
    """`n` panels, `ratio` as high as wide, up to 4 a row of a page; one panel is as wide as a column."""
    n_columns = _columns(n)
    width = COLUMN_WIDTH if n == 1 else PAGE_WIDTH
    n_rows, height = -(-n // n_columns), ratio * _panel_width(n)
    fig = plt.figure(figsize=(width, height * n_rows + 0.3), layout="constrained")
    grid = fig.add_gridspec(n_rows, n_columns)
    axes: list[Axes] = []
    for place in range(n):
        shared = axes[0] if axes and share else None
        axes.append(fig.add_subplot(grid[place // n_columns, place % n_columns], sharex=shared, sharey=shared))
    return fig, axes


def _panel_width(n: int) -> float:
    """Inches of one of `n` panels, at most as a height follows from it."""
    return min((COLUMN_WIDTH if n == 1 else PAGE_WIDTH) / _columns(n), 2.6)


def _columns(n: int) -> int:
    return 4 if n in (4, 7, 8) or n > 9 else min(n, 3)
