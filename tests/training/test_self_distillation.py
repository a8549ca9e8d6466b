"""The step of hybrid self-distillation: its losses, its variants, and that a killed run ends like a whole one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.data.views import HYBRID
from medkd.errors import MedkdError
from medkd.evaluation.predict import encode
from medkd.losses.self_distillation import dispersion, dispersion_temperatures
from medkd.models.momentum import MoCo
from medkd.models.resnet12 import ResNet12
from medkd.training.inputs import ImageModality
from medkd.training.loop import cosine_decay, fit
from medkd.training.self_distillation import HybridStudent, SelfDistillationStep

CPU = torch.device("cpu")
N, SIZE, DIM, CLASSES = 24, 16, 6, 3
ROWS = torch.arange(8)


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageModality(pixels, HYBRID, CPU)


@pytest.fixture
def soft():
    return torch.softmax(torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def make(images, soft):
    """A function: changed settings -> a step with a linear encoder."""

    def step(**changes):
        torch.manual_seed(2)
        moco = MoCo(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM)), queue_size=10, dim=DIM)
        student = HybridStudent(moco, DIM, CLASSES, torch.Generator().manual_seed(0))
        made = SelfDistillationStep(
            student, images, soft, torch.arange(N), **({"dic_every": 1} | changes), device=CPU, precision="float32"
        )
        made.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
        return made

    return step


def undecided(step):
    """The same step with a classifier that gives every class the same score."""
    with torch.no_grad():
        step.student.classifier.weight.zero_()
    return step


def test_a_student_that_starts_undecided_pays_the_log_of_the_number_of_classes(make):
    _, terms = undecided(make()).loss(ROWS, 0.0)
    assert terms["classification"].item() == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_in_the_released_form_it_pays_what_two_softmaxes_leave(make):
    """Specification 5.2: 0.1207 at a uniform prediction, T = 2."""
    _, terms = undecided(make(form="released")).loss(ROWS, 0.0)
    assert terms["classification"].item() == pytest.approx(0.1207, abs=5e-5)


def test_loss_is_contrast_plus_weighted_classification(make):
    loss, terms = make(weight=0.25).loss(ROWS, 0.0)
    assert loss.item() == pytest.approx(terms["contrast"].item() + 0.25 * terms["classification"].item(), rel=1e-6)


def test_both_losses_share_one_forward_pass_of_the_query_encoder(make):
    step, calls = make(), []
    step.student.moco.query_encoder.register_forward_hook(lambda *_: calls.append(1))
    step.loss(ROWS, 0.0)
    assert len(calls) == 1


@pytest.mark.parametrize("labels", ["soft", "hard", "adaptive_soft", "adaptive_hard"])
def test_the_label_type_decides_target_and_drift(make, soft, labels):
    step = make(labels=labels)
    expected = F.one_hot(soft.argmax(dim=1), CLASSES).float() if labels.endswith("hard") else soft
    assert torch.equal(step.target, expected)
    early, late = (make(labels=labels).loss(ROWS, p)[1]["classification"].item() for p in (0.0, 0.9))
    assert (early == late) == (not labels.startswith("adaptive"))


def test_share_of_the_own_prediction_grows_linearly_from_nothing(make):
    """Equation 5: alpha_t = alpha_T t / T, so 0 in the first epoch and alpha_T (T - 1) / T in the last."""
    hard, adaptive = make(labels="hard"), make(labels="adaptive_hard", mix=0.7)
    assert adaptive.loss(ROWS, 0.0)[1]["classification"] == hard.loss(ROWS, 0.0)[1]["classification"]
    step = make(mix=0.7)
    views = step.images.augment(step.images.raw(ROWS), torch.Generator().manual_seed(0))
    logits = step.student.classifier(step.student.moco.query_encoder(views))
    alpha = 0.7 * 199 / 200
    target = (1 - alpha) * step.target[ROWS] + alpha * logits.softmax(dim=1)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert step.loss(ROWS, 199 / 200)[1]["classification"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_contrast_key_encoder_and_queue_stay_as_they_are(make):
    step = make(contrast=False)
    before = {name: value.clone() for name, value in step.student.moco.state_dict().items()}
    loss, terms = step.loss(ROWS, 0.0)
    assert "contrast" not in terms and loss.item() == terms["classification"].item()
    assert all(torch.equal(before[name], value) for name, value in step.student.moco.state_dict().items())


def test_with_teacher_features_the_l1_distance_takes_the_place_of_the_labels(make):
    teacher = torch.zeros(N, DIM)
    loss, terms = make(teacher_features=teacher).loss(ROWS, 0.0)
    assert "classification" not in terms
    assert loss.item() == pytest.approx(terms["contrast"].item() + terms["feature_l1"].item(), rel=1e-6)
    step = make(teacher_features=teacher)
    views = step.images.augment(step.images.raw(ROWS), torch.Generator().manual_seed(0))
    expected = step.student.moco.query_encoder(views).abs().mean()
    assert terms["feature_l1"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(MedkdError, match=r"one shape \(n, d\); got \(8, 6\) and \(8, 5\)"):
        make(teacher_features=torch.zeros(N, 5)).loss(ROWS, 0.0)


@pytest.mark.parametrize("kind", ["feature_var", "norm_var"])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_temperatures_follow_the_dispersion_of_the_training_features(make, soft, kind, form):
    step = make(imbalance="dic", gamma=0.5, dispersion_kind=kind, temperature_form=form)
    assert step.student.temperatures.tolist() == [1, 1, 1]
    logged = step.validate()
    features = encode(step.student.moco.query_encoder, step.images, torch.arange(N), device=CPU, precision="float32")
    spread = dispersion(torch.from_numpy(features), soft.argmax(dim=1), CLASSES, kind=kind)
    expected = dispersion_temperatures(spread, gamma=0.5, form=form)
    torch.testing.assert_close(step.student.temperatures, expected.float())
    assert logged == {f"temperature_{i}": pytest.approx(float(t)) for i, t in enumerate(expected)}


def test_dispersion_is_measured_every_n_epochs(make):
    step = make(imbalance="dic", gamma=0.5, dic_every=3)
    seen = [step.validate()["temperature_0"] for _ in range(2)]
    assert seen == [1, 1]
    step.validate()
    assert step.student.temperatures.min() < 1


def test_ddl_takes_counts_of_hard_labels_in_place_of_dispersions_and_keeps_them(make, soft):
    step = make(imbalance="ddl", gamma=0.5)
    counts = torch.bincount(soft.argmax(dim=1), minlength=CLASSES).float()
    expected = dispersion_temperatures(counts, gamma=0.5)
    torch.testing.assert_close(step.student.temperatures, expected)
    step.validate()
    torch.testing.assert_close(step.student.temperatures, expected)


def test_temperatures_divide_the_logits_in_training_only(make):
    plain, corrected = make(), make(imbalance="ddl", gamma=0.9)
    assert plain.loss(ROWS, 0.0)[1]["classification"] != corrected.loss(ROWS, 0.0)[1]["classification"]
    assert "temperatures" not in dict(corrected.student.classifier.named_buffers())


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop catches it."""


