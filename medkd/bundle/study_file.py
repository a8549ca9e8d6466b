"""The study file of a bundle: files that the study names go along, and are named as they lie in the bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medkd.errors import DataError
from medkd.stages.params import FILES

FOLDER = "files"


def named_files(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The files that notebooks of a study were given as `split_file` or `weights`, each once.

    Args:
        folder: of the study's report.
        record: content of its study.json.

    Raises:
        DataError: one is not there any more.
    """
    found: dict[Path, None] = {}
    for cell in record["cells"]:
        for each in cell["notebooks"]:
            state = folder / each["folder"] / "notebooks" / f"{each['notebook']}.{cell['dataset']}.json"
            if state.is_file():
                given = json.loads(state.read_text(encoding="utf-8")).get("parameters", {})
                found |= dict.fromkeys(path for text in _values(given) if (path := Path(text)).is_absolute())
    if gone := [path for path in found if not path.is_file()]:
        raise DataError(f"{gone[0]} is not there any more, but study {record['name']} needs it; bring it back")
    return list(found)


def portable(study: Mapping[str, Any], files: list[Path], to: Path, say: Callable[[str], Any]) -> dict[str, Any]:
    """Copy files into `files/` of a bundle, and name them so in parameters, grid and cells of its study.

    Args:
        study: content of the study file.
        files: of `named_files`.
        to: folder of the bundle.
        say: gets a line about each file.

    Raises:
        DataError: a relative name in the study fits several files.
    """
    names: dict[Path, str] = {}
    for path in files:
        taken = path.name in [Path(name).name for name in names.values()]
        names[path] = f"{FOLDER}/{len(names)}-{path.name}" if taken else f"{FOLDER}/{path.name}"
        (to / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, to / names[path])
        say(f"goes along as it is: {path}")

    def named(value: Any) -> Any:
        if not isinstance(value, str) or not value:
            return value
        tail = tuple(part for part in Path(os.path.normpath(value)).parts if part != "..")
        fitting = [path for path in names if path.parts[-len(tail) :] == tail]
        if len(fitting) > 1:
            raise DataError(f"{value} may be {fitting[0]} or {fitting[1]}; name it by its whole path in the study file")
        return names[fitting[0]] if fitting else value

    def renamed(parameters: Mapping[str, Any]) -> dict[str, Any]:
        new = {}
        for key, value in parameters.items():
            if isinstance(value, Mapping):
                new[key] = renamed(value)
            elif key.rpartition(".")[2] in FILES:
                new[key] = [named(each) for each in value] if isinstance(value, list) else named(value)
            else:
                new[key] = value
        return new

    changed = {key: renamed(study[key]) for key in ("parameters", "grid") if key in study}
    return dict(study) | changed | {"cells": [renamed(cell) for cell in study.get("cells", [])]}


def _values(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Values of `FILES` in parameters, and in those of stages among them."""
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif name.rpartition(".")[2] in FILES and isinstance(value, str) and value:
            yield value
