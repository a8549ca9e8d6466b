"""What the notebooks of the rare-disease chain look at: neighbours, pseudo-labels by K, the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.data.episodes import draw_task
from medkd.evaluation.bootstrap import percentile_interval, resample_weights
from medkd.evaluation.probes import unit_rows
from medkd.stages.pseudo_labelling import rows_by_id
from medkd.stages.store import Run
from medkd.text import with_interval

JOURNAL = {
    "scratch": (
        "37.74; 35.17/41.31/30.10; 35.19",
        "39.76; 37.57/42.91/34.21; 38.23",
        "45.36; 44.34/48.78/38.17; 43.76",
    ),
    "ProtoNet": (
        "35.18; 30.18/38.03/32.68; 33.63",
        "38.59; 32.61/41.88/35.77; 36.75",
        "42.45; 38.74/46.45/34.40; 39.86",
    ),
    "SRL-simple": (
        "54.45; 51.49/55.24/55.05; 53.93",
        "61.31; 54.09/63.58/61.84; 59.84",
        "70.53; 61.50/74.41/68.70; 68.20",
    ),
    "SRL-distill": (
        "55.43; 50.74/55.16/59.87; 55.26",
        "64.92; 58.42/68.25/62.43; 63.03",
        "72.78; 62.47/78.11/68.56; 69.71",
    ),
    "SimCLR + LR": (
        "52.43; 34.94/54.35/62.17; 50.49",
        "63.82; 46.77/75.53/50.28; 57.53",
        "70.18; 60.76/75.28/65.77; 67.27",
    ),
    "MoCo v2 + LR": (
        "59.95; 41.97/63.23/66.94; 57.38",
        "70.84; 52.71/70.76/85.67; 69.71",
        "75.80; 58.76/80.36/78.80; 72.64",
    ),
    "MoCo + LR": (
        "61.90; 50.87/62.14/70.33; 61.11",
        "74.92; 55.27/75.73/88.87; 73.29",
        "79.01; 57.00/84.12/84.67; 75.26",
    ),
    "Hbr.Dst.": (
        "64.15; 40.31/61.12/90.45; 63.96",
        "75.82; 60.27/74.59/91.24; 75.37",
        "81.16; 69.09/85.31/81.09; 78.50",
    ),
    "Hbr.Dst.-DDL": (
        "64.65; 47.39/61.50/85.91; 64.93",
        "75.29; 58.51/76.19/86.72; 73.81",
        "82.02; 62.40/88.31/83.01; 77.91",
    ),
    "Hbr.Dst.-DIC": (
        "65.11; 52.01/61.58/83.90; 65.83",
        "76.48; 64.31/77.05/84.96; 75.44",
        "82.02; 70.15/85.78/82.74; 79.56",
    ),
}
"""Sun et al. 2024, Table 1 (ISIC 2018, ResNet-12, 224 px): accuracy; DF/AKIEC/VASC; their mean, %, at K = 1, 3, 5."""
JOURNAL_SHOTS = ("K=1", "K=3", "K=5")


def neighbours_of_rare(
    cohort: Cohort,
    features: np.ndarray,
    name: str,
    size: int,
    *,
    n_examples: int = 1,
    n_neighbours: int = 6,
    seed: int = 0,
) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Support images of task 0, each followed by the common images whose features are most similar (cosine).

    Other rare images are not shown, since their labels stay closed until stage 07.

    Args:
        cohort: with common and rare classes.
        features: of every image, shape (n, d).
        name: image modality that is shown.
        size: side of the images, px.
        n_examples: images of each rare class; K of the task.
        n_neighbours: common images beside each.
        seed: of the task.

    Returns:
        images (n, size, size, 3) uint8 in rows of 1 + n_neighbours, the class above each, and a table with id, class,
        neighbour, neighbour_class, rank and cosine.

    Raises:
        DataError: a rare class has too few images, see `medkd.data.episodes.draw_task`.
    """
    rows, base = unit_rows(features), cohort.base_rows()
    support = draw_task(cohort, k_shot=n_examples, task=0, seed=seed).support_ids
    chosen = rows_by_id(cohort, support, "the support set of task 0")
    similarity = rows[chosen] @ rows[base].T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :n_neighbours]
    grid = np.column_stack([chosen, base[nearest]])
    source, classes, ids = (
        cohort.images[name].load(size),
        cohort.table["class"].to_numpy(),
        cohort.table["id"].to_numpy(),
    )
    images = np.stack([source[row] for row in grid.ravel()])
    table = pd.DataFrame(
        {
            "id": np.repeat(ids[chosen], n_neighbours),
            "class": np.repeat(classes[chosen], n_neighbours),
            "neighbour": ids[grid[:, 1:]].ravel(),
            "neighbour_class": classes[grid[:, 1:]].ravel(),
            "rank": np.tile(np.arange(1, n_neighbours + 1), len(chosen)),
            "cosine": np.take_along_axis(similarity, nearest, axis=1).ravel(),
        }
    )
    return images, classes[grid].ravel().tolist(), table


