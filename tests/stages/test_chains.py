"""Both chains end to end on tiny simulated cohorts, and what re-runs when a parameter changes."""

from pathlib import Path

import nbformat
import numpy as np
import pytest

import medkd
from medkd.data import registry
from medkd.errors import ParameterError
from medkd.paths import reports_dir
from medkd.report.index import read_index
from medkd.stages import (
    DistillationParams,
    EvaluationParams,
    MocoParams,
    PseudoLabelParams,
    SelfDistillationParams,
    TeacherParams,
    evaluate,
    label,
    pretrain,
    self_distil,
    train_students,
    train_teachers,
)
from medkd.stages.context import Context, cohort_of
from medkd.stages.paired import split_of
from medkd.stages.pseudo_labelling import rows_by_id, task_of, url_features

pytestmark = pytest.mark.slow
PAIRED = {"image_size": 16, "width": 0.125, "n_folds": 3, "folds": 1, "device": "cpu"}
TINY = {"epochs": 2, "batch_size": 16}
CONTRAST = {"dataset": "phantom-rare-skin", "image_size": 16, "width": 0.125, "device": "cpu"}


@pytest.fixture(scope="module")
def teacher(home):
    return TeacherParams(**PAIRED, **TINY)


@pytest.fixture(scope="module")
def students(home):
    return DistillationParams(**PAIRED, **TINY, n_positives=8, n_selected=4, n_negatives=16, teacher=TINY)


@pytest.fixture(scope="module")
def moco(home):
    return {"epochs": 1, "batch_size": 128, "queue_size": 100}


def test_teacher_runs_are_found_again_and_cover_the_validation_split(teacher):
    made, found = train_teachers(teacher), train_teachers(teacher)
    assert all(run.made for run in made.values())
    assert not any(run.made for run in found.values())
    run = found["both", 0]
    assert len(run.table("history")) == 2
    assert {"nll", "mean_teacher", "low_rank", "l1"} <= set(run.table("history"))
    assert len(run.table("validation")) == len(run.tensors("features")["validation"])
    second = cohort_of(
        teacher.dataset, teacher.root
    ).second  # what the tables of stage 07 call the network, learning curves call it too
    assert {kind: run.title for (kind, _), run in made.items()} == {
        "both": "teacher, fold 0",
        "second": f"{second} only, fold 0",
    }


def test_a_network_of_one_modality_is_not_trained_again_for_what_only_the_teacher_uses(teacher):
    train_teachers(teacher)
    changed = train_teachers(teacher.model_copy(update={"fusion": "concat", "mean_teacher": 0.0, "mu": 1e-3}))
    assert {kind: run.made for (kind, _), run in changed.items()} == {"both": True, "second": False}


def test_students_share_their_start_and_their_teacher_is_the_one_of_the_store(students, teacher):
    teachers = train_teachers(teacher, inputs=("both",))
    runs = train_students(students)
    assert runs["gmcd", 0].upstream == (teachers["both", 0].key,)
    assert runs["ce", 0].upstream == ()
    gmcd = runs["gmcd", 0].table("history")
    weights = gmcd[[name for name in gmcd if name.startswith("weight_")]].to_numpy()
    assert weights.shape == (2, 4) and (weights >= 0).all() and (weights <= 5).all()


def test_an_upstream_change_makes_exactly_what_depends_on_it(students):
    train_students(students)
    changed = train_students(students.model_copy(update={"teacher": TINY | {"low_rank_weight": 0.0}}))
    assert {key[0]: run.made for key, run in changed.items()} == {"ce": False, "kd": True, "gmcd": True}
    warmer = train_students(students.model_copy(update={"selection": "random"}))
    assert {key[0]: run.made for key, run in warmer.items()} == {"ce": False, "kd": False, "gmcd": True}


def test_evaluation_of_the_teacher_student_chain_opens_the_test_split_of_every_method(students):
    run = evaluate(
        EvaluationParams(
            **PAIRED,
            n_resamples=100,
            teacher=TINY,
            distillation=students.model_dump(include=set(TINY) | {"n_positives", "n_selected", "n_negatives"}),
        )
    )
    predictions = run.table("predictions")
    assert set(predictions["method"]) == {"teacher", "omic only", "CE only", "KD", "GMCD"}
    context = Context.of(students)
    tested = sorted(context.cohort.table["id"].iloc[split_of(context, 0).test])
    for _, rows in predictions.groupby("method"):
        assert sorted(rows["id"]) == tested
    np.testing.assert_allclose(predictions.filter(like="p_").sum(axis=1), 1, atol=1e-5)
    summary = run.table("summary")
    assert ((summary["low"] <= summary["value"]) & (summary["value"] <= summary["high"])).all()
    compared = run.table("differences")[["method", "minus"]].drop_duplicates().to_numpy().tolist()
    assert ["GMCD", "CE only"] in compared and ["teacher", "omic only"] in compared
    assert set(run.table("embedding")["method"]) == set(predictions["method"])


