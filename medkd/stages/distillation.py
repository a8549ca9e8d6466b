"""Stage 03: students on the main modality alone: labels only (CE), published distillation baselines, and GMCD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError
from medkd.evaluation.predict import predict
from medkd.files import write_table
from medkd.models.maps import MapTap
from medkd.seeds import generator_for
from medkd.stages.context import Context
from medkd.stages.networks import build_network, save_trained, train_network, trained_network
from medkd.stages.paired import OptimiserParams, inputs_of, prediction_task, run_folds, split_of, tensor_rows
from medkd.stages.store import Run, Unit, load_or_make
from medkd.stages.teacher import TeacherParams, given_teacher, teacher_run
from medkd.training.baselines import BASELINES
from medkd.training.distillation import DistillationStep, warn_about_small_classes
from medkd.training.recipe import GMCD_TERMS, METHODS, Recipe

VERSIONS = {"gmcd": 5, "crd": 5}
"""Of methods whose results changed when the others' did not; those have 3."""
N_ANCHORS, N_SHOWN = 2, 4  # anchors a class and candidates at each end, in the picture of DSCD's positives

METHOD_FIELDS = {name: {"n_negatives"} if name == "crd" else set() for name in ("ce", *BASELINES)} | {
    "kd": {"temperature", "kd_weight"}
}
"""Which of the method parameters a method reads; GMCD reads them all. The others stay out of its run key."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "no M3LR": {"teacher": {"low_rank_weight": 0.0}},
    "no momentum views": {"teacher": {"momentum_views": False}},
    "no selection": {"selection": "all"},
    "no GKM": {"modulation": "none"},
    "single teacher": {"n_teachers": 1},
}
"""What each ablation of GMCD changes: parameters of this stage, and those of the teacher."""

METHOD_NAMES = {"ce": "CE only", **{name: baseline.title for name, baseline in BASELINES.items()}, "gmcd": "GMCD"}
METHOD_NAMES |= {name: f"GMCD, {name}" for name in ABLATIONS}
"""How tables and figures call the students."""


class DistillationParams(OptimiserParams):
    """Parameters of stage 2 of GMCD and of the students it is compared with."""

    stage: ClassVar[str] = "03_distillation"
    upstream: ClassVar[dict] = {"teacher": TeacherParams}

    methods: list[Literal[METHODS]] = Field(
        ["ce", "kd", "gmcd"],
        description=f"students: {', '.join(METHODS)}",
        json_schema_extra={"unkeyed": True},
        min_length=1,
    )
    ablations: list[Literal[tuple(ABLATIONS)]] = Field(
        [], description=f"ablations of GMCD to train: {', '.join(ABLATIONS)}", json_schema_extra={"unkeyed": True}
    )
    temperature: float = Field(1.0, description="softening T of the KL terms (classification)", gt=0)
    kd_weight: float = Field(1.0, description="weight a of the KL terms", ge=0)
    contrast_weight: float = Field(0.02, description="weight b of the contrastive terms", ge=0)
    n_teachers: Literal[1, 2] = Field(2, description="2: fixed teacher and own momentum copy, 1: fixed teacher only")
    selection: Literal["hard", "mid", "random", "curriculum", "all"] = Field(
        "hard", description='which positives DSCD keeps: "hard", "mid", "random", "curriculum", or "all"'
    )
    n_positives: int = Field(100, description="candidates of the anchor's class, at most (paper: 300)", ge=2)
    n_selected: int = Field(20, description="positives kept, the anchor among them", ge=1)
    n_negatives: int = Field(256, description="negatives per anchor (paper: 1024)", ge=1)
    modulation: Literal["threshold", "soft", "none"] = Field(
        "threshold", description='GKM: "threshold" counts agreeing gradients, "soft" sums cosines, "none" is off'
    )
    modulation_threshold: float = Field(0.1, description="cosine above which two gradients agree (GKM)", ge=0, lt=1)
    modulation_momentum: float = Field(0.5, description="momentum of the GKM weights", ge=0, lt=1)
    momentum: float = Field(0.99, description="largest momentum of the student's momentum copy", ge=0, lt=1)
    teacher: dict = Field({}, description="parameters of 02_teacher_training that differ from its defaults")
    teacher_runs: list[str] = Field(
        [],
        description="keys of finished teachers, one per fold; empty: those of `teacher`",
        json_schema_extra={"unkeyed": True},
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; what GMCD, its teacher or an ablation cannot do, or does not do, is refused too."""
        params = super().checked(values)
        of_features = ("encoder", "width", "weights") if params.frozen else ()
        for name in ("image_size", "frozen", *of_features):
            params.refuse_other("teacher", name, "the teacher reads what the student is shown")
        if params.ablations or "gmcd" in params.methods:
            params.recipe("gmcd")
        mapped = [name for name in params.methods if name in BASELINES and BASELINES[name].maps]
        if mapped and params.frozen:
            raise ParameterError(
                f"{params.stage}: methods {', '.join(mapped)} compare feature maps, and with frozen = True there are "
                "none in training; set frozen = False or leave them out"
            )
        for name in params.ablations:
            _ablated(params, name).of("teacher")
            if _takes_nothing_away(params, name):
                raise ParameterError(
                    f'{params.stage}: with these parameters the ablation "{name}" is GMCD itself under another name; '
                    "leave it out"
                )
        return params

    def recipe(self, method: str) -> Recipe:
        """What a student learns from by this method."""
        names = [field.name for field in dataclasses.fields(Recipe) if field.name != "method"]
        return Recipe(method=method, **{name: getattr(self, name) for name in names})


