"""The network as it leaves the lab: pixels in, calibrated probabilities out, nothing to be done before or after."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor, nn

TEMPERATURES = (0.1, 10.0)
"""Range of the temperature: a validation split without a single error would ask for 0."""
TIE = 1e-4  # added before rounding, so that exact halves go up in every runtime, whatever order it sums in


class Deployed(nn.Module):
    """Resizing, scaling to [0, 1], network, temperature and softmax in one module.

    Args:
        network: images (n, 3, size, size) in [0, 1] -> raw scores (n, n_classes); normalises them itself if it has to.
        size: side of the images that it was trained on, px.
        temperature: that raw scores are divided by, > 0.
    """

    def __init__(self, network: nn.Module, size: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.size, self.temperature = size, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8 RGB, shape (n, 3, h, w), h and w 1 to 4096 px -> probabilities (n, n_classes)."""
        return (self.scores(images).float() / self.temperature).softmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """Raw scores before the temperature, shape (n, n_classes)."""
        return self.network(resized(images, self.size) / 255.0)


def resized(images: Tensor, size: int) -> Tensor:
    """Images (n, 3, h, w) as squares (n, 3, size, size), bilinear and antialiased, whole numbers 0 to 255 as float32.

    Pillow's bilinear filter as two products with a matrix, columns first, because torch.export and ONNX keep those for
    every h and w. Images of that size stay as they are. Pillow takes rows first where that is cheaper, and keeps its
    weights as fixed-point numbers; a value differs from Pillow's by 1 at most.
    """
    columns, rows = (_weights(n, size, images.device) for n in (images.shape[3], images.shape[2]))
    return _rounded(rows @ _rounded(images.float() @ columns.T))


def _weights(n: int, size: int, device: torch.device) -> Tensor:
    """Share of each of `n` pixels in each of `size`, shape (size, n); rows sum to 1."""
    scale = n / size
    centres = (torch.arange(size, device=device) + 0.5) * scale
    distances = (torch.arange(n, device=device) + 0.5 - centres[:, None]).abs()
    triangle = (1 - distances / torch.sym_max(scale, 1.0)).clamp(min=0)
    return triangle / triangle.sum(dim=1, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + (0.5 + TIE)).floor().clamp(0, 255)


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in `TEMPERATURES` that makes the labels most likely; 1 where no other one is better.

    Args:
        scores: raw scores of a validation split, shape (n, n_classes).
        labels: class indices, shape (n,).

    Source:
        Guo et al. 2017, arXiv:1706.04599 (temperature scaling).
    """
    # the likelihood has one maximum over 1 / T, so a search between bounds finds it
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(scores / np.exp(log_t), labels),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    better = found.fun < negative_log_likelihood(scores, labels)
    return float(np.exp(found.x)) if better else 1.0


def negative_log_likelihood(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the labels, nats; raw scores (n, n_classes), class indices (n,)."""
    return float(-log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())
