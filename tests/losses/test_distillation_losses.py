import math

import pytest
import torch
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses.distillation import (
    VariationalInformation,
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


def test_two_equal_student_rows_do_not_blow_up_the_gradient_of_relational():
    student, teacher = draw(6, 4), draw(6, 3, seed=1)
    sizes = []
    for other in (student[1] + 0.5, student[1]):
        rows = torch.cat([student[:5], other[None]]).requires_grad_()
        relational(rows, teacher).backward()
        sizes.append(rows.grad.norm().item())
    assert sizes[1] < 3 * sizes[0]


def test_attention_pools_the_larger_maps_to_the_smaller():
    student, teacher = draw(3, 2, 8, 8), draw(3, 5, 4, 4, seed=1)
    assert attention_transfer(student, teacher) == attention_transfer(F.avg_pool2d(student, 2), teacher)


def test_similarity_ignores_the_scale_of_the_features():
    student, teacher = draw(6, 4), draw(6, 9, seed=1)
    assert similarity_preserving(7 * student, teacher).item() == pytest.approx(
        similarity_preserving(student, teacher).item(), rel=1e-12
    )


def vid(student_dim=4, teacher_dim=3, **settings):
    return VariationalInformation(student_dim, teacher_dim, **settings).double()


def test_variational_information_is_the_negative_log_likelihood_of_a_normal_distribution():
    loss, student, teacher = vid(), draw(6, 4), draw(6, 3, seed=1)
    with torch.no_grad():
        loss.rho.copy_(draw(3, seed=2))
    first, second, third = (layer for layer in loss.regressor if isinstance(layer, torch.nn.Linear))
    guess = third(second(first(student).clamp(min=0)).clamp(min=0))
    spread = (loss.rho.exp() + 1).log() + 1e-5
    likelihood = torch.distributions.Normal(guess, spread.sqrt()).log_prob(teacher)
    by_hand = -likelihood.mean() - 0.5 * math.log(2 * math.pi)  # the constant is left out
    assert loss(student, teacher).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_variational_information_of_a_perfect_guess_is_half_the_log_of_the_first_variance():
    loss, student = vid(), draw(6, 4)
    guess = loss.regressor(student).detach()
    assert loss.variance().tolist() == pytest.approx([5.0] * 3, rel=1e-6)
    assert loss(student, guess).item() == pytest.approx(0.5 * math.log(5), rel=1e-6)


def test_variational_information_trains_student_regressor_and_variance_but_never_the_teacher():
    loss, student, teacher = vid(), draw(6, 4).requires_grad_(), draw(6, 3, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_variance_learns_the_mean_squared_error_of_the_guess():
    """The minimum of e / v + log v over v is at v = e."""
    loss, student, teacher = vid(), draw(200, 4), 3 * draw(200, 3, seed=1)
    optimiser = torch.optim.Adam([loss.rho], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        loss(student, teacher).backward()
        optimiser.step()
    errors = (loss.regressor(student) - teacher).square().mean(dim=0)
    torch.testing.assert_close(loss.variance(), errors, rtol=1e-2, atol=0)


def test_variational_information_is_seeded_by_its_generator_alone():
    one, two = (vid(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    before = torch.get_rng_state()
    again = vid(generator=torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.regressor[0].weight, again.regressor[0].weight)
    assert not torch.equal(one.regressor[0].weight, two.regressor[0].weight)


def test_variational_information_refuses_other_lengths_and_variances():
    with pytest.raises(MedkdError, match=r"student features \(n, 4\).*teacher \(2, 1\)"):
        vid()(torch.zeros(2, 4), torch.zeros(2, 1))
    with pytest.raises(ParameterError, match="initial_variance=0"):
        vid(initial_variance=0.0)


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
