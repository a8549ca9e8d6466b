"""What a report runs: notebooks in order, each on a cohort with its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.data.registry import chain_of
from medkd.errors import ParameterError, did_you_mean
from medkd.files import key_of, write_json
from medkd.paths import reports_dir
from medkd.stages import SHORT_NAMES, stage_params

CHAINS = {
    "teacher-student": ("01_data_exploration", "02_teacher_training", "03_distillation", "07_evaluation"),
    "vector": ("01_data_exploration", "02_teacher_training", "07_evaluation"),
    "rare": ("01_data_exploration", "04_moco_url", "05_pseudo_labelling", "06_self_distillation", "07_evaluation"),
}

DEFAULT_COHORTS = ("phantom-glioma", "phantom-paired-skin", "phantom-rare-skin")

# learning rate and L1 chosen on the validation splits of PORPOISE's five folds
TCGA = {"*": {"folds": 5, "epochs": 30, "batch_size": 16, "balanced": True}, "teacher": {"lr": 2e-3, "l1": 2e-3}}

_SKIN_RARE = {
    "*": {"k_shots": [1, 3, 5], "n_tasks": 3, "epochs": 8, "batch_size": 128, "lr": 0.06, "warmup_epochs": 2},
    "self_distillation": {"dic_every": 4},
}
_SKIN_PAIRED = {"*": {"epochs": 12, "folds": 1}}
_FROZEN = {"encoder": "tf_efficientnet_lite0", "weights": "imagenet", "frozen": True, "image_size": 128}

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "phantom-paired-skin": {
        # trained from random weights, 271 lesions and a minute taught encoders to name one diagnosis for all
        "*": _FROZEN | {"image_size": 64, "folds": 1, "epochs": 12, "batch_size": 16},
        "distillation": {"methods": ["ce", "gmcd"]},
    },
    "phantom-rare-skin": {
        "*": {"image_size": 40, "batch_size": 32, "lr": 0.03, "queue_size": 640, "n_tasks": 1},
        "moco": {"epochs": 6},
        "self_distillation": {"epochs": 5},
    },
    **dict.fromkeys(("isic2018", "ham10000", "dermamnist"), _SKIN_RARE),
    **dict.fromkeys(("milk10k", "milk10k-5", "derm7pt", "pad-ufes-20"), _SKIN_PAIRED),
    "tcga-gbmlgg": TCGA,
}
"""Settings that fit a cohort to two CPU cores, by cohort and short stage name; "*" goes to every stage that has it."""

_PAPER = {"folds": 5, "epochs": 30, "batch_size": 16, "lr": 5e-4}
_PAPER_STUDENT = {"n_positives": 300, "n_negatives": 1024}
_PAPER_PHANTOM = {"*": _PAPER | _FROZEN | {"image_size": 64}, "distillation": _PAPER_STUDENT | {"keep": "last"}}
_PAPER_MILK = {"*": _PAPER | _FROZEN | {"batch_size": 64, "balanced": True}, "distillation": _PAPER_STUDENT}
_PAPER_RARE = {"image_size": 224, "width": 1.0, "epochs": 200, "batch_size": 16, "lr": 0.03, "warmup_epochs": 0}
_PAPER_RARE |= {"schedule": "step", "momentum": 0.999, "k_shots": [1, 3, 5], "n_tasks": 3}
PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "quick": SETTINGS,
    "paper": {
        "phantom-glioma-600": _PAPER_PHANTOM,
        "milk10k-5": _PAPER_MILK,
        "milk10k": _PAPER_MILK,
        "tcga-gbmlgg": TCGA,
        "isic2018": {"*": _PAPER_RARE, "self_distillation": {"dic_every": 10}},
    },
}
"""Settings by preset. "paper" has the constants of Xing et al. 2023 (five folds, 30 epochs, batch 16, Adam 5e-4, 300
candidates, 1,024 negatives) at an image size and with an encoder that two CPU cores can carry; MILK10k trains heads on
frozen features in batches of 64 with balanced classes, and TCGA's genomic network has rates of its own. For ISIC 2018
it has those of Sun et al. 2021 and 2024 (MoCo v1 on four GPUs), which are work for a GPU."""


@dataclass(frozen=True)
class Entry:
    """One notebook on one cohort.

    Attributes:
        notebook: file stem, such as "03_distillation".
        dataset: cohort name.
        parameters: what is injected.
    """

    notebook: str
    dataset: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the executed notebook in the report."""
        return f"{self.notebook}.{self.dataset}"