def hybrid_resnet(images, soft, imbalance="dic"):
    torch.manual_seed(3)
    moco = MoCo(ResNet12(dim=DIM, width=0.0625, bn_splits=2), queue_size=10, dim=DIM, momentum=0.9)
    student = HybridStudent(moco, DIM, CLASSES, torch.Generator().manual_seed(0))
    rows = torch.arange(N)
    options = {"imbalance": imbalance, "gamma": 0.5, "dic_every": 1, "device": CPU, "precision": "float32"}
    return SelfDistillationStep(student, images, soft, rows, **options)


def trained(step, folder, kill_at=None):
    """Four epochs of three steps; `kill_at` raises in that step."""
    folder.mkdir(exist_ok=True)
    whole_loss, count = step.loss, iter(range(1000))

    def loss(rows, progress):
        if next(count) == kill_at:
            raise Killed
        return whole_loss(rows, progress)

    step.loss = loss
    optimizer = torch.optim.SGD(step.modules.parameters(), lr=0.05, momentum=0.9)
    options = {"epochs": 4, "batch_size": 8, "schedule": cosine_decay, "seed": 1, "title": "student"}
    return fit(step, torch.arange(N), optimizer, folder=folder, checkpoint_seconds=-1.0, **options)


@pytest.mark.parametrize("kill_at", [0, 2, 4, 9, 11])
def test_a_run_killed_at_any_step_ends_bit_for_bit_like_a_whole_one(images, soft, tmp_path, kill_at):
    """Query and key encoder, queue, dropout, DropBlock's counter, temperatures and momentum all come back."""
    whole, broken, resumed = (hybrid_resnet(images, soft) for _ in range(3))
    history = trained(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(broken, tmp_path / "killed", kill_at)
    again = trained(resumed, tmp_path / "killed")
    assert history.drop(columns="seconds").equals(again.drop(columns="seconds"))
    for name, value in whole.modules.state_dict().items():
        assert torch.equal(value, resumed.modules.state_dict()[name]), name
