"""A researcher's CSV as text, and which of its columns name image files."""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from medkd.data.file_store import IMAGE_SUFFIXES, FileStore
from medkd.data.tables import UNKNOWN_WORDS
from medkd.errors import DataError, first_few

MIN_FOUND = 0.9
"""Share of a column's rows that must name an image file each, where the column has no file suffixes."""


def read_own_table(path: Path) -> pd.DataFrame:
    """A researcher's CSV as text: comma, semicolon or tab, UTF-8 with or without byte order mark, any line ends.

    Returns:
        Every cell as stripped str, "" where empty; columns with stripped names. Rows and columns without any content,
        as spreadsheets leave them, are no rows and no columns; a decimal comma is a point. `attrs["lines"]` has the
        line of the file that each row stands in, if no cell has several.

    Raises:
        DataError: the file is missing, empty, not UTF-8, has a row longer than its header, a column without a
            name, or a name twice.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; name a CSV file of its folder as table in medkd.yaml")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not UTF-8 text ({error.reason}); save it as "CSV UTF-8" and try again') from error
    if "\0" in text or not text.strip():
        raise DataError(f'{path} is empty or no text; save it as "CSV UTF-8" and try again')
    text = text[len(blank := re.match(r"(?:[^\S\r\n]*[\r\n]+)*", text)[0]) :]
    header = re.match(r'("[^"]*"|[^"\r\n])*', text)[0]
    separator = max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)
    try:
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            header=None,
            skip_blank_lines=False,
        )
    except ValueError as error:  # pandas' own CSV errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table ({error}); correct it") from error
    table = table.fillna("").apply(lambda column: column.str.strip())
    table = table.loc[(table != "").any(axis=1), (table != "").any()]
    if table.empty:
        raise DataError(f"{path} holds separators and nothing between them; save the table again")
    names = table.iloc[0].tolist()
    if "" in names:
        raise DataError(f"{path} has no name for column {names.index('') + 1}; name it, or remove it if it only counts")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has several columns of the name {first_few(repeated)}; give each its own")
    lines = table.index[1:] + 1 + len(blank.splitlines())
    table = table.iloc[1:].reset_index(drop=True).set_axis(names, axis="columns")
    if table.empty:
        raise DataError(f"{path} has a header and no rows; add rows")
    table = table if separator == "," else table.apply(_with_points)
    table.attrs["lines"] = lines.tolist()
    return table


def known_values(column: pd.Series) -> pd.Series:
    """The cells that are neither empty nor a word for what is not known."""
    return column[~column.str.lower().isin(UNKNOWN_WORDS)]


def image_columns(folder: Path, table: pd.DataFrame) -> tuple[list[str], tuple[str, str]]:
    """Up to two columns of image files, and the subfolder and the suffix that lead from their values to the files.

    Columns of file names go before columns whose values lack the suffix.
    """
    store = FileStore(folder)
    packed = [path.stem for path in folder.glob("*.zip") if not path.with_suffix("").exists()]
    by_stem = defaultdict(list)
    for name in (_composed(name) for top in (".", *packed) for name in store.images(top)):
        by_stem[PurePosixPath(name).stem].append(name)
    places = {name: place for name in table if (place := _place(table[name], by_stem)) is not None}
    named = [name for name, (_, suffix) in places.items() if not suffix]
    chosen = named or [name for name in places if places[name] == next(iter(places.values()))]
    return chosen[:2], places[chosen[0]] if chosen else ("", "")


def _place(column: pd.Series, by_stem: Mapping[str, list[str]]) -> tuple[str, str] | None:
    """Subfolder and suffix under which most values of a column are image files; None if it names no images.

    A column whose values all have an image's suffix names images wherever they are.
    """
    values = [PurePosixPath(_composed(value).replace("\\", "/")) for value in sorted(set(column) - {""})]
    named = bool(values) and all(value.suffix.lower() in IMAGE_SUFFIXES for value in values)
    found: Counter[tuple[str, str]] = Counter()
    for value in values:
        for name in by_stem.get(value.stem if named else value.name, ()):
            suffix = "" if named else PurePosixPath(name).suffix
            if f"/{name}".endswith(f"/{value}{suffix}"):
                found[name.removesuffix(f"{value}{suffix}").rstrip("/"), suffix] += 1
    best = min(found, key=lambda place: (-found[place], place), default=("", ""))
    return best if named or found[best] >= MIN_FOUND * len(column) else None


def _composed(name: str) -> str:
    """A letter with its accent as one character; macOS writes file names with two."""
    return unicodedata.normalize("NFC", name)


def _with_points(column: pd.Series) -> pd.Series:
    numbers = known_values(column).str.fullmatch(r"[-+]?[0-9]+(,[0-9]+)?")
    return column.str.replace(",", ".") if len(numbers) and numbers.all() else column
