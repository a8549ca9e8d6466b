"""A researcher's own data: a folder with a CSV and images, and `medkd.yaml` that says what its columns mean."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from medkd.data.cohort import Cohort, VectorTable
from medkd.data.file_store import FileStore
from medkd.data.images import FileImages, first_few
from medkd.data.own_schema import METADATA, SCHEMA_FILE, OwnSchema, read_own_table, read_schema
from medkd.data.published_splits import PARTS
from medkd.data.tables import encode_columns, existing_folder
from medkd.errors import DataError

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
    _check_columns(schema, rows)
    _check_labels(schema, rows)
    table = pd.DataFrame({"id": _ids(schema, rows), "class": rows[schema.label]})
    table["label"] = [schema.classes.index(name) for name in rows[schema.label]]
    table["patient"] = rows[schema.patient] if schema.patient else table["id"]
    if (table["patient"] == "").any():
        raise DataError(
            f"{schema.table} has rows without {schema.patient}, row {_first(table['patient'] == '')}; fill it"
        )
    table["roi"] = table["id"]
    for name in ("survival_months", "event"):
        if column := getattr(schema, name):
            table[name] = _numbers(rows[column], schema.table)
    for name in (*schema.numbers, *schema.flags, *schema.categories):
        if name not in table:
            table[name] = rows[name]
    images = {
        modality: FileImages(_paths(root, schema, rows[column]), root=root, cache_dir=cache_dir)
        for modality, column in (("image", schema.image), ("second_image", schema.second_image))
        if column
    }
    vectors = _vectors(schema, rows)
    second = "" if schema.chain == "rare" else "second_image" if schema.second_image else METADATA if vectors else ""
    return Cohort(
        name="own",
        title=schema.title,
        simulated=False,
        classes=tuple(schema.classes),
        table=table,
        images=images,
        vectors=vectors,
        main="image" if schema.chain == "teacher-student" else "",
        second=second,
        base_classes=tuple(name for name in schema.classes if name not in schema.rare_classes)
        if schema.chain == "rare"
        else (),
        rare_classes=tuple(schema.rare_classes) if schema.chain == "rare" else (),
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
    if unknown := sorted(set(schema.rare_classes) - set(schema.classes)):
        raise DataError(f"{path} has rare_classes that are no classes: {first_few(unknown)}; correct it")
    vector = bool(schema.numbers or schema.flags or schema.categories)
    if schema.chain == "teacher-student" and not (schema.image and (schema.second_image or vector)):
        raise DataError(f"{path}: chain teacher-student needs an image, and a second_image or columns; correct it")
    if schema.chain == "vector" and not vector:
        raise DataError(f"{path}: chain vector needs numbers, flags or categories; correct it")
    if schema.chain == "rare" and not (
        schema.image and len(schema.rare_classes) > 1 and len(schema.classes) - len(schema.rare_classes) > 0
    ):
        raise DataError(f"{path}: chain rare needs an image, two or more rare_classes, and common ones; correct it")
    return schema


def chain_at(root: str) -> str:
    """The chain that the folder's `medkd.yaml` names. Raises: as `confirmed_schema`."""
    return confirmed_schema(existing_folder(root, "your data")).chain


def _check_columns(schema: OwnSchema, rows: pd.DataFrame) -> None:
    single = (schema.id, schema.label, schema.patient, schema.split, schema.image, schema.second_image)
    named = [*single, schema.survival_months, schema.event, *schema.numbers, *schema.flags, *schema.categories]
    absent = [name for name in named if name and name not in rows]
    if absent:
        raise DataError(
            f"{SCHEMA_FILE} names the column(s) {first_few(absent)}, and {schema.table} has "
            f"{first_few(list(rows), 12)}; correct either of them"
        )


def _check_labels(schema: OwnSchema, rows: pd.DataFrame) -> None:
    labels = rows[schema.label]
    wrong = ~labels.isin(schema.classes)
    if wrong.any():
        raise DataError(
            f'{schema.table} has the {schema.label} "{labels[wrong].iloc[0]}" in row {_first(wrong)} '
            f"({wrong.sum()} such rows), known are {', '.join(schema.classes)}; fill or remove them, or add a class"
        )


def _ids(schema: OwnSchema, rows: pd.DataFrame) -> pd.Series:
    if schema.id:
        ids = rows[schema.id]
    elif schema.image:
        stems = rows[schema.image].map(lambda name: PurePosixPath(name).stem)
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


def _paths(root: Path, schema: OwnSchema, column: pd.Series) -> list[str]:
    """Names of a column's image files, relative to `root`."""
    store = FileStore(root)
    names = []
    for number, value in enumerate(column):
        path = PurePosixPath(schema.image_folder) / (value.replace("\\", "/") + schema.suffix)
        if not value or path.is_absolute() or ".." in path.parts:
            raise DataError(
                f'{schema.table} has "{value}" as {column.name} in row {number + 2}, which is no file inside {root}; '
                "give a path relative to that folder"
            )
        names.append(path.as_posix())
    absent = [name for name in names if not store.holds(name)]
    if absent:
        raise DataError(f"{schema.table} names images that are not in {root}: {first_few(absent)}; check image_folder")
    return names


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


def _first(wrong: pd.Series) -> int:
    """Line of the file that the first wrong row stands in."""
    return int(wrong.to_numpy().argmax()) + 2
