"""The points of an embedding as one table: where an image lies by each method, what it is, and what was said of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medkd.errors import DataError, ParameterError, first_few

PLACE = ("id", "method", "x", "y")
"""Columns that say where a point lies; all others say what it is."""
NEEDED = (*PLACE, "class")
BY_METHOD = ("x", "y", "predicted", "confidence", "correct", "risk")
"""Columns in which the methods differ; all others belong to the image."""
NONE = "none"
"""Group of the values that are missing."""
MAX_GROUPS = 14
N_RANGES = 10


def points_table(
    embedding: pd.DataFrame,
    predictions: pd.DataFrame | None = None,
    classes: Sequence[str] = (),
    extra: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per method and image of an embedding, with what the method said of the image.

    An image that several settings or folds tested (K and task of the rare-disease chain) has the prediction of the
    first that did.

    Args:
        embedding: columns id, method, x, y, class and, where there, patient, and shortcut with shortcut_kind, as
            `medkd.stages.evaluation.embed` makes it.
        predictions: as `medkd.evaluation.comparison.summarise` takes them, of either task; None for none.
        classes: names that the predictions' p_0, p_1, ... count; the survival task has none.
        extra: further columns by image, with the ids as its index (pseudo_label, pseudo_confidence, age).

    Returns:
        Columns id, method, x, y, class, then where there patient, the site by its name, predicted (class, "" where
        nothing was predicted), confidence (its probability, 0..1 or nan) and correct ("right", "wrong" or ""), or risk
        (of survival predictions, nan where there is none), and those of `extra`.

    Raises:
        DataError: if the embedding lacks a column, or `extra` repeats an id or knows none of the images.
        ParameterError: if `classes` names fewer classes than were predicted, or a column of `extra` is there already.
    """
    if missing := [column for column in NEEDED if column not in embedding]:
        raise DataError(f"the embedding lacks the column(s) {', '.join(missing)}; pass the table that stage 07 saved")
    columns = [*NEEDED, *(["patient"] if "patient" in embedding else [])]
    points = embedding[columns].reset_index(drop=True).astype({"id": str})
    if "shortcut" in embedding and (kind := str(embedding["shortcut_kind"].iloc[0])) not in ("patient", "lesion"):
        points[kind] = embedding["shortcut"].to_numpy()
    if predictions is not None:
        points = _with_predictions(points, predictions, classes)
    return points if extra is None else _with_extra(points, extra)