def train_students(params: DistillationParams) -> dict[tuple[str, int], Run]:
    """The finished students by (method or ablation, fold); teachers they need are loaded or trained first."""
    context = Context.of(params, "teacher-student")
    refuse_methods(context)
    return {
        (method, fold): student_run(context, method, fold)
        for fold in run_folds(context)
        for method in (*params.methods, *params.ablations)
    }


def refuse_methods(context: Context) -> None:
    """What compares feature maps needs a student that has some: told before any teacher is trained.

    Raises:
        ParameterError: a method of these parameters compares maps, and the student has none.
    """
    if any(name in BASELINES and BASELINES[name].maps for name in context.params.methods):
        split = split_of(context, 0)
        example = inputs_of(context, split)[0].plain(tensor_rows(split.train[:1]))
        MapTap(build_network(context, "main", "student", 0).encoder, example).close()


def student_run(context: Context, method: str, fold: int) -> Run:
    """One student of one fold; `method` is a method or the name of an ablation of GMCD."""
    if method in ABLATIONS:
        context = dataclasses.replace(context, params=_ablated(context.params, method))
    params, name = context.params, "gmcd" if method in ABLATIONS else method
    upstream: list[Run] = []
    taught_in: Context | None = None
    if name != "ce":
        run, taught_in = teacher_of(context, fold, ABLATIONS.get(method, {}).get("teacher"))
        upstream = [run]
    own = {field for field in type(params).model_fields if field not in OptimiserParams.model_fields}
    unread = own - METHOD_FIELDS[name] if name in METHOD_FIELDS else set()
    config = {field: value for field, value in params.config().items() if field not in unread}
    title = f"student {METHOD_NAMES[method]}, fold {fold}"
    unit = Unit(
        params.stage,
        VERSIONS.get(name, 3),
        config | {"method": name, "fold": fold},
        context.cohort.fingerprint,
        upstream,
        title,
    )
    return load_or_make(unit, lambda folder: _train(context, name, fold, upstream, taught_in, folder, title))


