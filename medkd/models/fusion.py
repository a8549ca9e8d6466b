"""Fusion of two feature vectors: gated bilinear (Pathomic Fusion, GMCD), low-rank, and plain concatenation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.errors import ParameterError


class Bilinear(nn.Bilinear):
    """nn.Bilinear as one matrix product; torch's own loops over outputs, a quarter of a teacher step on a CPU."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """(n, in1) and (n, in2) -> (n, out)."""
        n_out, n_in1, _ = self.weight.shape
        mapped = (input2 @ self.weight.flatten(0, 1).T).view(-1, n_out, n_in1)  # (n, out, in1)
        return (mapped @ input1[:, :, None]).squeeze(2) + self.bias


class BilinearFusion(nn.Module):
    r"""Gated outer-product fusion: (n, dim1) and (n, dim2) -> (n, out_dim), all >= 0.

    Each input is gated by both, :math:`o_1 = \mathrm{block}_1(\sigma(x_1^T W_1 x_2) \cdot h_1(x_1))` and the same for
    :math:`o_2`; a constant 1 is appended to each, so that their outer product also holds both alone; two encoders
    bring it to `out_dim`. Linear weights start as N(0, 1 / fan_in), biases 0.

    Args:
        dim1: features of the first input. dim2: of the second.
        out_dim: fused features.
        skip: show the gated vectors to the second encoder as well.
        dropout: rate of every dropout, 0 to below 1.

    Source:
        Chen et al. 2020 (Pathomic Fusion), arXiv:1912.08937, with the batch norms of Xing et al. 2023 (GMCD).
    """

    def __init__(self, dim1: int, dim2: int, out_dim: int, *, skip: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.skip = skip
        self.linear_h1 = nn.Sequential(nn.Linear(dim1, dim1), nn.ReLU())
        self.linear_z1 = Bilinear(dim1, dim2, dim1)
        self.linear_o1 = nn.Sequential(nn.Linear(dim1, dim1), nn.ReLU(), nn.Dropout(dropout))
        self.linear_h2 = nn.Sequential(nn.Linear(dim2, dim2), nn.ReLU())
        self.linear_z2 = Bilinear(dim1, dim2, dim2)
        self.linear_o2 = nn.Sequential(nn.Linear(dim2, dim2), nn.ReLU(), nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout)
        n_gated = dim1 + dim2 + 2
        self.encoder1 = _encoder((dim1 + 1) * (dim2 + 1), out_dim, dropout)
        self.encoder2 = _encoder(out_dim + n_gated if skip else out_dim, out_dim, dropout)
        _initialise(self)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fused features, shape (n, out_dim); row i of both inputs is one sample. Negative inputs count as 0."""
        x1, x2 = x1.relu(), x2.relu()
        o1 = self.linear_o1(self.linear_z1(x1, x2).sigmoid() * self.linear_h1(x1))
        o2 = self.linear_o2(self.linear_z2(x1, x2).sigmoid() * self.linear_h2(x2))
        o1, o2 = (nn.functional.pad(o, (0, 1), value=1.0) for o in (o1, o2))  # (n, dim + 1)
        product = (o1[:, :, None] * o2[:, None, :]).flatten(1)  # (n, (dim1 + 1) * (dim2 + 1))
        fused = self.encoder1(self.dropout(product))
        return self.encoder2(torch.cat([fused, o1, o2], dim=1) if self.skip else fused)


class ConcatFusion(nn.Module):
    """Concatenation and an encoder, the plain alternative: (n, dim1) and (n, dim2) -> (n, out_dim), all >= 0.

    Args:
        dim1: features of the first input. dim2: of the second.
        out_dim: fused features.
        dropout: rate of the dropout, 0 to below 1.
    """

    def __init__(self, dim1: int, dim2: int, out_dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder1 = _encoder(dim1 + dim2, out_dim, dropout)
        _initialise(self)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fused features, shape (n, out_dim); row i of both inputs is one sample."""
        return self.encoder1(torch.cat([x1, x2], dim=1))


class LowRankFusion(nn.Module):
    r"""Low-rank multimodal fusion (LMF): (n, dim1) and (n, dim2) -> (n, out_dim), all >= 0.

    A linear map of the outer product of :math:`[x_1; 1]` and :math:`[x_2; 1]` whose weight tensor has rank `rank`,
    :math:`\sum_r w_r \, (U_r [x_1; 1]) \circ (V_r [x_2; 1]) + b`, so that the product is never built; then batch norm,
    ReLU and dropout, as the other fusions end. Weights start as N(0, 1 / fan_in), the bias 0.

    Args:
        dim1: features of the first input. dim2: of the second.
        out_dim: fused features.
        rank: terms of the sum, at least 1; 4 is the published default.
        dropout: rate of the dropout, 0 to below 1.

    Source:
        Liu et al. 2018, arXiv:1806.00064, with a learned weight for each rank.
    """

    def __init__(self, dim1: int, dim2: int, out_dim: int, *, rank: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        if rank < 1:
            raise ParameterError(f"rank={rank} of the low-rank fusion must be at least 1")
        self.factor1 = nn.Parameter(torch.randn(rank, out_dim, dim1 + 1) * (dim1 + 1) ** -0.5)  # U
        self.factor2 = nn.Parameter(torch.randn(rank, out_dim, dim2 + 1) * (dim2 + 1) ** -0.5)  # V
        self.weight = nn.Parameter(torch.randn(rank) * rank**-0.5)  # w
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.finish = nn.Sequential(nn.BatchNorm1d(out_dim), nn.ReLU(), nn.Dropout(dropout))
        _initialise(self)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fused features, shape (n, out_dim); row i of both inputs is one sample."""
        return self.finish(self.mixed(x1, x2))

    def mixed(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The low-rank map of the outer product itself, before batch norm, shape (n, out_dim), of either sign."""
        one1, one2 = (nn.functional.pad(x, (0, 1), value=1.0) for x in (x1, x2))
        products = (one1 @ self.factor1.transpose(1, 2)) * (one2 @ self.factor2.transpose(1, 2))  # (rank, n, out_dim)
        return torch.tensordot(self.weight, products, dims=1) + self.bias


FUSIONS = {"bilinear": BilinearFusion, "concat": ConcatFusion, "lmf": LowRankFusion}
"""Fusions by name; each is made by (dim1, dim2, out_dim) and takes `dropout`."""


def _encoder(in_dim: int, out_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.BatchNorm1d(out_dim), nn.ReLU(), nn.Dropout(dropout))


def _initialise(fusion: nn.Module) -> None:
    """Every linear weight N(0, 1 / fan_in), bias 0; bilinear layers keep torch's default."""
    for module in fusion.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
