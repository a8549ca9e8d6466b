"""Few-shot tasks: K labelled images of each rare class, and the images to be classified.

Source: Hybrid unsupervised representation learning and pseudo-label distillation, Med. Image Anal. 93 (2024) 103102,
section 4.1: all rare images outside the support set are the query set; mean and SD over a few random tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medkd.data.cohort import Cohort
from medkd.errors import DataError, ParameterError, first_few


@dataclass(frozen=True)
class FewShotTask:
    """One drawn task, by image ids, so that it does not depend on the order of a table.

    Attributes:
        name: cohort, task number and K, for tables and file names.
        cohort: name of the cohort it was drawn from.
        task: number of the task.
        seed: seed of the draw.
        k_shot: support images per class.
        by_lesion: whether other images of a support lesion (patient) were left out.
        classes: class names; labels of the task count into them.
        support_ids: k_shot ids of the first class, then of the second, and so on.
        query_ids: ids of the images to classify, ascending.
        left_out_ids: rare images in neither set, ascending.

    Raises:
        DataError: if an id is in two sets or twice in one, or the support set is not k_shot images per class.
    """

    name: str
    cohort: str
    task: int
    seed: int
    k_shot: int
    by_lesion: bool
    classes: tuple[str, ...]
    support_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    left_out_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.support_ids) != self.k_shot * len(self.classes):
            raise DataError(
                f"task {self.name} has {len(self.support_ids)} support images instead of {self.k_shot} for each of "
                f"{len(self.classes)} classes; draw it again with draw_task"
            )
        seen: set[str] = set()
        repeated = [i for i in self.support_ids + self.query_ids + self.left_out_ids if i in seen or seen.add(i)]
        if repeated:
            raise DataError(
                f"task {self.name} uses images {first_few(repeated)} twice, so support and query overlap; "
                "draw it again with draw_task"
            )

    @property
    def support_labels(self) -> np.ndarray:
        """Class index of each support image, shape (k_shot * n_way,), int64."""
        return np.repeat(np.arange(len(self.classes)), self.k_shot)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json` can write."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FewShotTask:
        """The task that `to_json` wrote.

        Raises:
            DataError: if a field is missing or unknown, or the ids overlap.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(data) != fields:
            odd = ", ".join(sorted(set(data) ^ fields))
            raise DataError(
                f"a stored few-shot task has missing or unknown fields: {odd}; draw it again with draw_task"
            )
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def draw_task(cohort: Cohort, *, k_shot: int, task: int, seed: int = 0, by_lesion: bool = True) -> FewShotTask:
    """Draw K support images of each rare class; the other rare images, see `by_lesion`, are the query set.

    The supports of one task are nested: those of a smaller K are the first of a larger K. With `by_lesion` no two
    support images show one lesion as long as others are left, and further images of a support lesion are in neither
    set, because they would be near copies of what was labelled. The paper does not do so: `by_lesion=False` gives its
    |Q| = n_rare - K * n_way.

    Args:
        cohort: a cohort with `rare_classes`.
        k_shot: K, support images per class, >= 1.
        task: number of the task, >= 0.
        seed: seed of all tasks, >= 0.
        by_lesion: see above; the groups are the cohort's `patient` column.

    Raises:
        ParameterError: if a number is out of range.
        DataError: if the cohort has no rare classes, or a class has too few images for K and one query image.
    """
    if k_shot < 1 or task < 0 or seed < 0:
        raise ParameterError(
            f"k_shot = {k_shot}, task = {task}, seed = {seed}: k_shot must be 1 or more, task and seed 0 or more"
        )
    if not cohort.rare_classes:
        raise DataError(
            f"{cohort.name} names no rare classes to draw a task from; choose a cohort of the rare-disease chain"
        )
    ids, groups = cohort.table["id"].to_numpy(object), cohort.groups
    rng = np.random.default_rng([seed, task])
    shuffled = {name: _shuffled_rows(cohort, name, rng) for name in cohort.rare_classes}
    for name, rows in shuffled.items():
        if len(rows) <= k_shot:
            raise DataError(
                f'class "{name}" of {cohort.name} has {len(rows)} images, but k_shot = {k_shot} needs at least '
                f"{k_shot + 1}, one of them to classify; lower k_shot or leave the class out of rare_classes"
            )
    support = _pick(shuffled, groups, k_shot, by_lesion)
    chosen = {row for rows in support.values() for row in rows}
    others = {row for rows in shuffled.values() for row in rows} - chosen
    labelled = {groups[row] for row in chosen} if by_lesion else set()
    query = {row for row in others if groups[row] not in labelled}
    for name, rows in shuffled.items():
        if query.isdisjoint(rows):
            raise DataError(
                f'class "{name}" of {cohort.name} has no image left to classify: with k_shot = {k_shot} the '
                f"support set touches every {cohort.group} of it; lower k_shot or set by_lesion = False"
            )
    return FewShotTask(
        name=f"{cohort.name}-task{task}-k{k_shot}",
        cohort=cohort.name,
        task=task,
        seed=seed,
        k_shot=k_shot,
        by_lesion=by_lesion,
        classes=tuple(cohort.rare_classes),
        support_ids=tuple(ids[row] for name in cohort.rare_classes for row in support[name]),
        query_ids=tuple(sorted(ids[row] for row in query)),
        left_out_ids=tuple(sorted(ids[row] for row in others - query)),
    )


def _shuffled_rows(cohort: Cohort, name: str, rng: np.random.Generator) -> list[int]:
    """Rows of a class in random order; sorted by id first, so that the draw does not depend on the table's order."""
    rows = cohort.rows_of([name])
    rows = rows[np.argsort(cohort.table["id"].to_numpy(str)[rows])]
    return rng.permutation(rows).tolist()


def _pick(shuffled: Mapping[str, list[int]], groups: np.ndarray, k_shot: int, by_lesion: bool) -> dict[str, list[int]]:
    """The support rows of each class, one a round: a round never looks at later ones, hence the nesting."""
    left = {name: list(rows) for name, rows in shuffled.items()}
    support: dict[str, list[int]] = {name: [] for name in shuffled}
    used: set[object] = set()
    for _ in range(k_shot):
        for name, rows in left.items():
            fresh = (row for row in rows if groups[row] not in used)
            row = next(fresh, rows[0]) if by_lesion else rows[0]
            rows.remove(row)
            used.add(groups[row])
            support[name].append(row)
    return support
