"""Methods side by side: metrics with intervals at every level, and paired differences on the same samples.

Both functions take the prediction tables of either task: those with columns time, event and risk are survival
predictions (C-index), all others classifications. Predictions of several folds or tasks are pooled, but for what
compares scores with scores (AUC, average precision, C-index), and a patient whom several folds tested is one cluster of
the bootstrap: all rows of the patient are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medkd.errors import DataError, ParameterError
from medkd.evaluation.bootstrap import DECIMALS, half_interval_of_mean, intervals, paired_intervals
from medkd.evaluation.metrics import LEVELS, Level, aggregate
from medkd.evaluation.scorers import Scorer, classification_scorer, metric_names
from medkd.evaluation.survival import aggregate_risks, survival_scorers

BASE = "CE only"
"""The student without distillation; where it is there, every method is compared with it."""


def levels(predictions: pd.DataFrame) -> list[Level]:
    """Image level, and ROI and patient level where regions were cut into several images.

    Survival belongs to the patient: its patient level is there as soon as a patient has several images.
    """
    regions = bool((predictions["roi"] != predictions["id"]).any())
    if is_survival(predictions):
        several = predictions.groupby("patient")["id"].nunique().max() > 1
        return ["image", *(["roi"] if regions else []), *(["patient"] if several else [])]
    if not regions:
        return ["image"]
    one_label = predictions.groupby("patient")["label"].nunique().max() == 1
    return ["image", "roi", "patient"] if one_label else ["image", "roi"]


def is_survival(predictions: pd.DataFrame) -> bool:
    """Whether the table holds risks and follow-up instead of labels and probabilities."""
    return {"time", "event", "risk"} <= set(predictions)


def summarise(predictions: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row per setting, method, level and metric: value with interval, and mean and SD over folds or tasks.

    Args:
        predictions: columns id, roi, patient, method, setting, part (fold or task), and label, p_0, p_1, ... or time,
            event, risk.
        n_resamples: bootstrap resamples of patients (or lesions).
        seed: of the resamples.

    Returns:
        Columns setting, method, level, metric, value, low, high (95% interval over all parts together),
        mean_over_parts, sd_over_parts, n_parts (those that have a value), n (samples of this level). Metrics are all of
        `classification_metrics`, those of class i as f1_<i> and recall_<i>; of survival c_index. AUC and average
        precision are means over parts, and in the C-index only pairs within a part count: scores of two networks have
        no common scale. All others pool the parts' samples. Classes without samples are nan, and left out of the mean
        and SD where only some parts lack them; f1_<i> and recall_<i> of a class of one patient have no interval.

    Raises:
        DataError: if a column, a name or a score is missing, or samples of one group differ in what is predicted.
    """
    tables = []
    for (setting, method), group in predictions.groupby(["setting", "method"], sort=False):
        for level in levels(predictions):
            frame = _pooled(group, level)
            (scorer,) = _scorers({method: frame}).values()
            table = intervals(scorer, len(frame), frame["patient"].to_numpy(), n_resamples=n_resamples, seed=seed)
            if not is_survival(frame):
                patients = frame.groupby("label")["patient"].nunique()
                alone = [f"{kind}_{c}" for c in patients.index[patients < 2] for kind in ("f1", "recall")]
                table.loc[alone, ["low", "high"]] = np.nan
            each = pd.DataFrame(scorer(_indicators(frame["part"])))
            tables.append(
                table.rename_axis("metric")
                .reset_index()
                .assign(
                    setting=setting,
                    method=method,
                    level=level,
                    mean_over_parts=each.mean().to_numpy(),
                    sd_over_parts=each.std(ddof=1).to_numpy(),
                    n_parts=each.count().to_numpy(),
                    n=len(frame),
                )
            )
    order = ["setting", "method", "level", "metric", "value", "low", "high"]
    return pd.concat(tables, ignore_index=True)[[*order, "mean_over_parts", "sd_over_parts", "n_parts", "n"]]


