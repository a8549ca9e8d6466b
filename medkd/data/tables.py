"""What readers of published tables share: the folder, CSV files, labels, and clinical columns as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from medkd.data.cohort import VectorTable
from medkd.data.file_store import FileStore
from medkd.errors import DataError, first_few

TRUE_WORDS = {"true", "yes", "1", "1.0"}
FALSE_WORDS = {"false", "no", "0", "0.0"}
UNKNOWN_WORDS = {"", "unk", "unknown", "na", "n/a", "nan", "none", "?"}
"""Words of clinical tables for what is not known, in lower case."""


def existing_folder(root: str | Path, title: str) -> Path:
    """`root` as a path.

    Raises:
        DataError: if there is no such folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; set root to the folder with the files of {title}")
    return folder


def read_table(path: Path, columns: Sequence[str], *, keys: Sequence[str] = (), separator: str = ",") -> pd.DataFrame:
    """A publisher's CSV with at least these columns; `keys` are the columns of ids, read as text.

    Raises:
        DataError: if the file is missing, is no CSV, has no rows, lacks a column, or has a row without an id.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; set root to the publisher's unpacked folder, which holds it")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(keys, str), sep=separator)
    except (ValueError, OSError) as error:  # pandas' own CSV errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table ({error}); copy it again from the publisher") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(missing)}, it has {first_few(list(table.columns), 12)}; "
            "use the publisher's file as it is"
        )
    if table.empty or table[list(keys)].isna().any(axis=None):
        raise DataError(f"{path} has no rows, or rows without {' or '.join(keys)}; copy it again from the publisher")
    return table


def refuse_repeats(table: pd.DataFrame, key: str, *, file: str) -> None:
    """Each `key` may come once.

    Raises:
        DataError: names the first that come twice.
    """
    repeated = table[key][table[key].duplicated()].unique().tolist()
    if repeated:
        raise DataError(f"{file} has several rows for {key} {first_few(repeated)}; each needs one")


def one_hot_classes(table: pd.DataFrame, classes: Sequence[str], *, key: str, file: str) -> np.ndarray:
    """The class name of each row out of one 0/1 column per class, shape (n,), str objects.

    Raises:
        DataError: if a row has not exactly one 1 among zeros, or a `key` comes twice.
    """
    refuse_repeats(table, key, file=file)
    scores = table[list(classes)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = ~(np.isin(scores, (0.0, 1.0)).all(axis=1) & (scores.sum(axis=1) == 1.0))
    if wrong.any():
        raise DataError(
            f"{file} is not one-hot for {key} {first_few(table[key][wrong].tolist())}: exactly one of "
            f"{', '.join(classes)} must be 1 and the others 0; correct or remove these rows"
        )
    return np.array(classes, dtype=object)[scores.argmax(axis=1)]


def named_classes(table: pd.DataFrame, column: str, words: Mapping[str, str], *, key: str, file: str) -> np.ndarray:
    """The class of each row by the publisher's word for it, shape (n,), str objects; case and spaces do not count.

    Args:
        table: with `column` and `key`.
        column: of the publisher's words.
        words: word in lower case -> class name.
        key: column of ids, for messages.
        file: file name of the table, for messages.

    Raises:
        DataError: if a row has another word or none, or a `key` comes twice.
    """
    refuse_repeats(table, key, file=file)
    found = table[column].astype(str).str.strip().str.lower()
    names = found.map(dict(words)).to_numpy(object)
    unknown = pd.isna(names)
    if unknown.any():
        raise DataError(
            f'{file} has the {column} "{table[column][unknown].iloc[0]}" for {key} '
            f"{first_few(table[key][unknown].tolist())}, known are {', '.join(words)}; correct or remove these rows"
        )
    return names


def check_files(store: FileStore, folder: str, expected: Sequence[str], *, table: str) -> None:
    """Compare the image files in a folder (or its zip archive) with the rows of a table.

    Args:
        store: the publisher's folder.
        folder: subfolder of the images.
        expected: names that `table` asks for, relative to the root of `store`.
        table: file name of the table, for the message.

    Raises:
        DataError: if the folder is missing, a row has no file, or a file no row.
    """
    found = set(store.images(folder))
    absent, extra = sorted(set(expected) - found), sorted(found - set(expected))
    where = store.root / folder
    if absent:
        raise DataError(f"{table} names images that {where} lacks: {_within(absent, folder)}; unpack the archive again")
    if extra:
        raise DataError(
            f"{where} holds images without a row in {table}: {_within(extra, folder)}; "
            "remove them or use the full table"
        )


def find_files(
    store: FileStore,
    folders: Sequence[str],
    wanted: Sequence[str],
    *,
    table: str,
    missing: str,
    remedy: str,
    name_of: Callable[[PurePosixPath], str] = lambda path: path.name,
) -> list[str]:
    """Where the image of each row lies, if the images are spread over several folders (or zip archives).

    Args:
        store: the publisher's folder.
        folders: subfolders that may be there; of an image that is in two the first counts.
        wanted: name of each row's image.
        table: file name of the table, for messages.
        missing: what to do where none of the folders is there.
        remedy: what to do where an image is not there.
        name_of: what `wanted` calls an image file.

    Raises:
        DataError: there is no image, a row has none, or an image no row.
    """
    found: dict[str, str] = {}
    for folder in filter(store.has, folders):
        for name in store.images(folder):
            found.setdefault(name_of(PurePosixPath(name)), name)
    if not found:
        raise DataError(f"{store.root} holds no images; {missing}")
    absent, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if absent:
        raise DataError(f"{table} names images that are not in {store.root}: {first_few(absent)}; {remedy}")
    if extra:
        raise DataError(
            f"{store.root} holds images without a row in {table}: {first_few(extra)}; use the publisher's full table"
        )
    return [found[name] for name in wanted]


def encode_columns(
    table: pd.DataFrame,
    *,
    numbers: Sequence[str] = (),
    flags: Sequence[str] = (),
    categories: Sequence[str] = (),
    file: str,
) -> VectorTable:
    """Clinical columns as numbers, one row per sample; nothing is imputed here.

    Args:
        table: with these columns.
        numbers: columns of numbers, NaN where empty or unknown.
        flags: yes/no columns, 1 or 0, NaN where empty or unknown.
        categories: columns of words, one 0/1 column for each that occurs, in alphabetical order ("sex=female", ...);
            all of a block are 0 where the word is missing.
        file: file name of the table, for messages.

    Returns:
        Values of shape (n, d), numbers and flags in the order asked for, then the blocks.

    Raises:
        DataError: if a number is none, or a flag is neither yes nor no nor unknown.
    """
    columns: dict[str, np.ndarray] = {}
    for name in numbers:
        column = table[name]
        if not pd.api.types.is_any_real_numeric_dtype(column):
            words = _words(column)
            column = words.where(~words.str.lower().isin(UNKNOWN_WORDS))
        columns[name] = pd.to_numeric(column, errors="coerce").to_numpy(np.float32)
        wrong = column[~np.isfinite(columns[name]) & column.notna().to_numpy()].unique().tolist()
        if wrong:
            raise DataError(
                f"{file} has the {name} {first_few(wrong)}, which is no number, or no finite one; correct these rows"
            )
    for name in flags:
        words = _words(table[name]).str.lower()
        wrong = words[~words.isin(TRUE_WORDS | FALSE_WORDS | UNKNOWN_WORDS)].unique().tolist()
        if wrong:
            raise DataError(
                f"{file} has the {name} {first_few(wrong)}, which is neither true nor false nor empty; "
                "correct these rows"
            )
        columns[name] = np.select([words.isin(TRUE_WORDS), words.isin(FALSE_WORDS)], [1.0, 0.0], np.nan)
    for name in categories:
        words = _words(table[name])
        known = ~words.str.lower().isin(UNKNOWN_WORDS)
        for value in sorted(words[known].unique()):
            columns[f"{name}={value}"] = (words == value).to_numpy(np.float32)
    values = np.column_stack(list(columns.values())) if columns else np.zeros((len(table), 0))
    return VectorTable(values.astype(np.float32), tuple(columns))


def _words(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def _within(names: Sequence[str], folder: str) -> str:
    return first_few([PurePosixPath(name).relative_to(folder).as_posix() for name in names])
