"""Orthogonality of two branches' features, an option of the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.errors import MedkdError
from medkd.precision import full


def orthogonality(first: Tensor, second: Tensor) -> Tensor:
    r"""Mean squared cross-correlation of feature dimensions: :math:`\overline{(\hat F_1^T \hat F_2)^2}`.

    Rows are divided by their length plus 1e-6, and no gradient flows through that length, so the loss turns features
    and does not shrink them.

    Args:
        first: features of one branch, shape (b, d).
        second: features of the other branch of the same samples, shape (b, d').

    Returns:
        Scalar, at least float32; 0 where every pair of dimensions is uncorrelated over the batch.

    Raises:
        MedkdError: if the batches differ.

    Source:
        Difference loss of Bousmalis et al. 2016 (domain separation networks), arXiv:1608.06019, in GMCD's form.
    """
    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second):
        raise MedkdError(
            f"orthogonality compares features (b, d) of one batch; got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    with torch.autocast(first.device.type, enabled=False):
        unit = [full(x) / (full(x.detach()).norm(dim=1, keepdim=True) + 1e-6) for x in (first, second)]
        return (unit[0].T @ unit[1]).pow(2).mean()