def _with_predictions(points: pd.DataFrame, predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    from medkd.evaluation.comparison import arrays, is_survival  # takes a second, and who shows points has them

    first = predictions.astype({"id": str}).drop_duplicates(["method", "id"])
    wanted = pd.MultiIndex.from_frame(points[["method", "id"]])
    row = pd.MultiIndex.from_frame(first[["method", "id"]]).get_indexer(wanted)
    if is_survival(predictions):
        return points.assign(risk=np.where(row < 0, np.nan, first["risk"].to_numpy(float)[row]))
    scores = arrays(first)[1]
    if scores.shape[1] > len(classes):
        raise ParameterError(
            f"classes names {len(classes)} classes, but the predictions are of {scores.shape[1]}; pass all that "
            "p_0, p_1, ... count: cohort.rare_classes of a cohort that has some, else cohort.classes"
        )
    scores = np.where(np.isnan(scores), -np.inf, scores)  # settings with fewer classes leave columns empty
    best, highest = scores.argmax(axis=1)[row], scores.max(axis=1)[row]
    known = (row >= 0) & np.isfinite(highest)
    predicted = np.where(known, np.asarray([*classes], object)[best], "")
    correct = np.select([~known, predicted == points["class"].to_numpy(object)], ["", "right"], "wrong")
    return points.assign(predicted=predicted, confidence=np.where(known, highest, np.nan), correct=correct)


def _with_extra(points: pd.DataFrame, extra: pd.DataFrame) -> pd.DataFrame:
    if taken := [str(column) for column in extra if column in points]:
        raise ParameterError(f'extra has a column "{taken[0]}", which the points have already; rename it')
    ids = extra.index.astype(str)
    if ids.has_duplicates:
        raise DataError(f"extra repeats {first_few(list(ids[ids.duplicated()].unique()))}; give each image one row")
    row = ids.get_indexer(points["id"])
    if (row < 0).all():
        raise DataError("extra knows none of the embedding's images; its index must hold their ids (set_index('id'))")
    found = extra.set_axis(ids).reindex(points["id"]).set_axis(points.index)
    texts = found.select_dtypes(exclude=["number", "bool"]).columns
    return pd.concat([points, found.fillna(dict.fromkeys(texts, ""))], axis=1)


def checked_points(points: pd.DataFrame, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """The points of these methods (None: all), method by method, once it is sure that they can be shown.

    Raises:
        ParameterError: if a method is unknown.
        DataError: if the points lack a column, repeat an image of a method, or have no finite place.
    """
    if missing := [column for column in NEEDED if column not in points]:
        raise DataError(f"the points lack the column(s) {', '.join(missing)}; make them with points_table")
    known = list(points["method"].unique())
    methods = known if methods is None else list(methods)
    if unknown := [method for method in methods if method not in known]:
        raise ParameterError(f'methods names "{unknown[0]}", which has no points; known are {", ".join(known)}')
    points = pd.concat([points[points["method"] == method] for method in methods], ignore_index=True)
    if (again := points.duplicated(["method", "id"])).any():
        raise DataError(f"the points repeat {first_few(list(points['id'][again]))}; keep one row per method and image")
    if not np.isfinite(points[["x", "y"]].to_numpy(float)).all():
        raise DataError("some points have no finite x and y; leave those rows out")
    return points


def by_image(points: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """One row per image: its own columns, and under each method's name what the method said of it, as text.

    Args:
        points: of `points_table`.
        ids: of the images, in the order of the rows; each has a point.
    """
    shown = points[points["id"].isin(list(ids))]
    own = shown.drop(columns=["method", *(name for name in BY_METHOD if name in points)])
    table = own.drop_duplicates("id").set_index("id").loc[list(ids)]
    said = [name for name in BY_METHOD[2:] if name in points]
    for method in points["method"].unique() if said else ():
        texts = shown[shown["method"] == method].set_index("id")[said].apply(as_text)
        told = texts.agg(lambda row: ", ".join(filter(None, row)), axis=1)
        table[method] = told.reindex(table.index, fill_value="")
    return table.reset_index()


def as_text(values: pd.Series) -> pd.Series:
    """Values as a reader wants them: two decimals, and nothing where there is none."""
    if pd.api.types.is_float_dtype(values):
        return values.map("{:.2f}".format, na_action="ignore").astype(object).fillna("")
    return values.astype(object).where(values.notna(), "").map(str)


def class_order(points: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Those of the classes that have points, then those that only other columns name; each in the order of `classes`.

    Colours by this order are those of the figures, whose legends name the classes that have points.
    """
    own = set(points["class"])
    named = {name for column in points.select_dtypes(exclude="number") for name in points[column].unique()}
    order = list(dict.fromkeys(classes))
    return [name for name in order if name in own] + [name for name in order if name in named - own]


def value_groups(values: pd.Series, order: Sequence[str] = ()) -> pd.Series:
    """The values of a column as few named groups, to colour and to choose by.

    Numbers of many values become `N_RANGES` ranges of equal width. Other values are their own groups, those of `order`
    (the classes) in that order and all of them, others by falling frequency; beyond `MAX_GROUPS` the rest is one group
    that says how many it holds.

    Args:
        values: of one column, shape (n,); "" and missing values form the group `NONE`, which comes last.
        order: names that belong together; used if the column holds no others.

    Returns:
        Categorical of the same index, ordered if it holds ranges of numbers.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        if values.nunique() > MAX_GROUPS:
            return _ranges(values)
        names = [f"{number:g}" for number in sorted(values.dropna().unique())]
        texts = values.map("{:g}".format, na_action="ignore").astype(object)
    else:
        texts = values.astype(object).where(values.notna() & (values.astype(str) != ""))
        texts = texts.map(str, na_action="ignore")
        names = list(texts.value_counts().index)
        names = list(order) if set(names) <= set(order) else names
    if len(names) > MAX_GROUPS and names != list(order):
        n_others = len(names) - MAX_GROUPS
        others = f"{n_others} other{'s' * (n_others > 1)}"
        texts = texts.where(texts.isin(names[:MAX_GROUPS]) | texts.isna(), others)
        names = [*names[:MAX_GROUPS], others]
    names = [*names, *([NONE] if texts.isna().any() else [])]
    return texts.where(texts.notna(), NONE).astype(pd.CategoricalDtype(names))


def _ranges(values: pd.Series) -> pd.Series:
    finite = values.where(np.isfinite(values.astype(float))).astype(float)
    edges = np.linspace(finite.min(), finite.max(), N_RANGES + 1)
    digits = max(0, -int(np.floor(np.log10(edges[1] - edges[0]))))  # neighbours differ in the last one
    names = [f"{low:.{digits}f} to {high:.{digits}f}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
    codes = np.digitize(finite, edges[1:-1])
    codes[finite.isna()] = N_RANGES
    names += [NONE] if finite.isna().any() else []
    return pd.Series(pd.Categorical.from_codes(codes, names, ordered=True), index=values.index)
