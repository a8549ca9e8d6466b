"""Self-distillation on pseudo-labels with a target that adapts, and its dispersion-aware temperatures (DIC)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.precision import full

RELEASED_TEMPERATURE = 2.0
"""Temperature that the released code of 2021 applies to probabilities (not to logits)."""


def adaptive_target(target: Tensor, logits: Tensor, mix: float) -> Tensor:
    r"""The pseudo-label mixed with the student's own prediction: :math:`(1 - \alpha) y + \alpha p`, p a constant.

    Args:
        target: pseudo-labels, rows sum to 1, shape (n, n_way).
        logits: the student's raw scores, same shape; no gradient passes through the target.
        mix: alpha, share of the prediction, 0 to 1.

    Raises:
        MedkdError: if the shapes differ, or `mix` lies outside [0, 1] (ParameterError).

    Source:
        Sun et al. 2021, arXiv:2110.04558; eq. 5 of Sun et al. 2024.
    """
    _check(logits, target, mix)
    return (1 - mix) * target + mix * full(logits).softmax(dim=1).detach()


def pseudo_label_loss(
    logits: Tensor, target: Tensor, *, mix: float = 0.0, temperatures: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy with a soft target, mean over images: :math:`-\sum_c y_c \log \mathrm{softmax}(z / \tau)_c`.

    Args:
        logits: raw scores of the student, shape (n, n_way).
        target: soft or one-hot pseudo-labels, rows sum to 1, same shape.
        mix: alpha of `adaptive_target`; 0 keeps the pseudo-label.
        temperatures: tau of each class, shape (n_way,), from `dispersion_temperatures`; None for 1.

    Returns:
        Scalar in nats, at least float32.

    Raises:
        MedkdError: as `adaptive_target`.

    Source:
        Sun et al. 2024 (Med. Image Anal. 93, 103102), eq. 3 to 6 and 9.
    """
    soft = adaptive_target(target, logits, mix)
    scores = full(logits)
    if temperatures is not None:
        scores = scores / temperatures.to(scores)
    return -(soft * F.log_softmax(scores, dim=1)).sum(dim=1).mean()


def released_pseudo_label_loss(
    logits: Tensor, target: Tensor, *, mix: float, temperatures: Tensor | None = None
) -> Tensor:
    r"""What the released code minimises instead: :math:`T^2 KL(softmax(y/T) || softmax(p/T))` with T = 2.

    It softens probabilities a second time, and its adaptive target is not detached, so the gradient at a uniform
    prediction is 8.4 times weaker than that of `pseudo_label_loss`. With imbalance correction T is the temperature of
    each class, squared as the mean over classes, and the target is detached, as in the journal's code. Kept to compare
    with published numbers only.

    Args:
        logits: raw scores, shape (n, n_way).
        target: pseudo-labels, same shape.
        mix: alpha, 0 to 1.
        temperatures: tau of each class, shape (n_way,); None without imbalance correction.
    """
    _check(logits, target, mix)
    probabilities = full(logits).softmax(dim=1)
    mixed = (1 - mix) * target + mix * probabilities
    soft = torch.full_like(probabilities[0], RELEASED_TEMPERATURE)
    if temperatures is not None:
        soft, mixed = temperatures.to(probabilities), mixed.detach()
    log_target, log_student = (F.log_softmax(values / soft, dim=1) for values in (mixed, probabilities))
    return soft.mean() ** 2 * F.kl_div(log_student, log_target, reduction="batchmean", log_target=True)


def feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean absolute difference between the student's and the teacher's features, over images and dimensions.

    Args:
        features: of the student, shape (n, d), not normalised.
        teacher_features: of the same images from the URL encoder, same shape, taken as constants.

    Raises:
        MedkdError: if the shapes differ.

    Source:
        L_reg of Sun et al. 2024, Table 7 row d; what is averaged is not published.
    """
    if features.shape != teacher_features.shape:
        raise MedkdError(
            f"student and URL features must have one shape (n, d); got {tuple(features.shape)} and "
            f"{tuple(teacher_features.shape)}: train both with the same encoder, width and projection"
        )
    return F.l1_loss(full(features), full(teacher_features).detach())


@torch.no_grad()
def dispersion(
    features: Tensor, hard_labels: Tensor, n_way: int, *, kind: Literal["feature_var", "norm_var"] = "feature_var"
) -> Tensor:
    """Spread of the features of each pseudo-class.

    A class with fewer than two images gets the mean of the others; if no class has two, all get 1.

    Args:
        features: raw features, shape (n, d).
        hard_labels: pseudo-class of each row, 0 to n_way - 1, shape (n,).
        n_way: classes.
        kind: "feature_var" is the variance (n - 1 in the denominator) of each dimension of the unit-length features,
            averaged over dimensions; "norm_var" the variance of the features' length. The paper's words fit both.

    Returns:
        Shape (n_way,), non-negative, at least float32.

    Raises:
        ParameterError: if `kind` is unknown.

    Source:
        Sun et al. 2024, section 3.6 (v_n of eq. 8).
    """
    if kind not in ("feature_var", "norm_var"):
        raise ParameterError(f'dispersion kind "{kind}" is unknown; use "feature_var" or "norm_var"')
    features = full(features)
    values = F.normalize(features, dim=1) if kind == "feature_var" else features.norm(dim=1, keepdim=True)
    member = F.one_hot(hard_labels.to(values.device), n_way).to(values.dtype)  # (n, n_way)
    count = member.sum(dim=0)
    mean = (member.T @ values) / count.clamp(min=1)[:, None]  # (n_way, d or 1)
    squares = member.T @ (values - mean[hard_labels.to(values.device)]).pow(2)
    variance = squares.mean(dim=1) / (count - 1).clamp(min=1)
    known = count >= 2
    others = torch.where(known, variance, 0).sum() / known.sum().clamp(min=1)
    return torch.where(known, variance, torch.where(known.any(), others, torch.ones_like(others)))


def dispersion_temperatures(
    dispersion: Tensor, *, gamma: float = 0.1, form: Literal["paper", "released"] = "paper"
) -> Tensor:
    r"""One temperature a class from its dispersion; the largest is 1, equal dispersions give 1 for all.

    "paper": :math:`\beta_n = \gamma v_n / \sum_i v_i + 1 - \gamma`, :math:`\tau_n = \beta_n + 1 - \max_j \beta_j`.
    "released": :math:`\beta_n = \gamma N v_n / \sum_i v_i + 1 - \gamma`, :math:`\tau_n = \beta_n / \max_j \beta_j`.

    Args:
        dispersion: v, shape (n_way,), non-negative.
        gamma: strength, 0 to below 1 (a class without any spread would have temperature 0); 0 switches it off.
        form: the paper's equations or the released code's.

    Raises:
        ParameterError: if `form` is unknown or `gamma` lies outside [0, 1).

    Source:
        Sun et al. 2024, eq. 7 and 8, and its released code.
    """
    if form not in ("paper", "released"):
        raise ParameterError(f'form "{form}" of the temperatures is unknown; use "paper" or "released"')
    if not 0 <= gamma < 1:
        raise ParameterError(f"gamma must lie between 0 and below 1, got {gamma}; the paper uses 0.1")
    # all-zero dispersion (collapsed features) must give equal temperatures, not 0 / 0
    share = dispersion / dispersion.sum().clamp(min=torch.finfo(dispersion.dtype).tiny)
    if form == "paper":
        return 1 - gamma * (share.max() - share)  # beta_n + 1 - max_j beta_j, without the round-off
    beta = gamma * len(share) * share + (1 - gamma)
    return beta / beta.max()


def _check(logits: Tensor, target: Tensor, mix: float) -> None:
    if logits.shape != target.shape:
        raise MedkdError(
            f"logits and pseudo-labels must have one shape (n, n_way); got logits {tuple(logits.shape)}, "
            f"target {tuple(target.shape)}: use one-hot rows for hard labels"
        )
    if not 0 <= mix <= 1:
        raise ParameterError(f"mix must lie between 0 and 1, got {mix}; the paper ends at 0.7")
