"""Distillation losses between one student and one teacher tensor; no gradient ever reaches the teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.errors import MedkdError, ParameterError


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    r"""Soft-target distillation: :math:`T^2 \cdot \mathrm{KL}(p_T \,\|\, p_S)`, mean over images.

    With :math:`p_T = \mathrm{softmax}(z_T / T)`. The factor :math:`T^2` keeps the gradient's size about the same
    when `temperature` changes, so one loss weight serves every temperature.

    Args:
        student_logits: raw scores (no softmax), shape (n, n_classes), any float dtype.
        teacher_logits: raw scores of the same images in the same class order, same shape.
        temperature: softening T, > 0. T = 1 is the plain KL divergence.

    Returns:
        Scalar in nats, at least float32, >= 0; 0 when both softened distributions agree.

    Raises:
        MedkdError: if the shapes differ, or `temperature` is not positive (ParameterError).

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2 (soft targets, and the T^2 remark).
        We report KL, the paper cross-entropy: they differ by the teacher's entropy, a constant.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(z, z, temperature=4.0).item()
        0.0
    """
    if not temperature > 0:
        raise ParameterError(f"temperature must be positive, got {temperature}; 1 leaves the logits as they are")
    student, teacher = _pair(student_logits, teacher_logits, "score the same images over the same classes")
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def feature_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the softmax over feature dimensions, mean over images; both (n, d). Source: GMCD code, `feats_KL`."""
    return distillation_loss(student, teacher, temperature=1.0)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape. Source: Romero et al. 2015 (FitNets), arXiv:1412.6550."""
    return F.mse_loss(*_pair(student, teacher, "have features of the same shape"))


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of unit-length attention maps (channel mean of the squared activation).

    Args:
        student: feature maps, shape (n, channels, h, w).
        teacher: shape (n, other_channels, other_h, other_w); the larger maps are average-pooled to the smaller.

    Source:
        Zagoruyko, Komodakis 2017, arXiv:1612.03928.
    """
    maps = (F.normalize(m.pow(2).mean(dim=1).flatten(1), dim=1) for m in _same_size(student, teacher))
    return F.mse_loss(*maps)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the row-normalised Gram matrices over the batch, divided by n^2.

    Args:
        student: features or maps, shape (n, ...), flattened after the first dimension.
        teacher: shape (n, ...); the other dimensions may differ from the student's.

    Source:
        Tung, Mori 2019, arXiv:1907.09682.
    """
    grams = (_row_normalised_gram(x.flatten(1)) for x in _same_rows(student, teacher))
    return F.mse_loss(*grams)


def relational(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational distillation (RKD): smooth L1 between pairwise distances, and between angles of all triples.

    Args:
        student: shape (n, ...), flattened after the first dimension; distances are divided by their mean.
        teacher: shape (n, ...).
        distance_weight: weight of the distances (both defaults are those of Tian et al. 2020).
        angle_weight: weight of the angles.

    Source:
        Park et al. 2019, arXiv:1904.05068.
    """
    student, teacher = (x.flatten(1) for x in _same_rows(student, teacher))
    distance = F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
    angle = F.smooth_l1_loss(_angles(student), _angles(teacher))
    return distance_weight * distance + angle_weight * angle


