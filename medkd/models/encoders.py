"""Image and vector encoders by name: (n, 3, h, w) or (n, d) -> (n, dim)."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import util
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from medkd.errors import DataError, ParameterError
from medkd.models.pretrained import EXTRA, IMAGENET, describe_weights, packaged_state, weights_file
from medkd.models.resnet12 import Conv4, GhostBatchNorm2d, ResNet12

__all__ = [
    "CentredImages",
    "FeatureHead",
    "build_feature_encoder",
    "build_image_encoder",
    "build_vector_encoder",
    "describe_weights",
    "encoder_names",
    "trunk",
    "trunk_width",
]

VECTOR_WIDTHS = (64, 48, 32)  # hidden layers of the self-normalising network
OWN = ("resnet12", "conv4")
# torchvision models that end in no linear layer, or return auxiliary outputs in training
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
    """Every name that `build_image_encoder` knows: ours, torchvision's, and timm's where it is installed."""
    return tuple(dict.fromkeys((*OWN, *_torchvision_names(), *_timm_names())))


def build_image_encoder(
    name: str, *, dim: int = 128, width: float = 1.0, bn_splits: int = 1, weights: str | Path = ""
) -> nn.Module:
    """An image encoder that ends in one linear layer: (n, 3, h, w) in [0, 1] -> (n, dim), of either sign.

    Args:
        name: "resnet12", "conv4", a classification model of torchvision such as "resnet18", or of timm such as
            "tf_efficientnet_lite0". Where both libraries have the name torchvision's is meant; "timm:resnet18" is
            timm's. Transformers that take one image size only need that `image_size`.
        dim: features.
        width: factor on the channels of "resnet12" and "conv4"; the other models have one width only.
        bn_splits: parts of the batch that batch norm treats apart, see `GhostBatchNorm2d`.
        weights: "" for a fresh start; "imagenet" for the weights that an installed package ships (see
            `medkd.models.pretrained`); else the path of a state dict (.safetensors, or what torch.save wrote).
            Nothing is downloaded. The last linear layer of a file is taken only if it has `dim` outputs too, the
            classifier of packaged weights never.

    Raises:
        ParameterError: for an unknown name, a width that the model cannot have, or "imagenet" for a backbone whose
            weights no package ships.
        DataError: if the weights are missing, unreadable or of another network.
    """
    model, head = _build_backbone(name, dim, width, bn_splits)
    _load_weights(model, weights, head, name)
    return model


def build_feature_encoder(name: str, *, dim: int = 128, width: float = 1.0, weights: str | Path = "") -> nn.Module:
    """The distillation chain's image encoder: centred images, backbone, `FeatureHead`; output (n, dim) >= 0.

    Takes images in [0, 1] and centres them itself, whatever the weights: [-1, 1] is what GMCD feeds its ImageNet
    ResNet-18 and what tf_efficientnet_lite0 was trained with. Arguments and errors as in `build_image_encoder`; the
    last linear layer of `weights` is never taken.
    """
    model, head = _build_backbone(name, dim, width, 1)
    model.set_submodule(head, FeatureHead(model.get_submodule(head).in_features, dim))
    _load_weights(model, weights, head, name)
    return nn.Sequential(CentredImages(), model)


def trunk(name: str, weights: str | Path = "", *, width: float = 1.0) -> tuple[nn.Module, int]:
    """A backbone without its last linear layer: images (n, 3, h, w) in [0, 1] -> pooled features (n, d); and d.

    Centres the images itself. Arguments and errors as in `build_image_encoder`.
    """
    model, head = _build_backbone(name, 1, width, 1)
    dim = model.get_submodule(head).in_features
    model.set_submodule(head, nn.Identity())
    _load_weights(model, weights, head, name)
    return nn.Sequential(CentredImages(), model), dim


@cache
def trunk_width(name: str, width: float = 1.0) -> int:
    """Length d of the features that `trunk` gives. Errors as in `build_image_encoder`."""
    try:
        with torch.device("meta"):  # takes no memory
            model, head = _build_backbone(name, 1, width, 1)
    except NotImplementedError:  # some read their own weights while they are built
        with torch.random.fork_rng(devices=[]):
            model, head = _build_backbone(name, 1, width, 1)
    return model.get_submodule(head).in_features


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
    return VectorEncoder(in_dim, *layers, nn.ReLU())


class VectorEncoder(nn.Sequential):
    """The layers of `build_vector_encoder`, with a check of the vector's length.

    Args:
        in_dim: length that is expected.
        layers: applied in order.

    Raises:
        DataError: if a vector has another length.
    """

    def __init__(self, in_dim: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.in_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (n, in_dim) -> features (n, dim)."""
        if x.dim() != 2 or x.shape[1] != self.in_dim:
            raise DataError(
                f"this network was built for vectors of {self.in_dim} numbers, shape (n, {self.in_dim}), and got "
                f"{tuple(x.shape)}; give it the columns of the cohort that it was trained on"
            )
        return super().forward(x)


