"""Stage 07: the only stage that opens the test split and the query sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import Field

from medkd.data.cohort import Cohort
from medkd.data.registry import chain_of
from medkd.evaluation.comparison import differences, single_modality_pairs, summarise
from medkd.evaluation.embedding import embed_together, quality, umap_embedding
from medkd.files import key_of, write_table
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

VERSION = 10

SITE_COLUMNS = ("site", "localization", "location", "region")
"""What a network may take for the disease: where on the body a lesion lies, as the readers' columns call it."""


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

    k_shots: list[int] = shared([5], "rare-disease chain: labelled images per class (K)", min_length=1)
    n_tasks: int = shared(2, "rare-disease chain: random tasks for each K", ge=1)
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    folds: int = shared(2, "teacher-student chain: folds to evaluate, from fold 0 on", ge=1)
    n_resamples: int = Field(2000, description="bootstrap resamples of patients (or lesions)", ge=100)
    teacher: dict = Field({}, description="parameters of 02_teacher_training that differ from its defaults")
    distillation: dict = Field({}, description="parameters of 03_distillation that differ from its defaults")
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")
    pseudo_labels: dict = Field({}, description="parameters of 05_pseudo_labelling that differ from its defaults")
    self_distillation: dict = Field({}, description="parameters of 06_self_distillation that differ from its defaults")

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; the students that are evaluated must be those that their notebook trains."""
        params = super().checked(values)
        trained = [("distillation", "folds"), ("self_distillation", "k_shots"), ("self_distillation", "n_tasks")]
        for upstream, name in trained:
            params.refuse_other(upstream, name, "the evaluation is of the students that the stage before it trains")
        return params


def evaluate(params: EvaluationParams) -> Run:
    """The finished evaluation, with tables `predictions`, `summary`, `differences`, `embedding`, `embedding_quality`.

    `predictions` has one row per method, setting and test image; `summary` and `differences` carry 95% intervals from
    a bootstrap over patients (lesions), within the folds or tasks that were run. The last two are those of `embed`.
    """
    context = Context.of(params)
    chain = evaluation_rare if chain_of(params.dataset, params.root) == "rare" else evaluation_paired
    sources = chain.sources_of(params)
    compared = [list(source[1:4]) for source in sources]  # one run may stand under two names: a student with two heads
    config = {"n_resamples": params.n_resamples, "seed": params.seed, "compared": compared}
    if (sites := _sites_of(context.cohort)) is not None:  # of the embedding; the fingerprint does not hold them
        config["site"] = key_of([sites.name, *sites])
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
    reference = chain.reference_of(params)
    write_table(folder / "differences.csv", differences(predictions, reference, extra_pairs=pairs, **draws))
    embedding, separation = embed(cohort, features, reference, seed=params.seed)
    write_table(folder / "embedding.csv", embedding)
    write_table(folder / "embedding_quality.csv", separation)
    wanted = summary[summary["metric"].isin(["balanced_accuracy", "auc_macro", "c_index"])]
    return {
        f"{row.method} {row.setting} {row.level} {row.metric}".replace("  ", " "): row.value
        for row in wanted.itertuples()
    }


def embed(
    cohort: Cohort, features: Mapping[str, tuple[np.ndarray, np.ndarray]], reference: str, *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """UMAP of the methods' features on their common images in one plane, and how well it and they keep labels apart.

    Methods that have fewer than four images in common are fitted each alone, on all of their own.

    Args:
        cohort: whose images they are.
        features: method -> (row numbers in the cohort, features of these rows).
        reference: method that UMAP is fitted on; the first one where it is not there.
        seed: of UMAP.

    Returns:
        Columns id, class, label, patient, method, x, y, reference ("" where each method was fitted alone) and, where
        the cohort has a site, or patients with two images and more on average, shortcut and shortcut_kind (what it
        is); and columns method, labels ("class" or the kind of shortcut) and the numbers of
        `medkd.evaluation.embedding.quality`.
    """
    reference = reference if reference in features else next(iter(features))
    indices = {method: pd.Index(rows) for method, (rows, _) in features.items()}
    common = indices[reference]
    for index in indices.values():
        common = common.intersection(index, sort=False)
    if len(common) >= 4:
        rows_of = dict.fromkeys(features, common)
        values_of = {name: values[indices[name].get_indexer(common)] for name, (_, values) in features.items()}
        plane = embed_together(values_of, reference, groups=cohort.groups[common], seed=seed)
    else:
        rows_of, reference = indices, ""
        values_of = {name: values for name, (_, values) in features.items()}
        plane = {name: umap_embedding(values, seed=seed) for name, values in values_of.items()}
    tables, numbers = [], []
    for method, coordinates in plane.items():
        table = _labels_of(cohort, rows_of[method].to_numpy())
        labels = {"class": table["class"]}
        if "shortcut" in table:
            labels[table["shortcut_kind"].iloc[0]] = table["shortcut"]
        for name, values in labels.items():
            found = quality(values_of[method], coordinates, values.to_numpy())
            numbers.append({"method": method, "labels": name} | found)
        x, y = coordinates.T
        tables.append(table.assign(method=method, x=x, y=y, reference=reference))
    return pd.concat(tables, ignore_index=True), pd.DataFrame(numbers)


def _sites_of(cohort: Cohort) -> pd.Series | None:
    """Where on the body, or in which hospital, each image was made, by the name of its column; None without one."""
    column = next((column for column in SITE_COLUMNS if column in cohort.table), "")
    return cohort.table[column].fillna("unknown").astype(str) if column else None


def _labels_of(cohort: Cohort, rows: np.ndarray) -> pd.DataFrame:
    """Names and class of the rows, and what a network may have learned instead: the site, else the patient."""
    table = cohort.table.iloc[rows].reset_index(drop=True)
    shown = table[["id", "class", "label", "patient"]]
    if (sites := _sites_of(cohort)) is not None:
        return shown.assign(shortcut=sites.iloc[rows].to_numpy(), shortcut_kind=sites.name)
    if len(cohort) >= 2 * cohort.table["patient"].nunique():
        return shown.assign(shortcut=table["patient"], shortcut_kind=cohort.group)
    return shown
