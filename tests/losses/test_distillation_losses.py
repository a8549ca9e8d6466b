import math

import pytest
import torch
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses.distillation import (
    attention_transfer,
    correlation_congruence,
    distillation_loss,
    feature_kl,
    hint,
    neuron_selectivity,
    probabilistic_transfer,
    relational,
    similarity_preserving,
)

VECTOR_LOSSES = [feature_kl, hint, similarity_preserving, relational, probabilistic_transfer, correlation_congruence]
MAP_LOSSES = [attention_transfer, neuron_selectivity]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_of(loss):
    shape = (5, 6, 4, 4) if loss in MAP_LOSSES else (5, 6)
    return draw(*shape), draw(*shape, seed=1)


def test_distillation_equals_two_class_kl_worked_by_hand():
    student = torch.tensor([[0.0, 0.0]])  # p_S = (1/2, 1/2)
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # p_T = (3/4, 1/4)
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss(student, teacher, temperature=1.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_gradient_size_barely_depends_on_temperature():
    """Hinton et al. 2015, section 2: T^2 cancels the 1/T^2 of the soft-target gradient (high-T limit)."""
    student, teacher = draw(64, 7), draw(64, 7, seed=1)
    sizes = []
    for temperature in (10.0, 20.0):
        z = student.clone().requires_grad_()
        distillation_loss(z, teacher, temperature=temperature).backward()
        sizes.append(z.grad.norm())
    assert sizes[0] / sizes[1] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("loss", VECTOR_LOSSES + MAP_LOSSES)
def test_no_gradient_reaches_the_teacher_and_some_reaches_the_student(loss):
    student, teacher = pair_of(loss)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", VECTOR_LOSSES + MAP_LOSSES)
def test_a_student_equal_to_its_teacher_has_no_loss_and_a_finite_gradient(loss):
    student = pair_of(loss)[0].requires_grad_()
    value = loss(student, student.detach())
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", VECTOR_LOSSES + MAP_LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = (x.bfloat16() for x in pair_of(loss))
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student.double(), teacher.double()).item(), rel=1e-4)


def test_relational_equals_a_loop_over_pairs_and_triples():
    student, teacher = draw(5, 4), draw(5, 3, seed=1)

    def relations(x):
        n = len(x)
        distances = torch.stack([torch.stack([(x[i] - x[j]).norm() for j in range(n)]) for i in range(n)])
        angles = torch.zeros(n, n, n, dtype=x.dtype)
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        angles[i, j, k] = F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0)
        return distances * n * (n - 1) / distances.sum(), angles

    (d_student, a_student), (d_teacher, a_teacher) = relations(student), relations(teacher)
    by_hand = 25 * F.smooth_l1_loss(d_student, d_teacher) + 50 * F.smooth_l1_loss(a_student, a_teacher)
    assert relational(student, teacher).item() == pytest.approx(by_hand.item(), rel=1e-9)


def test_attention_pools_the_larger_maps_to_the_smaller():
    student, teacher = draw(3, 2, 8, 8), draw(3, 5, 4, 4, seed=1)
    assert attention_transfer(student, teacher) == attention_transfer(F.avg_pool2d(student, 2), teacher)


def test_similarity_ignores_the_scale_of_the_features():
    student, teacher = draw(6, 4), draw(6, 9, seed=1)
    assert similarity_preserving(7 * student, teacher).item() == pytest.approx(
        similarity_preserving(student, teacher).item(), rel=1e-12
    )


def test_names_both_shapes_when_class_counts_differ():
    with pytest.raises(MedkdError, match=r"student \(2, 7\), teacher \(2, 5\)"):
        distillation_loss(torch.zeros(2, 7), torch.zeros(2, 5), temperature=4.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ParameterError, match="temperature must be positive"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)


def test_refuses_batches_of_different_length_and_vectors_where_maps_are_needed():
    with pytest.raises(MedkdError, match="same images"):
        similarity_preserving(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(MedkdError, match="feature maps"):
        attention_transfer(torch.zeros(3, 4), torch.zeros(3, 4))