class _Headed(nn.Module):
    """A timm model whose own classifier is more than one linear layer, under a linear layer of ours."""

    def __init__(self, trunk: nn.Module, n_features: int, dim: int, classifier: tuple[str, ...]) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(n_features, dim)
        self.classifier = tuple(f"{name}." for name in classifier)  # entries of a state dict file that have no place

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class _GhostNormAct(GhostBatchNorm2d):
    """Ghost batch norm with the dropout and activation that timm's norm layers carry."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _torchvision_names() -> list[str]:
    import torchvision.models  # late: it takes longer to import than torch itself, and our own encoders do not need it

    return [name for name in torchvision.models.list_models(module=torchvision.models) if not name.startswith(_UNFIT)]


def _timm_names() -> list[str]:
    if util.find_spec("timm") is None:
        return []
    import timm  # late, as above

    return timm.list_models()


def _build_backbone(name: str, dim: int, width: float, bn_splits: int) -> tuple[nn.Module, str]:
    """The model and the dotted name of its last linear layer, which has `dim` outputs."""
    if name == "resnet12":
        return ResNet12(dim=dim, width=width, bn_splits=bn_splits), "head"
    if name == "conv4":
        return Conv4(dim=dim, width=width, bn_splits=bn_splits), "head"
    timm_name = name.removeprefix("timm:")
    from_torchvision = name == timm_name and name in _torchvision_names()
    if not from_torchvision and timm_name not in _timm_names():
        raise ParameterError(_unknown(name))
    if width != 1.0:
        raise ParameterError(f'width={width} has no meaning for "{name}"; leave it at 1, or use "resnet12" or "conv4"')
    model, head = _torchvision_model(name, dim) if from_torchvision else _timm_model(timm_name, dim)
    if bn_splits != 1:
        _split_batch_norm(model, bn_splits)
    return model, head


def _torchvision_model(name: str, dim: int) -> tuple[nn.Module, str]:
    import torchvision.models

    model = torchvision.models.get_model(name, weights=None, num_classes=dim)
    return model, [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def _timm_model(name: str, dim: int) -> tuple[nn.Module, str]:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=dim)
    if not hasattr(model, "get_classifier"):
        raise ParameterError(f'timm\'s "{name}" has no classifier to put a linear layer in place of; choose another')
    last = model.get_classifier()
    if isinstance(last, nn.Linear) and last.out_features == dim:
        return model, next(key for key, module in model.named_modules() if module is last)
    # a convolution, two heads or a small network of its own: timm gives the pooled features, the head is ours
    model = timm.create_model(name, pretrained=False, num_classes=0)
    classifier = model.default_cfg["classifier"]
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return _Headed(model, getattr(model, "head_hidden_size", None) or model.num_features, dim, classifier), "head"


def _unknown(name: str) -> str:
    names = encoder_names()
    near = difflib.get_close_matches(name.removeprefix("timm:"), names, n=3, cutoff=0.5) or names[:3]
    more = "" if util.find_spec("timm") else f"; timm would add many more: {EXTRA}"
    return f'unknown image encoder "{name}"; nearest known: {", ".join(near)}{more}'


def _split_batch_norm(model: nn.Module, splits: int) -> None:
    """Replace every BatchNorm2d of a fresh model by a GhostBatchNorm2d with the same settings."""
    for key, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            with_activation = hasattr(module, "act") and hasattr(module, "drop")
            ghost = (_GhostNormAct if with_activation else GhostBatchNorm2d)(module.num_features, splits)
            ghost.eps, ghost.momentum = module.eps, module.momentum
            ghost.load_state_dict(module.state_dict())
            if with_activation:
                ghost.drop, ghost.act = module.drop, module.act
            model.set_submodule(key, ghost)


def _load_weights(model: nn.Module, weights: str | Path, head: str, name: str) -> None:
    """Fill the model; the entries of `head` may be absent or of other shapes, all else must fit."""
    if not str(weights):
        return
    own = model.state_dict()
    if str(weights) == IMAGENET:
        model.load_state_dict(packaged_state(name, own, head), strict=False)
        return
    path = weights_file(name, weights)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if isinstance(model, _Headed) and not any(key.startswith("trunk.") for key in state):  # a file of timm's model
            state = {f"trunk.{key}": value for key, value in state.items() if not key.startswith(model.classifier)}
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
