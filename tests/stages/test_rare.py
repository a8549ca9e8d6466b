"""The rare-disease stages: published settings, checks of labels, every comparison method on the same tasks."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.data.episodes import draw_task
from medkd.data.folds import split_rows
from medkd.errors import DataError, ParameterError
from medkd.files import write_json, write_table
from medkd.report.plan import plan
from medkd.stages import (
    EvaluationParams,
    MocoParams,
    PseudoLabelParams,
    SelfDistillationParams,
    evaluate,
    label,
    pretrain,
    pseudo_labelling,
    self_distil,
)
from medkd.stages.context import Context, cohort_of
from medkd.stages.evaluation_rare import sources_of
from medkd.stages.moco_url import _probe_rows
from medkd.stages.pseudo_labelling import read_labels, rows_by_id, task_of
from medkd.stages.rare import DIM, MOCO_V2, build_encoder, build_moco, schedule_of, trained_encoder
from medkd.stages.rare_baselines import N_ROTATIONS, BaselineParams, oracle_runs, refuse_methods
from medkd.stages.self_distillation import METHODS
from medkd.stages.store import Run

TINY = {"dataset": "phantom-rare-skin", "image_size": 16, "width": 0.0625, "device": "cpu"}
MOCO = {"epochs": 1, "batch_size": 128, "queue_size": 100}
STUDENT = {"epochs": 1, "batch_size": 128, "queue_size": 100, "dic_every": 1}


def test_paper_settings_are_those_of_the_paper_and_valid():
    """Sun et al. 2021: lr .03, batch 16 on four GPUs, 200 epochs with steps at 120 and 160, m .999, L 1280, tau .07."""
    found = {entry.notebook: entry.parameters for entry in plan(["isic2018"], report="p", overrides={}, preset="paper")}
    params = MocoParams.checked(found["04_moco_url"])
    assert (params.lr, params.batch_size, params.epochs, params.bn_splits) == (0.03, 16, 200, 4)
    assert (params.momentum, params.queue_size, params.temperature) == (0.999, 1280, 0.07)
    assert (params.projection, params.augmentation, params.warmup_epochs) == ("linear", "paper", 0)
    student = SelfDistillationParams.checked(found["06_self_distillation"])
    assert (student.lr, student.epochs, student.warmup_epochs, student.dic_every) == (0.03, 200, 0, 10)
    assert (student.mix, student.gamma, student.k_shots, student.n_tasks) == (0.7, 0.1, [1, 3, 5], 3)
    assert student.of("moco").config() == params.config()
    factors = [round(schedule_of(params)(epoch, 200), 6) for epoch in (0, 119, 120, 160)]
    assert factors == [1, 1, 0.1, 0.01]


def test_warm_up_climbs_by_epochs_and_then_follows_the_schedule():
    plain, warm = (schedule_of(MocoParams(warmup_epochs=n)) for n in (0, 3))
    assert [warm(epoch, 10) / plain(epoch, 10) for epoch in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def context_of(**changes):
    return Context.of(MocoParams(**TINY, **changes))


def test_moco_v2_gets_its_head_its_augmentation_and_its_schedule():
    v1, v2 = context_of(), context_of(**MOCO_V2)
    first, second = (build_moco(context, "url") for context in (v1, v2))
    assert first.projection_head is None and first.query_encoder.head.out_features == DIM
    layers = [type(layer) for layer in second.projection_head]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear] and second.projection_head[-1].out_features == DIM
    images = torch.rand(4, 3, 16, 16)
    assert second.query_encoder(images).shape[1] == second.projection_head[0].in_features == 40
    output = second(images, images)
    assert output["query"].shape == (4, DIM) and output["features"].shape == (4, 40)
    from medkd.stages.rare import images_of

    strong, plain = images_of(v2).augment, images_of(v1).augment
    assert (strong.hue, strong.grayscale_p) == (0.1, 0.2) and (plain.hue, plain.grayscale_p) == (0, 0)
    assert schedule_of(v2.params)(5, 10) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("encoder", ["conv4", "resnet18"])
def test_other_backbones_get_a_head_in_place_of_their_last_layer(encoder):
    context = Context.of(MocoParams(**(TINY | {"width": 1.0, "encoder": encoder}), projection="mlp"))
    moco = build_moco(context, "url").eval()
    assert moco.query_encoder(torch.rand(2, 3, 32, 32)).shape[1] == moco.projection_head[0].in_features


def test_wrong_parameters_are_refused_before_anything_is_trained():
    with pytest.raises(ParameterError, match="methods.0 = 'maml' is not allowed"):
        SelfDistillationParams.checked({"methods": ["maml"]})
    with pytest.raises(ParameterError, match='unknown parameter "oracle_epoch" for 06_baselines; did you mean'):
        SelfDistillationParams.checked({"baselines": {"oracle_epoch": 3}})
    with pytest.raises(ParameterError, match='"reg" compares features .* another length: projection "linear" here and'):
        SelfDistillationParams.checked({"methods": ["reg"], "moco": {"projection": "mlp"}})
    alike = {"methods": ["reg"], "projection": "mlp", "moco": {"projection": "mlp"}}
    assert SelfDistillationParams.checked(alike)
    with pytest.raises(ParameterError, match="of width 0.25 here and .* of width 0.5 in moco; set both alike"):
        SelfDistillationParams.checked(alike | {"moco": {"projection": "mlp", "width": 0.5}})
    for name, value in (("seed", 1), ("by_lesion", False), ("dataset", "phantom-glioma")):
        with pytest.raises(ParameterError, match=f"baselines = .*{name}.* leave it out and set {name} itself"):
            SelfDistillationParams.checked({"baselines": {name: value}})
    assert SelfDistillationParams.checked({"seed": 4, "baselines": {"seed": 4}}).baseline_params().seed == 4


def test_comparison_methods_have_the_budget_of_the_url_run_unless_told_otherwise():
    params = SelfDistillationParams(moco={"epochs": 7, "lr": 0.5}, seed=4, baselines={"lr": 0.1})
    baseline = params.baseline_params()
    assert (baseline.epochs, baseline.lr, baseline.seed) == (7, 0.1, 4)
    assert params.moco_v2_params().projection == "mlp" and params.moco_v2_params().epochs == 7
    assert params.simclr_params().objective == "simclr"


@pytest.mark.parametrize(
    ("k_shots", "given", "wrong"),
    [
        ([1, 200], {}, "200"),
        ([1], {"methods": ["protonet"], "baselines": {"episode_shots": 60}}, "change batch_size or episode_shots"),
    ],
)
def test_tasks_and_episodes_that_cannot_be_drawn_are_told_before_the_url_run(project, k_shots, given, wrong):
    params = EvaluationParams(**TINY, k_shots=k_shots, n_tasks=1, moco=MOCO, self_distillation=given)
    with pytest.raises((DataError, ParameterError), match=wrong):
        sources_of(params)
    assert not (project / "reports" / "runs" / "04_moco_url").exists()


def test_an_oracle_of_too_few_images_is_told_in_its_own_words(labelled, monkeypatch):
    cohort = labelled[0]
    context = dataclasses.replace(Context.of(BaselineParams(**TINY)), cohort=cohort)
    with pytest.raises(
        ParameterError, match='the oracle splits the 8 rare images of tiny in 5 ways.*leave "oracle" out'
    ):
        refuse_methods(context, ["oracle"])


@pytest.fixture
def labelled(tmp_path):
    """A cohort of four common and eight rare images, one of its tasks, and a folder with that task's labels."""
    names = ["n"] * 4 + ["d"] * 4 + ["v"] * 4
    classes = ("n", "d", "v")
    table = pd.DataFrame({"id": [f"i{i}" for i in range(12)], "class": names, "patient": [f"p{i}" for i in range(12)]})
    table["label"], table["roi"] = [classes.index(name) for name in names], table["id"]
    images = {"photo": ArrayImages(np.zeros((12, 8, 8, 3), np.uint8))}
    cohort = Cohort("tiny", "Tiny", True, classes, table, images, base_classes=("n",), rare_classes=("d", "v"))
    drawn = draw_task(cohort, k_shot=1, task=0)
    frame = pd.DataFrame({"id": ["i2", "i0", "i1", "i3"], "task": drawn.name, "p_d": [0.1, 0.2, 0.3, 0.4]})
    frame = frame.assign(p_v=1 - frame["p_d"])
    write_json(tmp_path / "task.json", drawn.to_json())
    write_table(tmp_path / "pseudo_labels.csv", frame)
    run = Run(tmp_path, "05_pseudo_labelling", "key", {}, {}, (), cohort="c", seconds=0.0)
    return cohort, drawn, run, frame


