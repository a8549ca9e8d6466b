"""A report as one file to give away: no photographs of patients, no links, nothing about the machine it was made on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkd import paths
from medkd.errors import DataError
from medkd.report.index import read_index
from medkd.report.page import build_page
from medkd.stages.params import FILES

FOLDERS = re.compile(r"(?:file://|(?<![\w./]))/(?:[^/\s'\",]+/)+|\b[A-Za-z]:\\(?:[^\\\s'\",]+\\)+")
"""The folders of an absolute path, here or on Windows; addresses such as https://example.org/x are none."""
PLACES = ("root", *FILES)
"""Parameters that name a folder or file, whose names may hold what `FOLDERS` takes for the end of a path."""


def share(name: str, target: Path) -> Path:
    """Write the page of a finished report, or of a study that has one, so that it can be sent or committed.

    Figures that show photographs are left out and counted on the page: whether they may be passed on depends on the
    licence of the data set. Files of the report's folder are not linked, and of paths only the last part is kept.

    Args:
        name: folder under reports/.
        target: the html file to write; its folder is made if it is not there.

    Returns:
        `target`.

    Raises:
        DataError: there is no finished report of that name.
    """
    folder = paths.reports_dir() / name
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f'{folder} holds no finished report; run "medkd report" first, or name another folder of reports/'
        ) from None
    of_study = "study" in manifest
    ran = [notebook["name"] for notebook in manifest["notebooks"]]
    stages = [f"study.{dataset}" for dataset in manifest["cohorts"]] if of_study else ran
    clean = _Cleaner(manifest)
    entries = [entry for entry in read_index(folder) if entry["stage"] in stages]
    kept = [entry for entry in entries if not entry.get("photographs")]
    notes = []
    if n_left_out := len(entries) - len(kept):
        notes.append(f"Figures that show photographs are left out of this copy of the report ({n_left_out}).")
    if open_ones := [each["name"] for each in manifest["notebooks"] if each["state"] != "finished"]:
        notes.append(f"This report was not finished: {', '.join(open_ones)}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return build_page(
        folder,
        title=(f"medkd study {name}: " if of_study else "medkd report: ")
        + ", ".join(cohort["title"] for cohort in manifest["cohorts"].values()),
        manifest=clean(manifest),
        entries=clean(kept),
        notebooks=clean(manifest["notebooks"]),
        target=target,
        note=" ".join(notes),
    )


class _Cleaner:
    """Makes of a value the same in which paths, also inside longer texts, are cut down to their last part."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        rows = [row for rows in manifest.get("parameters", {}).values() for row in rows if isinstance(row, Mapping)]
        known = {row["value"] for row in rows if row.get("parameter") in PLACES and "/" in str(row.get("value"))}
        known |= {str(place) for place in (paths.home(), Path.home()) if place.name}
        self.known = re.compile("|".join(rf"(?<![\w.]){re.escape(place)}(?!\w)" for place in sorted(known)[::-1]))

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self(each) for each in value]
        if not isinstance(value, str):
            return value
        return FOLDERS.sub("", self.known.sub(lambda found: Path(found[0]).name, value))
