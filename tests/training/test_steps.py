"""The training steps: what gets gradient, what moves, and what the classification loss is made of."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medkd.data.views import Augment
from medkd.errors import DataError, ParameterError
from medkd.losses.orthogonality import orthogonality
from medkd.models.fusion import ConcatFusion
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.training.baselines import BASELINES, build_baseline
from medkd.training.distillation import DistillationStep, warn_about_small_classes
from medkd.training.inputs import ImageModality, VectorModality
from medkd.training.loop import fit, linear_decay
from medkd.training.recipe import GMCD_TERMS, METHODS, Recipe
from medkd.training.stop import Stopped, request_stop
from medkd.training.tasks import Classification, Survival
from medkd.training.teacher import TeacherRecipe, TeacherStep

CPU = torch.device("cpu")
N, SIZE, DIM, CLASSES = 24, 8, 6, 3
WITHOUT_MAPS = [name for name in METHODS if name not in BASELINES or not BASELINES[name].maps]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    images = ImageModality(rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8), Augment(), CPU)
    vectors = VectorModality(rng.normal(size=(N, 5)).astype(np.float32), np.arange(N), CPU)
    rows = np.arange(N)
    return [images, vectors], Classification(rows % CLASSES, CLASSES, rows, balanced=False, device=CPU)


def image_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, DIM), nn.ReLU())


def network():
    torch.manual_seed(0)
    second = nn.Sequential(nn.Linear(5, DIM), nn.ReLU())
    return MultimodalTeacher(image_encoder(), second, ConcatFusion(DIM, DIM, DIM), DIM, CLASSES)


def teacher_step(data, **changes):
    recipe = TeacherRecipe(**({"l1": 1e-3} | changes))
    step = TeacherStep(
        network(), *data, torch.arange(N), vectors=["second"], recipe=recipe, device=CPU, precision="float32"
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step


def student_step(data, method, **changes):
    torch.manual_seed(1)
    student = SingleModalityNet(image_encoder(), DIM, CLASSES)
    small = {"n_positives": 4, "n_selected": 3, "n_negatives": 8}
    rows = torch.arange(N)
    step = DistillationStep(
        student,
        network() if method != "ce" else None,
        *data,
        None if isinstance(data[1], Survival) else rows % CLASSES,
        rows,
        rows,
        recipe=Recipe(method=method, **(small | changes)),
        generator=torch.Generator().manual_seed(0),
        device=CPU,
        precision="float32",
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step


def test_teacher_loss_is_the_sum_of_its_terms_and_each_can_be_left_out(data):
    loss, terms = teacher_step(data).loss(torch.arange(8), 0.0)
    assert set(terms) == {"nll", "mean_teacher", "l1", "low_rank"}
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))
    _, bare = teacher_step(data, low_rank_weight=0.0, mean_teacher=0.0, l1=0.0).loss(torch.arange(8), 0.0)
    assert set(bare) == {"nll"}


def test_low_rank_term_gives_the_fusion_no_gradient(data):
    """Specification 3.4: only the branches' own views carry gradient."""
    step = teacher_step(data)
    step.low_rank.mu.fill_(1.0)
    _, terms = step.loss(torch.arange(12), 0.0)
    terms["low_rank"].backward()
    assert all(p.grad is None or not p.grad.any() for p in step.teacher.fusion.parameters())
    assert any(p.grad.any() for p in step.teacher.main.encoder.parameters())
    assert any(p.grad.any() for p in step.teacher.second.encoder.parameters())


def test_momentum_copy_is_a_copy_after_the_first_step_and_lags_after_the_second(data):
    step = teacher_step(data)
    weight, copied = step.teacher.classifier.weight, step.copy.module.classifier.weight
    with torch.no_grad():
        weight.add_(1.0)
    step.after_step()
    assert torch.equal(weight, copied)
    with torch.no_grad():
        weight.add_(1.0)
    step.after_step()  # momentum 1 - 1 / 2
    torch.testing.assert_close(copied, weight - 0.5)


def test_distillation_leaves_the_fixed_teacher_untouched(data):
    step = student_step(data, "gmcd")
    before = {name: tensor.clone() for name, tensor in step.teacher.state_dict().items()}
    step.modules.train()
    loss, _ = step.loss(torch.arange(8), 0.0)
    loss.backward()
    step.after_step()
    assert not step.teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_gmcd_loss_is_cross_entropy_plus_weighted_terms(data):
    step = student_step(data, "gmcd")
    loss, terms = step.loss(torch.arange(8), 0.0)
    weighted = sum(terms[f"weight_{name}"].item() * terms[name].item() for name in GMCD_TERMS)
    assert loss.item() == pytest.approx(terms["ce"].item() + weighted, rel=1e-5)


