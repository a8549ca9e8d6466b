"""Cohort browser: filter samples, see their modalities side by side, and one patient's values against the cohort."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medkd.data.checks import Finding
from medkd.data.cohort import Cohort
from medkd.data.folds import Split
from medkd.report.style import PALETTE, figure
from medkd.widgets.pictures import gallery, picture, side_by_side

EVERY = "all"
HIDDEN = ("label", "roi")
"""Columns of the table that say nothing to a reader of one sample."""


class CohortBrowser(widgets.VBox):
    """Samples of a cohort to look through; keyboard and mouse both work.

    Args:
        cohort: what to look at.
        split: parts of its first fold, to filter by; None leaves the filter out.
        findings: of `medkd.data.checks.check`, shown on top.
        size: side of the decoded images, px.
        n_shown: samples per page.

    Attributes:
        rows: row numbers that pass the filter, shape (n,).
    """

    def __init__(
        self,
        cohort: Cohort,
        *,
        split: Split | None = None,
        findings: Sequence[Finding] = (),
        size: int = 96,
        n_shown: int = 24,
    ) -> None:
        self.cohort, self._n_shown = cohort, n_shown
        self._pixels = {name: source.load(size) for name, source in cohort.images.items()}
        self._part = _parts(cohort, split)
        # by number: a class may be called "all"
        numbered = [(EVERY, -1), *((name, label) for label, name in enumerate(cohort.classes))]
        self.class_filter = widgets.Dropdown(options=numbered, description="class")
        parts = [EVERY, *dict.fromkeys(part for part in self._part if part)]
        self.split_filter = widgets.Dropdown(options=parts, description="split")
        self.patient_filter = widgets.Text(
            placeholder="part of an id", description=cohort.group, continuous_update=False
        )
        self.page = widgets.BoundedIntText(value=1, min=1, max=1, description="page")
        self.sample = widgets.Select(options=[], description="sample", rows=8)
        self.count, self.thumbnails, self.detail = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.profile = widgets.Output()
        for control in (self.class_filter, self.split_filter, self.patient_filter):
            control.observe(self._filter, names="value")
        self.page.observe(self._turn, names="value")
        self.sample.observe(self._choose, names="value")
        filters = widgets.HBox([self.class_filter, self.split_filter, self.patient_filter, self.page])
        below = widgets.HBox([self.sample, self.detail, self.profile])
        warnings = widgets.HTML("".join(_paragraph(finding) for finding in findings))
        super().__init__([warnings, filters, self.count, self.thumbnails, below])
        self._filter()

    @property
    def chosen(self) -> int:
        """Row number of the sample in the detail view, -1 for none."""
        return -1 if self.sample.value is None else int(self.sample.value)

    def _filter(self, _: object = None) -> None:
        table = self.cohort.table
        keep = np.ones(len(table), bool)
        if self.class_filter.value >= 0:
            keep &= self.cohort.labels == self.class_filter.value
        if self.split_filter.value != EVERY:
            keep &= self._part == self.split_filter.value
        if wanted := self.patient_filter.value.strip():
            keep &= table["patient"].astype(str).str.contains(wanted, case=False, regex=False).to_numpy()
        self.rows = np.flatnonzero(keep)
        n_groups = table["patient"].iloc[self.rows].nunique()
        origin = " (simulated)" if self.cohort.simulated else ""
        self.count.value = f"{len(self.rows):,} of {len(table):,} samples, {n_groups:,} {self.cohort.group}s{origin}"
        self.page.max = max(1, -(-len(self.rows) // self._n_shown))
        self.page.value = 1
        self._turn()

    def _turn(self, _: object = None) -> None:
        start = (self.page.value - 1) * self._n_shown
        rows = self.rows[start : start + self._n_shown]
        ids, names = self.cohort.table["id"], self.cohort.table["class"]
        self.thumbnails.value = gallery([(self._modalities(row, 64), f"{names[row]}") for row in rows])
        self.sample.options = [(f"{ids[row]} ({names[row]})", int(row)) for row in rows]

    def _choose(self, _: object = None) -> None:
        self.profile.clear_output(wait=self.chosen >= 0)  # to wait is for output that comes; of no sample none does
        if (row := self.chosen) < 0:
            self.detail.value = ""
            return
        record = self.cohort.table.iloc[row].drop(list(HIDDEN))
        facts = record.to_frame("").to_html(header=False, border=0)
        self.detail.value = self._modalities(row, 160) + facts
        with self.profile:
            for name in self.cohort.vectors:
                fig, ax = figure()
                vector_profile(self.cohort, name, row, ax)
                display_and_close(fig)

    def _modalities(self, row: int, side: int) -> str:
        sample = self.cohort.table["id"].iloc[row]
        return side_by_side(
            [picture(pixels[row], side=side, title=f"{name} of {sample}") for name, pixels in self._pixels.items()]
        )


def vector_profile(cohort: Cohort, name: str, row: int, ax: plt.Axes, *, n_columns: int = 15) -> plt.Axes:
    """The most unusual values of one sample in a vector modality, over the 5 to 95 % range of the cohort.

    Args:
        cohort: that the sample belongs to.
        name: vector modality.
        row: of the sample.
        ax: where.
        n_columns: columns shown, those farthest from the cohort's mean.
    """
    vector = cohort.vectors[name]
    mean, sd = np.nanmean(vector.values, axis=0), np.nanstd(vector.values, axis=0).clip(1e-6)
    own = (vector.values[row] - mean) / sd
    shown = np.argsort(-np.nan_to_num(np.abs(own)), kind="stable")[:n_columns]
    low, high = ((np.nanquantile(vector.values[:, shown], q, axis=0) - mean[shown]) / sd[shown] for q in (0.05, 0.95))
    places = np.arange(len(shown))
    ax.hlines(places, low, high, color="0.8", linewidth=4, label="5 to 95 % of the cohort")
    ax.plot(own[shown], places, "o", color=PALETTE[1], markersize=4, label="this sample")
    ax.set_yticks(places, labels=[vector.names[column] for column in shown])
    ax.invert_yaxis()
    ax.set_xlabel(f"{name}, SDs from the mean")
    ax.legend(loc="lower right", fontsize="x-small")
    return ax


def display_and_close(fig: plt.Figure) -> None:
    """Show a figure in the present output, once."""
    from IPython.display import display

    display(fig)
    plt.close(fig)


def _parts(cohort: Cohort, split: Split | None) -> np.ndarray:
    """Part of every row: "train", "val", "test" or ""."""
    parts = np.full(len(cohort), "", object)
    for name in ("train", "val", "test") if split is not None else ():
        parts[getattr(split, name)] = name
    return parts


def _paragraph(finding: Finding) -> str:
    return f"<p><b>{'error' if finding.error else 'warning'}:</b> {html.escape(finding.text)}</p>"


def browse(cohort: Cohort, **options: object) -> pd.DataFrame | CohortBrowser:
    """The browser where somebody can use it; elsewhere the table it browses, without images."""
    from medkd.widgets.place import is_interactive

    return CohortBrowser(cohort, **options) if is_interactive() else cohort.table.drop(columns="label").head(12)
