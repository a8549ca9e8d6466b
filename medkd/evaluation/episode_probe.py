"""What K, temperature, mix and gamma do to pseudo-labels and to few-shot accuracy, on features computed once.

Pseudo-labels are those of the real use: the classifier of a rare task's support set on all common images. Accuracy is
measured elsewhere, on tasks of *common* classes ("episodes"): the query sets of the rare classes are test data, no
setting may be chosen by them, and not one of their features is read. The encoder has seen the common images, without
labels, so accuracy on them tells settings apart, but not how accurate the rare classes will be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from threadpoolctl import ThreadpoolController

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask, draw_task
from medkd.errors import DataError, ParameterError
from medkd.evaluation.adaptation import STEPS, Adaptation, Labelled, label_numbers
from medkd.evaluation.bootstrap import half_interval_of_mean
from medkd.evaluation.pseudo_labels import Classifier, label_tasks

MAX_SHOTS = 20  # the paper's largest K


class EpisodeProbe:
    """Cached features to try settings on; what a change does not touch is not computed again.

    Args:
        features: of every image in the order of the cohort's table, shape (n, d); those of a rare image are read only
            if it is in the support set of a task that is asked for.
        cohort: with common and rare classes.
        seed: of all draws, >= 0; tasks of rare classes are those of stage 05 with the same seed.
        by_lesion, C, normalize: as in stage 05.
        n_episodes: tasks of common classes.
        n_pool: images of each common class that these are drawn from, at most.

    Attributes:
        max_shots: largest K that every class has enough patients (lesions) for, at most 20.
        classes: names of the rare classes.
        episode_classes: common classes that episodes are drawn from, `n_way` of them for each.
        n_way: classes of an episode: as many as there are rare ones, or all of `episode_classes` if they are fewer.

    Raises:
        DataError: if features and cohort do not fit, there are fewer than two rare or two common classes, or a class
            has too few patients for K = 1. ParameterError: if `n_episodes` is below 2.
    """

    def __init__(
        self,
        features: np.ndarray,
        cohort: Cohort,
        *,
        seed: int = 0,
        by_lesion: bool = True,
        C: float = 1.0,
        normalize: str = "none",
        n_episodes: int = 20,
        n_pool: int = 300,
    ) -> None:
        _check(features, cohort, n_episodes)
        self._features, self._seed, self._by_lesion = features, seed, by_lesion
        self._options = {"C": C, "normalize": normalize}
        self._rows, self._names = pd.Index(cohort.table["id"].astype(object)), cohort.table["class"].to_numpy(object)
        self._common = np.asarray(features[cohort.base_rows()], np.float64)
        self.cohort, self.classes, self.n_episodes = cohort, tuple(cohort.rare_classes), n_episodes
        self._pool = _pool(cohort, n_pool, seed)
        self.max_shots, self.episode_classes = _enough(cohort, self._pool, by_lesion)
        self.n_way = min(len(self.classes), len(self.episode_classes))
        self._threads = ThreadpoolController()  # one for matrices this small: more take ten times longer
        self._task = lru_cache(maxsize=64)(self._labelled_task)
        self._episodes = lru_cache(maxsize=64)(self._labelled_episodes)
        self._drawn = lru_cache(maxsize=4096)(self._episode)

    def pseudo_labels(
        self, k_shot: int, task: int, classifier: Classifier, settings: Adaptation
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Pseudo-labels of the common images by one rare task: `label_numbers`, and tau of each class (n_way,)."""
        with self._threads.limit(limits=1):
            found = self._task(k_shot, task, classifier)
            return label_numbers(found.steps(settings), self.classes), found.temperatures(settings.gamma)

    def accuracy(self, k_shot: int, classifier: Classifier, settings: Adaptation) -> pd.DataFrame:
        """Few-shot accuracy on tasks of common classes, where the right label is known.

        Returns:
            One row per step: step ("soft labels" is the classifier itself), K, accuracy with low and high (mean over
            classes; mean and 95% interval over tasks), confidence, and overconfidence (confidence minus accuracy).
        """
        with self._threads.limit(limits=1):
            values = np.array([self._scores(*episode, settings) for episode in self._episodes(k_shot, classifier)])
        (accuracy, confidence), half = values.mean(axis=0).T, half_interval_of_mean(values[..., 0])
        table = pd.DataFrame({"step": STEPS[1:], "K": k_shot, "accuracy": accuracy})
        table["low"], table["high"] = np.maximum(accuracy - half, 0), np.minimum(accuracy + half, 1)
        return table.assign(confidence=confidence, overconfidence=confidence - accuracy)

    def _scores(self, found: Labelled, labels: np.ndarray, settings: Adaptation) -> list[tuple[float, float]]:
        """Accuracy and confidence of each step but the first, whose arg max is that of the second."""
        weights = 1 / (np.bincount(labels)[labels] * self.n_way)  # every class counts the same
        steps = list(found.steps(settings).values())[1:]
        return [(weights @ (step.argmax(axis=1) == labels), weights @ step.max(axis=1)) for step in steps]

    def _labelled_task(self, k_shot: int, task: int, classifier: Classifier) -> Labelled:
        drawn = draw_task(self.cohort, k_shot=k_shot, task=task, seed=self._seed, by_lesion=self._by_lesion)
        return self._label(drawn, self._common, classifier)

    def _labelled_episodes(self, k_shot: int, classifier: Classifier) -> list[tuple[Labelled, np.ndarray]]:
        """Pseudo-labels of the query images of each episode, and the right labels (n_query,)."""
        episodes = []
        for number in range(self.n_episodes):
            drawn = self._drawn(k_shot, number)
            query = self._rows.get_indexer(drawn.query_ids)
            labels = pd.Index(drawn.classes).get_indexer(self._names[query])
            episodes.append((self._label(drawn, np.asarray(self._features[query], np.float64), classifier), labels))
        return episodes

    def _episode(self, k_shot: int, number: int) -> FewShotTask:
        """A task of `n_way` random common classes, in the cohort's order."""
        rng = np.random.default_rng([self._seed, number, len(self.episode_classes)])
        chosen = sorted(rng.permutation(len(self.episode_classes))[: self.n_way])
        pool = dataclasses.replace(self._pool, rare_classes=tuple(self.episode_classes[index] for index in chosen))
        return draw_task(pool, k_shot=k_shot, task=number, seed=self._seed, by_lesion=self._by_lesion)

    def _label(self, drawn: FewShotTask, features: np.ndarray, classifier: Classifier) -> Labelled:
        support = np.asarray(self._features[self._rows.get_indexer(drawn.support_ids)], np.float64)
        tasks, n_way = {0: (support, drawn.support_labels)}, len(drawn.classes)
        soft = label_tasks(tasks, features, n_way=n_way, classifier=classifier, **self._options)[0]
        return Labelled.of(features, soft)


