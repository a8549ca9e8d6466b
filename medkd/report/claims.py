"""The tables and figures that answer a study's question: every method against those that it is meant to beat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from medkd.data.cohort import Cohort
from medkd.errors import ParameterError
from medkd.evaluation.comparison import BASE, differences
from medkd.evaluation.words import metric_words
from medkd.report.artifacts import Artifacts
from medkd.report.page import OF_DIFFERENCES

COLUMNS = ("setting", "method", "metric", "n", "parts", "mean", "SD", "difference", "low", "high")
COLUMNS += ("over_parts", "over_parts_low", "over_parts_high", "wins", "losses")


def claim_table(
    predictions: pd.DataFrame,
    summary: pd.DataFrame,
    reference: str,
    *,
    metrics: Sequence[str],
    level: Any,
    n_resamples: int = 2000,
) -> pd.DataFrame:
    """Every other method minus the reference, on the same samples.

    Args:
        predictions: of all methods, as `medkd.evaluation.comparison.differences` takes them.
        summary: of the same, see `medkd.evaluation.comparison.summarise`.
        reference: name of a method.
        metrics: names of metrics.
        level: level of the samples that are compared.
        n_resamples: bootstrap resamples of patients (or lesions).

    Returns:
        Columns setting, method, metric, n (samples), parts (folds or tasks, of every seed), mean and SD (of the
        method's value over the parts), difference with its paired 95% interval low to high (other patients), over_parts
        with its own (other tasks, see `medkd.evaluation.comparison.differences`), wins and losses (parts in which the
        method is above, or below, the reference).

    Raises:
        ParameterError: there is no such method.
    """
    methods = [str(method) for method in pd.unique(predictions["method"])]
    if reference not in methods:
        raise ParameterError(
            f'references names "{reference}", which is no method of the study; there are {"; ".join(methods)}. Mend '
            "the study file and run `medkd batch` again, which trains nothing that is finished"
        )
    pairs = [(method, reference) for method in methods if method != reference]
    against = differences(
        predictions, reference, metrics=metrics, level=level, extra_pairs=pairs, n_resamples=n_resamples
    )
    key = ["setting", "method", "metric"]
    own = summary[summary["level"] == level].rename(
        columns={"mean_over_parts": "mean", "sd_over_parts": "SD", "n_parts": "parts"}
    )
    found = against[against["minus"] == reference].drop(columns=["n", "n_parts"])
    return found.merge(own[[*key, "mean", "SD", "parts", "n"]], on=key, how="left")[list(COLUMNS)]


def tell_claims(
    predictions: pd.DataFrame,
    summary: pd.DataFrame,
    references: Sequence[str],
    *,
    metrics: Sequence[str],
    level: Any,
    cohort: Cohort,
    out: Artifacts,
    n_resamples: int = 2000,
) -> None:
    """A table and a figure for each reference; by default "CE only" where it is there, else the first method.

    Raises:
        ParameterError: a reference is no method of the study.
    """
    methods = [str(method) for method in pd.unique(predictions["method"])]
    for reference in references or [BASE if BASE in methods else methods[0]]:
        table = claim_table(predictions, summary, reference, metrics=metrics, level=level, n_resamples=n_resamples)
        if table.empty:
            continue
        caption = (
            f"{cohort.title}: every method against {reference}, level {level}. Mean, SD, wins and losses are over "
            f"folds, tasks and seeds; the difference has its paired 95% interval (bootstrap over {cohort.group}s, "
            f"{n_resamples} resamples), and over_parts is the mean of the differences within each fold, task and seed, "
            "with Student's interval."
        )
        name = f"against_{re.sub(r'[^A-Za-z0-9.]+', '_', reference).strip('_.')}"
        out.table(table, name, caption, formats=OF_DIFFERENCES, summary=True)
        first = table[table["metric"] == metrics[0]].assign(minus=reference)
        shown = (
            f"{cohort.title}: {metric_words(metrics[0])} of each method minus that of {reference}, level {level}, n = "
            f"{first['n'].max():,}, paired 95% intervals (bootstrap over {cohort.group}s, {n_resamples} resamples)."
        )
        out.drawn("interval bars", first, f"bars_{name}", shown)
