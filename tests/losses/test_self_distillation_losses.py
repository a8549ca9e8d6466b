import math

import pytest
import torch
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses.self_distillation import (
    adaptive_target,
    dispersion,
    dispersion_temperatures,
    feature_loss,
    pseudo_label_loss,
    released_pseudo_label_loss,
)

UNIFORM = torch.zeros(1, 3, dtype=torch.float64)
FIRST = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_target_moves_from_the_pseudo_label_to_the_prediction():
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]], dtype=torch.float64)  # p = (1/2, 1/4, 1/4)
    assert adaptive_target(FIRST, logits, 0.0).tolist() == FIRST.tolist()
    assert adaptive_target(FIRST, logits, 0.4)[0].tolist() == pytest.approx([0.8, 0.1, 0.1])
    assert adaptive_target(FIRST, logits, 1.0)[0].tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_hard_label_without_mixing_is_plain_cross_entropy():
    logits, labels = draw(8, 4), torch.arange(8) % 4
    found = pseudo_label_loss(logits, F.one_hot(labels, 4).double())
    assert found.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)


def test_gradient_is_prediction_minus_target_with_the_target_held_fixed():
    logits = draw(6, 3).requires_grad_()
    target = draw(6, 3, seed=1).softmax(dim=1)
    pseudo_label_loss(logits, target, mix=0.3).backward()
    p = logits.detach().softmax(dim=1)
    torch.testing.assert_close(logits.grad, (p - 0.7 * target - 0.3 * p) / 6, rtol=1e-10, atol=1e-12)


def test_temperatures_divide_the_logits_of_their_class():
    logits, target = draw(5, 3), draw(5, 3, seed=1).softmax(dim=1)
    tau = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    found = pseudo_label_loss(logits, target, temperatures=tau)
    by_hand = -sum((target[i] * torch.log_softmax(logits[i] / tau, 0)).sum() for i in range(5)) / 5
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert pseudo_label_loss(logits, target, temperatures=torch.ones(3)) == pseudo_label_loss(logits, target)


def test_released_loss_has_the_values_worked_out_for_uniform_and_worst_predictions():
    """Softmax of a one-hot row at T = 2 is only (.452, .274, .274), so the loss is bounded by 0.356."""
    assert released_pseudo_label_loss(UNIFORM, FIRST, mix=0.0).item() == pytest.approx(0.1207, abs=5e-5)
    worst = torch.tensor([[-50.0, 50.0, -50.0]], dtype=torch.float64)
    assert released_pseudo_label_loss(worst, FIRST, mix=0.0).item() == pytest.approx(0.3556, abs=5e-5)


def test_released_loss_with_correction_is_that_of_the_journals_code():
    """Temperatures divide target and probabilities, the factor is the square of their mean, T = 2 is gone."""
    tau = dispersion_temperatures(torch.tensor([0.3321, 0.3512, 0.3168]), form="released")
    loss = released_pseudo_label_loss(UNIFORM, FIRST, mix=0.0, temperatures=tau)
    assert loss.item() == pytest.approx(0.1233, abs=5e-5)


def test_released_gradient_is_eight_times_weaker_than_cross_entropy_at_a_uniform_prediction():
    logits = UNIFORM.clone().requires_grad_()
    released_pseudo_label_loss(logits, FIRST, mix=0.0).backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.0790, 0.0395, 0.0395], abs=1e-4)
    logits.grad = None
    pseudo_label_loss(logits, FIRST).backward()
    assert logits.grad[0].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


def test_released_loss_passes_gradient_through_its_target():
    """Numerical differentiation moves the target too; a detached target would give 3.5 times as much here."""
    logits = UNIFORM.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: released_pseudo_label_loss(z, FIRST, mix=0.6965), (logits,))


@pytest.mark.parametrize("kind", ["feature_var", "norm_var"])
def test_dispersion_equals_a_loop_over_classes(kind):
    features, labels = 3 * draw(30, 5), torch.arange(30) % 3
    by_hand = []
    for label in range(3):
        own = features[labels == label]
        spread = own.norm(dim=1).var() if kind == "norm_var" else F.normalize(own, dim=1).var(dim=0).mean()
        by_hand.append(spread.item())
    assert dispersion(features, labels, 3, kind=kind).tolist() == pytest.approx(by_hand, rel=1e-10)


def test_empty_or_single_image_class_gets_the_mean_dispersion_of_the_others():
    features, labels = draw(9, 5), torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 3])
    found = dispersion(features, labels, 5)
    assert found[1].item() == found[3].item() == found[4].item() == pytest.approx((found[0] + found[2]).item() / 2)


def test_dispersion_without_any_pair_of_images_is_equal_for_all_classes():
    assert dispersion(draw(2, 5), torch.tensor([0, 2]), 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("spread", [[0.3, 0.3, 0.3], [0.0, 0.0, 0.0]])
def test_equal_dispersions_give_temperature_one(form, spread):
    assert dispersion_temperatures(torch.tensor(spread), form=form).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_temperatures_stay_in_their_range_and_the_widest_class_has_one(gamma):
    spread = torch.tensor([0.9, 0.01, 0.2], dtype=torch.float64)
    paper = dispersion_temperatures(spread, gamma=gamma)
    released = dispersion_temperatures(spread, gamma=gamma, form="released")
    assert paper.argmax() == released.argmax() == 0 and paper.max() == released.max() == 1
    assert paper.min() >= 1 - gamma
    assert released.min() >= (1 - gamma) / (1 - gamma + 3 * gamma)


def test_refuses_class_numbers_where_soft_rows_are_needed():
    with pytest.raises(MedkdError, match="one-hot"):
        pseudo_label_loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    "call",
    [
        lambda: pseudo_label_loss(UNIFORM, FIRST, mix=1.2),
        lambda: dispersion(UNIFORM, torch.zeros(1, dtype=torch.long), 3, kind="range"),
        lambda: dispersion_temperatures(torch.ones(3), gamma=2.0),
        lambda: dispersion_temperatures(torch.tensor([15.0, 0, 0]), gamma=1.0),  # temperatures of 0
        lambda: dispersion_temperatures(torch.ones(3), form="ours"),
    ],
    ids=["mix", "kind", "gamma", "gamma of one", "form"],
)
def test_refuses_settings_out_of_range(call):
    with pytest.raises(ParameterError):
        call()


def test_feature_loss_is_the_mean_absolute_difference_and_leaves_the_teacher_alone():
    student, teacher = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    loss = feature_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx((student - teacher).abs().sum().item() / 12, rel=1e-12)
    assert teacher.grad is None and student.grad.abs().sum() > 0
