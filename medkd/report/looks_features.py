"""Features of several networks in one plane, for the notebooks that look at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.evaluation.embedding import MIN_DIST, N_NEIGHBORS
from medkd.stages.evaluation import embed
from medkd.stages.pseudo_labelling import rows_by_id, url_features
from medkd.stages.self_distillation import shown_rows
from medkd.stages.store import Run

RARE = "rare"
Features = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Method -> (row numbers in the cohort, features of these rows)."""


def validation_features(cohort: Cohort, runs: Mapping[str, Run]) -> Features:
    """What runs of the teacher-student chain keep: features of the validation rows of their fold."""
    return {
        name: (
            rows_by_id(cohort, run.table("validation")["id"], run.folder / "validation.csv"),
            run.tensors("features")["validation"].numpy(),
        )
        for name, run in runs.items()
    }


def rare_features(cohort: Cohort, url: Run, students: Mapping[str, Run], *, seed: int = 0) -> Features:
    """Features of the rare images and of some common ones from the URL encoder ("URL") and from students.

    Args:
        cohort: whose images they are.
        url: the URL run.
        students: name -> run of self-distillation, which keeps the features of these images.
        seed: of the choice of common images where there are no students.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, run in students.items():
        rows = rows_by_id(cohort, run.table("ids")["id"], run.folder / "ids.csv")
        found[name] = (rows, run.tensors("features")["features"].numpy())
    rows = next(iter(found.values()))[0] if found else shown_rows(cohort, seed)
    return {"URL": (rows, url_features(cohort, url)[rows])} | found


def plane(
    cohort: Cohort, features: Features, reference: str, *, closed: tuple[str, ...] = (), seed: int = 0
) -> tuple[pd.DataFrame, str]:
    """The table of a "umap" figure (see `medkd.report.figures_paper`), and the part of its caption that says how.

    Args:
        cohort: whose images they are.
        features: of each method.
        reference: method that UMAP is fitted on; the others are rotated onto it and transformed.
        closed: classes whose labels may not be looked at yet: they are one class, "rare", drawn last and larger.
        seed: of UMAP.
    """
    hidden = cohort.table["class"].isin(closed)
    as_one = {
        "class": cohort.table["class"].mask(hidden, RARE),
        "label": cohort.table["label"].mask(hidden, len(cohort.classes)),
    }
    seen = dataclasses.replace(cohort, classes=(*cohort.classes, RARE), table=cohort.table.assign(**as_one))
    embedding, separation = embed(seen, features, reference, seed=seed)
    table = embedding.merge(separation[separation["labels"] == "class"], on="method")
    return table.assign(on_top=table["class"].eq(RARE)), embedding_caption(embedding, seed)


def embedding_caption(embedding: pd.DataFrame, seed: int) -> str:
    """How the UMAP of stage 07 was made, and what the numbers below its panels are.

    Args:
        embedding: of `medkd.stages.evaluation.embed`.
        seed: of UMAP.
    """
    sizes, reference = embedding.groupby("method").size(), embedding["reference"].iloc[0]
    shown = f"n = {sizes.max()} images" if reference else f"n = {sizes.min()} to {sizes.max()} images per method"
    settings = f"n_neighbors {min(N_NEIGHBORS, sizes.max() - 1)}, min_dist {MIN_DIST}, init pca, seed {seed}"
    fitted = (
        f"fitted on the features of {reference}, onto which those of the other methods are rotated and transformed"
        if reference
        else "each method fitted alone, since they were tested on different images"
    )
    return (
        f"UMAP ({settings}) of L2-normalised features, {shown}; {fitted}. "
        "Below: silhouette and purity of the (up to ten) nearest neighbours, in the features | in the plane."
    )
