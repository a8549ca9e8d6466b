import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.models.momentum import KeyQueue, MoCo, MomentumCopy, warmup_momentum
from medkd.models.resnet12 import GhostBatchNorm2d


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def batch(n=6, dim=3, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_copy_starts_equal_and_moves_weights_and_statistics_by_the_same_share():
    source, other = network(), network(1)
    copied = MomentumCopy(source)
    other(batch())  # moves the running statistics
    before = [t.clone() for t in copied.module.state_dict().values()]
    copied.update(other, 0.75)
    for name, old, own in zip(other.state_dict(), before, copied.module.state_dict().values(), strict=True):
        new = other.state_dict()[name]
        expected = 0.75 * old + 0.25 * new if new.is_floating_point() else new
        torch.testing.assert_close(own, expected)
    assert copied.module[1].num_batches_tracked == 1


def test_momentum_zero_copies_bit_by_bit_and_one_stays():
    source, other = network(), network(1)
    copied = MomentumCopy(source)
    copied.update(other, 1.0)
    assert torch.equal(copied.module[0].weight, source[0].weight)
    copied.update(other, 0.0)
    assert torch.equal(copied.module[0].weight, other[0].weight)


def test_copy_never_gets_a_gradient_and_leaves_its_source_trainable():
    source = network()
    copied = MomentumCopy(source)
    assert not copied(batch().requires_grad_()).requires_grad
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in source.parameters())
    with pytest.raises(MedkdError, match="made from"):
        copied.update(nn.Linear(2, 2), 0.5)


def test_warm_up_copies_first_then_averages_all_steps_then_holds():
    assert warmup_momentum(0) == 0
    assert warmup_momentum(3) == 0.75
    assert warmup_momentum(99) == warmup_momentum(5000) == 0.99
    values, mean = [2.0, 4.0, 9.0, 1.0], 0.0
    for step, value in enumerate(values):
        mean = warmup_momentum(step) * mean + (1 - warmup_momentum(step)) * value
    assert mean == pytest.approx(sum(values) / 4)


