"""Rare-disease chain: which runs are compared, and what each predicts on the query sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask
from medkd.evaluation.pseudo_labels import label_with_centroids
from medkd.stages.context import Context
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.paired import prediction_table
from medkd.stages.pseudo_labelling import (
    classify,
    drawn_task,
    label_run,
    refuse_tasks,
    rows_by_id,
    support_of,
    url_features,
)
from medkd.stages.rare import trained_encoder
from medkd.stages.rare_baselines import oracle_runs, refuse_methods, representation, scratch_run
from medkd.stages.self_distillation import METHODS, STUDENTS, SelfDistillationParams, student_run
from medkd.stages.store import Run

if TYPE_CHECKING:
    from medkd.stages.evaluation import EvaluationParams

REFERENCE = METHODS["moco_v1"]
"""Every other method is compared with the teacher F itself: the classifier on the features of the URL run."""

REFIT = " + LR"
"""Suffix of a student whose own classifier is replaced by one on its support features."""


def shown_name(method: str, classifier: str) -> str:
    """A method by the classifier that it was evaluated with: with "ridge" "MoCo + LR" is called "MoCo + ridge"."""
    renamed = classifier != "lr" and method.endswith(REFIT)
    return f"{method.removesuffix(REFIT)} + {classifier}" if renamed else method


def reference_of(params: EvaluationParams) -> str:
    """What tables call the method that all others are compared with."""
    return shown_name(REFERENCE, params.of("self_distillation").of("pseudo_labels").classifier)


Source = tuple[Run, str, int, int]
Features = dict[str, tuple[np.ndarray, np.ndarray]]
Probabilities = dict[tuple[int, int], np.ndarray]

URL_METHODS = tuple(METHODS[name] for name in ("moco_v1", "simclr", "moco_v2"))
"""Methods on an encoder that learned from the common images without labels."""
LABELLED_METHODS = tuple(METHODS[name] for name in ("srl_simple", "srl_distill"))
"""Methods on one that learned to classify them."""
SUPERVISED = (*LABELLED_METHODS, METHODS["protonet"])

DIRECT = {variant.title for variant in STUDENTS.values() if not variant.features} | {
    METHODS["scratch"],
    METHODS["oracle"],
}
"""Methods with a classifier of their own for the rare classes."""


def sources_of(params: EvaluationParams) -> list[Source]:
    """(run, method, K, task) of everything the rare-disease chain compares; K = 0 marks a run that serves all tasks.

    The labellings stand for the reference, since they hold the tasks and the teacher's settings. What does not exist
    is made.
    """
    students = params.of("self_distillation")
    context, labelling = Context.of(students, "rare"), Context.of(students.of("pseudo_labels"), "rare")
    baselines = Context.of(students.baseline_params(), "rare")
    refuse_tasks(labelling)
    refuse_methods(baselines, students.methods)
    url = pretrain(students.of("moco"))
    sources: list[Source] = [(url, REFERENCE, 0, 0)]
    for name in METHODS:  # in the table's order, whatever the order of `methods`
        if name not in students.methods or name == "moco_v1":
            continue
        if METHODS[name] in URL_METHODS:
            sources.append((pretrain(url_params(students, METHODS[name])), METHODS[name], 0, 0))
        elif METHODS[name] in SUPERVISED:
            sources.append((representation(baselines, name), METHODS[name], 0, 0))
        elif name == "oracle":
            sources += [(run, METHODS[name], 0, 0) for run in oracle_runs(baselines)]
    for k_shot in params.k_shots:
        for task in range(params.n_tasks):
            labels, drawn = label_run(labelling, url, k_shot, task), drawn_task(labelling, k_shot, task)
            sources.append((labels, REFERENCE, k_shot, task))
            if "scratch" in students.methods:
                sources.append((scratch_run(baselines, drawn), METHODS["scratch"], k_shot, task))
            for name in STUDENTS:
                if name in students.methods:
                    run = student_run(context, url, labels, name, drawn)
                    sources += [(run, title, k_shot, task) for title in _titles(students, name)]
    return sources


def predict_all(context: Context, sources: list[Source]) -> tuple[pd.DataFrame, Features]:
    """Query predictions of every method, and its features of the rare images (of several: last K, first task).

    Args:
        context: of the evaluation.
        sources: of `sources_of`.

    Returns:
        The table that `medkd.evaluation.comparison` takes, whose labels count into the rare classes; and method ->
        (row numbers, features), a student with two heads once, the oracle not.
    """
    cohort, students = context.cohort, context.params.of("self_distillation")
    labelling = Context.of(students.of("pseudo_labels"))
    keys = [(k_shot, task) for _, method, k_shot, task in sources if method == REFERENCE and k_shot]
    tasks = {key: drawn_task(labelling, *key) for key in keys}
    rare = cohort.rows_of(cohort.rare_classes)
    shown = next(key for key in keys if key[0] == keys[-1][0])
    tables, features = [], {}
    for method in dict.fromkeys(method for _, method, _, _ in sources):
        shared = [run for run, name, k_shot, _ in sources if name == method and not k_shot]
        of_task = {(k_shot, task): run for run, name, k_shot, task in sources if name == method and k_shot}
        runs = {key: shared or [of_task[key]] for key in tasks}
        if method in DIRECT:
            found = {key: _own_probabilities(cohort, runs[key])[rare] for key in tasks}
        elif shared:
            found = _few_shot(labelling, students, method, shared[0], tasks, rare)
        else:
            found = {key: _refit(labelling, of_task[key], drawn, rare) for key, drawn in tasks.items()}
        name = shown_name(method, labelling.params.classifier)
        tables += [_query_table(cohort, drawn, rare, found[key], name, key) for key, drawn in tasks.items()]
        one = len(runs[shown]) == 1  # the oracle's five networks have no axes in common
        if one and method.removesuffix(REFIT) not in features:  # a refitted head sees the features of its student
            features[name] = (rare, features_of(cohort, runs[shown])[rare])
    return pd.concat(tables, ignore_index=True), features


def _titles(students: SelfDistillationParams, name: str) -> list[str]:
    """Names under which a student is evaluated; one without a classifier can only be refitted."""
    title = STUDENTS[name].title
    if STUDENTS[name].features:
        return [title + REFIT]
    return [title + {"direct": "", "refit": REFIT}[head] for head in dict.fromkeys(students.heads)]


def url_params(students: SelfDistillationParams, method: str) -> MocoParams:
    """Parameters of the URL run behind a method."""
    by_method = {METHODS["simclr"]: students.simclr_params, METHODS["moco_v2"]: students.moco_v2_params}
    return by_method[method]() if method in by_method else students.of("moco")


def _few_shot(
    labelling: Context,
    students: SelfDistillationParams,
    method: str,
    run: Run,
    tasks: Mapping[tuple[int, int], FewShotTask],
    rows: np.ndarray,
) -> Probabilities:
    """Every task's classifier on one encoder's features: the labelling stage's, or ProtoNet's own."""
    features = url_features(labelling.cohort, run)
    if method == METHODS["protonet"]:
        n_way = len(labelling.cohort.rare_classes)
        features = features / np.sqrt(features.shape[1])  # it was trained on mean, not summed, squared differences
        supports = {key: support_of(with_plain_supports(labelling), features, drawn) for key, drawn in tasks.items()}
        return {key: label_with_centroids(*support, features[rows], n_way=n_way) for key, support in supports.items()}
    if labelling.params.support_views == "plain" or method in SUPERVISED:
        return classify(with_plain_supports(labelling), features, tasks, rows)
    return classify(labelling, features, tasks, rows, trained_encoder(labelling, run, url_params(students, method)))


def _refit(labelling: Context, run: Run, drawn: FewShotTask, rows: np.ndarray) -> np.ndarray:
    """A new classifier on the student's features of the (plain) support images."""
    return classify(with_plain_supports(labelling), features_of(labelling.cohort, [run]), {0: drawn}, rows)[0]


