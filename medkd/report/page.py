"""One page for a report: every figure and table of its stages in a single file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
import os
import platform
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from jinja2 import DictLoader, Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import medkd
from medkd.errors import DataError
from medkd.evaluation.words import metric_words
from medkd.files import write_atomically
from medkd.text import duration, shown

MAX_ROWS = 60
"""Rows of a table that the page shows; the csv beside it has all."""

OF_DIFFERENCES = dict.fromkeys(
    ("difference", "low", "high", "over_parts", "over_parts_low", "over_parts_high"), "{:+.3f}"
) | dict.fromkeys(("mean", "SD"), "{:.3f}")
"""How the columns of a table of differences are displayed, on the page and in LaTeX."""

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "umap-learn", "papermill")

# nbconvert's page without the blocks that load scripts from other hosts
OFFLINE_TEMPLATE = "{%- extends 'lab/index.html.j2' -%}" + "".join(
    f"{{%- block {name} -%}}{{%- endblock -%}}"
    for name in ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
)


def build_page(
    folder: Path,
    *,
    title: str,
    manifest: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    notebooks: Sequence[Mapping[str, Any]],
    target: Path | None = None,
    note: str = "",
    clean: Callable[[Any], Any] | None = None,
) -> Path:
    """Write the page of a report: `index.html` into its folder, or a file that stands alone.

    Args:
        folder: the report's folder; files named in `entries` are relative to it.
        title: heading of the page.
        manifest: settings and versions, shown at the end; `simulated` puts a badge on top.
        entries: figures and tables as `medkd.report.index.read_index` gives them: stage, kind, name, caption,
            files (kind of file -> relative path), simulated, summary. Tables with `summary` go to the top.
        notebooks: executed notebooks: name, html (path relative to `folder`, may be missing), state, seconds, error.
        target: write here in place of `index.html`, without links to the files of the report's folder and with
            pictures of 128 colours, a third of the size.
        note: a paragraph under the heading.
        clean: makes of a table's header and rows those that are shown.

    Returns:
        Path of the page.

    Raises:
        DataError: a file that an entry names is missing, or lies outside of `folder`.
    """
    shown = [_with_content(folder, entry, small=target is not None) for entry in entries]
    if clean is not None:
        shown = [each | {name: clean(each[name]) for name in ("header", "rows") if name in each} for each in shown]
    summaries = [entry for entry in shown if entry["kind"] == "table" and entry.get("summary")]
    rest = [entry for entry in shown if entry not in summaries]
    stages = [(stage, list(group)) for stage, group in itertools.groupby(rest, key=lambda entry: entry["stage"])]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "href": quote,
        "duration": duration,
        "metric": metric_words,
        "words": lambda name: name.replace("_", " ").replace(".", " · "),
    }
    page = environment.get_template("template.html.j2").render(
        title=title,
        simulated=bool(manifest.get("simulated")),
        summaries=summaries,
        stages=stages,
        notebooks=[{"html": "", "error": ""} | dict(notebook) for notebook in notebooks],
        blocks=list(_blocks({key: value for key, value in manifest.items() if key != "notebooks"})),
        alone=target is not None,
        note=note,
    )
    path = target or folder / "index.html"
    write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))
    return path


def export_html(notebook: Path, html: Path) -> None:
    """Write an executed notebook as one HTML file that loads nothing from elsewhere.

    Pictures and style are inside. Formulas stay as their TeX source, since MathJax would have to come from another
    host; widgets and other output that needs JavaScript show their plain text.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    node = nbformat.read(notebook, as_version=4)
    node.metadata.pop("widgets", None)
    shown = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
    exporter = HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": shown}}),
        extra_loaders=[DictLoader({"offline.html.j2": OFFLINE_TEMPLATE})],
        template_file="offline.html.j2",
        embed_images=True,
    )
    page, _ = exporter.from_notebook_node(node, resources={"metadata": {"name": notebook.stem}})
    write_atomically(html, lambda part: part.write_text(page, encoding="utf-8"))