@pytest.mark.parametrize("method", [name for name in BASELINES if not BASELINES[name].maps])
def test_a_baseline_adds_its_weighted_term_and_teaches_the_student(data, method):
    step = student_step(data, method)
    loss, terms = step.loss(torch.arange(8), 0.0)
    name = "kd_teacher" if method == "kd" else method
    assert set(terms) == {"ce", name}
    assert loss.item() == pytest.approx(terms["ce"].item() + terms[name].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms[name], step.student.encoder[1].weight)
    assert gradient.abs().sum() > 0
    assert {id(p) for p in step.student.parameters()} <= {id(p) for p in step.parameters()}


def conv_encoder():
    """Two convolutions: a network that has maps to compare."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, DIM), nn.ReLU()
    )


@pytest.mark.parametrize("method", ["at", "nst"])
def test_map_methods_compare_the_student_with_the_image_branch_of_the_teacher(data, method):
    second = nn.Sequential(nn.Linear(5, DIM), nn.ReLU())
    teacher = MultimodalTeacher(conv_encoder(), second, ConcatFusion(DIM, DIM, DIM), DIM, CLASSES)
    rows, recipe = torch.arange(N), Recipe(method=method)
    settings = {"recipe": recipe, "generator": torch.Generator(), "device": CPU, "precision": "float32"}
    same = SingleModalityNet(conv_encoder(), DIM, CLASSES)
    step = DistillationStep(same, teacher, *data, rows % CLASSES, rows, rows, **settings)
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    _, terms = step.loss(torch.arange(8), 0.0)
    assert terms[method].item() == pytest.approx(0, abs=1e-4)  # the same encoder: the same maps
    with torch.no_grad():
        same.encoder[0].weight.neg_()
    loss, terms = step.loss(torch.arange(8), 0.0)
    assert terms[method].item() > 1e-3
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_soft_modulation_is_four_times_the_row_sums_of_the_cosines(data):
    step = student_step(data, "gmcd", modulation="soft")
    _, terms = step.loss(torch.arange(8), 0.0)
    weights = torch.stack([value for name, value in terms.items() if name.startswith("weight_")])
    torch.testing.assert_close(weights, 4 * step.modulation.last_cosine.sum(dim=1)[:-1])


def test_without_modulation_every_term_counts_once_and_a_single_teacher_leaves_two(data):
    loss, terms = student_step(data, "gmcd", modulation="none").loss(torch.arange(8), 0.0)
    assert loss.item() == pytest.approx(terms["ce"].item() + sum(terms[name].item() for name in GMCD_TERMS), rel=1e-5)
    alone = student_step(data, "gmcd", n_teachers=1)
    assert "copy" not in alone.modules  # its own momentum copy teaches nothing then
    _, single = alone.loss(torch.arange(8), 0.0)
    alone.after_step()
    assert {name for name in single if not name.startswith("weight_")} == {"ce", "kd_teacher", "contrast_teacher"}


def test_selection_of_all_positives_keeps_more_than_the_hard_ones(data):
    kept = {}
    for selection in ("hard", "all"):
        step = student_step(data, "gmcd", selection=selection)
        step.loss(torch.arange(8), 0.0)
        kept[selection] = step.contrast["teacher"].last_selected.shape[1]
    assert kept == {"hard": 3, "all": 4}


def test_candidates_are_never_more_than_the_largest_class(data):
    assert student_step(data, "gmcd", n_positives=300).n_positives == N // CLASSES


def test_positives_for_the_picture_are_ranked_by_discrepancy_and_of_the_anchors_class(data):
    step = student_step(data, "gmcd", n_positives=8)
    table = step.positives(torch.arange(3), torch.arange(N), 2)
    for anchor, group in table.groupby("anchor"):
        assert (group["candidate"] % CLASSES == anchor % CLASSES).all() and anchor not in set(group["candidate"])
        assert group["rank"].tolist() == [0, 1, 5, 6]
        assert (group["discrepancy"].diff().dropna() <= 0).all()


def test_a_branch_is_taught_by_one_two_or_three_branches_of_the_momentum_copy(data):
    """Specification 3.2: own; own and fused; own, fused and the other modality. The fused branch: always its own."""
    step = teacher_step(data)
    step.modules.eval()
    current, momentum = step._both(torch.arange(8))
    pull = {
        (branch, by): step.task.match(getattr(current, f"logits_{branch}"), getattr(momentum, f"logits_{by}")).item()
        for branch in ("main", "fused")
        for by in ("main", "fused", "second")
    }
    for n_teachers, by in ((1, ["main"]), (2, ["main", "fused"]), (3, ["main", "fused", "second"])):
        step.recipe = TeacherRecipe(n_teachers=n_teachers)
        expected = np.mean([pull["main", name] for name in by])
        assert step._mean_teacher(current, momentum, "main").item() == pytest.approx(expected, rel=1e-5)
        assert step._mean_teacher(current, momentum, "fused").item() == pytest.approx(pull["fused", "fused"], rel=1e-5)


@pytest.mark.parametrize("n_views", [2, 4, 6, 8])
def test_views_of_the_low_rank_tensor(data, n_views):
    """Specification 3.4: one view with gradient; mixes of max-normalised momentum features beyond four."""
    step = teacher_step(data, n_views=n_views)
    current, momentum = step._both(torch.arange(8))
    views = step._views(current, momentum, "second")
    assert len(views) == n_views
    assert [view.requires_grad for view in views].count(True) == 1
    if n_views > 4:
        own, other = momentum.second / momentum.second.max(), momentum.main / momentum.main.max()
        torch.testing.assert_close(views[4], 0.9 * own + 0.1 * other)
        torch.testing.assert_close(
            views[-1], (0.8 if n_views == 6 else 0.6) * own + (0.2 if n_views == 6 else 0.4) * other
        )


def test_without_momentum_views_two_are_left_and_a_contradiction_is_refused(data):
    step = teacher_step(data, momentum_views=False)
    views = step._views(*step._both(torch.arange(8)), "main")
    assert [view.requires_grad for view in views] == [False, True]
    with pytest.raises(ParameterError, match="momentum_views = false leaves two views"):
        TeacherRecipe(momentum_views=False, n_views=2)


def test_penalty_schedule_reaches_its_ceiling_after_121_steps(data):
    step = teacher_step(data)
    for number in range(121):
        step.low_rank(step._views(*step._both(torch.arange(4)), "main"))
        assert (float(step.low_rank.mu) == 1.0) == (number == 120)


def test_spectrum_shrinks_every_singular_value_and_changes_nothing(data):
    step = teacher_step(data)
    step.low_rank.mu.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in step.modules.state_dict().items()}
    table = step.spectrum(torch.arange(12))
    wide = table.pivot(index=["modality", "frequency", "rank"], columns="state", values="value")
    assert len(wide) == 2 * 12 * 4
    assert (wide["after"] <= wide["before"] + 1e-9).all() and (wide["after"] < wide["before"] - 1e-3).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.modules.state_dict().items())


def test_orthogonality_joins_the_loss_when_it_is_asked_for(data):
    step, rows = teacher_step(data, orthogonal=0.5), torch.arange(8)
    step.generator.manual_seed(5)
    _, terms = step.loss(rows, 0.0)
    step.generator.manual_seed(5)
    seen = step.teacher(*(modality.augmented(rows, step.generator) for modality in step.inputs))
    assert terms["orthogonal"].item() == pytest.approx(0.5 * orthogonality(seen.main, seen.second).item(), rel=1e-5)
    assert terms["orthogonal"].item() > 0


@pytest.fixture
def survival(data):
    rng = np.random.default_rng(1)
    return [data[0], Survival(rng.exponential(10, N), rng.integers(0, 2, N).astype(float), np.arange(N), device=CPU)]


def with_one_output(step_of, survival, *args, **changes):
    """A step whose heads give one risk."""
    global CLASSES
    n_classes, CLASSES = CLASSES, 1
    try:
        return step_of(survival, *args, **changes)
    finally:
        CLASSES = n_classes


def test_survival_runs_through_teacher_and_student(survival):
    step = with_one_output(teacher_step, survival)
    loss, terms = step.loss(torch.arange(12), 0.0)
    assert set(terms) == {"nll", "mean_teacher", "l1", "low_rank"} and torch.isfinite(loss)
    assert 0 <= step.validate()["val_c_index"] <= 1
    student = with_one_output(student_step, survival, "gmcd")
    loss, terms = student.loss(torch.arange(12), 0.0)
    loss.backward()
    assert student.n_positives == 1  # the anchor: there are no classes to draw from
    assert set(GMCD_TERMS) <= set(terms) and 0 <= student.validate()["val_c_index"] <= 1


def test_matching_risks_is_their_squared_difference_and_spares_the_teacher(survival):
    task = survival[1]
    student, teacher = (torch.randn(5, 1, requires_grad=True) for _ in range(2))
    found = task.match(student, teacher)
    by_hand = ((6 * student.sigmoid() - 6 * teacher.sigmoid()) ** 2).mean()
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    found.backward()
    assert student.grad is not None and teacher.grad is None


def test_balanced_classes_weigh_the_loss_by_inverse_frequency():
    labels = np.array([0, 0, 0, 1])
    task = Classification(labels, 2, np.arange(4), balanced=True, device=CPU)
    scores = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    each = F.cross_entropy(scores, torch.from_numpy(labels), reduction="none")
    assert task.loss(scores, torch.arange(4)).item() == pytest.approx((each[:3].mean() + each[3]).item() / 2, rel=1e-6)


def test_a_cohort_without_any_event_cannot_be_trained_for_survival():
    with pytest.raises(DataError, match="no event was observed among the training rows"):
        Survival(np.ones(3), np.zeros(3), np.arange(3), device=CPU)


def test_unknown_methods_and_more_positives_than_candidates_are_refused():
    with pytest.raises(ParameterError, match='method "hinton" is unknown; known are ce, kd'):
        Recipe(method="hinton")
    with pytest.raises(ParameterError, match="n_selected = 20 positives cannot be kept of n_positives = 10"):
        Recipe(n_positives=10)
    assert METHODS[0] == "ce" and METHODS[-1] == "gmcd"


def test_crd_contrasts_with_other_classes_and_without_classes_with_all_other_rows():
    labels = torch.arange(12) % 3
    for known, apart in ((labels, True), (torch.zeros_like(labels), False)):
        crd = build_baseline("crd", dim=4, labels=known, exact=not apart, n_negatives=400, generator=torch.Generator())
        drawn = crd.sampler(torch.tensor([0, 7]), torch.Generator().manual_seed(0))
        for anchor, line in zip((0, 7), drawn.tolist(), strict=True):
            others = {row for row in range(12) if row != anchor and not (apart and row % 3 == anchor % 3)}
            assert line[0] == anchor and set(line[1:]) == others


@pytest.mark.parametrize("method", ["kd", "crd", "gmcd"])
def test_every_method_sees_the_rows_and_first_views_that_labels_alone_see(data, method, tmp_path):
    """Whatever else a method draws: second views, contrast rows."""

    def seen(method):
        step, first_views = student_step(data, method), []

        def loss(rows, progress):
            views = []
            step.inputs = [Recorded(data[0][0], views), data[0][1]]
            found = DistillationStep.loss(step, rows, progress)
            first_views.append((rows.tolist(), views[0]))
            return found

        step.loss = loss
        optimizer = torch.optim.SGD(step.parameters(), lr=0.0)
        options = {"epochs": 2, "batch_size": 8, "schedule": linear_decay, "seed": 3, "title": method}
        fit(step, torch.arange(N), optimizer, folder=tmp_path / method, **options)
        return first_views

    alone, taught = seen("ce"), seen(method)
    assert len(alone) == len(taught) == 6
    assert [rows for rows, _ in taught] == [rows for rows, _ in alone]
    assert all(torch.equal(*pair) for pair in zip((v for _, v in taught), (v for _, v in alone), strict=True))
    assert not torch.equal(alone[0][1], alone[3][1])


def stepped(data, kind):
    return teacher_step(data) if kind == "teacher" else student_step(data, kind)


@pytest.mark.parametrize("kind", ["teacher", *WITHOUT_MAPS])
@pytest.mark.parametrize("at", [1, 4])
def test_a_training_that_is_stopped_goes_on_bit_for_bit_and_repeats_no_step(data, kind, at, tmp_path):
    steps = [stepped(data, kind) for _ in range(3)]
    counts = [0, 0, 0]

    def trained(number, folder, stop_at=0):
        after = steps[number].after_step

        def counted():
            after()
            counts[number] += 1
            if counts[number] == stop_at:
                request_stop()

        steps[number].after_step = counted
        optimizer = torch.optim.Adam([p for p in steps[number].modules.parameters() if p.requires_grad], lr=0.01)
        options = {"epochs": 2, "batch_size": 8, "schedule": linear_decay, "seed": 3, "title": kind}
        options |= {"folder": tmp_path / folder, "select": "val_auc_macro"}
        return fit(steps[number], torch.arange(N), optimizer, **options)

    history = trained(0, "whole")
    with pytest.raises(Stopped):
        trained(1, "parts", at)
    again = trained(2, "parts")
    assert counts == [6, at, 6 - at]
    assert history.drop(columns="seconds").equals(again.drop(columns="seconds"))
    resumed = steps[2].modules.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in steps[0].modules.state_dict().items())


class Recorded:
    """A modality that keeps the views it gave."""

    def __init__(self, modality, views):
        self.modality, self.views = modality, views

    def augmented(self, rows, generator):
        self.views.append(self.modality.augmented(rows, generator))
        return self.views[-1]

    def plain(self, rows):
        return self.modality.plain(rows)


def test_small_classes_are_named_once_with_their_counts():
    with pytest.warns(UserWarning, match=r"fewer training samples than n_positives = 3 in DF \(2\): all of them"):
        warn_about_small_classes(torch.tensor([0, 0, 0, 1, 1]), ["NV", "DF"], 3)


def test_kd_adds_one_term_and_ce_none(data):
    assert set(student_step(data, "ce").loss(torch.arange(8), 0.0)[1]) == {"ce"}
    assert set(student_step(data, "kd").loss(torch.arange(8), 0.0)[1]) == {"ce", "kd_teacher"}
