"""An exported model's folder: what lies in it, and the checks before it is run. Needs neither torch nor a network.

Only the ONNX file is run, which holds numbers and names of operators and no code: nothing is unpickled. The digest in
model.json finds damaged and mixed-up files; it is no signature, so take folders from people you trust.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator

from medkd.errors import DataError, ParameterError
from medkd.files import digest_of

PROGRAM, ONNX, RECORD, CARD = "model.pt2", "model.onnx", "model.json", "MODEL_CARD.md"
"""Files of an exported model: torch.export program, ONNX, what both are, and the same for people."""
FORMAT = "medkd-export-1"
EXTRA = 'pip install "medkd[export]"'
RESEARCH_ONLY = "research only, not a medical device"
AGAIN = "copy the whole folder again, or run `medkd export` again"
BATCH = 64
"""Images at once."""
MAX_SIDE = 4096
"""Longest side of an image that an exported program takes, px."""
TOLERANCE = 1e-3
"""How far the sum of an image's probabilities may be from 1."""


class Record(BaseModel):
    """The part of model.json that is needed to use a model; the rest of the file is for readers.

    Attributes:
        format: of the folder.
        title: how the model is called.
        classes: names in the order of the probabilities.
        image_size: side of the square images that the network sees, px.
        simulated: whether it was trained on simulated data.
        files: name -> SHA-256.
    """

    format: Literal[FORMAT]
    title: str
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1, le=MAX_SIDE)
    simulated: bool
    files: dict[str, str]

    @field_validator("classes")
    @classmethod
    def _tell_classes_apart(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise ValueError("a name is empty or stands twice")
        return names


def needed(*modules: str) -> list[ModuleType]:
    """These modules of the extra `medkd[export]`.

    Raises:
        ParameterError: one is not installed.
    """
    found = []
    for name in modules:
        try:
            found.append(import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ParameterError(f"exported models need the package {name}, which is not here; {EXTRA}") from None
    return found


class ExportedModel:
    """A model that `medkd export` wrote, ready to run with onnxruntime on the CPU.

    Args:
        folder: with model.json and model.onnx.

    Attributes:
        record: what model.json says.

    Raises:
        DataError: a file is missing, not as model.json says, or no network that `medkd export` writes.
        ParameterError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.record = read_record(folder)
        path = folder / ONNX
        if not path.is_file():
            raise DataError(f"{folder} has no {ONNX}; copy the whole folder, or run `medkd export` again")
        if digest_of(path) != self.record.files.get(ONNX):
            raise DataError(
                f"{path} is not the file that {RECORD} describes (its SHA-256 differs), so it was damaged or changed; "
                f"{AGAIN}"
            )
        self._path, self._session = path, session(path)
        _check_network(path, self._session, self.record)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, shape (n, n_classes), of uint8 images, shape (n, 3, h, w).

        Raises:
            DataError: onnxruntime cannot run the network, or what it gives are no probabilities.
        """
        found, expected = run(self._session, images), (len(images), len(self.record.classes))
        if found.shape != expected:
            raise DataError(f"{self._path} gives numbers of shape {found.shape} where {expected} was expected; {AGAIN}")
        # nan fails too
        if not ((found >= 0).all() and (np.abs(found.sum(axis=1) - 1) <= TOLERANCE).all()):
            raise DataError(
                f"{self._path} gives numbers that are no probabilities (from 0 to 1, sum 1 for each image); {AGAIN}"
            )
        return found


def _check_network(path: Path, opened: Any, record: Record) -> None:
    """Refuse a network of other inputs and outputs, or that says of itself something else than model.json."""
    sides = [(each.name, each.type, each.shape) for each in (*opened.get_inputs(), *opened.get_outputs())]
    if len(opened.get_inputs()) != 1 or len(sides) != 2 or not _fit(*sides):
        told = "; ".join(f"{name}, {kind}, {shape}" for name, kind, shape in sides)
        raise DataError(
            f"{path} must have one input `images`, uint8 (n, 3, h, w), and one output, float (n, n_classes), and has "
            f"{told}; {AGAIN}"
        )
    (*_, n), classes = sides[1][2], record.classes
    if n != len(classes):
        raise DataError(f"{path} gives {n} probabilities, but {RECORD} names {len(classes)} classes; {AGAIN}")
    says = opened.get_modelmeta().custom_metadata_map
    if says.get("classes") != json.dumps(classes):
        named = says.get("classes", "none")
        raise DataError(
            f"{path} was exported with the classes {named}, but {RECORD} names {json.dumps(classes)}; {AGAIN}"
        )
    size = says.get("image_size", str(record.image_size))  # older exports do not say it
    if size != str(record.image_size):
        raise DataError(f"{path} sees images of {size} px, but {RECORD} says {record.image_size} px; {AGAIN}")


def _fit(given: tuple[str, str, list[Any]], made: tuple[str, str, list[Any]]) -> bool:
    """Whether input and output are those of an exported network."""
    name, kind, shape = given
    return (
        (name, kind) == ("images", "tensor(uint8)")
        and len(shape) == 4
        and shape[1] == 3
        and (made[1] == "tensor(float)" and len(made[2]) == 2)
    )


def read_record(folder: Path) -> Record:
    """What model.json of this folder says.

    Raises:
        DataError: there is none, or it is of another form.
    """
    path = folder / RECORD
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        raise DataError(
            f"{folder} holds no exported model ({RECORD} is missing); `medkd export RUN` writes one"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg'].removeprefix('Value error, ')}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise DataError(f"{path} does not describe a model of format {FORMAT} ({reason}); run `medkd export` again")


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU."""
    (runtime,) = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        first = str(error).splitlines()[0]
        raise DataError(f"onnxruntime cannot load {path} ({first}); run `medkd export` again") from None


def run(opened: Any, images: np.ndarray) -> np.ndarray:
    """Probabilities (n, n_classes) of uint8 images (n, 3, h, w), `BATCH` at once.

    Raises:
        DataError: onnxruntime cannot run the network on them.
    """
    name = opened.get_inputs()[0].name
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    try:
        return np.concatenate([opened.run(None, {name: part})[0] for part in parts])
    except Exception as error:  # as above
        first = str(error).splitlines()[0]
        raise DataError(f"onnxruntime cannot run {ONNX} on images of shape {images.shape} ({first}); {AGAIN}") from None
