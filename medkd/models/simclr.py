"""SimCLR: contrast inside the batch, without momentum copy and queue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medkd.losses.contrastive import nt_xent
from medkd.models.momentum import unit_length
from medkd.transfer import sent


class SimCLR(nn.Module):
    """Two views of each image find each other among all views of the batch; called as `MoCo` is.

    Args:
        encoder: images (n, ...) -> features (n, d); named `query_encoder`, as in MoCo.
        projection_head: features (n, d) -> embeddings (n, dim), used in training only.
        temperature: tau of the contrast.

    Source:
        Chen et al. 2020, arXiv:2002.05709, algorithm 1.
    """

    def __init__(self, encoder: nn.Module, projection_head: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.query_encoder, self.projection_head = encoder, projection_head
        self.temperature = temperature

    def forward(self, query_view: Tensor, key_view: Tensor, key_order: Tensor | None = None) -> dict[str, Tensor]:
        """One step; `key_order` as in `MoCo`: without it parts of ghost batch norm hold the same images twice.

        Returns:
            `loss` (scalar), `logits` (n, 2n - 1) with the partner in column 0, `query` and `key` (n, dim) of unit
            length, and `features` (n, d) of the query view.
        """
        order = torch.arange(len(key_view)) if key_order is None else key_order
        order = sent(order, key_view.device)
        features = self.query_encoder(query_view)
        query = unit_length(self.projection_head(features))
        key = unit_length(self.projection_head(self.query_encoder(key_view[order])))[order.argsort()]
        loss, logits = nt_xent(query, key, temperature=self.temperature)
        return {"loss": loss, "logits": logits, "query": query, "key": key, "features": features}
