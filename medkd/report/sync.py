"""`python -m medkd.report.sync`: render the notebooks' parameter cells from the stages' classes and strip outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat

from medkd.paths import home
from medkd.report.notebooks import strip_outputs
from medkd.stages import stage_params


def parameters_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell tagged `parameters`."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def notebook_paths() -> list[Path]:
    """The project's notebooks in order."""
    return sorted((home() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def sync(path: Path) -> None:
    """Write the notebook back with a fresh parameters cell and without outputs."""
    notebook = nbformat.read(path, as_version=4)
    parameters_cell(notebook).source = stage_params()[path.stem].cell()
    nbformat.write(notebook, path)
    strip_outputs(path)


if __name__ == "__main__":
    for path in notebook_paths():
        sync(path)
        print(path.name)
