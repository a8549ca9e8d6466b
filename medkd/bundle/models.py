"""The networks of a study, exported, with measured parity and latency."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.deploy.export import export_run
from medkd.deploy.runtime import RECORD, ExportedModel
from medkd.errors import ParameterError
from medkd.stages.store import Run, with_upstream

REPEATS = 9
BATCHES = (1, 64)
"""Images at once, in the measurement of the latency."""
FIRST = re.compile(r"(fold|task) 0$")
"""Title of the runs that are exported: of each method the one of the first fold or task."""


def export_models(
    evaluations: Mapping[str, Run], roots: Mapping[str, str], to: Path, say: Callable[[str], Any]
) -> pd.DataFrame:
    """Export each method's network of the first fold or task; those that see more than one image are left out.

    Args:
        evaluations: cell -> its run of stage 07.
        roots: cell -> folder of its cohort.
        to: folder that gets one folder per network.
        say: where lines for the reader go.

    Returns:
        One row per network: model (its folder), title, cell (the first with it), parity_onnx and parity_torch_export
        (largest difference of a probability from PyTorch), and latency in ms by batch, the median of nine runs of
        onnxruntime.
    """
    rows = []
    for cell, evaluation in evaluations.items():
        for run in with_upstream(evaluation.upstream).values():
            folder = to / run.key
            if not FIRST.search(run.title) or folder.exists():
                continue
            try:
                export_run(run.key, folder, root=roots[cell])
            except ParameterError as error:
                say(f"not exported: {run.title}: {error}")
                continue
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            parity = {f"parity_{name}": record["parity"][name] for name in ("onnx", "torch_export")}
            rows.append({"model": run.key, "title": run.title, "cell": cell} | parity | latency(ExportedModel(folder)))
            say(f"exported: {run.title}")
    return pd.DataFrame(rows)


def latency(model: ExportedModel) -> dict[str, float]:
    """Milliseconds of a batch of images of the model's own size, by number of images, medians after a warm-up."""
    size, found = model.record.image_size, {}
    for n in BATCHES:
        images = np.zeros((n, 3, size, size), np.uint8)
        seconds = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            model.probabilities(images)
            seconds.append(time.perf_counter() - start)
        found[f"ms_batch_{n}"] = round(1000 * statistics.median(seconds[1:]), 3)
    return found
