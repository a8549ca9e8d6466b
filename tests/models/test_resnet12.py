import copy

import pytest
import torch
from torch import nn

from medkd.errors import ParameterError
from medkd.models.resnet12 import Conv4, DropBlock, GhostBatchNorm2d, ResNet12


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_full_width_has_the_published_number_of_parameters():
    model = ResNet12(dim=128)
    assert count(model) == 12_506_368
    assert count(model) - count(model.head) == 12_424_320


def test_stage_shapes_are_the_published_ones():
    with torch.device("meta"):  # shapes only
        maps = ResNet12().eval().feature_maps(torch.empty(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 112, 112), (160, 56, 56), (320, 28, 28), (640, 14, 14)]


def test_width_scales_every_stage():
    maps = ResNet12(width=0.125).eval().feature_maps(noise(1, 3, 80, 80))
    assert [x.shape[1] for x in maps] == [8, 20, 40, 80]


def test_forward_equals_the_network_written_out_in_its_published_order():
    """Activation before pooling, as published; the module pools first, which must not change a value."""
    model = ResNet12(width=0.125, dim=6).eval()
    x = images = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(1))
    for stage in model.stages:
        convs = stage.convolutions
        y = nn.functional.leaky_relu(convs[0](x), 0.1)
        y = nn.functional.leaky_relu(convs[2](y), 0.1)
        x = nn.functional.max_pool2d(nn.functional.leaky_relu(convs[4](y) + stage.shortcut(x), 0.1), 2)
    torch.testing.assert_close(model(images), model.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


def test_convolutions_start_with_gain_sqrt_2_over_fan_out():
    weight = ResNet12(width=0.5).stages[3].convolutions[0][0].weight  # 160 -> 320 channels
    assert weight.std().item() == pytest.approx((2 / (320 * 9)) ** 0.5, rel=0.01)  # 460,800 draws
    assert all(module.bias is None for module in ResNet12(width=0.1).modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_small_images_work_in_training_and_evaluation(size):
    model = ResNet12(width=0.125, dim=4)
    assert model(torch.rand(4, 3, size, size)).isfinite().all()
    assert model.eval()(torch.rand(1, 3, size, size)).shape == (1, 4)


def test_images_below_the_smallest_size_are_refused():
    with pytest.raises(ParameterError, match="set image_size to 16"):
        ResNet12(width=0.1)(torch.rand(1, 3, 15, 20))


@pytest.mark.parametrize("argument", [{"width": 0.0}, {"bn_splits": 0}])
def test_impossible_settings_are_named(argument):
    with pytest.raises(ParameterError, match=next(iter(argument))):
        ResNet12(**argument)


@pytest.mark.parametrize(("size", "gamma"), [(28, 0.00544), (14, 0.00784)])
def test_dropblock_reaches_the_published_rates_after_forty_thousand_steps(size, gamma):
    block = DropBlock(0.1, 5)
    for steps, share in ((0, 0.0), (10_000, 0.25), (40_000, 1.0), (90_000, 1.0)):
        block.steps.fill_(steps)
        expected = share * 0.1 / 25 * size**2 / (size - 4) ** 2
        assert block.seed_rate(size, size).item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(gamma, abs=5e-6)


def test_dropblock_drops_whole_squares_inside_the_map_and_keeps_the_mean():
    block = DropBlock(0.1, 5)
    block.steps.fill_(40_000)
    dropped = block(torch.ones(8, 32, 14, 14))
    assert dropped.mean().item() == pytest.approx(1.0, abs=1e-5)
    holes = (dropped == 0).float()
    assert 0 < holes.mean() < 1
    # every hole is covered by 5x5 squares of holes that lie inside the map: opening changes nothing
    whole = 1 - nn.functional.max_pool2d(1 - holes, 5, stride=1)
    covered = nn.functional.max_pool2d(nn.functional.pad(whole, (4, 4, 4, 4)), 5, stride=1)
    assert torch.equal(covered, holes)


def test_dropblock_drops_about_the_rate_that_its_squares_imply():
    """A corner lies in one square, the middle of a 14 px map in 25: 1 - (1 - gamma)^squares."""
    block = DropBlock(0.1, 5)
    block.steps.fill_(40_000)
    holes = (block(torch.ones(64, 64, 14, 14)) == 0).float().mean((0, 1))
    gamma = block.seed_rate(14, 14).item()
    assert holes[0, 0].item() == pytest.approx(gamma, abs=0.006)  # 4,096 draws: standard error 0.0014
    assert holes[6, 6].item() == pytest.approx(1 - (1 - gamma) ** 25, abs=0.025)  # standard error 0.006


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_dropblock_shrinks_to_maps_smaller_than_its_square(size):
    block = DropBlock(0.1, 5)
    block.steps.fill_(40_000)
    assert block.seed_rate(size, size).item() == pytest.approx(0.1)
    maps = block(torch.ones(32, 64, size, size))
    assert maps.isfinite().all()
    assert (maps == 0).float().mean().item() == pytest.approx(0.1, abs=0.035)  # 2,048 maps: standard error 0.0066


def test_dropblock_counter_moves_in_training_only_and_is_saved():
    model = ResNet12(width=0.125)
    images = torch.rand(2, 3, 32, 32)
    model(images)
    model(images)
    model.eval()
    before = model(images)
    assert torch.equal(model(images), before)
    restored = ResNet12(width=0.125)
    restored.load_state_dict(model.state_dict())
    assert [stage.drop.steps.item() for stage in list(restored.stages)[2:]] == [2, 2]


def test_dropout_is_off_at_rate_zero_and_changes_a_training_pass_otherwise():
    images = torch.rand(4, 3, 32, 32)
    for rate, same in ((0.0, True), (0.3, False)):
        model = ResNet12(width=0.125, drop_rate=rate)
        assert torch.equal(model(images), model(images)) is same


def test_ghost_batch_norm_equals_a_separate_pass_per_part():
    """Four parts of 3 images against four plain batch norms, output, gradient and running statistics."""
    ghost, plain = GhostBatchNorm2d(5, splits=4), [nn.BatchNorm2d(5) for _ in range(4)]
    x = noise(12, 5, 6, 6) * 3 + 1
    ghost_in, plain_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.cat([norm(part) for norm, part in zip(plain, plain_in.split(3), strict=True)])
    out = ghost(ghost_in)
    torch.testing.assert_close(out, expected)
    weight = noise(12, 5, 6, 6, seed=1)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ghost_in.grad, plain_in.grad)
    torch.testing.assert_close(ghost.running_mean, torch.stack([norm.running_mean for norm in plain]).mean(0))
    torch.testing.assert_close(ghost.running_var, torch.stack([norm.running_var for norm in plain]).mean(0))
    assert ghost.num_batches_tracked == 1


def test_ghost_batch_norm_cuts_uneven_batches_into_parts_of_the_rounded_up_size():
    ghost, x = GhostBatchNorm2d(2, splits=3), noise(7, 2, 4, 4)
    expected = torch.cat([nn.BatchNorm2d(2)(part) for part in (x[:3], x[3:6], x[6:])])
    torch.testing.assert_close(ghost(x), expected)


def test_ghost_batch_norm_is_plain_in_evaluation_and_with_one_part():
    ghost, plain = GhostBatchNorm2d(3, splits=2), nn.BatchNorm2d(3)
    x = noise(8, 3, 4, 4) + 2
    ghost(x)
    plain.load_state_dict(ghost.state_dict())
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x))
    torch.testing.assert_close(GhostBatchNorm2d(3, splits=1)(x), nn.BatchNorm2d(3)(x))


def test_network_with_parts_equals_one_pass_per_part():
    model = ResNet12(width=0.125, dim=4, drop_rate=0.0, bn_splits=4)
    images = torch.rand(8, 3, 32, 32)
    single = copy.deepcopy(model)
    for module in single.modules():
        if isinstance(module, GhostBatchNorm2d):
            module.splits = 1
    expected = torch.cat([single(part) for part in images.split(2)])
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


def test_conv4_halves_a_224_px_image_to_one_pixel_as_published():
    sizes, x = [], torch.rand(1, 3, 224, 224)
    model = Conv4(dim=64).eval()
    for layer in model.blocks:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sizes.append(x.shape[2])
    assert sizes == [113, 56, 29, 14, 8, 4, 3, 1]
    assert x.shape[1] == 64


@pytest.mark.parametrize("size", [1, 16, 50])
def test_conv4_takes_any_image_size(size):
    assert Conv4(dim=64, width=0.25).eval()(torch.rand(2, 3, size, size)).shape == (2, 64)