def test_labels_are_read_by_image_id_whatever_the_order_of_the_table(labelled):
    cohort, drawn, run, _ = labelled
    for order in (np.arange(12), np.random.default_rng(0).permutation(12)):
        shuffled = cohort.take(order)
        rows, soft = read_labels(shuffled, run, drawn)
        found = dict(zip(shuffled.table["id"].to_numpy()[rows], soft[:, 0], strict=True))
        assert found == {"i2": 0.1, "i0": 0.2, "i1": 0.3, "i3": 0.4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.replace("i2", "x9"), r"names 1 images that are not in tiny: x9; use what was made from"),
        (lambda frame: frame.iloc[1:], r"has no label for 1 common images of tiny, i2; run 05"),
        (
            lambda frame: frame.assign(task="tiny-task7-k1"),
            "pseudo-labels of task tiny-task7-k1, but task tiny-task0-k1",
        ),
        (
            lambda frame: frame.rename(columns={"p_v": "p_w"}),
            "must have the columns id, task, p_d, p_v; it has id, task",
        ),
        (lambda frame: frame.assign(p_d=0.9), "probabilities that sum to 1"),
        (lambda frame: pd.concat([frame, frame[:1]]), "each common image once"),
    ],
    ids=["id", "missing", "task", "class", "sum", "twice"],
)
def test_a_labels_file_that_does_not_fit_is_one_clear_sentence(labelled, change, message):
    cohort, drawn, run, frame = labelled
    write_table(run.folder / "pseudo_labels.csv", change(frame))
    with pytest.raises(DataError, match=message) as found:
        read_labels(cohort, run, drawn)
    assert "\n" not in str(found.value)


