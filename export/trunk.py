"""D2-Net's network: VGG16 to conv4_3 with stride 4, and the narrow fine head of our own checkpoints.

Reference: Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local
Features", CVPR 2019, section 4 (the trunk). The fine head is ours (docs/how-it-works.md).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import STRIDE

MEAN_BGR: Final = (103.939, 116.779, 123.68)
"""Subtracted from 8-bit BGR images; there is no further scaling ("caffe" preprocessing)."""

WIDTHS: Final[tuple[int, int, int, int]] = (64, 128, 256, 512)
"""Channels of the four VGG blocks."""

FINE_WIDTH: Final = 16
"""Channels of the fine head's hidden layer in the full network."""

HALF_INPUTS: Final = 8
"""Input channels of a halved network, three of the image and zeros: GPUs take longer for three alone."""


class DenseMaps(NamedTuple):
    """What the trunk computes of a batch of B images of H x W pixels.

    Attributes:
        dense: B x C x (H//4 - 1) x (W//4 - 1), conv4_3 without ReLU: descriptors and D2-Net's detection.
        full: B x 64 x H x W, conv1_2 after ReLU, for the fine head.
        half: B x 128 x H//2 x W//2, conv2_2 after ReLU, for the fine head.
        quarter: B x 256 x H//4 x W//4, conv3_3 after ReLU, for the fine head.
    """

    dense: Tensor
    full: Tensor
    half: Tensor
    quarter: Tensor


class Trunk(nn.Module):
    """VGG16 up to conv4_3; pool3 is an average pooling of stride 1, conv4 is dilated by 2.

    The layers' places in `model`, and so the keys of a state dict, are those of the official checkpoints.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        w1, w2, w3, w4 = widths

        def conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)

        self.model = nn.Sequential(
            *(conv(3, w1), nn.ReLU(), conv(w1, w1), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(w1, w2), nn.ReLU(), conv(w2, w2), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(w2, w3), nn.ReLU(), conv(w3, w3), nn.ReLU(), conv(w3, w3), nn.ReLU()),
            nn.AvgPool2d(2, stride=1),
            *(conv(w3, w4, 2), nn.ReLU(), conv(w4, w4, 2), nn.ReLU(), conv(w4, w4, 2)),
        )

    def forward(self, images: Tensor) -> DenseMaps:
        """Map B x 3 x H x W images, BGR minus `MEAN_BGR`, to their dense maps."""
        full, half, quarter = self.early(images)
        return DenseMaps(self.model[16:](quarter), full, half, quarter)

    def early(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps that the fine head reads, of 1, 1/2 and 1/4 of the images' resolution."""
        full = self.model[:4](images)
        half = self.model[4:9](full)
        return full, half, self.model[9:16](half)


class FineHead(nn.Module):
    """A narrow head on the early maps that says, per pixel, how repeatable a keypoint there would be.

    R = c(relu(a(full) + up(b(half) + up(d(quarter))))), r = softplus(R) / (1 + softplus(R)), in (0, 1).

    With a stride of 2 the hidden layer has a quarter of the pixels: R = shuffle(c(relu(a(full) + b(half) +
    up(d(quarter))))), where a moves by two pixels and c answers for 2 x 2 at a time, laid out by a pixel
    shuffle (Shi et al., CVPR 2016). So it is in the shipped models; a stride of 1 is what they came from.

    Args:
        channels: of the three maps.
        width: channels of the hidden layer.
        stride: pixels per pixel of the hidden layer, 1 or 2.
    """

    def __init__(self, channels: Sequence[int], width: int, stride: int = 1) -> None:
        super().__init__()
        full, half, quarter = channels
        self.stride = stride
        self.a = nn.Conv2d(full, width, 2 + stride, stride=stride, padding=1)
        self.b = nn.Conv2d(half, width, 3, padding=1)
        self.d = nn.Conv2d(quarter, width, 3, padding=1)
        self.c = nn.Conv2d(width, stride * stride, 3, padding=1)

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """Repeatability r, B x 1 x H x W, from three of `DenseMaps`; H and W are multiples of 4."""
        answers = self.c(self.hidden(full, half, quarter))
        positive = _softplus(answers if self.stride == 1 else F.pixel_shuffle(answers, self.stride))
        return positive / (1 + positive)

    def hidden(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """B x width x H // stride x W // stride float32: what `c` reads."""
        coarse = self.b(half).float() + _twice(self.d(quarter).float())
        return F.relu(self.a(full).float() + (_twice(coarse) if self.stride == 1 else coarse))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), also where 1 + e^x is 1. ONNX Runtime's own Softplus takes several times as long."""
    power = torch.exp(x.clamp(max=80))
    more = 1 + power
    return torch.log(more) + (power - (more - 1)) / more


