"""Stage parameters: one class is the source of notebook cell, checks and hand-over."""

import re

import pytest

from medkd.errors import ParameterError
from medkd.stages import (
    DistillationParams,
    EvaluationParams,
    MocoParams,
    PseudoLabelParams,
    SelfDistillationParams,
    TeacherParams,
    stage_params,
)
from medkd.stages.distillation import ABLATIONS


def test_every_parameter_is_typed_and_explained_in_the_cell():
    for cls in stage_params().values():
        lines = cls.cell().splitlines()[1:]
        assert len(lines) == len(cls.model_fields)
        for line in lines:
            assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict) = .+  # .{8,}", line), line


def test_the_rendered_cell_holds_the_defaults():
    for cls in stage_params().values():
        namespace = {}
        exec(cls.cell(), namespace)
        assert cls.collect(namespace) == cls()


def test_a_list_that_a_formatter_would_break_into_lines_is_kept_on_its_own(monkeypatch):
    monkeypatch.setattr("medkd.stages.params.LINE_LENGTH", 60)
    methods, epochs, lr = (
        next(line for line in DistillationParams.cell().splitlines() if line.startswith(f"{name}:"))
        for name in ("methods", "epochs", "lr")
    )
    assert methods.endswith("  # fmt: skip") and not epochs.endswith("skip") and not lr.endswith("skip")


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(
        ParameterError, match='unknown parameter "tempreature" for 03_distillation; did you mean "temperature"'
    ):
        DistillationParams.checked({"tempreature": 2.0})


def test_value_out_of_range_names_parameter_and_value():
    with pytest.raises(ParameterError, match=r"02_teacher_training: epochs = 0 is not allowed"):
        TeacherParams.checked({"epochs": 0})


def test_a_stage_without_any_student_is_refused():
    with pytest.raises(ParameterError, match=r"methods = \[\] is not allowed"):
        DistillationParams.checked({"methods": [], "ablations": ["no GKM"]})


@pytest.mark.parametrize(
    ("stage", "given", "wrong"),
    [
        (DistillationParams, {"n_positives": 10}, "n_selected = 20 positives cannot be kept of n_positives = 10"),
        (DistillationParams, {"ablations": ["no momentum views"], "teacher": {"n_views": 8}}, "set it to 4"),
        (
            DistillationParams,
            {"frozen": True, "methods": ["ce", "at"]},
            "methods at compare feature maps, and with frozen",
        ),
        (DistillationParams, {"modulation_threshold": 1.5}, "modulation_threshold = 1.5 is not allowed"),
        (TeacherParams, {"mu": 2.0}, "mu = 2 lies above max_mu = 1"),
        (MocoParams, {"batch_size": 5}, "bn_splits = 4 leaves a part of one image of batch_size = 5"),
        (MocoParams, {"batch_size": 4}, "leaves a part of one image"),
        (SelfDistillationParams, {"batch_size": 5}, "06_self_distillation: bn_splits = 4 leaves a part of one image"),
        (SelfDistillationParams, {"moco": {"objective": "simclr"}}, 'would stand as "MoCo . LR" in every table'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(stage, given, wrong):
    with pytest.raises(ParameterError, match=wrong):
        stage.checked(given)


def test_settings_of_gmcd_alone_do_not_stop_other_students():
    assert DistillationParams.checked({"methods": ["ce", "kd"], "n_positives": 10}).n_positives == 10
    assert MocoParams.checked({"batch_size": 5, "bn_splits": 1}).batch_size == 5


def test_a_wrong_upstream_parameter_is_refused_by_the_stage_that_hands_it_on():
    with pytest.raises(ParameterError, match='unknown parameter "epoch" for 02_teacher_training'):
        DistillationParams.checked({"teacher": {"epoch": 3}})


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"teacher": {"n_folds": 4}}, "teacher = {'n_folds': 4} differs from n_folds = 5"),
        ({"teacher": {"seed": 5}}, "differs from seed = 0"),
        ({"teacher": {"dataset": "phantom-paired-skin"}}, "set dataset itself"),
        ({"teacher": {"task": "survival"}}, "might have seen test samples"),
    ],
)
def test_a_teacher_of_another_split_or_cohort_is_refused(given, wrong):
    with pytest.raises(ParameterError, match=wrong):
        DistillationParams.checked(given)
    with pytest.raises(ParameterError, match=wrong):
        EvaluationParams.checked(given)
    assert DistillationParams.checked({"n_folds": 4, "teacher": {"n_folds": 4}}).of("teacher").n_folds == 4


