import math

import pytest
import torch
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.losses import memory
from medkd.losses.contrast_sampler import ContrastSampler, repeats_of
from medkd.losses.memory import ContrastiveDistillation

B, P, K, N = 4, 6, 9, 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(seed=0, dim=7):
    return torch.randn(B, dim, generator=seeded(seed), dtype=torch.float64)


def module(n_images=N, temperature=0.2, **settings):
    settings = {"embed_dim": 5, "generator": seeded(3)} | settings
    return ContrastiveDistillation(n_images, 7, 7, temperature=temperature, **settings).double()


def contrast_rows(n_positives=P, n_images=N):
    """Anchors 0..B-1 in column 0; positives and negatives without the anchor."""
    others = torch.randint(B, n_images, (B, n_positives - 1 + K), generator=seeded(5))
    return torch.cat([torch.arange(B)[:, None], others], dim=1)


def slow_loss(crd, student, teacher, rows, n_positives):
    """The formula with one exponential at a time; Z from these very scores."""
    heads = {"student": crd.embed_student(student), "teacher": crd.embed_teacher(teacher)}
    g = {side: F.normalize(embedded, dim=1).detach() for side, embedded in heads.items()}
    banks = {"student": crd.bank_teacher, "teacher": crd.bank_student}
    total = 0.0
    for side in ("student", "teacher"):
        e = [[math.exp(float(g[side][i] @ banks[side][j]) / crd.temperature) for j in rows[i]] for i in range(B)]
        z = sum(map(sum, e)) / (len(e) * len(e[0])) * crd.n_images
        c = (len(e[0]) - n_positives) / crd.n_images
        for line in e:
            x = [value / z for value in line]
            total -= sum(math.log(v / (v + c + 1e-7)) for v in x[:n_positives]) / n_positives / B
            total -= sum(math.log(c / (v + c + 1e-7)) for v in x[n_positives:]) / B
    return total


@pytest.mark.parametrize("n_positives", [1, P])
def test_loss_equals_the_formula_written_out(n_positives):
    crd, rows = module(), contrast_rows(n_positives)
    student, teacher = features(), features(1)
    by_hand = slow_loss(crd, student, teacher, rows, n_positives)
    found = crd(student, teacher, torch.arange(B), rows, n_positives=n_positives)
    assert found.item() == pytest.approx(by_hand, rel=1e-10)


def test_constants_are_set_on_the_first_batch_and_stay():
    crd, rows = module(), contrast_rows()
    assert crd.log_z_student.isnan() and crd.log_z_teacher.isnan()
    crd(features(), features(1), torch.arange(B), rows, n_positives=P)
    first = crd.log_z_student.item(), crd.log_z_teacher.item()
    crd(features(7), features(8), torch.arange(B), rows, n_positives=P)
    assert (crd.log_z_student.item(), crd.log_z_teacher.item()) == first


def test_low_temperature_stays_finite_in_float32():
    crd = module(temperature=0.005).float()
    student = features().float().requires_grad_()
    loss = crd(student, features(1).float(), torch.arange(B), contrast_rows(), n_positives=P)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_banks_move_towards_the_embeddings_of_the_batch_only():
    crd, rows = module(momentum=0.25), torch.tensor([3, 0, 2, 1])
    before, student = crd.bank_student.clone(), features()
    crd(student, features(1), rows, contrast_rows(), n_positives=P)
    embedded = F.normalize(crd.embed_student(student), dim=1)
    expected = F.normalize(0.25 * before[rows] + 0.75 * embedded, dim=1)
    torch.testing.assert_close(crd.bank_student[rows], expected)
    assert torch.equal(crd.bank_student[B:], before[B:])


def test_teacher_features_get_no_gradient_and_both_heads_learn():
    crd = module()
    student, teacher = features().requires_grad_(), features(1).requires_grad_()
    crd(student, teacher, torch.arange(B), contrast_rows(), n_positives=P).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert crd.embed_student.weight.grad.abs().sum() > 0 and crd.embed_teacher.weight.grad.abs().sum() > 0


