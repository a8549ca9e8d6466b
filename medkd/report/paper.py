"""Figures of a paper, drawn again from their CSV: no run is loaded and nothing is trained."""

from __future__ import annotations

from pathlib import Path

from medkd.errors import DataError
from medkd.report.artifacts import draw_figure
from medkd.report.figures_paper import DRAW
from medkd.report.index import read_index

__all__ = ["DRAW", "redraw"]


def redraw(folder: Path) -> list[str]:
    """Draw every figure of a report that knows how (`Artifacts.drawn`) from its CSV; its PDF and PNG are replaced.

    The same CSV gives the same bytes. Whoever wants other rows or names in a figure edits the CSV first.

    Args:
        folder: the report folder.

    Returns:
        "<stage>-<name>" of each figure that was drawn.

    Raises:
        DataError: if there is no report in the folder, a CSV is missing, or it lacks what its figure needs.
        ParameterError: if an index names a figure that is not in `DRAW`.
    """
    if not (Path(folder) / "index").is_dir():
        raise DataError(f"{Path(folder).resolve()} holds no report; name its folder, such as reports/quick")
    entries = [entry for entry in read_index(folder) if "draw" in entry]
    for entry in entries:
        draw_figure(entry["draw"], Path(folder), entry["files"], simulated=entry["simulated"])
    return [f"{entry['stage']}-{entry['name']}" for entry in entries]
