"""Stage parameters: one pydantic class per stage, from which notebook cell, command line and report table come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medkd.errors import ParameterError, did_you_mean
from medkd.files import digest_of


def shared(default: Any, description: str, **limits: Any) -> Any:
    """A field that a stage hands on to its upstream stages, so that one value serves the whole chain."""
    return Field(default, description=description, json_schema_extra={"shared": True}, **limits)


def unkeyed(default: Any, description: str, **limits: Any) -> Any:
    """A shared field that does not change a result (where files lie, which device), and is left out of run keys."""
    return Field(default, description=description, json_schema_extra={"shared": True, "unkeyed": True}, **limits)


SAME = ("dataset", "root", "seed", "n_folds", "split_file", "task", "main", "second", "by_lesion")
"""Fields that are alike in a whole chain: with others an upstream network may have seen test samples of this stage."""

LINE_LENGTH = 120
FILES = ("split_file", "weights")
"""Parameters of any stage that may name a file."""


def absolute_files(parameters: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The parameters ("split_file", or "teacher.weights") with files of the folder as absolute paths.

    Paths are given from where a command is called or a study file lies, and notebooks run in their own folder.
    """

    def change(path: str) -> str:
        file = folder / Path(path).expanduser()
        return str(file.absolute()) if file.is_file() else path

    return _with_files(parameters, change)


def by_content(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a digest of the content of files in place of their paths; "imagenet" and "none" stay."""

    def change(path: str) -> str:
        file = Path(path).expanduser()
        return digest_of(file)[:16] if file.is_file() else path

    return _with_files(parameters, change)


def _with_files(parameters: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The parameters with `change` done to each that may name a file, those of upstream stages among them."""

    def changed(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _with_files(value, change)
        return change(value) if name.rpartition(".")[2] in FILES and value and isinstance(value, str) else value

    return {name: changed(name, value) for name, value in parameters.items()}


class StageParams(BaseModel):
    """Parameters of one stage; frozen and strict about names.

    A subclass names its notebook in `stage` and lists in `upstream` the stages whose results it needs: a field of
    that name holds the upstream parameters that differ from their defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    stage: ClassVar[str] = ""
    upstream: ClassVar[dict[str, type[StageParams]]] = {}

    dataset: str = shared("phantom-glioma", "cohort by name; `medkd data list` shows them")
    root: str = unkeyed("", "folder with the publisher's files; empty for a simulated cohort")
    report: str = unkeyed("interactive", "folder under reports/ that figures and tables go to")
    device: str = unkeyed("auto", '"auto", "cuda", "cuda:1" or "cpu"')
    seed: int = shared(0, "seeds splits, weights, shuffling and augmentation", ge=0)

    @classmethod
    def collect(cls, namespace: Mapping[str, Any]) -> Self:
        """Parameters from a notebook's variables: `params = TeacherParams.collect(globals())`.

        Raises:
            ParameterError: a value is of the wrong type or out of range; names parameter, value and what is allowed.
        """
        return cls.checked({name: namespace[name] for name in cls.model_fields if name in namespace})

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Parameters from a mapping; unknown names are refused with the nearest known one.

        Raises:
            ParameterError: see `collect`; also for an unknown name.
        """
        for name in values:
            if name not in cls.model_fields:
                hint = did_you_mean(name, cls.model_fields, ".")
                raise ParameterError(
                    f'unknown parameter "{name}" for {cls.stage}{hint} Known: {", ".join(sorted(cls.model_fields))}'
                )
        try:
            params = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "parameters"
            hint = ', in JSON with double quotes, such as ["ce", "gmcd"]' if first["type"] == "list_type" else ""
            told = f"{cls.stage}: {where} = {first['input']!r} is not allowed: {first['msg']}{hint}"
            raise ParameterError(told) from None
        for name in cls.upstream:
            params.of(name)  # a wrong upstream parameter fails here, not after an hour of training
        return params

    def of(self, upstream: str) -> StageParams:
        """Parameters of an upstream stage: this stage's shared values, then the overrides in the field of that name.

        Raises:
            ParameterError: an override is unknown, out of range, or has another value than this stage where a chain has
                one: a field of `SAME`, or the parameters of a stage above both.
        """
        target = self.upstream[upstream]
        self.refuse_other_split(upstream, "an upstream network might have seen test samples of this stage")
        for name in self.upstream:
            self.refuse_other(upstream, name, f"stages of a chain share the run of {self.upstream[name].stage}")
        handed_on = {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if _extra(field, "shared") and name in target.model_fields
        }
        handed_on |= {name: getattr(self, name) for name in self.upstream if name in target.model_fields}
        return target.checked(handed_on | getattr(self, upstream))

    def refuse_other_split(self, overrides: str, danger: str) -> None:
        """Of `SAME` the overrides in the field of that name may hold nothing but what this stage has.

        Args:
            overrides: name of the field.
            danger: what could happen otherwise, for the message.

        Raises:
            ParameterError: one is different.
        """
        for name in SAME:
            self.refuse_other(overrides, name, f"stages of a chain see one cohort and one split, or {danger}")

    def refuse_other(self, overrides: str, name: str, why: str) -> None:
        """An override must have the value that this stage's parameter of the same name has.

        Args:
            overrides: name of the field that holds the upstream parameters.
            name: of the parameter.
            why: for the message.

        Raises:
            ParameterError: it has another.
        """
        given = getattr(self, overrides)
        if name in given and given[name] != (own := getattr(self, name, given[name])):
            raise ParameterError(
                f"{self.stage}: {overrides} = {{{name!r}: {given[name]!r}}} differs from {name} = {own!r}; leave it "
                f"out and set {name} itself: {why}"
            )

    def config(self) -> dict[str, Any]:
        """What a result depends on: every value but where files lie, on which device, and the upstream overrides."""
        left_out = {name for name, field in type(self).model_fields.items() if _extra(field, "unkeyed")} | set(
            self.upstream
        )
        return self.model_dump(mode="json", exclude=left_out)

    @classmethod
    def cell(cls) -> str:
        """Source of the notebook's `parameters` cell."""
        lines = [
            f"# parameters of {cls.stage}, rendered from medkd.stages.{cls.__name__}; defaults are the quick settings"
        ]
        for name, field in cls.model_fields.items():
            value = field.get_default(call_default_factory=True)
            line = f"{name}: {_type_name(value)} = {_literal(value)}  # {field.description}"
            long = isinstance(value, list) and len(line) > LINE_LENGTH
            lines.append(f"{line}  # fmt: skip" if long else line)  # a formatter would break the list into lines
        return "\n".join(lines)

    def rows(self) -> list[dict[str, str]]:
        """One row per parameter (name, value, default, meaning) for the report."""
        return [
            {
                "parameter": name,
                "value": str(getattr(self, name)),
                "default": str(field.get_default(call_default_factory=True)),
                "meaning": field.description or "",
            }
            for name, field in type(self).model_fields.items()
        ]


def _extra(field: Any, key: str) -> bool:
    return bool((field.json_schema_extra or {}).get(key))


def _type_name(value: Any) -> str:
    return type(value).__name__


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)
