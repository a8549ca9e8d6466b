import math

import pytest
import torch

from medkd.errors import MedkdError
from medkd.losses.survival import bounded_risk, cox_loss


def batch(n=24, seed=0):
    """Months in whole numbers, so that many are tied; about half of the events observed."""
    generator = torch.Generator().manual_seed(seed)
    risks = torch.randn(n, generator=generator, dtype=torch.float64)
    times = torch.randint(1, 9, (n,), generator=generator).double()
    events = (torch.rand(n, generator=generator) < 0.5).double()
    return risks, times, events


def slow_cox_loss(risks, times, events):
    total = 0.0
    for i in range(len(risks)):
        if events[i] == 1:
            at_risk = sum(math.exp(risks[j]) for j in range(len(risks)) if times[j] >= times[i])
            total -= risks[i].item() - math.log(at_risk)
    return total / len(risks)


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_double_loop_also_for_tied_times(seed):
    risks, times, events = batch(seed=seed)
    assert cox_loss(risks, times, events).item() == pytest.approx(slow_cox_loss(risks, times, events), abs=1e-12)


def test_equal_risks_give_the_log_of_each_risk_set():
    """Times 1, 2, 3 all observed: (log 3 + log 2 + log 1) / 3; the second one censored: (log 3 + log 1) / 3."""
    times = torch.tensor([3.0, 1.0, 2.0])
    assert cox_loss(torch.full((3,), 7.0), times, torch.ones(3)).item() == pytest.approx(math.log(6) / 3)
    assert cox_loss(torch.zeros(3), times, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(math.log(3) / 3)


def test_tied_events_share_one_risk_set():
    """Breslow: two events at one time, log-risks 0 and log 3: ((log 4 - 0) + (log 4 - log 3)) / 2."""
    found = cox_loss(torch.tensor([0.0, math.log(3)]), torch.ones(2), torch.ones(2))
    assert found.item() == pytest.approx((2 * math.log(4) - math.log(3)) / 2)


def test_gradient_is_expected_minus_observed():
    """d loss / d theta_i = (sum over events k with t_k <= t_i of p_ki - e_i) / n, p_k the softmax over k's risk set."""
    risks, times, events = batch()
    risks.requires_grad_()
    cox_loss(risks, times, events).backward()
    at_risk = (times[None, :] >= times[:, None]).double() * risks.detach().exp()
    expected = (events @ (at_risk / at_risk.sum(dim=1, keepdim=True)) - events) / len(risks)
    torch.testing.assert_close(risks.grad, expected, rtol=0, atol=1e-12)
    assert risks.grad.sum().abs() < 1e-12


def test_adding_a_constant_to_all_risks_changes_nothing():
    risks, times, events = batch()
    assert cox_loss(risks + 5, times, events).item() == pytest.approx(cox_loss(risks, times, events).item(), abs=1e-12)


def test_batch_without_events_is_zero_with_zero_gradient():
    risks, times, _ = batch()
    risks.requires_grad_()
    found = cox_loss(risks, times, torch.zeros(len(risks)))
    found.backward()
    assert found.item() == 0
    assert risks.grad.abs().max() == 0


@pytest.mark.parametrize("unknown", ["times", "events"])
def test_samples_without_follow_up_are_left_out(unknown):
    risks, times, events = batch()
    lost = torch.arange(len(risks)) % 5 == 0
    (times if unknown == "times" else events)[lost] = torch.nan
    risks.requires_grad_()
    found = cox_loss(risks, times, events)
    found.backward()
    assert found.item() == pytest.approx(slow_cox_loss(risks.detach()[~lost], times[~lost], events[~lost]), abs=1e-12)
    assert torch.isfinite(risks.grad).all() and risks.grad[lost].abs().max() == 0


def test_batch_in_which_nothing_is_known_is_zero_with_zero_gradient():
    risks = torch.zeros(3, requires_grad=True)
    found = cox_loss(risks, torch.full((3,), torch.nan), torch.full((3,), torch.nan))
    found.backward()
    assert found.item() == 0 and risks.grad.abs().max() == 0


def test_huge_risks_stay_finite_and_half_precision_is_raised_to_float32():
    found = cox_loss(torch.tensor([1000.0, -1000.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert found.item() == pytest.approx(1000)
    risks, times, events = batch()
    half = cox_loss(risks.bfloat16(), times, events)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(cox_loss(risks.bfloat16().double(), times, events).item(), abs=1e-5)


def test_bounded_risk_lies_between_minus_three_and_three():
    logits = torch.tensor([-1e4, 0.0, math.log(2), 1e4])
    torch.testing.assert_close(bounded_risk(logits), torch.tensor([-3.0, 0.0, 1.0, 3.0]))


def test_names_shapes_that_do_not_fit():
    with pytest.raises(MedkdError, match=r"got \(3, 1\), \(3,\) and \(3,\): take column 0"):
        cox_loss(torch.zeros(3, 1), torch.ones(3), torch.ones(3))
