"""Cells of a study side by side: predictions under one another, and one row per method."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medkd.errors import DataError
from medkd.evaluation.words import metric_words
from medkd.stages.self_distillation import METHODS
from medkd.stages.store import Run, with_upstream
from medkd.text import with_interval, word


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


def of_all_conditions(evaluated: list[Evaluated], say: Callable[[str], Any]) -> list[Evaluated]:
    """The cells whose replicate every condition has finished: only these can be compared. All if there are none."""
    replicates: dict[str, set[str]] = {}
    for each in evaluated:
        replicates.setdefault(each.condition, set()).add(each.replicate)
    common = set.intersection(*replicates.values())
    chosen = [each for each in evaluated if each.replicate in common]
    if len(chosen) == len(evaluated) or not chosen:
        return evaluated
    say(f"compared are the seeds that all conditions have finished: {', '.join(sorted(common))}")
    return chosen


def pooled_predictions(evaluated: list[Evaluated]) -> pd.DataFrame:
    """Predictions of all cells under one another; a part is a fold or task of one replicate.

    A method is named with its condition ("GMCD [low_rank_weight=0]"), unless it predicts the same in all of them: then
    the condition did not touch it, and it stands there once.

    Raises:
        DataError: two cells have the same condition and replicate.
    """
    for (condition, replicate), n in Counter((each.condition, each.replicate) for each in evaluated).items():
        if n > 1:
            raise DataError(
                f'{n} cells are called "{condition}"{f" (seed {replicate})" if replicate else ""}; give each a name '
                "of its own in the study file"
            )
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
        same = [other for other in contents if other[0] == method]
        everywhere = len({contents[other] for other in same}) == 1
        if everywhere and same[0] != (method, condition):
            continue
        named = f"{method} [{condition}]" if condition and not everywhere else method
        pooled.append(rows.assign(method=named))
    return pd.concat(pooled, ignore_index=True)


def runs_behind(evaluated: list[Evaluated]) -> list[tuple[Run, str, str]]:
    """Every run that the evaluations were made from: the run, its name with its condition, and its part."""
    runs: dict[str, Run] = {}
    users: dict[str, list[Evaluated]] = {}
    for each in evaluated:
        behind = with_upstream(each.run.upstream)
        runs |= behind
        for key in behind:
            users.setdefault(key, []).append(each)
    found = []
    n_conditions = len({each.condition for each in evaluated})
    for key, run in runs.items():
        label, comma, part = run.title.rpartition(", ")  # the name of an ablation has a comma of its own
        label, part = (label.removeprefix("student "), part) if comma else (part, "")  # methods have colours by name
        label = METHODS.get(label, label)
        own = {each.condition for each in users[key]}
        if len(own) < n_conditions and n_conditions > 1:
            label = f"{label} [{'; '.join(sorted(own))}]"
        found.append((run, label, f"{users[key][0].replicate}/{part}"))
    return _told_apart(found)


def _told_apart(runs: list[tuple[Run, str, str]]) -> list[tuple[Run, str, str]]:
    """The same runs; where one name and part stands for several settings, the name tells what differs between them."""
    alike: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run, label, part in runs:
        alike.setdefault((run.stage, label), {}).setdefault(part, []).append(run)
    differing = {
        name: [
            setting
            for setting in dict.fromkeys(setting for same in parts.values() for run in same for setting in run.config)
            if any(len({word(run.config.get(setting)) for run in same}) > 1 for same in parts.values())
        ]
        for name, parts in alike.items()
    }
    told = []
    for run, label, part in runs:
        settings = differing[run.stage, label]
        values = "; ".join(f"{setting}={word(run.config.get(setting))}" for setting in settings)
        told.append((run, f"{label} [{values}]" if values else label, part))
    return told


def comparison_table(summary: pd.DataFrame, against_best: pd.DataFrame, best: str, metric: str) -> pd.DataFrame:
    """One row per method: value with interval, mean and SD over parts, and how it stands to the best.

    Args:
        summary: of one setting, level and metric, see `medkd.evaluation.comparison.summarise`.
        against_best: paired differences to the best method on the same samples.
        best: its name.
        metric: name of the metric.

    Returns:
        Columns method, the metric, low, high, mean, SD, parts, "minus the best" (with its interval) and "mark": "best",
        "not told apart" where the interval of the difference holds zero, "not known" where there is none, else "".
    """
    gaps = against_best.set_index("method")
    rows = []
    for row in summary.itertuples():
        gap, mark = "", "best" if row.method == best else ""
        if row.method in gaps.index:
            found = gaps.loc[row.method]
            gap = with_interval(found["difference"], found["low"], found["high"], "+.3f")
            mark = "not told apart" if found["low"] <= 0 <= found["high"] else ""
            mark = "not known" if pd.isna(found["low"]) else mark
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
