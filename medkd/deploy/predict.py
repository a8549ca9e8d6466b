"""Images in, table and contact sheet out, by an exported model; what cannot be read is told and left out."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from medkd.data.decoding import DARK, UNREADABLE, dark, decode
from medkd.data.images import MAX_THREADS
from medkd.deploy.runtime import RESEARCH_ONLY, ExportedModel
from medkd.deploy.sheet import PER_PAGE, contact_sheet
from medkd.errors import DataError
from medkd.files import key_of, locked, unwritable, walk_once, write_atomically, write_json, write_table

TABLE = "predictions.csv"
SHEET = re.compile(r"contact_sheet(_\d+)?\.png")
UNFINISHED = ".unfinished"
"""Folder beside the results that holds finished pages until all are."""


@dataclass(frozen=True)
class Predicted:
    """What came of some images.

    Attributes:
        table: one row per image that could be read: file, predicted, p_<class> of each class.
        unreadable: file -> the reason, of the others.
        files: what was written.
        n_kept: pages that an interrupted call had left finished.
    """

    table: pd.DataFrame
    unreadable: dict[str, str]
    files: list[Path]
    n_kept: int = 0


def predict_images(model: Path, images: Sequence[str | Path], to: Path) -> Predicted:
    """Predict images and write `predictions.csv` and contact sheets of up to 60 images each.

    Finished pages of an interrupted call are not made again while model and images are the same.

    Args:
        model: folder that `medkd export` wrote.
        images: files, and folders that are searched with their subfolders, see `image_files`.
        to: folder to write to; a table and sheets of an earlier call in it are replaced once all new ones are there.

    Raises:
        DataError: the model is damaged, there is no image file, `to` cannot be written, or another call writes to it.
        ParameterError: onnxruntime is not installed.
    """
    exported = ExportedModel(model)
    own = to.resolve()
    paths = [path for path in image_files(images) if not _is_sheet(path, own)]
    pages = [paths[start : start + PER_PAGE] for start in range(0, len(paths), PER_PAGE)]
    rows: dict[str, list[float]] = {}
    unreadable: dict[str, str] = {}
    n_kept, sheets = 0, {}
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        with _unfinished(to) as kept:
            for number, page in enumerate(tqdm(pages, desc="predict", unit="page", leave=False, disable=None), start=1):
                where = f"page {number} of {len(pages)}"
                record = kept / f"{_key(exported, page, where)}.json"
                if (made := _finished(record)) is None:
                    made = _page(exported, page, where, record, pool)
                else:
                    n_kept += 1
                rows |= made["rows"]
                unreadable |= made["unreadable"]
                if made["rows"]:
                    name = "contact_sheet.png" if len(pages) == 1 else f"contact_sheet_{number:03}.png"
                    sheets[to / name] = record.with_suffix(".png")
            table = _table(rows, exported.record.classes)
            write_table(to / TABLE, table)
            for sheet, made_as in sheets.items():
                made_as.replace(sheet)
            for old in to.iterdir():
                if SHEET.fullmatch(old.name) and old not in sheets:
                    old.unlink()
    except OSError as error:
        raise unwritable(to, error) from error
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the rest of a page
    return Predicted(table, unreadable, [to / TABLE, *sheets], n_kept)


@contextmanager
def _unfinished(to: Path) -> Iterator[Path]:
    """The folder of finished pages, held by this call; it stays only if the call fails and a page is finished."""
    kept, whole = to / UNFINISHED, False
    kept.mkdir(parents=True, exist_ok=True)
    try:
        with locked(kept / ".lock", wait=False):
            try:
                yield kept
                whole = True
            finally:
                if whole or not any(kept.glob("*.json")):
                    shutil.rmtree(kept)
    except BlockingIOError:
        raise DataError(f"another `medkd predict` writes to {to}; wait for it, or name another folder: --to") from None


def _key(exported: ExportedModel, page: Sequence[Path], where: str) -> str:
    """Name of a page's files: another model, image, size or time of a file, or place of the page gives another."""
    images = []
    for path in page:
        try:
            status = path.stat()
            images.append([_shown(path.absolute()), _shown(path), status.st_size, status.st_mtime_ns])
        except OSError:
            images.append([_shown(path.absolute()), _shown(path)])
    return key_of([exported.record.model_dump(mode="json"), where, images], 20)


def _finished(record: Path) -> dict[str, dict] | None:
    """What an interrupted call left of a page, or None."""
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if record.with_suffix(".png").is_file() or not made["rows"] else None


