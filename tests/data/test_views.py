import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from medkd.data.views import GMCD, HYBRID, MOCO_V2, Augment, ViewDraw, batched_views, draw_crops, plain_view
from medkd.errors import DataError, ParameterError


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def smooth_images(n, size, rng):
    """Random blobs of colour, uint8 (n, size, size, 3), with flat black and white corners where hue is undefined."""
    coarse = torch.rand(n, 3, 6, 6, generator=rng)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    images[:, :, :3, :3], images[:, :, -3:, -3:] = 0.0, 1.0
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def one_by_one(images, draw, radius):
    """The same views through torchvision's functions, an image at a time."""
    size = images.shape[1]
    views = []
    for image, box, flip, factors, order, grey, sigma in zip(images, *draw, strict=True):
        view = image.permute(2, 0, 1).float() / 255
        view = tv.resized_crop(view, *box.int().tolist(), size=[size, size], antialias=False)
        adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for operation in order.tolist():
            view = adjust[operation](view, factors[operation].item())
        if grey:
            view = tv.rgb_to_grayscale(view, num_output_channels=3)
        if sigma > 0:
            view = tv.gaussian_blur(view, [2 * radius + 1] * 2, [sigma.item()] * 2)
        view = tv.vertical_flip(view) if flip[0] else view
        views.append(tv.horizontal_flip(view) if flip[1] else view)
    return torch.stack(views)


@pytest.mark.parametrize("augment", [HYBRID, MOCO_V2, GMCD], ids=["hybrid", "moco_v2", "gmcd"])
def test_views_equal_torchvision_with_the_same_numbers(augment, rng):
    images = smooth_images(48, 40, rng)
    draw = augment.draw(48, 40, rng)
    expected = one_by_one(images, draw, radius=math.ceil(3 * 2.0 * 40 / 224))
    # a twentieth of a grey level: float32 rounding of positions, and of the hue where colours are near grey
    torch.testing.assert_close(augment.apply(images, draw), expected, atol=2e-4, rtol=0)


def test_strong_jitter_clamps_in_the_same_places_as_torchvision(rng):
    augment = Augment(brightness=1, contrast=1, saturation=1, hue=0.5, jitter_p=1, vflip_p=0.5, grayscale_p=0.2)
    images, draw = smooth_images(48, 32, rng), augment.draw(48, 32, rng)
    torch.testing.assert_close(augment.apply(images, draw), one_by_one(images, draw, radius=1), atol=5e-4, rtol=0)


def test_crop_does_not_let_the_surroundings_bleed_in():
    images = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    images[:, 4:8, 2:10] = 100
    no = torch.zeros(1)
    box = torch.tensor([[4.0, 2.0, 4.0, 8.0]])
    draw = ViewDraw(
        box, torch.ones(1, 2).bool(), torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[0, 1, 2]]), no.bool(), no
    )
    torch.testing.assert_close(HYBRID.apply(images, draw), torch.full((1, 3, 16, 16), 100 / 255))


def test_whole_image_without_jitter_is_the_plain_view(rng):
    nothing = Augment((1, 1), (1, 1), jitter_p=0, blur_p=0, hflip_p=0)
    images = smooth_images(3, 24, rng)
    torch.testing.assert_close(nothing(images, rng), plain_view(images), atol=1e-5, rtol=0)


def test_plain_view_scales_and_moves_channels_first():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    view = plain_view(images)
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(view[1, 2], images[1, :, :, 2] / 255)


