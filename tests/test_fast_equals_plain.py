"""Whatever is done faster than in the plain way gives what that gives; and what a step must not do is counted."""

import mmap

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medkd.data import views
from medkd.data.images import FileImages
from medkd.data.views import HYBRID
from medkd.losses import memory
from medkd.losses.memory import ContrastiveDistillation
from medkd.models.fusion import ConcatFusion
from medkd.models.momentum import MoCo
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.training import inputs
from medkd.training.distillation import DistillationStep, Recipe
from medkd.training.inputs import ImageModality, VectorModality
from medkd.training.moco import MocoStep
from medkd.training.tasks import Classification

CPU = torch.device("cpu")
N, SIZE, DIM, CLASSES = 24, 8, 6, 3


def pixels(n, size):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_hue_shift_equals_the_one_with_a_choice_of_the_largest_channel():
    """Ties, grey and saturated pixels among them: 9 levels a channel."""
    levels = torch.linspace(0, 1, 9)
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27).repeat(3, 1, 1, 1)
    turns = torch.tensor([-0.5, 0.0, 0.13])
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = torch.where(value == red, (green - blue) / safe, sixth) + 6 * turns[:, None, None]
    place = (sixth[:, None] + torch.tensor((5.0, 3.0, 1.0))[:, None, None]) % 6
    plain = value[:, None] - chroma[:, None] * place.minimum(4 - place).clamp(0, 1)
    torch.testing.assert_close(views._shift_hue(x, turns), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 7 * DIM * 2, 10**6])
def test_scores_of_gathered_rows_equal_those_of_the_whole_bank_however_they_are_cut(rng, monkeypatch, elements):
    monkeypatch.setattr(memory, "GATHERED_ELEMENTS", elements)
    bank, index = torch.randn(30, DIM, generator=rng), torch.randint(30, (5, 7), generator=rng)
    embedded = torch.randn(5, DIM, generator=rng, requires_grad=True)
    weights = torch.randn(5, 7, generator=rng)
    found = []
    for limit in (10**9, 0):
        monkeypatch.setattr(memory, "DENSE_LIMIT", limit)
        products = memory._products(embedded, bank, index)
        (gradient,) = torch.autograd.grad((products * weights).sum(), embedded)
        found.append((products, gradient, memory._cosines(embedded, bank, index)))
    for dense, gathered in zip(*found, strict=True):
        torch.testing.assert_close(dense, gathered, rtol=1e-5, atol=1e-5)


def test_the_whole_bank_is_scored_while_it_is_small_and_rows_are_gathered_when_it_is_large(rng, monkeypatch):
    gathered = []
    monkeypatch.setattr(memory, "_gathered", lambda *args, **kwargs: gathered.append(args[1].shape[0]) or args[0])
    embedded, index = torch.randn(2, DIM, generator=rng), torch.zeros(2, 3, dtype=torch.long)
    limit = 3 * memory.DENSE_LIMIT
    for n in (limit - 1, limit):
        memory._products(embedded, torch.randn(n, DIM, generator=rng), index)
    assert gathered == [limit]


def test_pixels_are_the_same_after_their_pages_were_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAPPED_BYTES", 10_000)
    monkeypatch.setattr(inputs, "PAGES_AROUND", 0)
    np.save(tmp_path / "images.npy", pixels(200, SIZE))
    images = ImageModality(np.load(tmp_path / "images.npy", mmap_mode="r"), HYBRID, CPU)
    order = torch.randperm(200)
    read = torch.cat([images.raw(rows) for rows in order.split(16)])
    assert torch.equal(read, torch.from_numpy(pixels(200, SIZE))[order])
    assert images._map is not None and images._mapped < 200 * SIZE**2 * 3, "pages were let go on the way"


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system cannot let pages go")
def test_reading_a_large_map_leaves_little_of_it_in_memory(tmp_path):
    psutil = pytest.importorskip("psutil")
    n_bytes = 3 * inputs.MAPPED_BYTES
    path = tmp_path / "images.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n_bytes // (3 * 512**2), 512, 512, 3))
    images = ImageModality(np.load(path, mmap_mode="r"), HYBRID, CPU)
    before = psutil.Process().memory_info().rss
    for rows in torch.randperm(len(images.images)).split(16):
        images.raw(rows)
    assert psutil.Process().memory_info().rss - before < 1.5 * inputs.MAPPED_BYTES


