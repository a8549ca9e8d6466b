"""Networks, data and steps of the quick preset, as the stages build them, without a run store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.made_data import pixels
from medkd.data.views import GMCD
from medkd.models.device import pick_device, to_device
from medkd.models.encoders import build_feature_encoder, build_vector_encoder
from medkd.models.fusion import FUSIONS
from medkd.models.momentum import MoCo
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.report.plan import SETTINGS
from medkd.stages.context import Context
from medkd.stages.distillation import DistillationParams
from medkd.stages.moco_url import MocoParams
from medkd.stages.networks import DIM
from medkd.stages.rare import build_moco, optimiser
from medkd.stages.teacher import TeacherParams
from medkd.training.distillation import DistillationStep, Recipe
from medkd.training.inputs import ImageModality, Modality, VectorModality
from medkd.training.moco import MocoStep
from medkd.training.tasks import Classification

N_CLASSES, N_GENES = 3, 80


def moco_params(**changes: object) -> MocoParams:
    """Parameters of stage 04 in the quick report."""
    settings = SETTINGS["phantom-rare-skin"]
    given = {name: value for name, value in settings["*"].items() if name in MocoParams.model_fields}
    return MocoParams(**(given | settings["moco"] | {"device": "auto"} | changes))


def moco_of(params: MocoParams) -> MoCo:
    """A fresh MoCo."""
    return build_moco(Context(params, None, pick_device()), "benchmark")


def moco_step(moco: MoCo, images: ImageModality, precision: str = "auto") -> MocoStep:
    """The step of stage 04; after an epoch it encodes two images."""
    step = MocoStep(
        moco,
        images,
        validate=lambda features: {},
        validation_rows=torch.arange(2),
        device=pick_device(),
        precision=precision,
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step


def moco_optimiser(moco: MoCo, params: MocoParams) -> torch.optim.Optimizer:
    """As stage 04 makes it."""
    return optimiser(moco.parameters(), params)


def paired_inputs(
    n: int, images: np.ndarray | None = None
) -> tuple[list[Modality], Classification, Tensor, DistillationParams]:
    """Images and vectors of `n` made-up patients, the task, the class of each, and the parameters of stage 03."""
    params, device = DistillationParams(dataset="phantom-glioma"), pick_device()
    labels = np.arange(n) % N_CLASSES
    values = np.random.default_rng(0).normal(size=(n, N_GENES)).astype(np.float32)
    images = pixels(n, params.image_size) if images is None else images
    inputs = [ImageModality(images, GMCD, device), VectorModality(values, np.arange(n), device)]
    task = Classification(labels, N_CLASSES, np.arange(n), balanced=False, device=device)
    return inputs, task, torch.from_numpy(labels), params


def student_of(params: DistillationParams) -> SingleModalityNet:
    """A fresh student on images."""
    torch.manual_seed(0)
    encoder = build_feature_encoder(params.encoder, dim=DIM, width=params.width)
    return to_device(SingleModalityNet(encoder, DIM, N_CLASSES), pick_device())


def teacher_of(params: DistillationParams) -> MultimodalTeacher:
    """A teacher on images and vectors; that it was not trained changes no time."""
    torch.manual_seed(1)
    image = build_feature_encoder(params.encoder, dim=DIM, width=params.width)
    fusion = FUSIONS[TeacherParams(dataset="phantom-glioma").fusion](DIM, DIM, DIM)
    teacher = MultimodalTeacher(image, build_vector_encoder(N_GENES, dim=DIM), fusion, DIM, N_CLASSES)
    return to_device(teacher, pick_device()).eval()


def gmcd_step(n: int, images: np.ndarray | None = None, **changes: object) -> tuple[DistillationStep, int]:
    """GMCD's step on `n` made-up patients, ready to be called, and its batch size."""
    inputs, task, labels, params = paired_inputs(n, images)
    own = {name: getattr(params, name) for name in Recipe.__dataclass_fields__ if name != "method"}
    step = DistillationStep(
        student_of(params),
        teacher_of(params),
        inputs,
        task,
        labels,
        torch.arange(n),
        torch.arange(2),
        recipe=Recipe(method="gmcd", **(own | changes)),
        generator=torch.Generator().manual_seed(0),
        device=pick_device(),
        precision=params.precision,
    )
    step.start(torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    return step, min(params.batch_size, n)


def steps_of(
    step: DistillationStep | MocoStep, optimizer: torch.optim.Optimizer, n_rows: int, batch: int, n_steps: int
) -> Callable[[], None]:
    """A call that takes `n_steps` training steps on random rows, as the training loop does."""
    generator, stretch = torch.Generator().manual_seed(0), n_rows // batch
    step.modules.train()

    def run() -> None:
        for _ in range(n_steps):
            # one of each of `batch` equal stretches of the rows: no row twice, from all over the cohort
            rows = torch.arange(batch) * stretch + torch.randint(stretch, (batch,), generator=generator)
            loss, _ = step.loss(rows, 0.5)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step.after_step()

    return run


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """As stages 02 and 03 make it."""
    return torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-3, weight_decay=4e-4, fused=True)


def sparse_images(n: int, size: int) -> np.ndarray:
    """A read-only memory map of `n` black images that takes no room on the disk, as the image cache gives it."""
    path = Path(tempfile.mkdtemp()) / "images.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, size, size, 3))
    images = np.load(path, mmap_mode="r")
    path.unlink()  # the map keeps the file until it is closed
    return images
