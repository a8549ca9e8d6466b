"""Stage 02: the multi-modal teacher, and a network on the second modality alone to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError
from medkd.evaluation.predict import predict
from medkd.files import write_table
from medkd.models.pretrained import IMAGENET
from medkd.stages.context import Context
from medkd.stages.networks import build_network, save_trained, train_network
from medkd.stages.paired import OptimiserParams, inputs_of, kinds_of, prediction_task, run_folds, split_of, tensor_rows
from medkd.stages.store import Run, Unit, finished_runs, load_or_make
from medkd.training.supervised import SupervisedStep
from medkd.training.teacher import TeacherRecipe, TeacherStep

VERSION = 3


class TeacherParams(OptimiserParams):
    """Parameters of stage 1 of GMCD."""

    stage: ClassVar[str] = "02_teacher_training"

    fusion: Literal["bilinear", "concat", "lmf"] = Field(
        "bilinear", description='"bilinear" (gated outer product, as in the paper), "concat" or "lmf" (low-rank)'
    )
    low_rank_weight: float = Field(0.1, description="Lambda of the low-rank term (M3LR); 0 leaves it out", ge=0)
    shrinkage: Literal["weighted", "plain"] = Field(
        "weighted", description='"weighted" (as T-SVDNet) or "plain" soft threshold of singular values'
    )
    n_views: Literal[2, 4, 6, 8] = Field(4, description="views per modality in the low-rank tensor: 2, 4, 6 or 8")
    momentum_views: bool = Field(True, description="views of the momentum copy in the low-rank tensor")
    mu: float = Field(1e-5, description="penalty mu of M3LR at the start", gt=0)
    max_mu: float = Field(1.0, description="ceiling of mu", gt=0)
    mu_growth: float = Field(1.1, description="factor on mu a step", ge=1)
    orthogonal: float = Field(0.0, description="weight of the orthogonality of the branches' features; 0: none", ge=0)
    mean_teacher: float = Field(1.0, description="weight of the KL towards the momentum copy; 0 leaves it out", ge=0)
    n_teachers: Literal[1, 2, 3] = Field(1, description="momentum branches that teach each: 1 own, 2 also fused, 3 all")
    l1: float = Field(3e-4, description="L1 penalty on a vector encoder's weights", ge=0)
    momentum: float = Field(0.99, description="largest momentum of the momentum copy", ge=0, lt=1)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; views and penalties that do not go together are refused too."""
        params = super().checked(values)
        if params.mu > params.max_mu:
            raise ParameterError(f"mu = {params.mu:g} lies above max_mu = {params.max_mu:g}; lower mu or raise max_mu")
        params.recipe()
        return params

    def recipe(self) -> TeacherRecipe:
        """What the teacher learns from beside the labels."""
        return TeacherRecipe(**{name: getattr(self, name) for name in TeacherRecipe.__dataclass_fields__})


def train_teachers(params: TeacherParams, inputs: tuple[str, ...] = ()) -> dict[tuple[str, int], Run]:
    """The finished runs by (inputs, fold): loaded where they exist, trained where they do not.

    Args:
        params: the stage's parameters.
        inputs: "both" for the teacher, "second" or "main" for a network on one modality; by default what the cohort
            has, see `medkd.stages.paired.kinds_of`.
    """
    context = Context.of(params, "teacher-student", "vector")
    return {
        (kind, fold): teacher_run(context, kind, fold)
        for kind in inputs or kinds_of(context.cohort)
        for fold in run_folds(context)
    }


def teacher_run(context: Context, kind: str, fold: int) -> Run:
    """One teacher (or single-modality network) of one fold."""
    unused = set() if kind == "both" else {"fusion", *TeacherRecipe.__dataclass_fields__} - {"l1"}
    config = {name: value for name, value in context.params.config().items() if name not in unused}
    config |= {"inputs": kind, "fold": fold}
    title = f"{network_name(context.cohort, kind)}, fold {fold}"
    unit = Unit(context.params.stage, VERSION, config, context.cohort.fingerprint, title=title)
    return load_or_make(unit, lambda folder: _train(context, kind, fold, folder, title))


