"""A study file: which cohorts and parameters, and what notebooks they come to."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from medkd.errors import DataError, ParameterError, did_you_mean
from medkd.report.entry import checked_name, entry_key
from medkd.report.plan import Entry, plan
from medkd.stages import SHORT_NAMES, stage_params
from medkd.stages.params import StageParams, absolute_files
from medkd.text import word
from medkd.yaml_file import read_yaml

LONGEST = 120
"""Letters of a cell's name; file systems take 255 bytes."""


class StudyCohort(BaseModel):
    """One cohort of a study."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(description="cohort by name")
    root: str = Field("", description="folder with its files; a relative one counts from the study file")


class Study(BaseModel):
    """What a study file holds."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="folder under reports/")
    cohorts: list[StudyCohort] = Field(description="cohorts that every cell is run on", min_length=1)
    preset: str = Field("quick", description="settings to start from")
    seed: int = Field(0, description="seeds every stage", ge=0)
    device: str = Field("auto", description='"auto", "cpu" or "cuda"')
    parameters: dict[str, Any] = Field({}, description="parameters of every cell, as -p of medkd report")
    grid: dict[str, list[Any]] = Field({}, description="parameter -> values; every combination is a cell")
    cells: list[dict[str, Any]] = Field(
        [], description='further cells, parameter -> value each, and "name" to be called'
    )
    notebooks: list[str] = Field([], description="run these of each chain only; all by default")
    references: list[str] = Field([], description="methods, named as in the report, that all others are compared with")
    _folder: Path = PrivateAttr(Path())  # of the study file

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        try:
            return checked_name(name)
        except ParameterError as error:
            raise ValueError(str(error)) from None

    @field_validator("grid")
    @classmethod
    def _has_values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if empty := [name for name, values in grid.items() if not values]:
            raise ValueError(f"{empty[0]} has no values, so that no cell would run; give it some, or take it out")
        return grid

    @field_validator("cohorts")
    @classmethod
    def _is_named_once(cls, cohorts: list[StudyCohort]) -> list[StudyCohort]:
        names = [cohort.dataset for cohort in cohorts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice; give each of the two a study of its own")
        return cohorts

    @field_validator("notebooks")
    @classmethod
    def _are_notebooks(cls, names: list[str]) -> list[str]:
        known = tuple(SHORT_NAMES.values())
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known, ";")
                raise ValueError(f'there is no notebook "{name}"{hint} there are {", ".join(known)}')
        return names

    @classmethod
    def read(cls, path: Path) -> Study:
        """The study in a YAML file.

        Raises:
            DataError: the file is missing or no YAML.
            ParameterError: a key is unknown (the nearest is told), missing, or has a wrong value.
        """
        try:
            values = read_yaml(Path(path))
        except FileNotFoundError as error:
            raise DataError(f"there is no study file {path}") from error
        try:
            study = cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(_told(error, path)) from None
        folder = Path(path).resolve().parent
        for cohort in study.cohorts:
            if cohort.root:
                cohort.root = str((folder / Path(cohort.root).expanduser()).resolve())
        study._folder = folder
        return study


@dataclass(frozen=True)
class Cell:
    """One combination of parameters on one cohort.

    Attributes:
        name: of its folder below the study's.
        dataset: cohort.
        parameters: what was varied.
        entries: its notebooks in order.
        title: what the study file calls it; "" where it is called by what was varied.
    """

    name: str
    dataset: str
    parameters: dict[str, Any]
    entries: tuple[Entry, ...]
    title: str = ""


@dataclass(frozen=True)
class Node:
    """One notebook to run, for one cell or for several that need the same.

    Attributes:
        key: of what it depends on; equal nodes are run once.
        entry: notebook and parameters.
        folder: of the first cell that needs it, relative to the study's.
        needs: keys of the nodes whose results it loads.
    """

    key: str
    entry: Entry
    folder: str
    needs: tuple[str, ...]


