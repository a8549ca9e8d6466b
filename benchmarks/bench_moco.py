"""2. MoCo pre-training end to end against its floor, and against lightly.

The floor is what no input pipeline and no loop can avoid: forward of both encoders, contrast, backward and optimiser,
on views that lie ready in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_input import lightly_loader
from benchmarks.harness import Row, Scale, alternate, medians, ratio, repeat_for, seed_everything, spread
from benchmarks.made_data import photographs, pixels
from benchmarks.quick_preset import moco_of, moco_optimiser, moco_params, moco_step
from medkd.data.images import FileImages
from medkd.data.views import HYBRID, MOCO_V2
from medkd.losses.contrastive import info_nce
from medkd.models.device import GIB, autocast, keep_freed_memory, pick_device
from medkd.models.momentum import MoCo
from medkd.stages.moco_url import MocoParams
from medkd.training.inputs import ImageModality
from medkd.training.loop import fit


def run(scale: Scale) -> list[Row]:
    """End to end against the floor, share of momentum update and queue, end to end against lightly."""
    seed_everything()
    params = moco_params(**({"width": 0.05} if scale.size == "tiny" else {}))
    n_steps = scale.pick(30, 12, 2)
    images = ImageModality(pixels(n_steps * params.batch_size, params.image_size), HYBRID, pick_device())
    ours, moco = training(images, params)
    found = alternate({"medkd": ours, "floor": _floor(params, n_steps)}, scale.pick(9, 5, 1))
    step_seconds = medians(found)["medkd"] / n_steps
    rows = [
        Row(
            "2 MoCo",
            f"training of {n_steps} steps, {params.image_size} px, batch {params.batch_size}, medkd / floor",
            **ratio(found["medkd"], found["floor"]),
            at_most=1.15,
            medians=medians(found),
        ),
        _share_of_momentum_and_queue(moco, params, step_seconds, scale),
        _memory_kept_between_steps(params, scale),
    ]
    return [*rows, _against_lightly(scale)]


def training(images: ImageModality, params: MocoParams) -> tuple[Callable[[], None], MoCo]:
    """One epoch of stage 04's training, checkpoints and history included, as a call; and its MoCo."""
    moco = moco_of(params)
    step, optimizer = moco_step(moco, images, params.precision), moco_optimiser(moco, params)

    def run() -> None:
        rows = torch.arange(len(images.images))
        shared = {"batch_size": params.batch_size, "schedule": lambda epoch, epochs: 1.0, "seed": 0}
        with tempfile.TemporaryDirectory() as folder:  # one with a checkpoint goes on at its end
            fit(step, rows, optimizer, epochs=1, folder=Path(folder), title="MoCo", **shared)

    return run, moco


def _floor(params: MocoParams, n_steps: int) -> Callable[[], None]:
    moco, device = moco_of(params), pick_device()
    query, key, queue = moco.query_encoder, moco.key_encoder, moco.queue.keys.clone()
    optimizer = moco_optimiser(moco, params)
    shape = (params.batch_size, 3, params.image_size, params.image_size)
    views = [torch.rand(shape).to(device, memory_format=torch.channels_last) for _ in range(2)]
    moco.train()

    def run() -> None:
        for _ in range(n_steps):
            with autocast(device, params.precision):
                embedded, keys = query(views[0]), key(views[1])
            loss, _ = info_nce(_unit(embedded), _unit(keys), queue, temperature=params.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def _share_of_momentum_and_queue(moco: MoCo, params: MocoParams, step_seconds: float, scale: Scale) -> Row:
    keys = F.normalize(torch.randn(params.batch_size, moco.queue.keys.shape[1], device=pick_device()), dim=1)

    def both() -> None:
        moco.key_encoder.update(moco.query_encoder, params.momentum)
        moco.queue.push(keys)

    seconds = repeat_for({"update": both}, scale.repeats)["update"]
    return Row(
        "2 MoCo",
        "momentum update and queue, share of a step",
        **spread([100 * second / step_seconds for second in seconds]),
        unit="%",
        at_most=3,
        medians={"update and push": medians({"": seconds})[""], "step": step_seconds},
    )


def _against_lightly(scale: Scale) -> Row:
    """From JPEG files, epochs after the first: the quick preset on a CPU, the published ResNet-12 at 84 px on a GPU."""
    on_gpu = pick_device().type == "cuda"
    title = f"epoch from JPEG files, {'ResNet-12 at 84 px' if on_gpu else 'quick preset'}, lightly / medkd"
    if not scale.has("lightly"):
        return Row("2 MoCo", title, None, note="lightly is not installed")
    params = moco_params(**({"width": 1.0, "image_size": 84, "batch_size": 64, "queue_size": 4096} if on_gpu else {}))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        names = photographs(folder, scale.pick(2048 if on_gpu else 512, 256, params.batch_size))
        source = FileImages(names, root=folder, cache_dir=Path(place)).load(params.image_size)
        ours, _ = training(ImageModality(source, MOCO_V2, pick_device()), params)
        found = alternate({"medkd": ours, "lightly": _lightly(folder, params)}, scale.pick(5, 3, 1))
    return Row(
        "2 MoCo",
        title,
        **ratio(found["lightly"], found["medkd"]),
        at_least=3 if on_gpu else None,
        medians=medians(found),
    )


def _lightly(folder: Path, params: MocoParams) -> Callable[[], None]:
    """One epoch of MoCo from lightly's parts, in their tutorial's order, with our encoder and precision."""
    from lightly.loss import NTXentLoss
    from lightly.models.utils import update_momentum

    moco, device = moco_of(params), pick_device()
    query, key = moco.query_encoder, moco.key_encoder.module
    criterion = NTXentLoss(
        temperature=params.temperature, memory_bank_size=(params.queue_size, moco.queue.keys.shape[1])
    ).to(device)
    optimizer = moco_optimiser(moco, params)
    loader = lightly_loader(folder, params.image_size, params.batch_size, persistent=True)
    moco.train()

    def run() -> None:
        for (first, second), *_ in loader:
            update_momentum(query, key, m=params.momentum)
            first, second = (view.to(device, non_blocking=True) for view in (first, second))
            with autocast(device, params.precision):
                embedded = query(first)
                with torch.no_grad():
                    keys = key(second)
            loss = criterion(embedded.float(), keys.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def _memory_kept_between_steps(params: MocoParams, scale: Scale) -> Row:
    """Steps that map their activations anew, as glibc has it, against steps that find the memory of the last one."""
    larger = params.model_copy(update={"image_size": scale.pick(48, 48, 16), "batch_size": scale.pick(128, 128, 8)})
    train = _floor(larger, scale.pick(4, 2, 1))

    def with_memory(up_to: int) -> Callable[[], None]:
        return lambda: (keep_freed_memory(up_to), train())

    try:
        found = alternate({"given back": with_memory(32 << 20), "kept": with_memory(GIB)}, scale.repeats)
    finally:
        keep_freed_memory()
    return Row(
        "2 MoCo",
        f"step at {larger.image_size} px, batch {larger.batch_size}, memory given back / kept between steps",
        **ratio(found["given back"], found["kept"]),
        medians=medians(found),
        note="no difference on a GPU",
    )


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)
