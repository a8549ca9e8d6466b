"""The contrastive steps: the loss starts and falls as it should, MoCo v2's head, SimCLR, and resuming."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from medkd.data.views import HYBRID
from medkd.models.momentum import MoCo
from medkd.models.resnet12 import ResNet12
from medkd.models.simclr import SimCLR
from medkd.training.inputs import ImageModality
from medkd.training.loop import cosine_decay, fit
from medkd.training.moco import MocoStep

CPU = torch.device("cpu")
SIZE, DIM, QUEUE = 16, 16, 60


def texture_images(n=96):
    """Stripes of three directions with noise, each image of its own colour: uint8 (n, 16, 16, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = [np.sin(x), np.sin(y), np.sin(x + y)]
    pixels = [
        128 + 50 * waves[i % 3][..., None] + rng.uniform(-70, 70, 3) + rng.normal(0, 8, (SIZE, SIZE, 3))
        for i in range(n)
    ]
    return ImageModality(np.clip(pixels, 0, 255).astype(np.uint8), HYBRID, CPU)


def step_of(model, images):
    made = MocoStep(
        model, images, validate=lambda _: {}, validation_rows=torch.arange(4), device=CPU, precision="float32"
    )
    made.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return made


def resnet(seed=0, **changes):
    torch.manual_seed(seed)
    return ResNet12(**({"dim": DIM, "width": 0.125, "bn_splits": 4} | changes))


def losses(step, images, n_steps, lr=0.03):
    optimizer = torch.optim.SGD([p for p in step.modules.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    generator, found = torch.Generator().manual_seed(1), []
    step.modules.train()
    for _ in range(n_steps):
        loss, _ = step.loss(torch.randperm(len(images.images), generator=generator)[:16], 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_moco_loss_starts_low_climbs_while_the_queue_fills_and_falls_afterwards():
    """Specification section 3: equal encoders against a random queue, then real keys, then learning."""
    images = texture_images()
    step = step_of(MoCo(resnet(), queue_size=QUEUE, dim=DIM, momentum=0.9, generator=torch.Generator()), images)
    found = losses(step, images, 90)
    filled = QUEUE // 16 + 1
    peak = max(found[filled - 1 :])
    assert found[0] < 1 < peak
    assert np.mean(found[-10:]) < min(peak, math.log(1 + QUEUE)) - 0.3


def test_simclr_pulls_views_of_an_image_together():
    """A learning canary on vectors: the loss ends far below that of keys that tell nothing, ln(2n - 1)."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    model = SimCLR(encoder, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), temperature=0.2)
    generator, found = torch.Generator().manual_seed(1), []
    vectors = torch.randn(128, 16, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(100):
        rows = torch.randint(128, (16,), generator=generator)
        views = [vectors[rows] + 0.1 * torch.randn(16, 16, generator=generator) for _ in range(2)]
        loss = model(*views, torch.randperm(16, generator=generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert np.mean(found[-10:]) < math.log(31) - 1.5


@pytest.mark.parametrize("kill_at", [1, 5, 10])
def test_a_url_run_killed_at_any_step_ends_bit_for_bit_like_a_whole_one(tmp_path, kill_at):
    images, rows = texture_images(48), torch.arange(48)

    class Killed(BaseException):
        pass

    def trained(folder, kill_at=None):
        folder.mkdir(exist_ok=True)
        encoder = resnet(width=0.0625)  # seeds torch
        head = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 8))
        step = step_of(MoCo(encoder, queue_size=20, dim=8, momentum=0.9, projection_head=head), images)
        loss, count = step.loss, iter(range(1000))

        def counted(rows, progress):
            if next(count) == kill_at:
                raise Killed
            return loss(rows, progress)

        step.loss = counted
        optimizer = torch.optim.SGD([p for p in step.modules.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
        options = {"epochs": 4, "batch_size": 16, "schedule": cosine_decay, "seed": 1, "title": "URL"}
        try:
            history = fit(step, rows, optimizer, folder=folder, checkpoint_seconds=-1.0, **options)
        except Killed:
            return None
        return history, step.modules.state_dict()

    history, state = trained(tmp_path / "whole")
    assert trained(tmp_path / "killed", kill_at) is None
    again, resumed = trained(tmp_path / "killed")
    assert history["loss"].tolist() == again["loss"].tolist()
    assert all(torch.equal(value, resumed[name]) for name, value in state.items())
