"""Comparison methods: supervised, distilled and episodic training on common classes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.data.views import HYBRID
from medkd.errors import ParameterError
from medkd.losses.distillation import distillation_loss
from medkd.models.teacher import SingleModalityNet
from medkd.training.episodic import TEMPERATURE, EpisodeStep, LabelledStep
from medkd.training.inputs import ImageModality

CPU = torch.device("cpu")
N, SIZE, DIM = 24, 8, 5
WHERE = {"device": CPU, "precision": "float32"}


@pytest.fixture
def images():
    return ImageModality(np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8), HYBRID, CPU)


def encoder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM))


def network(seed=0):
    return SingleModalityNet(encoder(seed), DIM, 4)


def started(step):
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step


def test_supervised_step_is_cross_entropy_on_the_labels_of_the_rows(images):
    labels, rows = torch.arange(N) % 4, torch.tensor([3, 8, 9])
    step = started(LabelledStep(network(), images, labels, **WHERE))
    loss, logged = step.loss(rows, 0.0)
    logits = step.network(images.augmented(rows, torch.Generator().manual_seed(0))).logits
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels[rows]).item(), rel=1e-6)
    assert float(logged["accuracy"]) == pytest.approx((logits.argmax(1) == labels[rows]).float().mean().item())


def test_distilled_step_is_the_mean_of_labels_and_teacher_and_trains_the_student_only(images):
    labels, rows, teacher = torch.arange(N) % 4, torch.arange(6), network(1)
    step = started(LabelledStep(network(), images, labels, teacher=teacher, **WHERE))
    loss, logged = step.loss(rows, 0.0)
    views = images.augmented(rows, torch.Generator().manual_seed(0))
    ours, theirs = step.network(views).logits, teacher(views).logits
    kd = distillation_loss(ours, theirs, temperature=TEMPERATURE)
    assert loss.item() == pytest.approx((F.cross_entropy(ours, labels[rows]) + kd).item() / 2, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in name for name in step.modules.state_dict())


def test_episode_compares_query_images_with_the_means_of_their_classes(images):
    rows = [np.arange(0, 12), np.arange(12, 24)]
    step = started(EpisodeStep(encoder(), images, rows, k_shot=2, batch_size=10, **WHERE))
    loss, _ = step.loss(torch.arange(10), 0.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.from_numpy(own)[torch.randperm(12, generator=generator)[:5]] for own in rows]
    features = step.encoder(images.augmented(torch.cat(drawn), generator))
    prototypes = [features[:2].mean(0), features[5:7].mean(0)]
    total = 0.0
    for place, label in [(2, 0), (3, 0), (4, 0), (7, 1), (8, 1), (9, 1)]:
        scores = torch.stack([-(features[place] - p).pow(2).mean() for p in prototypes])
        total -= scores.log_softmax(0)[label].item()
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("changes", [{"batch_size": 4}, {"k_shot": 30, "batch_size": 80}])
def test_episode_without_room_for_a_query_image_is_refused(images, changes):
    options = {"k_shot": 2, "batch_size": 8} | changes
    with pytest.raises(ParameterError, match="change batch_size or episode_shots"):
        EpisodeStep(encoder(), images, [np.arange(12), np.arange(12, 24)], **options, **WHERE)
