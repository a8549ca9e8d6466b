"""Low-rank constraint on multi-modal relations (M3LR): affinity tensor, its t-SVD shrinkage, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.precision import full

REWEIGHTING_EPS = 1e-5
"""Added to a singular value before it divides its threshold (T-SVDNet's constant)."""

Kind = Literal["weighted", "plain"]


def relation_matrix(features: Tensor) -> Tensor:
    """Gram matrix of a batch with rows of unit length.

    Args:
        features: shape (b, d).

    Returns:
        Shape (b, b), at least float32; differentiable.

    Source:
        Xing et al. 2023 (GMCD), affinity of one view.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = full(features)
        return F.normalize(features @ features.T, dim=1)


@torch.no_grad()
def shrink(tensor: Tensor, rho: float | Tensor, *, kind: Kind = "weighted") -> Tensor:
    r"""Shrink the t-SVD singular values of an affinity tensor.

    The tensor is Fourier-transformed (not normalised) along its first axis; each frequency slice (b, V) has its
    singular values s replaced by s':
    "plain" :math:`\max(s - \rho, 0)`, the proximal operator of rho times `tensor_nuclear_norm`;
    "weighted" :math:`\max(s - \rho b / (s + 10^{-5}), 0)`, which spares the large ones.

    Args:
        tensor: shape (b, b, V), V views, float32 or float64.
        rho: threshold, >= 0; 0 returns the tensor unchanged.
        kind: which of the two.

    Returns:
        Shape, dtype and device of `tensor`, without gradient.

    Raises:
        MedkdError: if the tensor is not (b, b, V), or `kind` is unknown (ParameterError).

    Source:
        Lu et al. 2020, arXiv:1804.03728 (t-SVT); Xing et al. 2023 with the weights of T-SVDNet (Li et al. 2021).
        The SVD goes over V x V Gram matrices: slices are tall (V is 4), and GPUs are slow at batched tall SVD.
    """
    _check(tensor, kind)
    # float64: the Gram matrix squares the condition number; with V = 4 this costs nothing that counts
    slices = torch.fft.rfft(tensor.double(), dim=0)  # (b // 2 + 1, b, V); mirror slices are implied by irfft
    slices = slices.contiguous()  # the products below are twice as fast
    # eigh raises on nan; zeros in their place lose nothing, the product with the slices below is nan all the same
    gram = torch.nan_to_num(slices.mH @ slices, nan=0.0, posinf=0.0, neginf=0.0)
    _, directions = torch.linalg.eigh(gram)  # (b // 2 + 1, V, V)
    squares = torch.view_as_real(slices @ directions).square_()  # of left singular vectors times singular values
    values = squares.sum(dim=1).sum(dim=2).sqrt_().clamp_(min=torch.finfo(torch.float64).tiny)[:, None]
    threshold = rho if kind == "plain" else rho * len(tensor) / (values + REWEIGHTING_EPS)
    kept = (1 - threshold / values).clamp(min=0)  # s' / s
    return torch.fft.irfft(slices @ ((directions * kept) @ directions.mH), n=len(tensor), dim=0).to(tensor.dtype)


@torch.no_grad()
def singular_values(tensor: Tensor) -> Tensor:
    """Singular values of every frequency slice, shape (b, V), float64, descending along V; for plots and the norm.

    Args:
        tensor: affinity tensor, shape (b, b, V).
    """
    _check(tensor, "plain")
    values = torch.linalg.svdvals(torch.fft.rfft(tensor.double(), dim=0))  # (b // 2 + 1, V)
    frequency = torch.arange(len(tensor), device=tensor.device)
    return values[torch.minimum(frequency, len(tensor) - frequency)]  # slice k and slice b - k are conjugates


def tensor_nuclear_norm(tensor: Tensor) -> Tensor:
    """Sum of the singular values of all frequency slices divided by b (scalar, float64), of a (b, b, V) tensor."""
    return singular_values(tensor).sum() / len(tensor)


class LowRankLoss(nn.Module):
    r"""M3LR: :math:`\sum_m \mu/2 \, \| G_m - B_m \|_F^2`, B the shrunk copy of the modality's affinity tensor G.

    Half-quadratic splitting of a tensor nuclear norm with one shrinkage a step. Each call shrinks with
    rho = weight / mu, then grows mu by `growth` up to `max_mu` and weighs the distance with the new mu. While mu is
    small everything is shrunk to zero and the gradient vanishes (rows of G have unit length): a built-in warm-up.

    Args:
        weight: Lambda of the nuclear norm.
        mu: penalty at the start.
        max_mu: its ceiling.
        growth: factor a call, >= 1.
        kind: shrinkage, see `shrink`.

    Attributes:
        mu: buffer, float64 scalar, so that a resumed run goes on where it was.

    Source:
        Xing et al. 2023 (GMCD), stage 1; mu, its ceiling and its growth as in T-SVDNet (Li et al. 2021).
    """

    def __init__(
        self,
        *,
        weight: float = 0.1,
        mu: float = 1e-5,
        max_mu: float = 1.0,
        growth: float = 1.1,
        kind: Kind = "weighted",
    ) -> None:
        super().__init__()
        if not (weight >= 0 and 0 < mu <= max_mu and growth >= 1):
            raise ParameterError(
                f"the low-rank loss needs weight >= 0, 0 < mu <= max_mu and growth >= 1; got weight={weight}, mu={mu}, "
                f"max_mu={max_mu}, growth={growth}"
            )
        _check_kind(kind)
        self.weight, self.max_mu, self.growth, self.kind = weight, max_mu, growth, kind
        self.register_buffer("mu", torch.tensor(mu, dtype=torch.float64))

    def forward(self, *view_lists: Sequence[Tensor]) -> Tensor:
        """Loss of one batch.

        Args:
            view_lists: one list a modality, of V feature matrices (b, d) each; d may differ between views. Views
                without gradient only shape the target.

        Returns:
            Scalar, summed over modalities.
        """
        return self.of_tensors(*(torch.stack([relation_matrix(v) for v in views], dim=2) for views in view_lists))

    def of_tensors(self, *tensors: Tensor) -> Tensor:
        """As `forward`, from affinity tensors (b, b, V), one per modality; moves mu."""
        rho = self.weight / self.mu
        targets = [shrink(tensor.detach(), rho, kind=self.kind) for tensor in tensors]
        self.mu.copy_((self.growth * self.mu).clamp(max=self.max_mu))
        distance = sum((tensor - target).pow(2).sum() for tensor, target in zip(tensors, targets, strict=True))
        return self.mu.clone() / 2 * distance  # a copy: the next call changes mu, perhaps before backward


def _check_kind(kind: str) -> None:
    if kind not in ("weighted", "plain"):
        raise ParameterError(f'shrinkage "{kind}" is unknown; use "weighted" (GMCD) or "plain"')


def _check(tensor: Tensor, kind: str) -> None:
    _check_kind(kind)
    if tensor.dim() != 3 or tensor.shape[0] != tensor.shape[1]:
        raise MedkdError(
            f"an affinity tensor has shape (b, b, n_views), got {tuple(tensor.shape)}; "
            "stack relation matrices along dim 2"
        )
