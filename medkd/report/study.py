"""The report of a study: its cells compared, with the tables and figures of a paper; nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.registry import load_cohort
from medkd.errors import DataError
from medkd.evaluation.comparison import by_part, differences, is_survival, summarise
from medkd.evaluation.words import metric_words
from medkd.files import write_json
from medkd.paths import reports_dir
from medkd.report.artifacts import Artifacts
from medkd.report.claims import seeds_of, tell_claims
from medkd.report.figures_results import over_parts
from medkd.report.index import read_index, replaced
from medkd.report.looks import class_figures, confusion_or_survival, risk_curves_by_method
from medkd.report.page import build_page, versions
from medkd.report.pooling import Evaluated, comparison_table, of_all_conditions, pooled_predictions, runs_behind
from medkd.report.study_record import EVALUATION, digest_of_record, evaluation_of, read_record
from medkd.text import word
from medkd.training.recipe import GMCD_TERMS

METRICS = ("balanced_accuracy", "auc_macro", "accuracy", "f1_macro")
STAGE_NAMES = {"02_teacher_training": "teachers", "03_distillation": "students", "04_moco_url": "MoCo"}
STAGE_NAMES |= {"06_self_distillation": "self-distillation", "06_baselines": "comparison methods"}


def build_study_report(name: str, *, n_resamples: int = 2000, say: Callable[[str], Any] = print) -> Path:
    """Compare the finished cells of a study, and build its page.

    Args:
        name: folder under reports/, made by `medkd batch`.
        n_resamples: bootstrap resamples of patients (or lesions).
        say: where lines for the reader go.

    Returns:
        Path of `index.html`.

    Raises:
        DataError: there is no such study, none of its cells is finished, or a run is gone.
        ParameterError: `references` of the study names no method of it.
    """
    folder = reports_dir() / name
    record = read_record(folder)
    if not any(each["notebook"] == EVALUATION for cell in record["cells"] for each in cell["notebooks"]):
        raise DataError(
            f"study {name} has no cell that runs {EVALUATION}, so there is nothing to compare; its notebooks are in "
            f"{folder}/CELL/notebooks"
        )
    with replaced(folder, [index.stem for index in (folder / "index").glob("study.*.json")]):
        cohorts = _compare_cells(folder, record, n_resamples, say)
    if not cohorts:
        raise DataError(f"no cell of study {name} is finished; run `medkd batch` with its file first")
    return _page(folder, record, cohorts)


def _compare_cells(
    folder: Path, record: Mapping[str, Any], n_resamples: int, say: Callable[[str], Any]
) -> dict[str, Cohort]:
    """Tables and figures of the cells that are evaluated; their cohorts by name."""
    cohorts: dict[str, Cohort] = {}
    names = {name for cell in record["cells"] for name in cell["parameters"]}
    seed = record["study"].get("parameters", {}).get("seed", record["study"].get("seed", ""))
    roots = {cohort["dataset"]: cohort["root"] for cohort in record["study"]["cohorts"]}
    for dataset in dict.fromkeys(cell["dataset"] for cell in record["cells"]):
        cells = [cell for cell in record["cells"] if cell["dataset"] == dataset]
        evaluated = [found for cell in cells if (found := evaluation_of(folder, cell, names, seed)) is not None]
        say(f"{dataset}: {len(evaluated)} of {len(cells)} cells are evaluated")
        if evaluated:
            cohorts[dataset] = load_cohort(dataset, roots[dataset])
            out = Artifacts(folder, f"study.{dataset}", simulated=cohorts[dataset].simulated)
            references = record["study"].get("references", [])
            evaluated = of_all_conditions(evaluated, say)
            _compare(evaluated, cohorts[dataset], out, references, n_resamples)
            _draw_training(evaluated, cohorts[dataset], out)
    return cohorts


def _compare(
    evaluated: list[Evaluated], cohort: Cohort, out: Artifacts, references: list[str], n_resamples: int
) -> None:
    """Tables and figures of the test data."""
    predictions = pooled_predictions(evaluated)
    survival = is_survival(predictions)
    summary = summarise(predictions, n_resamples=n_resamples)
    level = summary["level"].iloc[-1]
    out.table(
        summary,
        "summary",
        f"{cohort.title}: every metric at every level, with 95% intervals; AUC and average "
        "precision are means over folds or tasks.",
    )
    metrics = ("c_index",) if survival else METRICS
    told = {"metrics": metrics[:2], "level": level, "cohort": cohort, "out": out, "n_resamples": n_resamples}
    tell_claims(predictions, summary, references, **told)
    caption = f"{cohort.title}: {metric_words(metrics[0])}, level {level}, in each part (seed, fold or task)."
    parts = by_part(predictions, metrics[0], level)
    out.table(parts.rename(columns=lambda name: name.lstrip("/")), "by_part", caption)
    for setting, rows in predictions.groupby("setting", sort=False):
        chosen = summary[(summary["setting"] == setting) & (summary["level"] == level)]
        for metric in metrics:
            values = chosen[chosen["metric"] == metric]
            if values["value"].notna().any():  # AUC of test data of one class is not known for any method
                _compare_metric(rows, values, metric, level, cohort, out, n_resamples)
        _draw_results(rows, str(setting), cohort, out)


def _compare_metric(
    predictions: pd.DataFrame,
    summary: pd.DataFrame,
    metric: str,
    level: Any,
    cohort: Cohort,
    out: Artifacts,
    n_resamples: int,
) -> None:
    setting = str(summary["setting"].iloc[0])
    best = str(summary.loc[summary["value"].idxmax(), "method"])
    pairs = [(method, best) for method in summary["method"] if method != best]
    against = differences(predictions, best, metrics=(metric,), level=level, extra_pairs=pairs, n_resamples=n_resamples)
    table = comparison_table(summary, against[against["minus"] == best], best, metric)
    name = "_".join(filter(None, (metric, setting.replace(" ", "").replace("=", ""))))
    shown = metric_words(metric)
    on = f"on the test data{f', {setting}' if setting else ''}, level {level}, with 95% intervals"
    caption = (
        f"{cohort.title}: {shown} {on} (bootstrap over {cohort.group}s), mean and SD over folds, tasks and seeds. "
        'Mark: best (bold in LaTeX) or "not told apart", where the paired interval of the difference to it holds zero; '
        "the best is chosen on these test data, and intervals are not corrected for that."
    )
    first = metric in ("balanced_accuracy", "c_index")
    out.table(table, f"comparison_{name}", caption, highlight={shown: "max"}, summary=first)
    if first:
        caption = f"{cohort.title}: {shown} {on} (bootstrap over {cohort.group}s), {_sizes(predictions, cohort)}."
        out.drawn("interval bars", summary, f"bars_{name}", caption)


def _draw_results(predictions: pd.DataFrame, setting: str, cohort: Cohort, out: Artifacts) -> None:
    suffix = f"_{setting.replace(' ', '').replace('=', '')}" if setting else ""
    if is_survival(predictions):
        caption = f"{cohort.title}: survival by third of predicted risk, 95% bands; p: log-rank test. "
        caption += "A patient whom several folds or seeds tested counts once, by the mean rank. "
        caption += " ".join(filter(None, (setting, _sizes(predictions, cohort))))
        out.drawn("kaplan-meier", risk_curves_by_method(predictions), f"kaplan_meier{suffix}", caption)
        return
    classes = cohort.rare_classes or cohort.classes
    confusion = confusion_or_survival(predictions, "classification", classes)
    for kind, table, shows in (confusion, *class_figures(predictions, classes)):
        told = ", ".join(filter(None, (f"{shows.rstrip(',')}; test images", setting, _sizes(predictions, cohort))))
        out.drawn(kind, table, f"{kind}{suffix}", f"{cohort.title}: {told}.")


def _sizes(predictions: pd.DataFrame, cohort: Cohort) -> str:
    """Whom predictions of one setting are of, for a caption: "n = 1,018 images of 509 patients, 5 folds, 3 seeds"."""
    kind, n_seeds = "task" if cohort.rare_classes else "fold", seeds_of(predictions)
    n_parts = predictions["part"].str.partition("/")[2].nunique()
    seeds = f", {n_seeds} seeds" if n_seeds > 1 else ""
    images = f"{predictions['id'].nunique():,} {'images' if cohort.images else 'samples'}"
    groups = "" if cohort.group == "image" else f" of {predictions['patient'].nunique():,} {cohort.group}s"
    return f"n = {images}{groups}, {n_parts} {kind}{'s' if n_parts > 1 else ''}{seeds}"


def _draw_training(evaluated: list[Evaluated], cohort: Cohort, out: Artifacts) -> None:
    """Learning curves of every stage, GKM weights and singular values, from the runs that were evaluated."""
    histories: dict[str, list[pd.DataFrame]] = {}
    weights, spectra = [], []
    for run, label, part in runs_behind(evaluated):
        if not (run.folder / "history.csv").is_file():
            continue
        history = run.table("history")
        histories.setdefault(run.stage, []).append(history.assign(method=label, part=part))
        if any(name.startswith("weight_") for name in history) and run.config.get("modulation") != "none":
            weights.append(history.assign(method=label))
        if (run.folder / "spectrum.csv").is_file() and len(spectrum := run.table("spectrum")):
            spectra.append(spectrum)
    for stage, tables in histories.items():
        table = pd.concat(tables, ignore_index=True)
        shown = ["loss", *[name for name in table if name.startswith(("val_", "knn"))][:2]]
        parts = over_parts(table, "folds, tasks and seeds")
        caption = f"{cohort.title}: {STAGE_NAMES.get(stage, stage)}{parts}."
        curve = table[["method", "part", "epoch", *shown]]
        out.drawn("learning curves", curve, f"learning_{stage}", caption)
    if weights:
        table = pd.concat(weights, ignore_index=True)
        table = table[["method", "epoch", *[f"weight_{name}" for name in GMCD_TERMS if f"weight_{name}" in table]]]
        out.drawn("gkm weights", table, "gkm_weights", f"{cohort.title}: weights of gradient-guided modulation.")
    if spectra:
        caption = f"{cohort.title}: singular values of one teacher's affinity tensors, before and after shrinkage."
        spectrum = spectra[0].replace({"modality": {"main": cohort.main, "second": cohort.second}})
        out.drawn("singular values", spectrum, "singular_values", caption)


def _page(folder: Path, record: Mapping[str, Any], cohorts: Mapping[str, Cohort]) -> Path:
    notebooks = [
        {
            "name": f"{cell['name']}: {each['notebook']}",
            "state": each["state"],
            "seconds": each["seconds"] or 0.0,
            "error": each["error"] or "",
            "html": f"{each['folder']}/notebooks/{each['notebook']}.{cell['dataset']}.html",
        }
        for cell in record["cells"]
        for each in cell["notebooks"]
    ]
    study = {name: word(value) for name, value in record["study"].items() if name != "cohorts"}
    manifest = {
        "report": record["name"],
        "compared": digest_of_record(record),
        "simulated": any(cohort.simulated for cohort in cohorts.values()),
        "versions": versions(),
        "study": study,
        "cohorts": {
            dataset: {"title": cohort.label_text, "samples": len(cohort), "licence": cohort.licence}
            | {"attribution": cohort.attribution, "fingerprint": cohort.fingerprint}
            for dataset, cohort in cohorts.items()
        },
        "cells": [{"cell": cell["name"], "state": cell["state"]} for cell in record["cells"]],
        "notebooks": [{key: each[key] for key in ("name", "state", "seconds", "error")} for each in notebooks],
    }
    write_json(folder / "manifest.json", manifest)
    entries = [entry for entry in read_index(folder) if entry["stage"].startswith("study.")]
    titles = ", ".join(cohort.label_text for cohort in cohorts.values())
    return build_page(
        folder,
        title=f"medkd study {record['name']}: {titles}",
        manifest=manifest,
        entries=entries,
        notebooks=[each for each in notebooks if (folder / each["html"]).is_file()],
    )
