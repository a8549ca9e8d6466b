"""A researcher's own table: what its columns mean, inferred, shown, and confirmed in `medkd.yaml` beside the data."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medkd.data.file_store import IMAGE_SUFFIXES
from medkd.data.images import first_few
from medkd.data.published_splits import PARTS
from medkd.data.tables import FALSE_WORDS, TRUE_WORDS, UNKNOWN_WORDS
from medkd.errors import DataError

SCHEMA_FILE = "medkd.yaml"
TABLE_NAMES = ("table.csv", "metadata.csv", "labels.csv")
"""Taken before others where a folder has several CSV files."""
LABEL_NAMES = ("label", "class", "diagnosis", "diagnostic", "dx", "target", "y", "grade")
PATIENT_NAMES = (
    "patient", "patient_id", "patientid", "subject", "subject_id", "lesion_id", "lesion", "case", "case_id", "group",
)  # fmt: skip
ID_NAMES = ("id", "sample", "sample_id", "image_id", "img_id", "isic_id")
MAX_CLASSES, MAX_WORDS = 50, 20
"""More different values than this are no classes, no category."""
RARE_SHARE = 0.08
"""Classes with fewer than this share of the rows are proposed as rare."""
METADATA = "metadata"
"""Name of the vector modality."""


class OwnSchema(BaseModel):
    """What the columns of a researcher's table mean; `medkd.yaml` holds one."""

    model_config = ConfigDict(extra="forbid")

    confirmed: bool = Field(False, description="set to true once the rest is right")
    title: str = Field("own data", description="how figures and tables call the cohort")
    table: str = Field(description="CSV file in this folder")
    id: str = Field("", description="column that names each row; empty: the image's file name, or the row number")
    label: str = Field(description="column of classes")
    classes: list[str] = Field(description="classes, in the order that tables show them", min_length=2)
    patient: str = Field("", description="column that no split may cut (patient, lesion); empty: each row by itself")
    split: str = Field("", description="column with train, val and test; empty: folds are drawn")
    image: str = Field("", description="column of image files, relative to image_folder")
    second_image: str = Field("", description="column of a second image of the same row")
    image_folder: str = Field("", description="subfolder of the images; empty: this folder")
    suffix: str = Field("", description="file suffix, where the column has none, such as .jpg")
    numbers: list[str] = Field([], description=f"numeric columns of the vector modality {METADATA}")
    flags: list[str] = Field([], description=f"yes/no columns of {METADATA}")
    categories: list[str] = Field([], description=f"columns of words of {METADATA}")
    survival_months: str = Field("", description="column of follow-up in months, for task=survival")
    event: str = Field("", description="column with 1 (event) or 0 (censored), for task=survival")
    chain: Literal["teacher-student", "rare", "vector"] = Field(
        description="teacher-student (two modalities), rare (common and rare classes) or vector (no image)"
    )
    rare_classes: list[str] = Field([], description="chain rare: classes of the few-shot task; the others are common")
    licence: str = Field("own data", description="shown in reports")


