"""ResNet-12 of the few-shot literature and the 4-layer convolutional network, with ghost batch norm and DropBlock."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import ParameterError

STAGE_CHANNELS = (64, 160, 320, 640)
LEAKY_SLOPE = 0.1
SMALLEST_INPUT = 16  # four halvings leave one pixel
DROPBLOCK_RAMP = 40_000  # training steps until DropBlock drops its full rate


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics come from parts of the batch, as on several GPUs.

    In training the batch is cut into `splits` runs of ceil(n / splits) neighbouring images and each is
    normalised by itself; the running statistics move by the mean over the parts. In evaluation, and with
    `splits=1`, it is plain batch norm. The parameters and buffers are named as in `nn.BatchNorm2d`.

    Args:
        num_features: channels.
        splits: number of parts, at least 1; MoCo's 8 GPUs of 32 images are `splits=8` at batch 256.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741.
    """

    def __init__(self, num_features: int, splits: int = 1) -> None:
        super().__init__(num_features)
        if splits < 1:
            raise ParameterError(f"bn_splits={splits} must be at least 1 (1 is plain batch norm)")
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        """Normalise maps of shape (n, c, h, w)."""
        if self.splits == 1 or not self.training:
            return super().forward(x)
        parts = x.chunk(self.splits)
        # each part moves its own copy of the running statistics; the step is linear, so their mean is the mean step
        means = self.running_mean.repeat(len(parts), 1)
        variances = self.running_var.repeat(len(parts), 1)
        normalised = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
            self.num_batches_tracked.add_(1)
        return torch.cat(normalised)


class DropBlock(nn.Module):
    """Sets whole squares of the maps to zero in training; the rate grows linearly over the first steps.

    The expected dropped share is `drop_rate * min(n / 40000, 1)` after n training steps. The step counter is a
    buffer: a resumed run goes on where it was. Squares lie wholly inside the map; where the map is smaller than
    the square, the square shrinks to the map.

    Args:
        drop_rate: final share of dropped values, 0 to 1; 0 makes the module the identity.
        block_size: side of the square, map pixels.

    Source:
        Ghiasi, Lin, Le 2018, arXiv:1810.12890, with one scale for the whole batch.
    """

    def __init__(self, drop_rate: float, block_size: int) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.block_size = block_size
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def seed_rate(self, height: int, width: int) -> Tensor:
        """Probability gamma that a square starts at one position of a (height, width) map, scalar float32."""
        block_h, block_w = min(self.block_size, height), min(self.block_size, width)
        positions = (height - block_h + 1) * (width - block_w + 1)
        dropped = self.drop_rate * (self.steps.float() / DROPBLOCK_RAMP).clamp(max=1.0)
        return dropped * (height * width) / (block_h * block_w * positions)

    def forward(self, x: Tensor) -> Tensor:
        """Drop squares of maps (n, c, h, w) and rescale the rest so that the batch keeps its mean."""
        if not self.training or self.drop_rate == 0:
            return x
        self.steps.add_(1)
        height, width = x.shape[2:]
        block_h, block_w = min(self.block_size, height), min(self.block_size, width)
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        shape = (*x.shape[:2], height - block_h + 1, width - block_w + 1)
        # torch's default generator, as for nn.Dropout: its state is what a checkpoint keeps
        seeds = torch.empty(shape, device=x.device, memory_format=layout).bernoulli_(self.seed_rate(height, width))
        seeds = F.pad(seeds, (block_w - 1, block_w - 1, block_h - 1, block_h - 1))
        kept = 1.0 - F.max_pool2d(seeds, (block_h, block_w), stride=1)
        scale = kept.numel() / kept.sum().clamp(min=1.0)  # float32: bfloat16 cannot count the kept values
        return x * (kept * scale).to(x.dtype)