def test_gathered_rows_give_the_same_loss_and_gradient_as_the_dense_product(monkeypatch):
    found = []
    for limit in (10**9, 0):
        monkeypatch.setattr(memory, "DENSE_LIMIT", limit)
        student, crd = features().requires_grad_(), module()
        pick = {"n_positives": P, "selection": "hard", "n_selected": 3}
        loss = crd(student, features(1), torch.arange(B), contrast_rows(), **pick)
        loss.backward()
        found.append((loss.detach(), student.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def discrepancies(crd, student, teacher, rows):
    """Teacher cosine minus student cosine of every candidate, by loops."""
    gap = torch.zeros(B, P, dtype=torch.float64)
    for i in range(B):
        for j in range(P):
            row = rows[i, j]
            t = F.cosine_similarity(crd.embed_teacher(teacher[i]), crd.bank_teacher[row], dim=0)
            gap[i, j] = t - F.cosine_similarity(crd.embed_student(student[i]), crd.bank_student[row], dim=0)
    return gap


def test_hard_selection_keeps_the_anchor_once_and_the_largest_discrepancies_of_the_others():
    crd, rows, student, teacher = module(), contrast_rows(), features(), features(1)
    rows[2, 4] = 2  # the anchor among its own candidates: never kept
    gap = discrepancies(crd, student, teacher, rows)
    crd(student, teacher, torch.arange(B), rows, n_positives=P, selection="hard", n_selected=4)
    for i, columns in enumerate(crd.last_selected.tolist()):
        others = [j for j in range(1, P) if rows[i, j] != i]
        assert columns == [0, *sorted(others, key=lambda j: -gap[i, j])[:3]]


@pytest.mark.parametrize("selection", ["hard", "mid", "random", "curriculum"])
def test_a_small_class_is_kept_whole_before_any_of_its_rows_twice(selection):
    labels = torch.tensor([0] * 6 + [1] * (N - 6))
    sampler = ContrastSampler(labels, n_positives=12, n_negatives=4)
    rows = sampler(torch.arange(4), torch.Generator().manual_seed(0))
    crd = module()
    pick = {"n_positives": 12, "selection": selection, "n_selected": 6, "repeats": repeats_of(rows[:, :12])}
    crd(features(), features(1), torch.arange(4), rows, **pick)
    kept = rows.gather(1, crd.last_selected)
    assert kept.sort(dim=1).values.tolist() == [list(range(6))] * 4


def test_selected_positives_enter_the_loss_as_if_they_were_all():
    chosen = module()
    pick = {"n_positives": P, "selection": "hard", "n_selected": 3}
    loss = chosen(features(), features(1), torch.arange(B), contrast_rows(), **pick)
    kept = torch.cat([contrast_rows()[:, :P].gather(1, chosen.last_selected), contrast_rows()[:, P:]], dim=1)
    same = module()(features(), features(1), torch.arange(B), kept, n_positives=3)
    assert loss.item() == pytest.approx(same.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("selection", "progress", "low", "high"),
    [
        ("mid", 0.0, 30, 100),
        ("random", 0.0, 0, 159),
        ("curriculum", 0.0, 100, 150),
        ("curriculum", 10 / 30, 50, 100),
        ("curriculum", 0.99, 0, 50),
    ],
)
def test_drawn_positives_come_from_their_window_of_ranks(selection, progress, low, high):
    crd, n_positives = module(n_images=400), 160
    rows = torch.cat(
        [torch.arange(B)[:, None], torch.arange(B, 400)[:159].expand(B, -1), contrast_rows()[:, -K:]], dim=1
    )
    seen: dict[int, set[int]] = {i: set() for i in range(B)}
    start = {name: value.clone() for name, value in crd.state_dict().items() if "bank" in name}
    pick = {"n_positives": n_positives, "selection": selection, "n_selected": 20, "progress": progress}
    for _ in range(10):
        crd.load_state_dict(start, strict=False)  # the same banks, further draws
        crd(features(), features(1), torch.arange(B), rows, **pick)
        for i, columns in enumerate(crd.last_selected.tolist()):
            assert columns[0] == 0 and len(set(columns)) == 20
            seen[i].update(columns[1:])
    everything = module(n_images=400)
    everything(
        features(), features(1), torch.arange(B), rows, n_positives=n_positives, selection="hard", n_selected=160
    )
    for i, columns in enumerate(everything.last_selected.tolist()):
        window = set(columns[1:][low:high])
        assert seen[i] <= window and len(seen[i]) > 0.5 * len(window)


@pytest.mark.parametrize("selection", ["hard", "mid", "random", "curriculum"])
def test_few_candidates_are_all_kept(selection):
    crd = module()
    crd(features(), features(1), torch.arange(B), contrast_rows(), n_positives=P, selection=selection, n_selected=20)
    assert [sorted(columns) for columns in crd.last_selected.tolist()] == [list(range(P))] * B


def test_resumed_run_draws_the_same_positives():
    first, resumed = module(), module(generator=seeded(9))
    pick = {"n_positives": P, "selection": "random", "n_selected": 3}
    first(features(), features(1), torch.arange(B), contrast_rows(), **pick)
    resumed.load_state_dict(first.state_dict())
    for crd in (first, resumed):
        crd(features(), features(1), torch.arange(B), contrast_rows(), **pick)
    assert torch.equal(first.last_selected, resumed.last_selected)
    assert torch.equal(first.bank_student, resumed.bank_student)


def test_making_a_memory_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert torch.equal(module().bank_student, module().bank_student)
    assert torch.equal(torch.get_rng_state(), before)


def test_refuses_unknown_selection_missing_negatives_and_mismatched_batches():
    rows = contrast_rows()
    with pytest.raises(ParameterError, match='selection "easy"'):
        module()(features(), features(), torch.arange(B), rows, n_positives=P, selection="easy")
    with pytest.raises(ParameterError, match="a negative"):
        module()(features(), features(), torch.arange(B), rows, n_positives=rows.shape[1])
    with pytest.raises(MedkdError, match="one batch"):
        module()(features(), features(), torch.arange(B), rows[:2], n_positives=P)


LABELS = torch.tensor([2, 0, 1, 0, 2, 0, 0, 2, 0, 2, 5])  # five of class 0, one each of 1 and 5, four of 2


def test_sampler_gives_anchor_then_its_class_then_the_others():
    sampler = ContrastSampler(LABELS, n_positives=4, n_negatives=50)
    rows = torch.arange(len(LABELS))
    drawn = sampler(rows, seeded())
    assert drawn.shape == (11, 54)
    assert torch.equal(drawn[:, 0], rows)
    assert (LABELS[drawn[:, :4]] == LABELS[:, None]).all()
    assert (LABELS[drawn[:, 4:]] != LABELS[:, None]).all()


def test_sampler_draws_distinct_positives_while_the_class_has_enough():
    sampler = ContrastSampler(LABELS, n_positives=5, n_negatives=1)
    drawn = sampler(torch.tensor([1, 0, 2]), seeded())[:, :5].tolist()
    assert sorted(drawn[0]) == [1, 3, 5, 6, 8]  # all five of its class
    assert set(drawn[1]) == {0, 4, 7, 9} and drawn[1].count(0) == 1  # three others, one of them twice
    assert drawn[2] == [2] * 5  # alone in its class


@pytest.mark.parametrize("row", [1, 8])
def test_sampler_draws_positives_and_negatives_uniformly(row):
    sampler = ContrastSampler(LABELS, n_positives=2, n_negatives=3)
    drawn = sampler(torch.full((20_000,), row), seeded(1))
    positives = torch.bincount(drawn[:, 1], minlength=11) / 20_000
    negatives = torch.bincount(drawn[:, 2:].flatten(), minlength=11) / 60_000
    own = LABELS == 0
    expected = torch.where(own, 1 / 4, 0.0)
    expected[row] = 0
    torch.testing.assert_close(positives, expected, rtol=0, atol=0.015)
    torch.testing.assert_close(negatives, torch.where(own, 0.0, 1 / 6), rtol=0, atol=0.01)


def test_exact_sampler_takes_negatives_from_every_row_but_the_anchor():
    sampler = ContrastSampler(LABELS, n_positives=1, n_negatives=200, exact=True)
    drawn = sampler(torch.tensor([0, 4, 10]), seeded())
    for anchor, line in zip([0, 4, 10], drawn.tolist(), strict=True):
        assert line[0] == anchor and set(line[1:]) == set(range(11)) - {anchor}


def test_sampler_repeats_its_draws_for_the_same_seed_and_refuses_a_single_class():
    sampler = ContrastSampler(LABELS, n_positives=3, n_negatives=5)
    rows = torch.tensor([0, 1, 2])
    assert torch.equal(sampler(rows, seeded(4)), sampler(rows, seeded(4)))
    with pytest.raises(MedkdError, match="two classes"):
        ContrastSampler(torch.zeros(5, dtype=torch.long), n_positives=2, n_negatives=2)
    with pytest.raises(ParameterError, match="exact"):
        ContrastSampler(LABELS, n_positives=2, n_negatives=2, exact=True)