def plan(
    datasets: Sequence[str],
    *,
    root: str = "",
    report: str,
    overrides: Mapping[str, Any],
    preset: str = "quick",
    device: str = "auto",
    seed: int = 0,
) -> list[Entry]:
    """The entries of a report, notebook by notebook in order.

    Args:
        datasets: cohort names.
        root: folder with the publisher's files, for cohorts that need one.
        report: name of the report's folder.
        overrides: parameter name, or "stage.parameter", -> value.
        preset: key of `PRESETS`.
        device: for every stage.
        seed: for every stage.

    Raises:
        ParameterError: the preset is unknown or has nothing for a cohort; an override names no parameter of any stage
            in the plan, and the nearest known name is told.
    """
    fitted = _preset(preset, datasets)
    notebooks = {dataset: CHAINS[chain_of(dataset, root)] for dataset in datasets}
    stages = sorted({notebook for chain in notebooks.values() for notebook in chain})
    by_stage = assign(overrides, stages)
    classes = stage_params()
    entries = []
    for stage in stages:
        for dataset in datasets:
            if stage not in notebooks[dataset]:
                continue
            common = {"dataset": dataset, "root": root, "report": report, "device": device, "seed": seed}
            parameters = common | _settings(fitted.get(dataset, {}), stage, by_stage)
            for upstream in classes[stage].upstream:
                changed = _settings(fitted.get(dataset, {}), SHORT_NAMES[upstream], by_stage)
                for handed_on in classes[stage].upstream:  # this stage's own, see `StageParams.of`
                    changed.pop(handed_on, None)
                if changed:
                    parameters[upstream] = changed | parameters.get(upstream, {})
            classes[stage].checked(parameters)  # a bad value is refused before any kernel starts
            entries.append(Entry(stage, dataset, parameters))
    return entries


def stage_config(stage: str, dataset: str, **how: Any) -> Path:
    """Write the parameters that a report gives to a stage, for `medkd train`.

    Args:
        stage: short name, or that of its notebook.
        dataset: cohort name.
        how: as of `plan`, but for the report.

    Returns:
        A JSON file under reports/interactive/, named by its content: other parameters never take its place.

    Raises: as `plan`; ParameterError also if the cohort's chain has no such stage.
    """
    notebook = SHORT_NAMES.get(stage, stage)
    entries = {entry.notebook: entry for entry in plan([dataset], report="interactive", **how)}
    if notebook not in entries:
        of_chain = ", ".join([short for short, name in SHORT_NAMES.items() if name in entries][1:-1])
        raise ParameterError(f'{dataset} has no stage "{stage}" to train; the stages of its chain are {of_chain}')
    parameters = entries[notebook].parameters
    name = f"{entries[notebook].name}.{key_of(parameters, 8)}.json"
    path = reports_dir() / "interactive" / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"parameters": parameters})
    return path


