"""Comparison methods of the rare-disease chain: supervised pre-training, its distilled form, ProtoNet's episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import ParameterError
from medkd.losses.distillation import distillation_loss
from medkd.models.device import autocast
from medkd.training.inputs import ImageModality
from medkd.training.loop import Step
from medkd.transfer import sent

TEMPERATURE = 4.0
"""Of the distillation in SRL-distill (Tian et al. 2020)."""


class LabelledStep(Step):
    """Cross-entropy on one view of each image; with a teacher, the mean of that and of the distillation loss.

    Args:
        network: gives `features` and `logits`.
        images: the image modality.
        labels: class of every row of the cohort, shape (n,), int64; only trained rows are read.
        teacher: network of the same output from an earlier run, in eval mode; it is not trained.
        device, precision: where and in which precision the network runs.

    Source:
        Tian et al. 2020, arXiv:2003.11539 (RFS): one generation, equal weights, T = 4.
    """

    def __init__(
        self,
        network: nn.Module,
        images: ImageModality,
        labels: Tensor,
        *,
        teacher: nn.Module | None = None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = self.network = network
        self.images, self.labels = images, labels.to(device)
        self.teacher = teacher  # no part of `modules`: a checkpoint need not hold what another run keeps
        self.device, self.precision = device, precision

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Batch mean; logs the accuracy on training views."""
        views, labels = self.images.augmented(rows, self.generator), self.labels[sent(rows, self.device)]
        with autocast(self.device, self.precision):
            logits = self.network(views).logits
            taught = None if self.teacher is None else self._teach(views)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        logged: dict[str, Tensor | float] = {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}
        if taught is not None:
            logged |= {"ce": loss, "kd": distillation_loss(logits, taught.float(), temperature=TEMPERATURE)}
            loss = (loss + logged["kd"]) / 2
        return loss, logged

    def _teach(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher(views).logits


def check_episode(rows_by_class: Sequence[np.ndarray], *, k_shot: int, batch_size: int) -> int:
    """Query images per class of an episode of as many images as a batch has.

    Raises:
        ParameterError: the batch has no room for a query image per class, or a class has too few images.
    """
    n_classes, fewest = len(rows_by_class), min(map(len, rows_by_class))
    n_query = batch_size // n_classes - k_shot
    if n_classes < 2 or n_query < 1 or fewest < k_shot + n_query:
        raise ParameterError(
            f"an episode of {batch_size} images over {n_classes} classes needs two classes, {k_shot} support and one "
            f"query image per class; the smallest class has {fewest}; change batch_size or episode_shots"
        )
    return n_query


class EpisodeStep(Step):
    """ProtoNet: each step is an episode of the common classes with as many images as a batch has.

    The rows of the batch are not used; the episode is drawn from `rows_by_class`, so that all classes come equally.

    Args:
        encoder: images -> features (n, d).
        images: the image modality.
        rows_by_class: row numbers of each common class, two classes or more.
        k_shot: support images per class.
        batch_size: images of an episode; what the support leaves is the query.
        device, precision: where and in which precision the encoder runs.

    Raises:
        ParameterError: if the batch has no room for a query image per class, or a class has too few images.

    Source:
        Snell, Swersky, Zemel 2017, arXiv:1703.05175, algorithm 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        images: ImageModality,
        rows_by_class: list[np.ndarray],
        *,
        k_shot: int,
        batch_size: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.modules = self.encoder = encoder
        self.images, self.device, self.precision = images, device, precision
        self.rows = [torch.from_numpy(np.asarray(rows, np.int64)) for rows in rows_by_class]
        self.k_shot, self.n_query = k_shot, check_episode(rows_by_class, k_shot=k_shot, batch_size=batch_size)

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of the query images over minus the squared distances (mean over dimensions) to prototypes."""
        n_way, n_each = len(self.rows), self.k_shot + self.n_query
        drawn = [own[torch.randperm(len(own), generator=self.generator)[:n_each]] for own in self.rows]
        views = self.images.augmented(torch.cat(drawn), self.generator)
        with autocast(self.device, self.precision):
            features = self.encoder(views)
        features = features.float().view(n_way, n_each, -1)
        prototypes = features[:, : self.k_shot].mean(dim=1)
        query = features[:, self.k_shot :].flatten(0, 1)
        # written out, since cdist has no gradient at distance 0; the mean, since sums over 128 dimensions diverge
        logits = -(query[:, None] - prototypes).pow(2).mean(dim=2)
        target = torch.arange(n_way, device=self.device).repeat_interleave(self.n_query)
        return F.cross_entropy(logits, target), {"accuracy": (logits.argmax(dim=1) == target).float().mean()}
