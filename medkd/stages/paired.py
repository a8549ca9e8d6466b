"""What the teacher-student stages share: parameters, folds, inputs, networks and their predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from medkd.data.cohort import Cohort
from medkd.data.folds import Split, n_folds_of, split_rows
from medkd.data.views import GMCD
from medkd.errors import DataError, ParameterError
from medkd.evaluation.predict import Prediction
from medkd.files import digest_of, write_table, write_tensors
from medkd.models.device import to_device
from medkd.models.encoders import build_feature_encoder, build_vector_encoder, describe_weights
from medkd.models.fusion import FUSIONS
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.seeds import seed_for
from medkd.stages.context import Context
from medkd.stages.params import FILES, StageParams, shared, unkeyed
from medkd.stages.store import Run
from medkd.training.frozen import FrozenModality, frozen_features, frozen_head, trunk_width
from medkd.training.inputs import Modality, modality
from medkd.training.loop import Step, fit, linear_decay
from medkd.training.tasks import Classification, Survival, Task

DIM = 128
"""Length of every branch's feature, as in the paper."""


class PairedParams(StageParams):
    """Parameters of the teacher-student stages: teacher, distillation, evaluation."""

    main: str = shared("", "modality the student sees; empty for the cohort's own (`medkd data info` names them)")
    second: str = shared("", "modality only the teacher sees; empty for the cohort's own")
    task: Literal["classification", "survival"] = shared("classification", '"classification" or "survival" (Cox)')
    n_folds: int = shared(5, "folds of the cross-validation, grouped by patient and stratified by class", ge=2)
    folds: int = unkeyed(2, "how many of them to run, from fold 0 on", ge=1)
    split_file: str = shared("", 'CSV of published splits; empty: the cohort has its own, or n_folds; "none": n_folds')
    image_size: int = shared(48, "side of the square images, pixels", ge=16)
    encoder: str = shared("resnet12", 'image encoder: "resnet12", "conv4", any torchvision or timm model')
    width: float = shared(0.25, "channels of resnet12 and conv4 relative to the published network", gt=0)
    weights: str = shared("", 'start of the image encoder: empty, "imagenet" (medkd[pretrained]) or a file')
    frozen: bool = shared(False, "keep the image encoder as it is and train on its features, computed once")
    frozen_views: int = shared(8, "augmented views of each image whose features are kept when frozen", ge=0)
    frozen_dropout: float = shared(0.5, "dropout on the features of a frozen encoder", ge=0, lt=1)
    balanced: bool = shared(False, "weigh classes by their inverse frequency in the supervised loss")
    precision: str = shared("auto", '"auto": bfloat16 where the device has it natively; "float32" switches it off')

    @property
    def select(self) -> str:
        """The validation number by which epochs are kept."""
        return (Classification if self.task == "classification" else Survival).select

    def config(self) -> dict[str, Any]:
        """As `StageParams.config`, with the content of files in place of their paths."""
        return super().config() | {name: _content(getattr(self, name)) for name in FILES}


class OptimiserParams(PairedParams):
    """Parameters of a training run on the teacher-student chain (paper: 30 epochs, batch 16, lr 5e-4)."""

    epochs: int = Field(9, description="passes over the training rows", ge=1)
    batch_size: int = Field(32, description="images a step", ge=2)
    lr: float = Field(1e-3, description="learning rate of Adam at the start; falls linearly", gt=0)
    weight_decay: float = Field(4e-4, description="L2 penalty of Adam", ge=0)
    keep: Literal["best", "last"] = Field(
        "best", description='epoch that is kept: "best" on the validation split, or "last"'
    )

    def config(self) -> dict[str, Any]:
        """As `PairedParams.config`; `keep` is younger than the store, so that its default leaves keys as they were."""
        return {name: value for name, value in super().config().items() if (name, value) != ("keep", "best")}


def run_folds(context: Context) -> range:
    """The folds to run."""
    params = context.params
    return range(min(params.folds, n_folds_of(context.cohort, params.n_folds, params.split_file)))


