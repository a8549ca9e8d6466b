"""Figures of the rare-disease chain."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medkd.report.figures import heatmap, histogram_by_group
from medkd.report.style import figure, method_colour, panels, with_legend


def by_shots(table: pd.DataFrame, ax: Axes, *, grey: str = "") -> Axes:
    """A number against K with its interval, one line per method.

    `table` has columns method, K, value, low, high. K stands at equal steps, methods side by side, so that intervals
    do not cover one another. The method named `grey` is drawn in grey: what the others are compared with.
    """
    shots = sorted(table["K"].unique())
    methods = list(dict.fromkeys(table["method"]))
    for number, method in enumerate(methods):
        rows = table[table["method"] == method].sort_values("K")
        places = np.array([shots.index(k) for k in rows["K"]]) + 0.06 * (number - (len(methods) - 1) / 2)
        colour = "0.6" if method == grey else method_colour(str(method))
        ax.vlines(places, rows["low"], rows["high"], color=colour, linewidth=1.2)
        ax.plot(places, rows["value"], "o-", color=colour, markersize=3.5, label=str(method))
    ax.set_xticks(range(len(shots)), labels=[str(k) for k in shots])
    ax.set_xlabel("labelled images per rare class (K)")
    ax.legend()
    return ax


def shots_by_method(table: pd.DataFrame, reference: str) -> Figure:
    """`by_shots` of each method beside the reference (grey), a panel per method, all on one axis."""
    others = [method for method in dict.fromkeys(table["method"]) if method != reference]
    fig, axes = panels(len(others))
    for ax, method in zip(axes, others, strict=True):
        by_shots(table[table["method"].isin([reference, method])], ax, grey=reference)
        ax.set(ylabel="balanced accuracy", ylim=(table["low"].min() - 0.02, table["high"].max() + 0.02))
    return fig


def pseudo_labels(by_class: pd.DataFrame, confidence: np.ndarray, classes: np.ndarray) -> Figure:
    """What the pseudo-labels of common images are, and how sure.

    Args:
        by_class: share of each rare class (columns) in each common class (index).
        confidence: of each label, shape (n,).
        classes: common class of each image, shape (n,).
    """
    fig, (left, right) = figure(wide=True, n_columns=2)
    heatmap(by_class.to_numpy(), by_class.index, by_class.columns, left)
    left.set(xlabel="rare class of the pseudo-label", ylabel="common class")
    histogram_by_group(confidence, classes, right, list(by_class.index))
    right.set_xlabel("confidence of the pseudo-label")
    return with_legend(fig, [right])
