"""What the rare-disease stages share: parameters, images, fresh and trained encoders, their training and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from medkd import parallel
from medkd.data.cohort import Cohort
from medkd.data.views import HYBRID
from medkd.data.views import MOCO_V2 as STRONG
from medkd.errors import DataError, ParameterError
from medkd.files import write_table, write_tensors
from medkd.models.device import to_device
from medkd.models.encoders import build_image_encoder
from medkd.models.momentum import MoCo
from medkd.models.simclr import SimCLR
from medkd.seeds import generator_for, seed_for
from medkd.stages.context import Context
from medkd.stages.paired import tensor_rows, width_of
from medkd.stages.params import StageParams, shared
from medkd.stages.store import Run
from medkd.training.inputs import ImageModality
from medkd.training.loop import SCHEDULES, Schedule, Step, fit

DIM = 128
"""Length of the encoder's output, which is contrasted after normalisation and classified without."""


class RareParams(StageParams):
    """Parameters of every rare-disease stage."""

    dataset: str = shared("phantom-rare-skin", "cohort by name; `medkd data list` shows them")
    image_size: int = shared(48, "side of the square images, pixels (paper: 224)", ge=16)
    encoder: str = shared(
        "resnet12", 'image encoder: "resnet12", "conv4", or any classification model of torchvision or timm'
    )
    width: float = shared(0.25, "channels of resnet12 or conv4 relative to the published network", gt=0)
    precision: Literal["auto", "bfloat16", "float32"] = shared(
        "auto", '"auto": bfloat16 where the device has it natively; "float32" switches it off'
    )


class ContrastParams(RareParams):
    """Parameters of a training run with the contrastive loss; published settings: `MOCO_V2`, and the preset "paper"."""

    epochs: int = Field(10, description="passes over the common classes (paper: 200)", ge=1)
    batch_size: int = Field(64, description="images per step (paper: 16)", ge=2)
    lr: float = Field(0.06, description="learning rate of SGD at the start (paper: .03)", gt=0)
    sgd_momentum: float = Field(0.9, description="momentum of SGD", ge=0, lt=1)
    weight_decay: float = Field(1e-4, description="L2 penalty of SGD", ge=0)
    schedule: Literal["step", "cosine"] = Field(
        "cosine", description='"step" (times 0.1 at 60% and 80% of the epochs, MoCo v1) or "cosine" (MoCo v2)'
    )
    warmup_epochs: int = Field(0, description="epochs in which the learning rate climbs to its start (paper: 0)", ge=0)
    augmentation: Literal["paper", "strong"] = Field(
        "paper", description='"paper" (crop, jitter, blur, flip) or "strong" (hue and grey added, MoCo v2)'
    )
    projection: Literal["linear", "mlp"] = Field(
        "linear",
        description='"linear": the encoder\'s last layer is contrasted (MoCo v1); "mlp": a head on it (MoCo v2)',
    )
    queue_size: int = Field(1280, description="keys in the queue (MoCo's K)", ge=1)
    momentum: float = Field(
        0.99, description="momentum of the key encoder (paper: .999 over 118,000 steps)", ge=0, le=1
    )
    temperature: float = Field(0.07, description="temperature of the contrastive loss", gt=0)
    bn_splits: int = Field(
        4, description="ghost batch norm: parts of a batch with statistics of their own (paper: 4 GPUs)", ge=1
    )