def assign(overrides: Mapping[str, Any], stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sort overrides to stages: "epochs" goes to each stage that has it, "teacher.epochs" to one, in whatever order.

    Raises:
        ParameterError: no stage has the parameter; names the nearest. Or only the evaluation has it, for networks of
            another chain than that of these stages. Or it is another stage's, for one stage alone.
    """
    classes = {short: stage_params()[notebook] for short, notebook in SHORT_NAMES.items() if notebook in stages}
    known = {f"{short}.{name}" for short, cls in classes.items() for name in cls.model_fields} | {
        name for cls in classes.values() for name in cls.model_fields
    }
    read = {name for short, cls in classes.items() if short != "evaluation" for name in cls.model_fields}
    # the evaluation holds the parameters of both chains' networks; it reads those of the chain that runs, and its own
    read |= {"n_resamples", *(stage for cls in classes.values() for stage in cls.upstream if stage in classes)}
    assigned: dict[str, dict[str, Any]] = {notebook: {} for notebook in stages}
    for given, value in sorted(overrides.items(), key=lambda item: _for_one_stage(*item)):  # what names a stage wins
        if (option := given.rpartition(".")[2]) in OF_THE_WHOLE:
            option = "name" if option == "report" else option
            raise ParameterError(
                f'"{given}" is the same for all stages of a report: give it as --{option}, or in a study beside '
                "cohorts and parameters"
            )
        if given not in known:
            hint = did_you_mean(given, sorted(known), ".")
            raise ParameterError(
                f'unknown parameter "{given}"{hint} Write -p name=value for every stage that has it, or '
                f"-p stage.name=value with stage one of {', '.join(classes)}"
            )
        short, dot, name = given.rpartition(".")
        if dot and name in SHORT_NAMES:
            raise ParameterError(
                f'"{given}" would give {SHORT_NAMES[short]} a run of {SHORT_NAMES[name]} that other notebooks do not '
                f"show; write {name}.parameter = value, which holds for all of them"
            )
        if not dot and len(classes) > 1 and name not in read:
            raise ParameterError(
                f'"{given}" means nothing to the notebooks that would run ({", ".join(stages)}): it belongs to the '
                "other chain; leave it out"
            )
        if not dot and name in classes and isinstance(value, Mapping):  # teacher={"lr": 1} is teacher.lr=1
            for stage, given_there in assign({f"{name}.{inner}": of for inner, of in value.items()}, stages).items():
                assigned[stage] |= given_there
            continue
        for stage, cls in classes.items():
            if (not dot or stage == short) and name in cls.model_fields:
                assigned[SHORT_NAMES[stage]][name] = value
    return assigned


def _for_one_stage(given: str, value: Any) -> int:
    """How closely an override names its stage: 2 as "teacher.epochs", 1 as "teacher" with a mapping, 0 not at all."""
    return 2 if "." in given else int(given in SHORT_NAMES and isinstance(value, Mapping))


OF_THE_WHOLE = ("dataset", "root", "report", "device", "seed")
"""Parameters of every stage that a report or study sets itself."""


def default_cohorts(preset: str) -> tuple[str, ...]:
    """What a report without a dataset runs: the simulated cohorts that the preset has settings for, or all of them."""
    if preset == "quick":
        return DEFAULT_COHORTS
    return tuple(dataset for dataset in PRESETS.get(preset, {}) if dataset.startswith("phantom-"))


def _preset(name: str, datasets: Sequence[str]) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise ParameterError(f'preset "{name}" is unknown; known are {", ".join(PRESETS)}')
    lacking = [dataset for dataset in datasets if dataset not in PRESETS[name]]
    if name != "quick" and lacking:
        raise ParameterError(
            f'preset "{name}" has no settings for {", ".join(lacking)}, only for {", ".join(PRESETS[name])}; '
            "leave --preset out and set what you need with -p"
        )
    return PRESETS[name]


def _settings(
    fitted: Mapping[str, Mapping[str, Any]], stage: str, by_stage: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The cohort's settings for a stage, then what the user asked for."""
    short = next(name for name, notebook in SHORT_NAMES.items() if notebook == stage)
    fields = stage_params()[stage].model_fields
    general = {name: value for name, value in fitted.get("*", {}).items() if name in fields}
    return general | fitted.get(short, {}) | dict(by_stage.get(stage, {}))
