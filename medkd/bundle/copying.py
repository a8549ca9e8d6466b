"""What goes into a bundle with something left out: code without outputs, notebooks and texts without folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

from medkd.errors import DataError, first_few
from medkd.report.notebooks import export_html, strip_outputs
from medkd.report.share import Cleaner

SUFFIXES = (".py", ".j2", ".ipynb", ".typed")
"""Of code; what else lies in its folders may be somebody's data."""
TEXTS = (".csv", ".tex", ".html")
PARAMETERS = {"parameters", "injected-parameters"}
"""Tags of the cells that may name folders."""


def copy_code(source: Path, to: Path, clean: Cleaner, say: Callable[[str], Any]) -> None:
    """Copy a file, or of a folder what is code; notebooks without outputs and folders' names.

    Args:
        source: file or folder; links inside it are neither copied nor followed, and hidden folders are left out.
        to: the copy.
        clean: takes folders out of the notebooks' parameters.
        say: where a line about what was left out goes.

    Raises:
        DataError: a notebook cannot be read.
    """
    if source.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)
        return
    left_out = []
    for path in _files(source):
        if path.is_symlink() or path.suffix not in SUFFIXES:
            left_out.append(str(path.relative_to(source)))
            continue
        target = to / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if path.suffix == ".ipynb":
            _strip(path, target, clean)
    if left_out:
        say(f"left out of {source.name}/, links or no code: {first_few(left_out)}")


def copy_notebook(source: Path, to: Path, clean: Cleaner) -> None:
    """Write an executed notebook and its HTML into a folder, without folders' names in parameters and outputs.

    Raises:
        DataError: it cannot be read.
    """
    to.mkdir(parents=True, exist_ok=True)
    notebook = _read(source)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_cleaned_output(output, clean) for output in cell.outputs]
    _write(notebook, to / source.name, clean)
    export_html(to / source.name, (to / source.name).with_suffix(".html"))


def copy_texts(source: Path, to: Path, clean: Cleaner) -> None:
    """Copy a folder of figures and tables; tables and pages without folders' names."""
    shutil.copytree(source, to, dirs_exist_ok=True)
    for path in to.rglob("*"):
        if path.suffix in TEXTS:
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read()
            path.write_text(clean(text), encoding="utf-8", newline="")


def _files(folder: Path) -> Iterator[Path]:
    """Files of a folder and its subfolders, and links to folders."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(place, name) for name in sorted(links + files) if not name.startswith("."))


def _strip(source: Path, target: Path, clean: Cleaner) -> None:
    _read(source)
    strip_outputs(target)
    _write(_read(target), target, clean)


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # a file of any content: nbformat has no base class for what it raises
        raise DataError(
            f"{path} is no readable notebook ({type(error).__name__}); repair it, or take it away"
        ) from error


def _write(notebook: nbformat.NotebookNode, to: Path, clean: Cleaner) -> None:
    notebook.metadata = nbformat.from_dict(clean(notebook.metadata))
    for cell in notebook.cells:
        if PARAMETERS & set(cell.metadata.get("tags", [])):
            cell.source = clean(cell.source)
    nbformat.write(notebook, to)


def _cleaned_output(output: nbformat.NotebookNode, clean: Cleaner) -> nbformat.NotebookNode:
    """The output without folders' names, pictures as they are."""
    pictures = {kind: data for kind, data in output.get("data", {}).items() if kind.startswith("image/")}
    cleaned = clean(output)
    if pictures:
        cleaned["data"] |= pictures
    return nbformat.from_dict(cleaned)
