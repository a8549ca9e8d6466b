"""8. Memory: what 100,000 images at 84 px add to a training process, and the peak of the quick report."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

import medkd
from benchmarks.harness import Row, Scale

CHILD = """
import gc, sys, torch
from benchmarks.bench_memory import resident
from benchmarks.quick_preset import moco_of, moco_optimiser, moco_params, moco_step, sparse_images, steps_of
from medkd.data.views import HYBRID
from medkd.models.device import pick_device
from medkd.training.inputs import ImageModality

n, size = int(sys.argv[1]), int(sys.argv[2])
params = moco_params(image_size=size)
def training(n):
    images = ImageModality(sparse_images(n, size), HYBRID, pick_device())
    moco = moco_of(params)
    return images, steps_of(moco_step(moco, images), moco_optimiser(moco, params), n, params.batch_size, 3)
few, train = training(2 * params.batch_size)
train(); train()
before = resident()
many, train = training(n)
rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
train()
peak = resident()
for number, part in enumerate(rows.split(params.batch_size)):
    many.raw(part)
    if number % 200 == 0:
        peak = [max(pair) for pair in zip(peak, resident())]
train()
print(*before, *[max(pair) for pair in zip(peak, resident())])
"""


def run(scale: Scale) -> list[Row]:
    """Growth of the resident memory over an epoch of images; with `scale.with_report` the report's peak too."""
    return [_images(scale), _report(scale)]


def resident() -> list[float]:
    """Resident memory of this process, and the part of it that is no mapped file; GB."""
    memory = psutil.Process().memory_info()
    return [memory.rss / 1e9, (memory.rss - memory.shared) / 1e9]


def _images(scale: Scale) -> Row:
    """A process that trains a little, then reads every image once from the map in random order and trains again."""
    n, size = scale.pick((100_000, 84), (100_000, 84), (500, 16))
    arguments = [sys.executable, "-c", CHILD, str(n), str(size)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=_project(), env=_environment())
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    before, own_before, after, own_after = map(float, done.stdout.split()[-4:])
    return Row(
        "8 memory",
        f"resident memory added by an epoch over {n:,} images of {size} px",
        after - before,
        "GB",
        at_most=1,
        medians={"before, GB": before, "peak, GB": after, "of it not mapped files, GB": own_after - own_before},
        note=f"the images are {n * size * size * 3 / 1e9:.1f} GB",
    )


def _report(scale: Scale) -> Row:
    """Largest sum of the resident memory of all processes of `medkd report`, looked at four times a second."""
    what = "peak of the quick report, all its processes"
    if not scale.with_report:
        return Row("8 memory", what, None, at_most=3, unit="GB", note="takes minutes: --with-report")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "notebooks").symlink_to(_project() / "notebooks")
        command = [sys.executable, "-m", "medkd", "report"]
        process = psutil.Popen(command, cwd=home, env=_environment() | {"MEDKD_HOME": home}, stdout=subprocess.DEVNULL)
        peak = 0.0
        done = threading.Event()
        while process.poll() is None:
            peak = max(peak, _tree(process))
            done.wait(0.25)
    return Row(
        "8 memory",
        what,
        peak,
        "GB",
        at_most=3,
        note="" if process.returncode == 0 else f"the report ended with status {process.returncode}",
    )


def _tree(process: psutil.Process) -> float:
    """Proportional set size of a process and its children, so that shared pages count once; GB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total / 1e9


def _project() -> Path:
    return Path(medkd.__file__).parents[1]


def _environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": str(_project())}
