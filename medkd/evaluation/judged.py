"""What every method said of every test image, and which images lie in a cell of the confusion matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError, first_few
from medkd.evaluation.comparison import arrays, is_survival

NEEDED = ("id", "patient", "label", "p_0", "method", "setting", "part")
KEYS = ["id", "setting", "part"]
"""What names a prediction of one method."""


class Judged:
    """What every method said of every test image, checked once.

    Args:
        predictions: table `predictions` of stage 07.
        cohort: whose images they are.

    Attributes:
        cohort: as given. classes: names that labels count into.
        table: one row per method, setting, part and image: patient, label, method, id, setting, part, predicted (number
            into `classes`) and confidence (its probability).
        methods: in the table's order. settings: as the methods.

    Raises:
        DataError: if the table is of the survival task, lacks a column, repeats a row, has more classes than the
            cohort, or is of images that the cohort does not have.
    """

    def __init__(self, predictions: pd.DataFrame, cohort: Cohort) -> None:
        if is_survival(predictions):
            raise DataError(
                "predictions hold risks of the survival task, which has no confusion matrix; pass those of a "
                "classification, or look at the risks in the feature explorer"
            )
        if missing := [column for column in NEEDED if column not in predictions]:
            raise DataError(f"predictions lack the column(s) {', '.join(missing)}; pass the table that stage 07 saved")
        self.cohort, self.classes = cohort, cohort.rare_classes or cohort.classes
        labels, scores = arrays(predictions)
        if max(scores.shape[1], labels.max() + 1) > len(self.classes):
            raise DataError(
                f"predictions are of {max(scores.shape[1], labels.max() + 1)} classes, but {cohort.name} has "
                f"{len(self.classes)} ({first_few(self.classes)}); pass the cohort that was evaluated"
            )
        scores = np.where(np.isnan(scores), -np.inf, scores)  # settings with fewer classes leave columns empty
        own = predictions[["patient", "label", "method", *KEYS]].astype({"id": str})
        self.table = own.assign(predicted=scores.argmax(axis=1), confidence=scores.max(axis=1)).fillna({"setting": ""})
        self.methods, self.settings = list(self.table["method"].unique()), list(self.table["setting"].unique())
        if len(unknown := self.table["id"][~self.table["id"].isin(cohort.table["id"])].unique()):
            raise DataError(
                f"predictions are of images that {cohort.name} does not have: {first_few(list(unknown))}; pass the "
                "cohort that was evaluated"
            )
        if (again := self.table.duplicated([*KEYS, "method"])).any():
            raise DataError(
                f"predictions repeat {first_few(list(self.table['id'][again]))} within a method, setting and part; "
                "keep one row of each"
            )

    def chosen(
        self, method: str | None = None, beside: str | None = None, setting: str | None = None
    ) -> dict[str, str]:
        """The method whose errors are asked for, the one beside it and the setting, by these names.

        Where they are None: the last method of the table, the first other one, and the last setting.

        Raises:
            ParameterError: if one of them is not in the table.
        """
        method = self.methods[-1] if method is None else method
        others = [name for name in self.methods if name != method]
        found = {"method": method, "beside": (others or [method])[0] if beside is None else beside}
        found["setting"] = self.settings[-1] if setting is None else setting
        for name, value in found.items():
            known = self.settings if name == "setting" else self.methods
            if value not in known:
                raise ParameterError(f'{name} = "{value}" is not in the predictions; known are {", ".join(known)}')
        return found

    def counts(self, setting: str, method: str) -> np.ndarray:
        """Images by (true class, predicted class), shape (n_classes, n_classes)."""
        rows = self.table[(self.table["setting"] == setting) & (self.table["method"] == method)]
        n = len(self.classes)
        return np.bincount(n * rows["label"] + rows["predicted"], minlength=n * n).reshape(n, n)

    def cell(self, setting: str, method: str, label: int, predicted: int) -> pd.DataFrame:
        """Rows of one cell, the most confident first; an image that several parts tested is there once per part."""
        asked = {"setting": setting, "method": method, "label": label, "predicted": predicted}
        rows = self.table[np.logical_and.reduce([self.table[name] == value for name, value in asked.items()])]
        return rows.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)

    def said(self, samples: pd.DataFrame, method: str) -> pd.DataFrame:
        """What a method said of these samples, in their order; nan where it was not asked."""
        own = self.table.loc[self.table["method"] == method, [*KEYS, "predicted", "confidence"]]
        return samples[KEYS].merge(own, on=KEYS, how="left", validate="many_to_one")
