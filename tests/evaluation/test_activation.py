"""Grad-CAM equals its closed form, and explaining a network changes nothing in it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medkd.errors import ParameterError
from medkd.evaluation.activation import grad_cam
from medkd.models.encoders import build_feature_encoder, build_vector_encoder
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet

ROWS, CLASSES = torch.tensor([4, 0, 2]), torch.tensor([1, 0, 2])


class Tensors:
    """A modality whose rows are those of a tensor."""

    def __init__(self, values):
        self.values = values

    def plain(self, rows):
        return self.values[rows]


class Sum(nn.Module):
    """A fusion that is linear in both branches."""

    def forward(self, main, second):
        return main + 2 * second


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def images():
    return Tensors(torch.randn(6, 3, 12, 16))


def conv_encoder():
    """Maps, then global average pooling: CAM is defined for what a linear classifier makes of it."""
    maps = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten())


WEIGHTS = torch.tensor([[2.0, -1, 0.5, -0.5], [-1, 2, -0.5, 1], [0.5, -1, 2, -1]])


def weighted(network):
    """The network in eval mode with classes that each some maps raise and others lower."""
    with torch.no_grad():
        network.classifier.weight.copy_(WEIGHTS)
    return network.eval()


def cam(weights, maps, size):
    """Zhou et al. 2016 without the negative part, resized and scaled: `weights` (n, k), `maps` (n, k, h, w)."""
    found = F.relu(torch.einsum("nk,nkhw->nhw", weights, maps))[:, None]
    found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)[:, 0]
    return (found / found.amax((1, 2), keepdim=True).clamp_min(1e-30)).detach().numpy()


def test_of_pooled_maps_under_a_linear_classifier_it_is_the_cam(images):
    network = weighted(SingleModalityNet(conv_encoder(), 4, 3))
    found = grad_cam(network, [images], 0, ROWS, CLASSES)
    expected = cam(WEIGHTS[CLASSES], network.encoder[0](images.values[ROWS]), (12, 16))
    assert found.shape == (3, 12, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.min() == 0 and (found.max(axis=(1, 2)) == 1).all()


@pytest.mark.parametrize("slot", [0, 1])
def test_of_the_teacher_it_explains_the_fused_score_on_the_modality_asked_for(images, slot):
    network = weighted(MultimodalTeacher(conv_encoder(), conv_encoder(), Sum(), 4, 3))
    inputs = [images, Tensors(torch.randn(6, 3, 9, 9))]
    found = grad_cam(network, inputs, slot, ROWS, CLASSES, head="logits_fused")
    encoder = (network.main, network.second)[slot].encoder
    shown = inputs[slot].values[ROWS]
    expected = cam(WEIGHTS[CLASSES], encoder[0](shown), shown.shape[2:])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_second_modality_may_be_a_vector(images):
    network = MultimodalTeacher(conv_encoder(), build_vector_encoder(7, dim=4), Sum(), 4, 3)
    inputs = [images, Tensors(torch.rand(6, 7))]
    assert grad_cam(network, inputs, 0, ROWS, CLASSES, head="logits_fused").shape == (3, 12, 16)
    with pytest.raises(ParameterError, match="no feature maps"):
        grad_cam(network, inputs, 1, ROWS, CLASSES, head="logits_fused")


def test_the_size_of_a_batch_does_not_change_it_and_the_class_does(images):
    network = weighted(SingleModalityNet(conv_encoder(), 4, 3))
    together = grad_cam(network, [images], 0, ROWS, CLASSES)
    np.testing.assert_allclose(grad_cam(network, [images], 0, ROWS, CLASSES, batch_size=2), together, atol=1e-5)
    others = grad_cam(network, [images], 0, ROWS, (CLASSES + 1) % 3)
    assert np.abs(others - together).max(axis=(1, 2)).min() > 0.1


def test_of_a_resnet12_the_last_stage_is_explained():
    network = weighted(SingleModalityNet(build_feature_encoder("resnet12", dim=4, width=0.125), 4, 3))
    images = Tensors(torch.rand(6, 3, 32, 32))
    maps = network.encoder[1].feature_maps(network.encoder[0](images.values[ROWS]))[-1].detach().requires_grad_()
    scores = network.classifier(network.encoder[1].head(maps.mean((2, 3))))
    (slopes,) = torch.autograd.grad(scores.gather(1, CLASSES[:, None]).sum(), maps)
    expected = cam(slopes.mean((2, 3)), maps, (32, 32))
    np.testing.assert_allclose(grad_cam(network, [images], 0, ROWS, CLASSES), expected, atol=1e-3)


def test_weights_gradients_buffers_modes_and_hooks_stay_as_they_were(images):
    network = SingleModalityNet(conv_encoder(), 4, 3)
    network.encoder[0][1].eval()
    network.classifier.requires_grad_(False)
    network.encoder[0][0].weight.grad = torch.ones_like(network.encoder[0][0].weight)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    grad_cam(network, [images], 0, ROWS, CLASSES)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert list(gradients) == ["encoder.0.0.weight"] and (gradients["encoder.0.0.weight"] == 1).all()
    assert not any(module._forward_hooks for module in network.modules())
    assert not network.classifier.weight.requires_grad and not images.values.requires_grad


def test_a_network_without_trainable_weights_is_explained_even_where_gradients_are_off(images):
    network = weighted(SingleModalityNet(conv_encoder(), 4, 3))
    expected = grad_cam(network, [images], 0, ROWS, CLASSES)
    network.requires_grad_(False)
    with torch.no_grad():
        np.testing.assert_array_equal(grad_cam(network, [images], 0, ROWS, CLASSES), expected)


def test_where_nothing_raises_the_score_the_map_is_zero(images):
    network = SingleModalityNet(conv_encoder(), 4, 3)
    with torch.no_grad():
        network.classifier.weight[1] = -1.0
    found = grad_cam(network, [images], 0, ROWS, torch.tensor([1, 1, 1]))
    assert (found == 0).all()


def test_as_many_classes_as_rows_are_needed(images):
    with pytest.raises(ParameterError, match="2 classes for 3 rows"):
        grad_cam(SingleModalityNet(conv_encoder(), 4, 3), [images], 0, ROWS, CLASSES[:2])
