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
from pydantic import BaseModel, Field, ValidationError

from medkd.errors import DataError, ParameterError
from medkd.files import digest_of

PROGRAM, ONNX, RECORD, CARD = "model.pt2", "model.onnx", "model.json", "MODEL_CARD.md"
"""Files of an exported model: torch.export program, ONNX, what both are, and the same for people."""
FORMAT = "medkd-export-1"
EXTRA = 'pip install "medkd[export]"'
RESEARCH_ONLY = "research only, not a medical device"
BATCH = 64
"""Images at once."""
MAX_SIDE = 4096
"""Longest side of an image that an exported program takes, px."""


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
        DataError: a file is missing or not as model.json says.
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
                "copy the whole folder again, or run `medkd export` again"
            )
        self._session = session(path)
        (output,) = self._session.get_outputs()
        if output.shape[-1] != len(self.record.classes):
            raise DataError(
                f"{path} gives {output.shape[-1]} probabilities, but {RECORD} names {len(self.record.classes)} "
                "classes; copy the whole folder again, or run `medkd export` again"
            )

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, shape (n, n_classes), of uint8 images, shape (n, 3, h, w)."""
        return run(self._session, images)


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
        reason = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    except ValueError as error:
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
    """Probabilities (n, n_classes) of uint8 images (n, 3, h, w), `BATCH` at once."""
    (name,) = (each.name for each in opened.get_inputs())
    return np.concatenate(
        [opened.run(None, {name: images[start : start + BATCH]})[0] for start in range(0, len(images), BATCH)]
    )
