"""From a finished run to the network that can leave: its weights, its classes, and images it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medkd.data.checks import split_counts
from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask
from medkd.errors import DataError, ParameterError
from medkd.files import digest_of
from medkd.models.encoders import trunk
from medkd.models.pretrained import IMAGENET
from medkd.stages.context import Context
from medkd.stages.distillation import METHOD_NAMES, DistillationParams
from medkd.stages.networks import trained_network
from medkd.stages.paired import split_of, width_of
from medkd.stages.pseudo_labelling import rows_by_id, task_of
from medkd.stages.rare import build_encoder
from medkd.stages.self_distillation import STUDENTS, SelfDistillationParams
from medkd.stages.store import Run
from medkd.stages.teacher import TeacherParams, network_name

STAGES = {params.stage: params for params in (TeacherParams, DistillationParams, SelfDistillationParams)}
"""Stages whose networks classify an image."""
N_HELD_OUT = 256
"""Held-out images of a rare-disease student that its exported files are compared on."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network that classifies one image, and what it was trained on.

    Attributes:
        run: where its weights are. cohort: what it was trained on.
        method: how tables call it. key: of the method, "ce", "gmcd", "hybrid", ...; "" for a network of stage 02.
        modality: of the cohort, what it sees. size: side of its images, px.
        classes: that it tells apart, in the order of its scores.
        network: images (n, 3, size, size) in [0, 1] -> raw scores (n, n_classes), in eval mode on the CPU.
        held_out: row numbers of images that it was not trained on, shape (n,).
        stored: probabilities of these rows that the run itself keeps, before any temperature, shape (n, n_classes).
        validation: predictions of the validation split that the run keeps, aligned with `held_out`; None where there
            is no such split.
        data: one row per class, what was trained, validated and tested on.
    """

    run: Run
    cohort: Cohort
    method: str
    key: str
    modality: str
    size: int
    classes: tuple[str, ...]
    network: nn.Module
    held_out: np.ndarray
    stored: np.ndarray
    validation: pd.DataFrame | None
    data: pd.DataFrame

    def pixels(self) -> np.ndarray:
        """The held-out images, uint8, shape (n, 3, size, size)."""
        images = self.cohort.images[self.modality].load(self.size)[self.held_out]
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def load_trained(run: Run, root: str = "", weights: str = "") -> Trained:
    """The network of a run that classifies one image.

    Args:
        run: a student of either chain, or a network of stage 02 on one modality.
        root: folder with the publisher's files of the cohort; empty for a simulated one.
        weights: file of the frozen encoder's weights, where the run started from one.

    Raises:
        ParameterError: the run is of another kind, or `weights` are needed.
        DataError: cohort or weights are not those of the run.
    """
    if run.stage not in STAGES:
        raise ParameterError(
            f"run {run.key} of {run.stage} holds no classifier of one image; export a student (03_distillation, "
            "06_self_distillation) or a network of 02_teacher_training that sees one image"
        )
    _refuse(run)
    context = _context(run, root, weights)
    if context.cohort.fingerprint != run.cohort:
        raise DataError(
            f"run {run.key} was made on another content of {context.cohort.name} ({run.cohort}) than is here "
            f"({context.cohort.fingerprint}); give the root of the files that it was trained on"
        )
    return _rare(context, run) if run.stage == SelfDistillationParams.stage else _paired(context, run)


class _Scores(nn.Module):
    """The raw scores of a network that gives features too; of a frozen encoder the trunk comes first."""

    def __init__(self, network: nn.Module, front: nn.Module | None) -> None:
        super().__init__()
        self.network, self.front = network, front

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images if self.front is None else self.front(images)).logits


def _refuse(run: Run) -> None:
    """Runs of the three stages that hold something else than a classifier of one image."""
    if run.config.get("inputs") == "both":
        raise ParameterError(
            f"run {run.key} is a multi-modal teacher, which needs both modalities of a sample; export a student of it "
            "(03_distillation), which sees one image"
        )
    if run.config.get("task") == "survival":
        raise ParameterError(
            f"run {run.key} predicts a risk, and only classifiers can be exported; export a run with "
            'task = "classification"'
        )
    if "variant" in run.config and STUDENTS[run.config["variant"]].features:
        raise ParameterError(
            f'run {run.key} ("{STUDENTS[run.config["variant"]].title}") learned features and has no classifier; '
            "export a student with pseudo-labels, such as hybrid"
        )


def _context(run: Run, root: str, weights: str) -> Context:
    """The parameters and the cohort of a run, on the CPU."""
    params = STAGES[run.stage]
    settings = {name: value for name, value in run.config.items() if name in params.model_fields}
    settings |= {"root": root, "device": "cpu", "precision": "float32"}
    if settings.get("weights"):  # elsewhere what the encoder started from was trained away
        settings["weights"] = _frozen_weights(run, weights) if settings["frozen"] else ""
    return Context.of(params.checked(settings))


def _frozen_weights(run: Run, weights: str) -> str:
    """What the run's frozen encoder was loaded from: a packaged one, or the file if it has the recorded content."""
    recorded = run.config["weights"]
    if recorded == IMAGENET:
        return recorded
    if not weights:
        raise ParameterError(f"run {run.key} trained on a frozen encoder from a file; name that file as weights")
    if not Path(weights).is_file() or digest_of(Path(weights))[: len(recorded)] != recorded:
        raise DataError(
            f"weights = {weights} is not the file that run {run.key} used (its SHA-256 begins with {recorded}); "
            "give that file"
        )
    return weights


