"""What the teacher-student chain can be asked for: other slots, survival, published splits, frozen encoders."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from medkd.errors import DataError, ParameterError
from medkd.evaluation.comparison import is_survival
from medkd.models.encoders import build_image_encoder
from medkd.stages import DistillationParams, EvaluationParams, TeacherParams, evaluate, train_students, train_teachers
from medkd.stages.context import Context, cohort_of
from medkd.stages.distillation import ABLATIONS, teacher_of
from medkd.stages.networks import trained_network
from medkd.stages.paired import split_of
from medkd.stages.store import finished_runs, with_upstream

pytestmark = pytest.mark.slow
PAIRED = {"image_size": 16, "width": 0.125, "n_folds": 3, "folds": 1, "device": "cpu"}
TINY = {"epochs": 1, "batch_size": 64}
FEW = {"n_positives": 8, "n_selected": 4, "n_negatives": 16}


def students(**changes):
    return DistillationParams(**(PAIRED | TINY | FEW | {"teacher": TINY} | changes))


def test_slots_can_be_swapped_and_the_student_then_sees_the_other_modality(home):
    """Either slot takes an image or a vector: a student on omics, taught by omics and histology."""
    params = students(main="omic", second="histology", methods=["ce", "gmcd"])
    runs = train_students(params)
    weights = runs["gmcd", 0].tensors("model")
    assert weights["encoder.0.weight"].shape[1] == 80  # the vector encoder's first layer
    assert runs["gmcd", 0].upstream and not runs["ce", 0].upstream


def test_an_unknown_modality_is_refused_with_the_known_ones(home):
    with pytest.raises(ParameterError, match="histology, omic"):
        train_teachers(TeacherParams(**PAIRED, **TINY, second="proteome"))


def test_two_image_modalities_share_the_code(home):
    runs = train_students(students(dataset="phantom-paired-skin", methods=["gmcd"], teacher=TINY | {"fusion": "lmf"}))
    table = runs["gmcd", 0].table("validation")
    np.testing.assert_allclose(table.filter(like="p_").sum(axis=1), 1, atol=1e-5)
    assert 0 < runs["gmcd", 0].metrics["val_auc_macro"] <= 1


def test_survival_runs_from_teacher_to_evaluation(home):
    params = students(task="survival", methods=["ce", "kd", "gmcd"])
    runs = train_students(params)
    assert {"time", "event", "risk"} <= set(runs["gmcd", 0].table("validation"))
    assert runs["kd", 0].metrics["val_c_index"] == pytest.approx(runs["kd", 0].table("history")["val_c_index"].max())
    given = {"distillation": TINY | FEW, "teacher": TINY}
    run = evaluate(EvaluationParams(**PAIRED, task="survival", n_resamples=100, **given))
    predictions, summary = run.table("predictions"), run.table("summary")
    assert is_survival(predictions) and set(summary["metric"]) == {"c_index"}
    assert set(summary["level"]) == {"image", "roi", "patient"}
    assert ((summary["value"] >= 0) & (summary["value"] <= 1)).all()


def test_survival_of_a_cohort_without_follow_up_is_refused(home):
    with pytest.raises(ParameterError, match='task = "survival" needs the columns survival_months and event'):
        train_teachers(TeacherParams(**PAIRED, **TINY, dataset="phantom-paired-skin", task="survival"))


@pytest.fixture
def split_file(tmp_path):
    patients = sorted(set(cohort_of("phantom-glioma", "").groups))
    frame = pd.DataFrame({"patient_id": patients[:120]})
    frame["split_1"] = np.where(np.arange(120) % 4 == 0, "test", "train")
    frame["split_2"] = np.where(np.arange(120) % 4 == 1, "Test", "Train")
    frame.to_csv(tmp_path / "splits.csv", index=False)
    return tmp_path / "splits.csv"


def test_published_splits_decide_who_is_tested_and_their_content_is_part_of_the_key(home, split_file):
    params = TeacherParams(**(PAIRED | {"folds": 9}), **TINY, split_file=str(split_file))
    runs = train_teachers(params, ("second",))
    assert set(runs) == {("second", 0), ("second", 1)}  # as many as the file has
    context = Context.of(params)
    tested = set(context.cohort.groups[split_of(context, 1).test])
    frame = pd.read_csv(split_file)
    assert tested == set(frame.loc[frame["split_2"] == "Test", "patient_id"])
    moved = split_file.with_name("copy.csv")
    shutil.copy(split_file, moved)
    assert params.model_copy(update={"split_file": str(moved)}).config() == params.config()
    moved.write_text(moved.read_text().replace("test", "train", 1))
    assert params.model_copy(update={"split_file": str(moved)}).config() != params.config()


def test_a_frozen_encoder_is_run_once_and_its_head_is_trained(home, tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(build_image_encoder("resnet12", width=0.125).state_dict(), tmp_path / "trunk.pth")
    frozen = {"frozen": True, "frozen_views": 2, "weights": str(tmp_path / "trunk.pth")}
    params = students(**frozen, methods=["ce", "gmcd"])
    runs = train_students(params)
    assert runs["ce", 0].metrics["n_parameters"] < 20_000
    assert "trunk.pth" in runs["ce", 0].metrics["image_weights"] and "frozen" in runs["ce", 0].metrics["image_weights"]
    with pytest.raises(ParameterError, match="needs pre-trained weights"):
        train_students(students(**(frozen | {"weights": ""}), methods=["ce"]))
    with pytest.raises(ParameterError, match="map"):
        train_students(students(**frozen, methods=["at"]))


def test_a_method_of_maps_is_refused_before_a_teacher_is_trained_for_a_student_that_has_none(home):
    before = finished_runs(TeacherParams.stage)
    for changes in ({"main": "omic", "second": "histology"}, {"encoder": "vit_b_16", "image_size": 32}):
        with pytest.raises(ParameterError, match="vectors|transformer|feature maps"):
            train_students(students(methods=["at"], **changes))
        with pytest.raises(ParameterError, match="vectors|transformer|feature maps"):
            evaluate(EvaluationParams(**(PAIRED | changes), distillation=TINY | {"methods": ["nst"]}, teacher=TINY))
    assert finished_runs(TeacherParams.stage) == before


def test_each_ablation_takes_one_thing_away(home):
    runs = train_students(students(methods=["gmcd"], ablations=list(ABLATIONS)))
    whole = runs["gmcd", 0]
    assert len({run.key for run in runs.values()}) == 1 + len(ABLATIONS)
    new_teacher = {name for name in ABLATIONS if runs[name, 0].upstream != whole.upstream}
    assert new_teacher == {"no M3LR", "no momentum views"}
    weights = {name: runs[name, 0].metrics["last_weights"] for name in ABLATIONS}
    assert set(weights["no GKM"].values()) == {1.0}
    assert set(weights["single teacher"]) == {"kd_teacher", "contrast_teacher"}
    contrast = [runs[name, 0].table("history")["contrast_teacher"].iloc[0] for name in ("gmcd", "no selection")]
    assert contrast[0] != contrast[1]  # of one start, one order and one draw of candidates


def test_an_ablation_is_evaluated_under_its_own_name(home):
    settings = TINY | FEW | {"methods": ["gmcd"], "ablations": ["no GKM"]}
    run = evaluate(EvaluationParams(**PAIRED, n_resamples=100, teacher=TINY, distillation=settings))
    assert {"GMCD", "GMCD, no GKM", "teacher"} <= set(run.table("predictions")["method"])


def test_a_given_teacher_must_be_of_the_same_cohort_and_fold(home):
    both = train_teachers(TeacherParams(**(PAIRED | {"folds": 2}), **TINY))
    first, second = both["both", 0], both["both", 1]
    run = train_students(students(methods=["kd"], teacher_runs=[first.key[:12]]))["kd", 0]
    assert run.upstream == (first.key,)
    with pytest.raises(DataError, match="belongs to fold 1, not 0, so it may have seen test samples"):
        train_students(students(methods=["kd"], teacher_runs=[second.key]))
    with pytest.raises(DataError, match="belongs to seed = 0, not 3"):
        train_students(students(methods=["kd"], teacher_runs=[first.key], seed=3))
    with pytest.raises(DataError, match="saw the second modality only"):
        train_students(students(methods=["kd"], teacher_runs=[both["second", 0].key]))
    with pytest.raises(DataError, match="was trained on another cohort"):
        train_students(students(methods=["kd"], dataset="phantom-paired-skin", teacher_runs=[first.key]))
    with pytest.raises(DataError, match="was trained with image_size = 16, not 24, so it cannot read"):
        train_students(students(methods=["kd"], teacher_runs=[first.key], image_size=24))
    with pytest.raises(DataError, match="0 finished runs of 02_teacher_training have a key that starts with 'none'"):
        train_students(students(methods=["kd"], teacher_runs=["none"]))


def test_ablations_have_the_given_teacher_or_one_that_differs_from_it_in_what_they_take_away(home):
    given = train_teachers(TeacherParams(**PAIRED, **TINY, mu=2e-3), inputs=("both",))["both", 0]
    runs = train_students(students(methods=["ce"], ablations=["no GKM", "no M3LR"], teacher_runs=[given.key]))
    assert runs["no GKM", 0].upstream == (given.key,)
    (other,) = finished_runs("02_teacher_training", runs["no M3LR", 0].upstream[0])
    differs = {name for name, value in other.config.items() if value != given.config[name]}
    assert differs == {"low_rank_weight"}


def test_a_given_teacher_keeps_the_weights_it_started_from(home, tmp_path, monkeypatch):
    """Those of the student are another encoder's; of a file that is not at hand none can be trained anew."""
    torch.manual_seed(0)
    path = tmp_path / "start.pth"
    torch.save(build_image_encoder("resnet12", dim=128, width=0.125).state_dict(), path)
    given = train_teachers(TeacherParams(**PAIRED, **TINY, weights=str(path)), inputs=("both",))["both", 0]
    context = Context.of(students(methods=["gmcd"], teacher_runs=[given.key]))
    run, taught_in = teacher_of(context, 0)
    assert run.key == given.key and taught_in.params.weights == ""
    with pytest.raises(DataError, match="started from weights of a file .* name that file as weights"):
        teacher_of(context, 0, {"low_rank_weight": 0.0})
    same = Context.of(students(methods=["gmcd"], teacher_runs=[given.key], weights=str(path)))
    assert teacher_of(same, 0)[1].params.weights == str(path)
    plain = train_teachers(TeacherParams(**PAIRED, **TINY), inputs=("both",))["both", 0]
    other = Context.of(students(methods=["gmcd"], teacher_runs=[plain.key], weights=str(path)))
    assert teacher_of(other, 0)[1].params.weights == ""


