"""The multimodal teacher with three heads, and the network of one modality."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What a network of one modality gives.

    Attributes:
        features: shape (n, dim).
        logits: raw scores, shape (n, n_classes).
    """

    features: Tensor
    logits: Tensor


class TeacherOutput(NamedTuple):
    """What the multimodal teacher gives: features (n, dim) and logits (n, n_classes) of its three branches."""

    fused: Tensor
    main: Tensor
    second: Tensor
    logits_fused: Tensor
    logits_main: Tensor
    logits_second: Tensor


class SingleModalityNet(nn.Module):
    """Encoder and linear classifier: the student, a single-modality baseline, or one branch of the teacher.

    Args:
        encoder: maps images (n, 3, h, w) or vectors (n, d) to features (n, dim).
        dim: features of the encoder.
        n_classes: classes.
    """

    def __init__(self, encoder: nn.Module, dim: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Output:
        """Features and logits of a batch of the one modality."""
        features, kind = self.encoder(x), x.device.type
        if not torch.is_autocast_enabled(kind):
            return Output(features, self.classifier(features))
        with torch.autocast(kind, enabled=False):  # as in the student's training; bfloat16 would round scores
            return Output(features, self.classifier(features.float()))


class MultimodalTeacher(nn.Module):
    """Two branches, their fusion and three classifiers, trained jointly end to end.

    `main` is the modality that the student keeps, `second` the one that only the teacher sees; either may be an
    image or a vector. The sparsity penalty sums over the encoder of a vector branch.

    Args:
        encoder_main: encoder of the main modality, output (n, dim).
        encoder_second: encoder of the second modality, output (n, dim).
        fusion: maps the two features, each (n, dim), to fused features (n, dim).
        dim: features of each of the three branches.
        n_classes: classes.
    """

    def __init__(
        self, encoder_main: nn.Module, encoder_second: nn.Module, fusion: nn.Module, dim: int, n_classes: int
    ) -> None:
        super().__init__()
        self.main = SingleModalityNet(encoder_main, dim, n_classes)
        self.second = SingleModalityNet(encoder_second, dim, n_classes)
        self.fusion = fusion
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, main: Tensor, second: Tensor) -> TeacherOutput:
        """Features and logits of the fused, main and second branch; row i of both inputs is one sample."""
        output_main, output_second = self.main(main), self.second(second)
        # float32 even under autocast: the outer product of the fusion is small, and its batch norm wants the digits
        with torch.autocast(main.device.type, enabled=False):
            fused = self.fusion(output_main.features.float(), output_second.features.float())
            logits_fused = self.classifier(fused)
        return TeacherOutput(
            fused=fused,
            main=output_main.features,
            second=output_second.features,
            logits_fused=logits_fused,
            logits_main=output_main.logits,
            logits_second=output_second.logits,
        )
