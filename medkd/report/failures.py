"""How a notebook ended that did not finish: the failure, its exit status, and a saved notebook that tells the truth.

After a killed kernel, a cell timeout or an interrupt papermill 2.7 stamps every cell `completed`, also those that never
ran. Here the saved notebook is put right and gets a banner with the cell, the last metrics and how to go on.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from medkd.errors import MedkdError
from medkd.files import write_atomically
from medkd.paths import runs_dir

EXIT_CODES = {"exception": 3, "dead kernel": 4, "timeout": 5, "interrupt": 130}
"""Exit status by kind of failure; 2 is bad input, found before a kernel starts."""

# papermill's own tag: papermill removes such cells when an executed notebook is run again
MARKER_TAG = "papermill-error-cell-tag"
INJECTED_TAG = "injected-parameters"


class NotebookFailure(Exception):
    """A notebook stopped before its end; `str()` is one line with notebook, cell and error.

    Attributes:
        kind: "exception", "dead kernel", "timeout" or "interrupt".
        exit_code: 3, 4, 5 or 130, see `EXIT_CODES`.
        notebook: name of the executed notebook, without `.ipynb`.
        cell: number of the cell among all cells of the source notebook, from 1; 0 if no cell was started.
        heading: the nearest heading above that cell, else the cell's first line.
        text: the error in one line.
    """

    def __init__(self, kind: str, notebook: str, cell: int, heading: str, text: str) -> None:
        where = f"cell {cell} ({heading})" if cell else "before the first cell"
        super().__init__(f"{notebook}, {where}: {text}")
        self.kind, self.exit_code = kind, EXIT_CODES[kind]
        self.notebook, self.cell, self.heading, self.text = notebook, cell, heading, text


def exit_code_of(error: BaseException | None) -> int:
    """Exit status of a command that ended so: 0 no error, 2 bad input, 3 to 5 and 130 as `EXIT_CODES`, else 1."""
    if isinstance(error, NotebookFailure):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_CODES["interrupt"]
    return 0 if error is None else 2 if isinstance(error, MedkdError) else 1


def settle(output: Path, kind: str, text: str) -> NotebookFailure:
    """Make the saved notebook tell the truth about a failed run, and return the failure to raise."""
    if not output.exists():
        return NotebookFailure(kind, output.stem, 0, "", text)
    notebook = nbformat.read(output, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if MARKER_TAG not in tags_of(cell)]
    # papermill sets start_time on the cells it reached and nothing else tells them from the rest
    reached = [index for index, cell in enumerate(notebook.cells) if cell.metadata.papermill.start_time]
    stopped_at = reached[-1] if reached else -1
    for cell in notebook.cells[stopped_at + 1 :]:
        cell.metadata.papermill.update(status="pending", start_time=None, end_time=None, duration=None)
    number, heading = 0, ""
    if reached:
        cell = notebook.cells[stopped_at]
        cell.metadata.papermill.update(status="failed", exception=True)
        CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, stopped_at)  # the cell did not get to its own merge
        number = sum(INJECTED_TAG not in tags_of(above) for above in notebook.cells[: stopped_at + 1])
        heading = _heading(notebook.cells, stopped_at)
    notebook.metadata.papermill.exception = True
    failure = NotebookFailure(kind, output.stem, number, heading, text)
    link = f" [Go to the cell](#cell-id={notebook.cells[stopped_at].id})." if reached else ""
    quoted = str(failure).replace("`", "'")  # a code span, so that an error message cannot become markup
    banner = (
        f"### This run stopped: {kind}\n\n`{quoted}`\n\n"
        f"The cells from there on have no results.{link} {_last_metrics(output.stem, notebook)} "
        f"Finished stages are kept: {_resume_command()} continues from there."
    )
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(banner, metadata={"tags": [MARKER_TAG]}))
    write_atomically(output, lambda part: nbformat.write(notebook, part))
    return failure


def _last_metrics(name: str, notebook: NotebookNode) -> str:
    """What the youngest unfinished training of this notebook's stage logged last since it began, one sentence."""
    start = notebook.metadata.papermill.get("start_time")
    began = datetime.fromisoformat(start).timestamp() if start else time.time()
    found = runs_dir().glob(f"{name[:3]}*/*/checkpoint.*.json")  # "06_": methods that are compared have a stage too
    records = [path for path in found if path.stat().st_mtime >= began and not (path.parent / "run.json").exists()]
    for path in sorted(records, key=lambda record: record.stat().st_mtime, reverse=True):
        try:
            record = json.loads(path.read_text())
            last = record["history"][-1] if record["history"] else {}
        except (OSError, ValueError, KeyError, IndexError):
            continue  # a damaged one; the training says so when it goes on
        numbers = [f"{name} {value:.4g}" for name, value in last.items() if name not in ("seconds", "lr")]
        where = f"{path.parent.parent.name}/{path.parent.name}"
        told = ", ".join(numbers) or "no epoch was finished"
        return f"Last metrics ({where}, {record['total_steps']} steps): {told}."
    return "No training of its stage had reached a checkpoint since it began."


def _resume_command() -> str:
    """The command that started this run, as code; of a call from Python in words."""
    command = os.environ.get("MEDKD_COMMAND", "")
    if not command and Path(sys.argv[0]).name in ("medkd", "__main__.py"):
        command = shlex.join(["medkd", *sys.argv[1:]])
    return f"`{command}`" if command else "the same call again"


def _heading(cells: list[NotebookNode], index: int) -> str:
    for cell in reversed(cells[:index]):
        headings = [line for line in cell.source.splitlines() if cell.cell_type == "markdown" and line.startswith("#")]
        if headings:
            return headings[-1].lstrip("#").strip()
    return first_line(cells[index].source)


def tags_of(cell: NotebookNode) -> list[str]:
    """Tags of a cell."""
    return cell.metadata.get("tags", [])


def first_line(text: str) -> str:
    """The first line that is not empty, 300 letters of it at most."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")