def read_schema(folder: Path) -> OwnSchema:
    """The schema that `medkd.yaml` holds, confirmed or not.

    Raises:
        DataError: it is missing, no YAML, or has an unknown key or a wrong value.
    """
    path = folder / SCHEMA_FILE
    if not path.is_file():
        raise DataError(
            f"there is no {SCHEMA_FILE} in {folder}; run `medkd data prepare own --root FOLDER`, look at what it "
            "infers, and confirm"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return OwnSchema.model_validate(values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable YAML ({str(error).splitlines()[0]}); correct or delete it") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        near = difflib.get_close_matches(name, OwnSchema.model_fields, n=1)
        hint = f'; did you mean "{near[0]}"?' if first["type"] == "extra_forbidden" and near else ""
        raise DataError(f'{path}: "{name}": {first["msg"]}{hint}; correct it') from error


def write_schema(folder: Path, schema: OwnSchema) -> Path:
    """Write `medkd.yaml`, each field under its explanation; returns its path."""
    from medkd.files import write_atomically

    lines = ["# What the columns of the table mean, for medkd. Edit what is wrong."]
    for name, field in OwnSchema.model_fields.items():
        boxed = yaml.safe_dump([getattr(schema, name)], allow_unicode=True, default_flow_style=True, width=10**6)
        lines += [f"# {field.description}", f"{name}: {boxed.strip()[1:-1]}"]
    path = folder / SCHEMA_FILE
    write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


def read_own_table(path: Path) -> pd.DataFrame:
    """A researcher's CSV as text: comma, semicolon or tab, UTF-8 with or without byte order mark, any line ends.

    Returns:
        Every cell as stripped str, "" where empty; columns with stripped names.

    Raises:
        DataError: the file is missing, empty, not UTF-8, has rows of different lengths, or one column name twice.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; name a CSV file of its folder as table in {SCHEMA_FILE}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not UTF-8 text ({error.reason}); save it as "CSV UTF-8" and try again') from error
    if "\0" in text or not text.strip():
        raise DataError(f'{path} is empty or no text; save it as "CSV UTF-8" and try again')
    header = text.lstrip().splitlines()[0]
    separator = max(",;\t", key=header.count)
    try:
        table = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False, header=None
        )
    except ValueError as error:  # pandas' own CSV errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table ({error}); correct it") from error
    table = table.fillna("").apply(lambda column: column.str.strip())
    names = table.iloc[0].tolist()
    repeated = sorted({name for name in names if names.count(name) > 1 or not name})
    if repeated:
        raise DataError(f"{path} has no or several columns of the name {first_few(repeated)}; give each its own")
    table = table.iloc[1:].reset_index(drop=True).set_axis(names, axis="columns")
    if table.empty:
        raise DataError(f"{path} has a header and no rows; add rows")
    return table


def infer(folder: Path) -> OwnSchema:
    """What the columns of the folder's table seem to mean.

    Raises:
        DataError: there is no folder or no CSV in it, several of which none has a usual name, or none of its columns
            looks like classes.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; set root to the folder with your CSV and images")
    path = _table_file(folder)
    table = read_own_table(path)
    left = list(table.columns)

    def take(found: str | None) -> str:
        if found:
            left.remove(found)
        return found or ""

    images = [name for name in left if _holds_files(table[name])][:2]
    for name in images:
        take(name)
    split = take(next((name for name in left if _is_split(table[name])), None))
    patient = take(_named(left, PATIENT_NAMES))
    label = take(_named(left, LABEL_NAMES, lambda name: 2 <= table[name].nunique() <= MAX_CLASSES) or _few(table, left))
    if not label:
        raise DataError(
            f"no column of {path} looks like classes (2 to {MAX_CLASSES} different words); call one of them label"
        )
    months, event = (take(_named(left, (name,))) for name in ("survival_months", "event"))
    row_id = take(_named(left, ID_NAMES, lambda name: table[name].is_unique))
    numbers = [name for name in left if _is_number(table[name]) and not _is_flag(table[name])]
    flags = [name for name in left if _is_flag(table[name])]
    words = [name for name in left if name not in (*numbers, *flags) and 2 <= table[name].nunique() <= MAX_WORDS]
    counts = table[label][table[label] != ""].value_counts()
    paired = len(images) == 2 or bool(images and (numbers or flags or words))
    rare = [] if paired or not images else _rare(counts)
    return OwnSchema(
        table=path.name,
        id=row_id,
        label=label,
        classes=[str(name) for name in counts.index],
        patient=patient,
        split=split,
        image=images[0] if images else "",
        second_image=images[1] if len(images) == 2 else "",
        image_folder=_image_folder(folder, table[images[0]]) if images else "",
        numbers=numbers,
        flags=flags,
        categories=words,
        survival_months=months if event else "",
        event=event if months else "",
        chain="teacher-student" if paired else "rare" if images else "vector",
        rare_classes=rare,
        title=folder.resolve().name or "own data",
    )


def explain(schema: OwnSchema, folder: Path) -> str:
    """The schema in words, one line a column of the table, for the terminal."""
    table = read_own_table(folder / schema.table)
    roles: dict[str, str] = {}
    for role in ("id", "label", "patient", "split", "image", "second_image", "survival_months", "event"):
        if column := getattr(schema, role):
            roles[column] = role.replace("_", " ")
    for role, columns in (("number", schema.numbers), ("yes/no", schema.flags), ("category", schema.categories)):
        roles |= dict.fromkeys(columns, f"{METADATA}: {role}")
    width = max(len(name) for name in table.columns)
    lines = [f"{folder / schema.table}: {len(table)} rows"]
    for name in table.columns:
        values = table[name][table[name] != ""]
        shown = first_few(sorted(values.unique()), 3)
        lines.append(f"  {name:{width}}  {roles.get(name, 'not used'):18} {shown}")
    counts = table[schema.label].value_counts()
    classes = ", ".join(f"{name} ({counts.get(name, 0)})" for name in schema.classes)
    lines.append(f"classes: {classes}")
    lines.append(
        f"chain: {schema.chain}" + (f", rare: {', '.join(schema.rare_classes)}" if schema.rare_classes else "")
    )
    return "\n".join(lines)


def _table_file(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    usual = [path for name in TABLE_NAMES for path in found if path.name == name]
    if len(found) == 1 or usual:
        return (usual or found)[0]
    if not found:
        raise DataError(f"there is no CSV file in {folder}; put a table with one row a sample there")
    raise DataError(
        f"{folder} has several CSV files ({first_few([path.name for path in found], 5)}); "
        f"call the one to use {TABLE_NAMES[0]}"
    )


def _named(columns: list[str], names: tuple[str, ...], fits: Callable[[str], bool] = lambda name: True) -> str | None:
    """The column that has one of the names (case and spaces do not count), names in their order."""
    plain = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in columns}
    return next((plain[name] for name in names if name in plain and fits(plain[name])), None)


def _few(table: pd.DataFrame, columns: list[str]) -> str | None:
    """The column of words with the fewest different values, 2 at least."""
    counts = {name: table[name].nunique() for name in columns if not _is_number(table[name])}
    fitting = {name: count for name, count in counts.items() if 2 <= count <= min(MAX_CLASSES, len(table) // 2)}
    return min(fitting, key=fitting.get) if fitting else None


def _holds_files(column: pd.Series) -> bool:
    values = column[column != ""]
    return len(values) > 0 and all(PurePosixPath(value).suffix.lower() in IMAGE_SUFFIXES for value in values)


def _image_folder(folder: Path, column: pd.Series) -> str:
    """The subfolder that the first image file is in, "" where it is beside the table or nowhere."""
    first = next(value for value in column if value)
    if (folder / first).is_file():
        return ""
    holding = (path for path in sorted(folder.iterdir()) if path.is_dir() and (path / first).is_file())
    return next((path.name for path in holding), "")


def _is_split(column: pd.Series) -> bool:
    words = set(column[column != ""].str.lower())
    return "train" in words and len(words) > 1 and words <= set(PARTS)


def _known(column: pd.Series) -> pd.Series:
    return column[~column.str.lower().isin(UNKNOWN_WORDS)]


def _is_number(column: pd.Series) -> bool:
    values = _known(column)
    return len(values) > 0 and pd.to_numeric(values, errors="coerce").notna().all()


def _is_flag(column: pd.Series) -> bool:
    words = set(_known(column).str.lower())
    return len(words) == 2 and words <= TRUE_WORDS | FALSE_WORDS and bool(words & TRUE_WORDS and words & FALSE_WORDS)


def _rare(counts: pd.Series) -> list[str]:
    """The classes to propose as rare: the small ones, or the smaller half where none is; at least two stay common."""
    small = [str(name) for name, count in counts.items() if count < RARE_SHARE * counts.sum()]
    return (small if len(small) > 1 else [str(name) for name in counts.index[-(len(counts) // 2) :]])[: len(counts) - 2]
