"""Stage 02: the multi-modal teacher, and a network on the second modality alone to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from medkd.evaluation.predict import predict
from medkd.stages.context import Context, seed_for
from medkd.stages.paired import (
    OptimiserParams,
    build_network,
    inputs_of,
    run_folds,
    save_trained,
    split_of,
    tensor_rows,
)
from medkd.stages.store import Run, Unit, load_or_make
from medkd.training.loop import fit, linear_decay
from medkd.training.supervised import SupervisedStep
from medkd.training.teacher import TeacherStep

VERSION = 1


class TeacherParams(OptimiserParams):
    """Parameters of stage 1 of GMCD."""

    stage: ClassVar[str] = "02_teacher_training"

    fusion: Literal["bilinear", "concat"] = Field(
        "bilinear", description='"bilinear" (gated outer product, as in the paper) or "concat"'
    )
    low_rank_weight: float = Field(0.1, description="Lambda of the low-rank term (M3LR); 0 leaves it out", ge=0)
    shrinkage: Literal["weighted", "plain"] = Field(
        "weighted", description='"weighted" (as T-SVDNet) or "plain" soft threshold of singular values'
    )
    mean_teacher: float = Field(1.0, description="weight of the KL towards the momentum copy; 0 leaves it out", ge=0)
    l1: float = Field(3e-4, description="L1 penalty on a vector encoder's weights", ge=0)
    momentum: float = Field(0.99, description="largest momentum of the momentum copy", ge=0, lt=1)


def train_teachers(params: TeacherParams, inputs: tuple[str, ...] = ("both", "second")) -> dict[tuple[str, int], Run]:
    """The finished runs by (inputs, fold): loaded where they exist, trained where they do not.

    Args:
        params: the stage's parameters.
        inputs: "both" for the teacher, "second" or "main" for a network on one modality.
    """
    context = Context.of(params, "teacher-student")
    return {(kind, fold): teacher_run(context, kind, fold) for kind in inputs for fold in run_folds(params)}


def teacher_run(context: Context, kind: str, fold: int) -> Run:
    """One teacher (or single-modality network) of one fold."""
    config = context.params.config() | {"inputs": kind, "fold": fold}
    title = f"{'teacher' if kind == 'both' else kind + ' only'}, fold {fold}"
    unit = Unit(context.params.stage, VERSION, config, context.cohort.fingerprint, title=title)
    return load_or_make(unit, lambda folder: _train(context, kind, fold, folder, title))


def _train(context: Context, kind: str, fold: int, folder: Path, title: str) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    split = split_of(context, fold)
    network = build_network(context, kind, "teacher", kind, fold)
    modalities = inputs_of(context, split)
    labels, validation = torch.from_numpy(cohort.labels), tensor_rows(split.val)
    if kind == "both":
        used, head, features = modalities, "logits_fused", "fused"
        step = TeacherStep(
            network,
            modalities,
            labels,
            validation,
            momentum=params.momentum,
            low_rank_weight=params.low_rank_weight,
            shrinkage=params.shrinkage,
            mean_teacher=params.mean_teacher,
            l1=params.l1 if cohort.second in cohort.vectors else 0.0,
            device=device,
            precision=params.precision,
        )
    else:
        used, head, features = [modalities[0 if kind == "main" else 1]], "logits", "features"
        step = SupervisedStep(network, used[0], labels, validation, device=device, precision=params.precision)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=params.lr, betas=(0.5, 0.999), weight_decay=params.weight_decay, fused=True
    )
    seed = seed_for(params.seed, "teacher", kind, fold)
    history = fit(
        step,
        tensor_rows(split.train),
        optimizer,
        epochs=params.epochs,
        batch_size=params.batch_size,
        schedule=linear_decay,
        seed=seed,
        folder=folder,
        title=title,
        select="val_auc_macro",
    )
    found = predict(network, used, validation, device=device, precision=params.precision, head=head, features=features)
    return save_trained(folder, cohort, split, network, history, found)
