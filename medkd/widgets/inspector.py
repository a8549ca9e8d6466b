"""Error inspector: a confusion matrix whose cells open their images, with activation maps of two methods."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from medkd.data.cohort import Cohort
from medkd.errors import MedkdError
from medkd.evaluation.judged import Judged
from medkd.report.figures_errors import COLOURS, TARGETS, Maps, error_pages, views
from medkd.report.style import PALETTE
from medkd.widgets.pictures import gallery, picture
from medkd.widgets.place import is_interactive

BAR = ", ".join(to_hex(COLOURS(share)) for share in np.linspace(0, 1, 9))


class ErrorInspector(widgets.VBox):
    """A confusion matrix to open; made by `inspect_errors`, which explains the arguments.

    Attributes:
        cells: (true class, predicted class), numbers into `classes` -> its button.
        classes: names of rows and columns.
        chosen: the open cell, None before one is chosen.
        shown: its rows, the most confident first: id, patient, label, method, setting, part, predicted, confidence.
    """

    def __init__(
        self,
        judged: Judged,
        *,
        method: str,
        beside: str,
        setting: str,
        maps: Maps | None = None,
        size: int = 96,
        n_shown: int = 8,
    ) -> None:
        self._judged, self._maps, self._size, self._n_shown = judged, maps, size, n_shown
        self.classes, self.chosen, self.shown = judged.classes, None, judged.table.iloc[:0]
        self.setting = widgets.Dropdown(options=judged.settings, value=setting, description="setting")
        self.method = widgets.Dropdown(options=judged.methods, value=method, description="method")
        self.beside = widgets.Dropdown(options=judged.methods, value=beside, description="beside")
        self.target = widgets.Dropdown(options=TARGETS, description="maps of")
        self.page = widgets.BoundedIntText(value=1, min=1, max=1, description="page")
        self.count, self.pictures, self.status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.matrix = self._make_matrix()
        for control in (self.setting, self.method):
            control.observe(self._recount, names="value")
        for control in (self.beside, self.target, self.page):
            control.observe(self._turn, names="value")
        cohort = judged.cohort
        about = f"<b>{html.escape(cohort.label_text)}</b>, test images: rows are the true class, columns the predicted."
        choice = [*([self.setting] if len(judged.settings) > 1 else []), self.method]
        choice += [] if maps is None else [self.beside, self.target]
        credit = widgets.HTML(html.escape(cohort.attribution))
        below = [self.count, self.page, self.status, self.pictures, credit]
        super().__init__([widgets.HTML(about), widgets.HBox(choice), self.matrix, *below])
        self._recount()

    def choose(self, label: int, predicted: int) -> None:
        """Show the images of one cell."""
        self.chosen = (label, predicted)
        self._recount()

    def _make_matrix(self) -> widgets.GridBox:
        n = len(self.classes)
        self.cells = {(label, predicted): widgets.Button() for label in range(n) for predicted in range(n)}
        for (label, predicted), button in self.cells.items():
            button.layout = widgets.Layout(width="auto", min_width="44px", margin="1px")
            button.on_click(lambda _, cell=(label, predicted): self.choose(*cell))
        names = [widgets.HTML(f'<div style="font-size:12px">{html.escape(name)}</div>') for name in self.classes]
        rows = [
            [widgets.HTML(names[label].value), *(self.cells[label, predicted] for predicted in range(n))]
            for label in range(n)
        ]
        corner = widgets.HTML('<div style="font-size:12px"><i>true \\ predicted</i></div>')
        columns = f"auto repeat({n}, minmax(44px, 110px))"
        layout = widgets.Layout(grid_template_columns=columns, width="max-content", max_width="100%")
        return widgets.GridBox([corner, *names, *(child for row in rows for child in row)], layout=layout)

    def _recount(self, _: object = None) -> None:
        counts = self._judged.counts(self.setting.value, self.method.value)
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        for (label, predicted), button in self.cells.items():
            share = shares[label, predicted]
            button.description = str(counts[label, predicted])
            button.tooltip = f"{self.classes[label]} as {self.classes[predicted]}: {counts[label, predicted]}"
            button.style.button_color = to_hex(mpl.colormaps["Blues"](share))
            button.style.text_color = "white" if share > 0.75 else "black"  # either is readable on its shade
            is_open = (label, predicted) == self.chosen
            button.style.font_weight = "bold" if is_open else "normal"
            button.layout.border = f"3px solid {PALETTE[1]}" if is_open else "1px solid #ccc"
        if self.chosen is None:
            self.count.value = "Choose a cell to see its images, the most confident first."
            self.page.disabled = True
            return
        label, predicted = self.chosen
        self.shown = self._judged.cell(self.setting.value, self.method.value, label, predicted)
        n_pages = max(1, -(-len(self.shown) // self._n_shown))
        text = f"{self.classes[label]} as {self.classes[predicted]}: {len(self.shown)} of {counts[label].sum()} images"
        where = ", ".join(filter(None, [f"({shares[self.chosen]:.0%})", self.method.value, self.setting.value]))
        pages = f", {n_pages} pages" if n_pages > 1 else ""
        self.count.value = f"<b>{html.escape(text)}</b> {html.escape(where)}{pages}"
        self.page.disabled = False
        if self.page.value == 1:
            self._turn()
        else:
            self.page.value = 1  # turns the page
        self.page.max = n_pages

    def _turn(self, _: object = None) -> None:
        start = (self.page.value - 1) * self._n_shown
        samples = self.shown.iloc[start : start + self._n_shown].reset_index(drop=True)
        self.pictures.value = self.status.value = ""
        if not len(samples):
            return
        methods, several_parts = (self.beside.value, self.method.value), self.shown["part"].nunique() > 1
        if self._maps is not None:
            self.status.value = "computing activation maps ..."
        try:
            shown = views(self._judged, samples, self._size, self._maps, methods, self.target.value)
            self.status.value = self._about_maps(methods)
        except MedkdError as error:
            shown = views(self._judged, samples, self._size, None, (), self.target.value)
            self.status.value = html.escape(str(error))
        blocks = []
        for row, pictures in zip(samples.itertuples(), shown, strict=True):
            tiles = [(picture(image, side=self._size, title=f"{name} of {row.id}"), name) for image, name in pictures]
            part = f", part {row.part}" if several_parts else ""
            text = f"{row.id}, {self._judged.cohort.group} {row.patient}, confidence {row.confidence:.2f}{part}"
            blocks.append((f'<div style="white-space:nowrap">{gallery(tiles)}</div>', text))
        self.pictures.value = gallery(blocks)

    def _about_maps(self, methods: Sequence[str]) -> str:
        """What the maps are, a bar of their colours, and why some are missing."""
        if self._maps is None:
            return ""
        reasons = getattr(self._maps, "left_out", {})
        missing = "".join(f"<br>{html.escape(reasons[name])}." for name in dict.fromkeys(methods) if name in reasons)
        names = dict(zip(TARGETS, (self.classes[self.chosen[1]], self.classes[self.chosen[0]]), strict=False))
        of = html.escape(names.get(self.target.value, self.target.value))
        bar = (
            f'<span style="display:inline-block;width:90px;height:10px;background:linear-gradient(to right,{BAR})">'
            "</span>"
        )
        return (
            f"Maps (Grad-CAM of the last feature maps): what raises the score of {of}, from nothing {bar} to the most "
            f"in this image; they say where, not how much.{missing}"
        )


def inspect_errors(
    predictions: pd.DataFrame,
    cohort: Cohort,
    *,
    method: str | None = None,
    beside: str | None = None,
    setting: str | None = None,
    maps: Maps | None = None,
    size: int = 96,
) -> ErrorInspector | Figure:
    """The error inspector where somebody can use it; elsewhere the figure `error_pages`.

    Args:
        predictions: table `predictions` of stage 07, one row per method, setting, part and image.
        cohort: whose images they are; the view says so where it is simulated.
        method: whose errors are shown first; None takes the last of the table.
        beside: method whose maps stand beside; None takes the first of the table that is another one.
        setting: that is shown first ("K=5"); None takes the last.
        maps: activation maps of the images that are shown, see `Maps`; None leaves them out.
        size: side of the pictures, px.

    Raises:
        DataError, ParameterError: see `Judged`.
    """
    names = {"method": method, "beside": beside, "setting": setting}
    if not is_interactive():
        return error_pages(predictions, cohort, **names, maps=maps, size=size)
    judged = Judged(predictions, cohort)
    return ErrorInspector(judged, **judged.chosen(**names), maps=maps, size=size)
