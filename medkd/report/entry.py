"""One notebook of a report or study: run it, and know later whether that is still good."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medkd
from medkd.errors import DataError, ParameterError
from medkd.files import PLAIN_NAME, existing_notebook, locked, unwritable, write_json
from medkd.paths import home
from medkd.report.index import index_file, load_index, replaced, state_file

if TYPE_CHECKING:  # what plans waits for torch and what runs for papermill, each seconds that the other need not wait
    from medkd.data.cohort import Cohort
    from medkd.report.notebooks import NotebookFailure
    from medkd.report.plan import Entry

RESERVED = ("runs", "exports", "bundles", "published", "interactive")
"""Folders under reports/ that hold other things."""


def run_entry(
    folder: Path, entry: Entry, key: str, *, cell_timeout: int | None = None
) -> tuple[dict[str, Any], NotebookFailure | None]:
    """Run one notebook into a report folder, and write how it went beside it.

    Args:
        folder: the report's.
        entry: notebook and parameters.
        key: of `entry_key`, by which the result is known later.
        cell_timeout: seconds per cell may take; None for no limit.

    Returns:
        The record (name, key, parameters, state "finished" or "failed", error, seconds, html, and whether it left an
        index), and the failure if there was one.
    """
    from medkd.report.notebooks import NotebookFailure, export_html, run_notebook

    start = time.monotonic()
    record = {"name": entry.name, "key": key, "parameters": entry.parameters}
    output = _executed(folder, entry)
    failure: NotebookFailure | None = None
    try:
        with replaced(folder, [entry.name]):  # a killed run must not pass for the one before it
            run_notebook(
                source_of(entry),
                output,
                entry.parameters,
                cell_timeout=cell_timeout,
                cwd=home() / "notebooks",
            )
        record |= {"state": "finished", "error": ""}
    except NotebookFailure as error:
        failure = error
        record |= {"state": "failed", "error": str(error)}
    record |= {"seconds": round(time.monotonic() - start, 1), "index": index_file(folder, entry.name).is_file()}
    if output.exists():
        export_html(output, output.with_suffix(".html"))
        record["html"] = f"notebooks/{entry.name}.html"
    write_json(state_file(folder, entry.name), record)
    return record, failure


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a report's folder: two processes would write the same notebooks.

    Raises:
        DataError: another process holds it, or it cannot be written to.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError:
            raise DataError(
                f"another process runs {what} already; wait for it, or give this one another name"
            ) from None
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


def checked_name(name: str) -> str:
    """The name of a report or study, if it may be that of a folder under reports/.

    Raises:
        ParameterError: it may not.
    """
    if not PLAIN_NAME.fullmatch(name) or name in RESERVED:
        raise ParameterError(
            f'"{name}" cannot be the name of a report; use letters, digits, ".", "_" and "-", and none of '
            f"{', '.join(RESERVED)}"
        )
    return name


def checked_cohort(entry: Entry) -> Cohort:
    """The cohort of an entry, once all that it names is found to be there: modalities, splits, networks.

    The device may be another machine's, so of it only the name is looked at.

    Raises:
        ParameterError, DataError: it is not.
    """
    from medkd.data.episodes import draw_task
    from medkd.data.folds import n_folds_of
    from medkd.models.device import named_device
    from medkd.models.encoders import trunk_width
    from medkd.models.pretrained import weights_sha256
    from medkd.stages import stage_params
    from medkd.stages.context import cohort_for
    from medkd.stages.paired import chosen_folds, split_for, width_of
    from medkd.training.frozen import check_weights

    params = stage_params()[entry.notebook].checked(entry.parameters)
    named_device(params.device)
    cohort = cohort_for(params)
    if hasattr(params, "encoder") and cohort.images:
        trunk_width(params.encoder, width_of(params))
    if getattr(params, "weights", ""):
        weights_sha256(params.encoder, params.weights)
    for k_shot in getattr(params, "k_shots", []) if cohort.rare_classes else []:
        draw_task(cohort, k_shot=k_shot, task=0, by_lesion=params.by_lesion, seed=params.seed)
    if getattr(params, "frozen", False):
        check_weights(params.encoder, params.weights)
    learned_from = {}
    if hasattr(params, "folds"):
        first = chosen_folds(cohort, params)[0]  # a split of thousands of patients takes most of a second
        learned_from = {f"training rows of fold {first}": split_for(cohort, params, first).train}
    elif hasattr(params, "split_file"):
        n_folds_of(cohort, params.n_folds, params.split_file)
    elif cohort.rare_classes:
        learned_from = {"common images": cohort.base_rows()}
    for what, rows in learned_from.items():
        if len(rows) < (batch_size := getattr(params, "batch_size", 0)):
            raise ParameterError(
                f"{entry.notebook}: batch_size = {batch_size} is more than the {len(rows)} {what} of {cohort.name}; "
                "lower batch_size"
            )
    return cohort


def entry_key(entry: Entry, cohort: str) -> str:
    """Changes when the notebook, its parameters and their files, the package's code or the cohort's content change.

    Args:
        entry: notebook and parameters.
        cohort: fingerprint of the cohort.
    """
    from medkd.stages.params import by_content

    parameters = {name: value for name, value in entry.parameters.items() if name not in ("report", "root", "device")}
    digest = hashlib.sha256(json.dumps(by_content(parameters), sort_keys=True).encode() + cohort.encode())
    digest.update(source_of(entry).read_bytes())
    digest.update(code_digest().encode())
    return digest.hexdigest()[:16]


@cache
def code_digest() -> str:
    """Sixteen hex digits over the package's code, as it was when a process first asked."""
    digest = hashlib.sha256()
    for path in sorted(Path(medkd.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def source_of(entry: Entry) -> Path:
    """The notebook of an entry.

    Raises:
        DataError: it is not there.
    """
    return existing_notebook(home() / "notebooks" / f"{entry.notebook}.ipynb")


def _executed(folder: Path, entry: Entry) -> Path:
    return folder / "notebooks" / f"{entry.name}.ipynb"


def is_good(folder: Path, entry: Entry, key: str) -> bool:
    """Whether the notebook finished with this key, and what it made is still there: its output, its index, its runs."""
    from medkd.stages.store import missing

    state = read_state(folder, entry.name)
    if state.get("state") != "finished" or state.get("key") != key or not _executed(folder, entry).is_file():
        return False
    try:
        return not missing(load_index(index_file(folder, entry.name)).get("runs", []))
    except FileNotFoundError:
        return not state.get("index")  # a notebook without figures, tables and runs
    except DataError:
        return False


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """What `run_entry` wrote of the notebook of an entry, {} if it was not run, or by hand since."""
    try:
        state = json.loads(state_file(folder, name).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
