"""A report as one file to give away: no photographs of patients, no links, nothing about the machine it was made on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medkd import paths
from medkd.errors import DataError
from medkd.report.index import read_index
from medkd.report.page import build_page
from medkd.stages.params import FILES

WORD = r"[^/\\\s'\",<>:;|]+"
ENDED = "".join(rf"(?<!\.[a-zA-Z]{{{n}}} )" for n in (2, 3, 4))
NAME = rf"(?:{WORD} {ENDED}){{0,3}}{WORD}(?<!\()"
"""A folder's name, of up to four words; what follows a file's ending is text again."""
FOLDERS = re.compile(
    rf"(?:file://|~[\w.-]*|(?<![\w./]))/(?:{NAME}/+)+"  # here; https://example.org/x and </td> are none
    rf"|\b[A-Za-z]:[\\/]+(?:{NAME}[\\/]+)*"  # on Windows
    rf"|(?<!\\)\\{{2,}}(?:{NAME}\\+)+"  # on a server
)
"""The folders of an absolute path, also inside a text."""
EMBEDDED = re.compile(r"(data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+)")
"""A picture inside a text, whose letters may look like a path."""
PLACES = ("root", *FILES)
"""Parameters that name a folder or file."""


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
    clean = Cleaner(_places(manifest))
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
        + ", ".join(clean(cohort["title"]) for cohort in manifest["cohorts"].values()),
        manifest=clean(manifest),
        entries=clean(kept),
        notebooks=clean(manifest["notebooks"]),
        target=target,
        note=" ".join(notes),
        clean=clean,
    )


def _places(manifest: Mapping[str, Any]) -> list[str]:
    """Values of the parameters that name a folder or file."""
    rows = [row for rows in manifest.get("parameters", {}).values() for row in rows if isinstance(row, Mapping)]
    return [str(row["value"]) for row in rows if row.get("parameter") in PLACES]


class Cleaner:
    """Makes of a value the same in which paths, also inside longer texts, are cut down to their last part.

    Args:
        known: paths that may hold what `FOLDERS` takes for the end of one.
    """

    def __init__(self, known: Iterable[str]) -> None:
        places = {place.rstrip("/\\") for place in known if "/" in place or "\\" in place}
        places |= {str(place) for place in (paths.home(), Path.home()) if place.name}
        self.known = re.compile("|".join(rf"(?<![\w.]){re.escape(place)}(?!\w)" for place in sorted(places)[::-1]))

    def __call__(self, value: Any) -> Any:
        """The value, of which texts in mappings and lists are cleaned too; pictures inside a text stay."""
        if isinstance(value, Mapping):
            return {key: self(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self(each) for each in value]
        if not isinstance(value, str):
            return value
        parts = EMBEDDED.split(value)
        return "".join(part if number % 2 else self._text(part) for number, part in enumerate(parts))

    def _text(self, text: str) -> str:
        return FOLDERS.sub("", self.known.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text))