def with_plain_supports(labelling: Context) -> Context:
    """The labelling stage with plain support views."""
    return dataclasses.replace(labelling, params=labelling.params.model_copy(update={"support_views": "plain"}))


def features_of(cohort: Cohort, runs: Sequence[Run]) -> np.ndarray:
    """Features of the rows that the runs keep, shape (n, d), nan elsewhere."""
    return _gathered(cohort, runs, lambda run: run.tensors("features")["features"])


def _own_probabilities(cohort: Cohort, runs: Sequence[Run]) -> np.ndarray:
    """Probabilities by the classifiers that the runs trained, shape (n, n_way), nan where a run keeps no features."""

    def probabilities(run: Run) -> Tensor:
        weights, features = run.tensors("model"), run.tensors("features")["features"]
        return (features @ weights["classifier.weight"].T + weights["classifier.bias"]).softmax(dim=1)

    return _gathered(cohort, runs, probabilities)


def _gathered(cohort: Cohort, runs: Sequence[Run], values_of: Callable[[Run], Tensor]) -> np.ndarray:
    gathered = None
    for run in runs:
        values = values_of(run).numpy()
        if gathered is None:
            gathered = np.full((len(cohort), values.shape[1]), np.nan, values.dtype)
        gathered[rows_by_id(cohort, run.table("ids")["id"], run.folder / "ids.csv")] = values
    return gathered


def _query_table(
    cohort: Cohort, drawn: FewShotTask, rare: np.ndarray, probabilities: np.ndarray, method: str, key: tuple[int, int]
) -> pd.DataFrame:
    """Predictions of a task's query images, with labels that count into the rare classes."""
    query = rows_by_id(cohort, drawn.query_ids, f"task {drawn.name}")
    table = prediction_table(cohort, query, probabilities[np.searchsorted(rare, query)])
    labels = [drawn.classes.index(name) for name in cohort.table["class"].to_numpy()[query]]
    return table.assign(label=labels, method=method, setting=f"K={key[0]}", part=key[1])
