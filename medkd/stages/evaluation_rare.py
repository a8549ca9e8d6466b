"""Rare-disease chain: which runs are compared, and what each predicts on the query sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.evaluation.pseudo_labels import label_with_logistic_regression
from medkd.stages.context import Context
from medkd.stages.moco_url import pretrain
from medkd.stages.paired import prediction_table
from medkd.stages.pseudo_labelling import rows_by_id, task_of, url_features
from medkd.stages.self_distillation import VARIANTS, self_distil
from medkd.stages.store import Run

if TYPE_CHECKING:
    from medkd.stages.evaluation import EvaluationParams

REFERENCE = "MoCo + LR"


def sources_of(params: EvaluationParams) -> list[tuple[Run, str, int, int]]:
    """(run, method name, K, task) of everything the rare-disease chain compares; K = 0 marks the URL run."""
    students = params.of("self_distillation")
    url = pretrain(students.of("moco"))
    return [(url, REFERENCE, 0, 0)] + [
        (run, VARIANTS[variant], k_shot, task) for (variant, k_shot, task), run in self_distil(students).items()
    ]


def predict_all(
    context: Context, sources: list[tuple[Run, str, int, int]]
) -> tuple[pd.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Query predictions: logistic regression on URL features, and the students directly; features of rare images."""
    cohort = context.cohort
    url = sources[0][0]
    all_features = url_features(cohort, url)
    rare_rows = cohort.rows_of(cohort.rare_classes)
    tables, features, seen = [], {REFERENCE: (rare_rows, all_features[rare_rows])}, set()
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
            tables.append(_query_table(cohort, query, probabilities, classes).assign(method=REFERENCE, **tag))
        student_features = run.tensors("features")["features"]
        rows = rows_by_id(cohort, run.table("ids")["id"])
        position = pd.Series(np.arange(len(rows)), index=rows)
        weights = run.tensors("model")
        logits = student_features @ weights["classifier.weight"].T + weights["classifier.bias"]
        probabilities = logits.softmax(dim=1).numpy()[position.loc[query].to_numpy()]
        tables.append(_query_table(cohort, query, probabilities, classes).assign(method=method, **tag))
        features.setdefault(method, (rows, student_features.numpy()))
    return pd.concat(tables, ignore_index=True), features


def _query_table(cohort: Cohort, rows: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """A prediction table whose labels count into the rare classes."""
    table = prediction_table(cohort, rows, probabilities)
    return table.assign(label=[classes.index(name) for name in cohort.table["class"].to_numpy()[rows]])