def _page(
    exported: ExportedModel, page: Sequence[Path], where: str, record: Path, pool: ThreadPoolExecutor
) -> dict[str, dict]:
    """Probabilities ("rows") and reasons ("unreadable") by file, kept as `record` beside the page's contact sheet."""
    read = dict(zip(page, pool.map(lambda path: _read(path, exported.record.image_size), page), strict=True))
    made: dict[str, dict] = {"unreadable": {_shown(path): got for path, got in read.items() if isinstance(got, str)}}
    pixels = {path: got for path, got in read.items() if not isinstance(got, str)}
    found = np.zeros((0, len(exported.record.classes)), np.float32)
    if pixels:
        stack = np.stack(list(pixels.values()))
        found = exported.probabilities(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
        sheet = _sheet(exported, list(pixels), stack, found, where)
        write_atomically(record.with_suffix(".png"), lambda part: sheet.save(part, "PNG"))
    made["rows"] = dict(zip(map(_shown, pixels), found.tolist(), strict=True))
    write_json(record, made)
    return made


def image_files(places: Sequence[str | Path]) -> list[Path]:
    """The image files of these places, each once: files as named, folders in natural order (img2 before img10).

    Of a folder and its subfolders, also linked ones, those are taken whose ending is that of an image; hidden files are
    not. Links to nothing and subfolders that cannot be listed are taken too, so that it is said that they are not read.

    Raises:
        DataError: there is none, or a name is empty.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not str(place):
            raise DataError('an empty name is no file or folder; write "." for the folder that you are in')
        if not Path(place).is_dir():
            found[Path(place)] = None
            continue
        inside = _inside(Path(place))
        found |= dict.fromkeys(sorted(inside, key=lambda path, place=place: _natural(path.relative_to(place))))
    if not found:
        raise DataError(f"there is no image file in {', '.join(map(str, places))}; name files or folders with images")
    return list(found)


def _inside(place: Path) -> Iterator[Path]:
    """Images of a folder and its subfolders, then subfolders that cannot be listed; each folder is searched once."""
    endings = set(Image.registered_extensions())
    failed: list[OSError] = []
    for folder, folders, files in walk_once(place, failed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            if not path.exists() or (path.suffix.lower() in endings and path.is_file()):
                yield path
    yield from (Path(error.filename) for error in failed)


def _is_sheet(path: Path, own: Path) -> bool:
    """Whether it is a contact sheet of an earlier call, which wrote it beside its table or into the folder `own`."""
    return bool(SHEET.fullmatch(path.name)) and (path.resolve().parent == own or (path.parent / TABLE).is_file())


def _natural(path: Path) -> list[list[str | int]]:
    """Sorts numbers in names by their size, folder by folder."""
    return [
        [int(part) if number % 2 else part.lower() for number, part in enumerate(re.split(r"(\d+)", name))]
        for name in path.parts
    ]


def _read(path: Path, size: int) -> np.ndarray | str:
    """The image as the network sees it, uint8 (size, size, 3), or why it cannot be read."""
    try:
        pixels = decode(path.read_bytes(), size)[0]
    except UNREADABLE as error:
        return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return pixels if (brightest := pixels.max()) >= DARK else f"no pixel {dark(brightest)}"


def _table(rows: Mapping[str, Sequence[float]], classes: list[str]) -> pd.DataFrame:
    probabilities = np.array(list(rows.values()), np.float32).reshape(-1, len(classes))
    predicted = np.array(classes, object)[probabilities.argmax(axis=1)]
    columns = {f"p_{name}": probabilities[:, index].round(6) for index, name in enumerate(classes)}
    return pd.DataFrame({"file": list(rows), "predicted": predicted} | columns)


def _sheet(exported: ExportedModel, paths: list[Path], pixels: np.ndarray, found: np.ndarray, page: str) -> Image.Image:
    record = exported.record
    simulated = ", trained on simulated data" if record.simulated else ""
    seen = f"{page}; images as the network sees them, {record.image_size} x {record.image_size} px"
    captions = [
        (_shown(Path(path.name)), record.classes[row.argmax()], f"{row.max():.1%}")
        for path, row in zip(paths, found, strict=True)
    ]
    return contact_sheet(pixels, captions, (f"{record.title}: {RESEARCH_ONLY}{simulated}", seen))


def _shown(path: Path) -> str:
    """A path as text of one line that any file can hold, also where the name is no valid Unicode."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
