"""Stage 07: the only stage that opens the test split and the query sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from medkd.data.registry import chain_of
from medkd.evaluation.bootstrap import bootstrap_metrics, paired_difference
from medkd.evaluation.embedding import umap_embedding
from medkd.evaluation.metrics import aggregate, classification_metrics
from medkd.evaluation.predict import predict
from medkd.evaluation.pseudo_labels import label_with_logistic_regression
from medkd.files import write_table
from medkd.stages.context import Context
from medkd.stages.distillation import DistillationParams, train_students
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.paired import PairedParams, inputs_of, prediction_table, split_of, tensor_rows, trained_network
from medkd.stages.params import shared
from medkd.stages.pseudo_labelling import PseudoLabelParams, rows_by_id, task_of, url_features
from medkd.stages.self_distillation import VARIANTS, SelfDistillationParams, self_distil
from medkd.stages.store import Run, Unit, load_or_make
from medkd.stages.teacher import TeacherParams, train_teachers

VERSION = 1

METHOD_NAMES = {"both": "teacher", "ce": "CE only", "kd": "KD", "gmcd": "GMCD"}
URL_NAME = "MoCo + LR"


class EvaluationParams(PairedParams):
    """Parameters of the evaluation; which chain it evaluates follows from the cohort."""

    stage: ClassVar[str] = "07_evaluation"
    upstream: ClassVar[dict] = {
        "teacher": TeacherParams,
        "distillation": DistillationParams,
        "moco": MocoParams,
        "pseudo_labels": PseudoLabelParams,
        "self_distillation": SelfDistillationParams,
    }

    k_shots: list[int] = Field(
        [5], description="rare-disease chain: labelled images a class (K)", json_schema_extra={"shared": True}
    )
    n_tasks: int = shared(2, "rare-disease chain: random tasks for each K", ge=1)
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    folds: int = shared(2, "teacher-student chain: folds to evaluate, from fold 0 on", ge=1)
    n_resamples: int = Field(2000, description="bootstrap resamples of patients (or lesions)", ge=100)
    teacher: dict = Field({}, description="parameters of 02_teacher_training that differ from its defaults")
    distillation: dict = Field({}, description="parameters of 03_distillation that differ from its defaults")
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")
    pseudo_labels: dict = Field({}, description="parameters of 05_pseudo_labelling that differ from its defaults")
    self_distillation: dict = Field({}, description="parameters of 06_self_distillation that differ from its defaults")


def evaluate(params: EvaluationParams) -> Run:
    """The finished evaluation, with tables `predictions`, `summary`, `differences`, `embedding`.

    `predictions` has one row a method, setting and test image; `summary` and `differences` carry 95% intervals from
    a bootstrap over patients (lesions), within the folds or tasks that were run.
    """
    context = Context.of(params)
    if chain_of(params.dataset) == "teacher-student":
        sources = _paired_sources(params)
        predict_all, embed = _paired_predictions, "teacher"
    else:
        sources = _rare_sources(params)
        predict_all, embed = _rare_predictions, URL_NAME
    config = {"n_resamples": params.n_resamples, "seed": params.seed}
    unit = Unit(params.stage, VERSION, config, context.cohort.fingerprint, [run for run, *_ in sources], "evaluation")
    return load_or_make(unit, lambda folder: _evaluate(context, sources, predict_all, embed, folder))


def _paired_sources(params: EvaluationParams) -> list[tuple[Run, str, str, int, Context]]:
    """(run, method name, kind of network, fold, context it was made in) of all that the chain compares."""
    students = params.of("distillation")
    teachers = students.of("teacher")
    made_by, taught_by = Context.of(students), Context.of(teachers)
    sources = [
        (run, METHOD_NAMES.get(kind, ""), kind, fold, taught_by)
        for (kind, fold), run in train_teachers(teachers).items()
    ]
    return sources + [
        (run, METHOD_NAMES[method], "main", fold, made_by) for (method, fold), run in train_students(students).items()
    ]


def _rare_sources(params: EvaluationParams) -> list[tuple[Run, str, int, int]]:
    """(run, method name, K, task) of everything the rare-disease chain compares; K = 0 marks the URL run."""
    students = params.of("self_distillation")
    url = pretrain(students.of("moco"))
    return [(url, URL_NAME, 0, 0)] + [
        (run, VARIANTS[variant], k_shot, task) for (variant, k_shot, task), run in self_distil(students).items()
    ]


def _paired_predictions(
    context: Context, sources: list[tuple[Run, str, str, int, Context]]
) -> tuple[pd.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Test predictions of every run; features of the first fold's test rows by method."""
    cohort, tables, features = context.cohort, [], {}
    for run, method, kind, fold, made_in in sources:
        method = method or f"{cohort.second} only"
        split = split_of(made_in, fold)
        modalities = inputs_of(made_in, split)
        used = {"both": modalities, "main": modalities[:1], "second": modalities[1:]}[kind]
        head, name = ("logits_fused", "fused") if kind == "both" else ("logits", "features")
        found = predict(
            trained_network(made_in, run, kind),
            used,
            tensor_rows(split.test),
            device=made_in.device,
            precision=made_in.params.precision,
            head=head,
            features=name,
        )
        tables.append(
            prediction_table(cohort, split.test, found.probabilities).assign(method=method, setting="", part=fold)
        )
        if fold == 0:
            features[method] = (split.test, found.features)
    return pd.concat(tables, ignore_index=True), features


