"""3. A distillation step: GMCD against plain KD with the same student and the same two teachers, quick preset."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Row, Scale, alternate, medians, ratio, seed_everything
from benchmarks.quick_preset import adam, gmcd_step, steps_of
from medkd.models.device import autocast
from medkd.training.distillation import DistillationStep


class KdStep:
    """The networks of a GMCD step taught by soft targets of both teachers only: no contrast, no modulation."""

    def __init__(self, step: DistillationStep) -> None:
        self._step, self.modules = step, step.modules

    def loss(self, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and the KL terms towards the fixed teacher and the momentum copy."""
        step = self._step
        main, second = step.inputs
        view = main.augmented(rows, step.generator)
        with autocast(step.device, step.precision):
            features = step.student.encoder(view)
        logits = step.student.classifier(features.float())
        with torch.no_grad(), autocast(step.device, step.precision):
            taught = step.teacher(view, second.plain(rows))
            own = step.copy(main.augmented(rows, step.others))
        terms = {"ce": step.task.loss(logits, rows)}
        terms["kd_teacher"] = step.task.match(logits, taught.logits_fused, step.recipe.temperature)
        terms["kd_momentum"] = step.task.match(logits, own.logits, step.recipe.temperature)
        return sum(terms.values()), terms

    def after_step(self) -> None:
        """Move the momentum copy, as GMCD does."""
        self._step.after_step()


def run(scale: Scale) -> list[Row]:
    """The step of GMCD over that of KD, with the report's counts of positives and negatives and the paper's."""
    return [
        _compared(scale, "the report's 100 positives, 256 negatives", {}),
        _compared(scale, "the paper's 300 positives, 1,024 negatives", {"n_positives": 300, "n_negatives": 1024}),
    ]


def _compared(scale: Scale, counts: str, recipe: dict[str, int]) -> Row:
    seed_everything()
    n, n_steps = scale.pick(1000, 1000, 48), scale.pick(10, 5, 1)
    gmcd, batch = gmcd_step(n, **recipe)
    kd = KdStep(gmcd_step(n, **recipe)[0])
    found = alternate(
        {
            "GMCD": steps_of(gmcd, adam(gmcd.parameters()), n, batch, n_steps),
            "KD": steps_of(kd, adam(list(kd.modules.student.parameters())), n, batch, n_steps),
        },
        scale.pick(11, 7, 1),
        warm_up=2,
    )
    found = {name: [second / n_steps for second in seconds] for name, seconds in found.items()}
    return Row(
        "3 distillation",
        f"a step of batch {batch}, {counts}, GMCD / KD",
        **ratio(found["GMCD"], found["KD"]),
        at_most=1.25 if not recipe else None,
        medians=medians(found),
    )
