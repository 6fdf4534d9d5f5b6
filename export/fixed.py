"""Fixed numbers of keypoints of images of one size: no lists as long as it happens, and no loops.

OpenCV's engine wants it so (`export.opencv`), and what makes a GPU fast does, too: CUDA graphs, TensorRT and
batches (`Frames`). A candidate for every block of pixels, and TopK, take the place of the list of detections;
network, head and descriptors are those of `export.graph`, at one scale.
"""

from typing import Final, NamedTuple

import onnx
import torch
import torch.nn.functional as F
from onnx import ModelProto, helper
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .geometry import STRIDE, cell_origin
from .graph import export_static
from .head import (
    FINE_BORDER,
    FINE_RADIUS,
    d2_score_map,
    describe,
    fine_maxima,
    fine_scores,
    lengths_of,
    refine_fine,
    reliable,
)
from .trunk import D2Net, preprocess

BLOCK: Final = FINE_RADIUS + 1
"""Pixels: a square of this side holds one maximum at most, or equal ones, of which the last is taken."""

TOGETHER: Final = 1 << 15
"""Cells whose lengths are computed at a time: in single precision their descriptors take 64 MB."""

SMALLEST: Final = 32
"""Pixels of the shorter side of `Frames`."""

LARGEST: Final = 1 << 28
"""Pixels that a batch has at most: of so many the first layer alone answers with 32 GB in half precision."""


class FixedFeatures(NamedTuple):
    """K keypoints of each of B images, best first; where there are fewer, the last one is repeated, scored 0.

    Attributes:
        pixels: B x K x 2, (x, y). scores: B x K. descriptors: B x K x C, of unit length.
    """

    pixels: Tensor
    scores: Tensor
    descriptors: Tensor


def fixed_features(dense: Tensor, repeatability: Tensor, levels: Tensor, nfeatures: int) -> FixedFeatures:
    """Detection and description of images of a size known at export.

    From the candidates on, the images are lists of places one below the other, so that an operation does for
    all: a GPU is busy with the launches of many small ones.

    Args:
        dense: B x C x h x w, the dense maps.
        repeatability: B x 1 x H x W, the fine maps.
        levels: B x 3 x H x W, the pixels (any offset).
        nfeatures: K.
    """
    batch, _, height, width = repeatability.shape
    channels, h, w = dense.shape[1:]
    origin = cell_origin("opencv")
    score = fine_scores(torch.vmap(d2_score_map)(dense), repeatability, origin)
    x, y, found = block_maxima(score)
    blocks = len(found) // batch
    image = torch.arange(batch).repeat_interleave(blocks)
    rows = dense.permute(0, 2, 3, 1).reshape(batch * h * w, channels)
    tall = levels.transpose(0, 1).reshape(3, batch * height, width)
    pixels, values, real = refine_fine(score.reshape(-1, width), tall, x, y, image * height)
    values = values * (real & found).float()
    parts = [rows[first : first + TOGETHER] for first in range(0, batch * h * w, TOGETHER)]
    lengths = torch.cat([lengths_of(part) for part in parts])
    ranked = reliable(values, lengths, h, w, (pixels - origin) / STRIDE, image * h)
    most = min(nfeatures, blocks)
    scores, best = torch.topk(ranked.view(batch, blocks), most, dim=1)  # 0 where there is no maximum
    scores = F.pad(scores, (0, nfeatures - most))

    count = (scores > 0).float().sum(dim=1, keepdim=True)
    row = torch.minimum(torch.arange(nfeatures).float(), (count - 1).clamp(min=0)).long()
    image = torch.arange(batch).repeat_interleave(nfeatures)
    pixels = pixels.index_select(0, image * blocks + best.gather(1, row).view(-1))
    descriptors = describe(rows, h, w, (pixels - origin) / STRIDE, image * h)
    return FixedFeatures(
        pixels.view(batch, nfeatures, 2), scores, descriptors.view(batch, nfeatures, channels)
    )


def block_maxima(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum of every block of `BLOCK` x `BLOCK` pixels, those of B images one below the other.

    Whole pixels x and y of the image, and whether the block has a maximum; if not, they are its first pixel.

    Args:
        score: B x H x W, of which `fine_maxima` are taken.
    """
    maxima = fine_maxima(score)
    down, across = maxima.shape[1:]
    # A maximum has the number of its place in its block, from 1 on; other pixels, and blocks without, have 0.
    number = (torch.arange(down) % BLOCK).unsqueeze(1) * BLOCK + torch.arange(across) % BLOCK + 1
    found = F.max_pool2d((maxima.float() * number)[:, None], BLOCK, ceil_mode=True).reshape(-1)
    place = (found - 1).clamp(min=0)
    row = torch.floor(place / BLOCK)
    columns = -(-across // BLOCK)
    block = torch.arange(len(found)) % (len(found) // len(score))
    x = (place - BLOCK * row + (block % columns * BLOCK + FINE_BORDER)).long()
    # Not by // : as ONNX that compares booleans, which OpenCV's engine does not.
    y = (row + ((block - block % columns) / columns * BLOCK + FINE_BORDER)).long()
    return x, y, found > 0


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
        found = fixed_features(dense, repeatability, levels, self.nfeatures)
        return found.pixels, found.scores, *found.descriptors.unbind()


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
    if batch * width * height > LARGEST:
        raise ValueError(
            f"{batch} images of {width} x {height} are more than the {LARGEST} pixels that a batch may have"
        )
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
    if not 1 <= nfeatures <= width * height:
        raise ValueError(f"{width} x {height} pixels give 1 to {width * height} keypoints, not {nfeatures}")
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