@pytest.mark.parametrize(
    ("stage", "given", "wrong"),
    [
        (
            DistillationParams,
            {"teacher": {"image_size": 96}},
            "= 48; leave it out and set image_size itself",
        ),
        (DistillationParams, {"teacher": {"frozen": True}}, "the teacher reads what the student is shown"),
        (
            DistillationParams,
            {"frozen": True, "weights": "w.pth", "encoder": "resnet18", "teacher": {"encoder": "resnet34"}},
            "set encoder itself",
        ),
        (PseudoLabelParams, {"support_views": "aug5", "moco": {"image_size": 96}}, "set image_size itself"),
        (EvaluationParams, {"distillation": {"folds": 1}}, "folds = 2; leave it out and set folds itself"),
        (EvaluationParams, {"self_distillation": {"k_shots": [1]}}, "set k_shots itself: the evaluation is of"),
        (EvaluationParams, {"self_distillation": {"n_tasks": 9}}, "set n_tasks itself"),
    ],
)
def test_what_two_stages_must_share_is_not_set_for_one(stage, given, wrong):
    with pytest.raises(ParameterError, match=wrong):
        stage.checked(given)


def test_a_teacher_may_have_another_encoder_and_labels_may_be_looked_at_for_more_shots():
    assert DistillationParams.checked({"teacher": {"encoder": "conv4"}}).of("teacher").encoder == "conv4"
    assert PseudoLabelParams.checked({"moco": {"image_size": 96}}).of("moco").image_size == 96
    assert EvaluationParams.checked({"pseudo_labels": {"k_shots": [1, 5]}}).k_shots == [5]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"modulation": "none"}, "no GKM"),
        ({"n_teachers": 1}, "single teacher"),
        ({"selection": "all"}, "no selection"),
        ({"task": "survival"}, "no selection"),
        ({"teacher": {"low_rank_weight": 0.0}}, "no M3LR"),
        ({"teacher": {"low_rank_weight": 0}}, "no momentum views"),
        ({"teacher": {"momentum_views": False}}, "no momentum views"),
    ],
)
def test_an_ablation_that_takes_nothing_away_is_refused(given, name):
    with pytest.raises(ParameterError, match=f'the ablation "{name}" is GMCD itself under another name'):
        DistillationParams.checked(given | {"ablations": [name]})
    others = [other for other in ABLATIONS if other not in ("no M3LR", "no momentum views", name)]
    assert DistillationParams.checked(given | {"ablations": others}).ablations == others


def test_a_second_run_of_a_stage_above_two_others_is_refused():
    """Notebook 06 would train on labels of one URL run, and 07 evaluate another."""
    nested = {"pseudo_labels": {"moco": {"epochs": 3}}, "dataset": "phantom-rare-skin"}
    with pytest.raises(
        ParameterError, match=r"differs from moco = \{\}.* set moco itself: .* share the run of 04_moco_url"
    ):
        SelfDistillationParams.checked(nested)
    with pytest.raises(ParameterError, match="set teacher itself"):
        EvaluationParams.checked({"distillation": {"teacher": {"epochs": 3}}})
    alike = SelfDistillationParams.checked(nested | {"moco": {"epochs": 3}})
    assert alike.of("pseudo_labels").of("moco").epochs == alike.of("moco").epochs == 3


def test_shared_values_reach_the_upstream_stage_and_its_own_do_not():
    teacher = DistillationParams(seed=3, image_size=64, epochs=7, teacher={"lr": 0.5}).of("teacher")
    assert (teacher.seed, teacher.image_size, teacher.lr) == (3, 64, 0.5)
    assert teacher.epochs == TeacherParams().epochs


def test_overrides_pass_through_two_stages():
    params = EvaluationParams(dataset="phantom-rare-skin", moco={"epochs": 2}, k_shots=[1])
    students = params.of("self_distillation")
    assert isinstance(students, SelfDistillationParams)
    assert students.k_shots == [1]
    assert isinstance(students.of("moco"), MocoParams)
    assert students.of("moco").epochs == 2
    assert students.of("pseudo_labels").of("moco").epochs == 2


def test_configuration_leaves_out_what_does_not_change_a_result():
    one = TeacherParams(device="cpu", report="a", root="/x").config()
    assert one == TeacherParams(device="auto", report="b", root="/y").config()
    assert one != TeacherParams(seed=1).config()
    assert not {"device", "root", "report", "folds"} & one.keys()
