"""Gradient-guided knowledge modulation (GKM): weigh distillation losses by how far their gradients agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkd import parallel
from medkd.errors import MedkdError, ParameterError


class GradientModulation(nn.Module):
    r"""Weights of K distillation losses from the cosines of their gradients at the student's feature.

    With :math:`g_j` the gradient of loss j (the main loss last) with respect to the batch's features and C their
    cosines, the raw weight of loss i is the number of :math:`C_{ij} > threshold`, itself and the main loss
    included (1 to K + 1; 0 for a vanishing gradient), or the row sum of C. Weights move with momentum over calls.

    Args:
        n_losses: K, at least 1.
        momentum: share of the earlier weights, 0 to below 1; the first call takes the raw weights.
        threshold: cosine above which two gradients agree; None for row sums.

    Attributes:
        running: buffer, the current weights, shape (K,); nan before the first call.
        last_cosine: cosines of the last call, shape (K + 1, K + 1), or None.

    Source:
        Xing et al. 2023 (GMCD): threshold 0.1, momentum 0.5; Xing et al. 2022 (GK-Refine): row sums, no momentum,
        which it multiplies by 4.
    """

    def __init__(self, n_losses: int, *, momentum: float = 0.5, threshold: float | None = 0.1) -> None:
        super().__init__()
        if n_losses < 1:
            raise ParameterError(f"gradient modulation weighs one loss or more, got n_losses = {n_losses}")
        if not 0 <= momentum < 1:
            raise ParameterError(f"momentum of the loss weights must lie in [0, 1), got {momentum}; GMCD uses 0.5")
        self.momentum, self.threshold = momentum, threshold
        self.register_buffer("running", torch.full((n_losses,), float("nan")))
        self.last_cosine: Tensor | None = None

    def forward(self, losses: Sequence[Tensor], main_loss: Tensor, features: Tensor) -> Tensor:
        """The K weights, without gradient.

        Args:
            losses: K scalars that depend on `features`.
            main_loss: the loss of the task itself, a scalar.
            features: student features of the batch, shape (n, d), part of the graph of every loss. Its graph is kept.

        Returns:
            Shape (K,), float32.

        Raises:
            MedkdError: if a loss does not depend on `features`, or `losses` are not K.
        """
        if len(losses) != len(self.running):
            raise MedkdError(
                f"gradient modulation was made for {len(self.running)} losses and got {len(losses)}; make it with "
                f"n_losses = {len(losses)}"
            )
        gradients = [self._gradient(loss, features) for loss in (*losses, main_loss)]
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            stacked = torch.stack(gradients).double() * len(features)  # (K + 1, n * d); losses are means over n
            products = parallel.mean_of(stacked @ stacked.T)  # of the whole batch, where processes share it
            norm = products.diagonal().sqrt().clamp(min=1e-12)
            cosine = (products / norm / norm[:, None]).float()
            counted = cosine if self.threshold is None else (cosine > self.threshold).float()
            raw = counted.sum(dim=1)[:-1]
            moved = self.momentum * self.running + (1 - self.momentum) * raw
            self.running = torch.where(self.running.isnan(), raw, moved)
        self.last_cosine = cosine
        return self.running.clone()

    @staticmethod
    def _gradient(loss: Tensor, features: Tensor) -> Tensor:
        """Gradient at the features only, flattened: the network below them is not touched."""
        (gradient,) = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise MedkdError(
                "gradient modulation needs losses that depend on `features`, and one does not; "
                "pass the tensor that the losses were computed from"
            )
        return gradient.detach().flatten().float()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take the shape of the stored weights: K is only known once losses have been seen."""
        if (stored := state_dict.get(f"{prefix}running")) is not None:
            self.running = self.running.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
