"""The tap finds the last feature maps of any convolutional encoder and nothing else."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from medkd.errors import ParameterError
from medkd.models.encoders import build_feature_encoder, build_image_encoder, build_vector_encoder
from medkd.models.maps import MapTap

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def test_maps_of_resnet12_are_those_of_its_last_stage_before_pooling():
    encoder = build_image_encoder("resnet12", dim=5, width=0.125).eval()
    tap = MapTap(encoder, torch.rand(1, 3, 32, 32))
    assert tap.last is None
    images = torch.rand(3, 3, 32, 32)
    features = encoder(images)
    assert tap.last.shape == (3, 80, 2, 2)
    torch.testing.assert_close(tap.last, encoder.feature_maps(images)[-1])
    torch.testing.assert_close(encoder.head(tap.last.mean((2, 3))), features)


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet18", 64, "1.layer4"),
        ("vgg11", 64, "1.features"),  # the 7 x 7 maps that its pooling makes of them are none
        ("conv4", 64, "1.blocks.14"),  # its last pooling leaves one pixel
        pytest.param("tf_efficientnet_lite0", 64, "1.bn2", marks=needs_timm),
    ],
)
def test_the_tapped_layer_is_the_last_with_more_than_one_pixel(name, size, layer):
    encoder = build_feature_encoder(name, dim=5)
    tap = MapTap(encoder, torch.rand(1, 3, size, size))
    assert tap.module is encoder.get_submodule(layer)
    encoder(torch.rand(2, 3, size, size))
    assert tap.last.shape[0] == 2 and tap.last.shape[2] > 1


def test_looking_for_the_layer_changes_no_buffer_no_mode_and_no_random_number():
    encoder = build_image_encoder("resnet12", dim=5, width=0.125)
    encoder.stages[0].eval()
    state = copy.deepcopy(encoder.state_dict())
    modes = [module.training for module in encoder.modules()]
    before = torch.get_rng_state()
    MapTap(encoder, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [module.training for module in encoder.modules()]
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in state.items())


def test_gradient_of_a_loss_on_the_maps_reaches_the_encoder_but_not_its_head():
    encoder = build_image_encoder("resnet12", dim=5, width=0.125)
    tap = MapTap(encoder, torch.rand(1, 3, 32, 32))
    encoder(torch.rand(2, 3, 32, 32))
    tap.last.square().mean().backward()
    assert encoder.stages[0].shortcut[0].weight.grad.abs().sum() > 0
    assert encoder.head.weight.grad is None


def test_a_copy_of_the_encoder_does_not_write_into_the_tap():
    encoder = build_image_encoder("conv4", dim=5, width=0.25)
    tap = MapTap(encoder, torch.rand(1, 3, 128, 128))
    encoder(torch.rand(2, 3, 128, 128))
    kept = tap.last
    copy.deepcopy(encoder)(torch.rand(4, 3, 128, 128))
    assert tap.last is kept


def test_a_closed_tap_hears_nothing():
    encoder = build_image_encoder("conv4", dim=5, width=0.25)
    tap = MapTap(encoder, torch.rand(1, 3, 128, 128))
    tap.close()
    encoder(torch.rand(2, 3, 128, 128))
    assert tap.last is None


@pytest.mark.parametrize(
    ("encoder", "example"),
    [
        (build_vector_encoder(6), torch.rand(2, 6)),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), torch.rand(2, 3, 8, 8)),
    ],
    ids=["vector", "one pixel"],
)
def test_encoder_without_maps_is_refused(encoder, example):
    with pytest.raises(ParameterError, match="larger image_size"):
        MapTap(encoder, example)


def test_transformer_is_refused():
    with torch.device("meta"):
        encoder = build_image_encoder("vit_b_16", dim=5)
    with pytest.raises(ParameterError, match="transformer"):
        MapTap(encoder, torch.zeros(1, 3, 224, 224, device="meta"))
