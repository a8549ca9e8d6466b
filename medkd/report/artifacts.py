"""Figures and tables as files: a picture for the paper, the numbers behind it, a caption, and an index for the page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from pandas.io.formats.style import Styler

from medkd.errors import ParameterError
from medkd.evaluation.words import metric_words
from medkd.files import PLAIN_NAME, write_atomically, write_json, write_table
from medkd.report.figures_paper import draw, paper_style
from medkd.report.index import load_index
from medkd.text import shown

if TYPE_CHECKING:
    from medkd.stages.store import Run

DPI = 200
SIMULATED = "simulated"
MARK_POINTS = 6.0  # font size of the word on the figure
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "[": "{[}",  # at the start of a row it would be the length of the line break before it, and a star a kind of it
    "*": "{*}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
Format = str | Callable[[Any], str]


class Artifacts:
    """Writes the figures and tables of one stage into a report folder.

    Layout: `figures/<stage>-<name>.{pdf,png,csv}`, `tables/<stage>-<name>.{csv,tex}` and `index/<stage>.json`, which
    lists them in the order of their first writing. Writing a name again replaces its files and its entry, so a
    notebook that is run twice leaves the same report.

    Args:
        folder: the report folder; made if it is not there.
        stage: stage name, with a suffix where one stage reports on several cohorts
            ("02_teacher_training.phantom-glioma").
        simulated: True if no real patient is in the data; figures and captions then say so.

    Raises:
        ParameterError: if `stage`, or later the name of a figure or table, cannot be part of a file name.
    """

    def __init__(self, folder: Path, stage: str, *, simulated: bool) -> None:
        self.folder, self.stage, self.simulated = Path(folder), _checked(stage), simulated
        self._index = self.folder / "index" / f"{stage}.json"
        for part in ("figures", "tables", "index"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)

    def figure(
        self, fig: Figure, name: str, caption: str, *, data: pd.DataFrame | None = None, attribution: str = ""
    ) -> Figure:
        """Save a figure as PDF (text stays text) and PNG, and close it; the caller shows what is returned.

        Args:
            fig: the figure, at its final size.
            name: short name, unique in the stage: letters, digits, `.`, `_`, `-`.
            caption: plain text; says what is shown and what the intervals are.
            data: the numbers that are drawn, saved as CSV beside the picture.
            attribution: credit line of the patients' photographs that are shown, appended to the caption; a page that
                is given away (`medkd.report.share`) leaves such a figure out.

        Returns:
            `fig`, closed in pyplot, so that a notebook shows it once.
        """
        stem = f"{self.stage}-{_checked(name)}"
        files = {kind: f"figures/{stem}.{kind}" for kind in ("png", "pdf")}
        _save(fig, self.folder, files, simulated=self.simulated)
        if data is not None:
            files["csv"] = f"figures/{stem}.csv"
            write_table(self.folder / files["csv"], _flat(data))
        entry = {"kind": "figure", "name": name, "caption": self._caption(caption, attribution), "files": files}
        self._enter(entry | {"photographs": bool(attribution.strip())})
        return fig

    def drawn(self, kind: str, table: pd.DataFrame, name: str, caption: str) -> Figure:
        """Draw a figure of a paper from a table and save both; `medkd.report.paper.redraw` draws it again.

        Args:
            kind: key of `medkd.report.figures_paper.DRAW`.
            table: all that is drawn; saved as CSV, from which the figure is drawn here already.
            name: as `figure`.
            caption: as `figure`.

        Returns: as `figure`.

        Raises:
            ParameterError: if the kind is unknown.
            DataError: if the table has no rows or lacks a column that the figure needs.
        """
        stem = f"{self.stage}-{_checked(name)}"
        files = {form: f"figures/{stem}.{form}" for form in ("png", "pdf", "csv")}
        write_table(self.folder / files["csv"], _flat(table))
        fig = draw_figure(kind, self.folder, files, simulated=self.simulated)
        entry = {"kind": "figure", "name": name, "caption": self._caption(caption), "files": files, "draw": kind}
        self._enter(entry | {"photographs": False})
        return fig

    def table(
        self,
        frame: pd.DataFrame,
        name: str,
        caption: str,
        *,
        formats: Mapping[str, Format] | None = None,
        highlight: Mapping[str, Literal["max", "min"]] | None = None,
        summary: bool = False,
    ) -> Styler:
        """Save a table as CSV (all digits) and LaTeX (booktabs, as displayed).

        Args:
            frame: the table; an index that names its rows becomes its first columns.
            name: short name, unique in the stage.
            caption: plain text.
            formats: how columns are displayed: `{"accuracy": "{:.1%}"}`, or a function of a value; other floats get
                three decimals, missing values an en dash.
            highlight: columns whose best value is bold: `{"accuracy": "max", "ece": "min"}`.
            summary: True for a key table that the page shows at the top.

        Returns:
            The table with its caption, for display in a notebook.

        Raises:
            ParameterError: if `formats` or `highlight` name a column that is not there.
        """
        stem = f"{self.stage}-{_checked(name)}"
        shown = _flat(frame)
        asked = [*(formats or {}), *(highlight or {})]
        if unknown := [column for column in asked if column not in shown]:
            known = ", ".join(map(str, shown.columns))
            raise ParameterError(f'table {name} has no column "{unknown[0]}" to format or highlight; it has {known}')
        caption = self._caption(caption)
        files = {kind: f"tables/{stem}.{kind}" for kind in ("csv", "tex")}
        write_table(self.folder / files["csv"], shown)
        latex = _style(shown, formats or {}, highlight or {}, "latex").to_latex(
            hrules=True, position_float="centering", caption=_latex(caption), label=f"tab:{stem}"
        )
        write_atomically(self.folder / files["tex"], lambda part: part.write_text(latex, encoding="utf-8"))
        self._enter({"kind": "table", "name": name, "caption": caption, "files": files, "summary": summary})
        return _style(shown, formats or {}, highlight or {}, "html").set_caption(html.escape(caption))

    def metrics(self, numbers: Mapping[str, Any]) -> None:
        """Merge key numbers of the stage into its index; a number that is not finite is stored as null.

        Args:
            numbers: name -> number (NumPy scalars too), text or None.
        """
        index = self._read()
        index["metrics"] |= {name: _plain(value) for name, value in numbers.items()}
        write_json(self._index, index)

    def uses(self, runs: Iterable[Run]) -> None:
        """Note which runs the stage's results are from: `medkd runs gc` keeps them, and the page lists them."""
        write_json(self._index, self._read() | {"runs": [run.key for run in runs]})

    def _caption(self, caption: str, attribution: str = "") -> str:
        parts = [caption.strip()]
        if self.simulated and SIMULATED not in caption.lower():
            parts.append("Simulated data.")
        return " ".join(part for part in (*parts, attribution.strip()) if part)

    def _enter(self, entry: dict[str, Any]) -> None:
        """Put the entry at the place of the one with its kind and name, else at the end."""
        index = self._read()
        entry = {"stage": self.stage, "simulated": self.simulated, **entry}
        names = [(other["kind"], other["name"]) for other in index["entries"]]
        if (entry["kind"], entry["name"]) in names:
            index["entries"][names.index((entry["kind"], entry["name"]))] = entry
        else:
            index["entries"].append(entry)
        write_json(self._index, index)

    def _read(self) -> dict[str, Any]:
        if self._index.exists():
            return load_index(self._index)
        return {"stage": self.stage, "simulated": self.simulated, "entries": [], "metrics": {}, "runs": []}


