"""What temperature, mix and gamma make of pseudo-labels, and a stand-in for the student that they would train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from medkd.errors import ParameterError
from medkd.evaluation.pseudo_labels import label_with_centroids
from medkd.losses.self_distillation import adaptive_target, dispersion, dispersion_temperatures

STEPS = ("hard labels", "soft labels", "adaptive target", "student with DIC")
"""A pseudo-label: its arg max, softened, mixed with the student's prediction; and that prediction divided by tau.

DIC acts on the loss while a student trains; the last step shows how far its tau move a prediction that is given.
"""

LEAST = 1e-12  # smaller probabilities count as this much, so that their logarithm is finite
SCALES = (1e-2, 1e4)  # bounds of the fitted sharpness of the stand-in student


@dataclass(frozen=True)
class Adaptation:
    """What is done to pseudo-labels.

    Attributes:
        temperature: T of the soft labels, softmax(log p / T), > 0; 1 leaves them, near 0 makes them hard.
        mix: alpha, share of the student's prediction in the target, 0 to 1.
        gamma: strength of DIC, 0 to below 1; 0 switches it off.
    """

    temperature: float = 1.0
    mix: float = 0.7
    gamma: float = 0.1


@dataclass(frozen=True)
class Labelled:
    """Pseudo-labels of some images with all that does not depend on an `Adaptation`.

    Attributes:
        soft: the classifier's probabilities, shape (n, n_way).
        logits: raw scores of the student's stand-in, same shape.
        spread: dispersion of the features of each pseudo-class, shape (n_way,).
    """

    soft: Tensor
    logits: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: np.ndarray, soft: np.ndarray) -> Labelled:
        """Pseudo-labels (n, n_way) of images by their features (n, d), not normalised."""
        hard, n_way = soft.argmax(axis=1), soft.shape[1]
        spread = dispersion(torch.from_numpy(features), torch.from_numpy(hard), n_way)
        return cls(torch.from_numpy(soft), torch.from_numpy(student_logits(features, hard, n_way)), spread)

    def temperatures(self, gamma: float) -> np.ndarray:
        """Tau of each class under DIC, shape (n_way,)."""
        return dispersion_temperatures(self.spread, gamma=gamma).numpy()

    def steps(self, settings: Adaptation) -> dict[str, np.ndarray]:
        """Probabilities (n, n_way) of each of `STEPS`; a number that is out of range is a ParameterError."""
        soft = soften(self.soft.numpy(), settings.temperature)
        hard = np.eye(soft.shape[1])[soft.argmax(axis=1)]
        target = adaptive_target(torch.from_numpy(soft), self.logits, settings.mix).numpy()
        student = softmax(self.logits.numpy() / self.temperatures(settings.gamma), axis=1)
        return dict(zip(STEPS, (hard, soft, target, student), strict=True))


def soften(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) by rows: T > 1 flattens, T < 1 sharpens, the order of the classes stays.

    Args:
        probabilities: shape (n, n_way).
        temperature: T > 0, else ParameterError.
    """
    if not temperature > 0:
        raise ParameterError(f"temperature of the pseudo-labels must be above 0, got {temperature}; 1 leaves them")
    # powers of p / max(p): no logarithm of 0, and no row that underflows to 0 as a whole
    powers = (probabilities / probabilities.max(axis=1, keepdims=True)) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def student_logits(features: np.ndarray, hard_labels: np.ndarray, n_way: int) -> np.ndarray:
    """Raw scores of a stand-in for the student that pseudo-labels would train: nearest centroid of each pseudo-class.

    A student has an encoder of its own, which cannot be trained in a second. What stands for it here is the centroid
    classifier on the same features, fitted on the hard pseudo-labels, with one sharpness for all scores that maximises
    their likelihood (without it, squared distances in many dimensions are sure of everything). Scores sum to 0 in each
    row, as those of a linear head that starts at 0 and learns by cross-entropy.

    Args:
        features: shape (n, d), n >= 1.
        hard_labels: pseudo-class of each row, 0 to n_way - 1, shape (n,); not every class need be there.
        n_way: classes.

    Returns:
        Shape (n, n_way), float64.
    """
    present, label = np.unique(hard_labels, return_inverse=True)
    probabilities = np.eye(n_way)[hard_labels]
    if len(present) > 1:
        unit = features / max(np.sqrt(np.mean(np.square(features)) * features.shape[1]), LEAST)
        scores = np.log(np.maximum(label_with_centroids(unit, label, unit, n_way=len(present)), LEAST))
        probabilities[:, present] = softmax(_sharpness(scores, label) * scores, axis=1)
    logits = np.log(np.maximum(probabilities, LEAST))
    return logits - logits.mean(axis=1, keepdims=True)


def label_numbers(steps: dict[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    """How pseudo-labels fall over the classes, and how sure they are.

    Args:
        steps: name -> probabilities (n, n_way), as `Labelled.steps`.
        classes: n_way names.

    Returns:
        One row per step: a column per class (mean probability, which is the share of images where labels are hard),
        confidence (mean largest probability), entropy (of one label, mean over images, nats) and effective classes
        (exp of the entropy of the mean label: n_way if all classes get equally much, 1 if one gets all).
    """
    table = pd.DataFrame([soft.mean(axis=0) for soft in steps.values()], index=list(steps), columns=list(classes))
    effective = np.exp(entropy(table.to_numpy(), axis=1))
    table["confidence"] = [soft.max(axis=1).mean() for soft in steps.values()]
    table["entropy"] = [entropy(soft, axis=1).mean() for soft in steps.values()]
    return table.assign(**{"effective classes": effective})


def _sharpness(scores: np.ndarray, label: np.ndarray) -> float:
    """The factor of the scores (n, n_way) that makes the labels most likely under their softmax."""
    margins = scores - np.take_along_axis(scores, label[:, None], axis=1)  # cross-entropy is log sum exp of these
    best = minimize_scalar(
        lambda power: np.logaddexp.reduce(np.exp(power) * margins, axis=1).mean(),
        bounds=np.log(SCALES),
        options={"xatol": 0.01},
    )
    return float(np.exp(best.x))
