"""A researcher's own data: a folder with a CSV and images, and `medkd.yaml` that says what its columns mean."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages
from medkd.data.own_schema import METADATA, SCHEMA_FILE, OwnSchema, check_columns, problem_of, read_schema
from medkd.data.own_table import read_own_table
from medkd.data.published_splits import PARTS
from medkd.data.tables import encode_columns, existing_folder
from medkd.errors import DataError, first_few

TITLE = "your own folder with a CSV"
WEBSITE = "yourself, see data/README.md"


def read(root: str | Path, *, cache_dir: Path | None = None) -> Cohort:
    """The rows of the table, in their order, with the modalities that `medkd.yaml` names.

    Images are "image" and "second_image", the other columns the vector "metadata": words as one 0/1 column each, gaps
    left as they are and imputed later from training rows. The first image (or, without one, nothing) is the main
    modality, the second image or else the vector the second.

    Args:
        root: the folder.
        cache_dir: where decoded images go, see `FileImages`.

    Raises:
        DataError: `medkd.yaml` is missing, not confirmed, or names a column that is not there; a row has no label or
            one that is no class; an image is missing or outside the folder; ids are not unique.
    """
    root = existing_folder(root, "your data")
    schema = confirmed_schema(root)
    rows = read_own_table(root / schema.table)
    check_columns(schema, rows)
    images = {
        modality: FileImages(_paths(root, schema, rows, column), root=root, cache_dir=cache_dir)
        for modality, column in (("image", schema.image), ("second_image", schema.second_image))
        if column
    }
    table = pd.DataFrame({"id": _ids(schema, rows), "class": rows[schema.label]})
    _check_labels(schema, table)
    table["label"] = [schema.classes.index(name) for name in rows[schema.label]]
    table["patient"] = rows[schema.patient] if schema.patient else table["id"]
    if (table["patient"] == "").any():
        raise DataError(
            f"{schema.table} has rows without {schema.patient}, row "
            f"{rows.attrs['lines'][(table['patient'] == '').argmax()]}; fill it"
        )
    table["roi"] = table["id"]
    for name in ("survival_months", "event"):
        if column := getattr(schema, name):
            table[name] = _numbers(rows[column], schema.table)
    for name in (*schema.numbers, *schema.flags, *schema.categories):
        if name not in table:
            table[name] = rows[name]
    vectors = _vectors(schema, rows)
    seconds = {"teacher-student": "second_image" if schema.second_image else METADATA, "rare": "", "vector": METADATA}
    rare = tuple(schema.rare_classes) if schema.chain == "rare" else ()
    return Cohort(
        name="own",
        title=schema.title,
        simulated=False,
        classes=tuple(schema.classes),
        table=table,
        images=images,
        vectors=vectors,
        main="image" if schema.chain == "teacher-student" else "",
        second=seconds[schema.chain],
        base_classes=tuple(name for name in schema.classes if rare and name not in rare),
        rare_classes=rare,
        group=_group(schema),
        splits=_splits(schema, rows),
        licence=schema.licence,
        attribution=f"{schema.title} ({schema.licence})" if images else "",
        settings={"table": schema.table, "n_rows": len(table)},
    )


def confirmed_schema(root: Path) -> OwnSchema:
    """The schema of the folder, checked in itself.

    Raises:
        DataError: it is missing, not confirmed, or does not fit its chain.
    """
    schema, path = read_schema(root), root / SCHEMA_FILE
    if not schema.confirmed:
        raise DataError(f"{path} is not confirmed; look at it, set confirmed: true, and try again")
    if problem := problem_of(schema):
        raise DataError(f"{path}: {problem}; correct it")
    return schema


def chain_at(root: str) -> str:
    """The chain that the folder's `medkd.yaml` names. Raises: as `confirmed_schema`."""
    return confirmed_schema(existing_folder(root, "your data")).chain