def refuse_parts_of_one(params: ContrastParams) -> None:
    """Ghost batch norm of a part of one image would normalise the image by itself.

    Raises:
        ParameterError: `bn_splits` leaves such a part of `batch_size`.
    """
    n = parallel.world_size()
    splits = own_splits(params.bn_splits)
    for rows in {params.batch_size // n, -(-params.batch_size // n)}:  # of a process, see `parallel.own_part`
        size = -(-rows // splits)  # of all parts but the last, see `GhostBatchNorm2d`
        if splits > 1 and (size < 2 or rows % size == 1):
            among = f" among {n} processes" if n > 1 else ""
            raise ParameterError(
                f"{params.stage}: bn_splits = {params.bn_splits} leaves a part of one image of batch_size = "
                f"{params.batch_size}{among}; lower bn_splits or raise batch_size"
            )


def own_splits(bn_splits: int) -> int:
    """Parts of ghost batch norm in this process, which sees its part of a batch only."""
    return max(1, bn_splits // parallel.world_size())


MOCO_V2 = {"projection": "mlp", "schedule": "cosine", "augmentation": "strong", "temperature": 0.2}
"""MoCo v2's changes (Chen et al. 2020, arXiv:2003.04297)."""

AUGMENTATIONS = {"paper": HYBRID, "strong": STRONG}


def only_image(cohort: Cohort) -> str:
    """The one image modality of a cohort of the rare-disease chain.

    Raises:
        DataError: it has another number of them.
    """
    if len(cohort.images) != 1:
        raise DataError(
            f"{cohort.name} has {len(cohort.images)} image modalities, and the rare-disease chain takes one; choose "
            "another cohort"
        )
    return next(iter(cohort.images))


def images_of(context: Context) -> ImageModality:
    """All images of the cohort, at the stage's size, with the stage's augmentation (the paper's if it has none)."""
    name = only_image(context.cohort)
    augment = AUGMENTATIONS[getattr(context.params, "augmentation", "paper")]
    return ImageModality(context.cohort.images[name].load(context.params.image_size), augment, context.device)


def build_encoder(params: Any) -> tuple[nn.Module, nn.Module | None, int]:
    """A fresh encoder, its projection head (None for a linear projection) and the length of its features.

    With projection "mlp" the encoder gives the pooled features, and the head is linear, ReLU, linear to `DIM`.
    """
    splits = own_splits(params.bn_splits)
    encoder = build_image_encoder(params.encoder, dim=DIM, width=width_of(params), bn_splits=splits)
    if params.projection == "linear":
        return encoder, None, DIM
    name, last = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Linear)][-1]
    encoder.set_submodule(name, nn.Identity())
    n_features = last.in_features
    head = nn.Sequential(nn.Linear(n_features, n_features), nn.ReLU(inplace=True), nn.Linear(n_features, DIM))
    return encoder, head, n_features


def build_moco(context: Context, *purpose: object) -> MoCo:
    """A freshly initialised MoCo on the device; the same `purpose` gives the same weights and queue."""
    params = context.params
    with seeded_weights(params.seed, *purpose):
        encoder, head, _ = build_encoder(params)
    moco = MoCo(
        encoder,
        queue_size=params.queue_size,
        dim=DIM,
        momentum=params.momentum,
        temperature=params.temperature,
        generator=generator_for(params.seed, "queue", *purpose),
        projection_head=head,
    )
    return to_device(moco, context.device)


def build_simclr(context: Context, *purpose: object) -> SimCLR:
    """A freshly initialised SimCLR on the device; its projection head is always an MLP, as in its paper."""
    params = context.params
    with seeded_weights(params.seed, *purpose):
        encoder, head, _ = build_encoder(params.model_copy(update={"projection": "mlp"}))
    return to_device(SimCLR(encoder, head, temperature=params.temperature), context.device)


def trained_encoder(context: Context, run: Run, params: ContrastParams) -> nn.Module:
    """The query encoder of a finished URL run that was made with `params`, in eval mode on the stage's device."""
    mlp = getattr(params, "objective", "moco") == "simclr"
    encoder, _, _ = build_encoder(params.model_copy(update={"projection": "mlp"}) if mlp else params)
    encoder.load_state_dict(run.tensors("model"))
    return to_device(encoder, context.device).eval()


def train_rows(
    context: Context, step: Step, rows: np.ndarray, folder: Path, title: str, *purpose: object, **budget: int
) -> pd.DataFrame:
    """`medkd.training.loop.fit` with the stage's optimiser, schedule and, unless `budget` has others, epochs and batch.

    Args:
        context: of the stage.
        step: its step.
        rows: row numbers to train on.
        folder: of the run.
        title: on the progress bar.
        purpose: seeds order, augmentation and dropout.
        budget: `epochs`, `batch_size`.
    """
    params = context.params
    return fit(
        step,
        tensor_rows(rows),
        optimiser(step.modules.parameters(), params),
        **({"epochs": params.epochs, "batch_size": params.batch_size} | budget),
        schedule=schedule_of(params),
        seed=seed_for(params.seed, *purpose),
        folder=folder,
        title=title,
        ids=context.cohort.table["id"].tolist(),
    )


def save_run(
    folder: Path,
    cohort: Cohort,
    weights: Mapping[str, Tensor],
    rows: np.ndarray,
    features: np.ndarray,
    history: pd.DataFrame,
) -> None:
    """Write what a run keeps: history, weights, and features (n, d) of these rows with their ids."""
    write_table(folder / "history.csv", history)
    write_table(folder / "ids.csv", cohort.table.iloc[rows][["id"]])
    write_tensors(folder / "features.safetensors", {"features": torch.from_numpy(features)})
    write_tensors(folder / "model.safetensors", weights)


@contextmanager
def seeded_weights(seed: int, *purpose: object) -> Iterator[None]:
    """Weights that are drawn inside depend on seed and purpose only, and disturb no other random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights", *purpose))
        yield


def optimiser(parameters: Any, params: ContrastParams) -> torch.optim.Optimizer:
    """SGD over everything that learns, as both papers use it."""
    return torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=params.lr,
        momentum=params.sgd_momentum,
        weight_decay=params.weight_decay,
        fused=True,
    )


def schedule_of(params: ContrastParams) -> Schedule:
    """The schedule the parameters name, with a linear warm-up by epochs in front of it."""
    base, warmup = SCHEDULES[params.schedule], params.warmup_epochs

    def factor(epoch: int, n_epochs: int) -> float:
        return min(1.0, (epoch + 1) / (warmup + 1)) * base(epoch, n_epochs)

    return factor
