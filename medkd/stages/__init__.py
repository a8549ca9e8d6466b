"""Stages: validated parameters in, a finished run in the store out.

The names below are loaded on first use, so that `import medkd.stages` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

SHORT_NAMES = {
    "exploration": "01_data_exploration",
    "teacher": "02_teacher_training",
    "distillation": "03_distillation",
    "moco": "04_moco_url",
    "pseudo_labels": "05_pseudo_labelling",
    "self_distillation": "06_self_distillation",
    "evaluation": "07_evaluation",
}
"""Short name of a stage, as in `-p distillation.epochs=5` and in upstream fields, and its notebook."""

_HOME = {
    "ExplorationParams": "exploration",
    "TeacherParams": "teacher",
    "train_teachers": "teacher",
    "DistillationParams": "distillation",
    "train_students": "distillation",
    "MocoParams": "moco_url",
    "pretrain": "moco_url",
    "PseudoLabelParams": "pseudo_labelling",
    "label": "pseudo_labelling",
    "SelfDistillationParams": "self_distillation",
    "self_distil": "self_distillation",
    "EvaluationParams": "evaluation",
    "evaluate": "evaluation",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medkd.stages' has no attribute {name!r}")
    return getattr(import_module(f"medkd.stages.{_HOME[name]}"), name)


def stage_params() -> dict[str, Any]:
    """Every stage's parameter class by its notebook, in order."""
    classes = [__getattr__(name) for name in _HOME if name.endswith("Params")]
    return {cls.stage: cls for cls in classes}
