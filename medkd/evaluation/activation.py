"""Class-activation maps: which parts of an image raise a network's score of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import ParameterError
from medkd.models.maps import MapTap
from medkd.models.mode import evaluating
from medkd.models.teacher import MultimodalTeacher


def grad_cam(
    network: nn.Module,
    inputs: Sequence[Any],
    slot: int,
    rows: Tensor,
    classes: Tensor,
    *,
    head: str = "logits",
    batch_size: int = 32,
) -> np.ndarray:
    r"""Grad-CAM of the last feature maps of an image encoder: :math:`\mathrm{relu}(\sum_k \alpha_k A_k)`.

    :math:`\alpha_k` is the mean over the pixels of the score's gradient with respect to map :math:`A_k`. The maps are
    resized bilinearly, and each is divided by its largest value: maps of two images or networks say where, and not
    how much. Runs in eval mode and float32; weights, their gradients, buffers and modes stay as they are.

    Args:
        network: `MultimodalTeacher` or `SingleModalityNet`.
        inputs: the modalities (`medkd.training.inputs`), in the order of the network's arguments.
        slot: position in `inputs` of the images that are explained; the maps are those of their encoder.
        rows: row numbers, shape (n,), n at least 1.
        classes: of the score that is explained, one per row, shape (n,).
        head: attribute of the output that holds the raw scores.
        batch_size: rows at once.

    Returns:
        Shape (n, height, width) of the images, float32, 0 to 1; 0 everywhere where nothing raises the score.

    Raises:
        ParameterError: if the encoder has no feature maps (see `medkd.models.maps.MapTap`), or the number of classes
            is not that of the rows.

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2. For an encoder that ends in global average pooling and a
        linear classifier it is the CAM of Zhou et al. 2016, arXiv:1512.04150, without its negative part.
    """
    if len(classes) != len(rows):
        raise ParameterError(f"classes must name one class per row; got {len(classes)} classes for {len(rows)} rows")
    encoder = (
        (network.main, network.second)[slot].encoder if isinstance(network, MultimodalTeacher) else network.encoder
    )
    tap = MapTap(encoder, inputs[slot].plain(rows[:1]))
    try:
        found = []
        with evaluating(network):
            for places in torch.arange(len(rows)).split(batch_size):
                given = [modality.plain(rows[places]) for modality in inputs]
                found.append(_maps(network, given, slot, classes[places], head, tap))
    finally:
        tap.close()
    return torch.cat(found).numpy()


def _maps(network: nn.Module, given: list[Tensor], slot: int, classes: Tensor | None, head: str, tap: MapTap) -> Tensor:
    """Maps of one batch on the CPU, shape (n, h, w)."""
    given[slot] = given[slot].detach().requires_grad_()  # the maps have a gradient even where all weights are frozen
    with torch.enable_grad():
        scores = getattr(network(*given), head)
        score = scores.gather(1, classes.to(scores.device)[:, None]).sum()
        (slopes,) = torch.autograd.grad(score, tap.last)  # unlike backward() it writes to no weight's .grad
    maps = F.relu((slopes.mean(dim=(2, 3), keepdim=True) * tap.last.detach()).sum(dim=1, keepdim=True))
    maps = F.interpolate(maps, size=given[slot].shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)).cpu()
