"""What the rare-disease stages share: parameters, images and a freshly initialised MoCo."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from medkd.data.views import HYBRID
from medkd.models.device import to_device
from medkd.models.encoders import build_image_encoder
from medkd.models.momentum import MoCo
from medkd.stages.context import Context, generator_for, seed_for
from medkd.stages.params import StageParams, shared
from medkd.training.inputs import ImageModality
from medkd.training.loop import SCHEDULES

DIM = 128
"""Length of the encoder's output, which is contrasted after normalisation and classified without."""


class RareParams(StageParams):
    """Parameters of every rare-disease stage."""

    dataset: str = shared("phantom-rare-skin", "cohort by name; `medkd data list` shows them")
    image_size: int = shared(48, "side of the square images, pixels (paper: 224)", ge=16)
    encoder: str = shared("resnet12", 'image encoder: "resnet12", "conv4" or any torchvision classification model')
    width: float = shared(0.25, "channels of resnet12 relative to the published network", gt=0)
    precision: str = shared("auto", '"auto": bfloat16 where the device has it natively; "float32" switches it off')


class ContrastParams(RareParams):
    """Parameters of a training run with the contrastive loss (paper: 200 epochs, batch 16, momentum .999)."""

    epochs: int = Field(10, description="passes over the common classes", ge=1)
    batch_size: int = Field(64, description="images a step", ge=2)
    lr: float = Field(0.06, description="learning rate of SGD at the start", gt=0)
    sgd_momentum: float = Field(0.9, description="momentum of SGD", ge=0, lt=1)
    weight_decay: float = Field(1e-4, description="L2 penalty of SGD", ge=0)
    schedule: Literal["step", "cosine"] = Field(
        "cosine", description='"step" (times 0.1 at 60% and 80% of the epochs, MoCo v1) or "cosine"'
    )
    queue_size: int = Field(1280, description="keys in the queue (MoCo's K)", ge=1)
    momentum: float = Field(
        0.99, description="momentum of the key encoder (paper: .999 over 118,000 steps)", ge=0, le=1
    )
    temperature: float = Field(0.07, description="temperature of the contrastive loss", gt=0)
    bn_splits: int = Field(
        4, description="ghost batch norm: parts of a batch with statistics of their own (paper: 4 GPUs)", ge=1
    )


def images_of(context: Context) -> ImageModality:
    """All images of the cohort, at the stage's size."""
    (name,) = context.cohort.images
    return ImageModality(context.cohort.images[name].load(context.params.image_size), HYBRID, context.device)


def build_moco(context: Context, *purpose: object) -> MoCo:
    """A freshly initialised MoCo on the device; the same `purpose` gives the same weights and queue."""
    params = context.params
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(params.seed, "weights", *purpose))
        encoder = build_image_encoder(params.encoder, dim=DIM, width=params.width, bn_splits=params.bn_splits)
    moco = MoCo(
        encoder,
        queue_size=params.queue_size,
        dim=DIM,
        momentum=params.momentum,
        temperature=params.temperature,
        generator=generator_for(params.seed, "queue", *purpose),
    )
    return to_device(moco, context.device)


def optimiser(parameters: Any, params: ContrastParams) -> torch.optim.Optimizer:
    """SGD over everything that learns, as both papers use it."""
    return torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=params.lr,
        momentum=params.sgd_momentum,
        weight_decay=params.weight_decay,
    )


def schedule_of(params: ContrastParams) -> Any:
    """The schedule the parameters name."""
    return SCHEDULES[params.schedule]
