"""The training steps: what gets gradient, what moves, and what the classification loss is made of."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.data.views import Augment
from medkd.losses.self_distillation import dispersion, dispersion_temperatures
from medkd.models.fusion import ConcatFusion
from medkd.models.momentum import MoCo
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.training.distillation import GMCD_TERMS, DistillationStep
from medkd.training.inputs import ImageModality, VectorModality
from medkd.training.self_distillation import HybridStudent, SelfDistillationStep
from medkd.training.teacher import TeacherStep

CPU = torch.device("cpu")
N, SIZE, DIM, CLASSES = 24, 8, 6, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    images = ImageModality(rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8), Augment(), CPU)
    vectors = VectorModality(rng.normal(size=(N, 5)).astype(np.float32), np.arange(N), CPU)
    labels = torch.arange(N) % CLASSES
    return [images, vectors], labels


def image_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM), nn.ReLU())


def network():
    torch.manual_seed(0)
    second = nn.Sequential(nn.Linear(5, DIM), nn.ReLU())
    return MultimodalTeacher(image_encoder(), second, ConcatFusion(DIM, DIM, DIM), DIM, CLASSES)


def teacher_step(data, **changes):
    options = {"momentum": 0.99, "low_rank_weight": 0.1, "shrinkage": "weighted", "mean_teacher": 1.0, "l1": 1e-3}
    step = TeacherStep(network(), *data, torch.arange(N), **(options | changes), device=CPU, precision="float32")
    step.start(torch.Generator().manual_seed(0))
    return step


def student_step(data, method, **changes):
    torch.manual_seed(1)
    student = SingleModalityNet(image_encoder(), DIM, CLASSES)
    options = {
        "temperature": 1.0,
        "kd_weight": 1.0,
        "contrast_weight": 0.02,
        "n_positives": 4,
        "n_selected": 3,
        "n_negatives": 8,
        "selection": "hard",
        "modulation_threshold": 0.1,
        "modulation_momentum": 0.5,
        "momentum": 0.99,
    }
    rows = torch.arange(N)
    step = DistillationStep(
        student,
        network() if method != "ce" else None,
        *data,
        rows,
        rows,
        method=method,
        **(options | changes),
        generator=torch.Generator().manual_seed(0),
        device=CPU,
        precision="float32",
    )
    step.start(torch.Generator().manual_seed(0))
    return step


def test_teacher_loss_is_the_sum_of_its_terms_and_each_can_be_left_out(data):
    loss, terms = teacher_step(data).loss(torch.arange(8), 0.0)
    assert set(terms) == {"nll", "mean_teacher", "l1", "low_rank"}
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))
    _, bare = teacher_step(data, low_rank_weight=0.0, mean_teacher=0.0, l1=0.0).loss(torch.arange(8), 0.0)
    assert set(bare) == {"nll"}


def test_low_rank_term_gives_the_fusion_no_gradient(data):
    """Specification 3.4: only the branches' own views carry gradient."""
    step = teacher_step(data)
    step.low_rank.mu.fill_(1.0)
    _, terms = step.loss(torch.arange(12), 0.0)
    terms["low_rank"].backward()
    assert all(p.grad is None or not p.grad.any() for p in step.teacher.fusion.parameters())
    assert any(p.grad.any() for p in step.teacher.main.encoder.parameters())
    assert any(p.grad.any() for p in step.teacher.second.encoder.parameters())


def test_momentum_copy_is_a_copy_after_the_first_step_and_lags_after_the_second(data):
    step = teacher_step(data)
    weight, copied = step.teacher.classifier.weight, step.copy.module.classifier.weight
    with torch.no_grad():
        weight.add_(1.0)
    step.after_step()
    assert torch.equal(weight, copied)
    with torch.no_grad():
        weight.add_(1.0)
    step.after_step()  # momentum 1 - 1 / 2
    torch.testing.assert_close(copied, weight - 0.5)


def test_distillation_leaves_the_fixed_teacher_untouched(data):
    step = student_step(data, "gmcd")
    before = {name: tensor.clone() for name, tensor in step.teacher.state_dict().items()}
    step.modules.train()
    loss, _ = step.loss(torch.arange(8), 0.0)
    loss.backward()
    step.after_step()
    assert not step.teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_gmcd_loss_is_cross_entropy_plus_weighted_terms(data):
    step = student_step(data, "gmcd")
    loss, terms = step.loss(torch.arange(8), 0.0)
    weighted = sum(terms[f"weight_{name}"].item() * terms[name].item() for name in GMCD_TERMS)
    assert loss.item() == pytest.approx(float(terms["ce"]) + weighted, rel=1e-5)


def test_kd_adds_one_term_and_ce_none(data):
    assert set(student_step(data, "ce").loss(torch.arange(8), 0.0)[1]) == {"ce"}
    assert set(student_step(data, "kd").loss(torch.arange(8), 0.0)[1]) == {"ce", "kd_teacher"}


def hybrid_step(data, **changes):
    images, _ = data[0]
    torch.manual_seed(2)
    moco = MoCo(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM)), queue_size=10, dim=DIM)
    student = HybridStudent(moco, DIM, CLASSES, torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0)), dim=1)
    options = {"hard": True, "mix": 0.7, "dic_gamma": 0.0, "dic_every": 1}
    step = SelfDistillationStep(
        student, images, soft, torch.arange(N), **(options | changes), device=CPU, precision="float32"
    )
    step.start(torch.Generator().manual_seed(0))
    return step, soft


def test_a_student_that_starts_undecided_pays_the_log_of_the_number_of_classes(data):
    step, _ = hybrid_step(data)
    with torch.no_grad():
        step.student.classifier.weight.zero_()
    _, terms = step.loss(torch.arange(8), 0.0)
    assert float(terms["classification"]) == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_hard_and_soft_targets_differ_and_the_target_drifts_with_progress(data):
    hard, _ = hybrid_step(data)
    soft, labels = hybrid_step(data, hard=False)
    assert torch.equal(hard.target, F.one_hot(labels.argmax(dim=1), CLASSES).float())
    assert torch.equal(soft.target, labels)
    early = hybrid_step(data)[0].loss(torch.arange(8), 0.0)[1]["classification"]
    late = hybrid_step(data)[0].loss(torch.arange(8), 0.9)[1]["classification"]
    assert float(early) != pytest.approx(float(late), abs=1e-6)


def test_temperatures_follow_the_dispersion_of_the_training_features(data):
    step, soft = hybrid_step(data, dic_gamma=0.5)
    assert step.student.temperatures.tolist() == [1, 1, 1]
    logged = step.validate()
    from medkd.evaluation.predict import encode

    features = encode(step.student.moco.query_encoder, step.images, torch.arange(N), device=CPU, precision="float32")
    expected = dispersion_temperatures(dispersion(torch.from_numpy(features), soft.argmax(dim=1), CLASSES), gamma=0.5)
    torch.testing.assert_close(step.student.temperatures, expected.float())
    assert logged == {f"temperature_{i}": pytest.approx(float(t)) for i, t in enumerate(expected)}
