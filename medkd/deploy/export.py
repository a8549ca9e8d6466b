"""Export of a trained network: torch.export program, ONNX, model.json and model card, checked before they are kept.

`torch.export.load` may unpickle parts of a .pt2 file. Here it reads only the file that was written a moment before, and
`medkd predict` does not read .pt2 at all.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkd import __version__
from medkd.deploy.card import PAPERS, model_card
from medkd.deploy.deployed import Deployed
from medkd.deploy.numbers import calibrate, test_numbers, validation_numbers
from medkd.deploy.runtime import (
    BATCH,
    CARD,
    FORMAT,
    MAX_SIDE,
    ONNX,
    PROGRAM,
    RECORD,
    RESEARCH_ONLY,
    needed,
    run,
    session,
)
from medkd.deploy.trained import Trained, evenly, load_trained
from medkd.errors import DataError
from medkd.files import digest_of, unwritable, write_json
from medkd.models.encoders import describe_weights
from medkd.paths import reports_dir
from medkd.stages.inventory import find_run
from medkd.stages.self_distillation import SelfDistillationParams

LIMIT = 1e-4
"""Largest difference of a probability between an exported file and PyTorch."""
STORED_LIMIT = 0.02
"""Largest mean difference from what the run stored; bfloat16 in training moves probabilities by 0.001 on average."""
N_PARITY, N_ENLARGED = 256, 4
"""Held-out images that files are compared on, and how many of them once more at twice the height and three widths."""


def export_run(key: str, to: Path | None = None, *, root: str = "", weights: str = "") -> Path:
    """Write the network of a finished run so that it can be used without medkd.

    Args:
        key: of the run, or its first digits.
        to: folder to write; by default `reports/exports/<key>/`. Files of an earlier export in it are replaced.
        root: folder with the publisher's files of the cohort; empty for a simulated one.
        weights: file of the frozen encoder's weights, where the run started from one.

    Returns:
        The folder, with model.pt2, model.onnx, model.json and MODEL_CARD.md. model.json comes last, so that a folder
        without it is unfinished.

    Raises:
        ParameterError: the run holds no classifier of one image, or medkd[export] is not installed.
        DataError: there is no such run, its cohort is not here, or an exported file does not give its probabilities.
    """
    needed("onnx", "onnxscript", "onnxruntime")
    trained = load_trained(find_run(key), root, weights)
    folder = reports_dir() / "exports" / trained.run.key if to is None else to
    pixels = trained.pixels()
    scores = np.concatenate(
        [part.numpy() for part in _by_batch(Deployed(trained.network, trained.size).scores, pixels)]
    )
    stored = agreement(trained, scores)
    calibration = calibrate(trained, scores)
    model = Deployed(trained.network, trained.size, calibration["temperature"]).eval()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            made = Path(scratch)
            opset = write_programs(model, trained.classes, made)
            parity = compare(model, pixels, made) | stored
            record = _record(trained, calibration, parity, opset) | {
                "metrics": {
                    "validation": validation_numbers(trained, scores, calibration["temperature"]),
                    "test": test_numbers(trained, calibration["temperature"]),
                },
                "files": {name: digest_of(made / name) for name in (PROGRAM, ONNX)},
            }
            (made / CARD).write_text(model_card(record), encoding="utf-8")
            (folder / RECORD).unlink(missing_ok=True)
            for name in (PROGRAM, ONNX, CARD):
                (made / name).replace(folder / name)
        write_json(folder / RECORD, record)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def agreement(trained: Trained, scores: np.ndarray) -> dict[str, float]:
    """How far the rebuilt network's probabilities are from those that the run stored."""
    found = torch.from_numpy(scores).softmax(dim=1).numpy()
    difference = np.abs(found - trained.stored)
    if not difference.mean() <= STORED_LIMIT:
        raise DataError(
            f"the network rebuilt from run {trained.run.key} gives other probabilities than the run stored, by "
            f"{difference.mean():.2g} on average (rounding explains {STORED_LIMIT}), so code or images have "
            "changed since; train it again"
        )
    return {"stored_mean": float(difference.mean()), "stored_max": float(difference.max())}


