"""`medkd bundle`: study file, code, environment, splits, models, executed notebooks, figures, tables, and a script."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from medkd.bundle import reproduce
from medkd.bundle.copying import copy_code, copy_notebook, copy_texts
from medkd.bundle.models import export_models
from medkd.bundle.splits import split_tables
from medkd.bundle.study_file import named_files, portable
from medkd.data.registry import load_cohort
from medkd.errors import DataError
from medkd.files import unwritable, write_json, write_table
from medkd.paths import home, reports_dir
from medkd.report.entry import code_digest
from medkd.report.page import versions
from medkd.report.share import Cleaner
from medkd.report.study_record import digest_of_record, evaluation_of, read_record
from medkd.stages import stage_params

CODE = (
    *("medkd", "notebooks", "pyproject.toml", "requirements.lock", "environment.yml", "Makefile", "README.md"),
    *("LICENSE", "data/README.md", "reports/README.md"),
)
"""What is copied of the project."""

PREFIX = ".bundle-"
"""Of the folder in which a bundle is put together."""

README = """# {name}: what was run, and how to run it again

| | |
| --- | --- |
| `report/index.html` | comparison over all cells, with the tables (CSV, LaTeX) and figures (PDF, PNG, CSV) it shows |
| `notebooks/` | every executed notebook and its HTML{notebooks} |
| `models/` | networks as ONNX and torch.export programs, each with a model card; `models.csv`: parity, latency |
| `splits/` | who was in which part; ids are SHA-256 of "<cohort>:<id>", first sixteen hex digits (see below) |
| `code/` | the package, its notebooks and its lock file |
| `study.yaml` | the study; its cohorts are read from `data/NAME` beside it{files} |
| `environment.json` | versions and device of the original run |
| `reproduce.py` | runs the study with `code/` and compares the tables with those in `report/` |

{cohorts}

The hashes in `splits/` have no secret in them, so that whoever has the data can check them. Ids that are short or
numbered can be guessed and tried out, which tells who took part; leave `splits/` out where nobody must learn that.