def run_cells(stage, **given):
    """Run the code cells of a notebook here, with parameters as papermill sets them; returns its figures and tables."""
    path = Path(medkd.__file__).parents[1] / "notebooks" / f"{stage}.ipynb"
    names = {"__name__": "__main__", "display": lambda *_, **__: None}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, stage, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(given)
    entries = [entry for entry in read_index(reports_dir() / "interactive") if entry["stage"].startswith(stage)]
    assert entries and all(entry["simulated"] for entry in entries)
    return {entry["name"] for entry in entries}


def test_every_notebook_of_the_teacher_student_chain_runs(students, monkeypatch):
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    own = students.model_dump(include=set(TINY) | {"n_positives", "n_selected", "n_negatives"})
    assert {"counts", "folds"} <= run_cells("01_data_exploration", image_size=16, n_folds=3)
    assert {"validation", "curves", "spectrum", "umap"} <= run_cells("02_teacher_training", **PAIRED, **TINY)
    assert {"comparison", "gains", "positives", "gkm_weights"} <= run_cells(
        "03_distillation", **PAIRED, **own, teacher=TINY
    )
    shown = run_cells("07_evaluation", **PAIRED, n_resamples=100, teacher=TINY, distillation=own)
    assert {"results", "comparison", "confusion", "roc", "pr", "calibration", "errors", "umap"} <= shown


def test_every_notebook_of_the_rare_disease_chain_runs(moco, home, monkeypatch):
    monkeypatch.setenv("MEDKD_HEADLESS", "1")
    shots = {"k_shots": [1, 5], "n_tasks": 1}
    own = {"epochs": 2, "batch_size": 128, "queue_size": 100, "dic_every": 1}
    assert {"views", "curves", "neighbours", "umap"} <= run_cells("04_moco_url", **CONTRAST, **moco)
    assert {"support", "mix", "labels", "shots"} <= run_cells("05_pseudo_labelling", **CONTRAST, **shots, moco=moco)
    assert {"runs", "curves", "dic", "umap"} <= run_cells("06_self_distillation", **CONTRAST, **shots, **own, moco=moco)
    shown = run_cells("07_evaluation", **CONTRAST, **shots, n_resamples=100, moco=moco, self_distillation=own)
    assert {"results", "comparison", "shots", "confusion", "errors", "umap"} <= shown


def test_pseudo_labels_cover_the_common_images_and_ignore_the_order_of_features(moco, home):
    params = PseudoLabelParams(**CONTRAST, k_shots=[1], n_tasks=1, moco=moco)
    run = label(params)[1, 0]
    cohort = cohort_of("phantom-rare-skin", "")
    frame = run.table("pseudo_labels")
    assert set(frame["id"]) == set(cohort.table["id"][cohort.table["class"].isin(cohort.base_classes)])
    np.testing.assert_allclose(frame.filter(like="p_").sum(axis=1), 1, atol=1e-6)
    url = pretrain(MocoParams(**CONTRAST, **moco))
    assert not url.made
    shuffled = cohort.take(np.random.default_rng(0).permutation(len(cohort)))
    row = rows_by_id(shuffled, [cohort.table["id"][7]])
    np.testing.assert_array_equal(url_features(shuffled, url)[row[0]], url_features(cohort, url)[7])


def test_self_distillation_and_its_evaluation_use_disjoint_support_and_query_sets(moco, home):
    shots = {"k_shots": [5], "n_tasks": 1}
    own = {"epochs": 2, "batch_size": 128, "queue_size": 100, "dic_every": 1}
    params = SelfDistillationParams(**CONTRAST, **shots, **own, moco=moco)
    runs = self_distil(params)
    assert set(runs) == {("hybrid", 5, 0), ("hybrid_dic", 5, 0)}
    history = runs["hybrid_dic", 5, 0].table("history")
    temperatures = history.filter(like="temperature_").to_numpy()
    assert (temperatures.max(axis=1) == pytest.approx(1)) and (temperatures >= 0.9 - 1e-6).all()
    drawn = task_of(runs["hybrid", 5, 0])
    run = evaluate(EvaluationParams(**CONTRAST, **shots, n_resamples=100, moco=moco, self_distillation=own))
    predictions = run.table("predictions")
    assert set(predictions["method"]) == {"MoCo + LR", "Hbr.Dst.", "Hbr.Dst.-DIC"}
    for _, group in predictions.groupby("method"):
        assert set(group["id"]) == set(drawn.query_ids)
    assert not set(drawn.query_ids) & set(drawn.support_ids)


def test_a_cohort_of_the_other_chain_is_refused(home):
    with pytest.raises(
        ParameterError, match='02_teacher_training needs a cohort with two modalities; dataset = "phantom-rare-skin"'
    ):
        train_teachers(TeacherParams(dataset="phantom-rare-skin"))


def test_every_cohort_belongs_to_a_chain():
    named = [name for name in registry.cohort_names() if name != "own"]  # that one says it in its medkd.yaml
    assert {registry.chain_of(name) for name in named} == {"teacher-student", "rare", "vector"}
