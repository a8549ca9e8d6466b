"""What a stage hands to the training loop (rows, validation rows, start), which is stopped before it begins."""

import numpy as np
import pytest
import torch

from medkd.stages import (
    DistillationParams,
    MocoParams,
    PseudoLabelParams,
    SelfDistillationParams,
    TeacherParams,
    label,
    networks,
    pretrain,
    rare,
    self_distil,
    train_students,
    train_teachers,
)
from medkd.stages.context import Context
from medkd.stages.paired import split_of

PAIRED = {"image_size": 16, "width": 0.125, "n_folds": 3, "folds": 1, "device": "cpu", "epochs": 1, "batch_size": 64}
RARE = {"dataset": "phantom-rare-skin", "image_size": 16, "width": 0.0625, "device": "cpu"}
MOCO = {"epochs": 1, "batch_size": 128, "queue_size": 100}


class Asked(Exception):
    """Step, rows and settings of a call of `fit`."""


@pytest.fixture
def asked(monkeypatch):
    """A function: a call that trains -> step, rows and settings it gives to `fit`."""

    def stop(step, rows, optimizer, **how):
        raise Asked(step, rows, how)

    def ask(call):
        with monkeypatch.context() as patched:
            for module in (networks, rare):
                patched.setattr(module, "fit", stop)
            with pytest.raises(Asked) as found:
                call()
        return found.value.args

    return ask


@pytest.mark.parametrize("kind", ["both", "second"])
@pytest.mark.parametrize(("keep", "select"), [("best", "val_auc_macro"), ("last", "")])
def test_a_teacher_learns_from_training_rows_and_is_chosen_on_validation_rows(home, asked, kind, keep, select):
    params = TeacherParams(**PAIRED, seed=7, keep=keep)
    split = split_of(Context.of(params), 0)
    step, rows, how = asked(lambda: train_teachers(params, (kind,)))
    assert rows.tolist() == split.train.tolist()
    assert step.validation_rows.tolist() == split.val.tolist()
    assert how["select"] == select


@pytest.mark.slow
def test_students_learn_from_training_rows_are_chosen_on_validation_rows_and_start_alike(home, asked):
    small = {"n_positives": 8, "n_selected": 4, "n_negatives": 16, "teacher": {"epochs": 1, "batch_size": 64}}
    params = DistillationParams(**PAIRED, **small)
    train_teachers(params.of("teacher"), ("both",))
    split, starts = split_of(Context.of(params), 0), []
    for method in ("ce", "kd", "gmcd"):
        own = params.model_copy(update={"methods": [method]})
        step, rows, how = asked(lambda own=own: train_students(own))
        assert rows.tolist() == split.train.tolist()
        assert step.validation_rows.tolist() == split.val.tolist() and how["select"] == "val_auc_macro"
        starts.append(step.student.state_dict())
    for other in starts[1:]:
        assert all(torch.equal(value, other[name]) for name, value in starts[0].items())


@pytest.mark.slow
def test_only_common_images_are_trained_on_before_the_query_sets_are_opened(home, asked):
    cohort = Context.of(MocoParams(**RARE)).cohort
    common = cohort.rows_of(cohort.base_classes)
    for objective in ("moco", "simclr"):
        _, rows, _ = asked(lambda o=objective: pretrain(MocoParams(**RARE, **MOCO, objective=o)))
        assert np.array_equal(np.sort(rows.numpy()), common)
    label(PseudoLabelParams(**RARE, k_shots=[1], n_tasks=1, moco=MOCO))
    for name in ("cls", "reg", "hybrid", "hybrid_ddl", "hybrid_dic"):
        params = SelfDistillationParams(**RARE, **MOCO, k_shots=[1], n_tasks=1, methods=[name], moco=MOCO)
        step, rows, _ = asked(lambda params=params: self_distil(params))
        assert np.array_equal(np.sort(rows.numpy()), common)
        assert np.array_equal(np.sort(step.train_rows.numpy()), common)
