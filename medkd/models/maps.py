"""The last feature maps of any convolutional encoder, for losses that compare maps (AT, NST)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medkd.errors import ParameterError
from medkd.models.mode import evaluating


class MapTap:
    """Keeps an encoder's last feature maps: those of the layer that ends last with maps of more than one pixel.

    A container ends after its parts, so this is ResNet12's or torchvision's last stage, or the last activation of an
    EfficientNet. It is found by one forward pass in eval mode, which changes neither weights nor buffers nor modes.
    A copy of the encoder (a momentum teacher) is not tapped by the tap of the original.

    Args:
        encoder: maps images (n, 3, h, w) to features; a whole network works too.
        example: a batch as the encoder gets it, one image is enough, on the encoder's device.

    Attributes:
        last: maps of the latest forward pass, shape (n, channels, h, w), with gradient if that had one; None before.

    Raises:
        ParameterError: if the encoder takes vectors, is a transformer, or its maps have one pixel at this image size.
    """

    def __init__(self, encoder: nn.Module, example: Tensor) -> None:
        self.last: Tensor | None = None
        self.module = _last_with_maps(encoder, example)

        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            # deepcopy copies a module's hooks by reference: a momentum copy must not write here
            if module is self.module:
                self.last = output

        self._handle = self.module.register_forward_hook(keep)

    def close(self) -> None:
        """Stop listening and forget the maps."""
        self._handle.remove()
        self.last = None


def _last_with_maps(encoder: nn.Module, example: Tensor) -> nn.Module:
    # heads x tokens x tokens and (n, h, w, channels) are four-dimensional too
    if any("attention" in type(module).__name__.lower() for module in encoder.modules()):
        raise ParameterError(
            "the image encoder is a transformer, whose parts are no feature maps (n, channels, h, w); choose a "
            "convolutional encoder such as resnet12 or resnet18, or a loss that compares features"
        )
    found: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1
        # without weights it is no layer: what centres the images, or VGG's pool, which blows 1 x 1 maps up to 7 x 7
        if is_map and any(True for _ in module.parameters()):
            found.append(module)

    handles = [module.register_forward_hook(note) for module in encoder.modules()]
    try:
        with evaluating(encoder), torch.no_grad():
            encoder(example)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ParameterError(
            f"the encoder has no feature maps of more than one pixel for an input of shape {tuple(example.shape)}; "
            "this loss needs an image encoder and a larger image_size"
        )
    return found[-1]
