"""The tables and figures that answer a study's question: every method against those that it is meant to beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.errors import ParameterError
from medkd.evaluation.comparison import BASE, differences
from medkd.evaluation.words import metric_words
from medkd.files import key_of
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
    tasks: bool = False,
    n_resamples: int = 2000,
) -> pd.DataFrame:
    """Every other method minus the reference, on the same samples.

    Args:
        predictions: of all methods, as `medkd.evaluation.comparison.differences` takes them.
        summary: of the same, see `medkd.evaluation.comparison.summarise`.
        reference: name of a method.
        metrics: names of metrics.
        level: level of the samples that are compared.
        tasks: whether the parts are few-shot tasks, each a draw of its own, and no folds.
        n_resamples: bootstrap resamples of patients (or lesions).

    Returns:
        Columns setting, method, metric, n (samples), parts (folds or tasks, of every seed), mean and SD (of the
        method's value over the parts), difference with its paired 95% interval low to high (other patients), over_parts
        with its own (other tasks, see `medkd.evaluation.comparison.differences`; nan over folds of several seeds, which
        test the same patients), wins and losses (parts in which the method is above, or below, the reference).

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
    if seeds_of(predictions) > 1 and not tasks:  # every seed tests the same patients
        found = found.assign(over_parts_low=np.nan, over_parts_high=np.nan)
    return found.merge(own[[*key, "mean", "SD", "parts", "n"]], on=key, how="left")[list(COLUMNS)]


def table_names(references: Sequence[str]) -> dict[str, str]:
    """Names of the references' tables, of letters, digits and dots; those that would be alike end in a checksum."""
    plain = {name: re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.") for name in references}
    often = Counter(plain.values())
    return {
        name: f"against_{told}" if told and often[told] == 1 else f"against_{told}_{key_of(name, 6)}"
        for name, told in plain.items()
    }


def seeds_of(predictions: pd.DataFrame) -> int:
    """How many seeds the parts of a study are of, which are named "seed/part"."""
    return predictions["part"].str.partition("/")[0].nunique()


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
    asked = {"metrics": metrics, "level": level, "tasks": bool(cohort.rare_classes), "n_resamples": n_resamples}
    references = references or [BASE if BASE in methods else methods[0]]
    names = table_names(references)
    for reference in references:
        table = claim_table(predictions, summary, reference, **asked)
        if table.empty:
            continue
        caption = (
            f"{cohort.title}: every method against {reference}, level {level}. Mean, SD, wins and losses are over "
            "folds, tasks and seeds; the difference, of all samples together, has its paired 95% interval (bootstrap "
            f"over {cohort.group}s, {n_resamples} resamples), and over_parts is the mean of the differences within "
            "each fold, task and seed, with Student's interval"
            + (", but for folds of several seeds, which test the same patients." if seeds_of(predictions) > 1 else ".")
        )
        name = names[reference]
        out.table(table, name, caption, formats=OF_DIFFERENCES, summary=True)
        first = table[table["metric"] == metrics[0]].assign(minus=reference)
        n_of = first.groupby("setting", sort=False)["n"].max()
        sizes = [f"{n:,} ({setting})" if n_of.nunique() > 1 else f"{n:,}" for setting, n in n_of.items()]
        shown = (
            f"{cohort.title}: {metric_words(metrics[0])} of each method minus that of {reference}, level {level}, n = "
            f"{', '.join(dict.fromkeys(sizes))}, paired 95% intervals (bootstrap over {cohort.group}s, {n_resamples} "
            "resamples)."
        )
        out.drawn("interval bars", first, f"bars_{name}", shown)
