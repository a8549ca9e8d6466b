"""Unsupervised representation learning (URL) on the common classes, with MoCo or SimCLR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medkd.evaluation.predict import encode
from medkd.losses.contrastive import alignment, uniformity
from medkd.models.device import autocast
from medkd.models.momentum import MoCo
from medkd.models.simclr import SimCLR
from medkd.training.inputs import ImageModality
from medkd.training.loop import Step


class MocoStep(Step):
    """One step: two views of each image, the key is found among the queue's keys.

    Args:
        moco: `MoCo`, or `SimCLR`, which finds it among the batch.
        images: the image modality.
        validate: features of plain views of `validation_rows` -> logged numbers (a kNN probe, the collapse alarm).
        validation_rows: rows that `validate` sees.
        device, precision: where and in which precision the encoders run.

    Source:
        He et al. 2020 (MoCo v1); Sun et al. 2021, section 2.1.
    """

    def __init__(
        self,
        moco: MoCo | SimCLR,
        images: ImageModality,
        *,
        validate: Callable[[np.ndarray], dict[str, float]],
        validation_rows: Tensor,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = self.moco = moco
        self.images, self.device, self.precision = images, device, precision
        self._validate, self.validation_rows = validate, validation_rows

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Contrastive loss of one batch, with alignment and uniformity of its unit features."""
        raw = self.images.raw(rows)
        query_view, key_view = (self.images.augment(raw, self.generator) for _ in range(2))
        order = torch.randperm(len(rows), generator=self.generator)
        with autocast(self.device, self.precision):
            output = self.moco(query_view, key_view, order)
        with torch.no_grad():
            query, key = output["query"].float(), output["key"].float()
            logged = {"alignment": alignment(query, key), "uniformity": uniformity(query)}
            logged["found"] = (output["logits"].argmax(dim=1) == 0).float().mean()
        return output["loss"], logged

    def validate(self) -> dict[str, float]:
        """Whatever the stage asked to see of the features."""
        encoder = self.moco.query_encoder
        return self._validate(
            encode(encoder, self.images, self.validation_rows, device=self.device, precision=self.precision)
        )
