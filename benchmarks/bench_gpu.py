"""10. On a GPU: training images a second, share of the matrix peak, and waits for the device in a step."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import Row, Scale, medians, repeat_for, seed_everything, spread
from benchmarks.made_data import pixels
from benchmarks.quick_preset import adam, gmcd_step, moco_of, moco_optimiser, moco_params, moco_step, steps_of
from medkd.data.views import HYBRID
from medkd.models.device import autocast, pick_device, to_device
from medkd.models.encoders import build_image_encoder
from medkd.training.inputs import ImageModality

CASES = (("resnet12", 84, 256), ("resnet12", 224, 64), ("resnet18", 512, 32))


def run(scale: Scale) -> list[Row]:
    """All of it where there is CUDA; else one row that says so."""
    if pick_device().type != "cuda":
        return [Row("10 GPU", "images/s and share of the matrix peak", None, "images/s", note="no GPU")]
    peak = _matrix_peak(scale)
    rows = [row for case in CASES for row in _encoder(scale, peak, *case)]
    return [*rows, *_synchronisations()]


def synchronisations(call, n: int = 3) -> int:  # noqa: ANN001
    """Waits of the CPU for the device in `n` calls after a warm-up, as torch's sync debug mode counts them."""
    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(n):
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in found)


def _matrix_peak(scale: Scale) -> float:
    """Products of large bfloat16 matrices, operations a second."""
    side = 8192
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / medians(repeat_for({"": lambda: left @ right}, scale.repeats, 0.2))[""]


def _encoder(scale: Scale, peak: float, name: str, size: int, batch: int) -> list[Row]:
    """Forward, backward and optimiser on views in memory, bfloat16 and channels last as in training."""
    seed_everything()
    device = pick_device()
    network = to_device(build_image_encoder(name, dim=128), device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    views = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(device):
            loss = F.mse_loss(network(views).float(), torch.zeros(batch, 128, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    operations = 3 * _forward_operations(network, views[:1]) * batch  # backward costs twice the forward pass
    seconds = repeat_for({"": step}, scale.repeats, 0.5)[""]
    what = f"{name}, {size} px, batch {batch}"
    return [
        Row("10 GPU", f"training, {what}", **spread([batch / second for second in seconds]), unit="images/s"),
        Row(
            "10 GPU",
            f"share of the measured bfloat16 matrix peak, {what}",
            **spread([100 * operations / second / peak for second in seconds]),
            unit="%",
            medians={"peak, Tflop/s": peak / 1e12},
        ),
    ]


def _forward_operations(network: nn.Module, views: torch.Tensor) -> float:
    """Floating-point operations of a forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(views)
    network.train()
    return counter.get_total_flops()


def _synchronisations() -> list[Row]:
    """Waits in three steps of MoCo and of GMCD, the look at the loss every 50 steps not among them."""
    params = moco_params()
    moco = moco_of(params)
    images = ImageModality(pixels(4 * params.batch_size, params.image_size), HYBRID, pick_device())
    step, optimizer = moco_step(moco, images), moco_optimiser(moco, params)
    gmcd, batch = gmcd_step(512)
    n = params.batch_size
    cases = {
        "MoCo": steps_of(step, optimizer, n, n, 1),
        "GMCD": steps_of(gmcd, adam(gmcd.parameters()), batch, batch, 1),
    }
    return [
        Row("10 GPU", f"waits for the device in 3 steps of {name}", synchronisations(run), "waits", at_most=0)
        for name, run in cases.items()
    ]