def test_pseudo_labels_of_another_task_are_refused(labelled):
    cohort, drawn, run, _ = labelled
    with pytest.raises(DataError, match=r"pseudo-labels of task tiny-task0-k1 \(seed 0\), but task tiny-task1-k1"):
        read_labels(cohort, run, draw_task(cohort, k_shot=1, task=1))
    with pytest.raises(DataError, match=r"\(seed 5\) is asked for"):
        read_labels(cohort, run, dataclasses.replace(drawn, seed=5))


@pytest.mark.slow
def test_a_rare_class_with_fewer_images_than_shots_is_refused_before_anything_is_made(project):
    with pytest.raises(DataError, match=r'class ".*" of phantom-rare-skin has \d+ images, but k_shot = 500 needs'):
        label(PseudoLabelParams(**TINY, k_shots=[1, 500], n_tasks=1, moco=MOCO))
    assert not (project / "reports" / "runs").exists()


@pytest.mark.slow
def test_pseudo_labels_do_not_depend_on_batch_size_or_order(home):
    """The encoder is in evaluation mode: the released code's labels moved with the batch they stood in."""
    params = MocoParams(**TINY, **MOCO)
    run, context = pretrain(params), Context.of(params)
    encoder, stored = trained_encoder(context, run, params), run.tensors("features")["features"]
    from medkd.evaluation.predict import encode
    from medkd.stages.rare import images_of

    order = torch.randperm(len(context.cohort), generator=torch.Generator().manual_seed(0))[:300]
    for batch_size in (1, 7, 256):
        found = encode(encoder, images_of(context), order, device=context.device, batch_size=batch_size)
        torch.testing.assert_close(
            torch.from_numpy(found), stored[order], rtol=1e-3, atol=1e-4 * float(stored.abs().max())
        )


