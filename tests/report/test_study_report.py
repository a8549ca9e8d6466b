"""The report of a study, from evaluations written by hand; nothing is trained."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medkd.cli import app
from medkd.data.own_schema import infer, write_schema
from medkd.errors import DataError, ParameterError
from medkd.files import write_json, write_table
from medkd.paths import reports_dir, runs_dir
from medkd.report.claims import table_names
from medkd.report.index import forget, index_file, read_index, state_file
from medkd.report.paper import redraw
from medkd.report.pooling import Evaluated, comparison_table, pooled_predictions
from medkd.report.share import share
from medkd.report.study import build_study_report
from medkd.stages.store import Unit, load_folder, load_or_make

N = 60
RIGHT = {"CE only": 0.6, "GMCD": 0.7, "good GMCD": 0.95}


def predictions(skill, seed, method):
    """Predictions that are right in this share of the images, the same images for every method and seed."""
    labels = np.arange(N) % 2
    rng = np.random.default_rng([seed, len(method)])
    hit = rng.random(N) < skill
    right = np.where(hit, 0.8, 0.2) + rng.normal(0, 0.05, N)
    p_1 = np.where(labels == 1, right, 1 - right)
    ids = [f"x{i}" for i in range(N)]
    table = pd.DataFrame({"id": ids, "roi": ids, "patient": [f"p{i // 2}" for i in range(N)], "label": labels})
    return table.assign(p_0=1 - p_1, p_1=p_1, method=method, setting="", part=0)


def evaluation(skill_of, seed):
    """A run of stage 07 with these methods, made from one student run with a history."""

    def student(folder):
        epochs = range(1, 4)
        history = pd.DataFrame({"epoch": epochs, "loss": [3.0, 2.0, 1.0], "val_auc": [0.5, 0.6, 0.7]})
        write_table(folder / "history.csv", history.assign(weight_kd_teacher=0.5))
        return {}

    def evaluate(folder):
        tables = [predictions(skill, seed if name != "CE only" else 0, name) for name, skill in skill_of.items()]
        write_table(folder / "predictions.csv", pd.concat(tables))
        return {}

    config = {"seed": seed, "skills": skill_of}
    trained = load_or_make(Unit("03_distillation", 1, config, "c", [], "student GMCD, fold 0"), student)
    return load_or_make(Unit("07_evaluation", 1, config, "c", [trained], "evaluation"), evaluate)


@pytest.fixture
def study(project):
    """Two conditions with two seeds each; the baseline is untouched by both, and one cell is not finished."""
    data = project / "own"
    data.mkdir()
    pd.DataFrame({"label": ["a", "b"] * 20, "age": range(40)}).to_csv(data / "table.csv", index=False)
    write_schema(data, infer(data).model_copy(update={"confirmed": True}))
    cells = []
    for weight, skill in ((0, RIGHT["GMCD"]), (0.1, RIGHT["good GMCD"])):
        for seed in (0, 1):
            name = f"own+weight={weight}+seed={seed}"
            run = evaluation({"CE only": RIGHT["CE only"], "GMCD": skill}, seed)
            index = reports_dir() / "try" / name / "index" / "07_evaluation.own.json"
            index.parent.mkdir(parents=True)
            index.write_text(json.dumps({"entries": [], "metrics": {}, "runs": [run.key]}))
            state_file(reports_dir() / "try" / name, index.stem).parent.mkdir()
            write_json(state_file(reports_dir() / "try" / name, index.stem), {"key": "x", "state": "finished"})
            notebook = {"notebook": "07_evaluation", "node": "x", "folder": name, "state": "finished"}
            cells.append(
                {
                    "name": name,
                    "dataset": "own",
                    "parameters": {"teacher.low_rank_weight": weight, "seed": seed},
                    "state": "finished",
                    "notebooks": [notebook | {"seconds": 1.0, "error": ""}],
                }
            )
    open_cell = {
        "notebook": "07_evaluation",
        "node": "y",
        "folder": "z",
        "state": "failed",
        "seconds": 0,
        "error": "no",
    }
    cells.append(
        {"name": "z", "dataset": "own", "parameters": {"seed": 2}, "state": "failed", "notebooks": [open_cell]}
    )
    record = {
        "name": "try",
        "study": {"name": "try", "cohorts": [{"dataset": "own", "root": str(data)}]},
        "cells": cells,
    }
    (reports_dir() / "try" / "study.json").write_text(json.dumps(record))
    return reports_dir() / "try"


def test_the_report_compares_conditions_over_seeds_and_marks_the_best(study):
    said = []
    page = build_study_report("try", n_resamples=200, say=said.append)
    assert said == ["own: 4 of 5 cells are evaluated"]
    table = pd.read_csv(study / "tables" / "study.own-comparison_balanced_accuracy.csv").set_index("method")
    assert set(table.index) == {"CE only", "GMCD [low_rank_weight=0]", "GMCD [low_rank_weight=0.1]"}
    best = table.loc["GMCD [low_rank_weight=0.1]"]
    assert best["mark"] == "best" and best["balanced accuracy"] == pytest.approx(RIGHT["good GMCD"], abs=0.06)
    assert best["low"] < best["balanced accuracy"] < best["high"] and best["parts"] == 2
    assert pd.isna(table.loc["CE only", "mark"]) and table.loc["CE only", "minus the best"].startswith("-0.")
    parts = pd.read_csv(study / "tables" / "study.own-by_part.csv", keep_default_na=False).set_index("method")
    assert list(parts.columns) == ["setting", "0/0", "1/0"]
    assert parts.loc["GMCD [low_rank_weight=0.1]", ["0/0", "1/0"]].mean() == pytest.approx(best["mean"])
    latex = (study / "tables" / "study.own-comparison_balanced_accuracy.tex").read_text()
    assert r"\toprule" in latex and r"\textbf{" in latex
    text = page.read_text()
    assert "medkd study try" in text and "comparison" in text and "https://" not in text.replace("https://doi", "")
    assert page.stat().st_size < 15e6


def test_learning_curves_of_different_settings_are_not_averaged(study):
    """One cell trains two networks of one name, as MoCo v1 and v2 or a teacher and its ablation are."""
    record = json.loads((study / "study.json").read_text())
    index = study / record["cells"][0]["name"] / "index" / "07_evaluation.own.json"
    (key,) = json.loads(index.read_text())["runs"]
    evaluated = load_folder(runs_dir() / "07_evaluation" / key)
    urls = []
    for projection, loss in (("linear", 1.0), ("mlp", 5.0)):

        def train(folder, loss=loss):
            write_table(folder / "history.csv", pd.DataFrame({"epoch": [1, 2], "loss": [loss, loss]}))
            return {}

        config = {"epochs": 2, "projection": projection}
        urls.append(load_or_make(Unit("04_moco_url", 1, config, "c", [], "MoCo URL"), train))
    weights = {"GMCD": (5.0, "threshold"), "GMCD, no GKM": (1.0, "none"), "GMCD, single teacher": (2.0, "threshold")}
    for method, (weight, modulation) in weights.items():

        def train_student(folder, weight=weight, method=method):
            terms = ["weight_kd_teacher"] + ["weight_kd_momentum"] * ("single" not in method)
            write_table(
                folder / "history.csv", pd.DataFrame({"epoch": [1, 2], "loss": weight} | dict.fromkeys(terms, weight))
            )
            return {}

        unit = Unit("03_distillation", 1, {"modulation": modulation, "n": weight}, "c", [], f"student {method}, fold 0")
        urls.append(load_or_make(unit, train_student))

    def evaluate(folder):
        write_table(folder / "predictions.csv", evaluated.table("predictions"))
        return {}

    run = load_or_make(Unit("07_evaluation", 1, {}, "c", urls, "evaluation"), evaluate)
    index.write_text(json.dumps({"entries": [], "metrics": {}, "runs": [run.key]}))
    record["cells"] = record["cells"][:1]
    (study / "study.json").write_text(json.dumps(record))
    build_study_report("try", n_resamples=20, say=lambda line: None)
    curve = pd.read_csv(study / "figures" / "study.own-learning_04_moco_url.csv")
    assert dict(zip(curve["method"], curve["loss"], strict=True)) == {
        "MoCo URL [projection=linear]": 1.0,
        "MoCo URL [projection=mlp]": 5.0,
    }
    curve = pd.read_csv(study / "figures" / "study.own-learning_03_distillation.csv")
    assert dict(zip(curve["method"], curve["loss"], strict=True)) == {
        "GMCD": 5.0,
        "GMCD, no GKM": 1.0,
        "GMCD, single teacher": 2.0,
    }
    gkm = pd.read_csv(study / "figures" / "study.own-gkm_weights.csv")
    assert gkm.groupby("method")["weight_kd_teacher"].unique().str[0].to_dict() == {
        "GMCD": 5.0,
        "GMCD, single teacher": 2.0,
    }
    assert gkm["weight_kd_momentum"].count() == 2


def test_claims_compare_every_method_with_the_reference_on_the_same_images(study):
    build_study_report("try", n_resamples=200, say=lambda line: None)
    table = pd.read_csv(study / "tables" / "study.own-against_CE_only.csv")
    assert set(table["method"]) == {"GMCD [low_rank_weight=0]", "GMCD [low_rank_weight=0.1]"}
    better = table[(table["method"] == "GMCD [low_rank_weight=0.1]") & (table["metric"] == "balanced_accuracy")].iloc[0]
    assert better["low"] < better["difference"] < better["high"]
    assert better["difference"] == pytest.approx(RIGHT["good GMCD"] - RIGHT["CE only"], abs=0.12)
    assert (better["n"], better["parts"], better["wins"], better["losses"]) == (2 * N, 2, 2, 0)
    assert np.isfinite(better["over_parts"]) and np.isnan(better["over_parts_low"])  # both seeds test the same patients
    captions = {entry["name"]: entry["caption"] for entry in read_index(study)}
    assert "but for folds of several seeds" in captions["against_CE_only"]
    assert captions["bars_balanced_accuracy"].endswith(f"n = {N} samples, 1 fold, 2 seeds.")
    assert (study / "figures" / "study.own-bars_against_CE_only.pdf").is_file()


def test_a_study_names_its_references_and_a_wrong_one_is_told_with_the_methods(study):
    record = json.loads((study / "study.json").read_text())
    record["study"]["references"] = ["GMCD [low_rank_weight=0]"]
    (study / "study.json").write_text(json.dumps(record))
    build_study_report("try", n_resamples=50, say=lambda line: None)
    table = pd.read_csv(study / "tables" / "study.own-against_GMCD_low_rank_weight_0.csv")
    assert set(table["method"]) == {"CE only", "GMCD [low_rank_weight=0.1]"}
    record["study"]["references"] = ["GMCD"]
    (study / "study.json").write_text(json.dumps(record))
    with pytest.raises(ParameterError, match=r'"GMCD", which is no method .*GMCD \[low_rank_weight=0\]'):
        build_study_report("try", n_resamples=50, say=lambda line: None)


def test_methods_carry_the_name_that_the_study_gives_a_cell_and_long_ones_fit_beside_the_figure(study, recwarn):
    record = json.loads((study / "study.json").read_text())
    named = "without the low-rank constraint, so that the views of a modality may differ as they like"
    for cell in record["cells"]:
        cell["title"] = named if cell["parameters"].get("teacher.low_rank_weight") == 0 else ""
    (study / "study.json").write_text(json.dumps(record))
    build_study_report("try", n_resamples=50, say=lambda line: None)
    table = pd.read_csv(study / "tables" / "study.own-against_CE_only.csv")
    assert set(table["method"]) == {f"GMCD [{named}]", "GMCD [low_rank_weight=0.1]"}
    assert not [warning for warning in recwarn if "constrained_layout not applied" in str(warning.message)]


def test_the_page_of_a_study_can_be_given_away(study, tmp_path):
    build_study_report("try", n_resamples=50, say=lambda line: None)
    html = share("try", tmp_path / "given.html").read_text(encoding="utf-8")
    assert "medkd study try" in html and "every method against CE only" in html
    assert "own+weight=0.1+seed=1: 07_evaluation" in html, "notebooks with their wall times"
    assert str(tmp_path) not in html and 'href="figures/' not in html


def test_every_figure_is_drawn_again_from_its_csv_alone(study):
    build_study_report("try", n_resamples=100, say=lambda line: None)
    figures = {path.name: path.read_bytes() for path in (study / "figures").glob("*.pdf")}
    assert {"study.own-roc.pdf", "study.own-pr.pdf", "study.own-confusion.pdf", "study.own-calibration.pdf"} <= set(
        figures
    )
    assert {"study.own-learning_03_distillation.pdf", "study.own-gkm_weights.pdf"} <= set(figures)
    for path in (study / "figures").glob("*.pdf"):
        path.unlink()
    assert len(redraw(study)) == len(figures)
    assert {path.name: path.read_bytes() for path in (study / "figures").glob("*.pdf")} == figures


def test_a_method_that_a_condition_does_not_touch_stands_there_once(project):
    cells = [
        Evaluated("a", "w=0", "0", evaluation({"CE only": 0.6, "GMCD": 0.7}, 0)),
        Evaluated("b", "w=1", "0", evaluation({"CE only": 0.6, "GMCD": 0.8}, 0)),
    ]
    pooled = pooled_predictions(cells)
    assert pooled.groupby("method").size().to_dict() == {"CE only": N, "GMCD [w=0]": N, "GMCD [w=1]": N}


def test_conditions_of_one_short_name_stay_apart(study):
    record = json.loads((study / "study.json").read_text())
    for cell, name in zip(record["cells"], ["teacher.momentum"] * 2 + ["distillation.momentum"] * 2, strict=False):
        cell["parameters"] = {name: 0.9, "seed": cell["parameters"]["seed"]}
    (study / "study.json").write_text(json.dumps(record))
    build_study_report("try", n_resamples=20, say=lambda line: None)
    table = pd.read_csv(study / "tables" / "study.own-comparison_accuracy.csv").set_index("method")
    assert set(table.index) == {"CE only", "GMCD [teacher.momentum=0.9]", "GMCD [distillation.momentum=0.9]"}
    assert set(table["parts"]) == {2}


def test_cells_that_are_called_alike_are_not_averaged(project):
    cells = [Evaluated(name, "w=0", "0", evaluation({"GMCD": skill}, 0)) for name, skill in (("a", 0.6), ("b", 0.7))]
    with pytest.raises(DataError, match=r'2 cells are called "w=0" \(seed 0\); give each a name of its own'):
        pooled_predictions(cells)


def test_seeds_that_a_condition_has_not_finished_are_left_out_of_the_comparison(study):
    record = json.loads((study / "study.json").read_text())
    record["cells"][3]["notebooks"][0]["state"] = "failed"  # low_rank_weight=0.1, seed 1
    (study / "study.json").write_text(json.dumps(record))
    said = []
    build_study_report("try", n_resamples=20, say=said.append)
    assert said == ["own: 3 of 5 cells are evaluated", "compared are the seeds that all conditions have finished: 0"]
    table = pd.read_csv(study / "tables" / "study.own-comparison_accuracy.csv").set_index("method")
    assert set(table.index) == {"CE only", "GMCD [low_rank_weight=0]", "GMCD [low_rank_weight=0.1]"}
    assert set(table["parts"]) == {1}


def test_nothing_of_an_earlier_comparison_stands_in_the_page_or_the_folder(study):
    record = json.loads((study / "study.json").read_text())
    for references in (["CE only"], ["GMCD [low_rank_weight=0]"]):
        (study / "study.json").write_text(json.dumps(record | {"study": record["study"] | {"references": references}}))
        build_study_report("try", n_resamples=20, say=lambda line: None)
    names = {entry["name"] for entry in read_index(study)}
    assert [name for name in names if name.startswith("against")] == ["against_GMCD_low_rank_weight_0"]
    tables = [path.name for path in (study / "tables").glob("*against*.csv")]
    assert tables == ["study.own-against_GMCD_low_rank_weight_0.csv"]


def test_references_of_nearly_one_name_have_a_table_each(study):
    assert table_names(["x=1", "CE only"]) == {"x=1": "against_x_1", "CE only": "against_CE_only"}
    for alike in (["x=1", "x=-1"], ["[+ mean teacher]", "[mean teacher]"], ["Bär [α]", "Bär [β]"], ["α"]):
        names = table_names(alike)
        assert len(set(names.values())) == len(alike)
        assert all(re.fullmatch(r"against_[A-Za-z0-9_.]*_[0-9a-f]{6}", name) for name in names.values())


def test_a_cell_without_a_seed_of_its_own_has_the_studys(study):
    """Grid over seeds, and a further cell: it is compared on the seed that it ran with."""
    record = json.loads((study / "study.json").read_text())
    del record["cells"][3]["parameters"]["seed"], record["cells"][2]
    record["study"]["seed"] = 1
    (study / "study.json").write_text(json.dumps(record))
    said = []
    build_study_report("try", n_resamples=20, say=said.append)
    assert said[1] == "compared are the seeds that all conditions have finished: 1"
    table = pd.read_csv(study / "tables" / "study.own-comparison_accuracy.csv").set_index("method")
    assert set(table.index) == {"CE only", "GMCD [low_rank_weight=0]", "GMCD [low_rank_weight=0.1]"}


def test_what_was_run_by_hand_into_a_cell_is_not_taken_for_the_studys(study):
    cell = json.loads((study / "study.json").read_text())["cells"][0]
    forget(study / cell["name"], "07_evaluation.own")
    with pytest.raises(DataError, match=r"07_evaluation of cell own\+weight=0\+seed=0 was run by hand since"):
        build_study_report("try", say=lambda line: None)


@pytest.mark.parametrize("damage", ["x", "[]", "{}", '"text"'])
def test_damaged_records_and_indexes_are_told(study, damage):
    cell = json.loads((study / "study.json").read_text())["cells"][0]
    index_file(study / cell["name"], "07_evaluation.own").write_text(damage if damage != "[]" else '{"runs": []}')
    if damage in ("x", "[]"):
        with pytest.raises(DataError, match="is not readable JSON|is gone from the run store"):
            build_study_report("try", say=lambda line: None)
    (study / "study.json").write_text(damage)
    with pytest.raises(DataError, match=r"study\.json is damaged .*run `medkd batch` with its file again"):
        build_study_report("try")


def test_a_study_without_evaluations_has_nothing_to_compare_and_a_cohort_is_no_study(study):
    record = json.loads((study / "study.json").read_text())
    for cell in record["cells"]:
        cell["notebooks"][0]["notebook"] = "02_teacher_training"
    (study / "study.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="study try has no cell that runs 07_evaluation"):
        build_study_report("try")
    with pytest.raises(DataError, match="of the cohort: `medkd report --dataset phantom-glioma`"):
        build_study_report("phantom-glioma")


def test_ties_are_methods_whose_interval_to_the_best_holds_zero():
    columns = {"low": 0.0, "high": 1.0, "mean_over_parts": 0.5, "sd_over_parts": 0.1, "n_parts": 3}
    summary = pd.DataFrame(
        [{"method": name, "value": value} | columns for name, value in (("a", 0.9), ("b", 0.8), ("c", 0.5))]
    )
    gaps = pd.DataFrame(
        [("b", -0.1, -0.3, 0.1), ("c", -0.4, -0.6, -0.2)], columns=["method", "difference", "low", "high"]
    )
    table = comparison_table(summary, gaps, "a", "auc_macro").set_index("method")
    assert table["mark"].tolist() == ["best", "not told apart", ""]
    assert table.loc["c", "minus the best"] == "-0.400 (-0.600 to -0.200)"


def test_studies_that_are_not_there_or_not_finished_are_told(study):
    with pytest.raises(DataError, match="there is no study nothing .*there are try"):
        build_study_report("nothing")
    record = json.loads((study / "study.json").read_text())
    record["cells"] = record["cells"][-1:]
    (study / "study.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="no cell of study try is finished"):
        build_study_report("try", say=lambda line: None)
    failed = CliRunner().invoke(app, ["report", "nothing"])
    assert failed.exit_code == 2 and "there is no study nothing" in failed.stderr
