import pytest
import torch
from torch import nn

from medkd.errors import MedkdError, ParameterError
from medkd.losses.modulation import GradientModulation


def losses_along(directions, features):
    """Scalars whose gradients at `features` are the given directions."""
    return [(features * direction).sum() for direction in directions]


def basis(n):
    return [torch.eye(n)[i].view(1, n) for i in range(n)]


def test_equal_gradients_all_count_and_orthogonal_ones_only_themselves():
    features = torch.zeros(1, 5, requires_grad=True)
    *kd, main = losses_along([basis(5)[0]] * 5, features)
    assert GradientModulation(4)(kd, main, features).tolist() == [5.0, 5.0, 5.0, 5.0]
    *kd, main = losses_along(basis(5), features)
    assert GradientModulation(4)(kd, main, features).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_row_sums_are_the_weights_without_a_threshold():
    features = torch.zeros(1, 2, requires_grad=True)
    directions = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]])]
    *kd, main = losses_along(directions, features)
    found = GradientModulation(2, threshold=None)(kd, main, features)
    assert found.tolist() == pytest.approx([1 + 0.6 + 0, 0.6 + 1 - 0.8])


def test_vanishing_gradient_gives_weight_zero_and_no_nan():
    features = torch.zeros(1, 2, requires_grad=True)
    *kd, main = losses_along([torch.zeros(1, 2), basis(2)[0], basis(2)[0]], features)
    assert GradientModulation(2)(kd, main, features).tolist() == [0.0, 2.0]


def test_weights_move_with_momentum_from_the_second_call_on():
    features = torch.zeros(1, 3, requires_grad=True)
    modulation = GradientModulation(2, momentum=0.25)
    *kd, main = losses_along([basis(3)[0]] * 3, features)
    assert modulation(kd, main, features).tolist() == [3.0, 3.0]
    *kd, main = losses_along(basis(3), features)
    assert modulation(kd, main, features).tolist() == [0.25 * 3 + 0.75 * 1] * 2


def test_gradients_at_the_feature_equal_those_of_a_full_backward_pass():
    torch_generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=torch_generator)
    encoder, seen = nn.Linear(3, 5), []
    features = encoder(x)
    features.register_hook(lambda gradient: seen.append(gradient.flatten()))
    losses = [features.pow(2).mean(), features.exp().mean(), (features[:, 0] - 1).pow(2).sum()]
    modulation = GradientModulation(2)
    modulation(losses[:2], losses[2], features)
    seen.clear()
    for loss in losses:
        loss.backward(retain_graph=True)
    full = torch.stack(seen)
    expected = torch.nn.functional.cosine_similarity(full[:, None], full[None], dim=2)
    torch.testing.assert_close(modulation.last_cosine, expected)


def test_weights_are_constants_and_the_network_gets_no_gradient_from_them():
    encoder = nn.Linear(3, 5)
    features = encoder(torch.ones(2, 3))
    weights = GradientModulation(1)([features.sum()], features.pow(2).sum(), features)
    assert not weights.requires_grad
    assert encoder.weight.grad is None


def test_state_survives_a_checkpoint_before_and_after_the_first_call():
    features = torch.zeros(1, 3, requires_grad=True)
    *kd, main = losses_along([basis(3)[0]] * 3, features)
    used, resumed, fresh = (GradientModulation(2) for _ in range(3))
    first_state = {name: value.clone() for name, value in used.state_dict().items()}
    used(kd, main, features)
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (used, fresh)]
    assert shapes[0] == shapes[1]  # or a checkpoint would be taken for that of other networks
    resumed.load_state_dict(used.state_dict())
    assert resumed.running.tolist() == [3.0, 3.0]
    fresh.load_state_dict(first_state)
    *kd, main = losses_along(basis(3), features)
    assert resumed(kd, main, features).tolist() == used(kd, main, features).tolist() == [2.0, 2.0]
    assert fresh(kd, main, features).tolist() == [1.0, 1.0]


def test_refuses_a_loss_that_ignores_the_features_and_momentum_one():
    features, other = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    with pytest.raises(MedkdError, match="depend on `features`"):
        GradientModulation(1)([other.sum()], features.sum(), features)
    with pytest.raises(ParameterError, match="momentum"):
        GradientModulation(2, momentum=1.0)
    with pytest.raises(MedkdError, match="was made for 2 losses and got 1; make it with n_losses = 1"):
        GradientModulation(2)([features.sum()], features.sum(), features)
    with pytest.raises(ParameterError, match="n_losses = 0"):
        GradientModulation(0)