@pytest.mark.slow
def test_every_teacher_and_its_options_label_all_tasks(home):
    for options in ({"classifier": "ridge"}, {"classifier": "centroid", "normalize": "l2"}, {"support_views": "aug5"}):
        runs = label(PseudoLabelParams(**TINY, k_shots=[1, 5], n_tasks=2, moco=MOCO, **options))
        assert set(runs) == {(1, 0), (1, 1), (5, 0), (5, 1)}
        assert all(run.config[name] == value for run in runs.values() for name, value in options.items())
    again = label(PseudoLabelParams(**TINY, k_shots=[1], n_tasks=1, moco=MOCO, support_views="aug5"))
    assert not again[1, 0].made


@pytest.mark.slow
def test_the_papers_tasks_keep_other_images_of_a_support_lesion_in_the_query_set(home):
    shots = {"k_shots": [5], "n_tasks": 1}
    for by_lesion in (True, False):
        params = EvaluationParams(**TINY, **shots, by_lesion=by_lesion, moco=MOCO)
        labels = params.of("self_distillation").of("pseudo_labels")
        drawn = task_of(label(labels)[5, 0])
        table = cohort_of(TINY["dataset"], "").table.set_index("id")
        lesions = [set(table.loc[list(ids), "patient"]) for ids in (drawn.support_ids, drawn.query_ids)]
        assert bool(lesions[0] & lesions[1]) != by_lesion
        rare = table["class"].isin(drawn.classes).sum()
        assert (len(drawn.support_ids) + len(drawn.query_ids) == rare) != by_lesion


@pytest.mark.slow
def test_every_method_is_scored_on_the_same_query_images_of_the_same_tasks(home):
    self_distillation = STUDENT | {
        "methods": list(METHODS),
        "heads": ["direct", "refit"],
        "baselines": {"scratch_epochs": 1, "scratch_steps": 2, "oracle_epochs": 1},
    }
    shots = {"k_shots": [1, 5], "n_tasks": 1}
    params = EvaluationParams(**TINY, **shots, n_resamples=100, moco=MOCO, self_distillation=self_distillation)
    run = evaluate(params)
    predictions = run.table("predictions")
    refitted = {"cls only + LR", "con + L1 + LR", "Hbr.Dst. + LR", "Hbr.Dst.-DDL + LR", "Hbr.Dst.-DIC + LR"}
    assert set(predictions["method"]) == set(METHODS.values()) - {"con + L1"} | refitted
    labels = label(params.of("self_distillation").of("pseudo_labels"))
    for (setting, _), group in predictions.groupby(["setting", "method"]):
        drawn = task_of(labels[int(setting.removeprefix("K=")), 0])
        assert set(group["id"]) == set(drawn.query_ids) and not set(group["id"]) & set(drawn.support_ids)
    np.testing.assert_allclose(predictions.filter(like="p_").sum(axis=1), 1, atol=1e-5)
    summary = run.table("summary").set_index(["setting", "method", "metric"])["value"]
    for (setting, method), group in predictions.groupby(["setting", "method"]):
        recall = [summary[setting, method, f"recall_{i}"] for i in range(3)]
        share = np.bincount(group["label"], minlength=3) / len(group)
        assert summary[setting, method, "accuracy"] == pytest.approx(np.dot(recall, share))
        assert summary[setting, method, "balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert set(run.table("differences")["minus"]) == {"MoCo + LR"}
    shown = set(run.table("embedding")["method"])
    assert "oracle" not in shown and {"MoCo + LR", "scratch", "Hbr.Dst."} <= shown  # five networks share no axes
    assert not any(source[0].made for source in sources_of(params))  # all of it was kept


@pytest.mark.slow
def test_the_oracle_never_classifies_an_image_whose_lesion_it_was_trained_on(home):
    params = SelfDistillationParams(**TINY, moco=MOCO, baselines={"oracle_epochs": 1})
    cohort = cohort_of(TINY["dataset"], "")
    rare = cohort.rows_of(cohort.rare_classes)
    runs = oracle_runs(Context.of(params.baseline_params()))
    ids = [run.table("ids")["id"].tolist() for run in runs]
    assert sorted(sum(ids, [])) == sorted(cohort.table["id"].iloc[rare])
    for rotation, found in enumerate(ids):
        split = split_rows(cohort.take(rare), fold=rotation, n_folds=N_ROTATIONS, val_fraction=1 / 8)
        shares = [len(part) / len(rare) for part in (split.train, split.val, split.test)]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.05)
        tested = set(cohort.groups[rows_by_id(cohort, found)])
        assert not tested & set(cohort.groups[rare[split.train]])


