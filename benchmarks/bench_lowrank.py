"""4. Low-rank loss (M3LR): shrinkage of an affinity tensor of four views against a loop of SVDs over its slices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, Scale, alternate, medians, ratio, repeat_for, seed_everything, spread
from benchmarks.quick_preset import adam, paired_inputs, steps_of, teacher_of
from medkd.losses.lowrank import REWEIGHTING_EPS, LowRankLoss, relation_matrix, shrink
from medkd.models.device import pick_device
from medkd.training.teacher import TeacherRecipe, TeacherStep

N_VIEWS, DIM = 4, 128


def run(scale: Scale) -> list[Row]:
    """Against the loop at batch 16 and 64, and the loss's share of a training step of the teacher."""
    rows = [_against_loop(scale, batch) for batch in scale.pick((16, 64), (16, 64), (4,))]
    return [*rows, *(_share_of_step(scale, batch) for batch in scale.pick((16, 64), (16,), (4,)))]


def loop_of_svds(tensor: Tensor, rho: float) -> Tensor:
    """What `shrink` computes, a singular value decomposition a frequency slice, as published codes do it."""
    slices = torch.fft.rfft(tensor.double(), dim=0)
    kept = torch.empty_like(slices)
    for number, one in enumerate(slices):
        left, values, right = torch.linalg.svd(one, full_matrices=False)
        shrunk = (values - rho * len(tensor) / (values + REWEIGHTING_EPS)).clamp(min=0)
        kept[number] = (left * shrunk) @ right
    return torch.fft.irfft(kept, n=len(tensor), dim=0).to(tensor.dtype)


def views(batch: int) -> list[Tensor]:
    """Unit features of four views of a batch."""
    seed_everything()
    shared = torch.randn(batch, DIM)
    return [F.normalize(shared + torch.randn(batch, DIM), dim=1).to(pick_device()) for _ in range(N_VIEWS)]


def _against_loop(scale: Scale, batch: int) -> Row:
    tensor = torch.stack([relation_matrix(view) for view in views(batch)], dim=2)
    torch.testing.assert_close(shrink(tensor, 0.1), loop_of_svds(tensor, 0.1), rtol=1e-4, atol=1e-5)
    calls = {"medkd": lambda: shrink(tensor, 0.1), "loop of SVDs": lambda: loop_of_svds(tensor, 0.1)}
    found = repeat_for(calls, scale.repeats)
    return Row(
        "4 low rank",
        f"shrinkage at batch {batch}, {N_VIEWS} views, loop / medkd",
        **ratio(found["loop of SVDs"], found["medkd"]),
        at_least=3 if batch == 64 else None,
        medians=medians(found),
    )


def _share_of_step(scale: Scale, batch: int) -> Row:
    """Forward and backward of the loss, for both modalities, over a step of the quick preset's teacher."""
    loss = LowRankLoss(mu=1.0).to(pick_device())
    features = [[view.clone().requires_grad_(number == 1) for number, view in enumerate(views(batch))] for _ in "12"]
    inputs, task, _, params = paired_inputs(4 * batch)
    teacher = teacher_of(params).requires_grad_(True).train()
    step = TeacherStep(
        teacher,
        inputs,
        task,
        torch.arange(2),
        vectors=["second"],
        recipe=TeacherRecipe(),
        device=pick_device(),
        precision=params.precision,
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    calls = {
        "loss": lambda: loss(*features).backward(),
        "step": steps_of(step, adam(list(teacher.parameters())), 4 * batch, batch, 1),
    }
    found = alternate(calls, scale.pick(15, 9, 1), warm_up=2)
    return Row(
        "4 low rank",
        f"loss and its gradient, share of a teacher's step, batch {batch}",
        **spread([100 * a / b for a, b in zip(found["loss"], found["step"], strict=True)]),
        unit="%",
        at_most=5,
        medians=medians(found),
    )