def test_queue_starts_with_unit_rows_that_its_generator_decides():
    first, same, other = (KeyQueue(7, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    torch.testing.assert_close(first.keys.norm(dim=1), torch.ones(7))
    assert torch.equal(first.keys, same.keys) and not torch.equal(first.keys, other.keys)


def test_queue_wraps_without_losing_keys():
    """Batches of 2 into 5 rows: the third batch fills row 4, then row 0."""
    queue = KeyQueue(size=5, dim=2)
    for value in (1.0, 2.0, 3.0):
        queue.push(torch.full((2, 2), value))
    assert queue.keys[:, 0].tolist() == [3.0, 1.0, 2.0, 2.0, 3.0]
    assert queue.pointer == 1


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_batch_larger_than_the_queue_ends_as_if_pushed_one_by_one(size):
    together, single = KeyQueue(size, 1), KeyQueue(size, 1)
    for queue in (together, single):
        queue.push(torch.tensor([[9.0]]))
    keys = torch.arange(7.0)[:, None]
    together.push(keys)
    for key in keys:
        single.push(key[None])
    assert torch.equal(together.keys, single.keys) and together.pointer == single.pointer


def moco(**settings):
    settings = {"queue_size": 8, "dim": 4, "momentum": 0.9, "temperature": 0.5} | settings
    return MoCo(network(), **settings)


def test_step_updates_the_key_encoder_before_the_key_and_the_queue_after_the_logits():
    model, query_view, key_view = moco(), batch(), batch(seed=1)
    with torch.no_grad():
        model.query_encoder[0].weight.add_(0.5)
    old_key, old_queue = model.key_encoder.module[0].weight.clone(), model.queue.keys.clone()
    output = model(query_view, key_view)
    moved = model.key_encoder.module[0].weight
    torch.testing.assert_close(moved, 0.9 * old_key + 0.1 * model.query_encoder[0].weight)
    projected = F.linear(key_view, moved, model.key_encoder.module[0].bias)
    key = F.normalize(F.batch_norm(projected, None, None, training=True), dim=1)
    torch.testing.assert_close(output["key"], key)
    torch.testing.assert_close(output["query"], F.normalize(output["features"], dim=1))
    assert output["features"].norm(dim=1).std() > 0.1  # not normalised
    positive = (output["query"] * key).sum(dim=1, keepdim=True)
    expected = torch.cat([positive, output["query"] @ old_queue.T], dim=1) / 0.5
    torch.testing.assert_close(output["logits"], expected)
    torch.testing.assert_close(model.queue.keys[:6], key)
    assert torch.equal(model.queue.keys[6:], old_queue[6:])


def test_loss_reaches_the_query_encoder_only():
    model = moco()
    model(batch(), batch(seed=1))["loss"].backward()
    assert model.query_encoder[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.key_encoder.parameters())


def test_checkpoint_holds_queue_and_key_encoder_so_that_two_runs_agree():
    first, resumed = moco(), moco(generator=torch.Generator().manual_seed(8))
    first(batch(), batch(seed=1))
    resumed.load_state_dict(first.state_dict())
    a, b = (model(batch(seed=2), batch(seed=3)) for model in (first, resumed))
    assert torch.equal(a["logits"], b["logits"]) and torch.equal(first.queue.keys, resumed.queue.keys)


def test_training_pulls_views_of_an_image_together():
    """A learning canary: after the queue has filled, the loss ends below its peak and below ln(1 + K)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    model = MoCo(encoder, queue_size=32, dim=8, momentum=0.9, temperature=0.2)
    generator, losses = torch.Generator().manual_seed(1), []
    images = torch.randn(128, 16, generator=generator)
    for _ in range(100):
        rows = torch.randint(128, (16,), generator=generator)
        views = [images[rows] + 0.1 * torch.randn(16, 16, generator=generator) for _ in range(2)]
        loss = model(*views)["loss"]
        gradients = torch.autograd.grad(loss, list(encoder.parameters()))
        with torch.no_grad():
            torch._foreach_sub_(list(encoder.parameters()), gradients, alpha=0.3)
        losses.append(loss.item())
    last = sum(losses[-10:]) / 10
    assert last < max(losses[2:]) - 0.5 and last < math.log(33) - 1


def test_refuses_a_momentum_above_one_and_an_empty_queue():
    with pytest.raises(ParameterError, match="momentum"):
        moco(momentum=1.5)
    with pytest.raises(ParameterError, match="queue_size"):
        moco(queue_size=0)


def test_keys_come_back_in_the_images_order_whatever_order_the_key_encoder_sees():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(3, 4))  # no batch norm: the order cannot matter
    first, second = (MoCo(copy.deepcopy(linear), queue_size=8, dim=4) for _ in range(2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain, shuffled = first(batch(), batch(seed=1)), second(batch(), batch(seed=1), order)
    torch.testing.assert_close(plain["key"], shuffled["key"])
    torch.testing.assert_close(first.queue.keys, second.queue.keys)


def test_shuffled_keys_share_their_batch_statistics_with_other_images():
    """Ghost batch norm of two parts: a key is normalised with the images that stand beside it in `order`."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), GhostBatchNorm2d(4, 2), nn.Flatten())
    model, views = MoCo(encoder, queue_size=8, dim=4, momentum=1.0), torch.randn(4, 3, 1, 1)
    order = torch.tensor([0, 2, 1, 3])
    key = model(views, views, order)["key"]
    expected = F.normalize(model.key_encoder.module(views[order]), dim=1)[[0, 2, 1, 3]]
    torch.testing.assert_close(key, expected)
    assert not torch.allclose(key, model(views, views)["key"])


def test_projection_head_is_contrasted_trained_and_followed_but_features_are_before_it():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model = MoCo(network(), queue_size=8, dim=2, momentum=0.5, projection_head=head)
    with torch.no_grad():
        head[0].weight.add_(1.0)
    old = model.key_encoder.module[1][0].weight.clone()
    output = model(batch(), batch(seed=1))
    torch.testing.assert_close(output["query"], F.normalize(head(output["features"]), dim=1))
    assert output["features"].shape == (6, 4) and output["key"].shape == (6, 2)
    torch.testing.assert_close(model.key_encoder.module[1][0].weight, old + 0.5)
    output["loss"].backward()
    assert head[2].weight.grad.abs().sum() > 0 and model.query_encoder[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.key_encoder.parameters())


def test_queue_that_no_batch_divides_holds_the_last_keys_in_order():
    model, keys = moco(queue_size=7), []
    for seed in range(4):
        keys.append(model(batch(4, seed=seed), batch(4, seed=seed + 9))["key"])
    newest = torch.cat(keys)[-7:]
    start = int(model.queue.pointer)
    torch.testing.assert_close(torch.cat([model.queue.keys[start:], model.queue.keys[:start]]), newest)