def labels_by_shots(
    cohort: Cohort, runs: Mapping[tuple[int, int], Run], *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How pseudo-labels change with K: confidence, and agreement of hard labels between tasks, with 95% intervals.

    Intervals come from a bootstrap over the lesions of the common images, within the tasks that were run; the query
    sets are not touched.

    Args:
        cohort: whose common images were labelled.
        runs: labellings by (k_shot, task).
        n_resamples: resamples of lesions.
        seed: of the resamples.

    Returns:
        Columns method (what is measured), K, value, low, high; agreement only where a K has two tasks or more.
    """
    base = cohort.base_rows()
    rows = []
    for k_shot in dict.fromkeys(k_shot for k_shot, _ in runs):
        soft = [_soft_labels(cohort, run)[base] for (shots, _), run in runs.items() if shots == k_shot]
        measured = {"confidence": np.mean([each.max(axis=1) for each in soft], axis=0)}
        hard = [each.argmax(axis=1) for each in soft]
        if len(hard) > 1:
            measured["agreement of tasks"] = np.mean([a == b for a, b in combinations(hard, 2)], axis=0)
        for what, values in measured.items():
            draws = [
                (values @ weights) / weights.sum(axis=0)
                for weights in resample_weights(cohort.groups[base], n_resamples, seed)
            ]
            low, high = percentile_interval(np.concatenate(draws))
            rows.append({"method": what, "K": k_shot, "value": values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def effect_of_shots(summary: pd.DataFrame, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """One metric of every method by K, with its interval: columns method, K, value, low, high.

    `summary` is `medkd.evaluation.comparison.summarise`'s, with settings such as "K=5".
    """
    chosen = summary[(summary["metric"] == metric) & (summary["level"] == "image")]
    shots = chosen["setting"].str.removeprefix("K=").astype(int)
    return chosen.assign(K=shots)[["method", "K", "value", "low", "high"]].reset_index(drop=True)


def methods_table(
    summary: pd.DataFrame, differences: pd.DataFrame, classes: Sequence[str], *, journal: bool = False
) -> pd.DataFrame:
    """The comparison as the journal prints it: one row per K and method, mean (SD) over tasks, in %.

    Columns: setting, method, accuracy, one of each class, Avg (their mean), macro F1, macro AUC, and Avg minus the
    reference's in points with its paired 95% interval; the last is over all tasks together.

    Args:
        summary: of `medkd.evaluation.comparison.summarise`.
        differences: of `differences` there.
        classes: rare classes, in the order of the labels.
        journal: add the journal's Table 1; see `is_journal_setting`.
    """
    image = summary[summary["level"] == "image"]
    columns = {"accuracy": "accuracy"} | {f"recall_{i}": name for i, name in enumerate(classes)}
    columns |= {"balanced_accuracy": "Avg", "f1_macro": "macro F1", "auc_macro": "macro AUC"}
    rows = []
    settings = list(dict.fromkeys(image["setting"]))
    groups = image.groupby(["setting", "method"], sort=False)
    for (setting, method), group in sorted(groups, key=lambda item: settings.index(item[0][0])):
        numbers = group.set_index("metric")
        row = {"setting": setting, "method": method}
        row |= {shown: _percent(numbers.loc[metric]) for metric, shown in columns.items()}
        gain = differences[
            (differences["setting"] == setting)
            & (differences["method"] == method)
            & (differences["metric"] == "balanced_accuracy")
            & (differences["level"] == "image")
        ]
        minus = differences["minus"].iloc[0] if len(differences) else "reference"
        row[f"Avg minus {minus}"] = "" if gain.empty else _points(gain.iloc[0])
        if journal:
            known = dict(zip(JOURNAL_SHOTS, JOURNAL.get(str(method), ()), strict=False))
            row["journal, Table 1"] = known.get(str(setting), "")
        rows.append(row)
    return pd.DataFrame(rows)


def is_journal_setting(dataset: str, image_size: int) -> bool:
    """Whether numbers may stand beside the journal's Table 1: ISIC 2018 at 224 px, and only then."""
    return dataset == "isic2018" and image_size == 224


def _soft_labels(cohort: Cohort, run: Run) -> np.ndarray:
    """Soft labels by row of the cohort, nan for images without one."""
    frame = run.table("pseudo_labels")
    values = frame[[f"p_{name}" for name in cohort.rare_classes]].to_numpy()
    soft = np.full((len(cohort), values.shape[1]), np.nan)
    soft[rows_by_id(cohort, frame["id"], run.folder / "pseudo_labels.csv")] = values
    return soft


def _percent(row: pd.Series) -> str:
    spread = "" if np.isnan(row["sd_over_parts"]) else f" ({100 * row['sd_over_parts']:.1f})"
    return f"{100 * row['mean_over_parts']:.1f}{spread}"


def _points(row: pd.Series) -> str:
    return with_interval(*(100 * row[name] for name in ("difference", "low", "high")), form="+.1f")
