"""5. Pseudo-labels for K in {1, 3, 5, 10, 20} and ten tasks, from cached features of 10,000 images."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Row, Scale, alternate, medians, spread
from medkd.evaluation.pseudo_labels import label_tasks

N_WAY, DIM, K_SHOTS, N_TASKS = 3, 128, (1, 3, 5, 10, 20), 10


def run(scale: Scale) -> list[Row]:
    """Seconds for all tasks, for each classifier; the paper's is logistic regression."""
    n = scale.pick(10_000, 10_000, 200)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(N_WAY, DIM)).astype(np.float32)
    features = (centres[rng.integers(0, N_WAY, n)] + 2 * rng.normal(size=(n, DIM))).astype(np.float32)
    supports = {
        (k_shot, task): _support(rng, centres, k_shot)
        for k_shot in scale.pick(K_SHOTS, K_SHOTS, (1,))
        for task in range(scale.pick(N_TASKS, N_TASKS, 1))
    }
    calls = {
        name: lambda name=name: label_tasks(supports, features, n_way=N_WAY, classifier=name)
        for name in ("lr", "ridge", "centroid")
    }
    found = alternate(calls, scale.pick(5, 3, 1))
    titles = {"lr": "logistic regression", "ridge": "ridge", "centroid": "centroids"}
    return [
        Row(
            "5 pseudo-labels",
            f"{len(supports)} tasks, {n:,} images, {title}",
            **spread(found[name]),
            unit="s",
            at_most=2,
            medians={"a task": medians(found)[name] / len(supports)},
        )
        for name, title in titles.items()
    ]


def _support(rng: np.random.Generator, centres: np.ndarray, k_shot: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(N_WAY), k_shot)
    return (centres[labels] + 2 * rng.normal(size=(len(labels), DIM))).astype(np.float32), labels
