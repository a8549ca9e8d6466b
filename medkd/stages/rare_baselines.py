"""The methods that hybrid self-distillation is compared with, each a unit of the run store on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask
from medkd.data.folds import split_rows
from medkd.data.published_splits import OWN_FOLDS
from medkd.errors import ParameterError
from medkd.evaluation.predict import encode
from medkd.files import write_json
from medkd.models.device import to_device
from medkd.models.teacher import SingleModalityNet
from medkd.stages.context import Context
from medkd.stages.paired import tensor_rows
from medkd.stages.params import shared
from medkd.stages.pseudo_labelling import rows_by_id
from medkd.stages.rare import DIM, ContrastParams, build_encoder, images_of, save_run, seeded_weights, train_rows
from medkd.stages.store import Run, Unit, load_or_make
from medkd.training.episodic import EpisodeStep, LabelledStep, check_episode
from medkd.training.supervised import SupervisedStep
from medkd.training.tasks import Classification

VERSION = 2
N_ROTATIONS = 5
"""Splits 7:1:2 of the oracle; each rare image is in the test part of one."""
OF_CONTRAST = {"queue_size", "momentum", "temperature", "projection", "bn_splits"}
"""Inherited parameters of the contrastive loss, which no comparison method has."""
SMALL_BATCH = 32
"""Images a step where only rare images are trained on: scratch and oracle."""


class BaselineParams(ContrastParams):
    """Parameters of the comparison methods; what is not set is taken from the URL run, so that budgets are equal."""

    stage: ClassVar[str] = "06_baselines"

    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    episode_shots: int = Field(5, description="ProtoNet: support images per common class in an episode", ge=1)
    scratch_epochs: int = Field(20, description="scratch: epochs of `scratch_steps` steps on the support set", ge=1)
    scratch_steps: int = Field(
        10, description="scratch: steps per epoch, or as many as whole passes over the support set take", ge=1
    )
    oracle_epochs: int = Field(30, description="oracle: passes over 70% of the rare images", ge=1)


def refuse_methods(context: Context, methods: Sequence[str]) -> None:
    """Say what a comparison method cannot be trained on, before anything is.

    Raises:
        ParameterError: an episode of ProtoNet, or a rotation of the oracle, cannot be drawn.
    """
    if "protonet" in methods:
        check_episode(_rows_by_class(context.cohort), **_episode(context.params))
    if "oracle" in methods:
        for rotation in range(N_ROTATIONS):
            _rotation(context, rotation)


def representation(context: Context, method: str) -> Run:
    """An encoder that learned from the labels of the common classes: "srl_simple", "srl_distill" or "protonet"."""
    params, cohort = context.params, context.cohort
    upstream = [representation(context, "srl_simple")] if method == "srl_distill" else []
    config = {"method": method} | _config(params, {"episode_shots"} if method == "protonet" else set())
    unit = Unit(params.stage, VERSION, config, cohort.fingerprint, upstream, method)
    return load_or_make(unit, lambda folder: _represent(context, method, upstream, folder))


def scratch_run(context: Context, drawn: FewShotTask) -> Run:
    """A network trained on nothing but the support set of one task."""
    own = {"scratch_epochs", "scratch_steps", "by_lesion"}
    config = {"method": "scratch", "k_shot": drawn.k_shot, "task": drawn.task} | _config(context.params, own)
    title = f"scratch K={drawn.k_shot}, task {drawn.task}"
    unit = Unit(context.params.stage, VERSION, config, context.cohort.fingerprint, [], title)
    return load_or_make(unit, lambda folder: _scratch(context, drawn, folder, title))


def oracle_runs(context: Context) -> list[Run]:
    """Networks trained on the labels of the rare images themselves, one a rotation of a 7:1:2 split by lesion.

    A rare image is classified by the network of the rotation whose test part it is in, so the oracle is scored on the
    same query sets as every other method. The last epoch counts, as for all of them; the validation tenth is watched.
    """
    runs = []
    for rotation in range(N_ROTATIONS):
        config = {"method": "oracle", "rotation": rotation} | _config(context.params, {"oracle_epochs"})
        title = f"oracle, rotation {rotation}"
        unit = Unit(context.params.stage, VERSION, config, context.cohort.fingerprint, [], title)
        runs.append(load_or_make(unit, lambda folder, r=rotation, t=title: _oracle(context, r, folder, t)))
    return runs


def _config(params: BaselineParams, own: set[str]) -> dict[str, Any]:
    """The configuration without what a method does not use."""
    left_out = {"episode_shots", "scratch_epochs", "scratch_steps", "oracle_epochs", "by_lesion"} - own
    return {name: value for name, value in params.config().items() if name not in left_out | OF_CONTRAST}


def baseline_network(context: Context, n_classes: int, *purpose: object) -> SingleModalityNet:
    """An encoder as that of the URL run and a classifier, untrained; `purpose` seeds the weights."""
    with seeded_weights(context.params.seed, *purpose):
        encoder, _, _ = build_encoder(context.params.model_copy(update={"projection": "linear", "bn_splits": 1}))
        network = SingleModalityNet(encoder, DIM, n_classes)
    return to_device(network, context.device)


def _labels(cohort: Cohort, classes: tuple[str, ...]) -> torch.Tensor:
    """Index into `classes` of every row, -1 for others."""
    return torch.tensor([classes.index(name) if name in classes else -1 for name in cohort.table["class"]])


def _rows_by_class(cohort: Cohort) -> list[np.ndarray]:
    return [np.intersect1d(cohort.rows_of([name]), cohort.base_rows()) for name in cohort.base_classes]


def _episode(params: BaselineParams) -> dict[str, int]:
    return {"k_shot": params.episode_shots, "batch_size": params.batch_size}


def _represent(context: Context, method: str, upstream: list[Run], folder: Path) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    images, base = images_of(context), cohort.base_rows()
    where = {"device": context.device, "precision": params.precision}
    network = baseline_network(context, len(cohort.base_classes), "base", method != "srl_distill")
    if method == "protonet":
        step: Any = EpisodeStep(network.encoder, images, _rows_by_class(cohort), **_episode(params), **where)
    else:
        teacher = None
        if upstream:
            teacher = baseline_network(context, len(cohort.base_classes), "teacher").requires_grad_(False).eval()
            teacher.load_state_dict(upstream[0].tensors("model"))
        step = LabelledStep(network, images, _labels(cohort, cohort.base_classes), teacher=teacher, **where)
    history = train_rows(context, step, base, folder, method, "baseline", method)
    everything = np.arange(len(cohort))
    features = encode(network.encoder, images, tensor_rows(everything), **where)
    save_run(folder, cohort, network.state_dict(), everything, features, history)
    return _numbers(history)


def _scratch(context: Context, drawn: FewShotTask, folder: Path, title: str) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    support = rows_by_id(cohort, drawn.support_ids, f"task {drawn.name}")
    network = baseline_network(context, len(drawn.classes), "scratch", drawn.task)
    where = {"device": context.device, "precision": params.precision}
    step = LabelledStep(network, images_of(context), _labels(cohort, drawn.classes), **where)
    batch = min(SMALL_BATCH, params.batch_size)
    rows = np.tile(support, -(-batch * params.scratch_steps // len(support)))  # whole passes over the support set
    budget = {"epochs": params.scratch_epochs, "batch_size": batch}
    history = train_rows(context, step, rows, folder, title, "baseline", title, **budget)
    rare = cohort.rows_of(cohort.rare_classes)
    write_json(folder / "task.json", drawn.to_json())
    features = encode(network.encoder, step.images, tensor_rows(rare), **where)
    save_run(folder, cohort, network.state_dict(), rare, features, history)
    return _numbers(history)


def _rotation(context: Context, rotation: int) -> list[np.ndarray]:
    """Rows of the training, validation and test part of one rotation."""
    cohort = context.cohort
    rare = cohort.rows_of(cohort.rare_classes)
    own = {"n_folds": N_ROTATIONS, "seed": context.params.seed, "val_fraction": 1 / 8, "split_file": OWN_FOLDS}
    try:
        split = split_rows(cohort.take(rare), fold=rotation, **own)
    except ParameterError as error:
        raise ParameterError(
            f"the oracle splits the {len(rare)} rare images of {cohort.name} in {N_ROTATIONS} ways, which they are too "
            f'few for ({error}); leave "oracle" out of methods'
        ) from error
    return [rare[part] for part in (split.train, split.val, split.test)]


def _oracle(context: Context, rotation: int, folder: Path, title: str) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    train, val, test = _rotation(context, rotation)
    network = baseline_network(context, len(cohort.rare_classes), "oracle", rotation)
    where = {"device": context.device, "precision": params.precision}
    labels = _labels(cohort, cohort.rare_classes).clamp(min=0).numpy()
    task = Classification(labels, len(cohort.rare_classes), train, balanced=True, device=context.device)
    step = SupervisedStep(network, images_of(context), task, tensor_rows(val), **where)
    budget = {"epochs": params.oracle_epochs, "batch_size": min(SMALL_BATCH, params.batch_size, len(train))}
    history = train_rows(context, step, train, folder, title, "baseline", title, **budget)
    features = encode(network.encoder, step.inputs, tensor_rows(test), **where)
    save_run(folder, cohort, network.state_dict(), test, features, history)
    return _numbers(history)


def _numbers(history: pd.DataFrame) -> dict[str, float]:
    last = history.iloc[-1]
    return {name: float(last[name]) for name in ("loss", "accuracy", "val_balanced_accuracy") if name in history}
