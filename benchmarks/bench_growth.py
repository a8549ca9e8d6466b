"""9. Growth: a training step as the cohort, the queue and the memory bank grow."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.harness import Row, Scale, alternate, medians, ratio, repeat_for, seed_everything
from benchmarks.quick_preset import (
    adam,
    gmcd_step,
    moco_of,
    moco_optimiser,
    moco_params,
    moco_step,
    sparse_images,
    steps_of,
)
from medkd.data.views import HYBRID
from medkd.losses import memory
from medkd.losses.contrastive import info_nce
from medkd.models.device import pick_device
from medkd.models.momentum import KeyQueue
from medkd.stages.distillation import DistillationParams
from medkd.training.inputs import ImageModality

DIM, BATCH = 128, 64


def run(scale: Scale) -> list[Row]:
    """Steps of MoCo and GMCD by number of images, contrast by length of the queue, scoring by size of the bank."""
    seed_everything()
    sizes = scale.pick((1000, 10_000, 100_000), (1000, 100_000), (64, 128))
    return [*_moco(scale, sizes), *_gmcd(scale, sizes), *_queues(scale), *_banks(scale)]


def _moco(scale: Scale, sizes: tuple[int, ...]) -> list[Row]:
    params, calls = moco_params(), {}
    for n in sizes:
        images, moco = ImageModality(sparse_images(n, params.image_size), HYBRID, pick_device()), moco_of(params)
        batch = min(params.batch_size, n)
        calls[f"{n:,}"] = steps_of(moco_step(moco, images), moco_optimiser(moco, params), n, batch, scale.pick(5, 3, 1))
    return _growth(scale, "a step of MoCo", calls)


def _gmcd(scale: Scale, sizes: tuple[int, ...]) -> list[Row]:
    size, calls = DistillationParams(dataset="phantom-glioma").image_size, {}
    for n in sizes:
        step, batch = gmcd_step(n, sparse_images(n, size))
        calls[f"{n:,}"] = steps_of(step, adam(step.parameters()), n, batch, scale.pick(5, 3, 1))
    return _growth(scale, "a step of GMCD", calls)


def _growth(scale: Scale, what: str, calls: dict) -> list[Row]:
    found = alternate(calls, scale.pick(11, 7, 1), warm_up=2)
    smallest, *others = found
    return [
        Row(
            "9 growth",
            f"{what}, {n} images / {smallest} images",
            **ratio(found[n], found[smallest]),
            at_most=1.15 if n == others[-1] else None,
            medians=medians({name: found[name] for name in (smallest, n)}),
        )
        for n in others
    ]


def _queues(scale: Scale) -> list[Row]:
    """InfoNCE with its gradient, and the push, for queues up to 65,536 keys."""
    device = pick_device()
    query = F.normalize(torch.randn(BATCH, DIM), dim=1).to(device).requires_grad_()
    key, calls = F.normalize(torch.randn(BATCH, DIM), dim=1).to(device), {}
    for size in scale.pick((1024, 4096, 16_384, 65_536), (1024, 65_536), (8, 16)):
        calls[f"{size:,}"] = _contrast(query, key, KeyQueue(size, DIM).to(device))
    found = repeat_for(calls, scale.repeats)
    smallest, *others = found
    return [
        Row(
            "9 growth",
            f"contrast and push at batch {BATCH}, {n} keys / {smallest} keys",
            **ratio(found[n], found[smallest]),
            medians=medians({name: found[name] for name in (smallest, n)}),
        )
        for n in others
    ]


def _contrast(query: torch.Tensor, key: torch.Tensor, queue: KeyQueue):  # noqa: ANN202
    def run() -> None:
        query.grad = None
        info_nce(query, key, queue.keys, temperature=0.07)[0].backward()
        queue.push(key)

    return run


def _banks(scale: Scale) -> list[Row]:
    """Scores of a bank, with their gradient: the way that is chosen against the other one."""
    counts = [(n, m) for n in (1000, 10_000, 100_000) for m in (257, 1025)]
    return [_bank(scale, n, m) for n, m in scale.pick(counts, counts[1::2], [(50, 5), (50, 2)])]


def _bank(scale: Scale, n: int, n_contrasted: int) -> Row:
    device, generator = pick_device(), torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(n, DIM), dim=1).to(device)
    embedded = F.normalize(torch.randn(BATCH, DIM), dim=1).to(device).requires_grad_()
    index = torch.randint(n, (BATCH, n_contrasted), generator=generator).to(device)
    dense = n < memory.DENSE_LIMIT * n_contrasted

    def scored(products) -> None:  # noqa: ANN001
        embedded.grad = None
        products().sum().backward()

    calls = {
        "dense": lambda: scored(lambda: (embedded @ bank.clone().T).gather(1, index)),
        "gathered": lambda: scored(lambda: memory._gathered(embedded, bank, index)),
    }
    found = repeat_for(calls, scale.repeats)
    chosen, other = ("dense", "gathered") if dense else ("gathered", "dense")
    return Row(
        "9 growth",
        f"scores of a bank of {n:,}, {n_contrasted:,} an anchor, the other way / the chosen one ({chosen})",
        **ratio(found[other], found[chosen]),
        medians=medians(found),
    )
