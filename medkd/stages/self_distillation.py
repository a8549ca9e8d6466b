"""Stage 06: hybrid self-distillation, one student for each task, and which methods it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask
from medkd.errors import ParameterError
from medkd.evaluation.predict import encode
from medkd.files import write_json
from medkd.models.device import to_device
from medkd.models.mode import evaluating
from medkd.seeds import generator_for, seed_for
from medkd.stages.context import Context
from medkd.stages.moco_url import MocoParams, pretrain
from medkd.stages.paired import tensor_rows, width_of
from medkd.stages.params import shared, unkeyed
from medkd.stages.pseudo_labelling import PseudoLabelParams, label_run, read_labels, refuse_tasks, url_features
from medkd.stages.pseudo_labelling import drawn_task as draw
from medkd.stages.rare import (
    MOCO_V2,
    ContrastParams,
    build_moco,
    images_of,
    refuse_parts_of_one,
    save_run,
    train_rows,
)
from medkd.stages.rare_baselines import OF_CONTRAST, BaselineParams
from medkd.stages.store import Run, Unit, load_or_make
from medkd.training.self_distillation import HybridStudent, SelfDistillationStep

VERSION = 3
SHOWN_BASE_ROWS = 1000
"""Common images whose features a student's run keeps, for pictures; the rare ones are kept all."""


@dataclass(frozen=True)
class Variant:
    """One kind of student.

    Attributes:
        title: in tables and figures.
        contrast: whether the contrastive loss is there.
        features: True: L1 distance to the URL features in place of the pseudo-labels; there is no classifier then.
        imbalance: see `SelfDistillationStep`.
    """

    title: str
    contrast: bool = True
    features: bool = False
    imbalance: Literal["none", "dic", "ddl"] = "none"


STUDENTS = {
    "cls": Variant("cls only", contrast=False),
    "reg": Variant("con + L1", features=True),
    "hybrid": Variant("Hbr.Dst."),
    "hybrid_ddl": Variant("Hbr.Dst.-DDL", imbalance="ddl"),
    "hybrid_dic": Variant("Hbr.Dst.-DIC", imbalance="dic"),
}
VARIANTS = {name: variant.title for name, variant in STUDENTS.items()}
"""Names of the students; "cls" and "reg" are rows b and d of Table 7 in Sun et al. 2024."""

METHODS = {
    "scratch": "scratch",
    "protonet": "ProtoNet",
    "srl_simple": "SRL-simple",
    "srl_distill": "SRL-distill",
    "simclr": "SimCLR + LR",
    "moco_v2": "MoCo v2 + LR",
    "moco_v1": "MoCo + LR",
    **VARIANTS,
    "oracle": "oracle",
}
"""Every method of the comparison by its name in `methods`, in the order of the journal's Table 1."""


