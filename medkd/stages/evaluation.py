"""Stage 07: the only stage that opens the test split and the query sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from medkd.data.registry import chain_of
from medkd.evaluation.comparison import differences, single_modality_pairs, summarise
from medkd.evaluation.embedding import umap_embedding
from medkd.files import write_table
from medkd.stages import evaluation_paired, evaluation_rare
from medkd.stages.context import Context
from medkd.stages.distillation import DistillationParams
from medkd.stages.moco_url import MocoParams
from medkd.stages.paired import PairedParams
from medkd.stages.params import shared
from medkd.stages.pseudo_labelling import PseudoLabelParams
from medkd.stages.self_distillation import SelfDistillationParams
from medkd.stages.store import Run, Unit, load_or_make
from medkd.stages.teacher import TeacherParams

VERSION = 2


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
    chain = evaluation_rare if chain_of(params.dataset, params.root) == "rare" else evaluation_paired
    sources = chain.sources_of(params)
    config = {"n_resamples": params.n_resamples, "seed": params.seed}
    unit = Unit(params.stage, VERSION, config, context.cohort.fingerprint, [run for run, *_ in sources], "evaluation")
    return load_or_make(unit, lambda folder: _evaluate(context, sources, chain, folder))


def _evaluate(context: Context, sources: list[Any], chain: Any, folder: Path) -> dict[str, Any]:
    params, cohort = context.params, context.cohort
    draws = {"n_resamples": params.n_resamples, "seed": params.seed}
    predictions, features = chain.predict_all(context, sources)
    write_table(folder / "predictions.csv", predictions)
    summary = summarise(predictions, **draws)
    write_table(folder / "summary.csv", summary)
    pairs = single_modality_pairs(predictions)
    write_table(folder / "differences.csv", differences(predictions, chain.REFERENCE, extra_pairs=pairs, **draws))
    embedded = []
    for method, (rows, values) in features.items():
        coordinates = umap_embedding(values, seed=params.seed)
        frame = cohort.table.iloc[rows][["id", "class", "patient"]].reset_index(drop=True)
        embedded.append(frame.assign(method=method, x=coordinates[:, 0], y=coordinates[:, 1]))
    write_table(folder / "embedding.csv", pd.concat(embedded, ignore_index=True))
    wanted = summary[summary["metric"].isin(["balanced_accuracy", "auc_macro", "c_index"])]
    return {
        f"{row.method} {row.setting} {row.level} {row.metric}".replace("  ", " "): row.value
        for row in wanted.itertuples()
    }
