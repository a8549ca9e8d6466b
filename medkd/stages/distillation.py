"""Stage 03: students on the main modality alone: labels only (CE), Hinton's KD, and GMCD."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from medkd.evaluation.predict import predict
from medkd.stages.context import Context, generator_for, seed_for
from medkd.stages.paired import (
    OptimiserParams,
    build_network,
    inputs_of,
    run_folds,
    save_trained,
    split_of,
    tensor_rows,
    trained_network,
)
from medkd.stages.store import Run, Unit, load_or_make
from medkd.stages.teacher import TeacherParams, teacher_run
from medkd.training.distillation import GMCD_TERMS, DistillationStep
from medkd.training.loop import fit, linear_decay

VERSION = 1

METHOD_FIELDS = {
    "ce": set(),
    "kd": {"temperature", "kd_weight"},
}
"""Which of the method parameters a method reads; GMCD reads them all. The others stay out of its run key."""


class DistillationParams(OptimiserParams):
    """Parameters of stage 2 of GMCD and of the students it is compared with."""

    stage: ClassVar[str] = "03_distillation"
    upstream: ClassVar[dict] = {"teacher": TeacherParams}

    methods: list[Literal["ce", "kd", "gmcd"]] = Field(
        ["ce", "kd", "gmcd"], description="students to train", json_schema_extra={"unkeyed": True}
    )
    temperature: float = Field(1.0, description="softening T of the KL terms", gt=0)
    kd_weight: float = Field(1.0, description="weight a of the KL terms", ge=0)
    contrast_weight: float = Field(0.02, description="weight b of the contrastive terms", ge=0)
    selection: Literal["hard", "mid", "random", "curriculum"] = Field("hard", description="which positives DSCD keeps")
    n_positives: int = Field(100, description="candidates of the anchor's class (paper: 300)", ge=2)
    n_selected: int = Field(20, description="positives kept, the anchor among them", ge=1)
    n_negatives: int = Field(256, description="negatives an anchor (paper: 1024)", ge=1)
    modulation_threshold: float = Field(0.1, description="cosine above which two gradients agree (GKM)")
    modulation_momentum: float = Field(0.5, description="momentum of the GKM weights", ge=0, lt=1)
    momentum: float = Field(0.99, description="largest momentum of the student's momentum copy", ge=0, lt=1)
    teacher: dict = Field({}, description="parameters of 02_teacher_training that differ from its defaults")


def train_students(params: DistillationParams) -> dict[tuple[str, int], Run]:
    """The finished students by (method, fold); teachers they need are loaded or trained first."""
    context = Context.of(params, "teacher-student")
    return {
        (method, fold): student_run(context, method, fold) for fold in run_folds(params) for method in params.methods
    }


def student_run(context: Context, method: str, fold: int) -> Run:
    """One student of one fold."""
    params = context.params
    upstream: list[Run] = []
    if method != "ce":
        upstream = [teacher_run(Context.of(params.of("teacher")), "both", fold)]
    own = {name for name in type(params).model_fields if name not in OptimiserParams.model_fields}
    unread = own - METHOD_FIELDS[method] if method in METHOD_FIELDS else set()
    config = {name: value for name, value in params.config().items() if name not in unread} | {
        "method": method,
        "fold": fold,
    }
    title = f"student {method}, fold {fold}"
    unit = Unit(params.stage, VERSION, config, context.cohort.fingerprint, upstream, title)
    return load_or_make(unit, lambda folder: _train(context, method, fold, upstream, folder, title))


def _train(context: Context, method: str, fold: int, upstream: list[Run], folder: Path, title: str) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    split = split_of(context, fold)
    modalities = inputs_of(context, split)
    student = build_network(context, "main", "student", fold)  # the same start for every method: paired comparison
    teacher = trained_network(Context.of(params.of("teacher")), upstream[0], "both") if upstream else None
    step = DistillationStep(
        student,
        teacher,
        modalities,
        torch.from_numpy(cohort.labels),
        tensor_rows(split.train),
        tensor_rows(split.val),
        method=method,
        temperature=params.temperature,
        kd_weight=params.kd_weight,
        contrast_weight=params.contrast_weight,
        n_positives=params.n_positives,
        n_selected=params.n_selected,
        n_negatives=params.n_negatives,
        selection=params.selection,
        modulation_threshold=params.modulation_threshold,
        modulation_momentum=params.modulation_momentum,
        momentum=params.momentum,
        generator=generator_for(params.seed, "contrast", fold),
        device=device,
        precision=params.precision,
    )
    optimizer = torch.optim.Adam(
        step.parameters(), lr=params.lr, betas=(0.9, 0.999), weight_decay=params.weight_decay, fused=True
    )
    history = fit(
        step,
        tensor_rows(split.train),
        optimizer,
        epochs=params.epochs,
        batch_size=params.batch_size,
        schedule=linear_decay,
        seed=seed_for(params.seed, "student", fold),
        folder=folder,
        title=title,
        select="val_auc_macro",
    )
    found = predict(student, modalities[:1], tensor_rows(split.val), device=device, precision=params.precision)
    last_weights = {
        name: float(history[f"weight_{name}"].iloc[-1]) for name in GMCD_TERMS if f"weight_{name}" in history
    }
    return save_trained(folder, cohort, split, student, history, found) | {"last_weights": last_weights}