def test_epochs_after_the_first_read_no_file(tmp_path):
    names = [f"{number}.jpg" for number in range(6)]
    for name, image in zip(names, pixels(6, 30), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    images = ImageModality(FileImages(names, root=tmp_path, cache_dir=tmp_path).load(SIZE), HYBRID, CPU)
    first = images.plain(torch.arange(6))
    for name in names:
        (tmp_path / name).unlink()
    assert torch.equal(images.plain(torch.arange(6)), first)


def image_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM), nn.ReLU())


def distillation_step(method, device=CPU, **changes):
    torch.manual_seed(0)
    second = nn.Sequential(nn.Linear(5, DIM), nn.ReLU())
    teacher = MultimodalTeacher(image_encoder(), second, ConcatFusion(DIM, DIM, DIM), DIM, CLASSES).to(device)
    rows, values = np.arange(N), np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    step = DistillationStep(
        SingleModalityNet(image_encoder(), DIM, CLASSES).to(device),
        teacher,
        [ImageModality(pixels(N, SIZE), HYBRID, device), VectorModality(values, rows, device)],
        Classification(rows % CLASSES, CLASSES, rows, balanced=False, device=device),
        torch.arange(N) % CLASSES,
        torch.arange(N),
        torch.arange(N),
        recipe=Recipe(method=method, n_positives=4, n_selected=3, n_negatives=8, **changes),
        generator=torch.Generator().manual_seed(0),
        device=device,
        precision="float32",
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step


@pytest.mark.parametrize("changes", [{}, {"modulation": "none"}])
def test_a_gmcd_step_goes_back_through_the_students_encoder_once(changes):
    step, backward = distillation_step("gmcd", **changes), []
    step.student.encoder[1].weight.register_hook(lambda gradient: backward.append("encoder"))
    loss, _ = step.loss(torch.arange(8), 0.0)
    assert backward == [], "gradient modulation stops at the features"
    loss.backward()
    assert backward == ["encoder"]


def test_a_contrast_draws_the_same_negatives_whichever_way_the_bank_is_scored(monkeypatch):
    losses = []
    for limit in (10**9, 0):
        monkeypatch.setattr(memory, "DENSE_LIMIT", limit)
        step = distillation_step("gmcd")
        for _ in range(3):
            loss, _ = step.loss(torch.arange(8), 0.0)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_memory_of_one_image_more_than_the_limit_still_learns(rng):
    """The gathered way in a real step, with 5 contrasted rows."""
    n = 5 * memory.DENSE_LIMIT + 1
    module = ContrastiveDistillation(n, DIM, DIM, embed_dim=4, generator=rng)
    student = torch.randn(3, DIM, generator=rng, requires_grad=True)
    contrast = torch.randint(n, (3, 5), generator=rng)
    module(student, torch.randn(3, DIM, generator=rng), torch.arange(3), contrast).backward()
    assert student.grad.norm() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["moco", "gmcd"])
def test_a_step_never_waits_for_the_gpu(method):
    device = torch.device("cuda")
    if method == "gmcd":
        step = distillation_step("gmcd", device)
    else:
        moco = MoCo(image_encoder(), queue_size=32, dim=DIM).to(device)
        images = ImageModality(pixels(N, SIZE), HYBRID, device)
        step = MocoStep(
            moco,
            images,
            validate=lambda features: {},
            validation_rows=torch.arange(2),
            device=device,
            precision="float32",
        )
        step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    step.loss(torch.arange(8), 0.0)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.loss(torch.arange(8), 0.0)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