def _check_labels(schema: OwnSchema, table: pd.DataFrame) -> None:
    unlabelled = table["id"][table["class"] == ""].tolist()
    if unlabelled:
        raise DataError(f"{schema.table} has no {schema.label} for {first_few(unlabelled)}; fill or remove these rows")
    strange = table[~table["class"].isin(schema.classes)]
    if len(strange):
        raise DataError(
            f'{schema.table} has the {schema.label} "{strange["class"].iloc[0]}", which is none of '
            f"{', '.join(schema.classes)}, for {first_few(strange['id'].tolist())}; correct these rows, or add it to "
            f"classes in {SCHEMA_FILE}"
        )
    if table["class"].nunique() < 2:
        raise DataError(
            f"{schema.table} has rows of one class only, {table['class'].iloc[0]}; medkd needs rows of two or more"
        )


def _ids(schema: OwnSchema, rows: pd.DataFrame) -> pd.Series:
    if schema.id:
        ids = rows[schema.id]
    elif schema.image:
        stems = rows[schema.image].map(lambda name: _file(schema, name).stem)
        ids = stems if stems.is_unique else rows[schema.image]
    else:
        ids = pd.Series([f"row_{number + 1:05d}" for number in range(len(rows))])
    repeated = ids[ids.duplicated() | (ids == "")].unique().tolist()
    if repeated:
        raise DataError(
            f"{schema.table} has no or several rows for {schema.id or schema.image} {first_few(repeated)}; each row "
            "needs its own id, set id to a column that has one"
        )
    return ids


def _paths(root: Path, schema: OwnSchema, rows: pd.DataFrame, column: str) -> list[str]:
    """Names of a column's image files, relative to `root`."""
    store = FileStore(root)
    names = []
    for line, value in zip(rows.attrs["lines"], rows[column], strict=True):
        path = _file(schema, value)
        if not value or path.is_absolute() or ".." in path.parts:
            raise DataError(
                f'{schema.table} has "{value}" as {column} in row {line}, which is no file inside {root}; '
                "give a path relative to that folder"
            )
        forms = (unicodedata.normalize(form, path.as_posix()) for form in ("NFC", "NFD"))  # macOS writes letters apart
        names.append(next((name for name in (path.as_posix(), *forms) if store.holds(name)), path.as_posix()))
    absent = [name for name in names if not store.holds(name)]
    if absent:
        raise DataError(f"{schema.table} names images that are not in {root}: {first_few(absent)}; check image_folder")
    return names


def _file(schema: OwnSchema, value: str) -> PurePosixPath:
    return PurePosixPath(schema.image_folder) / (value.replace("\\", "/") + schema.suffix)


def _vectors(schema: OwnSchema, rows: pd.DataFrame) -> dict[str, VectorTable]:
    if not (schema.numbers or schema.flags or schema.categories):
        return {}
    columns = {"numbers": schema.numbers, "flags": schema.flags, "categories": schema.categories}
    return {METADATA: encode_columns(rows, **columns, file=schema.table)}


def _splits(schema: OwnSchema, rows: pd.DataFrame) -> pd.DataFrame | None:
    if not schema.split:
        return None
    words = rows[schema.split].str.lower()
    unknown = sorted(set(words) - {"", *PARTS})
    if unknown:
        raise DataError(
            f'{schema.table} has the word "{unknown[0]}" in column {schema.split}, known are {", ".join(PARTS)}; '
            "correct it or leave split empty"
        )
    return pd.DataFrame({"own": words.map(PARTS | {"": ""})})


def _numbers(column: pd.Series, file: str) -> pd.Series:
    numbers = pd.to_numeric(column.where(column != ""), errors="coerce")
    wrong = numbers.isna() & (column != "")
    if wrong.any():
        raise DataError(f'{file} has "{column[wrong].iloc[0]}" as {column.name}, which is no number; correct it')
    return numbers


def _group(schema: OwnSchema) -> str:
    name = schema.patient.lower()
    return "image" if not name else next((word for word in ("lesion", "case", "subject") if word in name), "patient")
