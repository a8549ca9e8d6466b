"""One stage from a file of parameters, without a notebook: what `medkd train` runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medkd.errors import DataError, ParameterError, did_you_mean
from medkd.stages import SHORT_NAMES, label, pretrain, self_distil, stage_params, train_students, train_teachers
from medkd.stages.store import Run
from medkd.text import duration

RUNNERS: dict[str, Callable[[Any], Any]] = {
    "teacher": train_teachers,
    "distillation": train_students,
    "moco": pretrain,
    "pseudo_labels": label,
    "self_distillation": self_distil,
}
"""Short name of a stage -> the function that makes its runs."""


def run_stage(stage: str, config: Path) -> Iterator[str]:
    """Make the runs of a stage, or load what is there; one line for each.

    Args:
        stage: key of `RUNNERS`, or the name of its notebook.
        config: JSON with the parameters of the notebook (those that differ from its defaults are enough), or the file
            that a report wrote beside an executed notebook.

    Raises:
        ParameterError: the stage or a parameter is unknown or out of range.
        DataError: the file is missing or no JSON object.
    """
    short, params = checked_stage(stage, config)
    made: Any = RUNNERS[short](params)
    for each in made.values() if isinstance(made, dict) else [made]:
        if isinstance(each, Run):
            yield f"{each.stage}/{each.key}: {'made' if each.made else 'was there'}, {duration(each.seconds)}"


def checked_stage(stage: str, config: Path) -> tuple[str, Any]:
    """Short name of a stage and its checked parameters. Args and Raises: as `run_stage`."""
    short = next((name for name in RUNNERS if stage in (name, SHORT_NAMES[name])), "")
    if not short:
        hint = did_you_mean(stage, RUNNERS, ";")
        raise ParameterError(f'there is no stage "{stage}" to train{hint} known are {", ".join(RUNNERS)}')
    return short, stage_params()[SHORT_NAMES[short]].checked(_parameters(config))


def _parameters(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; give a JSON file with the stage's parameters") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); correct it") from error
    values = values.get("parameters", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object, parameter -> value")
    return values
