"""Contrastive distillation against memory banks: CRD, and DSCD, which picks its positives by discrepancy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError

DENSE_LIMIT = 20_000
"""Below this many images one product with the whole bank is faster than gathering the contrasted rows."""

MID_RANKS = (30, 100)
"""Ranks of discrepancy from which "mid" draws."""

CURRICULUM_RANKS = 50
"""Ranks in each of the three windows of "curriculum"."""

Selection = Literal["hard", "mid", "random", "curriculum"]


class ContrastiveDistillation(nn.Module):
    r"""Contrastive distillation between student and teacher features of the same images (CRD and DSCD).

    Each network has an embedding head (linear, unit length) and a bank with one embedding for every image. With
    anchor i and contrasted row j, :math:`x_{ij} = \exp(\langle M_j, g_i \rangle / \tau) / Z`, where g embeds one
    network's feature and M is the bank of the other. Per side

    .. math:: L = -\frac1b \sum_i \Big[ \frac1P \sum_{pos} \log\frac{x}{x + c + \epsilon}
              + \sum_{neg} \log\frac{c}{x + c + \epsilon} \Big], \quad c = K / n_{images}, \ \epsilon = 10^{-7}.

    Z is set on the first batch to the mean of the exponentials times `n_images` and stays.

    Args:
        n_images: rows of the banks.
        student_dim: length of the student's feature. teacher_dim: of the teacher's.
        embed_dim: length of the embeddings.
        temperature: tau.
        momentum: share of the old row when a bank is updated.
        generator: CPU generator that seeds heads, banks and the draws of positives; None for seed 0.

    Attributes:
        bank_student, bank_teacher: buffers, shape (n_images, embed_dim).
        log_z_student, log_z_teacher: buffers, scalars, log of Z; nan before the first batch.
        last_selected: column numbers of the positives used last, anchor first, shape (b, n_selected), or None.

    Raises:
        ParameterError: if a number is out of its range.

    Source:
        Tian et al. 2020 (CRD), arXiv:1910.10699; Xing et al. 2023 (GMCD), DSCD. The released DSCD code lets the
        anchor replace the hardest positive and may pick it twice; here it is kept once, and the hardest too.
    """

    def __init__(
        self,
        n_images: int,
        student_dim: int,
        teacher_dim: int,
        *,
        embed_dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= momentum < 1):
            raise ParameterError(
                f"contrastive distillation needs temperature > 0 and 0 <= momentum < 1; got temperature={temperature}, "
                f"momentum={momentum}"
            )
        generator = generator or torch.Generator().manual_seed(0)
        # own stream: several memories may be made from one generator, and each must resume by itself
        self._draws = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.n_images, self.temperature, self.momentum = n_images, temperature, momentum
        self.embed_student = nn.Linear(student_dim, embed_dim)
        self.embed_teacher = nn.Linear(teacher_dim, embed_dim)
        with torch.no_grad():
            for head in (self.embed_student, self.embed_teacher):
                bound = 1 / math.sqrt(head.in_features)  # what nn.Linear uses, but from our generator
                head.weight.uniform_(-bound, bound, generator=generator)
                head.bias.uniform_(-bound, bound, generator=generator)
        bound = 1 / math.sqrt(embed_dim / 3)  # rows of about unit length
        for side in ("student", "teacher"):
            bank = torch.empty(n_images, embed_dim).uniform_(-bound, bound, generator=generator)
            self.register_buffer(f"bank_{side}", bank)
            self.register_buffer(f"log_z_{side}", torch.tensor(float("nan")))
        self.last_selected: Tensor | None = None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        rows: Tensor,
        contrast_rows: Tensor,
        *,
        n_positives: int = 1,
        selection: Selection | None = None,
        n_selected: int = 20,
        progress: float = 0.0,
    ) -> Tensor:
        """Loss of one batch; afterwards both banks hold the batch's embeddings.

        Args:
            student: features, shape (b, student_dim); the gradient goes here and into the two heads.
            teacher: features of the same images, shape (b, teacher_dim), taken as constants.
            rows: bank row of each anchor, shape (b,), no row twice.
            contrast_rows: bank rows, shape (b, P + K): P positives with the anchor in column 0, then K negatives.
            n_positives: P.
            selection: None uses all P; "hard" keeps the anchor and the positives with the largest discrepancy
                (teacher cosine minus student cosine to the bank's embedding), "mid" draws among ranks 30 to 99,
                "random" among all, "curriculum" among three windows of 50 ranks, easy to hard. Ranks are clipped
                where P is small.
            n_selected: positives kept, the anchor among them (at most P are).
            progress: share of training done, in [0, 1); moves "curriculum" through its windows.

        Returns:
            Scalar: the student's side plus the teacher's.

        Raises:
            MedkdError: if the shapes do not fit, or `selection` or a count is unusable (ParameterError).
        """
        self._check(student, teacher, rows, contrast_rows, n_positives, selection, n_selected)
        with torch.autocast(student.device.type, enabled=False):
            dtype = self.bank_student.dtype
            # copies: the banks are written to below, before backward reads them
            bank_student, bank_teacher = self.bank_student.clone(), self.bank_teacher.clone()
            embedded_student = F.normalize(self.embed_student(student.to(dtype)), dim=1)
            embedded_teacher = F.normalize(self.embed_teacher(teacher.detach().to(dtype)), dim=1)
            candidates = contrast_rows[:, :n_positives]
            if selection is None:
                columns = torch.arange(n_positives, device=rows.device).expand(len(rows), -1)
            else:
                with torch.no_grad():
                    discrepancy = _cosines(embedded_teacher, bank_teacher, candidates)
                    discrepancy -= _cosines(embedded_student, bank_student, candidates)
                columns = self._select(discrepancy, selection, n_selected, progress)
            kept = torch.cat([candidates.gather(1, columns), contrast_rows[:, n_positives:]], dim=1)
            n_kept = columns.shape[1]
            loss = self._side("student", _products(embedded_student, bank_teacher, kept), n_kept)
            loss = loss + self._side("teacher", _products(embedded_teacher, bank_student, kept), n_kept)
            self._update(self.bank_student, rows, embedded_student)
            self._update(self.bank_teacher, rows, embedded_teacher)
        self.last_selected = columns
        return loss

    def get_extra_state(self) -> Tensor:
        """State of the generator that draws positives, so that a resumed run draws the same."""
        return self._draws.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the draws of a stored run."""
        self._draws.set_state(state.cpu())

    def _select(self, discrepancy: Tensor, selection: Selection, n_selected: int, progress: float) -> Tensor:
        """Columns to keep: 0 (the anchor), then others by rank of discrepancy, shape (b, n_kept)."""
        b, n_others = discrepancy.shape[0], discrepancy.shape[1] - 1
        n_drawn = min(n_selected - 1, n_others)
        order = discrepancy[:, 1:].argsort(dim=1, descending=True) + 1
        if selection == "hard":
            ranks = torch.arange(n_drawn, device=order.device).expand(b, -1)
        else:
            window = 3 - min(int(3 * progress), 2)  # of "curriculum": 3 (easy), 2, 1 (hard)
            low, high = {
                "mid": MID_RANKS,
                "random": (0, n_others),
                "curriculum": (CURRICULUM_RANKS * (window - 1), CURRICULUM_RANKS * window),
            }[selection]
            high = max(min(high, n_others), n_drawn)
            low = min(low, high - n_drawn)
            keys = torch.rand(b, high - low, generator=self._draws).to(order.device)
            ranks = keys.topk(n_drawn, dim=1).indices + low
        return torch.cat([order.new_zeros(b, 1), order.gather(1, ranks)], dim=1)

    def _side(self, side: str, products: Tensor, n_positives: int) -> Tensor:
        """Loss of one side from inner products (b, P + K); sets that side's Z if it is unset."""
        log_z = getattr(self, f"log_z_{side}")
        scores = products / self.temperature
        first = scores.detach().flatten().logsumexp(0) - math.log(scores.numel()) + math.log(self.n_images)
        log_z.copy_(torch.where(log_z.isnan(), first, log_z))
        log_x = scores - log_z.clone()
        noise = (scores.shape[1] - n_positives) / self.n_images  # c
        log_noise, log_offset = math.log(noise), math.log(noise + 1e-7)
        # log(x / (x + c')) and log(c / (x + c')) without forming x, which spans exp(+-1 / tau)
        positive = -F.softplus(log_offset - log_x[:, :n_positives])
        negative = log_noise - log_offset - F.softplus(log_x[:, n_positives:] - log_offset)
        return -(positive.mean(dim=1) + negative.sum(dim=1)).mean()

    @torch.no_grad()
    def _update(self, bank: Tensor, rows: Tensor, embedded: Tensor) -> None:
        mixed = self.momentum * bank[rows] + (1 - self.momentum) * embedded.detach()
        bank.index_copy_(0, rows, F.normalize(mixed, dim=1))

    def _check(
        self,
        student: Tensor,
        teacher: Tensor,
        rows: Tensor,
        contrast_rows: Tensor,
        n_positives: int,
        selection: str | None,
        n_selected: int,
    ) -> None:
        if not len(student) == len(teacher) == len(rows) == len(contrast_rows):
            raise MedkdError(
                f"student, teacher, rows and contrast_rows must describe one batch; got {len(student)}, {len(teacher)}, "
                f"{len(rows)} and {len(contrast_rows)} rows"
            )
        if not 1 <= n_positives < contrast_rows.shape[1]:
            raise ParameterError(
                f"n_positives must leave at least one negative of the {contrast_rows.shape[1]} contrast columns and be "
                f"1 or more; got {n_positives}"
            )
        if selection not in (None, "hard", "mid", "random", "curriculum"):
            raise ParameterError(f'selection "{selection}" is unknown; use "hard", "mid", "random" or "curriculum"')
        if n_selected < 1:
            raise ParameterError(f"n_selected counts the anchor and must be 1 or more; got {n_selected}")


def _products(embedded: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Inner products of each embedding (b, d) with the bank rows (b, m) that `index` names, shape (b, m)."""
    if len(bank) < DENSE_LIMIT:
        return (embedded @ bank.T).gather(1, index)
    return torch.einsum("bd,bmd->bm", embedded, bank[index])


def _cosines(embedded: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """As `_products` with bank rows of unit length (a fresh bank's are not); `embedded` has unit rows."""
    return _products(embedded, bank, index) / torch.linalg.vector_norm(bank, dim=1).clamp(min=1e-12)[index]