@pytest.mark.slow
def test_published_splits_of_a_rare_cohort_are_not_used(home):
    """Its common images may all be in "train", and the one split has no five rotations."""
    params = SelfDistillationParams(**TINY, moco=MOCO, baselines={"oracle_epochs": 1})
    plain = Context.of(params.baseline_params())
    official = pd.DataFrame({"official": ["train"] * len(plain.cohort)})
    published = dataclasses.replace(plain, cohort=dataclasses.replace(plain.cohort, splits=official))
    base = plain.cohort.rows_of(plain.cohort.base_classes)
    for expected, found in zip(_probe_rows(plain, base), _probe_rows(published, base), strict=True):
        np.testing.assert_array_equal(found, expected)
    ids = [run.table("ids")["id"].tolist() for run in oracle_runs(published)]
    assert ids == [run.table("ids")["id"].tolist() for run in oracle_runs(plain)]


@pytest.mark.slow
def test_settings_that_a_variant_does_not_use_do_not_train_it_again(home):
    own = STUDENT | {"methods": ["hybrid", "hybrid_dic", "reg"], "k_shots": [1], "n_tasks": 1}
    base = {**TINY, "moco": MOCO, **own}
    self_distil(SelfDistillationParams(**base))

    def made(**changes):
        return {key[0] for key, run in self_distil(SelfDistillationParams(**(base | changes))).items() if run.made}

    assert made(dic_every=2) == {"hybrid_dic"}
    assert made(labels="soft") == {"hybrid", "hybrid_dic"}
    assert made(heads=["refit"]) == set()
    shown = {}
    for head in ("direct", "refit"):
        students = STUDENT | {"methods": ["moco_v1", "hybrid"], "heads": [head]}
        params = EvaluationParams(
            **TINY, k_shots=[1], n_tasks=1, n_resamples=100, moco=MOCO, self_distillation=students
        )
        shown[head] = set(evaluate(params).table("predictions")["method"]) - {"MoCo + LR"}
    ridge = EvaluationParams.checked(params.model_dump() | {"pseudo_labels": {"classifier": "ridge"}})
    run = evaluate(ridge)
    assert set(run.table("predictions")["method"]) == {"MoCo + ridge", "Hbr.Dst. + ridge"}
    assert set(run.table("differences")["minus"]) == set(run.table("embedding")["reference"]) == {"MoCo + ridge"}
    assert shown == {"direct": {"Hbr.Dst."}, "refit": {"Hbr.Dst. + LR"}}
    assert json.loads((self_distil(SelfDistillationParams(**base))["reg", 1, 0].folder / "task.json").read_text())


def test_a_published_network_is_built_without_its_width_being_asked_for(home):
    encoder, _, _ = build_encoder(MocoParams(**TINY, encoder="resnet18"))
    assert encoder.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, DIM)


def test_the_labelling_stage_hands_its_options_to_the_classifier(lesion_cohort, monkeypatch):
    given = {}
    monkeypatch.setattr(pseudo_labelling, "label_tasks", lambda *_, **options: given.update(options) or {})
    params = pseudo_labelling.PseudoLabelParams(classifier="ridge", normalize="l2", C=0.25)
    context = Context(params, lesion_cohort({"n": 4, "d": 4, "v": 4}), torch.device("cpu"))
    pseudo_labelling.classify(context, np.zeros((3, 2)), {}, np.arange(2))
    assert (given["classifier"], given["normalize"], given["C"]) == ("ridge", "l2", 0.25)