def probabilistic_transfer(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """KL between the batch's cosine-similarity distributions (PKT), mean over all pairs; inputs (n, d), (n, d').

    Source:
        Passalis, Tefas 2018, arXiv:1803.10837; cosines are mapped to [0, 1] and rows sum to one.
    """
    p_student, p_teacher = (_similarity_distribution(x.flatten(1)) for x in _same_rows(student, teacher))
    return (p_teacher * torch.log((p_teacher + eps) / (p_student + eps))).mean()


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean <|d_i|, |d_(i+1)|> over neighbouring rows of d = student - teacher; both (n, d), n >= 2.

    Source:
        Peng et al. 2019, arXiv:1904.01802, in the form of the RepDistiller benchmark.
    """
    student, teacher = _pair(student, teacher, "have features of the same shape")
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(dim=1).mean()


def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between unit-length channel maps (NST), kernel (x . y)^2.

    Args:
        student: feature maps, shape (n, channels, h, w).
        teacher: shape (n, other_channels, other_h, other_w); the larger maps are average-pooled to the smaller.

    Source:
        Huang, Wang 2017, arXiv:1707.01219.
    """
    student, teacher = (F.normalize(m.flatten(2), dim=2) for m in _same_size(student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).pow(2).mean()

    return kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)


class VariationalInformation(nn.Module):
    r"""Variational information distillation (VID): likelihood of the teacher's features under the student's.

    A regressor :math:`\mu` guesses the teacher's features from the student's, with one learned variance a feature,

    .. math:: L = \mathrm{mean} \; \tfrac12 \Big[ \frac{(\mu(S) - T)^2}{v} + \log v \Big], \quad
              v = \mathrm{softplus}(\rho) + \epsilon .

    The regressor and the variances are trained with the student: give their parameters to its optimiser. The loss
    may be negative (log v of a small variance).

    Args:
        student_dim: length of the student's features. teacher_dim: of the teacher's; the regressor is three linear
            layers with ReLU between them, the hidden ones as wide as the teacher's features.
        initial_variance: of every feature at the start, > `eps`.
        eps: smallest variance, > 0.
        generator: CPU generator that seeds the regressor; None for seed 0.

    Raises:
        ParameterError: if `eps` or `initial_variance` is out of range.

    Source:
        Ahn et al. 2019, arXiv:1904.05835; its 1x1 convolutions are linear layers on vectors.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < eps < initial_variance:
            raise ParameterError(
                f"VID needs 0 < eps < initial_variance; got eps={eps}, initial_variance={initial_variance}"
            )
        generator = generator or torch.Generator().manual_seed(0)
        self.eps = eps
        layers: list[nn.Module] = []
        for n_in in (student_dim, teacher_dim, teacher_dim):
            linear = nn.utils.skip_init(nn.Linear, n_in, teacher_dim)
            bound = n_in**-0.5  # what nn.Linear uses, but from our generator
            with torch.no_grad():
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.uniform_(-bound, bound, generator=generator)
            layers += [linear, nn.ReLU()]
        self.regressor = nn.Sequential(*layers[:-1])
        # softplus turned round
        self.rho = nn.Parameter(torch.full((teacher_dim,), math.log(math.expm1(initial_variance - eps))))

    def variance(self) -> Tensor:
        """Variance of each teacher feature around the guess, shape (teacher_dim,), > 0."""
        return F.softplus(self.rho) + self.eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar in nats a feature; student (n, student_dim), teacher (n, teacher_dim) of the same images.

        Raises:
            MedkdError: if a shape is another.
        """
        student, teacher = _same_rows(student, teacher)
        wanted = (self.regressor[0].in_features, len(self.rho))
        if student.dim() != 2 or teacher.dim() != 2 or (student.shape[1], teacher.shape[1]) != wanted:
            raise MedkdError(
                f"VID was made for student features (n, {wanted[0]}) and teacher features (n, {wanted[1]}); got "
                f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: make it with these lengths"
            )
        guess = self.regressor(student.to(self.rho.dtype))
        variance = self.variance()
        return 0.5 * ((guess - teacher).square() / variance + variance.log()).mean()


def _pair(student: Tensor, teacher: Tensor, must: str) -> tuple[Tensor, Tensor]:
    """Both in full precision, the teacher detached; their shapes must agree."""
    if student.shape != teacher.shape:
        raise MedkdError(
            f"student and teacher must {must}; got student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: "
            "give both the same output size"
        )
    return _same_rows(student, teacher)


def _same_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in full precision, the teacher detached; row i of both must be the same image."""
    if len(student) != len(teacher):
        raise MedkdError(
            f"student and teacher must hold the same images; got student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}: pass both networks the same batch"
        )
    # At least float32 even under autocast: exp() of half-precision logits loses the small classes we distil for.
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `_same_rows`, and the larger maps average-pooled to the height and width of the smaller."""
    if student.dim() != 4 or teacher.dim() != 4:
        raise MedkdError(
            "this loss compares feature maps of shape (n, channels, h, w); got student "
            f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}: pass maps from before the pooling"
        )
    student, teacher = _same_rows(student, teacher)
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(teacher, (height, width))


def _row_normalised_gram(features: Tensor) -> Tensor:
    return F.normalize(features @ features.T, dim=1)


def _relative_distances(features: Tensor) -> Tensor:
    """Euclidean distances (n, n) over the mean of those that are positive; the diagonal is zero."""
    squares = features.pow(2).sum(dim=1)
    squared = (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp(min=1e-12)
    # the root of the clamped diagonal is 1e-6, not 0; it must not count as a distance
    distances = squared.sqrt() * (1 - torch.eye(len(features), dtype=features.dtype, device=features.device))
    return distances / (distances.sum() / (distances > 0).sum().clamp(min=1))


def _angles(features: Tensor) -> Tensor:
    """Cosine of the angle at corner i between rows j and k, shape (n, n, n); 0 where a side has no length."""
    sides = features[None, :, :] - features[:, None, :]
    # of two equal rows the gradient of the direction would be 1e12 times that of the angle
    directions = F.normalize(torch.where((sides == 0).all(dim=2, keepdim=True), 0.0, sides), dim=2)
    return directions @ directions.transpose(1, 2)


def _similarity_distribution(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=1, eps=1e-7)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