def kinds_of(cohort: Cohort) -> tuple[str, ...]:
    """Networks that stage 02 trains on a cohort: the teacher and the second modality alone, or the latter only."""
    return ("both", "second") if cohort.main else ("second",)


def split_of(context: Context, fold: int) -> Split:
    """Training, validation and test rows of a fold; the same for teacher and student.

    For survival, rows without follow-up are left out.

    Raises:
        ParameterError: survival was asked for, and the cohort has no follow-up.
    """
    params, cohort = context.params, context.cohort
    if params.task == "survival" and not cohort.has_survival:
        raise ParameterError(
            f'task = "survival" needs the columns survival_months and event, which {cohort.name} has not; '
            'use task = "classification" or another cohort'
        )
    split = split_rows(cohort, fold=fold, n_folds=params.n_folds, seed=params.seed, split_file=params.split_file)
    if params.task != "survival":
        return split
    known = cohort.table[["survival_months", "event"]].notna().all(axis=1).to_numpy()
    return Split(*(rows[known[rows]] for rows in (split.train, split.val, split.test)))


def prediction_task(context: Context, split: Split) -> Task:
    """What is predicted, with what it needs to know of the training rows."""
    params, cohort, device = context.params, context.cohort, context.device
    if params.task == "classification":
        return Classification(cohort.labels, len(cohort.classes), split.train, balanced=params.balanced, device=device)
    table = cohort.table
    return Survival(
        table["survival_months"].to_numpy(float), table["event"].to_numpy(float), split.train, device=device
    )


def inputs_of(context: Context, split: Split) -> list[Modality]:
    """Main (where the cohort has one) and second modality; vectors are imputed and scaled by the training rows."""
    cohort, params = context.cohort, context.params
    names = [name for name in (cohort.main, cohort.second) if name]
    return [
        _frozen_modality(context, name)
        if params.frozen and name in cohort.images
        else modality(cohort, name, size=params.image_size, augment=GMCD, train_rows=split.train, device=context.device)
        for name in names
    ]


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


def prediction_table(
    cohort: Cohort, rows: np.ndarray, predicted: np.ndarray, task: str = "classification"
) -> pd.DataFrame:
    """One row a sample: id, roi, patient, then label and p_0, p_1, ... or time, event and risk."""
    table = cohort.table.iloc[rows].reset_index(drop=True)
    if task == "survival":
        named = table[["id", "roi", "patient", "survival_months", "event"]]
        return named.rename(columns={"survival_months": "time"}).assign(risk=predicted[:, 0])
    columns = {f"p_{index}": predicted[:, index] for index in range(predicted.shape[1])}
    return pd.concat([table[["id", "roi", "patient", "label"]], pd.DataFrame(columns)], axis=1)


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


def tensor_rows(rows: np.ndarray) -> Tensor:
    """Row numbers as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))


def _encoder(cohort: Cohort, name: str, params: Any) -> nn.Module:
    if name in cohort.vectors:
        return build_vector_encoder(cohort.vectors[name].values.shape[1], dim=DIM)
    if params.frozen:
        return frozen_head(trunk_width(params.encoder, width_of(params)), dim=DIM, dropout=params.frozen_dropout)
    return build_feature_encoder(params.encoder, dim=DIM, width=width_of(params), weights=params.weights)


def _frozen_modality(context: Context, name: str) -> FrozenModality:
    params = context.params
    features = frozen_features(
        context.cohort.images[name],
        params.encoder,
        params.weights,
        size=params.image_size,
        augment=GMCD,
        n_views=params.frozen_views,
        seed=params.seed,
        device=context.device,
        width=width_of(params),
        precision=params.precision,
        title=f"{params.encoder} features, {name}",
    )
    return FrozenModality(features, context.device)


def width_of(params: Any) -> float:
    """The width of the encoders that have one; the published networks of torchvision and timm have not."""
    return params.width if params.encoder in ("resnet12", "conv4") else 1.0


def _content(path: str) -> str:
    """Digest of a file's content; other words (empty, "imagenet") stay as they are."""
    if not path or not Path(path).is_file():
        return path
    return digest_of(Path(path))[:16]
