"""Image and vector encoders by name: (n, 3, h, w) or (n, d) -> (n, dim)."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from medkd.errors import DataError, ParameterError
from medkd.models.resnet12 import Conv4, GhostBatchNorm2d, ResNet12

VECTOR_WIDTHS = (64, 48, 32)  # hidden layers of the self-normalising network
# these end in no linear layer, or return auxiliary outputs in training
_UNFIT = ("squeezenet", "googlenet", "inception")


class FeatureHead(nn.Module):
    """Linear, batch norm, ReLU: backbone features (n, in_dim) -> features (n, dim), all >= 0.

    The bilinear fusion and the contrastive losses of the distillation chain expect features of this kind.
    """

    def __init__(self, in_dim: int, dim: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, in_dim) -> (n, dim)."""
        return F.relu(self.norm(self.linear(x)))


class CentredImages(nn.Module):
    """Images in [0, 1] -> [-1, 1], that is mean 0.5 and standard deviation 0.5 per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) -> the same shape."""
        return x * 2.0 - 1.0


def encoder_names() -> tuple[str, ...]:
    """Every name that `build_image_encoder` knows, ours first."""
    import torchvision.models  # late: it takes longer to import than torch itself, and our own encoders do not need it

    known = torchvision.models.list_models(module=torchvision.models)
    return ("resnet12", "conv4", *(name for name in known if not name.startswith(_UNFIT)))


def build_image_encoder(
    name: str, *, dim: int = 128, width: float = 1.0, bn_splits: int = 1, weights: str | Path = ""
) -> nn.Module:
    """An image encoder that ends in one linear layer: (n, 3, h, w) in [0, 1] -> (n, dim), of either sign.

    Args:
        name: "resnet12", "conv4" or a torchvision classification model such as "resnet18".
        dim: features.
        width: factor on the channels of "resnet12" and "conv4"; torchvision models have one width only.
        bn_splits: parts of the batch that batch norm treats apart, see `GhostBatchNorm2d`.
        weights: state dict to start from (.safetensors, or what torch.save wrote), "" for a fresh start. Nothing is
            downloaded. Its last linear layer is taken only if it has `dim` outputs too.

    Raises:
        ParameterError: for an unknown name, or a width that the model cannot have.
        DataError: if the weights file is missing, unreadable or of another network.
    """
    model, head = _build_backbone(name, dim, width, bn_splits)
    if weights:
        _load_weights(model, Path(weights), head, name)
    return model


def build_feature_encoder(
    name: str, *, dim: int = 128, width: float = 1.0, bn_splits: int = 1, weights: str | Path = ""
) -> nn.Module:
    """The distillation chain's image encoder: centred images, backbone, `FeatureHead`; output (n, dim) >= 0.

    Takes images in [0, 1] and centres them itself. Arguments and errors as in `build_image_encoder`; the last
    linear layer of `weights` is never taken.
    """
    model, head = _build_backbone(name, dim, width, bn_splits)
    model.set_submodule(head, FeatureHead(model.get_submodule(head).in_features, dim))
    if weights:
        _load_weights(model, Path(weights), head, name)
    return nn.Sequential(CentredImages(), model)


def build_vector_encoder(in_dim: int, *, dim: int = 128, dropout: float = 0.1) -> nn.Module:
    """Self-normalising network for a vector modality: (n, in_dim) -> (n, dim), all >= 0.

    Linear, ELU, AlphaDropout for the widths 64, 48, 32, dim, then ReLU. Weights start as N(0, 1 / fan_in), biases 0.

    Args:
        in_dim: length of the vector; the values should be standardised on training rows.
        dim: features.
        dropout: AlphaDropout's rate, 0 to below 1.

    Source:
        Klambauer et al. 2017, arXiv:1706.02515; layer widths of Chen et al. 2020, arXiv:1912.08937 (Pathomic Fusion).
    """
    layers: list[nn.Module] = []
    for n_in, n_out in zip((in_dim, *VECTOR_WIDTHS), (*VECTOR_WIDTHS, dim), strict=True):
        linear = nn.Linear(n_in, n_out)
        nn.init.normal_(linear.weight, std=n_in**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ELU(), nn.AlphaDropout(dropout)]
    return nn.Sequential(*layers, nn.ReLU())


def _build_backbone(name: str, dim: int, width: float, bn_splits: int) -> tuple[nn.Module, str]:
    """The model and the dotted name of its last linear layer, which has `dim` outputs."""
    if name == "resnet12":
        return ResNet12(dim=dim, width=width, bn_splits=bn_splits), "head"
    if name == "conv4":
        return Conv4(dim=dim, width=width, bn_splits=bn_splits), "head"
    names = encoder_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
        raise ParameterError(f'unknown image encoder "{name}"; nearest known: {", ".join(near)}')
    if width != 1.0:
        raise ParameterError(f'width={width} has no meaning for "{name}"; leave it at 1, or use "resnet12" or "conv4"')
    import torchvision.models

    model = torchvision.models.get_model(name, weights=None, num_classes=dim)
    if bn_splits != 1:
        _split_batch_norm(model, bn_splits)
    head = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return model, head


def _split_batch_norm(model: nn.Module, splits: int) -> None:
    """Replace every BatchNorm2d of a fresh model by a GhostBatchNorm2d with the same settings."""
    for key, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            ghost = GhostBatchNorm2d(module.num_features, splits)
            ghost.eps, ghost.momentum = module.eps, module.momentum
            ghost.load_state_dict(module.state_dict())
            model.set_submodule(key, ghost)


def _load_weights(model: nn.Module, path: Path, head: str, name: str) -> None:
    """Fill the model from a file; the entries of `head` may be absent or of other shapes, all else must fit."""
    if not path.is_file():
        raise DataError(f'weights="{path}" is not a file; give a state dict of "{name}", or "" to start afresh')
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        own = model.state_dict()
        body = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
        last = {key: value for key, value in state.items() if key in own and key not in body}
    except Exception as error:  # each format has its own exceptions
        raise DataError(f'weights="{path}" cannot be read as a state dict: {error}') from error
    if all(own[key].shape == value.shape for key, value in last.items()):
        body |= last
    wanted = {key for key in own if not key.startswith(f"{head}.")}
    wrong = sorted(wanted ^ {key for key in body if not key.startswith(f"{head}.")}) or [
        key for key in sorted(wanted) if own[key].shape != body[key].shape
    ]
    if wrong:
        raise DataError(
            f'weights="{path}" do not fit "{name}": {len(wrong)} entries are missing, unknown or of another shape, '
            f"for example {wrong[0]}; use the file of the same network and width"
        )
    model.load_state_dict(body, strict=False)