def network_name(cohort: Cohort, kind: str) -> str:
    """What tables and curves call a network of this stage: "teacher", or the one modality it sees and "only"."""
    return "teacher" if kind == "both" else f"{getattr(cohort, kind)} only"


def given_teacher(key: str, context: Context, fold: int) -> tuple[Run, Context]:
    """A finished teacher by its key (or the first digits of it), if it may teach students of this fold.

    Args:
        key: of a run of this stage; `reports/runs/02_teacher_training/` holds a folder for each.
        context: of the students.
        fold: of the student.

    Returns:
        The run, and the context that its network is built in.

    Raises:
        DataError: there is no such run, or it was trained on another cohort, fold or split, on images of another size
            or features of another encoder, or on one modality only.
    """
    found = finished_runs(TeacherParams.stage, key)
    if len(found) != 1:
        raise DataError(
            f"{len(found)} finished runs of {TeacherParams.stage} have a key that starts with {key!r}; give the name "
            f"of one folder in reports/runs/{TeacherParams.stage}/, or leave teacher_runs empty"
        )
    run, own = found[0], context.params.config()
    if run.cohort != context.cohort.fingerprint:
        raise DataError(
            f"teacher run {run.key} was trained on another cohort (content {run.cohort}) than {context.cohort.name} "
            f"(content {context.cohort.fingerprint}); train a teacher on this cohort"
        )
    if run.config["inputs"] != "both":
        raise DataError(f"run {run.key} saw the {run.config['inputs']} modality only; name a multi-modal teacher's run")

    def differing(*names: str) -> list[str]:
        return [f"{name} = {run.config[name]}, not {own[name]}" for name in names if run.config[name] != own[name]]

    differs = differing("seed", "n_folds", "split_file", "task")
    if run.config["fold"] != fold:
        differs.insert(0, f"fold {run.config['fold']}, not {fold}")
    if differs:
        raise DataError(
            f"teacher run {run.key} belongs to {'; '.join(differs)}, so it may have seen test samples of this student; "
            "name the run of the same fold and split"
        )
    of_features = ("encoder", "width", "weights") if own["frozen"] else ()
    if differs := differing("image_size", "frozen", *of_features):
        raise DataError(
            f"teacher run {run.key} was trained with {'; '.join(differs)}, so it cannot read what this student "
            "is shown; name a run of the same settings"
        )
    settings = {name: value for name, value in run.config.items() if name in TeacherParams.model_fields}
    places = {name: getattr(context.params, name) for name in ("root", "device", "split_file")}
    recorded = run.config["weights"]
    if recorded not in ("", IMAGENET):  # a file: the student's, or none, as the run's own are loaded over it
        places["weights"] = context.params.weights if recorded == own["weights"] else ""
    return run, Context.of(TeacherParams.checked(settings | places))


def _train(context: Context, kind: str, fold: int, folder: Path, title: str) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    split = split_of(context, fold)
    task = prediction_task(context, split)
    network = build_network(context, kind, "teacher", kind, fold)
    modalities = inputs_of(context, split)
    train, validation = tensor_rows(split.train), tensor_rows(split.val)
    if kind == "both":
        used, head, features = modalities, "logits_fused", "fused"
        step = TeacherStep(
            network,
            modalities,
            task,
            validation,
            vectors=[slot for slot in ("main", "second") if getattr(cohort, slot) in cohort.vectors],
            recipe=params.recipe(),
            device=device,
            precision=params.precision,
        )
    else:
        used, head, features = [modalities[0 if kind == "main" else -1]], "logits", "features"
        step = SupervisedStep(
            network,
            used[0],
            task,
            validation,
            penalised=list(network.encoder.parameters()) if getattr(cohort, kind) in cohort.vectors else (),
            l1=params.l1,
            device=device,
            precision=params.precision,
        )
    how = {"betas": (0.5, 0.999)}
    history = train_network(
        context, step, network.parameters(), train, task, folder, title, "teacher", kind, fold, **how
    )
    if kind == "both":
        write_table(folder / "spectrum.csv", step.spectrum(train[: params.batch_size]))
    found = predict(
        network,
        used,
        validation,
        device=device,
        precision=params.precision,
        head=head,
        features=features,
        scores=task.predictions,
    )
    return save_trained(folder, context, split, network, history, found)
