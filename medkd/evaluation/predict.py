"""A trained network's class probabilities and features, in eval mode, by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from medkd.models.device import autocast
from medkd.models.mode import evaluating


def class_probabilities(scores: Tensor) -> Tensor:
    """Raw scores (n, n_classes) as probabilities in float32, rows sum to 1."""
    return scores.float().softmax(dim=1)


class Prediction(NamedTuple):
    """Probabilities (n, n_classes), or risks (n, 1), and features (n, d) of the rows asked for, float32 on the CPU."""

    probabilities: np.ndarray
    features: np.ndarray


def predict(
    network: nn.Module,
    inputs: Sequence[Any],
    rows: Tensor,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 256,
    head: str = "logits",
    features: str = "features",
    scores: Callable[[Tensor], Tensor] = class_probabilities,
) -> Prediction:
    """Run `network` on plain views of these rows; the result does not depend on batch size or order.

    Args:
        network: takes one tensor a modality; its output has the attributes named by `head` and `features`.
        inputs: the modalities (`medkd.training.inputs`), in the order of the network's arguments.
        rows: row numbers, shape (n,).
        device: where the network lies.
        precision: see `medkd.models.device.autocast`.
        batch_size: rows at once.
        head: attribute that holds the raw scores.
        features: attribute that holds the features.
        scores: raw scores of a batch -> what is reported, by default class probabilities.
    """
    probabilities, found = [], []
    with evaluating(network), torch.inference_mode():
        for batch in rows.split(batch_size):
            with autocast(device, precision):
                output = network(*(modality.plain(batch) for modality in inputs))
            probabilities.append(scores(getattr(output, head)).cpu())
            found.append(getattr(output, features).float().cpu())
    return Prediction(torch.cat(probabilities).numpy(), torch.cat(found).numpy())


def encode(
    encoder: nn.Module,
    inputs: Any,
    rows: Tensor,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 256,
) -> np.ndarray:
    """Features of plain views from an encoder alone, eval mode, shape (n, d), float32.

    Args: as `predict`; `encoder` maps a batch to (n, d).
    """
    found = []
    with evaluating(encoder), torch.inference_mode():
        for batch in rows.split(batch_size):
            with autocast(device, precision):
                found.append(encoder(inputs.plain(batch)).float().cpu())
    return torch.cat(found).numpy()