def _twice(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class D2Net(nn.Module):
    """The network of one checkpoint.

    Args:
        widths: channels of the four blocks (`WIDTHS` for the paper's VGG16).
        fine: channels of the fine head's hidden layer; 0 for none, as in official checkpoints.
        fine_stride: see `FineHead`.
        descriptor_relu: whether descriptors, too, are taken from max(F, 0), as the official
            checkpoints were trained. Detection always is on max(F, 0).
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        *,
        fine: int = 0,
        fine_stride: int = 1,
        descriptor_relu: bool = True,
    ) -> None:
        super().__init__()
        self.dense_feature_extraction = Trunk(widths)
        self.fine = FineHead(widths[:3], fine, fine_stride) if fine else None
        self.descriptor_relu = descriptor_relu
        self.half_trunk = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Dense map F and repeatability r (None without a fine head) of B x 3 x H x W images.

        Both float32, but F of a halved network with a fine head: that is float16.
        """
        height, width = images.shape[2:]
        if self.fine is not None:
            # Whole cells: the last row and column are repeated until there are.
            whole = (0, -width % STRIDE, 0, -height % STRIDE)
            images = F.pad(images, whole, mode="replicate")
        if self.half_trunk:
            levels = (images + _fractions()).half()
            images = F.pad(levels, (0, 0, 0, 0, 0, HALF_INPUTS - images.shape[1]))
        maps = self.dense_feature_extraction(images)
        dense = F.relu(maps.dense) if self.descriptor_relu else maps.dense
        if self.fine is None:
            return dense.float(), None
        return dense, self.fine(*maps[1:])[:, :, :height, :width]

    def halve(self) -> None:
        """Let the trunk and the fine head's first layers compute in half precision from now on.

        In layers of the same function that GPUs are faster at: see `_widened` and `_averaging`.
        """
        if self.half_trunk:
            return
        self.half_trunk = True
        layers = self.dense_feature_extraction.model
        first, before_pool = cast(nn.Conv2d, layers[0]), cast(nn.Conv2d, layers[14])
        layers[0], layers[16] = _widened(first), _averaging(before_pool.out_channels)
        self.dense_feature_extraction.half()
        if self.fine is not None:
            for early in (self.fine.a, self.fine.b, self.fine.d):
                early.half()


def _widened(first: nn.Conv2d) -> nn.Conv2d:
    """The first convolution for `HALF_INPUTS` channels, the last ones zeros, of pixels plus `_fractions`.

    The same function but for an image's outermost pixels, beyond which a zero now is another grey.
    """
    wide = nn.Conv2d(HALF_INPUTS, first.out_channels, 3, padding=1)
    weights = first.state_dict()
    shift = (weights["weight"] * _fractions()).sum((1, 2, 3))
    weight = F.pad(weights["weight"], (0, 0, 0, 0, 0, HALF_INPUTS - first.in_channels))
    wide.load_state_dict({"weight": weight, "bias": weights["bias"] - shift})
    return wide.requires_grad_(False)


def _averaging(channels: int) -> nn.Conv2d:
    """pool3 as a convolution."""
    mean = nn.Conv2d(channels, channels, 2, bias=False)
    mean.load_state_dict(
        {"weight": torch.eye(channels).view(channels, channels, 1, 1).repeat(1, 1, 2, 2) / 4}
    )
    return mean.requires_grad_(False)


def _fractions() -> Tensor:
    """1 x 3 x 1 x 1: `MEAN_BGR` less that rounded, less which grey levels are exact in half precision."""
    mean = torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    return mean - mean.round()


def preprocess(images: Tensor) -> Tensor:
    """B x 3 x H x W float32, BGR minus `MEAN_BGR`, from uint8 BGR images, B x H x W x 3 or one, H x W x 3."""
    batch = images if images.ndim == 4 else images.unsqueeze(0)
    return batch.permute(0, 3, 1, 2).float() - torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