def teacher_of(context: Context, fold: int, without: Mapping[str, Any] | None = None) -> tuple[Run, Context]:
    """The teacher of the students of a fold, and the context that its network is built in.

    Args:
        context: of the students.
        fold: of the student.
        without: parameters of the teacher's stage that an ablation changes.

    Raises:
        DataError: a given teacher does not fit, see `medkd.stages.teacher.given_teacher`, or started from a file of
            weights that is not at hand.
    """
    given = context.params.teacher_runs
    if not given:
        taught_in = Context.of(context.params.of("teacher"))
        return teacher_run(taught_in, "both", fold), taught_in
    run, taught_in = given_teacher(given[min(fold, len(given) - 1)], context, fold)
    if without:  # one that was trained as the given one was, but for what the ablation takes away
        if taught_in.params.config()["weights"] != run.config["weights"]:
            raise DataError(
                f"teacher run {run.key} started from weights of a file (SHA-256 {run.config['weights']}...), which the "
                "teacher of an ablation needs too; name that file as weights, or leave the ablation out"
            )
        taught_in = dataclasses.replace(taught_in, params=taught_in.params.model_copy(update=without))
        run = teacher_run(taught_in, "both", fold)
    return run, taught_in


def _ablated(params: DistillationParams, name: str) -> DistillationParams:
    """The parameters with one thing taken away, of this stage or of its teacher."""
    changes = ABLATIONS[name]
    return params.model_copy(update=changes | {"teacher": params.teacher | changes.get("teacher", {})})


def _takes_nothing_away(params: DistillationParams, name: str) -> bool:
    """Whether an ablation changes nothing, as far as can be seen before a given teacher is looked at."""
    changes = ABLATIONS[name]
    if name == "no selection" and params.task == "survival":  # an anchor is its own only positive
        return True
    if "teacher" in changes:
        whole, without = params.of("teacher"), _ablated(params, name).of("teacher")
        return not params.teacher_runs and (whole.low_rank_weight == 0 or whole == without)
    return all(getattr(params, field) == value for field, value in changes.items())


def _train(
    context: Context, method: str, fold: int, upstream: list[Run], taught_in: Context | None, folder: Path, title: str
) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    split = split_of(context, fold)
    task = prediction_task(context, split)
    modalities = inputs_of(context, split)
    train, validation = tensor_rows(split.train), tensor_rows(split.val)
    student = build_network(context, "main", "student", fold)  # the same start for every method: paired comparison
    groups = torch.from_numpy(cohort.labels) if params.task == "classification" else None
    step = DistillationStep(
        student,
        trained_network(taught_in, upstream[0], "both") if upstream else None,
        modalities,
        task,
        groups,
        train,
        validation,
        recipe=params.recipe(method),
        generator=generator_for(params.seed, "contrast", fold),
        device=device,
        precision=params.precision,
    )
    if method == "gmcd" and groups is not None:
        warn_about_small_classes(groups[train], cohort.classes, params.n_positives)
    betas = (0.9, 0.999)
    history = train_network(context, step, step.parameters(), train, task, folder, title, "student", fold, betas=betas)
    if method == "gmcd":
        shown = step.positives(_anchors(cohort, split.train), train, N_SHOWN)
        ids = cohort.table["id"].to_numpy()
        write_table(
            folder / "positives.csv",
            shown.assign(**{name: ids[shown[name].to_numpy(int)] for name in ("anchor", "candidate")}),
        )
    found = predict(
        student, modalities[:1], validation, device=device, precision=params.precision, scores=task.predictions
    )
    last_weights = {
        name: float(history[f"weight_{name}"].iloc[-1]) for name in GMCD_TERMS if f"weight_{name}" in history
    }
    return save_trained(folder, context, split, student, history, found) | {"last_weights": last_weights}


def _anchors(cohort: Cohort, train: np.ndarray) -> torch.Tensor:
    """The first training rows of every class, of different patients (or lesions)."""
    first = cohort.table.iloc[train].assign(row=train).drop_duplicates(["label", "patient"])
    return tensor_rows(first.sort_values("label", kind="stable").groupby("label")["row"].head(N_ANCHORS).to_numpy())