class ResidualStage(nn.Module):
    """Three 3x3 convolutions with a 1x1 shortcut, halved by max pooling, then `drop`."""

    def __init__(self, in_channels: int, out_channels: int, drop: nn.Module, bn_splits: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _conv(in_channels, out_channels, 3, bn_splits),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            _conv(out_channels, out_channels, 3, bn_splits),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            _conv(out_channels, out_channels, 3, bn_splits),
        )
        self.shortcut = _conv(in_channels, out_channels, 1, bn_splits)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c_in, h, w) -> (n, c_out, h // 2, w // 2)."""
        # pooled before the activation: it is increasing, so the result is the same from a quarter of the values
        pooled = F.max_pool2d(self.convolutions(x) + self.shortcut(x), 2)
        return self.drop(F.leaky_relu(pooled, LEAKY_SLOPE))


class ResNet12(nn.Module):
    """ResNet-12 (widths 64, 160, 320, 640) with a linear head; images (n, 3, h, w) -> features (n, dim).

    12,506,368 parameters with the 128-d head. Images are taken as they come, in [0, 1], at least 16 px wide.

    Args:
        dim: features, not normalised and of either sign.
        width: factor on the four stage widths, > 0; 1 is the published network.
        drop_rate: dropout after stages 1-2 (single values) and 3-4 (DropBlock), 0 to 1.
        dropblock_size: side of DropBlock's square, map pixels.
        bn_splits: parts of the batch that batch norm treats apart, see `GhostBatchNorm2d`.

    Source:
        Lee et al. 2019, arXiv:1904.03758 (MetaOptNet); Tian et al. 2020, arXiv:2003.11539 (RFS).
    """

    def __init__(
        self,
        *,
        dim: int = 128,
        width: float = 1.0,
        drop_rate: float = 0.1,
        dropblock_size: int = 5,
        bn_splits: int = 1,
    ) -> None:
        super().__init__()
        channels = [_scaled(count, width) for count in STAGE_CHANNELS]
        drops = [nn.Dropout(drop_rate), nn.Dropout(drop_rate)] + [DropBlock(drop_rate, dropblock_size) for _ in "34"]
        self.stages = nn.ModuleList(
            ResidualStage(n_in, n_out, drop, bn_splits)
            for n_in, n_out, drop in zip([3, *channels[:-1]], channels, drops, strict=True)
        )
        self.head = nn.Linear(channels[-1], dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # gain sqrt(2), not that of the slope 0.1: what the published runs started from
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Output of the four stages; for 224 px images (64, 112, 112), (160, 56, 56), (320, 28, 28), (640, 14, 14)."""
        if min(x.shape[2:]) < SMALLEST_INPUT:
            raise ParameterError(
                f"images of {x.shape[2]} x {x.shape[3]} px are too small for ResNet12, which halves them four times; "
                f"set image_size to {SMALLEST_INPUT} or more"
            )
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] -> features (n, dim)."""
        return self.head(self.feature_maps(x)[-1].mean((2, 3)))


class Conv4(nn.Module):
    """Four blocks of conv3x3 (stride 2, pad 2), ReLU, batch norm, max pooling, then a linear head.

    Args:
        dim: features.
        width: factor on the 64 channels, > 0.
        bn_splits: parts of the batch that batch norm treats apart, see `GhostBatchNorm2d`.

    Source:
        The "4-conv" backbone of Sun et al. 2024, Med. Image Anal. 93:103102.
    """

    def __init__(self, *, dim: int = 64, width: float = 1.0, bn_splits: int = 1) -> None:
        super().__init__()
        channels = _scaled(64, width)
        layers: list[nn.Module] = []
        for n_in in (3, channels, channels, channels):
            norm = GhostBatchNorm2d(channels, bn_splits)
            # padding 2 leaves at least 2 px to pool, even of a 1-pixel map: any image size works
            layers += [nn.Conv2d(n_in, channels, 3, stride=2, padding=2), nn.ReLU(inplace=True), norm, nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] -> features (n, dim)."""
        return self.head(self.blocks(x).mean((2, 3)))


def _conv(n_in: int, n_out: int, kernel: int, bn_splits: int) -> nn.Sequential:
    """Convolution without bias that keeps the map's size, then batch norm."""
    conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, GhostBatchNorm2d(n_out, bn_splits))


def _scaled(channels: int, width: float) -> int:
    if width <= 0:
        raise ParameterError(f"width={width} must be above 0 (1 is the published network)")
    return max(1, round(channels * width))