def by_part(predictions: pd.DataFrame, metric: str, level: Level) -> pd.DataFrame:
    """The metric of every method in each fold or task, for tests of a reader's own.

    Args:
        predictions: as `summarise`.
        metric: name of one metric.
        level: "image", "roi" or "patient".

    Returns:
        One row per setting and method; columns setting, method, and one per part, in order; nan where it lacks one.

    Raises:
        ParameterError: if the metric is unknown.
    """
    rows = []
    for (setting, method), group in predictions.groupby(["setting", "method"], sort=False):
        frame = _pooled(group, level)
        (scorer,) = _scorers({method: frame}, (metric,)).values()
        values = scorer(_indicators(frame["part"]))[metric]
        rows.append({"setting": setting, "method": method} | dict(zip(pd.unique(frame["part"]), values, strict=True)))
    return pd.DataFrame(rows)


def differences(
    predictions: pd.DataFrame,
    reference: str,
    *,
    metrics: Sequence[str] | None = None,
    level: Level | None = None,
    extra_pairs: Sequence[tuple[str, str]] = (),
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each method minus "CE only" (or `reference`, where that is not there) on the same samples, paired intervals.

    Args:
        predictions: as `summarise`.
        reference: name of a method.
        metrics: default balanced_accuracy and auc_macro, or c_index of survival.
        level: "image", "roi" or "patient"; default all that `levels` gives.
        extra_pairs: further (method, method that is subtracted), see `single_modality_pairs`; pairs that a setting
            lacks are left out of it.
        n_resamples: bootstrap resamples of patients (or lesions).
        seed: of the resamples.

    Returns:
        Columns setting, method, minus, level, metric, difference, low, high, p_value (see
        `bootstrap.paired_intervals`), over_parts with over_parts_low and over_parts_high (mean of the parts'
        differences with its 95% interval by Student's t: what another draw of tasks would change, where the resamples
        hold what other patients would; too narrow over folds, which share training data), wins and losses (parts in
        which the method's value is better, or worse, than the other's: above it, of ece below it), n_parts (those in
        which both have a value), n (samples of this level). Empty where there is nothing to compare.

    Raises:
        ParameterError: if `level`, a metric, the reference or a method of `extra_pairs` is unknown.
        DataError: as `summarise`, or if two methods have not scored the same samples.
    """
    order = ["setting", "method", "minus", "level", "metric", "difference", "low", "high", "p_value"]
    order += ["over_parts", "over_parts_low", "over_parts_high", "wins", "losses", "n_parts", "n"]
    if predictions["method"].nunique() == 1:
        return pd.DataFrame(columns=order)
    if not {BASE, reference} & set(predictions["method"]):
        raise ParameterError(
            f'neither "{BASE}" nor the reference "{reference}" is among the methods '
            f"{', '.join(pd.unique(predictions['method']))}; name one of them as the reference"
        )
    if unknown := {name for pair in extra_pairs for name in pair} - set(predictions["method"]):
        raise ParameterError(
            f'extra_pairs names "{min(unknown)}", which is not among the methods '
            f"{', '.join(pd.unique(predictions['method']))}"
        )
    if metrics is None:
        metrics = ("c_index",) if is_survival(predictions) else ("balanced_accuracy", "auc_macro")
    tables = []
    for setting, group in predictions.groupby("setting", sort=False):
        methods = list(pd.unique(group["method"]))
        base = BASE if BASE in methods else reference
        pairs = [(method, base) for method in methods if method != base and base in methods]
        pairs += [pair for pair in extra_pairs if pair not in pairs and set(pair) <= set(methods)]
        pairs = list(dict.fromkeys(pairs))
        if not pairs:  # the setting has neither reference nor both methods of a pair
            continue
        for each_level in levels(predictions) if level is None else [level]:
            frames = {
                method: _pooled(rows, each_level).sort_values(["part", *LEVELS[each_level]], ignore_index=True)
                for method, rows in group.groupby("method", sort=False)
            }
            _check_same_samples(frames, each_level)
            scorers = _scorers(frames, metrics)
            frame = next(iter(frames.values()))
            table = paired_intervals(
                scorers, len(frame), frame["patient"].to_numpy(), pairs, n_resamples=n_resamples, seed=seed
            )
            parts = {method: scorer(_indicators(frame["part"])) for method, scorer in scorers.items()}
            ahead = np.array(
                [parts[row.method][row.metric] - parts[row.minus][row.metric] for row in table.itertuples()]
            ).round(DECIMALS)
            better = np.where((table["metric"] == "ece").to_numpy()[:, None], -ahead, ahead)
            table = table.assign(
                setting=setting,
                level=each_level,
                **_over_parts(ahead),
                wins=(better > 0).sum(axis=1),
                losses=(better < 0).sum(axis=1),
                n_parts=np.isfinite(ahead).sum(axis=1),
                n=len(frame),
            )
            tables.append(table)
    return pd.concat(tables, ignore_index=True)[order] if tables else pd.DataFrame(columns=order)


def _over_parts(values: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of each row (one pair and metric) over its columns (parts) with its 95% interval; nan without two parts."""
    mean, half = pd.DataFrame(values).mean(axis=1).to_numpy(), half_interval_of_mean(values.T)
    return {"over_parts": mean, "over_parts_low": mean - half, "over_parts_high": mean + half}


def single_modality_pairs(predictions: pd.DataFrame) -> list[tuple[str, str]]:
    """The teacher with each "<modality> only" method but "CE only", for `differences`: does it beat both modalities?"""
    methods = [str(method) for method in pd.unique(predictions["method"])]
    alone = [method for method in methods if method.endswith(" only") and method != BASE]
    return [("teacher", method) for method in alone] if "teacher" in methods else []


def _pooled(predictions: pd.DataFrame, level: Level) -> pd.DataFrame:
    """One row per sample of the level and part, of one setting and method."""
    # a setting with fewer classes has empty columns p_3, p_4, ... in a table of all settings
    predictions = predictions.dropna(axis=1, how="all")
    if "part" not in predictions or predictions["part"].isna().any():
        raise DataError("the predictions have samples without part; name the fold or task of each")
    by_level = aggregate_risks if is_survival(predictions) else aggregate
    parts = [by_level(rows, level).assign(part=part) for part, rows in predictions.groupby("part")]
    return pd.concat(parts, ignore_index=True)


def _scorers(frames: dict[str, pd.DataFrame], metrics: Sequence[str] | None = None) -> dict[str, Scorer]:
    """Each method's metrics as functions of sample weights; the frames hold the same samples in the same order."""
    first = next(iter(frames.values()))
    if is_survival(first):
        if unknown := set(metrics or ()) - {"c_index"}:
            raise ParameterError(f'no metric "{min(unknown)}" of survival predictions; known: c_index')
        times, events, parts = (first[column].to_numpy() for column in ("time", "event", "part"))
        risks = {method: frame["risk"].to_numpy() for method, frame in frames.items()}
        return survival_scorers(times, events, risks, parts)
    found = {method: arrays(frame) for method, frame in frames.items()}
    parts = first["part"].to_numpy()
    if metrics is None:
        metrics = metric_names(found[next(iter(found))][1].shape[1], ("f1", "recall"))
    return {method: classification_scorer(*both, metrics, parts) for method, both in found.items()}


def _indicators(parts: pd.Series) -> np.ndarray:
    """Weights (n, n_parts) that are 1 for the samples of one part each."""
    codes, names = pd.factorize(parts)
    return np.eye(len(names))[codes]


def _check_same_samples(frames: dict[str, pd.DataFrame], level: Level) -> None:
    columns = ["part", *LEVELS[level]]
    (first, expected), *others = frames.items()
    columns += [column for column in ("label", "time", "event") if column in expected]
    for method, frame in others:
        if not frame[columns].equals(expected[columns]):
            raise DataError(
                f'"{first}" and "{method}" were not scored on the same samples ({len(expected)} and {len(frame)} at '
                f"{level} level), so they cannot be compared in pairs; evaluate both on the same folds or tasks"
            )


def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, n_classes) of a prediction table.

    Raises:
        DataError: if a label is no whole number.
    """
    labels = pd.to_numeric(frame["label"], errors="coerce")
    if (labels % 1 != 0).any():
        raise DataError("the predictions have labels that are no whole numbers; they are indices of classes, from 0")
    columns = [column for column in frame if column.startswith("p_")]
    return labels.to_numpy(np.int64), frame[columns].to_numpy(float)


def confusion_counts(predictions: pd.DataFrame, n_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class), shape (n_classes, n_classes)."""
    labels, probabilities = arrays(predictions)
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts
