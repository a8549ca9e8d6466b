"""Networks of the teacher-student stages: built, trained, kept and loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from medkd.data.cohort import Cohort
from medkd.data.folds import Split
from medkd.errors import DataError
from medkd.evaluation.predict import Prediction
from medkd.files import write_table, write_tensors
from medkd.models.device import to_device
from medkd.models.encoders import build_feature_encoder, build_vector_encoder, describe_weights
from medkd.models.fusion import FUSIONS
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.seeds import seed_for
from medkd.stages.context import Context
from medkd.stages.paired import prediction_table, width_of
from medkd.stages.store import Run
from medkd.training.frozen import frozen_head, trunk_width
from medkd.training.loop import Step, fit, linear_decay
from medkd.training.tasks import Survival, Task

DIM = 128
"""Length of every branch's feature, as in the paper."""


def build_network(context: Context, kind: str, *purpose: object) -> nn.Module:
    """A freshly initialised network on the device; the same `purpose` gives the same weights.

    Args:
        context: cohort and parameters.
        kind: "both" for the multi-modal teacher, "main" or "second" for a network on that modality.
        purpose: what the weights are seeded for, besides the stage's seed.
    """
    cohort, params = context.cohort, context.params
    n_outputs = len(cohort.classes) if params.task == "classification" else Survival.n_outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(params.seed, "weights", *purpose))
        if kind == "both":
            network = MultimodalTeacher(
                _encoder(cohort, cohort.main, params),
                _encoder(cohort, cohort.second, params),
                FUSIONS[params.fusion](DIM, DIM, DIM),
                DIM,
                n_outputs,
            )
        else:
            network = SingleModalityNet(_encoder(cohort, getattr(cohort, kind), params), DIM, n_outputs)
    return to_device(network, context.device)


def trained_network(context: Context, run: Run, kind: str) -> nn.Module:
    """The network of a finished run, in eval mode.

    Raises:
        DataError: if its weights do not fit the modalities and classes of the context.
    """
    network = build_network(context, kind)
    try:
        network.load_state_dict(run.tensors("model"))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise DataError(
            f"the weights of run {run.key} do not fit a network on {context.cohort.name} "
            f"({context.cohort.main or 'no image'}, {context.cohort.second}): {first}; "
            "use the cohort, modalities, encoder and fusion that it was trained with"
        ) from None
    return network.eval()


def train_network(
    context: Context,
    step: Step,
    learned: Iterable[nn.Parameter],
    rows: Tensor,
    task: Task,
    folder: Path,
    title: str,
    *purpose: object,
    betas: tuple[float, float],
) -> pd.DataFrame:
    """`medkd.training.loop.fit` with the stage's settings and Adam on `learned`; `purpose` seeds order and views."""
    params = context.params
    optimizer = torch.optim.Adam(learned, lr=params.lr, betas=betas, weight_decay=params.weight_decay, fused=True)
    return fit(
        step,
        rows,
        optimizer,
        epochs=params.epochs,
        batch_size=params.batch_size,
        schedule=linear_decay,
        seed=seed_for(params.seed, *purpose),
        folder=folder,
        title=title,
        select=task.select if params.keep == "best" else "",
        ids=context.cohort.table["id"],
    )


def save_trained(
    folder: Path, context: Context, split: Split, network: nn.Module, history: pd.DataFrame, found: Prediction
) -> dict[str, Any]:
    """Write history, weights, and predictions and features of the validation split; returns the run's metrics.

    Args:
        folder: the unit's folder.
        context: whose cohort `split` counts.
        split: of the fold.
        network: with the weights that were kept.
        history: of `medkd.training.loop.fit`, with validation numbers.
        found: of the validation rows.
    """
    params, cohort = context.params, context.cohort
    write_table(folder / "history.csv", history)
    write_table(folder / "validation.csv", prediction_table(cohort, split.val, found.probabilities, params.task))
    write_tensors(folder / "features.safetensors", {"validation": torch.from_numpy(found.features)})
    write_tensors(folder / "model.safetensors", network.state_dict())
    validation = [name for name in history if name.startswith("val_")]
    kept = history.iloc[-1] if params.keep == "last" else history.loc[history[params.select].idxmax()]
    return {
        "epoch": int(kept["epoch"]),
        **{name: float(kept[name]) for name in validation},
        "n_train": len(split.train),
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "image_weights": image_weights(context),
    }


def image_weights(context: Context) -> str:
    """What the image encoders start from, for tables; "" where no modality is an image."""
    params, cohort = context.params, context.cohort
    if not any(name in cohort.images for name in (cohort.main, cohort.second)):
        return ""
    return describe_weights(params.encoder, params.weights) + (", frozen" if params.frozen else "")


def _encoder(cohort: Cohort, name: str, params: Any) -> nn.Module:
    if name in cohort.vectors:
        return build_vector_encoder(cohort.vectors[name].values.shape[1], dim=DIM)
    if params.frozen:
        return frozen_head(trunk_width(params.encoder, width_of(params)), dim=DIM, dropout=params.frozen_dropout)
    return build_feature_encoder(params.encoder, dim=DIM, width=width_of(params), weights=params.weights)
