"""Does what a recipe of docs/extending.md says: writes and edits the files of its captions, runs its commands."""

import os
import re
import subprocess
from pathlib import Path

BLOCK = re.compile(r"^```(?:\{code-block\} )?(\w+)\n(?::caption: ([^\n]*)\n\n)?(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"(?P<file>\S+), (?P<where>above|below|in place of) `(?P<text>.+)`")


def section(page: Path, heading: str) -> str:
    """Text of the page under a heading of level 2."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    return found


def follow(text: str, folder: Path, commands: bool = True) -> None:
    """Take the blocks of a recipe one by one, in a copy of the project; a command that fails raises."""
    for language, caption, code in BLOCK.findall(text):
        if language == "console":
            for command in re.findall(r"^\$ (.*)$", code, re.MULTILINE) if commands else ():
                run(command, folder)
        elif caption.startswith("new file "):
            target = folder / caption.removeprefix("new file ")
            assert not target.exists(), f"{caption}: it is there already"
            target.write_text(code)
        elif found := PLACE.fullmatch(caption):
            _edit(folder / found["file"], found["where"], found["text"], code)
        else:
            raise AssertionError(f"the caption {caption!r} of a {language} block does not say where it belongs")


def _edit(path: Path, where: str, text: str, code: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if text in line]
    assert len(places) == 1, f"{text!r} stands in {len(places)} lines of {path}, the recipe needs one"
    (place,) = places
    if where == "above" and lines[place].startswith(("def ", "class ")):
        code += "\n\n"
    first, last = {"above": (place, place), "below": (place + 1, place + 1), "in place of": (place, place + 1)}[where]
    path.write_text("".join([*lines[:first], code, *lines[last:]]))


def run(command: str, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder), "MEDKD_HOME": str(folder)}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
