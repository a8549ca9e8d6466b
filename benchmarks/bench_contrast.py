"""3. Contrastive memory: CRD over 10,000 images against torchdistill's, forward and backward, the same arithmetic.

Before anything is timed both losses get the same weights, banks and rows, and must give the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, Scale, alternate, medians, ratio, repeat_for, seed_everything
from medkd.losses.memory import ContrastiveDistillation
from medkd.models.device import pick_device

DIM, BATCH = 128, 64
TARGETS = {1024: 3, 4096: 10}


def run(scale: Scale) -> list[Row]:
    """Torchdistill over medkd at 1,024 and 4,096 negatives."""
    n_images = scale.pick(10_000, 10_000, 200)
    return [_compared(scale, n_images, n if scale.size != "tiny" else n // 64, n) for n in TARGETS]


def _compared(scale: Scale, n_images: int, n_negatives: int, asked: int) -> Row:
    what = f"CRD over {n_images:,} images, batch {BATCH}, {n_negatives:,} negatives"
    generator, device = seed_everything(), pick_device()
    memory = ContrastiveDistillation(n_images, DIM, DIM, embed_dim=DIM, generator=generator).to(device)
    features = [torch.randn(BATCH, DIM, generator=generator).to(device) for _ in range(2)]
    rows = torch.randperm(n_images, generator=generator)[:BATCH]
    negatives = torch.randint(n_images, (BATCH, n_negatives), generator=generator)
    contrast = torch.cat([rows[:, None], negatives], dim=1).to(device)
    rows = rows.to(device)
    theirs = _torchdistill(memory, n_negatives, rows, contrast) if scale.has("torchdistill") else None

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return memory(student, teacher, rows, contrast)

    calls = {"medkd": _with_backward(ours, features)}
    if theirs is None:
        seconds = medians(repeat_for(calls, scale.repeats))
        return Row("3 contrast", what, seconds["medkd"], "s", medians=seconds, note="torchdistill is not installed")
    with torch.no_grad():
        mine, other = float(ours(*features)), float(theirs(*features))
    if abs(mine - other) > 1e-3 * abs(other):
        raise AssertionError(f"the two losses differ, {mine} and {other}: what would be timed is not the same")
    found = alternate(calls | {"torchdistill": _with_backward(theirs, features)}, scale.pick(15, 7, 1), warm_up=2)
    return Row(
        "3 contrast",
        f"{what}, torchdistill / medkd",
        **ratio(found["torchdistill"], found["medkd"]),
        at_least=TARGETS[asked],
        medians=medians(found),
    )


def _torchdistill(
    memory: ContrastiveDistillation, n_negatives: int, rows: Tensor, contrast: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """CRD of torchdistill with a copy of our heads and banks, the rows given (its own sampler does not run)."""
    from torchdistill.losses.mid_level import CRDLoss
    from torchdistill.models.wrapper import Normalizer4CRD

    n_images, device = memory.n_images, memory.bank_student.device
    loss = CRDLoss("normalizer", "empty", "normalizer", DIM, n_images, n_negatives, n_images, temperature=0.07)
    loss.memory_v1.copy_(memory.bank_student)
    loss.memory_v2.copy_(memory.bank_teacher)
    loss.to(device)
    heads = [
        nn.Sequential(_copy(head), Normalizer4CRD(nn.Identity(), power=2)).to(device)
        for head in (memory.embed_student, memory.embed_teacher)
    ]
    places = SimpleNamespace(student={"empty": {"input": {"pos_idx": rows, "contrast_idx": contrast}}})

    def run(student: Tensor, teacher: Tensor) -> Tensor:
        student_side = places.student | {"normalizer": {"output": heads[0](student)}}
        return loss(student_side, {"normalizer": {"output": heads[1](teacher)}}).sum()

    return run


def _copy(head: nn.Linear) -> nn.Linear:
    copied = nn.Linear(head.in_features, head.out_features)
    copied.load_state_dict(head.state_dict())
    return copied


def _with_backward(loss: Callable[[Tensor, Tensor], Tensor], features: list[Tensor]) -> Callable[[], None]:
    student, teacher = features[0].clone().requires_grad_(), features[1]

    def run() -> None:
        student.grad = None
        loss(student, teacher).backward()

    return run
