"""A researcher's own table: what its columns mean, inferred, shown, and confirmed in `medkd.yaml` beside the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medkd.data.own_table import image_columns, known_values, read_own_table
from medkd.data.published_splits import PARTS
from medkd.data.tables import FALSE_WORDS, TRUE_WORDS
from medkd.errors import DataError, did_you_mean, first_few
from medkd.files import write_atomically
from medkd.yaml_file import read_yaml

SCHEMA_FILE = "medkd.yaml"
TABLE_NAMES = ("table.csv", "metadata.csv", "labels.csv")
"""Taken before others where a folder has several CSV files."""
LABEL_NAMES = ("label", "class", "diagnosis", "diagnostic", "dx", "target", "y", "grade")
PATIENT_NAMES = (
    "patient", "patient_id", "patientid", "subject", "subject_id", "lesion_id", "lesion", "case", "case_id", "group",
)  # fmt: skip
ID_NAMES = ("id", "sample", "sample_id", "image_id", "img_id", "isic_id", "unnamed:_0", "index", "nr")
MAX_CLASSES, MAX_WORDS = 50, 20
"""More different values than this are no classes, no category."""
NO_LABEL = {"", "na", "n/a", "nan", "null"}
"""Words that a program writes for a label that is not there, in lower case; not proposed as classes."""
RARE_SHARE = 0.05
"""Classes with fewer than this share of the rows are proposed as rare; of ISIC 2018 it makes the published choice."""
METADATA = "metadata"
"""Name of the vector modality."""
NO_SPLIT = "chain rare draws support and query sets of its own"


class OwnSchema(BaseModel):
    """What the columns of a researcher's table mean; `medkd.yaml` holds one."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    confirmed: bool = Field(False, description="set to true once the rest is right")
    title: str = Field("own data", description="how figures and tables call the cohort")
    table: str = Field(description="CSV file in this folder", pattern=r"^[^/\\]+$")
    id: str = Field("", description="column that names each row; empty: the image's file name, or the row number")
    label: str = Field(description="column of classes")
    classes: list[str] = Field(description="classes, in the order that tables show them", min_length=2)
    patient: str = Field("", description="column that no split may cut (patient, lesion); empty: each row by itself")
    split: str = Field("", description="column with train, val and test; empty, and in chain rare: drawn")
    image: str = Field("", description="column of image files, relative to image_folder")
    second_image: str = Field("", description="column of a second image of the same row")
    image_folder: str = Field("", description="subfolder of the images; empty: this folder")
    suffix: str = Field("", description="file suffix, where the image columns have none, such as .jpg")
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
        values = read_yaml(path, cure="correct or delete it")
        return OwnSchema.model_validate(values)
    except ValidationError as error:
        # A misspelt key is also a missing one, and its own message helps more.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        name = ".".join(str(part) for part in first["loc"]) or "the file"
        absent = set(OwnSchema.model_fields) - set(values) if first["type"] == "extra_forbidden" else ()
        hint = did_you_mean(name, sorted(absent))
        cure = "put it in quotes" if first["type"] == "string_type" else "correct it"
        raise DataError(f'{path}: "{name}": {first["msg"]}{hint}; {cure}') from error


