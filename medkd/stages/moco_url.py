"""Stage 04: contrast learns a representation on the common classes without their labels (URL)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from medkd.data.folds import split_rows
from medkd.data.published_splits import OWN_FOLDS
from medkd.evaluation.predict import encode
from medkd.evaluation.probes import collapse_std, knn_accuracy
from medkd.seeds import seed_for
from medkd.stages.context import Context
from medkd.stages.paired import tensor_rows
from medkd.stages.rare import (
    ContrastParams,
    build_moco,
    build_simclr,
    images_of,
    refuse_parts_of_one,
    save_run,
    train_rows,
)
from medkd.stages.store import Run, Unit, load_or_make
from medkd.training.moco import MocoStep

VERSION = 3
PROBE_ROWS = 2000
"""The kNN monitor looks at no more common images than this, so that it stays cheap on large cohorts."""


class MocoParams(ContrastParams):
    """Parameters of the URL stage."""

    stage: ClassVar[str] = "04_moco_url"

    objective: Literal["moco", "simclr"] = Field(
        "moco",
        description='"moco" (momentum encoder, queue) or "simclr" (contrast inside the batch, an MLP head)',
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """As `StageParams.checked`; a part of one image for batch norm is refused too."""
        params = super().checked(values)
        refuse_parts_of_one(params)
        return params

    def config(self) -> dict[str, Any]:
        """As `StageParams.config`, without what SimCLR does not read."""
        unread = {"queue_size", "momentum", "projection"} if self.objective == "simclr" else set()
        return {name: value for name, value in super().config().items() if name not in unread}


TITLES = {"moco": "MoCo URL", "simclr": "SimCLR URL"}


def pretrain(params: MocoParams) -> Run:
    """The finished URL run: loaded if it exists, trained if not."""
    context = Context.of(params, "rare")
    unit = Unit(params.stage, VERSION, params.config(), context.cohort.fingerprint, title=TITLES[params.objective])
    return load_or_make(unit, lambda folder: _train(context, folder))


def _train(context: Context, folder: Path) -> dict[str, Any]:
    params, cohort, device = context.params, context.cohort, context.device
    base = cohort.base_rows()
    build = {"moco": build_moco, "simclr": build_simclr}[params.objective]
    images, moco = images_of(context), build(context, "url")
    bank, probe = _probe_rows(context, base)
    labels = cohort.labels

    def monitor(features: np.ndarray) -> dict[str, float]:
        train, held_out = features[: len(bank)], features[len(bank) :]
        accuracy = knn_accuracy(train, labels[bank], held_out, labels[probe], balanced=True)
        return {"knn_balanced_accuracy": accuracy, "feature_std": collapse_std(features)}

    step = MocoStep(
        moco,
        images,
        validate=monitor,
        validation_rows=tensor_rows(np.concatenate([bank, probe])),
        device=device,
        precision=params.precision,
    )
    history = train_rows(context, step, base, folder, TITLES[params.objective], "url")
    everything = np.arange(len(cohort))
    features = encode(moco.query_encoder, images, tensor_rows(everything), device=device, precision=params.precision)
    save_run(folder, cohort, moco.query_encoder.state_dict(), everything, features, history)
    last = history.iloc[-1]
    return {
        "n_train": len(base),
        "loss": float(last["loss"]),
        "knn_balanced_accuracy": float(last["knn_balanced_accuracy"]),
        "feature_std": float(last["feature_std"]),
    }


def _probe_rows(context: Context, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Common images of the kNN monitor: a bank, and held-out ones of other lesions."""
    cohort, seed = context.cohort, context.params.seed
    if len(base) > PROBE_ROWS:
        base = np.sort(np.random.default_rng(seed_for(seed, "probe")).choice(base, PROBE_ROWS, replace=False))
    n_folds = max(2, min(4, len(set(cohort.groups[base]))))
    split = split_rows(cohort.take(base), fold=0, n_folds=n_folds, seed=seed, split_file=OWN_FOLDS)
    return base[np.sort(np.concatenate([split.train, split.val]))], base[split.test]