def versions() -> dict[str, str]:
    """What a result depends on besides its settings: versions, the device, and the commit of the code.

    Packages are looked up by their metadata; only torch is imported, for the name of the GPU.
    """
    import torch

    found = {"python": platform.python_version(), "medkd": medkd.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    on_cpu = f"CPU, {os.cpu_count()} cores ({platform.machine()})"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else on_cpu
    return found | _commit()


def _commit() -> dict[str, str]:
    # an installed package may lie inside somebody else's repository; only a tracked file makes the commit ours
    if _git("ls-files", "--error-unmatch", "__init__.py") is None or (commit := _git("rev-parse", "HEAD")) is None:
        return {"commit": "not available"}
    return {"commit": commit, "uncommitted changes": "yes" if _git("status", "--porcelain", "--", ".") else "no"}


def _git(*arguments: str) -> str | None:
    """Output of a git command in the package's folder, None if it fails; takes no locks."""
    command = ["git", "--no-optional-locks", "-C", str(Path(medkd.__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _with_content(folder: Path, entry: Mapping[str, Any], *, small: bool) -> dict[str, Any]:
    """The entry with what the page embeds: the picture's bytes, or the table's rows."""
    source = folder / entry["files"]["png" if entry["kind"] == "figure" else "csv"]
    if not source.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f'{entry["kind"]} "{entry["name"]}" of {entry["stage"]} is said to be {source}, which is not in the '
            f"report's folder; run {entry['stage']} again"
        )
    try:
        content = _picture(source, small=small) if entry["kind"] == "figure" else _table(source)
    except FileNotFoundError:
        stage = entry["stage"]
        raise DataError(
            f'{entry["kind"]} "{entry["name"]}" of {stage} is missing: {source}; run {stage} again'
        ) from None
    return {**entry, **content, "anchor": f"{entry['stage']}-{entry['kind']}-{entry['name']}"}


def _picture(path: Path, *, small: bool) -> dict[str, Any]:
    data = path.read_bytes()
    if small:
        with Image.open(io.BytesIO(data)) as picture, io.BytesIO() as buffer:
            picture.convert("RGB").quantize(128).save(buffer, "png", optimize=True)
            data = buffer.getvalue()
    width, height = struct.unpack(">II", data[16:24])  # a PNG's first chunk begins with its size
    return {"data": base64.b64encode(data).decode(), "width": width, "height": height}


def _table(path: Path) -> dict[str, Any]:
    """Header, the first rows as text, whether each column is numeric, and the number of rows in the file."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    signed = OF_DIFFERENCES if "difference" in header else {}
    formats = [signed.get(name) or _form(row[column] for row in rows) for column, name in enumerate(header)]
    first = [[_rounded(*cell) for cell in zip(row, formats, strict=True)] for row in rows[:MAX_ROWS]]
    header, first = _with_intervals(header, first)
    numeric = [all(_is_number(row[column]) or not row[column] for row in first) for column in range(len(header))]
    return {"header": header, "rows": first, "numeric": numeric, "n_rows": len(rows)}


def _with_intervals(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Three columns `x, x_low, x_high` (or `value, low, high`) become one: "0.81 (0.75 to 0.86)"."""
    bounds = {name: (f"{name}_low", f"{name}_high") for name in header}
    bounds |= {name: ("low", "high") for name in ("value", "difference") if name in header}
    named = [dict(zip(header, row, strict=True)) for row in rows]
    there = {name: pair for name, pair in bounds.items() if set(pair) <= set(header)}
    bounds = {name: pair for name, pair in there.items() if _lies_between(named, name, *pair)}
    dropped = {bound for pair in bounds.values() for bound in pair}
    kept = [name for name in header if name not in dropped]

    def cell(row: Mapping[str, str], name: str) -> str:
        if name not in bounds or not row[bounds[name][0]]:
            return row[name]
        low, high = (row[bound] for bound in bounds[name])
        return f"{row[name]} ({low} to {high})"

    new_header = [f"{name} (interval)" if name in bounds else name for name in kept]
    return new_header, [[cell(row, name) for name in kept] for row in named]


def _lies_between(rows: Sequence[Mapping[str, str]], name: str, low: str, high: str) -> bool:
    """Whether these are bounds of a column, and no classes that happen to be called so."""
    try:
        return all(float(row[low]) <= float(row[name]) <= float(row[high]) for row in rows if row[low] and row[high])
    except ValueError:
        return False


def _form(cells: Iterable[str]) -> str:
    """How a column is displayed: as it is in the file, or with three digits where a number has more."""
    return "{:.3f}" if any(_is_number(cell) and len(cell.partition(".")[2]) > 3 for cell in cells) else ""


def _rounded(cell: str, form: str) -> str:
    """A number with a point as `form` says, see `shown`; else as in the file."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    if not form or not math.isfinite(number) or not set(".e") & set(cell):
        return cell
    return shown(number, form)


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number, or as a number with its interval."""
    try:
        float(cell.partition(" (")[0])
    except ValueError:
        return False
    return True


def _blocks(value: Mapping[str, Any], *path: str) -> Iterator[dict[str, Any]]:
    """Tables for a nested mapping: one of its plain values, then one for each mapping or list of rows in it."""
    plain = {key: each for key, each in value.items() if not isinstance(each, Mapping) and not _is_rows(each)}
    if plain:
        yield {
            "name": ": ".join(path) or "run",
            "header": [],
            "rows": [[key, _text(each)] for key, each in plain.items()],
        }
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from _blocks(each, *path, key)
        elif _is_rows(each):
            rows = [[_text(cell) for cell in row.values()] for row in each]
            yield {"name": ": ".join((*path, key)), "header": list(each[0]), "rows": rows}


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)
