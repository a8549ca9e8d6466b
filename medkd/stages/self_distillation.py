"""Stage 06: hybrid self-distillation, one student for each task, with and without DIC."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from medkd.evaluation.predict import encode
from medkd.files import write_json, write_table, write_tensors
from medkd.models.device import to_device
from medkd.stages.context import Context, generator_for, seed_for
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.paired import tensor_rows
from medkd.stages.params import shared
from medkd.stages.pseudo_labelling import PseudoLabelParams, label_run, rows_by_id, task_of, url_features
from medkd.stages.rare import DIM, ContrastParams, build_moco, images_of, optimiser, schedule_of
from medkd.stages.store import Run, Unit, load_or_make
from medkd.training.loop import fit
from medkd.training.self_distillation import HybridStudent, SelfDistillationStep

VERSION = 1

VARIANTS = {"hybrid": "Hbr.Dst.", "hybrid_dic": "Hbr.Dst.-DIC"}


class SelfDistillationParams(ContrastParams):
    """Parameters of hybrid self-distillation."""

    stage: ClassVar[str] = "06_self_distillation"
    upstream: ClassVar[dict] = {"moco": MocoParams, "pseudo_labels": PseudoLabelParams}

    epochs: int = Field(6, description="passes over the common classes (paper: 200)", ge=1)
    k_shots: list[int] = Field(
        [5], description="labelled images a rare class (K) to run", json_schema_extra={"shared": True, "unkeyed": True}
    )
    n_tasks: int = Field(
        2, description="random tasks for each K", ge=1, json_schema_extra={"shared": True, "unkeyed": True}
    )
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    variants: list[Literal["hybrid", "hybrid_dic"]] = Field(
        ["hybrid", "hybrid_dic"],
        description="without and with imbalance correction (DIC)",
        json_schema_extra={"unkeyed": True},
    )
    hard: bool = Field(True, description="train towards the arg max of a pseudo-label (True) or the soft label")
    mix: float = Field(
        0.7,
        description="share of the student's own prediction in its target at the end (alpha_T); 0 is not adaptive",
        ge=0,
        le=1,
    )
    dic_gamma: float = Field(0.1, description="gamma of DIC", gt=0, le=1)
    dic_every: int = Field(2, description="epochs between two measurements of the dispersion", ge=1)
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")
    pseudo_labels: dict = Field({}, description="parameters of 05_pseudo_labelling that differ from its defaults")


def self_distil(params: SelfDistillationParams) -> dict[tuple[str, int, int], Run]:
    """The finished students by (variant, k_shot, task); labels and URL run are loaded or made first."""
    context = Context.of(params, "rare")
    labelling = Context.of(params.of("pseudo_labels"))
    url = pretrain(labelling.params.of("moco"))
    runs = {}
    for k_shot in params.k_shots:
        for task in range(params.n_tasks):
            labels = label_run(labelling, url, k_shot, task)
            for variant in params.variants:
                runs[variant, k_shot, task] = _student_run(context, url, labels, variant, k_shot, task)
    return runs


def _build(context: Context, n_way: int, task: int) -> HybridStudent:
    moco = build_moco(context, "student", task)
    return to_device(
        HybridStudent(moco, DIM, n_way, generator_for(context.params.seed, "classifier", task)), context.device
    )


def _student_run(context: Context, url: Run, labels: Run, variant: str, k_shot: int, task: int) -> Run:
    params = context.params
    config = params.config() | {"variant": variant, "k_shot": k_shot, "task": task}
    if variant == "hybrid":
        config = {name: value for name, value in config.items() if not name.startswith("dic_")}
    title = f"{VARIANTS[variant]} K={k_shot}, task {task}"
    unit = Unit(params.stage, VERSION, config, context.cohort.fingerprint, [labels], title)
    return load_or_make(unit, lambda folder: _train(context, url, labels, variant, task, folder, title))


def _train(
    context: Context, url: Run, labels: Run, variant: str, task: int, folder: Path, title: str
) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    drawn = task_of(labels)
    frame = labels.table("pseudo_labels")
    base = rows_by_id(cohort, frame["id"])
    soft = torch.zeros(len(cohort), len(drawn.classes))
    soft[base] = torch.from_numpy(frame[[f"p_{name}" for name in drawn.classes]].to_numpy("float32"))
    images, student = images_of(context), _build(context, len(drawn.classes), task)
    train_rows = tensor_rows(base)
    step = SelfDistillationStep(
        student,
        images,
        soft,
        train_rows,
        hard=params.hard,
        mix=params.mix,
        dic_gamma=params.dic_gamma if variant == "hybrid_dic" else 0.0,
        dic_every=params.dic_every,
        device=device,
        precision=params.precision,
    )
    if variant == "hybrid_dic":  # until the student has features worth measuring, those of the URL encoder stand in
        step.set_dispersion(torch.from_numpy(url_features(cohort, url)[base]), soft[base].argmax(dim=1))
    history = fit(
        step,
        train_rows,
        optimiser(student.parameters(), params),
        epochs=params.epochs,
        batch_size=params.batch_size,
        schedule=schedule_of(params),
        seed=seed_for(params.seed, "self-distillation", task),
        folder=folder,
        title=title,
    )
    rare = tensor_rows(cohort.rows_of(cohort.rare_classes))
    features = encode(student.moco.query_encoder, images, rare, device=device, precision=params.precision)
    write_json(folder / "task.json", drawn.to_json())
    write_table(folder / "history.csv", history)
    write_table(folder / "ids.csv", cohort.table.iloc[rare.numpy()][["id"]])
    kept = {
        name: value
        for name, value in student.state_dict().items()
        if name.startswith(("moco.query_encoder.", "classifier."))
    }
    write_tensors(folder / "model.safetensors", kept)
    write_tensors(folder / "features.safetensors", {"features": torch.from_numpy(features)})
    last = history.iloc[-1]
    return {name: float(last[name]) for name in ("loss", "contrast", "classification", "agreement")} | {
        "n_train": len(base)
    }