def write_schema(folder: Path, schema: OwnSchema) -> Path:
    """Write `medkd.yaml`, each field under its explanation; returns its path."""
    lines = ["# What the columns of the table mean, for medkd. Edit what is wrong."]
    for name, field in OwnSchema.model_fields.items():
        boxed = yaml.safe_dump([getattr(schema, name)], allow_unicode=True, default_flow_style=True, width=10**6)
        lines += [f"# {field.description}", f"{name}: {boxed.strip()[1:-1]}"]
    path = folder / SCHEMA_FILE
    write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


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

    images, (image_folder, suffix) = image_columns(folder, table)
    for name in images:
        take(name)
    split = take(next((name for name in left if _is_split(table[name])), None))
    patient = take(_named(left, PATIENT_NAMES, lambda name: _n_values(table[name]) > 2))
    usual = _named(left, LABEL_NAMES, lambda name: 2 <= len(_classes(table[name])) <= MAX_CLASSES)
    label = take(usual or _few(table, left))
    if not label:
        raise DataError(
            f"no column of {path} looks like classes (2 to {MAX_CLASSES} different words); call one of them label"
        )
    months, event = (take(_named(left, (name,))) for name in ("survival_months", "event"))
    row_id = take(_named(left, ID_NAMES, lambda name: table[name].is_unique))
    left = [name for name in left if not _plain(name).endswith("_id") and _plain(name) not in ID_NAMES]
    flags = [name for name in left if _is_flag(table[name])]
    numbers = [name for name in left if name not in flags and _is_number(table[name])]
    words = [name for name in left if name not in (*numbers, *flags) and 2 <= _n_values(table[name]) <= MAX_WORDS]
    counts = _classes(table[label])
    classes = sorted(counts, key=lambda name: (-counts[name], name))
    paired = len(images) == 2 or bool(images and (numbers or flags or words))
    chain = "teacher-student" if paired else "rare" if images else "vector"
    return OwnSchema(
        table=path.name,
        id=row_id,
        label=label,
        classes=classes,
        patient=patient,
        split="" if chain == "rare" else split,
        image=images[0] if images else "",
        second_image=images[1] if len(images) == 2 else "",
        image_folder=image_folder,
        suffix=suffix,
        numbers=numbers,
        flags=flags,
        categories=words,
        survival_months=months if event else "",
        event=event if months else "",
        chain=chain,
        rare_classes=_rare(classes, counts) if chain == "rare" else [],
        title=folder.resolve().name or "own data",
    )


def explain(schema: OwnSchema, folder: Path) -> str:
    """The schema in words, one line per column of the table, for the terminal.

    Raises:
        DataError: as `read_own_table` and `check_columns`.
    """
    table = read_own_table(folder / schema.table)
    check_columns(schema, table)
    roles: dict[str, str] = {}
    for role in ("id", "patient", "split", "image", "second_image", "survival_months", "event"):
        if column := getattr(schema, role):
            roles[column] = role.replace("_", " ")
    roles[schema.label] = "label" if _named([schema.label], LABEL_NAMES) else "label (a guess)"
    for role, columns in (("number", schema.numbers), ("yes/no", schema.flags), ("category", schema.categories)):
        roles |= dict.fromkeys(columns, f"{METADATA}: {role}")
    width = max(len(name) for name in table.columns)
    lines = [f"{folder / schema.table}: {len(table)} rows"]
    for name in table.columns:
        shown = first_few(sorted(set(table[name]) - {""}), 3)
        lines.append(f"  {name:{width}}  {roles.get(name, 'not used'):18} {shown}")
    counts = Counter(table[schema.label])
    lines.append("classes: " + ", ".join(f"{name} ({counts[name]})" for name in schema.classes))
    rare = f", rare: {', '.join(schema.rare_classes)}" if schema.rare_classes else ""
    rule = f" (proposed are those below {RARE_SHARE:.0%} of the rows, or else the smaller half)" if rare else ""
    lines.append(f"chain: {schema.chain}{rare}{rule}")
    if not schema.patient:
        lines.append("patient: no column; every row counts as a patient of its own, and no split keeps two together")
    if schema.chain == "rare" and any(_is_split(table[name]) for name in table):
        lines.append(f"split: not used; {NO_SPLIT}")
    if schema.numbers or schema.flags or schema.categories:
        lines.append(f"{METADATA}: take out what is only known after the label, because it gives the label away")
    if set(table.columns) - set(roles):
        lines.append(f"not used: ids, free text (more than {MAX_WORDS} different words), and what is always the same")
    if problem := problem_of(schema):
        lines.append(f"problem: {problem}")
    return "\n".join(lines)


def check_columns(schema: OwnSchema, rows: pd.DataFrame) -> None:
    """Refuse a schema that names columns which the table lacks. Raises: DataError."""
    single = (schema.id, schema.label, schema.patient, schema.split, schema.image, schema.second_image)
    named = [*single, schema.survival_months, schema.event, *schema.numbers, *schema.flags, *schema.categories]
    absent = [name for name in named if name and name not in rows]
    if absent:
        raise DataError(
            f"{SCHEMA_FILE} names the column(s) {first_few(absent)}, and {schema.table} has "
            f"{first_few(list(rows), 12)}; correct either of them"
        )


