"""A report as one file to give away: no photographs of patients, no links, nothing about the machine it was made on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medkd import paths
from medkd.errors import DataError
from medkd.report.entry import read_state
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
        DataError: there is no finished report of that name, its manifest is damaged, or a notebook was run by hand
            into its folder since.
    """
    folder = paths.reports_dir() / name
    manifest = _manifest(folder / "manifest.json")
    of_study = "study" in manifest
    ran = [notebook["name"] for notebook in manifest["notebooks"]]
    stages = [f"study.{dataset}" for dataset in manifest["cohorts"]] if of_study else ran
    finished = [] if of_study else [each["name"] for each in manifest["notebooks"] if each["state"] == "finished"]
    if by_hand := [stage for stage in finished if not read_state(folder, stage)]:
        raise DataError(
            f"{by_hand[0]} was run by hand into {folder} since the report was made; run `medkd report` again, with its "
            "options"
        )
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


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f'{path.parent} holds no finished report; run "medkd report" first, or name another folder of reports/'
        ) from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f'{path} is no readable JSON ({error}); run "medkd report" again') from None
    if not isinstance(manifest, dict) or not {"notebooks", "cohorts"} <= manifest.keys():
        raise DataError(f'{path} must hold "notebooks" and "cohorts" of a report; run "medkd report" again')
    return manifest


def _places(manifest: Mapping[str, Any]) -> list[str]:
    """Values of the parameters that name a folder or file."""
    rows = [row for rows in manifest.get("parameters", {}).values() for row in rows if isinstance(row, Mapping)]
    return [str(row["value"]) for row in rows if row.get("parameter") in PLACES]


class Cleaner:
    """Makes of a value the same in which paths, also inside longer texts, are cut down to their last part.

    The user's own folder, whose last part is a person's name, becomes "~".

    Args:
        known: paths that may hold what `FOLDERS` takes for the end of one.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.own = {str(Path.home()), str(Path.home().resolve())}
        places = {place for place in known if "/" in place or "\\" in place}
        places |= {str(Path(place).parent) for place in places if place.startswith("/")} | self.own
        places |= {os.environ.get("MEDKD_HOME", ""), str(paths.home())}
        places = {place.rstrip("/\\") for place in places} - {""}
        # the longest first; a relative one not inside another path or address
        begun = [(r"(?<![\w.])" if place[0] in "/\\" else r"(?<![\w./])", place) for place in sorted(places)[::-1]]
        either = "|".join(before + re.escape(place) for before, place in begun) or "(?!)"
        self.known = re.compile(rf"({either})(?![\w-]|\.\w)([/\\]?)")

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
        return FOLDERS.sub("", self.known.sub(self._shortened, text))

    def _shortened(self, found: re.Match[str]) -> str:
        """The last part of a known folder; in front of more parts, what `FOLDERS` takes away together with them."""
        place, more = found.groups()
        if more:
            return "/-/" if more == "/" else "C:\\"
        return "~" if place in self.own else re.split(r"[/\\]", place)[-1]
