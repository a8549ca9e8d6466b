"""Teacher-student chain: which runs are compared, and what each predicts on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medkd.evaluation.predict import predict
from medkd.stages.context import Context
from medkd.stages.distillation import train_students
from medkd.stages.paired import inputs_of, prediction_table, split_of, tensor_rows, trained_network
from medkd.stages.store import Run
from medkd.stages.teacher import train_teachers

if TYPE_CHECKING:
    from medkd.stages.evaluation import EvaluationParams

REFERENCE = "teacher"
METHOD_NAMES = {"both": "teacher", "ce": "CE only", "kd": "KD", "gmcd": "GMCD"}


def sources_of(params: EvaluationParams) -> list[tuple[Run, str, str, int, Context]]:
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


def predict_all(
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