def expand(study: Study) -> list[Cell]:
    """The cells of a study, in the order of its file.

    Raises:
        ParameterError: a parameter is unknown or out of range, two cells are the same or would run the same, or one
            has none of the notebooks that were asked for.
        DataError: a cohort is unknown.
    """
    combinations = [dict(zip(study.grid, values, strict=True)) for values in itertools.product(*study.grid.values())]
    varied = (combinations if study.grid or not study.cells else []) + study.cells
    cells, seen = [], set()
    for cohort, parameters in itertools.product(study.cohorts, varied):
        title = str(parameters.get("name", ""))
        name, parameters = _cell_name(cohort.dataset, parameters), {k: v for k, v in parameters.items() if k != "name"}
        if name in seen:
            raise ParameterError(
                f"two cells of study {study.name} are the same, or called the same: {name}; remove one of them"
            )
        seen.add(name)
        overrides = absolute_files(study.parameters | parameters, study._folder)
        seed = overrides.pop("seed", study.seed)
        entries = plan(
            [cohort.dataset],
            root=cohort.root,
            report=f"{study.name}/{name}",
            overrides=overrides,
            preset=study.preset,
            device=study.device,
            seed=seed,
        )
        chosen = tuple(entry for entry in entries if not study.notebooks or entry.notebook in study.notebooks)
        if not chosen:
            raise ParameterError(
                f"notebooks: {cohort.dataset} has none of {', '.join(study.notebooks)}; it has "
                f"{', '.join(entry.notebook for entry in entries)}"
            )
        cells.append(Cell(name, cohort.dataset, parameters, chosen, title))
    _check_distinct(cells, study.name)
    return cells


def _check_distinct(cells: Sequence[Cell], study: str) -> None:
    """Refuse two cells that would run the same: a method would be compared with itself under another name.

    Raises:
        ParameterError: two of one cohort would.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        given = [(each.notebook, stage_params()[each.notebook].checked(each.parameters)) for each in cell.entries]
        given = [(notebook, _read(params)) for notebook, params in given]
        first = seen.setdefault(json.dumps([cell.dataset, given], sort_keys=True), cell.name)
        if first != cell.name:
            raise ParameterError(
                f"cells {first} and {cell.name} of study {study} would run the same notebooks with the same parameters "
                "(a parameter that names its stage wins over one that does not); change one of them, or take it out"
            )


def _read(params: StageParams) -> dict[str, Any]:
    """All values of a stage and of those above it, whatever way they were written: 1e-3, which YAML takes for text."""
    own = params.model_dump(mode="json", exclude={"report", *params.upstream})
    return own | {name: _read(params.of(name)) for name in params.upstream}


def nodes_of(cells: Sequence[Cell], fingerprints: Mapping[str, str]) -> tuple[dict[str, Node], dict[str, list[str]]]:
    """The notebooks to run, each once, and for each cell the keys of its notebooks in order.

    Args:
        cells: of a study.
        fingerprints: cohort -> its content.
    """
    nodes: dict[str, Node] = {}
    of_cell: dict[str, list[str]] = {}
    for cell in cells:
        keys: dict[str, str] = {}
        for entry in cell.entries:
            key = f"{entry.name}-{entry_key(entry, fingerprints[cell.dataset])}"
            needs = tuple(keys[name] for name in _upstream(entry.notebook) if name in keys)
            nodes.setdefault(key, Node(key, entry, cell.name, needs))
            keys[entry.notebook] = key
        of_cell[cell.name] = list(keys.values())
    return nodes, of_cell


def _upstream(notebook: str) -> list[str]:
    """Notebooks whose results this one loads."""
    return [cls.stage for cls in stage_params()[notebook].upstream.values()]


def _cell_name(dataset: str, parameters: Mapping[str, Any]) -> str:
    """A folder's name that tells the cohort and what was varied, or the cell's own name and the seed.

    It ends in a checksum where a folder cannot tell it all.
    """
    shown = {name: value for name, value in parameters.items() if "name" not in parameters or name in ("name", "seed")}
    told = "+".join([dataset, *(word(value) if k == "name" else f"{k}={word(value)}" for k, value in shown.items())])
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", told)[:LONGEST]
    if name == told:
        return name
    checksum = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9].strip('-')}~{checksum}"


def _told(error: ValidationError, path: Path) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    known = StudyCohort.model_fields if name.startswith("cohorts.") else Study.model_fields
    if first["type"].startswith("model_"):
        if name:
            return f'{path}: "{name}": write {{dataset: NAME}}, and root: FOLDER beside it where the cohort needs one'
        return f"{path} must be a mapping with name, cohorts and what else is asked for; it is empty, or a list"
    hint = did_you_mean(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
    return f'{path}: "{name}": {first["msg"].removeprefix("Value error, ")}{hint}; known are {", ".join(known)}'