def write_programs(model: Deployed, classes: Sequence[str], folder: Path) -> int:
    """Write model.pt2 and model.onnx into a folder; batch, height and width stay free.

    Returns:
        The version of the ONNX operators.
    """
    example = torch.zeros(2, 3, model.size + 1, model.size + 2, dtype=torch.uint8)
    side = {"min": 1, "max": MAX_SIDE}
    free = {0: torch.export.Dim("batch", min=1)} | {
        2: torch.export.Dim("height", **side),
        3: torch.export.Dim("width", **side),
    }
    with _quiet():
        program = torch.export.export(model, (example,), dynamic_shapes={"images": free})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, folder / PROGRAM)
        names = {"input_names": ["images"], "output_names": ["probabilities"]}
        exported = torch.onnx.export(
            program, (), dynamic_shapes={"images": free}, dynamo=True, external_data=False, verbose=False, **names
        )
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()
    exported.model.metadata_props["classes"] = json.dumps(classes)
    exported.model.metadata_props["image_size"] = str(model.size)
    exported.model.metadata_props["use"] = RESEARCH_ONLY
    exported.save(str(folder / ONNX), external_data=False)
    return exported.model.opset_imports[""]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks, which are about their own insides; what they wrote is compared afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def compare(model: Deployed, pixels: np.ndarray, folder: Path) -> dict[str, Any]:
    """Largest difference of a probability between each file of a folder and the network in PyTorch.

    Args:
        model: what the files were written from.
        pixels: images that it was not trained on, uint8, shape (n, 3, size, size); up to `N_PARITY` are used, and a
            few of them enlarged, which the resizing inside brings back.
        folder: with model.pt2, which is loaded and must be our own, and model.onnx.

    Returns:
        JSON values: onnx, torch_export, limit, n_images, n_enlarged.

    Raises:
        DataError: a difference is above `LIMIT`.
    """
    own_size = pixels[evenly(len(pixels), N_PARITY)]
    enlarged = own_size[:N_ENLARGED].repeat(2, axis=2).repeat(3, axis=3)
    opened = session(folder / ONNX)
    with _quiet():
        loaded = torch.export.load(folder / PROGRAM).module()
    found = {"onnx": 0.0, "torch_export": 0.0}
    for images in (own_size, enlarged):
        expected = np.concatenate([part.numpy() for part in _by_batch(model, images)])
        program = np.concatenate([part.numpy() for part in _by_batch(loaded, images)])
        for name, got in (("onnx", run(opened, images)), ("torch_export", program)):
            found[name] = float(np.maximum(found[name], np.abs(got - expected).max()))  # nan stays nan
    for name, file in (("onnx", ONNX), ("torch_export", PROGRAM)):
        if not found[name] <= LIMIT:
            raise DataError(
                f"{file} gives probabilities that differ from PyTorch's by {found[name]:.2g}, more than {LIMIT:.0e}; "
                "nothing was exported. Another version of torch or onnxruntime may export this encoder rightly"
            )
    return found | {"limit": LIMIT, "n_images": len(own_size), "n_enlarged": len(enlarged)}


@torch.inference_mode()
def _by_batch(network: Any, images: np.ndarray) -> list[torch.Tensor]:
    return [network(torch.from_numpy(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]


def _record(trained: Trained, calibration: dict[str, Any], parity: dict[str, Any], opset: int) -> dict[str, Any]:
    """Content of model.json, without metrics and digests."""
    cohort, source = trained.cohort, trained.run
    onnx, onnxscript, onnxruntime = needed("onnx", "onnxscript", "onnxruntime")
    modules = {"torch": torch, "onnx": onnx, "onnxscript": onnxscript, "onnxruntime": onnxruntime}
    versions = {"medkd": __version__} | {name: module.__version__ for name, module in modules.items()}
    rare = source.stage == SelfDistillationParams.stage
    encoder = source.metrics.get("image_weights") or describe_weights(source.config["encoder"], "")
    settings = {"encoder": encoder} | ({"k_shot": source.config["k_shot"]} if rare else {})
    settings |= {"balanced": rare or source.config["balanced"], "keep": source.config.get("keep", "best")}
    return {
        "format": FORMAT,
        "use": RESEARCH_ONLY,
        "title": f"{trained.method} on {cohort.label_text}",
        "method": trained.method,
        "papers": PAPERS.get(trained.key, []),
        "classes": list(trained.classes),
        "modality": trained.modality,
        "image_size": trained.size,
        "max_side": MAX_SIDE,
        "simulated": cohort.simulated,
        "rare": rare,
        "n_parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
        "calibration": calibration,
        "parity": parity,
        "run": {"key": source.key, "stage": source.stage, "title": source.title} | settings,
        "cohort": {
            "name": cohort.name,
            "title": cohort.label_text,
            "fingerprint": cohort.fingerprint,
            "licence": cohort.licence,
            "attribution": cohort.attribution,
            "group": cohort.group,
            "regions": bool((cohort.table["roi"] != cohort.table["id"]).any()),
        },
        "data": trained.data.to_dict("records"),
        "versions": versions | {"opset": opset},
    }
