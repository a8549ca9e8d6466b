"""Momentum (moving-average) copy of a network, the queue of keys, and MoCo."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses.contrastive import info_nce
from medkd.parallel import dealt, gathered, undealt
from medkd.precision import full
from medkd.transfer import sent


def warmup_momentum(step: int, maximum: float = 0.99) -> float:
    """Momentum of update number `step` (from 0): 0 copies, then the mean of all steps, then `maximum`.

    Source:
        Tarvainen, Valpola 2017 (mean teacher), arXiv:1703.01780, as in GMCD.
    """
    return min(1 - 1 / (step + 1), maximum)


class MomentumCopy(nn.Module):
    """A copy of a network that follows it slowly and never gets a gradient.

    It starts equal to the network. Batch-norm statistics are averaged like weights, so the copy also works in eval.

    Args:
        source: the network; it is copied, not kept.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """Move to `momentum` times the copy plus (1 - `momentum`) times `source`; counters are copied.

        Args:
            source: the network that was copied.
            momentum: 0 (copy) to 1 (stay).
        """
        own, new = _state(self.module), _state(source)
        if [t.shape for t in own] != [t.shape for t in new]:
            raise MedkdError(
                "a momentum copy can only follow the network it was made from; its tensors differ in shape"
            )
        floating = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
        counters = [i for i, tensor in enumerate(own) if not tensor.is_floating_point()]
        torch._foreach_lerp_([own[i] for i in floating], [new[i] for i in floating], 1 - momentum)
        for i in counters:
            own[i].copy_(new[i])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copied network gives, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)


class KeyQueue(nn.Module):
    """First in, first out: the most recent keys, in a ring.

    Args:
        size: keys held. dim: length of a key.
        generator: CPU generator of the random unit keys that fill it at first; None for seed 0.

    Attributes:
        keys: buffer, shape (size, dim), unit rows if unit rows are pushed.
        pointer: buffer, scalar int64, the row written next.
    """

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if size < 1:
            raise ParameterError(f"queue_size must be 1 or more, got {size}; MoCo on small sets uses about 1000")
        generator = generator or torch.Generator().manual_seed(0)
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest keys; of a batch larger than the queue the last `size` stay.

        Args:
            keys: shape (n, dim), any n; of several processes those of all are pushed, so that their queues stay equal.
        """
        keys = gathered(keys)
        n, size = len(keys), len(self.keys)
        offset = torch.arange(max(n - size, 0), n, device=self.keys.device)
        self.keys.index_copy_(0, (self.pointer + offset) % size, keys[max(n - size, 0) :].to(self.keys))
        self.pointer.add_(n).remainder_(size)


class MoCo(nn.Module):
    """Momentum contrast, one direction: the query encoder learns to find its image's key among the queue.

    Args:
        encoder: images (n, ...) -> (n, d); becomes the query encoder, the key encoder starts as its copy.
        queue_size: keys in the queue (MoCo's K).
        dim: length of an embedding.
        momentum: m of the key encoder.
        temperature: tau of the contrast.
        generator: seeds the queue.
        projection_head: features (n, d) -> embeddings (n, dim), used in training only (MoCo v2's MLP); None contrasts
            the encoder's output itself, so d must equal `dim` (MoCo v1).

    Source:
        He et al. 2020, arXiv:1911.05722 (MoCo v1); Chen et al. 2020, arXiv:2003.04297 (v2).
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        queue_size: int,
        dim: int,
        momentum: float = 0.999,
        temperature: float = 0.07,
        generator: torch.Generator | None = None,
        projection_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ParameterError(f"momentum of the key encoder must lie in [0, 1], got {momentum}; MoCo uses 0.999")
        self.query_encoder = encoder
        self.projection_head = projection_head
        self.key_encoder = MomentumCopy(self._query_network())
        self.queue = KeyQueue(queue_size, dim, generator=generator)
        self.momentum, self.temperature = momentum, temperature

    def forward(self, query_view: Tensor, key_view: Tensor, key_order: Tensor | None = None) -> dict[str, Tensor]:
        """One step: query, momentum update, key, contrast, and the key joins the queue.

        Args:
            query_view: one augmentation of each image.
            key_view: another one, rows in the same order.
            key_order: a permutation of the rows, int64 (n,): the order in which the key encoder sees the images. Keys
                come back in the images' order. With ghost batch norm the parts of the two batches then hold different
                images, so that batch statistics do not tell which key belongs to a query (MoCo's shuffling). Several
                processes deal out the keys of all among them, for the same reason.

        Returns:
            `loss` (scalar), `logits` (n, 1 + queue_size) with the key in column 0, `query` and `key` (n, dim) of unit
            length, and `features` (n, d), the query encoder's output before head and normalisation.
        """
        features = self.query_encoder(query_view)
        query = unit_length(features if self.projection_head is None else self.projection_head(features))
        self.key_encoder.update(self._query_network(), self.momentum)
        key = self._keys(key_view, key_order)
        loss, logits = info_nce(query, key, self.queue.keys, temperature=self.temperature)
        self.queue.push(key)
        return {"loss": loss, "logits": logits, "query": query, "key": key, "features": features}

    def _query_network(self) -> nn.Module:
        """What the key encoder follows."""
        return (
            self.query_encoder
            if self.projection_head is None
            else nn.Sequential(self.query_encoder, self.projection_head)
        )

    def _keys(self, key_view: Tensor, order: Tensor | None) -> Tensor:
        if order is None:
            return unit_length(self.key_encoder(key_view))
        order = sent(order, key_view.device)
        keys = unit_length(self.key_encoder(dealt(key_view[order])))
        return undealt(keys)[order.argsort()]


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def unit_length(features: Tensor) -> Tensor:
    """Rows of unit length, at least float32."""
    return F.normalize(full(features), dim=1)
