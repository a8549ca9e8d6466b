"""Feature explorer: UMAP of several methods side by side, linked; what is selected shows its images and their table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from medkd.data.cohort import Cohort
from medkd.errors import DataError, MedkdError, first_few
from medkd.evaluation.points import BY_METHOD, NONE, PLACE, as_text, by_image, checked_points, class_order, value_groups
from medkd.files import unwritable, write_table
from medkd.paths import reports_dir
from medkd.report.figures_results import scatter_embedding
from medkd.report.style import PALETTE, panels, with_legend
from medkd.widgets.pictures import gallery, picture, side_by_side
from medkd.widgets.place import is_interactive

N_COLUMNS, ROW_HEIGHT = 3, 290  # views per row, and their height in px
TINTS = tuple(to_hex([0.55 + 0.45 * part for part in to_rgb(colour)]) for colour in PALETTE)
GREY = "#d9d9d9"
HOW = (
    "Drag a line round points to select them in every view; the wheel zooms, the arrows left of a view make dragging "
    "move it, Esc or a double click clears. By keyboard: choose a value, then Select."
)


class FeatureExplorer(widgets.VBox):
    """Points of an embedding to look into; made by `explore`, which checks and explains the arguments.

    Attributes:
        ids: ids of the images that have a point in any view.
        selected: positions of the selected images in `ids`, ascending.
        scatters: method -> its jupyter-scatter plot.
        groups: column to colour by -> the group of each point.
    """

    def __init__(
        self, points: pd.DataFrame, cohort: Cohort, *, size: int = 96, n_shown: int = 24, folder: Path | None = None
    ) -> None:
        self.cohort, self._size, self._n_shown = cohort, size, n_shown
        self._folder = reports_dir() / "selections" if folder is None else Path(folder)
        self.methods = [str(method) for method in points["method"].unique()]
        self.ids = pd.Index(points["id"].unique())
        self._cohort_rows = _rows_of(cohort, self.ids)
        self._points, self._image = points, self.ids.get_indexer(points["id"])
        self._rows = {method: np.flatnonzero(points["method"] == method) for method in self.methods}
        orders = {"correct": ("right", "wrong")}
        classes = class_order(points, (*cohort.rare_classes, *cohort.classes))
        shown = [name for name in points if name not in PLACE]
        self.groups = {name: value_groups(points[name], orders.get(name, classes)) for name in shown}
        self.selected, self._linking = np.empty(0, int), False
        self._make_controls()
        self.scatters, views = self._make_views()
        self._recolour()
        self._show_selection()
        about = f"<b>{html.escape(cohort.label_text)}</b>, {len(self.ids):,} images. {HOW}"
        choice = widgets.HBox([self.colour_by, self.value, self.view, self.select_button, self.clear_button])
        below = widgets.HBox([self.page, self.export_button, self.status])
        credit = widgets.HTML(html.escape(cohort.attribution))
        results = [self.count, below, self.thumbnails, self.table, credit]
        super().__init__([widgets.HTML(about), choice, self.legend, views, *results])

    @property
    def selection(self) -> pd.DataFrame:
        """The rows of the selected images, one per method and image, as they are exported."""
        return self._points[np.isin(self._image, self.selected)].reset_index(drop=True)

    def select(self, images: np.ndarray, *, source: str = "") -> None:
        """Select images in every view.

        Args:
            images: positions in `ids`, shape (n,).
            source: method whose view shows them already.
        """
        images = np.unique(np.asarray(images, int))
        if np.array_equal(images, self.selected):
            return
        self.selected, self._linking = images, True
        for method, scatter in self.scatters.items():
            if method != source:
                found = np.isin(self._image[self._rows[method]], images)
                scatter.widget.selection = np.flatnonzero(found).astype(np.uint32)
        self._linking = False
        self._show_selection()

    def _make_controls(self) -> None:
        self.colour_by = widgets.Dropdown(options=list(self.groups), description="colour by")
        self.value = widgets.Dropdown(description="value")
        self.view = widgets.Dropdown(options=self.methods, description="of method")
        self.select_button = widgets.Button(description="Select", tooltip="select all points of this value")
        self.clear_button = widgets.Button(description="Clear", tooltip="select nothing")
        self.page = widgets.BoundedIntText(value=1, min=1, max=1, description="page")
        self.export_button = widgets.Button(description="Export", icon="download", tooltip="write a CSV")
        self.legend, self.count, self.thumbnails = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.table, self.status = widgets.HTML(), widgets.HTML()
        self.table.add_class("jp-RenderedHTMLCommon")  # the look of tables in JupyterLab
        self.colour_by.observe(self._recolour, names="value")
        self.page.observe(self._turn, names="value")
        self.select_button.on_click(self._select_value)
        self.clear_button.on_click(lambda _: self.select([]))
        self.export_button.on_click(self._export)

    def _make_views(self) -> tuple[dict, widgets.Widget]:
        import jscatter  # takes 3 s

        points = self._points
        told = pd.DataFrame({name: as_text(points[name]) for name in ("id", *self.groups)})
        coded = pd.DataFrame(self.groups).add_prefix("by ")
        data = pd.concat([points[["x", "y"]], told, coded], axis=1)
        # methods with the same images lie in one plane, see medkd.stages.evaluation.embed
        shared = len({tuple(self._image[rows]) for rows in self._rows.values()}) == 1
        scatters = {}
        for method, rows in self._rows.items():
            own = data.iloc[rows].reset_index(drop=True)
            scales = {f"{axis}_scale": _padded(points[axis] if shared else own[axis]) for axis in "xy"}
            scatters[method] = jscatter.Scatter("x", "y", own, axes=False, opacity_unselected=0.2, **scales)
            scatters[method].mouse("lasso")  # Shift, which would start one too, belongs to JupyterLab's cells
            scatters[method].tooltip(True, properties=list(told), histograms=False)
            scatters[method].widget.observe(self._listener(method), names="selection")
        titled = [(scatter, html.escape(method)) for method, scatter in scatters.items()]
        shape = {"rows": -(-len(titled) // N_COLUMNS), "cols": min(N_COLUMNS, len(titled)), "row_height": ROW_HEIGHT}
        grid = jscatter.compose(titled, sync_view=shared, sync_hover=shared, **shape)
        grid.layout.grid_template_rows = "auto"  # fixed ones are lower than plot and title together
        return scatters, grid

    def _listener(self, method: str) -> object:
        """What hears of a lasso in the view of a method."""

        def hear(change: dict) -> None:
            if not self._linking:
                rows = [] if change["new"] is None else np.asarray(change["new"], int)
                self.select(self._image[self._rows[method][rows]], source=method)

        return hear

    def _recolour(self, _: object = None) -> None:
        column = self.colour_by.value
        groups = self.groups[column]
        colours = _colours(groups)
        for method, scatter in self.scatters.items():
            present = groups.iloc[self._rows[method]].cat.remove_unused_categories().cat.categories
            scatter.color(by=f"by {column}", map={name: colours[name] for name in present})
            scatter.widget.color_selected = scatter.widget.color  # what is selected keeps its colour, the rest fades
        self.value.options, self.value.index = list(colours), 0
        self.legend.value = self._legend_of(column, colours)
        self.view.disabled = column not in BY_METHOD

    def _legend_of(self, column: str, colours: dict[str, str]) -> str:
        methods = self.methods if column in BY_METHOD else self.methods[:1]
        counts = [self.groups[column].iloc[self._rows[method]].value_counts() for method in methods]
        entries = "".join(
            f'<span style="display:inline-block;margin-right:12px"><span style="display:inline-block;width:12px;'
            f'height:12px;background:{colour};border:1px solid #888"></span> {html.escape(name)} '
            f"({' | '.join(f'{count[name]:,}' for count in counts)})</span>"
            for name, colour in colours.items()
        )
        of = f", points of {html.escape(' | '.join(methods))}" if len(methods) > 1 else ""
        return f'<div style="line-height:1.5"><b>{html.escape(column)}</b>{of}: {entries}</div>'

    def _select_value(self, _: object) -> None:
        column = self.colour_by.value
        found = (self.groups[column] == self.value.value).to_numpy()
        if column in BY_METHOD:
            found = found & (self._points["method"] == self.view.value).to_numpy()
        self.select(self._image[found])

    def _show_selection(self) -> None:
        rows = self._cohort_rows[self.selected]
        table = self.cohort.table.iloc[rows]
        text = f"{len(rows):,} of {len(self.ids):,} images selected"
        if len(rows):
            counts = table["class"].value_counts()
            text += f", {table['patient'].nunique():,} {self.cohort.group}s: "
            text += ", ".join(f"{name} {number:,}" for name, number in counts.items())
        self.count.value = html.escape(text)
        self.status.value = ""
        self.export_button.disabled = not len(rows)
        if self.page.value == 1:
            self._turn()
        else:
            self.page.value = 1  # turns the page
        self.page.max = max(1, -(-len(rows) // self._n_shown))

    def _turn(self, _: object = None) -> None:
        images = self.selected[(self.page.value - 1) * self._n_shown :][: self._n_shown]
        self.thumbnails.value = self.table.value = ""
        if not len(images):
            return
        rows = self._cohort_rows[images]
        try:
            pixels = {name: source.take(rows).load(self._size) for name, source in self.cohort.images.items()}
        except MedkdError as error:
            self.status.value = html.escape(str(error))
            return
        names = self.cohort.table["class"].iloc[rows]
        cells = []
        for place, (sample, label) in enumerate(zip(self.ids[images], names, strict=True)):
            tiles = [
                picture(found[place], side=self._size, title=f"{name} of {sample}") for name, found in pixels.items()
            ]
            cells.append((side_by_side(tiles), f"{sample}: {label}"))
        self.thumbnails.value = gallery(cells)
        self.table.value = by_image(self._points, self.ids[images]).to_html(index=False, border=0)

    def _export(self, _: object) -> None:
        table = self.selection
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = [path.stem.removeprefix("selection_") for path in self._folder.glob("selection_*.csv")]
            number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
            path = self._folder / f"selection_{number}.csv"
            write_table(path, table)
        except OSError as error:
            self.status.value = html.escape(str(unwritable(self._folder, error)))
        else:
            self.status.value = html.escape(f"wrote {len(table):,} rows ({len(self.selected):,} images) to {path}")


def explore(
    points: pd.DataFrame,
    cohort: Cohort,
    *,
    methods: Sequence[str] | None = None,
    size: int = 96,
    n_shown: int = 24,
    folder: Path | None = None,
) -> FeatureExplorer | Figure:
    """The feature explorer where somebody can use it; elsewhere a figure of the same panels, coloured by class.

    Args:
        points: one row per method and image, of `medkd.evaluation.points.points_table`.
        cohort: whose images they are; views, figure and captions say so where it is simulated.
        methods: which of them to show, one view each, in this order; None shows all.
        size: side of the images, px.
        n_shown: images per page.
        folder: where selections are exported to as `selection_<n>.csv`; by default `selections` among the reports.

    Returns:
        The widget, whose `selection` is a table too, or the figure.

    Raises:
        ParameterError: if a method is unknown.
        DataError: if the points lack a column, repeat an image of a method, have no finite place, or are of images
            that the cohort does not have.
    """
    points = checked_points(points, methods)
    _rows_of(cohort, points["id"])
    if is_interactive():
        return FeatureExplorer(points, cohort, size=size, n_shown=n_shown, folder=folder)
    return _figure(points, cohort)


def _rows_of(cohort: Cohort, ids: Sequence[str]) -> np.ndarray:
    rows = pd.Index(cohort.table["id"]).get_indexer(ids)
    if (rows < 0).any():
        unknown = first_few(list(np.asarray(ids, object)[rows < 0]))
        raise DataError(f"points are of images that {cohort.name} does not have: {unknown}; pass their own cohort")
    return rows


def _colours(groups: pd.Series) -> dict[str, str]:
    """Group -> colour: steps of viridis for ranges of numbers, else the palette, its tints, and grey for the rest."""
    names = [str(name) for name in groups.cat.categories]
    own = [name for name in names if name != NONE]
    if groups.cat.ordered:
        colours = [to_hex(colour) for colour in mpl.colormaps["viridis"](np.linspace(0, 1, len(own)))]
    else:
        colours = [*PALETTE, *TINTS]
    every = dict.fromkeys(names, GREY) | dict(zip(own, colours, strict=False))
    return {name: every[name] for name in groups.cat.remove_unused_categories().cat.categories}


def _padded(places: pd.Series) -> tuple[float, float]:
    """The range of coordinates with room on both sides, so that a lasso fits round the outermost points."""
    low, high = float(places.min()), float(places.max())
    room = 0.1 * (high - low) or 1.0
    return low - room, high + room


def _figure(points: pd.DataFrame, cohort: Cohort) -> Figure:
    groups = list(points.groupby("method", sort=False))
    order = class_order(points, (*cohort.rare_classes, *cohort.classes))
    fig, axes = panels(len(groups))
    for ax, (method, rows) in zip(axes, groups, strict=True):
        labels = rows["class"].map(order.index).to_numpy()
        scatter_embedding(rows[["x", "y"]].to_numpy(), labels, order, ax, legend=False)
        ax.set_title(method)
    fig.suptitle(cohort.label_text)
    with_legend(fig, axes, "outside lower center")
    plt.close(fig)  # the notebook shows what is returned, once
    return fig
