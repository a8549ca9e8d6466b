"""Which rows of a memory bank each anchor is contrasted with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.transfer import sent


class ContrastSampler:
    """Draws the rows that each anchor is contrasted with, without a loop over the batch.

    Args:
        labels: class of every bank row, shape (n,); draws happen on its device.
        n_positives: P, the anchor among them; the others are distinct while the class has enough rows, else its rows
            are repeated in turn (in a class of one, the anchor).
        n_negatives: K, drawn with replacement.
        exact: the anchor is the only positive (P = 1) and negatives come from all other rows, whatever their class.

    Raises:
        ParameterError: if a count is unusable. MedkdError: if there are no rows to contrast with.
    """

    def __init__(self, labels: Tensor, *, n_positives: int, n_negatives: int, exact: bool = False) -> None:
        if n_positives < 1 or n_negatives < 1 or (exact and n_positives > 1):
            got = f"n_positives={n_positives}, n_negatives={n_negatives}, exact={exact}"
            raise ParameterError(f"sampling needs a positive (only one if exact) and a negative or more; got {got}")
        classes, self.label, self.count = labels.unique(return_inverse=True, return_counts=True)
        if len(labels) < 2 or (len(classes) < 2 and not exact):
            raise MedkdError(
                f"contrast needs rows of two classes, got {len(labels)} rows of {len(classes)}; add classes"
            )
        self.n_positives, self.n_negatives, self.exact = n_positives, n_negatives, exact
        self.order = self.label.argsort(stable=True)  # rows, class after class
        self.place = self.order.argsort()  # where in `order` a row stands
        self.start = self.count.cumsum(0) - self.count
        self.width = max(int(self.count.max()), n_positives)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows to contrast with, shape (b, P + K): the anchors `rows` (b,), other positives, negatives."""
        place, label = self.place[rows, None], self.label[rows]
        start, count = self.start[label, None], self.count[label, None]  # (b, 1)
        others = count - 1
        keys = torch.rand(len(rows), self.width, generator=generator, device=generator.device)
        keys = sent(keys, place.device)
        column = torch.arange(self.width, device=place.device)
        shuffled = keys.masked_fill_(column >= others, 2).topk(self.n_positives - 1, largest=False).indices
        chosen = start + shuffled.gather(1, column[: self.n_positives - 1] % others.clamp(min=1))
        chosen = torch.where(others > 0, chosen + (chosen >= place), place)  # step over the anchor
        first, n_excluded = (place, torch.ones_like(count)) if self.exact else (start, count)
        shape = (len(rows), self.n_negatives)
        drawn = sent(torch.randint(2**62, shape, generator=generator, device=generator.device), place.device)
        drawn = drawn % (len(self.order) - n_excluded)  # the bias of the remainder is below 1e-12
        drawn = torch.where(drawn >= first, drawn + n_excluded, drawn)  # step over the anchor or its class
        return self.order[torch.cat([place, chosen, drawn], dim=1)]


def repeats_of(candidates: Tensor) -> Tensor:
    """Which candidates stand there a second time, because their class has fewer rows than there are candidates.

    Args:
        candidates: bank rows, shape (b, P), the anchor in column 0.

    Returns:
        Shape (b, P - 1), bool, of the columns beside the anchor's.
    """
    rows, columns = candidates.sort(dim=1, stable=True)
    again = F.pad(rows[:, 1:] == rows[:, :-1], (1, 0))
    return torch.empty_like(again).scatter_(1, columns, again)[:, 1:]
