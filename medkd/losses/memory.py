"""Contrastive distillation against memory banks: CRD, and DSCD, which picks its positives by discrepancy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError
from medkd.parallel import gathered, mean_of, world_size
from medkd.transfer import sent

DENSE_LIMIT = 10  # with fewer bank rows than this for each contrasted row, one product with the whole bank is cheaper
GATHERED_ELEMENTS = 2**20  # gathered at once on a CPU: 4 MB, which need no new memory from the system each time
MID_RANKS = (30, 100)  # ranks of discrepancy from which "mid" draws
CURRICULUM_RANKS = 50  # ranks in each window of "curriculum"
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
        student_dim, teacher_dim, embed_dim: length of the two features and of the embeddings.
        temperature: tau. momentum: share of the old row when a bank is updated.
        generator: CPU generator that seeds heads, banks and the draws of positives; None for seed 0.

    Attributes:
        bank_student, bank_teacher: buffers, shape (n_images, embed_dim).
        log_z_student, log_z_teacher: buffers, scalars, log of Z; nan before the first batch.
        last_selected: column numbers of the positives used last, anchor first, shape (b, n_selected), or None.

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
            got = f"temperature={temperature}, momentum={momentum}"
            raise ParameterError(f"contrastive distillation needs temperature > 0 and 0 <= momentum < 1; got {got}")
        generator = generator or torch.Generator().manual_seed(0)
        # own stream: several memories may be made from one generator, and each must resume by itself
        self._draws = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.n_images, self.temperature, self.momentum = n_images, temperature, momentum
        self.embed_student = nn.utils.skip_init(nn.Linear, student_dim, embed_dim)
        self.embed_teacher = nn.utils.skip_init(nn.Linear, teacher_dim, embed_dim)
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
        repeats: Tensor | None = None,
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
                "random" among all, "curriculum" in windows of 50 ranks, easy to hard; clipped where P is small.
            n_selected: positives kept, the anchor among them (at most P are).
            repeats: candidates beside the anchor that are kept last, shape (b, P - 1), bool; by default those that are
                the anchor again, see `medkd.losses.contrast_sampler.repeats_of`.
            progress: share of training done, in [0, 1); moves "curriculum" through its windows.

        Returns:
            Scalar: the student's side plus the teacher's.

        Raises:
            MedkdError: if the shapes do not fit, or `selection` or a count is unusable (ParameterError).
        """
        if not len(student) == len(teacher) == len(rows) == len(contrast_rows):
            sizes = f"{len(student)}, {len(teacher)}, {len(rows)} and {len(contrast_rows)}"
            raise MedkdError(f"student, teacher, rows and contrast_rows must hold one batch; got {sizes} rows")
        if not (1 <= n_positives < contrast_rows.shape[1] and n_selected >= 1):
            counts = f"n_positives={n_positives}, n_selected={n_selected}, {contrast_rows.shape[1]} contrast columns"
            raise ParameterError(f"contrast needs a positive, a negative and n_selected of 1 or more; got {counts}")
        if selection not in (None, "hard", "mid", "random", "curriculum"):
            raise ParameterError(f'selection "{selection}" is unknown; use "hard", "mid", "random" or "curriculum"')
        with torch.autocast(student.device.type, enabled=False):
            embedded_student, embedded_teacher = self._embed(student, teacher)
            candidates = contrast_rows[:, :n_positives]
            if selection is None:
                columns = torch.arange(n_positives, device=rows.device).expand(len(rows), -1)
            else:
                with torch.no_grad():
                    discrepancy = self._discrepancy(embedded_student, embedded_teacher, candidates)
                if repeats is None:
                    repeats = candidates[:, 1:] == rows[:, None]
                columns = self._select(discrepancy, repeats, selection, n_selected, progress)
            kept = torch.cat([candidates.gather(1, columns), contrast_rows[:, n_positives:]], dim=1)
            loss = self._side("student", _products(embedded_student, self.bank_teacher, kept), columns.shape[1])
            loss = loss + self._side("teacher", _products(embedded_teacher, self.bank_student, kept), columns.shape[1])
            everyone = gathered(rows)
            self._update(self.bank_student, everyone, embedded_student)
            self._update(self.bank_teacher, everyone, embedded_teacher)
        self.last_selected = columns
        return loss

    @torch.no_grad()
    def discrepancy(self, student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
        """Teacher cosine minus student cosine between each anchor and its candidates' bank rows; changes nothing.

        Args:
            student: features, shape (b, student_dim).
            teacher: features of the same images, shape (b, teacher_dim).
            candidates: bank rows, shape (b, P).

        Returns:
            Shape (b, P); large where the teacher finds the candidate close and the student does not.
        """
        return self._discrepancy(*self._embed(student, teacher), candidates)

    def get_extra_state(self) -> Tensor:
        """State of the generator that draws positives, so that a resumed run draws the same."""
        return self._draws.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the draws of a stored run."""
        self._draws.set_state(state.cpu())

    def _embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of both features, shape (b, embed_dim) each; the teacher's feature is a constant."""
        dtype = self.bank_student.dtype
        return (
            F.normalize(self.embed_student(student.to(dtype)), dim=1),
            F.normalize(self.embed_teacher(teacher.detach().to(dtype)), dim=1),
        )

    def _discrepancy(self, embedded_student: Tensor, embedded_teacher: Tensor, candidates: Tensor) -> Tensor:
        by_teacher = _cosines(embedded_teacher, self.bank_teacher, candidates)
        return by_teacher - _cosines(embedded_student, self.bank_student, candidates)

    def _select(
        self, discrepancy: Tensor, repeats: Tensor, selection: Selection, n_selected: int, progress: float
    ) -> Tensor:
        """Columns to keep: 0 (the anchor), then others by rank of discrepancy, shape (b, n_kept)."""
        # columns that repeat a row rank last: they are kept only where a class has too few rows
        order = discrepancy[:, 1:].masked_fill(repeats, -torch.inf).argsort(dim=1, descending=True, stable=True) + 1
        n_columns = order.shape[1]
        n_drawn = min(n_selected - 1, n_columns)
        kept = order[:, :n_drawn]
        if selection != "hard":
            window = 3 - min(int(3 * progress), 2)  # of "curriculum": 3 (easy), 2, 1 (hard)
            low, high = {
                "mid": MID_RANKS,
                "random": (0, n_columns),
                "curriculum": (CURRICULUM_RANKS * (window - 1), CURRICULUM_RANKS * window),
            }[selection]
            highs = (n_columns - repeats.sum(dim=1, keepdim=True)).clamp(max=high).clamp(min=n_drawn)
            lows = (highs - n_drawn).clamp(max=low)
            ranks = torch.arange(n_columns, device=order.device)
            keys = sent(torch.rand(order.shape, generator=self._draws), order.device)
            outside = (ranks < lows) | (ranks >= highs)
            kept = order.gather(1, keys.masked_fill(outside, -1).topk(n_drawn, dim=1).indices)
        return torch.cat([order.new_zeros(len(order), 1), kept], dim=1)

    def _side(self, side: str, products: Tensor, n_positives: int) -> Tensor:
        """Loss of one side from inner products (b, P + K); sets that side's Z if it is unset."""
        log_z = getattr(self, f"log_z_{side}")
        scores = products / self.temperature
        first = scores.detach().flatten().logsumexp(0) - math.log(scores.numel())
        if world_size() > 1:  # in every step: to ask whether it is still needed, the host would wait for the device
            first = mean_of(first.exp()).log()
        first = first + math.log(self.n_images)
        log_z.copy_(torch.where(log_z.isnan(), first, log_z))
        noise = (scores.shape[1] - n_positives) / self.n_images  # c
        ratio = scores - log_z.clone() - math.log(noise + 1e-7)
        # log(x / (x + c + eps)) and log(c / (x + c + eps)) without forming x, which spans exp(+-1 / tau)
        positive = -F.softplus(-ratio[:, :n_positives], threshold=40)
        negative = math.log(noise / (noise + 1e-7)) - F.softplus(ratio[:, n_positives:], threshold=40)
        return -(positive.mean(dim=1) + negative.sum(dim=1)).mean()

    @torch.no_grad()
    def _update(self, bank: Tensor, rows: Tensor, embedded: Tensor) -> None:
        mixed = self.momentum * bank[rows] + (1 - self.momentum) * gathered(embedded)
        bank.index_copy_(0, rows, F.normalize(mixed, dim=1))


def _is_dense(bank: Tensor, index: Tensor) -> bool:
    """Whether one product with the whole bank is cheaper than gathering the rows that `index` names."""
    return len(bank) < DENSE_LIMIT * index.shape[1]


def _products(embedded: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Inner products of each embedding (b, d) with the bank rows (b, m) that `index` names, shape (b, m)."""
    if _is_dense(bank, index):
        return (embedded @ bank.clone().T).gather(1, index)  # a copy: the bank changes before backward reads it
    return _gathered(embedded, bank, index)


def _cosines(embedded: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """As `_products` with bank rows of unit length (a fresh bank's are not); `embedded` has unit rows."""
    if _is_dense(bank, index):
        return _products(embedded, bank, index) / torch.linalg.vector_norm(bank, dim=1).clamp(min=1e-12)[index]
    return _gathered(embedded, bank, index, unit=True)


def _gathered(embedded: Tensor, bank: Tensor, index: Tensor, *, unit: bool = False) -> Tensor:
    """The same from the named rows alone, scaled to unit length if asked for; a CPU takes some embeddings at a time."""
    on_cpu = embedded.device.type == "cpu"
    part = max(1, GATHERED_ELEMENTS // (index.shape[1] * bank.shape[1])) if on_cpu else len(index)
    found = []
    for some, named in zip(embedded.split(part), index.split(part), strict=True):
        rows = F.embedding(named, bank)  # (part, m, d); indexing takes five times as long on a CPU
        length = torch.linalg.vector_norm(rows, dim=2).clamp(min=1e-12) if unit else 1
        found.append(torch.einsum("bd,bmd->bm", some, rows) / length)
    return torch.cat(found)