def test_the_teacher_that_is_evaluated_is_the_given_one(home):
    given = train_teachers(TeacherParams(**PAIRED, **TINY, mu=2e-3), inputs=("both",))["both", 0]
    own = {"methods": ["kd"], "teacher_runs": [given.key], **TINY}
    run = evaluate(EvaluationParams(**PAIRED, teacher=TINY, distillation=own, n_resamples=100))
    makers = {made_from.title: made_from.key for made_from in with_upstream(run.upstream).values()}
    assert makers["teacher, fold 0"] == given.key and set(makers) == {
        "teacher, fold 0",
        "omic only, fold 0",
        "student KD, fold 0",
    }


def test_weights_of_another_vector_length_are_refused_in_one_sentence(home):
    """A teacher of 80 omic columns cannot be loaded where the modality is an image."""
    run = train_teachers(TeacherParams(**PAIRED, **TINY))["both", 0]
    other = Context.of(TeacherParams(**PAIRED, **TINY, main="omic", second="histology"))
    with pytest.raises(DataError, match="do not fit a network on phantom-glioma"):
        trained_network(other, run, "both")


def test_spectrum_and_positives_are_kept_beside_the_weights(home):
    teacher = train_teachers(TeacherParams(**PAIRED, **TINY))["both", 0]
    spectrum = teacher.table("spectrum")
    assert set(spectrum["state"]) == {"before", "after"} and set(spectrum["modality"]) == {"main", "second"}
    positives = train_students(students(methods=["gmcd"]))["gmcd", 0].table("positives")
    classes = cohort_of("phantom-glioma", "").table.set_index("id")["class"]
    assert (classes[positives["anchor"]].to_numpy() == classes[positives["candidate"]].to_numpy()).all()


