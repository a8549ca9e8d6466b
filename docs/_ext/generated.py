"""Pages that are written when the site is built, into `docs/_generated/`: the notebooks, and a page a module."""

from __future__ import annotations

import ast
import json
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx

import medkd
from medkd.data.registry import describe
from medkd.paths import reports_dir
from medkd.report.failures import INJECTED_TAG, tags_of

PACKAGE = Path(medkd.__file__).parent
NOTEBOOKS = PACKAGE.parent / "notebooks"


def write_pages(app: Sphinx) -> None:
    """Write notebooks and module pages anew; what did not change keeps its time, so that it is not read again."""
    folder = Path(app.srcdir) / "_generated"
    written = {*_notebook_pages(folder / "notebooks"), *_module_pages(folder / "api")}
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and path not in written:
            path.unlink()


def _notebook_pages(folder: Path) -> Iterable[Path]:
    rows, entries = [], []
    for source in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(source, as_version=4)
        number, _, name = source.stem.partition("_")
        label = f"{number} {name.replace('_', ' ')}"
        links = []
        for dataset, shown in _copies(source, notebook).items():
            stem = f"{source.stem}.{dataset}" if dataset else source.stem
            entries.append(f"{label}{f', {dataset}' if dataset else ''} <{stem}>")
            links.append(f"[{dataset or 'not executed'}]({stem}.ipynb)")
            yield _write(folder / f"{stem}.ipynb", nbformat.writes(shown))
        question = notebook.cells[0].source.splitlines()[0].removeprefix(f"# {number} ")
        rows.append(f"| {label} | {question} | {', '.join(links)} |")
    text = NOTEBOOKS_PAGE + "\n".join(rows) + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n"
    yield _write(folder / "index.md", text)


NOTEBOOKS_PAGE = """# Notebooks

The notebooks of the project, as `make report` executed them, one page per cohort. A notebook that has no executed
copy, or whose copy is older than the notebook itself, is shown without outputs: run `make report`, then `make docs`.

| notebook | asks | pages |
| --- | --- | --- |
"""


def _copies(source: Path, notebook: NotebookNode) -> dict[str, NotebookNode]:
    """What is shown of a notebook: its executed copies by cohort, or itself under an empty name."""
    found = {}
    for path in sorted((reports_dir() / "quick" / "notebooks").glob(f"{source.stem}.*.ipynb")):
        executed = nbformat.read(path, as_version=4)
        state = json.loads(path.with_suffix(".json").read_text())["state"] if path.with_suffix(".json").exists() else ""
        if state == "finished" and _cells(executed) == _cells(notebook):
            dataset = path.stem.partition(".")[2]
            simulated = "" if describe(dataset)["needs_root"] else ", simulated"
            when = str(executed.metadata.get("papermill", {}).get("end_time", ""))[:10]
            _say(executed, f"Executed by `make report` on `{dataset}`{simulated} ({when}).", f" ({dataset})")
            found[dataset] = executed
    if not found:
        _say(notebook, "Not executed: run `make report`, then `make docs`, to see its outputs here.", "")
    return found or {"": notebook}


def _cells(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if INJECTED_TAG not in tags_of(cell)]


def _say(notebook: NotebookNode, text: str, of_title: str) -> None:
    """Add a line below the title, and a suffix to it; leave out what a page must not carry (widget state)."""
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0] = nbformat.v4.new_markdown_cell(f"{title}{of_title}\n\n*{text}*\n{rest}", id="title")
    notebook.metadata.pop("widgets", None)


def _module_pages(folder: Path) -> Iterable[Path]:
    """A page a package with a section a module: a page a module would make the build twice as long."""
    packages: dict[str, list[str]] = {"medkd": []}
    for module in pkgutil.walk_packages([str(PACKAGE)], "medkd."):
        if "._" in module.name:  # private, and __main__, which runs the command
            continue
        if module.ispkg:
            packages[module.name] = []
        else:
            packages[module.name.rpartition(".")[0]].append(module.name)
    for package, modules in packages.items():
        text = _section(package, "=") + "".join(_section(name, "-") for name in modules)
        yield _write(folder / f"{package}.rst", text)
    rows = "".join(f"   * - :doc:`{name} </_generated/api/{name}>`\n     - {_summary(name)}\n" for name in packages)
    toc = "".join(f"   {name} </_generated/api/{name}>\n" for name in packages)
    table = f".. list-table::\n   :widths: 25 75\n\n{rows}"
    yield _write(folder / "packages.txt", f"{table}\n.. toctree::\n   :hidden:\n\n{toc}")


def _section(name: str, underline: str) -> str:
    options = "   :members:\n   :ignore-module-all:\n   :show-inheritance:\n"
    return f"{name}\n{underline * len(name)}\n\n.. automodule:: {name}\n{options}\n"


def _summary(name: str) -> str:
    """First paragraph of a module's docstring on one line."""
    path = PACKAGE.parent / name.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
