"""Teacher-student chain: which runs are compared, and what each predicts on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from medkd.data.registry import chain_of
from medkd.evaluation.predict import predict
from medkd.stages.context import Context
from medkd.stages.distillation import METHOD_NAMES, refuse_methods, teacher_of, train_students
from medkd.stages.networks import trained_network
from medkd.stages.paired import inputs_of, prediction_table, prediction_task, run_folds, split_of, tensor_rows
from medkd.stages.store import Run
from medkd.stages.teacher import network_name, train_teachers

if TYPE_CHECKING:
    from medkd.stages.evaluation import EvaluationParams

REFERENCE = "teacher"


def reference_of(params: EvaluationParams) -> str:
    """What tables call the method that all others are compared with where "CE only" is not there."""
    return REFERENCE


class Source(NamedTuple):
    """A trained network that is compared.

    Attributes:
        run: where its weights are.
        method: its name in tables.
        kind: "both", "main" or "second", what it sees.
        fold: whose test split it predicts.
        context: what it was made in.
    """

    run: Run
    method: str
    kind: str
    fold: int
    context: Context


def sources_of(params: EvaluationParams) -> list[Source]:
    """All networks that the chain compares, trained first where the store lacks them."""
    students = params.of("distillation")
    made_by = Context.of(students, "teacher-student", "vector")
    alone = Context.of(students.of("teacher").model_copy(update={"folds": students.folds}))  # 02 may show more of them
    paired = chain_of(params.dataset, params.root) != "vector"
    sources = []
    if paired:
        refuse_methods(made_by)
        taught_by = {fold: teacher_of(made_by, fold) for fold in run_folds(made_by)}
        sources += [Source(run, REFERENCE, "both", fold, context) for fold, (run, context) in taught_by.items()]
    sources += [
        Source(run, network_name(alone.cohort, kind), kind, fold, alone)
        for (kind, fold), run in train_teachers(alone.params, ("second",)).items()
    ]
    if paired:
        trained = train_students(students)
        sources += [Source(run, METHOD_NAMES[name], "main", fold, made_by) for (name, fold), run in trained.items()]
    return sources


def predict_all(
    context: Context, sources: list[Source]
) -> tuple[pd.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Test predictions of every run; features of the first fold's test rows by method."""
    tables, features = [], {}
    for source in sources:
        made_in, cohort = source.context, source.context.cohort
        split = split_of(made_in, source.fold)
        modalities = inputs_of(made_in, split)
        found = predict(
            trained_network(made_in, source.run, source.kind),
            {"both": modalities, "main": modalities[:1], "second": modalities[-1:]}[source.kind],
            tensor_rows(split.test),
            device=made_in.device,
            precision=made_in.params.precision,
            head="logits_fused" if source.kind == "both" else "logits",
            features="fused" if source.kind == "both" else "features",
            scores=prediction_task(made_in, split).predictions,
        )
        table = prediction_table(cohort, split.test, found.probabilities, made_in.params.task)
        tables.append(table.assign(method=source.method, setting="", part=source.fold))
        if source.fold == 0:
            features[source.method] = (split.test, found.features)
    return pd.concat(tables, ignore_index=True), features
