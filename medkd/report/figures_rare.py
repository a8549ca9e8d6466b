"""Plot functions of the rare-disease chain: they take tables and `ax`, draw, and return `ax`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medkd.report.style import method_colour


def by_shots(table: pd.DataFrame, ax: Axes, *, grey: str = "") -> Axes:
    """A number against K with its interval, one line a method.

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
    ax.set_xlabel("labelled images a rare class (K)")
    ax.legend()
    return ax