def _rare_predictions(
    context: Context, sources: list[tuple[Run, str, int, int]]
) -> tuple[pd.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Query predictions: logistic regression on URL features, and the students directly; features of rare images."""
    cohort = context.cohort
    url = sources[0][0]
    all_features = url_features(cohort, url)
    rare_rows = cohort.rows_of(cohort.rare_classes)
    tables, features, seen = [], {URL_NAME: (rare_rows, all_features[rare_rows])}, set()
    for run, method, k_shot, task in sources[1:]:
        drawn = task_of(run)
        support, query = rows_by_id(cohort, drawn.support_ids), rows_by_id(cohort, drawn.query_ids)
        classes = list(drawn.classes)
        tag = {"setting": f"K={k_shot}", "part": task}
        if (k_shot, task) not in seen:
            seen.add((k_shot, task))
            names = cohort.table["class"].to_numpy()
            probabilities = label_with_logistic_regression(
                all_features[support],
                np.array([classes.index(names[row]) for row in support]),
                all_features[query],
                n_way=len(classes),
            )
            tables.append(_query_table(cohort, query, probabilities, classes).assign(method=URL_NAME, **tag))
        student_features = run.tensors("features")["features"]
        rows = rows_by_id(cohort, run.table("ids")["id"])
        position = pd.Series(np.arange(len(rows)), index=rows)
        weights = run.tensors("model")
        logits = student_features @ weights["classifier.weight"].T + weights["classifier.bias"]
        probabilities = logits.softmax(dim=1).numpy()[position.loc[query].to_numpy()]
        tables.append(_query_table(cohort, query, probabilities, classes).assign(method=method, **tag))
        features.setdefault(method, (rows, student_features.numpy()))
    return pd.concat(tables, ignore_index=True), features


def _query_table(cohort: Any, rows: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """A prediction table whose labels count into the rare classes."""
    table = prediction_table(cohort, rows, probabilities)
    return table.assign(label=[classes.index(name) for name in cohort.table["class"].to_numpy()[rows]])


def _evaluate(context: Context, sources: list[Any], predict_all: Any, reference: str, folder: Path) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    predictions, features = predict_all(context, sources)
    write_table(folder / "predictions.csv", predictions)
    summary = _summary(predictions, params, cohort)
    write_table(folder / "summary.csv", summary)
    write_table(folder / "differences.csv", _differences(predictions, params, reference))
    embedded = []
    for method, (rows, values) in features.items():
        coordinates = umap_embedding(values, seed=params.seed)
        frame = cohort.table.iloc[rows][["id", "class", "patient"]].reset_index(drop=True)
        embedded.append(frame.assign(method=method, x=coordinates[:, 0], y=coordinates[:, 1]))
    write_table(folder / "embedding.csv", pd.concat(embedded, ignore_index=True))
    wanted = summary[summary["metric"].isin(["balanced_accuracy", "auc_macro"])]
    return {
        f"{row.method} {row.setting} {row.level} {row.metric}".replace("  ", " "): row.value
        for row in wanted.itertuples()
    }


def _levels(predictions: pd.DataFrame) -> list[str]:
    """Image level, and ROI and patient level where regions were cut into several images."""
    if (predictions["roi"] == predictions["id"]).all():
        return ["image"]
    one_label = predictions.groupby("patient")["label"].nunique().max() == 1
    return ["image", "roi", "patient"] if one_label else ["image", "roi"]


def _summary(predictions: pd.DataFrame, params: EvaluationParams, cohort: Any) -> pd.DataFrame:
    """One row a setting, method, level and metric: value with interval, and mean and SD over folds or tasks."""
    rows = []
    for (setting, method), group in predictions.groupby(["setting", "method"], sort=False):
        for level in _levels(predictions):
            parts = [
                aggregate(part.dropna(axis=1, how="all"), level).assign(part=number)
                for number, part in group.groupby("part")
            ]
            frame = pd.concat(parts, ignore_index=True)
            labels, probabilities = _arrays(frame)
            table = bootstrap_metrics(
                labels, probabilities, frame["patient"].to_numpy(), n_resamples=params.n_resamples, seed=params.seed
            )
            each = pd.DataFrame([classification_metrics(*_arrays(part)) for part in parts])
            for metric, row in table.iterrows():
                spread = {
                    "mean_over_parts": each[metric].mean(),
                    "sd_over_parts": each[metric].std(ddof=1) if len(each) > 1 else np.nan,
                }
                rows.append(
                    {
                        "setting": setting,
                        "method": method,
                        "level": level,
                        "metric": metric,
                        "value": row["value"],
                        "low": row["low"],
                        "high": row["high"],
                        **spread,
                        "n_parts": len(parts),
                        "n": len(frame),
                    }
                )
    return pd.DataFrame(rows)


def _differences(predictions: pd.DataFrame, params: EvaluationParams, reference: str) -> pd.DataFrame:
    """Each pair of methods that answers a question, on the same images, with the paired interval."""
    rows = []
    for setting, group in predictions.groupby("setting", sort=False):
        by_method = {
            method: frame.sort_values(["part", "id"], ignore_index=True)
            for method, frame in group.groupby("method", sort=False)
        }
        base = "CE only" if "CE only" in by_method else reference
        others = [method for method in by_method if method != base]
        for method in others:
            a, b = by_method[method], by_method[base]
            labels, ours = _arrays(a)
            for metric in ("balanced_accuracy", "auc_macro"):
                found = paired_difference(
                    labels,
                    ours,
                    _arrays(b)[1],
                    a["patient"].to_numpy(),
                    name=metric,
                    n_resamples=params.n_resamples,
                    seed=params.seed,
                )
                rows.append(
                    {"setting": setting, "method": method, "minus": base, "metric": metric, **found, "n": len(a)}
                )
    return pd.DataFrame(rows)


def _arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    columns = [column for column in frame if column.startswith("p_")]
    return frame["label"].to_numpy(np.int64), frame[columns].to_numpy(float)


def confusion_counts(predictions: pd.DataFrame, n_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class), shape (n_classes, n_classes)."""
    labels, probabilities = _arrays(predictions)
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts
