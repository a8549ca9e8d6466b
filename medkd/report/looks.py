"""What a notebook looks at: tables and pictures drawn from cohorts and runs, for figures to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from medkd.data.cohort import Cohort
from medkd.data.folds import n_folds_of, split_rows
from medkd.data.views import Augment
from medkd.evaluation.words import metric_words
from medkd.stages.store import Run
from medkd.text import with_interval


def class_examples(
    cohort: Cohort, name: str, size: int, n_examples: int, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Random images of every class, one class per row; the same samples for every modality of the cohort.

    Returns:
        images (n_classes * n_examples, size, size, 3) uint8, black where a class has fewer, and a title each
        (class name above the first of a row).
    """
    source = cohort.images[name].load(size)
    images, titles = [], []
    for label, title in enumerate(cohort.classes):
        rows = np.flatnonzero(cohort.labels == label)
        rows = np.random.default_rng([seed, label]).permutation(rows)[:n_examples]
        shown = np.zeros((n_examples, size, size, 3), np.uint8)
        shown[: len(rows)] = source[np.sort(rows)]
        images.append(shown)
        titles += [title] + [""] * (n_examples - 1)
    return np.concatenate(images), titles


def views_of(cohort: Cohort, name: str, size: int, augment: Augment, n_views: int = 8, seed: int = 0) -> np.ndarray:
    """One image followed by `n_views` random views of it, uint8, shape (1 + n_views, size, size, 3)."""
    row = int(np.random.default_rng(seed).integers(len(cohort)))
    image = np.ascontiguousarray(cohort.images[name].load(size)[row])
    batch = torch.from_numpy(np.repeat(image[None], n_views, axis=0))
    views = augment(batch, torch.Generator().manual_seed(seed))
    drawn = (views.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return np.concatenate([image[None], drawn])


def fold_table(cohort: Cohort, n_folds: int, seed: int, split_file: str = "") -> pd.DataFrame:
    """Samples and groups of each fold's training, validation and test split.

    Where splits are published they are the folds, `n_folds` is ignored, and if they leave rows out two more columns
    count these.
    """
    rows = []
    for fold in range(n_folds_of(cohort, n_folds, split_file)):
        split = split_rows(cohort, fold=fold, n_folds=n_folds, seed=seed, split_file=split_file)
        row: dict[str, Any] = {"fold": fold}
        for part in ("train", "val", "test"):
            members = getattr(split, part)
            row[f"{part} samples"], row[f"{part} {cohort.group}s"] = len(members), len(set(cohort.groups[members]))
        for unit, total in (("samples", len(cohort)), (f"{cohort.group}s", len(set(cohort.groups)))):
            row[f"left out {unit}"] = total - sum(row[f"{part} {unit}"] for part in ("train", "val", "test"))
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.loc[:, [not name.startswith("left out") or table[name].any() for name in table]]


def histories(runs: Mapping[Any, Run], names: Mapping[Any, str]) -> pd.DataFrame:
    """The histories of several runs under one another, with a column `method` and one `part` (fold or task)."""
    tables = []
    for key, run in runs.items():
        tables.append(run.table("history").assign(method=names.get(key[0], str(key[0])), part=key[-1]))
    return pd.concat(tables, ignore_index=True)


def metrics_table(runs: Mapping[Any, Run], names: Mapping[Any, str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """One row per run: method, fold or task, the metrics asked for, and its wall time.

    Without `columns`: the kept epoch, every validation number, and the numbers of training rows and parameters.
    """
    if not columns:
        found = next(iter(runs.values())).metrics
        columns = ["epoch", *(name for name in found if name.startswith("val_")), "n_train", "n_parameters"]
    rows = []
    for key, run in runs.items():
        row = {"method": names.get(key[0], str(key[0])), "part": key[-1]}
        rows.append(row | {column: run.metrics.get(column) for column in columns} | {"seconds": run.seconds})
    return pd.DataFrame(rows)


def validation_predictions(runs: Mapping[Any, Run], names: Mapping[Any, str]) -> pd.DataFrame:
    """The validation predictions of several runs, as `medkd.evaluation.comparison` takes them."""
    tables = [
        run.table("validation").assign(method=names.get(key[0], str(key[0])), setting="", part=key[-1])
        for key, run in runs.items()
    ]
    return pd.concat(tables, ignore_index=True)


def n_words(summary: pd.DataFrame) -> str:
    """Samples that a summary's values of the coarsest level are of: "2,785", or "2,785 to 2,893" of several K."""
    counts = summary.loc[summary["level"] == summary["level"].iloc[-1], "n"]
    return " to ".join(f"{n:,}" for n in dict.fromkeys((counts.min(), counts.max())))


def method_comparison(summary: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """One row per method at the coarsest level: each compared metric with its interval, and its paired difference.

    Args:
        summary: of `medkd.evaluation.comparison.summarise`.
        differences: of `differences` there, all against one method.
    """
    level, base = summary["level"].iloc[-1], differences["minus"].iloc[0]
    paired = differences[(differences["level"] == level) & (differences["minus"] == base)]
    rows = []
    for method in pd.unique(summary["method"]):
        row = {"method": method}
        for metric in pd.unique(paired["metric"]):
            mine = summary[(summary["method"] == method) & (summary["metric"] == metric) & (summary["level"] == level)]
            row[metric_words(metric)] = _cell(mine, "value", ".3f")
            gain = paired[(paired["method"] == method) & (paired["metric"] == metric)]
            row[f"minus {base} ({metric_words(metric)})"] = _cell(gain, "difference", "+.3f")
            row[f"wins ({metric_words(metric)})"] = (
                f"{gain['wins'].iloc[0]} of {gain['n_parts'].iloc[0]}" if len(gain) else ""
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _cell(rows: pd.DataFrame, column: str, form: str) -> str:
    """The first row's number with its interval, "" of no row."""
    return "" if rows.empty else with_interval(*rows.iloc[0][[column, "low", "high"]], form=form)


def confusion_or_survival(
    predictions: pd.DataFrame, task: str, classes: Sequence[str]
) -> tuple[str, pd.DataFrame, str]:
    """Kind of figure, its table and what it shows: confusion, or for survival the curves by predicted risk.

    Args:
        predictions: of the methods to show, see `validation_predictions`.
        task: "classification" or "survival".
        classes: of the cohort.
    """
    if task == "classification":
        from medkd.evaluation.curves import confusion_table
        from medkd.report.figures_results import ROOMY

        counts = " (in brackets how many)" if len(classes) <= ROOMY else ""
        return "confusion", confusion_table(predictions, classes), f"confusion of images{counts}, rows sum to 1,"
    shows = "survival of patients, each once, by third of predicted risk (95% bands; p: log-rank test),"
    return "kaplan-meier", risk_curves_by_method(predictions), shows


def image_weights(runs: Mapping[Any, Run]) -> str:
    """A sentence that says what the image encoders of these runs started from, "" where they started from nothing."""
    weights = next(iter(runs.values())).metrics["image_weights"]
    return f" Image encoder: {weights}." if weights else ""


def class_figures(predictions: pd.DataFrame, classes: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Kind of figure, its table and what it shows: ROC, precision-recall and calibration of class predictions."""
    from medkd.evaluation import curves

    over_parts = "curve over folds or tasks, each class against all others; numbers: "
    yield "roc", curves.roc_points(predictions, classes), f"mean ROC {over_parts}area"
    yield "pr", curves.pr_points(predictions, classes), f"mean precision-recall {over_parts}average precision (AP)"
    shows = (
        "calibration (below the diagonal: over-confident); area of a dot: share of the images in its bin, from 4 % on"
    )
    yield "calibration", curves.calibration_by_method(predictions, classes), shows


def risk_curves(predictions: pd.DataFrame, n_groups: int = 3) -> tuple[pd.DataFrame, float]:
    """Kaplan-Meier curves of the patients by predicted risk, cut at quantiles within each fold, and the log-rank p.

    Every patient counts once: where several folds or seeds tested one, by the mean of the ranks of the risk there.

    Args:
        predictions: survival predictions: id, roi, patient, time, event, risk, and part where there are several folds.
        n_groups: risk groups.
    """
    from medkd.evaluation.survival import aggregate_risks, kaplan_meier_table, logrank_p, risk_groups

    if "part" not in predictions:
        predictions = predictions.assign(part=0)
    parts = [aggregate_risks(rows, "patient").assign(part=part) for part, rows in predictions.groupby("part")]
    frame = pd.concat(parts, ignore_index=True)
    if frame["patient"].duplicated().any():
        frame["risk"] = frame.groupby("part")["risk"].rank(pct=True)
        once = {"time": "first", "event": "first", "risk": "mean"}
        frame = frame.groupby("patient", sort=False).agg(once).assign(part=0)
    groups = risk_groups(frame["risk"].to_numpy(), n_groups, parts=frame["part"].to_numpy())
    names = ["low risk", "middle risk", "high risk"] if n_groups == 3 else [f"group {g + 1}" for g in range(n_groups)]
    followed = frame["time"].to_numpy(), frame["event"].to_numpy()
    curves = kaplan_meier_table(*followed, groups)
    return curves.assign(group=[names[group] for group in curves["group"]]), logrank_p(*followed, groups)


def risk_curves_by_method(predictions: pd.DataFrame) -> pd.DataFrame:
    """`risk_curves` of each method under one another, with columns method and p_value (log-rank)."""
    tables = []
    for method, rows in predictions.groupby("method", sort=False):
        curves, p_value = risk_curves(rows)
        tables.append(curves.assign(method=method, p_value=p_value))
    return pd.concat(tables, ignore_index=True)


def positives_grid(cohort: Cohort, name: str, table: pd.DataFrame, size: int) -> tuple[np.ndarray, list[str]]:
    """Anchors of DSCD, each followed by candidates of its class by falling discrepancy, as images.

    Args:
        cohort: whose image modality `name` is shown.
        name: image modality.
        table: `positives` of a GMCD run: anchor and candidate (ids), rank, discrepancy.
        size: side of the images, px.

    Returns:
        images (n_anchors * n_columns, size, size, 3) uint8, black where a class has fewer candidates, and a title
        each: the class above an anchor, rank and discrepancy above a candidate. n_columns is one more than the
        largest number of candidates.
    """
    source, row_of = cohort.images[name].load(size), pd.Series(range(len(cohort)), index=cohort.table["id"])
    n_columns = 1 + int(table.groupby("anchor").size().max())
    images, titles = [], []
    for anchor, candidates in table.groupby("anchor", sort=False):
        shown = np.zeros((n_columns, size, size, 3), np.uint8)
        rows = row_of[[anchor, *candidates["candidate"]]].to_numpy()
        shown[: len(rows)] = np.stack([source[row] for row in rows])
        images.append(shown)
        named = [
            f"{rank + 1}: {gap:+.2f}" for rank, gap in zip(candidates["rank"], candidates["discrepancy"], strict=True)
        ]
        titles += [cohort.table["class"].iloc[row_of[anchor]], *named, *[""] * (n_columns - len(rows))]
    return np.concatenate(images), titles


def label_mix(runs: Mapping[tuple[int, int], Run]) -> pd.DataFrame:
    """Share of each rare class among the hard pseudo-labels, one row a (K, task)."""
    return pd.DataFrame(
        [
            {"K": k_shot, "task": task, **run.metrics["share"], "mean confidence": run.metrics["mean_confidence"]}
            for (k_shot, task), run in runs.items()
        ]
    )


def labels_by_base_class(run: Run, base_classes: tuple[str, ...], rare_classes: tuple[str, ...]) -> pd.DataFrame:
    """Share of each rare class among the hard pseudo-labels of each common class, shape (n_base, n_rare)."""
    frame = run.table("pseudo_labels")
    hard = frame[[f"p_{name}" for name in rare_classes]].to_numpy().argmax(axis=1)
    counts = pd.crosstab(frame["class"], hard).reindex(
        index=list(base_classes), columns=range(len(rare_classes)), fill_value=0
    )
    counts.columns = list(rare_classes)
    return counts.div(counts.sum(axis=1), axis=0)


HEADLINE = ("accuracy", "balanced_accuracy", "auc_macro", "f1_macro", "c_index")


def headline(summary: pd.DataFrame, metrics: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """The summary as a wide table: one row per method (and setting), 'value (low to high)' for each of `metrics`."""
    level = summary["level"].iloc[-1]
    chosen = summary[(summary["level"] == level) & summary["metric"].isin(list(metrics))]
    cells = chosen.assign(cell=[with_interval(row.value, row.low, row.high) for row in chosen.itertuples()])
    wide = cells.pivot_table(
        index=["setting", "method"], columns="metric", values="cell", aggfunc="first", sort=False
    ).reset_index()
    wide.columns.name = None
    if not wide["setting"].astype(bool).any():
        wide = wide.drop(columns="setting")
    return wide