def _paired(context: Context, run: Run) -> Trained:
    params, cohort = context.params, context.cohort
    kind = run.config.get("inputs", "main")
    modality = getattr(cohort, kind)
    if modality not in cohort.images:
        raise ParameterError(f"run {run.key} sees {modality}, a vector; only networks that see an image are exported")
    network = trained_network(context, run, kind)
    front = trunk(params.encoder, params.weights, width=width_of(params))[0] if params.frozen else None
    validation = run.table("validation")
    key = run.config.get("method", "")
    return Trained(
        run=run,
        cohort=cohort,
        method=METHOD_NAMES[key] if key else network_name(cohort, kind),
        key=key,
        modality=modality,
        size=params.image_size,
        classes=cohort.classes,
        network=_portable(_Scores(network, front)),
        held_out=rows_by_id(cohort, validation["id"], run.folder / "validation.csv"),
        stored=validation.filter(regex=r"^p_\d+$").to_numpy(np.float32),
        validation=validation,
        data=_split_table(context, run, validation),
    )


def _split_table(context: Context, run: Run, validation: pd.DataFrame) -> pd.DataFrame:
    """Samples and patients by class and part; totals only where the split was read from a file, which is not here."""
    if run.config["split_file"] in ("", "none"):
        return split_counts(context.cohort, split_of(context, run.config["fold"]))
    return pd.DataFrame([{"train samples": run.metrics["n_train"], "val samples": len(validation)}])


def _rare(context: Context, run: Run) -> Trained:
    params, cohort = context.params, context.cohort
    drawn, weights = task_of(run), run.tensors("model")
    encoder, _, n_features = build_encoder(params)
    encoder.load_state_dict(_below(weights, "moco.query_encoder."))
    classifier = nn.Linear(n_features, len(drawn.classes))
    classifier.load_state_dict(_below(weights, "classifier."))
    query = rows_by_id(cohort, drawn.query_ids, run.folder / "task.json")
    held_out = query[evenly(len(query), N_HELD_OUT)]
    kept = pd.Index(rows_by_id(cohort, run.table("ids")["id"], run.folder / "ids.csv"))
    features = run.tensors("features")["features"][kept.get_indexer(held_out)]
    (modality,) = cohort.images
    with torch.inference_mode():
        stored = classifier(features).softmax(dim=1).numpy()
    return Trained(
        run=run,
        cohort=cohort,
        method=STUDENTS[run.config["variant"]].title,
        key=run.config["variant"],
        modality=modality,
        size=params.image_size,
        classes=drawn.classes,
        network=_portable(nn.Sequential(encoder, classifier)),
        held_out=held_out,
        stored=stored,
        validation=None,
        data=_task_table(cohort, drawn),
    )


def _task_table(cohort: Cohort, drawn: FewShotTask) -> pd.DataFrame:
    """What each class of the cohort served for."""
    of_id = cohort.table.set_index("id")["class"]
    support, query = (of_id[list(ids)].value_counts() for ids in (drawn.support_ids, drawn.query_ids))
    learned = cohort.table["class"].iloc[cohort.base_rows()].value_counts()
    return pd.DataFrame(
        [
            {
                "class": name,
                "role": "rare" if name in drawn.classes else "common",
                "trained on without its label": int(learned.get(name, 0)),
                "labelled (support)": int(support.get(name, 0)),
                "query set": int(query.get(name, 0)),
            }
            for name in (*cohort.base_classes, *drawn.classes)
        ]
    )


def evenly(n: int, at_most: int) -> np.ndarray:
    """Up to so many of n numbers, spread over all of them."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(int))


def _below(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _portable(network: nn.Module) -> nn.Module:
    """In eval mode, without gradients, in the memory layout that files of an exported program keep."""
    return network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
