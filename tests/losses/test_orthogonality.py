"""Orthogonality of two branches' features."""

import pytest
import torch

from medkd.errors import MedkdError
from medkd.losses.orthogonality import orthogonality


def test_equals_the_mean_squared_cross_correlation_worked_by_hand():
    first = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # rows of unit length: (.6, .8), (0, 1)
    second = torch.tensor([[1.0, 0.0], [0.0, 5.0]])  # (1, 0), (0, 1)
    # the cross product is [[.6, 0], [.8, 1]]
    assert orthogonality(first, second).item() == pytest.approx((0.36 + 0.64 + 1.0) / 4, rel=1e-5)


def test_is_zero_where_the_branches_use_different_samples_directions():
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert orthogonality(first, second).item() == 0


def test_length_carries_no_gradient():
    """Detached norms: scaling a feature by its gradient does not pay."""
    first = torch.tensor([[3.0, 4.0]], requires_grad=True)
    orthogonality(first, torch.tensor([[1.0, 0.0]])).backward()
    # d/dF of (F_1^2 + F_2^2) / |F|^2 / 4 with |F| = 5 held fixed (the mean is over four pairs)
    torch.testing.assert_close(first.grad, torch.tensor([[2 * 3.0 / 25 / 4, 2 * 4.0 / 25 / 4]]), rtol=1e-4, atol=1e-7)


def test_two_batches_of_different_length_are_refused():
    with pytest.raises(MedkdError, match=r"one batch; got \(2, 3\) and \(4, 3\)"):
        orthogonality(torch.zeros(2, 3), torch.zeros(4, 3))
