import math

import pytest
import torch
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses.contrastive import alignment, info_nce, nt_xent, uniformity


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_info_nce_equals_the_formula_written_out():
    query, key, queue = unit(3, 4), unit(3, 4, seed=1), unit(5, 4, seed=2)
    loss, logits = info_nce(query, key, queue, temperature=0.2)
    total = 0.0
    for q, k in zip(query, key, strict=True):
        positive = math.exp(float(q @ k) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(float(q @ other) / 0.2) for other in queue)))
    assert logits.shape == (3, 6)
    assert loss.item() == pytest.approx(total / 3, rel=1e-12)


def test_key_like_every_negative_costs_the_log_of_the_candidates():
    query = unit(2, 4)
    loss, _ = info_nce(query, query, query[:1].expand(7, 4), temperature=0.07)
    assert loss.item() >= math.log(8) / 2
    same = query[:1]
    assert info_nce(same, same, same.expand(7, 4), temperature=0.07)[0].item() == pytest.approx(math.log(8))


def test_only_the_query_gets_gradient_and_the_queue_may_change_before_backward():
    query, key, queue = (unit(3, 4, seed=s).requires_grad_() for s in range(3))
    loss, _ = info_nce(query, key, queue, temperature=0.1)
    (expected,) = torch.autograd.grad(loss, query, retain_graph=True)
    with torch.no_grad():
        queue.zero_()
    loss.backward()
    assert key.grad is None and queue.grad is None
    torch.testing.assert_close(query.grad, expected)


def test_logits_are_float32_under_autocast():
    query, key, queue = (unit(3, 4, seed=s).bfloat16() for s in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(query, key, queue, temperature=0.1)[1].dtype == torch.float32


def test_alignment_is_zero_for_equal_and_four_for_opposite_pairs():
    query = unit(5, 3)
    assert alignment(query, query).item() == 0
    assert alignment(query, -query).item() == pytest.approx(4)


def test_uniformity_of_four_points_on_a_square():
    """Six pairs: four at squared distance 2, two at 4."""
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    by_hand = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert uniformity(square).item() == pytest.approx(by_hand, rel=1e-6)
    assert uniformity(square[:1].expand(4, 2)).item() == pytest.approx(0, abs=1e-6)


def test_refuses_a_queue_of_another_length_a_lone_row_and_temperature_zero():
    with pytest.raises(MedkdError, match=r"queue \(5, 3\)"):
        info_nce(unit(2, 4), unit(2, 4), unit(5, 3), temperature=0.1)
    with pytest.raises(ParameterError, match="temperature"):
        info_nce(unit(2, 4), unit(2, 4), unit(5, 4), temperature=0.0)
    with pytest.raises(MedkdError, match="two or more"):
        uniformity(unit(1, 4))


def test_nt_xent_equals_the_formula_written_out():
    first, second = unit(3, 4), unit(3, 4, seed=1)
    loss, logits = nt_xent(first, second, temperature=0.3)
    rows, total = torch.cat([first, second]), 0.0
    for i in range(6):
        candidates = {j: math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(6) if j != i}
        total -= math.log(candidates[(i + 3) % 6] / sum(candidates.values()))
    assert loss.item() == pytest.approx(total / 6, rel=1e-10)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits[:, 0], (first * second).sum(dim=1) / 0.3)
    others = [sorted(float(rows[i] @ rows[j]) / 0.3 for j in range(6) if j not in (i, i + 3)) for i in range(3)]
    torch.testing.assert_close(logits[:, 1:].sort(dim=1).values, torch.tensor(others, dtype=torch.float64))


def test_nt_xent_of_equal_rows_costs_the_log_of_the_candidates_and_reaches_both_views():
    same = unit(1, 4).expand(5, 4)
    assert nt_xent(same, same, temperature=0.1)[0].item() == pytest.approx(math.log(9))
    first, second = (unit(3, 4, seed=s).requires_grad_() for s in range(2))
    nt_xent(first, second, temperature=0.1)[0].backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0
    with pytest.raises(MedkdError, match="enlarge the batch"):
        nt_xent(unit(1, 4), unit(1, 4), temperature=0.1)
