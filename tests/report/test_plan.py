"""What a report runs, and where parameters go."""

import json

import pytest

from medkd.errors import ParameterError
from medkd.report.plan import DEFAULT_COHORTS, default_cohorts, plan, stage_config
from medkd.stages import stage_params


def entries(datasets=DEFAULT_COHORTS, **overrides):
    return plan(list(datasets), report="quick", overrides=overrides)


def test_every_notebook_runs_in_order_on_the_cohorts_of_its_chain():
    found = entries()
    assert [entry.notebook for entry in found] == sorted(entry.notebook for entry in found)
    assert {entry.notebook for entry in found} == set(stage_params())
    on_rare = [entry.notebook[:2] for entry in found if entry.dataset == "phantom-rare-skin"]
    assert on_rare == ["01", "04", "05", "06", "07"]


def test_a_parameter_without_a_stage_goes_to_every_stage_that_has_it():
    found = {entry.notebook: entry.parameters for entry in entries(["phantom-glioma"], image_size=32)}
    assert all(parameters["image_size"] == 32 for parameters in found.values())


@pytest.mark.parametrize("given", [{"teacher.epochs": 3}, {"teacher": {"epochs": 3}}])
def test_a_parameter_of_one_stage_wins_over_one_of_all_in_whatever_order(given):
    for overrides in ({"epochs": 5} | given, given | {"epochs": 5}):
        found = {entry.notebook: entry.parameters for entry in entries(["phantom-glioma"], **overrides)}
        assert (found["02_teacher_training"]["epochs"], found["03_distillation"]["epochs"]) == (3, 5)
        assert found["03_distillation"]["teacher"]["epochs"] == 3


def test_two_trainings_of_a_stage_at_once_have_a_file_of_parameters_each(project):
    """They had one, so that the first trained with what the second was given."""
    paths = [stage_config("teacher", "phantom-glioma", overrides={"epochs": n}) for n in (3, 4, 3)]
    found = [json.loads(path.read_text())["parameters"]["epochs"] for path in paths]
    assert found == [3, 4, 3] and paths[0] == paths[2] != paths[1]


def test_a_parameter_of_one_stage_reaches_the_stages_after_it_as_upstream():
    found = {
        entry.notebook: entry.parameters
        for entry in plan(["phantom-glioma"], report="q", overrides={"teacher.epochs": 3})
    }
    assert found["02_teacher_training"]["epochs"] == 3
    assert "epochs" not in found["03_distillation"]
    assert found["03_distillation"]["teacher"]["epochs"] == 3
    evaluation = stage_params()["07_evaluation"].checked(found["07_evaluation"])
    assert evaluation.of("distillation").of("teacher").epochs == 3


def test_notebooks_of_a_chain_agree_on_their_upstream_configuration():
    """What 02 trains is what 03 and 07 load: the same keys from the same settings."""
    found = {
        entry.notebook: stage_params()[entry.notebook].checked(entry.parameters)
        for entry in entries(["phantom-paired-skin"], epochs=2)
    }
    teacher = found["02_teacher_training"].config()
    assert found["03_distillation"].of("teacher").config() == teacher
    assert found["07_evaluation"].of("distillation").of("teacher").config() == teacher
    assert found["07_evaluation"].of("distillation").config() == found["03_distillation"].config()


def test_rare_chain_agrees_too():
    found = {
        entry.notebook: stage_params()[entry.notebook].checked(entry.parameters)
        for entry in entries(["phantom-rare-skin"], epochs=2)
    }
    moco = found["04_moco_url"].config()
    assert found["05_pseudo_labelling"].of("moco").config() == moco
    assert found["06_self_distillation"].of("moco").config() == moco
    assert found["07_evaluation"].of("self_distillation").of("moco").config() == moco
    assert found["06_self_distillation"].of("pseudo_labels").config() == found["05_pseudo_labelling"].config()
    assert found["07_evaluation"].of("self_distillation").config() == found["06_self_distillation"].config()
    assert found["07_evaluation"].k_shots == found["06_self_distillation"].k_shots


def test_a_stage_that_the_plan_does_not_run_takes_no_parameters():
    with pytest.raises(ParameterError, match='unknown parameter "moco.epochs"'):
        plan(["phantom-glioma"], report="q", overrides={"moco.epochs": 3})