def _pool(cohort: Cohort, n_pool: int, seed: int) -> Cohort:
    """At most `n_pool` random images of each common class, as a cohort without pictures."""
    rng = np.random.default_rng(seed)
    rows = cohort.base_rows()
    names = cohort.table["class"].to_numpy(object)[rows]
    rows = [rng.permutation(rows[names == name])[:n_pool] for name in cohort.base_classes]
    table = cohort.table.iloc[np.sort(np.concatenate(rows))].reset_index(drop=True)
    return dataclasses.replace(cohort, table=table, images={}, vectors={}, splits=None, main="", second="")


def _enough(cohort: Cohort, pool: Cohort, by_lesion: bool) -> tuple[int, tuple[str, ...]]:
    """Largest K that surely leaves something to classify, and the common classes that have enough for it."""
    unit = "patient" if by_lesion else "id"
    rare = _most_shots(cohort.table, cohort.rare_classes, unit)
    common = _most_shots(pool.table, cohort.base_classes, unit)
    most = min(MAX_SHOTS, rare.min(), common.nlargest(2).min())
    if most < 1:
        small = rare.idxmin() if rare.min() < 1 else common.idxmin()
        raise DataError(
            f'class "{small}" of {cohort.name} needs two {cohort.group if by_lesion else "image"}s or more of its own, '
            "one for K = 1 and one to classify; leave it out of rare_classes or base_classes"
        )
    return int(most), tuple(name for name in cohort.base_classes if common[name] >= most)


def _most_shots(table: pd.DataFrame, classes: Sequence[str], unit: str) -> pd.Series:
    """K of each class that leaves it a patient to classify, whoever the support patients of all classes are."""
    pairs = table.loc[table["class"].isin(list(classes)), ["class", unit]].drop_duplicates()
    own = pairs[~pairs[unit].duplicated(keep=False)]  # of the others a support image of another class may take hold
    seen, alone = (part["class"].value_counts().reindex(classes, fill_value=0) for part in (pairs, own))
    return np.maximum(alone - 1, (seen - 1) // len(classes))


def _check(features: np.ndarray, cohort: Cohort, n_episodes: int) -> None:
    if n_episodes < 2:
        raise ParameterError(f"n_episodes = {n_episodes} must be 2 or more, for an interval")
    if np.ndim(features) != 2 or len(features) != len(cohort):
        raise DataError(
            f"features must have shape ({len(cohort)}, d), one row for each image of {cohort.name}; got "
            f"{np.shape(features)}: take those of `url_features` on the same cohort"
        )
    if len(cohort.rare_classes) < 2 or len(cohort.base_classes) < 2:
        raise DataError(
            f"{cohort.name} has {len(cohort.rare_classes)} rare and {len(cohort.base_classes)} common classes, but "
            "pseudo-labels and episodes need two or more of each; choose a cohort of the rare-disease chain"
        )