def draw_figure(kind: str, folder: Path, files: Mapping[str, str], *, simulated: bool) -> Figure:
    """Draw a figure of a paper from its CSV and write its PNG and PDF, see `Artifacts.drawn`.

    Args:
        kind: key of `medkd.report.figures_paper.DRAW`.
        folder: the report folder.
        files: kind of file ("csv", "png", "pdf") -> path relative to `folder`.
        simulated: write the word on the figure.

    Raises: as `Artifacts.drawn`; also DataError if the CSV is missing.
    """
    with paper_style():
        fig = draw(kind, folder / files["csv"])
        _save(fig, folder, files, simulated=simulated)
    return fig


def _checked(name: str) -> str:
    if not PLAIN_NAME.fullmatch(name):
        raise ParameterError(f'"{name}" cannot be part of a file name; use letters, digits, ".", "_" and "-" only')
    return name


def _save(fig: Figure, folder: Path, files: Mapping[str, str], *, simulated: bool) -> None:
    """Write PNG and PDF and close the figure."""
    if simulated:
        _mark_simulated(fig)
    # Type 42 embeds TrueType outlines: journals refuse Type 3 fonts; no date: the same figure has the same bytes
    with mpl.rc_context({"pdf.fonttype": 42}):
        write_atomically(folder / files["png"], lambda part: fig.savefig(part, format="png", dpi=DPI))
        undated = {"format": "pdf", "dpi": DPI, "metadata": {"CreationDate": None}}
        write_atomically(folder / files["pdf"], lambda part: fig.savefig(part, **undated))
    plt.close(fig)


def _mark_simulated(fig: Figure) -> None:
    """Write the word in the lower right corner, below the axes where the layout can make room for it."""
    if any(text.get_gid() == SIMULATED for text in fig.texts):
        return
    fig.text(0.995, 0.005, SIMULATED, size=MARK_POINTS, color="0.45", ha="right", va="bottom", gid=SIMULATED)
    engine = fig.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        height = 1.5 * MARK_POINTS / 72 / fig.get_figheight()
        engine.set(rect=(0, height, 1, 1 - height))


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a default index; an index that names its rows becomes columns."""
    counts_only = frame.index.names == [None] and pd.api.types.is_integer_dtype(frame.index)
    return frame.reset_index(drop=counts_only)


def _style(frame: pd.DataFrame, formats: Mapping[str, Format], highlight: Mapping[str, str], target: str) -> Styler:
    escape = {"html": html.escape, "latex": _latex}[target]
    bold = {"html": "font-weight: bold", "latex": "textbf:--rwrap;"}[target]

    def display(wanted: Format) -> Callable[[Any], str]:
        # escaped after formatting: a bare % from "{:.1%}" would comment out the rest of a LaTeX row
        return lambda value: escape(shown(value, wanted) if isinstance(wanted, str) else wanted(value))

    displayed = {column: display(formats.get(column, _digits)) for column in frame}
    style = frame.style.format(displayed, na_rep="–").hide(axis="index")
    style = style.format_index(lambda name: escape(metric_words(str(name))), axis="columns")
    for column, best in highlight.items():
        style = getattr(style, f"highlight_{best}")(subset=[column], props=bold)
    return style


def _digits(value: Any) -> str:
    return shown(value) if isinstance(value, float | np.floating) else str(value)


def _latex(text: str) -> str:
    """Text for LaTeX; the hyphen of a negative number is a minus."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.-])-(?=\.?\d)", "$-$", escaped)


def _plain(value: Any) -> Any:
    """A value that strict JSON can hold."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