class SelfDistillationParams(ContrastParams):
    """Parameters of hybrid self-distillation."""

    stage: ClassVar[str] = "06_self_distillation"
    upstream: ClassVar[dict] = {"moco": MocoParams, "pseudo_labels": PseudoLabelParams}

    epochs: int = Field(6, description="passes over the common classes (paper: 200)", ge=1)
    warmup_epochs: int = Field(1, description="epochs in which the learning rate climbs to its start (paper: 0)", ge=0)
    k_shots: list[int] = unkeyed([5], "labelled images per rare class (K) to run", min_length=1)
    n_tasks: int = unkeyed(2, "random tasks for each K", ge=1)
    by_lesion: bool = shared(True, "keep other images of a support lesion out of the query set")
    methods: list[Literal[tuple(METHODS)]] = Field(
        ["moco_v1", "hybrid", "hybrid_dic"],
        description="what is compared, see notebook 06; MoCo + LR is always there",
        json_schema_extra={"unkeyed": True},
    )
    heads: list[Literal["direct", "refit"]] = Field(
        ["direct"],
        description='students classify by "direct" (their own classifier), "refit" (a new one on the support set)',
        min_length=1,
        json_schema_extra={"unkeyed": True},
    )
    labels: Literal["soft", "hard", "adaptive_soft", "adaptive_hard"] = Field(
        "adaptive_hard", description='target: "soft", "hard" (arg max), "adaptive_soft" or "adaptive_hard"'
    )
    mix: float = Field(
        0.7,
        description="adaptive: share of the student's own prediction in the target at the end (alpha_T)",
        ge=0,
        le=1,
    )
    loss: Literal["paper", "released"] = Field(
        "paper",
        description='"paper" (cross-entropy on logits) or "released" (softmax twice at temperature 2, as in the code)',
    )
    classification_weight: float = Field(
        1.0, description="weight of the classification (or L1) loss beside the contrastive one (paper: 1)", gt=0
    )
    gamma: float = Field(0.1, description="strength of the imbalance correction (DIC, DDL)", gt=0, lt=1)
    temperature_form: Literal["paper", "released"] = Field(
        "paper", description='temperatures of DIC and DDL: "paper" (its equations) or "released" (its code)'
    )
    dispersion: Literal["feature_var", "norm_var"] = Field(
        "feature_var", description='DIC: variance of unit features ("feature_var") or of their length ("norm_var")'
    )
    dic_every: int = Field(2, description="DIC: epochs between two measurements of the dispersion", ge=1)
    moco: dict = Field({}, description="parameters of 04_moco_url that differ from its defaults")
    pseudo_labels: dict = Field({}, description="parameters of 05_pseudo_labelling that differ from its defaults")
    baselines: dict = Field(
        {},
        description="parameters of the comparison methods that differ from those of 04_moco_url",
        json_schema_extra={"unkeyed": True},
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; a wrong parameter of a comparison method is refused here too."""
        params = super().checked(values)
        params.baseline_params()
        refuse_parts_of_one(params)
        if (url := params.of("moco")).objective != "moco":
            raise ParameterError(
                'moco: objective = "simclr" would stand as "MoCo + LR" in every table; leave it out, and put "simclr" '
                "into methods"
            )
        here, there = (_length_of(each) for each in (params, url))
        if "reg" in params.methods and here != there:
            raise ParameterError(
                f'methods "reg" compares features with those of the URL run, which have another length: {here} here '
                f"and {there} in moco; set both alike"
            )
        return params

    def baseline_params(self) -> BaselineParams:
        """Parameters of the comparison methods: those of the URL run, then the overrides in `baselines`.

        Raises:
            ParameterError: an override is unknown, out of range, or of the contrast that no comparison method has.
        """
        if unread := sorted(OF_CONTRAST & set(self.baselines)):
            raise ParameterError(
                f"baselines: no comparison method reads {', '.join(unread)}; leave it out, or set it in moco"
            )
        self.refuse_other_split("baselines", "a comparison method might have seen query images")
        url = self.of("moco").model_dump(include=set(BaselineParams.model_fields))
        return BaselineParams.checked(url | {"by_lesion": self.by_lesion} | self.baselines)

    def moco_v2_params(self) -> MocoParams:
        """Parameters of the MoCo v2 run: the URL run's with MoCo v2's changes."""
        return self.of("moco").model_copy(update={"objective": "moco"} | MOCO_V2)

    def simclr_params(self) -> MocoParams:
        """Parameters of the SimCLR run: the URL run's, with MoCo v2's augmentation (SimCLR's is stronger)."""
        return self.of("moco").model_copy(
            update={"objective": "simclr", "augmentation": "strong", "temperature": SIMCLR_TEMPERATURE}
        )


SIMCLR_TEMPERATURE = 0.1


def _length_of(params: ContrastParams) -> str:
    """What the length of an encoder's features depends on, in words: behind a linear projection on nothing else."""
    if params.projection == "linear":
        return 'projection "linear"'
    return f'projection "mlp" on a {params.encoder} of width {width_of(params):g}'


def self_distil(params: SelfDistillationParams) -> dict[tuple[str, int, int], Run]:
    """The finished students by (variant, k_shot, task); labels and URL run are loaded or made first.

    Empty where `methods` names no student: nothing is made then.
    """
    students = [name for name in params.methods if name in STUDENTS]
    context = Context.of(params, "rare")
    if not students:
        return {}
    labelling = Context.of(params.of("pseudo_labels"))
    refuse_tasks(labelling)
    url = pretrain(labelling.params.of("moco"))
    runs = {}
    for k_shot in params.k_shots:
        for task in range(params.n_tasks):
            labels = label_run(labelling, url, k_shot, task)
            drawn = draw(labelling, k_shot, task)
            for name in students:
                runs[name, k_shot, task] = student_run(context, url, labels, name, drawn)
    return runs


def student_run(context: Context, url: Run, labels: Run, name: str, drawn: FewShotTask) -> Run:
    """The student `name` of one task, trained on these labels.

    Raises:
        DataError: the labels are not those of the task, see `read_labels`.
    """
    params = context.params
    config = _config(params, STUDENTS[name]) | {"variant": name, "k_shot": drawn.k_shot, "task": drawn.task}
    title = f"{STUDENTS[name].title} K={drawn.k_shot}, task {drawn.task}"
    unit = Unit(params.stage, VERSION, config, context.cohort.fingerprint, [labels], title)
    return load_or_make(unit, lambda folder: _train(context, url, labels, STUDENTS[name], drawn, folder, title))


def _config(params: SelfDistillationParams, variant: Variant) -> dict[str, Any]:
    """The configuration without what the variant does not use."""
    unused = set() if variant.imbalance == "dic" else {"dispersion", "dic_every"}
    unused |= {"gamma", "temperature_form"} if variant.imbalance == "none" else set()
    unused |= {"labels", "mix", "loss"} if variant.features else set()
    unused |= set() if params.labels.startswith("adaptive") else {"mix"}
    unused |= set() if variant.contrast else {"queue_size", "momentum", "temperature", "classification_weight"}
    return {name: value for name, value in params.config().items() if name not in unused}


def _build(context: Context, n_way: int, task: int) -> HybridStudent:
    moco = build_moco(context, "student", task)
    size = context.params.image_size
    with evaluating(moco), torch.no_grad():  # the length of a feature depends on encoder and projection
        n_features = moco.query_encoder(torch.zeros(1, 3, size, size, device=context.device)).shape[1]
    generator = generator_for(context.params.seed, "classifier", task)
    return to_device(HybridStudent(moco, n_features, n_way, generator), context.device)


def _train(
    context: Context, url: Run, labels: Run, variant: Variant, drawn: FewShotTask, folder: Path, title: str
) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    base, found = read_labels(cohort, labels, drawn)
    soft = torch.zeros(len(cohort), len(drawn.classes))
    soft[base] = torch.from_numpy(found.astype(np.float32))
    images, student = images_of(context), _build(context, len(drawn.classes), drawn.task)
    features = torch.from_numpy(url_features(cohort, url))
    step = SelfDistillationStep(
        student,
        images,
        soft,
        tensor_rows(base),
        labels=params.labels,
        mix=params.mix,
        form=params.loss,
        weight=params.classification_weight if variant.contrast else 1.0,
        contrast=variant.contrast,
        teacher_features=features if variant.features else None,
        imbalance=variant.imbalance,
        gamma=params.gamma,
        dispersion_kind=params.dispersion,
        temperature_form=params.temperature_form,
        dic_every=params.dic_every,
        device=device,
        precision=params.precision,
    )
    if variant.imbalance == "dic":  # until the student has features worth measuring, those of the URL encoder stand in
        step.measure(features[base])
    history = train_rows(context, step, base, folder, title, "self-distillation", drawn.task)
    kept = shown_rows(cohort, params.seed)
    shown = encode(student.moco.query_encoder, images, tensor_rows(kept), device=device, precision=params.precision)
    weights = {
        name: value
        for name, value in student.state_dict().items()
        if name.startswith(("moco.query_encoder.", "classifier."))
    }
    write_json(folder / "task.json", drawn.to_json())
    save_run(folder, cohort, weights, kept, shown, history)
    last = history.iloc[-1]
    wanted = ("loss", "contrast", "classification", "feature_l1", "agreement", "feature_norm")
    return {name: float(last[name]) for name in wanted if name in history} | {"n_train": len(base)}


def shown_rows(cohort: Cohort, seed: int) -> np.ndarray:
    """Row numbers whose features a student's run keeps: every rare image and up to `SHOWN_BASE_ROWS` common ones."""
    base = np.random.default_rng(seed_for(seed, "shown")).permutation(cohort.base_rows())
    return np.sort(np.concatenate([cohort.rows_of(cohort.rare_classes), base[:SHOWN_BASE_ROWS]]))
