"""Cells of a study side by side: predictions under one another, and one row a method."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd

from medkd.evaluation.words import metric_words
from medkd.stages.store import Run
from medkd.text import with_interval


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one finished cell.

    Attributes:
        name: of the cell.
        condition: what was varied, replicates left out, such as "low_rank_weight=0"; "" if nothing was.
        replicate: values of the replicates, such as "0".
        run: of stage 07.
    """

    name: str
    condition: str
    replicate: str
    run: Run


def pooled_predictions(evaluated: list[Evaluated]) -> pd.DataFrame:
    """Predictions of all cells under one another; a part is a fold or task of one replicate.

    A method is named with its condition ("GMCD [low_rank_weight=0]"), unless it predicts the same in all of them: then
    the condition did not touch it, and it stands there once.
    """
    tables: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for each in evaluated:
        table = each.run.table("predictions")
        table = table.assign(part=each.replicate + "/" + table["part"].astype(str))
        for method, rows in table.groupby("method", sort=False):
            tables.setdefault((str(method), each.condition), []).append(rows)
    whole = {key: pd.concat(parts, ignore_index=True) for key, parts in tables.items()}
    contents = {key: _content(rows) for key, rows in whole.items()}
    pooled = []
    for (method, condition), rows in whole.items():
        same = [other for other, content in contents.items() if other[0] == method and content == contents[other]]
        everywhere = len({contents[other] for other in same}) == 1
        if everywhere and same[0] != (method, condition):
            continue
        named = f"{method} [{condition}]" if condition and not everywhere else method
        pooled.append(rows.assign(method=named))
    return pd.concat(pooled, ignore_index=True)


def comparison_table(summary: pd.DataFrame, against_best: pd.DataFrame, best: str, metric: str) -> pd.DataFrame:
    """One row a method: value with interval, mean and SD over parts, and how it stands to the best.

    Args:
        summary: of one setting, level and metric, see `medkd.evaluation.comparison.summarise`.
        against_best: paired differences to the best method on the same samples.
        best: its name.
        metric: name of the metric.

    Returns:
        Columns method, the metric, low, high, mean, SD, parts, "minus the best" (with its interval) and "mark": "best",
        "tie" where the interval of the difference holds zero, else "".
    """
    gaps = against_best.set_index("method")
    rows = []
    for row in summary.itertuples():
        gap, mark = "", "best" if row.method == best else ""
        if row.method in gaps.index:
            found = gaps.loc[row.method]
            gap = with_interval(found["difference"], found["low"], found["high"], "+.3f")
            mark = "tie" if found["low"] <= 0 <= found["high"] else ""
        rows.append(
            {
                "method": row.method,
                metric_words(metric): row.value,
                "low": row.low,
                "high": row.high,
                "mean": row.mean_over_parts,
                "SD": row.sd_over_parts,
                "parts": row.n_parts,
                "minus the best": gap,
                "mark": mark,
            }
        )
    return pd.DataFrame(rows)


def _content(rows: pd.DataFrame) -> str:
    ordered = rows.drop(columns="method").sort_values(["setting", "part", "id"]).to_csv(index=False)
    return hashlib.sha256(ordered.encode()).hexdigest()
