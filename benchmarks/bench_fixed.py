"""7. Fixed costs: importing medkd, the command line, a notebook over the same code as a script, the first UMAP."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

import medkd
from benchmarks.harness import Row, Scale, alternate, medians, spread
from medkd.report.notebooks import run_notebook

NOTEBOOKS = Path(medkd.__file__).parents[1] / "notebooks"
HEAVY = ("torch", "numpy", "pandas", "sklearn", "matplotlib")
TIMED = "import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"


def run(scale: Scale) -> list[Row]:
    """Imports and commands, the notebook's overhead, and UMAP in a fresh process."""
    rows = [
        _import(scale),
        _loaded("import medkd", HEAVY),
        _loaded("import medkd.cli", HEAVY),
        _loaded("import medkd.data.registry, medkd.stages.inventory", ("torch",)),
        _command(scale),
    ]
    return rows if scale.size == "tiny" else [*rows, _notebook(scale), *_umap()]


def _import(scale: Scale) -> Row:
    seconds = [float(_python(TIMED.format(code="import medkd"))) for _ in range(scale.pick(9, 5, 1))]
    return Row("7 fixed", "import medkd", **spread(seconds), unit="s", at_most=0.3)


def _loaded(code: str, packages: tuple[str, ...]) -> Row:
    """How many of these packages a piece of code imports."""
    loaded = _python(f"{code}; import sys; print(*[name for name in {packages!r} if name in sys.modules])").split()
    what = f"{code}: of {', '.join(packages)} loaded"
    return Row("7 fixed", what, len(loaded), "packages", at_most=0, note=" ".join(loaded))


def _command(scale: Scale) -> Row:
    calls = {"medkd --help": lambda: _python(None, "-m", "medkd", "--help"), "python": lambda: _python("pass")}
    found = alternate(calls, scale.pick(7, 3, 1))
    return Row("7 fixed", "medkd --help", **spread(found["medkd --help"]), unit="s", medians=medians(found))


def _notebook(scale: Scale) -> Row:
    """Notebook 01, papermill and kernel included, over its cells as one script, each in a process of its own."""
    notebook = NOTEBOOKS / "01_data_exploration.ipynb"
    parameters = {"dataset": "phantom-rare-skin", "report": "benchmark"}
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "script.py"
        script.write_text(script_of(notebook, parameters))
        calls = {
            "notebook": lambda: run_notebook(
                notebook, Path(place) / "run.ipynb", parameters, cwd=NOTEBOOKS, echo=False
            ),
            "script": lambda: _python(None, str(script)),
        }
        found = alternate(calls, scale.pick(3, 1, 1), warm_up=scale.pick(1, 0, 0))
    return Row(
        "7 fixed",
        "notebook 01 over the same code as a script",
        **spread([a - b for a, b in zip(found["notebook"], found["script"], strict=True)]),
        unit="s",
        at_most=10,
        medians=medians(found),
    )


def script_of(notebook: Path, parameters: dict[str, object]) -> str:
    """The code cells of a notebook, with these parameters set after the cell that names them."""
    lines = ["from IPython.display import display"]
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            lines.append(cell.source)
            if "parameters" in cell.metadata.get("tags", ()):
                lines += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n".join(lines)


def _umap() -> list[Row]:
    """The first embedding of 500 points less the second, in two fresh processes one after the other."""
    code = """
import time, numpy as np
from medkd.evaluation.embedding import umap_embedding
points = np.random.default_rng(0).normal(size=(500, 64)).astype("float32")
for _ in range(2):
    start = time.perf_counter(); umap_embedding(points); print(time.perf_counter() - start)
"""
    both = [[float(number) for number in _python(code).split()] for _ in range(2)]
    first, second = both[1]
    return [
        Row(
            "7 fixed",
            "cold start of UMAP in a process after the first: first embedding, import included, less the second",
            first - second,
            "s",
            at_most=3,
            medians={
                f"{name}, process {n}": value
                for n, times in enumerate(both, 1)
                for name, value in zip(("first", "second"), times, strict=True)
            },
        )
    ]


def _python(code: str | None, *arguments: str) -> str:
    """What a fresh Python prints, headless; the numbers in it are its own."""
    command: Sequence[str] = [sys.executable, *(["-c", code] if code is not None else arguments)]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=NOTEBOOKS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])[:120]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
