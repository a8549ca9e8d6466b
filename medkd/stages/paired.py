"""What the teacher-student stages share: parameters, folds, inputs, networks and their predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import nn

from medkd.data.cohort import Cohort
from medkd.data.folds import Split, split_rows
from medkd.data.views import GMCD
from medkd.evaluation.predict import Prediction
from medkd.files import write_table, write_tensors
from medkd.models.device import to_device
from medkd.models.encoders import build_feature_encoder, build_vector_encoder
from medkd.models.fusion import BilinearFusion, ConcatFusion
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.stages.context import Context, seed_for
from medkd.stages.params import StageParams, shared, unkeyed
from medkd.stages.store import Run
from medkd.training.inputs import Modality, modality

DIM = 128
"""Length of every branch's feature, as in the paper."""

FUSIONS = {"bilinear": BilinearFusion, "concat": ConcatFusion}


class PairedParams(StageParams):
    """Parameters of both teacher-student stages."""

    n_folds: int = shared(5, "folds of the cross-validation, grouped by patient and stratified by class", ge=2)
    folds: int = unkeyed(2, "how many of them to run, from fold 0 on", ge=1)
    image_size: int = shared(48, "side of the square images, pixels", ge=16)
    encoder: str = shared("resnet12", 'image encoder: "resnet12", "conv4" or any torchvision classification model')
    width: float = shared(0.25, "channels of resnet12 relative to the published network", gt=0)
    precision: str = shared("auto", '"auto": bfloat16 where the device has it natively; "float32" switches it off')


class OptimiserParams(PairedParams):
    """Parameters of a training run on the teacher-student chain (paper: 30 epochs, batch 16)."""

    epochs: int = Field(9, description="passes over the training rows", ge=1)
    batch_size: int = Field(32, description="images a step", ge=2)
    lr: float = Field(1e-3, description="learning rate of Adam at the start; falls linearly", gt=0)
    weight_decay: float = Field(4e-4, description="L2 penalty of Adam", ge=0)


def run_folds(params: Any) -> range:
    """The folds to run."""
    return range(min(params.folds, params.n_folds))


def split_of(context: Context, fold: int) -> Split:
    """Training, validation and test rows of a fold; the same for teacher and student."""
    params = context.params
    return split_rows(context.cohort, fold=fold, n_folds=params.n_folds, seed=params.seed)


def inputs_of(context: Context, split: Split) -> list[Modality]:
    """Main and second modality; vectors are imputed and scaled by the training rows."""
    cohort, size = context.cohort, context.params.image_size
    return [
        modality(cohort, name, size=size, augment=GMCD, train_rows=split.train, device=context.device)
        for name in (cohort.main, cohort.second)
    ]


def build_network(context: Context, kind: str, *purpose: object) -> nn.Module:
    """A freshly initialised network on the device; the same `purpose` gives the same weights.

    Args:
        context: cohort and parameters.
        kind: "both" for the multi-modal teacher, "main" or "second" for a network on that modality.
        purpose: what the weights are seeded for, besides the stage's seed.
    """
    cohort, params = context.cohort, context.params
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(params.seed, "weights", *purpose))
        encoders = {
            name: _encoder(cohort, name, params)
            for name in ((cohort.main, cohort.second) if kind == "both" else (getattr(cohort, kind),))
        }
        if kind == "both":
            network = MultimodalTeacher(
                encoders[cohort.main],
                encoders[cohort.second],
                FUSIONS[params.fusion](DIM, DIM, DIM),
                DIM,
                len(cohort.classes),
            )
        else:
            network = SingleModalityNet(encoders[getattr(cohort, kind)], DIM, len(cohort.classes))
    return to_device(network, context.device)


def trained_network(context: Context, run: Run, kind: str) -> nn.Module:
    """The network of a finished run, in eval mode."""
    network = build_network(context, kind)
    network.load_state_dict(run.tensors("model"))
    return network.eval()


def prediction_table(cohort: Cohort, rows: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """One row a sample: id, roi, patient, label and p_0, p_1, ... for the classes."""
    table = cohort.table.iloc[rows][["id", "roi", "patient", "label"]].reset_index(drop=True)
    columns = {f"p_{index}": probabilities[:, index] for index in range(probabilities.shape[1])}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def save_trained(
    folder: Path, cohort: Cohort, split: Split, network: nn.Module, history: pd.DataFrame, found: Prediction
) -> dict[str, Any]:
    """Write history, weights, and predictions and features of the validation split; returns the run's metrics.

    Args:
        folder: the unit's folder.
        cohort: whose rows `split` counts.
        split: of the fold.
        network: with the weights that were kept.
        history: of `medkd.training.loop.fit`, with `val_auc_macro`, by which the epoch was chosen.
        found: of the validation rows.
    """
    write_table(folder / "history.csv", history)
    write_table(folder / "validation.csv", prediction_table(cohort, split.val, found.probabilities))
    write_tensors(folder / "features.safetensors", {"validation": torch.from_numpy(found.features)})
    write_tensors(folder / "model.safetensors", network.state_dict())
    best = history.loc[history["val_auc_macro"].idxmax()]
    return {
        "epoch": int(best["epoch"]),
        "val_auc_macro": float(best["val_auc_macro"]),
        "val_balanced_accuracy": float(best["val_balanced_accuracy"]),
        "n_train": len(split.train),
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def tensor_rows(rows: np.ndarray) -> torch.Tensor:
    """Row numbers as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))


def _encoder(cohort: Cohort, name: str, params: Any) -> nn.Module:
    if name in cohort.vectors:
        return build_vector_encoder(cohort.vectors[name].values.shape[1], dim=DIM)
    return build_feature_encoder(params.encoder, dim=DIM, width=params.width)
