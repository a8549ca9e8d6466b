"""Run a report: every notebook of the plan in order, then one page from what they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medkd.errors import DataError
from medkd.files import write_json
from medkd.models.device import pick_device
from medkd.paths import reports_dir
from medkd.report.entry import alone, checked_cohort, checked_name, entry_key, is_good, read_state, run_entry, source_of
from medkd.report.index import read_index, read_metrics, read_runs
from medkd.report.notebooks import NotebookFailure
from medkd.report.page import build_page, versions
from medkd.report.plan import Entry, plan
from medkd.stages import stage_params
from medkd.stages.store import with_upstream
from medkd.text import duration


def run_report(
    datasets: Sequence[str],
    *,
    root: str = "",
    name: str,
    overrides: Mapping[str, Any],
    preset: str = "quick",
    device: str = "auto",
    seed: int = 0,
    cell_timeout: int | None = None,
    say: Any = print,
) -> Path:
    """Run what is not up to date, and build the page.

    Args:
        datasets: cohort names.
        root: folder with the publisher's files, for cohorts that need one.
        name: folder under reports/.
        overrides: see `medkd.report.plan.plan`.
        preset: likewise.
        device: for every stage.
        seed: for every stage.
        cell_timeout: seconds per notebook cell may take; None for no limit.
        say: where progress lines go.

    Returns:
        The path of `index.html`.

    Raises:
        ParameterError, DataError: before any notebook starts; the latter also if a study has this name.
        NotebookFailure: a notebook failed; the page is built from what finished, with the failure on top.
    """
    entries = plan(
        datasets,
        root=root,
        report=name,
        overrides=overrides,
        preset=preset,
        device=device,
        seed=seed,
    )
    pick_device(device)
    cohorts = {entry.dataset: checked_cohort(entry) for entry in entries}
    for entry in entries:
        source_of(entry)
    folder = reports_dir() / checked_name(name)
    with alone(folder, f"report {name}"):
        if (folder / "study.json").exists():
            raise DataError(f"{folder} holds a study; give the report another --name")
        return _run(folder, entries, cohorts, seed, cell_timeout, say)


def _run(
    folder: Path,
    entries: Sequence[Entry],
    cohorts: Mapping[str, Any],
    seed: int,
    cell_timeout: int | None,
    say: Any,
) -> Path:
    done: list[dict[str, Any]] = []
    failure: NotebookFailure | None = None
    for number, entry in enumerate(entries, start=1):
        label = f"[{number}/{len(entries)}] {entry.name}"
        key = entry_key(entry, cohorts[entry.dataset].shown)
        if is_good(folder, entry, key):
            say(f"{label}: up to date")
            done.append(read_state(folder, entry.name))
            continue
        say(f"{label}: running")
        record, failure = run_entry(folder, entry, key, cell_timeout=cell_timeout)
        done.append(record)
        if failure is not None:
            break
        say(f"{label}: finished in {duration(record['seconds'])}")
    page = _page(folder, entries, done, cohorts, seed)
    if failure is not None:
        raise failure
    return page


def _page(
    folder: Path,
    entries: Sequence[Entry],
    done: Sequence[Mapping[str, Any]],
    cohorts: Mapping[str, Any],
    seed: int,
) -> Path:
    """metrics.json, manifest.json and index.html, of what ran with these parameters."""
    wanted = {record["name"] for record in done}
    metrics = {stage: numbers for stage, numbers in read_metrics(folder).items() if stage in wanted}
    manifest = {
        "report": folder.name,
        "simulated": any(cohort.simulated for cohort in cohorts.values()),
        "seed": seed,
        "versions": versions(),
        "cohorts": {
            dataset: {
                "title": cohort.label_text,
                "samples": len(cohort),
                "groups": int(cohort.table["patient"].nunique()),
                "fingerprint": cohort.fingerprint,
                "simulated": cohort.simulated,
                "licence": cohort.licence,
                "attribution": cohort.attribution,
                "settings": dict(cohort.settings),
            }
            for dataset, cohort in cohorts.items()
        },
        "notebooks": [{key: record.get(key) for key in ("name", "state", "seconds", "error")} for record in done],
        "units": _units([key for stage, keys in read_runs(folder).items() if stage in wanted for key in keys]),
        "parameters": {
            entry.name: stage_params()[entry.notebook].checked(entry.parameters).rows() for entry in entries
        },
    }
    index = [entry for entry in read_index(folder) if entry["stage"] in wanted]
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "manifest.json", manifest)
    titles = ", ".join(cohort.label_text for cohort in cohorts.values())
    return build_page(
        folder,
        title=f"medkd report: {titles}",
        manifest=manifest,
        entries=index,
        notebooks=[dict(record) for record in done],
    )


def _units(keys: Sequence[str]) -> list[dict[str, Any]]:
    """Stage, title and wall time of these units and of every unit they were made from."""
    names = ("stage", "title", "key", "seconds", "finished")
    units = [{name: getattr(run, name) for name in names} for run in with_upstream(keys).values()]
    return sorted(units, key=lambda unit: (unit["stage"], unit["title"]))
