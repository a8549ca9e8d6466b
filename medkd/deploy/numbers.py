"""What a model card says in numbers: calibration on the validation split, metrics there and on the test samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from medkd.deploy.deployed import TEMPERATURES, fit_temperature, negative_log_likelihood
from medkd.deploy.trained import Trained
from medkd.evaluation.adaptation import soften
from medkd.evaluation.comparison import arrays, summarise
from medkd.evaluation.metrics import classification_metrics
from medkd.stages.store import finished_runs

EVALUATION = "07_evaluation"
OVERALL = ("accuracy", "balanced_accuracy", "auc_macro", "f1_macro")
NO_SPLIT = (
    "not fitted: a rare-disease student has no validation split with rare labels, and the test (query) images must not "
    "be used to fit anything"
)


def calibrate(trained: Trained, scores: np.ndarray) -> dict[str, Any]:
    """The temperature, and what it was fitted on.

    Args:
        trained: whose validation labels are used; without a validation split the temperature is 1.
        scores: raw scores of the held-out images, shape (n, n_classes).

    Returns:
        JSON values: temperature, how, n (validation images), and without and with the temperature, negative
        log-likelihood (nll_before, nll_after; nats) and expected calibration error (ece_before, ece_after).
    """
    if trained.validation is None:
        return {"temperature": 1.0, "how": NO_SPLIT, "n": 0}
    labels = trained.validation["label"].to_numpy(np.int64)
    temperature = fit_temperature(scores, labels)
    at_bound = np.isclose(temperature, TEMPERATURES, rtol=1e-3).any()
    how = "by negative log-likelihood on the validation split"
    found: dict[str, Any] = {"temperature": temperature, "n": len(labels)}
    found["how"] = f"{how}; it stopped at the end of the allowed range" if at_bound else how
    for name, divisor in (("before", 1.0), ("after", temperature)):
        found[f"nll_{name}"] = negative_log_likelihood(scores / divisor, labels)
        found[f"ece_{name}"] = classification_metrics(labels, softmax(scores / divisor, axis=1))["ece"]
    return found


def validation_numbers(trained: Trained, scores: np.ndarray, temperature: float) -> dict[str, Any] | None:
    """Metrics of the exported probabilities on the validation split, see `measured`; None where there is none."""
    if trained.validation is None:
        return None
    table = trained.validation.copy()
    table[[f"p_{index}" for index in range(len(trained.classes))]] = softmax(scores / temperature, axis=1)
    return measured(table, trained)


def test_numbers(trained: Trained, temperature: float) -> dict[str, Any] | None:
    """Metrics on the test samples of the latest finished evaluation that has the run, see `measured`.

    The evaluation's probabilities get the temperature, so that the numbers are those of the exported model.

    Returns:
        As `measured`, with the key of the evaluation, or None if there is none.
    """
    evaluations = [run for run in finished_runs(EVALUATION) if trained.run.key in run.upstream]
    for evaluation in sorted(evaluations, key=lambda run: run.finished, reverse=True):
        table = _own_rows(trained, evaluation.table("predictions"), evaluation.upstream)
        if len(table):
            columns = [f"p_{index}" for index in range(len(trained.classes))]
            before = table[columns].to_numpy()
            table[columns] = soften(before, temperature)
            uncalibrated = classification_metrics(table["label"].to_numpy(), before)["ece"]
            return {"evaluation": evaluation.key, "ece_before": uncalibrated} | measured(table, trained)
    return None


def measured(predictions: pd.DataFrame, trained: Trained) -> dict[str, Any]:
    """Metrics of single images with 95% intervals from a bootstrap over patients (lesions).

    Args:
        predictions: of one split: id, roi, patient, label, p_0, p_1, ...
        trained: whose classes they count into.

    Returns:
        JSON values: n (images), n_groups (patients), ece, overall (rows metric, value, low, high) and per_class (rows
        class, n, and recall and f1 with their bounds); None where a class has no sample.
    """
    table = summarise(predictions.assign(method=trained.method, setting="", part=0))
    found = table[table["level"] == "image"].set_index("metric")[["value", "low", "high"]]
    counts = np.bincount(arrays(predictions)[0], minlength=len(trained.classes))

    def bounds(metric: str, prefix: str = "") -> dict[str, float | None]:
        row = found.loc[metric]
        names = (prefix or "value", f"{prefix}_low".lstrip("_"), f"{prefix}_high".lstrip("_"))
        return {name: float(value) if np.isfinite(value) else None for name, value in zip(names, row, strict=True)}

    return {
        "n": len(predictions),
        "n_groups": int(predictions["patient"].nunique()),
        "ece": float(found.loc["ece", "value"]),
        "overall": [{"metric": name} | bounds(name) for name in OVERALL],
        "per_class": [
            {"class": name, "n": int(counts[index])} | bounds(f"recall_{index}", "recall") | bounds(f"f1_{index}", "f1")
            for index, name in enumerate(trained.classes)
        ],
    }


def _own_rows(trained: Trained, predictions: pd.DataFrame, upstream: tuple[str, ...]) -> pd.DataFrame:
    """The rows of an evaluation's predictions that this network made by its own classifier."""
    config = trained.run.config
    if trained.validation is None:
        wanted = {"method": trained.method, "setting": f"K={config['k_shot']}", "part": config["task"]}
    else:  # one block of rows for each run that was evaluated, in their order
        blocks = predictions[["method", "part"]].drop_duplicates()
        if len(blocks) != len(upstream):
            return predictions[:0]
        wanted = blocks.iloc[upstream.index(trained.run.key)].to_dict()
    own = np.logical_and.reduce([predictions[name] == value for name, value in wanted.items()])
    return predictions[own].reset_index(drop=True)
