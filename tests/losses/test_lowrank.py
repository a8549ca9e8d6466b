import numpy as np
import pytest
import torch

from medkd.errors import MedkdError, ParameterError
from medkd.losses.lowrank import LowRankLoss, relation_matrix, shrink, singular_values, tensor_nuclear_norm


def affinity(b=10, n_views=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(b, 8, generator=generator, dtype=torch.float64) for _ in range(n_views)]
    return torch.stack([relation_matrix(view) for view in views], dim=2)


def slow_shrink(tensor, rho, kind):
    """Full FFT of the rotated tensor and one NumPy SVD for each of the b slices."""
    b = tensor.shape[0]
    spectrum = np.fft.fft(tensor.transpose(1, 2, 0), axis=2)
    for k in range(b):
        u, s, vh = np.linalg.svd(spectrum[:, :, k], full_matrices=False)
        threshold = rho if kind == "plain" else rho * b / (s + 1e-5)
        spectrum[:, :, k] = (u * np.maximum(s - threshold, 0)) @ vh
    back = np.fft.ifft(spectrum, axis=2)
    assert np.abs(back.imag).max() < 1e-12
    return back.real.transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["plain", "weighted"])
@pytest.mark.parametrize("b", [1, 7, 10])
@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0])
def test_shrinkage_equals_a_singular_value_decomposition_a_slice(kind, b, rho):
    tensor = affinity(b)
    np.testing.assert_allclose(shrink(tensor, rho, kind=kind), slow_shrink(tensor.numpy(), rho, kind), atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_no_threshold_changes_nothing_and_a_huge_one_leaves_nothing(kind):
    tensor = affinity()
    torch.testing.assert_close(shrink(tensor, 0.0, kind=kind), tensor, rtol=0, atol=1e-13)
    assert shrink(tensor, 1e6, kind=kind).abs().max() == 0


@pytest.mark.parametrize("kind", ["plain", "weighted"])
def test_float32_stays_within_1e_5_of_float64_also_for_tensors_of_low_rank(kind):
    tensor = affinity(b=16)
    tensor[..., 2] = tensor[..., 0] + 1e-4 * tensor[..., 1]
    found = shrink(tensor.float(), 1e-3, kind=kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), shrink(tensor, 1e-3, kind=kind), rtol=1e-5, atol=1e-6)


def test_plain_shrinkage_minimises_its_proximal_objective():
    """No small change of the result lowers rho * TNN(X) + |X - A|^2 / 2."""
    tensor, rho = affinity(b=6), 0.3
    found = shrink(tensor, rho, kind="plain")

    def objective(x):
        return rho * tensor_nuclear_norm(x) + (x - tensor).pow(2).sum() / 2

    generator = torch.Generator().manual_seed(3)
    for size in (1e-1, 1e-2, 1e-3):
        change = size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        assert objective(found + change) > objective(found)


def test_singular_values_agree_with_numpy_for_every_frequency():
    tensor = affinity(b=9)
    spectrum = np.fft.fft(tensor.numpy().transpose(1, 2, 0), axis=2)
    by_hand = np.stack([np.linalg.svd(spectrum[:, :, k], compute_uv=False) for k in range(9)])
    np.testing.assert_allclose(singular_values(tensor), by_hand, atol=1e-12)
    assert tensor_nuclear_norm(tensor).item() == pytest.approx(by_hand.sum() / 9)


def test_rows_of_a_relation_matrix_have_unit_length_and_zero_features_give_zero_rows():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    relation = relation_matrix(features)
    assert relation.norm(dim=1).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert relation[0].tolist() == pytest.approx([5 / 146**0.5, 11 / 146**0.5, 0.0])


def test_penalty_grows_once_a_call_up_to_its_ceiling():
    loss = LowRankLoss(mu=0.5, growth=1.5, max_mu=1.0)
    views = [torch.rand(4, 3, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    loss(views, views)
    assert loss.mu.item() == pytest.approx(0.75)
    loss(views)
    loss(views)
    assert loss.mu.item() == 1.0


def test_default_penalty_reaches_one_after_121_calls():
    loss, tensor = LowRankLoss(), affinity(b=2, n_views=1)
    values = []
    for _ in range(121):
        loss.of_tensors(tensor)
        values.append(loss.mu.item())
    assert values[119] < 1.0 and values[120] == 1.0


def test_loss_sums_modalities_and_equals_its_formula():
    first, second = ([torch.rand(6, 5, generator=torch.Generator().manual_seed(s))] * 2 for s in range(2))
    loss = LowRankLoss(weight=0.1, mu=0.2)
    by_hand = 0.0
    for views in (first, second):
        tensor = torch.stack([relation_matrix(view) for view in views], dim=2)
        by_hand += 0.22 / 2 * (tensor - shrink(tensor, 0.1 / 0.2)).pow(2).sum().item()
    assert loss(first, second).item() == pytest.approx(by_hand, rel=1e-6)


def test_gradient_vanishes_while_everything_is_shrunk_away_and_then_reaches_the_live_view():
    fixed = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    live = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    early, late = LowRankLoss(mu=1e-5), LowRankLoss(mu=1.0)
    (start,) = torch.autograd.grad(early([fixed, live]), live)
    (end,) = torch.autograd.grad(late([fixed, live]), live)
    assert start.abs().max() < 1e-18
    assert end.abs().max() > 1e-4


def test_value_keeps_its_meaning_when_the_next_call_comes_before_backward():
    view = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = LowRankLoss(mu=0.5)
    first = loss([view, view.detach()])
    (expected,) = torch.autograd.grad(first, view, retain_graph=True)
    loss([view, view.detach()])
    (found,) = torch.autograd.grad(first, view)
    assert torch.equal(found, expected)


def test_features_that_are_not_finite_give_a_loss_that_says_so_and_no_error_of_linear_algebra():
    features = torch.ones(6, 3)
    features[2, 1] = float("nan")
    assert LowRankLoss()([features] * 4).isnan()


def test_refuses_an_unknown_shrinkage_and_a_tensor_that_is_not_square():
    with pytest.raises(ParameterError, match='shrinkage "soft"'):
        LowRankLoss(kind="soft")
    with pytest.raises(ParameterError, match="mu=2"):
        LowRankLoss(mu=2.0)
    with pytest.raises(MedkdError, match=r"\(3, 4, 2\)"):
        shrink(torch.zeros(3, 4, 2), 0.1)
