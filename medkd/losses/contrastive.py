"""Contrast of embeddings: InfoNCE against a queue, NT-Xent inside a batch, and two numbers that describe them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.precision import full


def info_nce(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Find each query's key among the queue's keys: cross-entropy over cosine / temperature, mean over queries.

    Args:
        query: unit rows, shape (n, d); the gradient goes here only.
        key: unit rows of the same images, shape (n, d), taken as constants.
        queue: unit rows of other images, shape (queue_size, d), taken as constants. It is copied, so that it may be
            written to before `backward`.
        temperature: tau, > 0 (MoCo v1: 0.07).

    Returns:
        The loss (scalar, nats) and the logits, shape (n, 1 + queue_size), column 0 the key; at least float32.

    Raises:
        MedkdError: if the shapes do not fit, or `temperature` is not positive (ParameterError).

    Source:
        He et al. 2020 (MoCo), arXiv:1911.05722, eq. 1.
    """
    if not temperature > 0:
        raise ParameterError(f"temperature must be positive, got {temperature}; MoCo v1 uses 0.07")
    if query.shape != key.shape or query.shape[1:] != queue.shape[1:]:
        raise MedkdError(
            f"query and key must have one shape (n, d) and the queue (queue_size, d); got query {tuple(query.shape)}, "
            f"key {tuple(key.shape)}, queue {tuple(queue.shape)}: make the queue with the encoder's output length"
        )
    # float32 even under autocast: a bfloat16 cosine near 1 is off by 0.004, which the temperature makes 0.06
    with torch.autocast(query.device.type, enabled=False):
        query = full(query)
        key, queue = key.detach().to(query.dtype), queue.detach().to(query.dtype, copy=True)
        positive = (query * key).sum(dim=1, keepdim=True)  # (n, 1)
        logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # (n, 1 + queue_size)
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, target), logits


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Find each view's partner among all other views of the batch, in both directions; mean over the 2n views.

    Args:
        first: unit rows, one view of each image, shape (n, d), n >= 2.
        second: unit rows of another view of the same images, same shape.
        temperature: tau, > 0 (SimCLR: 0.1 to 0.5).

    Returns:
        The loss (scalar, nats) and the logits of `first`, shape (n, 2n - 1), column 0 the partner; at least float32.

    Raises:
        MedkdError: if the shapes differ or the batch has one image, or `temperature` is not positive (ParameterError).

    Source:
        Chen et al. 2020 (SimCLR), arXiv:2002.05709, eq. 1.
    """
    if not temperature > 0:
        raise ParameterError(f"temperature must be positive, got {temperature}; SimCLR uses 0.1 to 0.5")
    if first.shape != second.shape or len(first) < 2:
        raise MedkdError(
            f"both views must have one shape (n, d) with n >= 2; got {tuple(first.shape)} and {tuple(second.shape)}: "
            "enlarge the batch"
        )
    with torch.autocast(first.device.type, enabled=False):
        rows = full(torch.cat([first, second]))
        n = len(first)
        # a view is no candidate for itself
        similarity = (rows @ rows.T / temperature).masked_fill(
            torch.eye(2 * n, dtype=torch.bool, device=rows.device), float("-inf")
        )
        partner = torch.arange(2 * n, device=rows.device).roll(n)
        loss = F.cross_entropy(similarity, partner)
    positive = similarity[:n].gather(1, partner[:n, None])
    own, others = torch.arange(n, device=rows.device)[:, None], torch.arange(2 * n - 2, device=rows.device)
    others = others + (others >= own)  # step over the view itself, then over its partner
    others = others + (others >= own + n)
    return loss, torch.cat([positive, similarity[:n].gather(1, others)], dim=1)


def alignment(query: Tensor, key: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, 0 (one point) to 4 (opposite); unit rows, both (n, d).

    Source:
        Wang, Isola 2020, arXiv:2005.10242, eq. 5 with alpha = 2.
    """
    return (query - key).pow(2).sum(dim=1).mean()


def uniformity(features: Tensor) -> Tensor:
    """Log of the mean Gaussian potential over distinct pairs: 0 if all rows coincide, at best about -4.

    Args:
        features: unit rows, shape (n, d), n >= 2.

    Source:
        Wang, Isola 2020, eq. 7 with t = 2.
    """
    if len(features) < 2:
        raise MedkdError(
            f"uniformity compares pairs of rows and needs two or more; got {len(features)}, enlarge the batch"
        )
    distances = torch.pdist(full(features))
    return torch.logsumexp(-2 * distances.pow(2), dim=0) - math.log(len(distances))