Numbers are those of research software; nothing here is a medical device.
"""


def bundle(name: str, to: Path | None = None, *, notebooks: bool = True, say: Callable[[str], Any] = print) -> Path:
    """Put together what a reviewer needs of a finished study.

    Args:
        name: of the study, as in its file.
        to: folder to make; by default `reports/bundles/<name>/`. It must not be there yet.
        notebooks: False leaves the executed notebooks out: they show images, which a licence may not let pass on.
        say: where lines for the reader go.

    Returns:
        The folder.

    Raises:
        DataError: there is no such study, a cell is not finished, its report or a file that it names is missing, the
            code or the study has changed since, or the folder is there already or cannot be written.
    """
    folder, record = reports_dir() / name, read_record(reports_dir() / name)
    target = reports_dir() / "bundles" / name if to is None else to
    if target.exists():
        raise DataError(f"{target} is there already; remove it, or name another folder with --to")
    if unfinished := [cell["name"] for cell in record["cells"] if cell["state"] != "finished"]:
        raise DataError(f"cell {unfinished[0]} of study {name} is not finished; run `medkd batch` with its file again")
    if not (folder / "index.html").is_file():
        raise DataError(f"study {name} has no report yet; run `medkd report {name}` first")
    if record.get("code") != code_digest():
        raise DataError(
            f"study {name} was run with other code than is here now; run `medkd batch` with its file and "
            f"`medkd report {name}` again"
        )
    if _compared(folder / "manifest.json") != digest_of_record(record):
        raise DataError(f"study {name} has changed since its report was made; run `medkd report {name}` again")
    if lacking := [part for part in CODE[:5] if not (home() / part).exists()]:
        raise DataError(f"{home()} has no {lacking[0]} to bundle; start medkd in the project's folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=target.parent) as scratch:
            part = Path(scratch) / "bundle"
            part.mkdir()
            _fill(part, folder, record, notebooks, say)
            part.rename(target)
    except OSError as error:
        if _is_of(target, error):
            raise unwritable(target.parent, error) from error
        raise  # of a file that is read, which the error names
    return target


def _compared(manifest: Path) -> str:
    """Of which state of the study its page is."""
    try:
        return json.loads(manifest.read_text())["compared"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_of(target: Path, error: OSError) -> bool:
    """Whether what failed is the writing of the target: of a file that is being made for it, or of its folder."""
    if error.filename is None:  # so is every error while bytes are written
        return error.errno is not None
    parent, path = (Path(os.path.abspath(each)) for each in (target.parent, error.filename))
    inside = path.relative_to(parent).parts if path.is_relative_to(parent) else ()
    return parent.is_relative_to(path) or bool(inside and inside[0].startswith(PREFIX))


def _fill(part: Path, folder: Path, record: Mapping[str, Any], notebooks: bool, say: Callable[[str], Any]) -> None:
    roots = {cohort["dataset"]: cohort["root"] for cohort in record["study"]["cohorts"]}
    cohorts = {dataset: load_cohort(dataset, root) for dataset, root in roots.items()}
    files = named_files(folder, record)
    clean = Cleaner([*filter(None, roots.values()), *map(str, files)])
    study = portable(record["study"], files, part, say)
    study["cohorts"] = [{"dataset": name} | ({"root": f"data/{name}"} if root else {}) for name, root in roots.items()]
    (part / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    (part / "name.txt").write_text(record["name"] + "\n")
    shutil.copy(reproduce.__file__, part / "reproduce.py")
    write_json(part / "environment.json", versions())
    for name in CODE:
        if (home() / name).exists():
            copy_code(home() / name, part / "code" / name, clean, say)
    for name in ("figures", "tables"):  # of a study with nothing to compare one may be empty, or taken away
        (part / "report" / name).mkdir(parents=True)
        if (folder / name).is_dir():
            copy_texts(folder / name, part / "report" / name, clean)
    page = (folder / "index.html").read_text(encoding="utf-8")
    (part / "report" / "index.html").write_text(clean(page), encoding="utf-8")
    for cell in record["cells"] if notebooks else ():
        for each in cell["notebooks"]:
            source = folder / each["folder"] / "notebooks" / f"{each['notebook']}.{cell['dataset']}.ipynb"
            target = part / "notebooks" / each["folder"]
            if source.is_file() and not (target / source.name).exists():
                copy_notebook(source, target, clean)
    found = [(cell, evaluation) for cell in record["cells"] if (evaluation := evaluation_of(folder, cell))]
    for cell, evaluation in found:
        params = _parameters(folder, cell)
        for split, table in split_tables(cohorts[cell["dataset"]], params, evaluation.run):
            (part / "splits" / cell["name"]).mkdir(parents=True, exist_ok=True)
            write_table(part / "splits" / cell["name"] / f"{split}.csv", table)
    (part / "models").mkdir()
    runs = {cell["name"]: each.run for cell, each in found}
    places = {cell["name"]: roots[cell["dataset"]] for cell, _ in found}
    write_table(part / "models" / "models.csv", export_models(runs, places, part / "models", say))
    lines = [
        f"- **{cohort.label_text}**: licence {cohort.licence}. {cohort.attribution}".rstrip()
        for cohort in cohorts.values()
    ]
    note = "; they show images of the cohorts below" if notebooks else " (left out)"
    along = ", and what it names from `files/`, as it is" if files else ""
    text = README.format(name=record["name"], notebooks=note, files=along, cohorts="\n".join(lines))
    (part / "README.md").write_text(text, encoding="utf-8")


def _parameters(folder: Path, cell: Mapping[str, Any]) -> Any:
    """The checked parameters of a cell's evaluation."""
    last = cell["notebooks"][-1]
    state = folder / last["folder"] / "notebooks" / f"07_evaluation.{cell['dataset']}.json"
    return stage_params()["07_evaluation"].checked(json.loads(state.read_text())["parameters"])