def test_views_keep_range_type_and_layout(rng):
    views = MOCO_V2(torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8, generator=rng), rng)
    assert views.dtype == torch.float32 and views.shape == (20, 3, 32, 32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= views.min() and views.max() <= 1


def test_same_generator_state_gives_the_same_views_and_the_next_call_others():
    images = smooth_images(8, 32, torch.Generator().manual_seed(1))
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    before = torch.get_rng_state()
    views = HYBRID(images, first)
    assert torch.equal(views, HYBRID(images, second))
    assert not torch.equal(views, HYBRID(images, first))
    assert torch.equal(before, torch.get_rng_state())  # the global state is left alone


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_views_do_not_depend_on_how_many_threads_make_them(threads, rng):
    images, draw = smooth_images(7, 32, rng), MOCO_V2.draw(7, 32, rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = MOCO_V2.apply(images, draw)
        torch.set_num_threads(threads)
        assert torch.equal(MOCO_V2.apply(images, draw), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 2, 3, 33])
@pytest.mark.parametrize("augment", [HYBRID, MOCO_V2, GMCD, Augment(hue=0.5, blur_p=1, blur_sigma=(90, 100))])
def test_views_of_the_cpu_equal_those_of_whole_batches(augment, size, rng):
    """What a GPU runs, run here; also where the blur is wider than the image."""
    images = torch.randint(0, 256, (40, size, size, 3), dtype=torch.uint8, generator=rng)
    images[:8] = images[:8] // 128 * 255  # saturated and colourless pixels, ties of the largest channel
    draw, radius = augment.draw(40, size, rng), min(size - 1, math.ceil(3 * augment.blur_sigma[1] * size / 224))
    batched = batched_views(images, draw, radius)
    assert batched.is_contiguous(memory_format=torch.channels_last)
    # noise is nearly grey here and there, where the hue is a quotient of rounding errors
    torch.testing.assert_close(augment.apply(images, draw), batched, atol=2e-4, rtol=0)


def test_no_images_give_no_views(rng):
    assert MOCO_V2(torch.empty(0, 32, 32, 3, dtype=torch.uint8), rng).shape == (0, 3, 32, 32)


def test_crops_have_the_distribution_of_torchvision(rng):
    boxes = draw_crops(4000, 64, (0.2, 1.0), (3 / 4, 4 / 3), rng)
    image = torch.empty(3, 64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    theirs = torch.tensor(drawn, dtype=torch.float32)
    for quantile in (0.1, 0.5, 0.9):
        # 4,000 draws: a quantile is good to about 0.6 px (sd), both together to 0.9
        torch.testing.assert_close(boxes.quantile(quantile, 0), theirs.quantile(quantile, 0), atol=2.5, rtol=0)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 64).all()
    area = boxes[:, 2] * boxes[:, 3] / 64**2
    assert 0.19 < area.min() and area.mean().item() == pytest.approx(
        theirs[:, 2:].prod(1).mean().item() / 64**2, abs=0.02
    )


def test_crop_falls_back_to_the_whole_image_when_no_try_fits(rng):
    """A crop of the whole area at a ratio far from 1 never fits."""
    boxes = draw_crops(200, 32, (1.0, 1.0), (0.2, 1.0), rng)
    whole = (boxes == torch.tensor([0.0, 0, 32, 32])).all(1)
    assert whole.float().mean() > 0.5
    assert (boxes[:, :2] + boxes[:, 2:] <= 32).all()


def test_probabilities_are_those_asked_for(rng):
    draw = Augment(hflip_p=0.3, vflip_p=0.1, grayscale_p=0.2, blur_p=0.5, jitter_p=0.8).draw(20_000, 224, rng)
    shares = [draw.flip[:, 1], draw.flip[:, 0], draw.grey, draw.sigma > 0, draw.factors[:, 0] != 1]
    # 20,000 draws: standard error at most 0.0036
    assert [share.float().mean().item() for share in shares] == pytest.approx([0.3, 0.1, 0.2, 0.5, 0.8], abs=0.015)
    sigma = draw.sigma[draw.sigma > 0]
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2.0
    factors = draw.factors[draw.factors[:, 0] != 1, :3]
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    first = torch.bincount(draw.order[:, 0]) / 20_000
    assert first.tolist() == pytest.approx([1 / 3] * 3, abs=0.015)


def test_blur_shrinks_with_the_image(rng):
    sigma = Augment(blur_p=1).draw(5000, 56, rng).sigma
    assert 0.025 <= sigma.min() and 0.48 < sigma.max() <= 0.5


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 9, 3, dtype=torch.uint8)],
    ids=["float", "channels_first", "not_square"],
)
def test_refuses_what_is_not_a_stack_of_square_uint8_images(images, rng):
    with pytest.raises(DataError, match="uint8 RGB images"):
        HYBRID(images, rng)


@pytest.mark.parametrize(
    ("name", "value"),
    [("blur_p", 1.2), ("hue", 0.6), ("crop_scale", (0.9, 0.2)), ("crop_ratio", (1.2, 2.0)), ("blur_sigma", (0, 1))],
)
def test_parameter_out_of_range_is_named(name, value):
    with pytest.raises(ParameterError, match=name):
        Augment(**{name: value})