def test_a_loss_that_is_not_finite_names_the_ids_of_the_batch(home, monkeypatch):
    from medkd.errors import TrainingError
    from medkd.training.tasks import Classification

    real = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda self, scores, rows: real(self, scores, rows) * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite \(ce nan; ids G\d{4}-R\d-P\d, "):
        train_students(students(methods=["ce"], seed=11))


def test_a_vector_cohort_trains_and_evaluates_its_one_network(home, tmp_path):
    rng = np.random.default_rng(0)
    n, grades = 90, rng.integers(2, 5, 90)
    ids = [f"TCGA-00-{i:04d}" for i in range(n)]
    patients = pd.DataFrame({"patient_id": ids, "cohort": "TCGA-LGG", "oncotree_code": "X", "histology": "astrocytoma"})
    patients = patients.assign(
        grade=grades, idh_codel_subtype="IDHwt", subtype_source="x", age_years=50.0, sex="male",
        survival_months=rng.exponential(30, n) + 0.1, event=rng.integers(0, 2, n), n_slides=1,
    )  # fmt: skip
    patients.to_csv(tmp_path / "patients.csv", index=False)
    columns = {f"G{j}_{kind}": (grades + rng.normal(size=n)).round(3) for j, kind in enumerate(("rnaseq",) * 6)}
    columns |= {"TP53_mut": rng.integers(0, 2, n), "EGFR_cnv": rng.integers(-2, 3, n)}
    pd.DataFrame({"patient_id": ids, **columns}).to_csv(tmp_path / "genomics.csv.gz", index=False)
    common = {"dataset": "tcga-gbmlgg", "root": str(tmp_path), "n_folds": 3, "folds": 1, "device": "cpu"}
    run = evaluate(EvaluationParams(**common, n_resamples=100, teacher={"epochs": 12, "batch_size": 16, "lr": 5e-3}))
    summary = run.table("summary").set_index("metric")["value"]
    assert set(run.table("predictions")["method"]) == {"genomic only"}
    assert summary["auc_macro"] > 0.7  # the columns carry the grade
    assert json.loads(json.dumps(run.metrics))
