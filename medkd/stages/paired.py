"""What the teacher-student stages share: parameters, folds, what is predicted, inputs and tables of predictions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from medkd.data.cohort import Cohort
from medkd.data.folds import Split, n_folds_of, split_rows
from medkd.data.published_splits import published_splits
from medkd.data.views import GMCD
from medkd.errors import ParameterError
from medkd.stages.context import Context
from medkd.stages.params import StageParams, by_content, shared, unkeyed
from medkd.training.frozen import FrozenModality, frozen_features
from medkd.training.inputs import Modality, modality
from medkd.training.tasks import Classification, Survival, Task


class PairedParams(StageParams):
    """Parameters of the teacher-student stages: teacher, distillation, evaluation."""

    main: str = shared("", "modality the student sees; empty for the cohort's own (`medkd data info` names them)")
    second: str = shared("", "modality only the teacher sees; empty for the cohort's own")
    task: Literal["classification", "survival"] = shared("classification", '"classification" or "survival" (Cox)')
    n_folds: int = shared(5, "folds of the cross-validation, grouped by patient and stratified by class", ge=2)
    folds: int = unkeyed(2, "how many of them to run, from fold 0 on", ge=1)
    split_file: str = shared("", 'CSV of published splits; empty: the cohort\'s own, else n_folds; "none": n_folds')
    image_size: int = shared(48, "side of the square images, pixels", ge=16)
    encoder: str = shared("resnet12", 'image encoder: "resnet12", "conv4", any torchvision or timm model')
    width: float = shared(0.25, "channels of resnet12 and conv4 relative to the published network", gt=0)
    weights: str = shared("", 'start of the image encoder: empty, "imagenet" (medkd[pretrained]) or a file')
    frozen: bool = shared(False, "keep the image encoder as it is and train on its features, computed once")
    frozen_views: int = shared(8, "augmented views of each image whose features are kept when frozen", ge=0)
    frozen_dropout: float = shared(0.5, "dropout on the features of a frozen encoder", ge=0, lt=1)
    balanced: bool = shared(False, "weigh classes by their inverse frequency in the supervised loss (classification)")
    precision: Literal["auto", "bfloat16", "float32"] = shared(
        "auto", '"auto": bfloat16 where the device has it natively; "float32" switches it off'
    )

    @property
    def select(self) -> str:
        """The validation number by which epochs are kept."""
        return (Classification if self.task == "classification" else Survival).select

    def config(self) -> dict[str, Any]:
        """As `StageParams.config`, with the content of files in place of their paths."""
        return by_content(super().config())


class OptimiserParams(PairedParams):
    """Parameters of a training run on the teacher-student chain (paper: 30 epochs, batch 16, lr 5e-4)."""

    epochs: int = Field(9, description="passes over the training rows", ge=1)
    batch_size: int = Field(32, description="images per step", ge=2)
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
    return chosen_folds(context.cohort, context.params)


def chosen_folds(cohort: Cohort, params: PairedParams) -> range:
    """The folds to run on a cohort; fewer than asked for where fewer splits are published.

    Raises:
        ParameterError: if more of our own folds are asked for than there are.
    """
    n_folds = n_folds_of(cohort, params.n_folds, params.split_file)
    if params.folds > params.n_folds and published_splits(cohort, params.split_file) is None:
        raise ParameterError(f"folds = {params.folds} are more than there are ({n_folds}); set n_folds too, or fewer")
    return range(min(params.folds, n_folds))


def kinds_of(cohort: Cohort) -> tuple[str, ...]:
    """Networks that stage 02 trains on a cohort: the teacher and the second modality alone, or the latter only."""
    return ("both", "second") if cohort.main else ("second",)


def split_of(context: Context, fold: int) -> Split:
    """Training, validation and test rows of a fold; the same for teacher and student. Errors: as `split_for`."""
    return split_for(context.cohort, context.params, fold)


def split_for(cohort: Cohort, params: PairedParams, fold: int) -> Split:
    """As `split_of`, before there is a context.

    For survival, rows without follow-up are left out.

    Raises:
        ParameterError: survival was asked for, and the cohort has no follow-up; or as
            `medkd.data.folds.split_rows`.
    """
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


def prediction_table(
    cohort: Cohort, rows: np.ndarray, predicted: np.ndarray, task: str = "classification"
) -> pd.DataFrame:
    """One row per sample: id, roi, patient, then label and p_0, p_1, ... or time, event and risk."""
    table = cohort.table.iloc[rows].reset_index(drop=True)
    if task == "survival":
        named = table[["id", "roi", "patient", "survival_months", "event"]]
        return named.rename(columns={"survival_months": "time"}).assign(risk=predicted[:, 0])
    columns = {f"p_{index}": predicted[:, index] for index in range(predicted.shape[1])}
    return pd.concat([table[["id", "roi", "patient", "label"]], pd.DataFrame(columns)], axis=1)


def tensor_rows(rows: np.ndarray) -> Tensor:
    """Row numbers as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))


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
