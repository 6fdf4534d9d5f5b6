"""Fixed numbers of keypoints of images of one size: no lists as long as it happens, and no loops.

OpenCV's engine wants it so (`export.opencv`), and what makes a GPU fast does, too: CUDA graphs, TensorRT and
batches (`Frames`). A dense map and TopK take the place of the list of detections; network, head and
descriptors are those of `export.graph`, at one scale.
"""

from typing import Final, NamedTuple

import onnx
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .geometry import STRIDE, cell_origin
from .graph import export_static
from .head import FINE_BORDER, describe, fine_maxima, fine_scores, refine_fine, reliable
from .trunk import D2Net, preprocess

CANDIDATES: Final = 4
"""So many times the wanted number of maxima are looked at, for some turn out to be even surfaces."""

SMALLEST: Final = 32
"""Pixels of the shorter side of `Frames`."""


class FixedFeatures(NamedTuple):
    """K keypoints, best first; where there are fewer, the last one is repeated with a score of 0.

    Attributes:
        pixels: K x 2, (x, y). scores: K. descriptors: K x C, of unit length.
    """

    pixels: Tensor
    scores: Tensor
    descriptors: Tensor


def fixed_features(dense: Tensor, repeatability: Tensor, level: Tensor, nfeatures: int) -> FixedFeatures:
    """Detection and description of one image of a size known at export.

    Args:
        dense: C x h x w, the dense map.
        repeatability: H x W, the fine map.
        level: 3 x H x W, the pixels (any offset).
        nfeatures: K.
    """
    height, width = repeatability.shape
    channels, h, w = dense.shape
    origin = cell_origin("opencv")
    rows = dense.permute(1, 2, 0).reshape(h * w, channels)
    score = fine_scores(rows, h, w, repeatability, origin)

    inner = score[FINE_BORDER : height - FINE_BORDER, FINE_BORDER : width - FINE_BORDER]
    ranked = (inner * fine_maxima(score).float()).reshape(1, -1)
    values, found = torch.topk(ranked, CANDIDATES * nfeatures, dim=1)
    candidates = found[0]
    inner_width = width - 2 * FINE_BORDER
    y = torch.div(candidates, inner_width, rounding_mode="floor")
    x = candidates - y * inner_width + FINE_BORDER
    y = y + FINE_BORDER
    pixels, _, real = refine_fine(score, level, x, y)
    ranked = reliable(values[0] * real.float(), rows, h, w, (pixels - origin) / STRIDE)
    scores, best = torch.topk(ranked[None], nfeatures, dim=1)  # 0 where there is no maximum

    count = (scores > 0).float().sum(dim=1)
    row = torch.minimum(torch.arange(nfeatures).float(), (count - 1).clamp(min=0)).long()
    pixels = pixels[best[0][row]]
    return FixedFeatures(pixels, scores[0], describe(rows, h, w, (pixels - origin) / STRIDE))


class Frames(nn.Module):
    """Detection and description of a batch of images of one size.

    Args:
        net: a network with a fine head.
        nfeatures: K, keypoints of every image.
        half: compute the trunk and the fine head's first layers in half precision, as GPUs are fast at;
            positions hang on what comes after, which stays in single precision.
    """

    def __init__(self, net: D2Net, nfeatures: int, *, half: bool) -> None:
        super().__init__()
        self.net, self.nfeatures = net, nfeatures
        if half:
            net.halve()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """B x K x 2 keypoints, B x K scores and B times K x C descriptors of B x H x W x 3 uint8 BGR images.

        Descriptors are an output an image, so that each is an array of its own: memory for those of all,
        above 32 MB, comes anew from the system for every batch, which takes longer than the batch.
        """
        levels = preprocess(images)
        dense, repeatability = self.net(levels)

        def features(dense: Tensor, repeatability: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return fixed_features(dense, repeatability, level, self.nfeatures)

        # All images in each operation: a GPU is busy with the launches of many small ones.
        keypoints, scores, descriptors = torch.vmap(features)(dense, repeatability[:, 0], levels)
        return keypoints, scores, *descriptors.unbind()


def build_frames(
    checkpoint: Checkpoint, size: tuple[int, int], nfeatures: int, batch: int, *, half: bool
) -> ModelProto:
    """The ONNX model of `Frames`; `images` in, `keypoints`, `scores`, `descriptors_0`, ... out.

    Args:
        checkpoint: with a fine head; its network is changed if `half`.
        size: (width, height) in pixels.
        nfeatures: keypoints that an image gives.
        batch: images at a time.
        half: see `Frames`.

    Raises:
        ValueError: an argument is out of range, or the checkpoint has the paper's head.
    """
    width, height = size
    if min(size) < SMALLEST:
        raise ValueError(f"frames are {SMALLEST} x {SMALLEST} pixels at least, not {width} x {height}")
    if batch < 1:
        raise ValueError(f"a batch has at least one image, not {batch}")
    check_fixed(checkpoint, size, nfeatures)
    model = export_static(
        Frames(checkpoint.net, nfeatures, half=half),
        torch.zeros(batch, height, width, 3, dtype=torch.uint8),
        "images",
        ["keypoints", "scores", *(f"descriptors_{i}" for i in range(batch))],
    )
    helper.set_model_props(
        model, {**checkpoint.metadata, "contract": "frames", "precision": "fp16" if half else "fp32"}
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def check_fixed(checkpoint: Checkpoint, size: tuple[int, int], nfeatures: int) -> None:
    """Refuse what `fixed_features` cannot do.

    Raises:
        ValueError: too many keypoints for the size (width, height), none, or the paper's head.
    """
    width, height = size
    most = (width - 2 * FINE_BORDER) * (height - 2 * FINE_BORDER) // CANDIDATES
    if not 1 <= nfeatures <= most:
        raise ValueError(f"{width} x {height} pixels give 1 to {most} keypoints, not {nfeatures}")
    if checkpoint.net.fine is None:
        raise ValueError("only networks with a fine head give fixed numbers of keypoints, not the paper's")


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of a text such as 640x480.

    Raises:
        ValueError: it is another text.
    """
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise ValueError(f"a size is written as 640x480, not {text!r}") from None
    return width, height