def test_a_cohort_of_one_vector_modality_runs_the_notebooks_that_serve_it():
    found = plan(["tcga-gbmlgg"], root="folder", report="q", overrides={})
    assert [entry.notebook[:2] for entry in found] == ["01", "02", "07"]


def test_the_paper_preset_has_the_published_constants_and_agrees_with_itself():
    """Xing et al. 2023: 30 epochs, 300 candidates, 20 kept, 1,024 negatives, T = 1, a = 1, b = .02; five folds."""
    found = {
        entry.notebook: stage_params()[entry.notebook].checked(entry.parameters)
        for entry in plan(["phantom-glioma-600"], report="paper", overrides={}, preset="paper")
    }
    student, teacher = found["03_distillation"], found["02_teacher_training"]
    assert (student.epochs, student.n_positives, student.n_selected, student.n_negatives) == (30, 300, 20, 1024)
    assert (student.temperature, student.kd_weight, student.contrast_weight) == (1.0, 1.0, 0.02)
    assert (teacher.low_rank_weight, teacher.n_views, teacher.mu, teacher.l1) == (0.1, 4, 1e-5, 3e-4)
    assert teacher.folds == student.folds == 5
    assert found["07_evaluation"].of("distillation").config() == student.config()
    assert student.of("teacher").config() == teacher.config()


def test_unknown_presets_and_presets_without_settings_for_a_cohort_are_refused():
    with pytest.raises(ParameterError, match='preset "papr" is unknown; known are quick, paper'):
        plan(["phantom-glioma"], report="q", overrides={}, preset="papr")
    with pytest.raises(ParameterError, match='preset "paper" has no settings for phantom-paired-skin'):
        plan(["phantom-paired-skin"], report="q", overrides={}, preset="paper")
    assert default_cohorts("quick") == DEFAULT_COHORTS and default_cohorts("paper") == ("phantom-glioma-600",)


@pytest.mark.parametrize(
    ("dataset", "name", "value"),
    [
        ("phantom-rare-skin", "weights", "imagenet"),
        ("phantom-rare-skin", "frozen", True),
        ("phantom-rare-skin", "balanced", True),
        ("phantom-rare-skin", "folds", 2),
        ("phantom-rare-skin", "teacher", {"epochs": 1}),
        ("phantom-glioma", "k_shots", [1]),
        ("phantom-glioma", "n_tasks", 2),
        ("phantom-glioma", "by_lesion", False),
        ("phantom-glioma", "moco", {"epochs": 1}),
    ],
)
def test_what_only_the_other_chain_trains_with_is_refused_before_anything_runs(dataset, name, value):
    with pytest.raises(ParameterError, match=f'"{name}" means nothing to the notebooks that would run'):
        entries([dataset], **{name: value})
    other = {"phantom-rare-skin": "phantom-glioma", "phantom-glioma": "phantom-rare-skin"}[dataset]
    assert entries([other], **{name: value})
    assert entries(**{name: value})  # of both chains


def test_all_notebooks_of_a_chain_get_one_teacher_and_one_url_run():
    chain = entries(["phantom-glioma"], teacher={"epochs": 3}, **{"teacher.lr": 0.5})
    params = {entry.notebook: stage_params()[entry.notebook].checked(entry.parameters) for entry in chain}
    students = [params["03_distillation"], params["07_evaluation"].of("distillation")]
    taught = [each.of("teacher").config() for each in (*students, params["07_evaluation"])]
    own = params["02_teacher_training"].config()
    assert own["epochs"] == 3 and own["lr"] == 0.5 and taught == [own, own, own]
    for given in ("distillation.teacher", "evaluation.teacher", "self_distillation.moco"):
        with pytest.raises(ParameterError, match=f'"{given}" would give 0._[a-z_]+ a run of 0._.*write .*parameter = '):
            entries(**{given: {"epochs": 3}})


@pytest.mark.parametrize("name", ["dataset", "root", "report", "device", "seed", "teacher.seed"])
def test_what_the_whole_report_shares_is_no_parameter_of_a_stage(name):
    with pytest.raises(ParameterError, match="is the same for all stages of a report: give it as --"):
        entries(["phantom-glioma"], **{name: "x"})
