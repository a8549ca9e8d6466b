"""Cox's partial likelihood of predicted risks, and the bounded risk that the survival task predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from medkd.errors import MedkdError
from medkd.precision import full


def bounded_risk(logits: Tensor) -> Tensor:
    """Log-risk in -3..3 from raw scores of any shape: 6 * sigmoid(logits) - 3.

    A hazard can then be at most exp(6), 400 times another one, which keeps the exponentials of `cox_loss` tame.

    Source:
        Survival head of Chen et al. 2020 (Pathomic Fusion), arXiv:1912.08937; kept by GMCD.
    """
    return 6 * torch.sigmoid(logits) - 3


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    r"""Negative Cox partial log-likelihood over a batch, divided by its number of samples.

    .. math:: -\frac{1}{n} \sum_{i} e_i \left(\theta_i - \log \sum_{j: t_j \ge t_i} \exp \theta_j\right)

    Equal times share one risk set (Breslow). The sum is over observed events, the mean over all samples with known
    follow-up, censored ones too: a batch with few events takes a smaller step. Risks that all grow by the same
    amount leave the loss as it is.

    Args:
        risks: log-risks theta, shape (n,), any float dtype; larger is worse.
        times: follow-up, shape (n,), any unit. A sample with nan in time or event is left out.
        events: 1 where the event was observed at `times`, 0 where the sample was censored then, shape (n,).

    Returns:
        Scalar, at least float32, >= 0; 0 with zero gradient where the batch holds no event.

    Raises:
        MedkdError: if the shapes differ or are not (n,).

    Source:
        Cox 1972, J. R. Stat. Soc. B 34, 187-220; the mean over all samples: Chen et al. 2020, arXiv:1912.08937.
    """
    if risks.dim() != 1 or not risks.shape == times.shape == events.shape:
        raise MedkdError(
            f"cox_loss expects risks, times and events of one shape (n,); got {tuple(risks.shape)}, "
            f"{tuple(times.shape)} and {tuple(events.shape)}: take column 0 of a head with one output"
        )
    theta = full(risks)  # half precision rounds both exponentials and months
    known = ~(torch.isnan(times) | torch.isnan(events))
    at_risk = (times[None, :] >= times[:, None]) & known[None, :]
    # each row holds itself: only a left-out sample's own row would be empty otherwise, and its gradient nan
    at_risk = at_risk | torch.eye(len(theta), dtype=torch.bool, device=theta.device)
    log_sums = torch.where(at_risk, theta[None, :], -torch.inf).logsumexp(dim=1)
    observed = torch.where(known, events.to(theta.dtype), 0.0)
    return ((log_sums - theta) * observed).sum() / known.sum().clamp(min=1)