def problem_of(schema: OwnSchema) -> str:
    """Why the schema cannot serve its chain, "" if it can."""
    vector = [*schema.numbers, *schema.flags, *schema.categories]
    others = {schema.label, schema.split, schema.patient, schema.survival_months, schema.event}
    if twice := sorted({name for name in vector if name in others or vector.count(name) > 1}):
        return f"the columns {first_few(twice)} are in {METADATA} twice, or have another meaning beside it"
    if len(set(schema.classes)) < len(schema.classes):
        return f"it has one of the classes {first_few(schema.classes)} twice"
    if unknown := sorted(set(schema.rare_classes) - set(schema.classes)):
        return f"it has rare_classes that are no classes: {first_few(unknown)}"
    n_rare = len(schema.rare_classes)
    if schema.chain == "teacher-student" and not (schema.image and (schema.second_image or vector)):
        return "chain teacher-student needs an image, and a second_image or columns"
    if schema.chain == "vector" and not vector:
        return "chain vector needs numbers, flags or categories"
    if schema.chain == "rare" and not (schema.image and 1 < n_rare < len(schema.classes)):
        return "chain rare needs an image, two or more rare_classes, and common ones"
    if schema.chain == "rare" and schema.split:
        return f"{NO_SPLIT}; leave split empty"
    if schema.chain == "rare" and schema.second_image:
        return "chain rare takes one image; leave second_image empty"
    return ""


def _table_file(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    usual = [path for name in TABLE_NAMES for path in found if path.name == name]
    if len(found) == 1 or usual:
        return (usual or found)[0]
    if not found:
        raise DataError(f"there is no CSV file in {folder}; put a table with one row per sample there")
    raise DataError(
        f"{folder} has several CSV files ({first_few([path.name for path in found], 5)}); "
        f"call the one to use {TABLE_NAMES[0]}"
    )


def _named(columns: list[str], names: tuple[str, ...], fits: Callable[[str], bool] = lambda name: True) -> str | None:
    """The column that has one of the names (case and spaces do not count), names in their order."""
    plain = {_plain(name): name for name in columns}
    return next((plain[name] for name in names if name in plain and fits(plain[name])), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.lower())


def _few(table: pd.DataFrame, columns: list[str]) -> str | None:
    """The column of words with the fewest different values, 2 at least."""
    counts = {name: len(_classes(table[name])) for name in columns if not _is_number(table[name])}
    fitting = {name: count for name, count in counts.items() if 2 <= count <= min(MAX_CLASSES, len(table) // 2)}
    return min(fitting, key=fitting.get) if fitting else None


def _is_split(column: pd.Series) -> bool:
    words = set(column[column != ""].str.lower())
    return "train" in words and len(words) > 1 and words <= set(PARTS)


def _classes(column: pd.Series) -> Counter[str]:
    return Counter(name for name in column if name.lower() not in NO_LABEL)


def _n_values(column: pd.Series) -> int:
    return len(set(column) - {""})


def _is_number(column: pd.Series) -> bool:
    values = known_values(column)
    return len(values) > 0 and pd.to_numeric(values, errors="coerce").notna().all()


def _is_flag(column: pd.Series) -> bool:
    words = set(known_values(column).str.lower())
    return len(words) == 2 and words <= TRUE_WORDS | FALSE_WORDS and bool(words & TRUE_WORDS and words & FALSE_WORDS)


def _rare(classes: list[str], counts: Mapping[str, int]) -> list[str]:
    """The smallest classes to propose as rare: those below `RARE_SHARE`, or the smaller half; two stay common."""
    small = sum(counts[name] < RARE_SHARE * sum(counts.values()) for name in classes)
    n_rare = min(small if small > 1 else len(classes) // 2, len(classes) - 2)
    return classes[-n_rare:] if n_rare > 1 else []
