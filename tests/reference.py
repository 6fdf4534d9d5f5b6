"""D2-Net literally, as the paper and the original implementation compute it: slow, large, and obvious.

Every formula is written densely, for all channels, as upstream does; nothing is shared with `export`, so
that `python -m export verify` and the tests compare two independent derivations. The fine head's
formulas (docs/how-it-works.md) are written in the same way.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Reference(NamedTuple):
    """N x 2 (x, y) keypoints in pixels of the image, N scores, N scales, N x C descriptors; unordered."""

    keypoints: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor


def trunk(images: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """VGG16 to conv4_3 (no ReLU after it), conv1_2, conv2_2 and conv3_3 after ReLU."""

    def conv(x: Tensor, n: int, dilation: int = 1) -> Tensor:
        key = f"dense_feature_extraction.model.{n}"
        return F.conv2d(
            x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=dilation, dilation=dilation
        )

    x = F.relu(conv(images, 0))
    conv1_2 = F.relu(conv(x, 2))
    x = F.max_pool2d(conv1_2, 2, 2)
    x = F.relu(conv(x, 5))
    conv2_2 = F.relu(conv(x, 7))
    x = F.max_pool2d(conv2_2, 2, 2)
    x = F.relu(conv(x, 10))
    x = F.relu(conv(x, 12))
    conv3_3 = F.relu(conv(x, 14))
    x = F.avg_pool2d(conv3_3, 2, 1)
    x = F.relu(conv(x, 17, 2))
    x = F.relu(conv(x, 19, 2))
    return conv(x, 21, 2), conv1_2, conv2_2, conv3_3


def differences(maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """First and second differences (di, dj, dii, djj, dij) of 1 x C x h x w, zero-padded, all channels."""
    channels = maps.shape[1]

    def filtered(kernel: list[list[float]]) -> Tensor:
        weight = torch.tensor(kernel, dtype=torch.float32).view(1, 1, 3, 3).expand(channels, 1, 3, 3)
        return F.conv2d(maps, weight, padding=1, groups=channels)

    return (
        filtered([[0, -0.5, 0], [0, 0, 0], [0, 0.5, 0]]),
        filtered([[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]]),
        filtered([[0, 1, 0], [0, -2, 0], [0, 1, 0]]),
        filtered([[0, 0, 0], [1, -2, 1], [0, 0, 0]]),
        filtered([[0.25, 0, -0.25], [0, 0, 0], [-0.25, 0, 0.25]]),
    )


def hard_detections(positive: Tensor) -> Tensor:
    """1 x C x h x w bool: eq. 3 and the edge test on D = max(F, 0)."""
    depth_maximum = positive == positive.max(dim=1, keepdim=True).values
    local_maximum = positive == F.max_pool2d(positive, 3, 1, 1)
    _, _, dii, djj, dij = differences(positive)
    det = dii * djj - dij * dij
    trace = dii + djj
    edge = (5 + 1) ** 2 / 5
    return depth_maximum & local_maximum & (trace * trace / det <= edge) & (det > 0)


def newton_steps(positive: Tensor) -> tuple[Tensor, Tensor]:
    """-H^-1 g for every channel and cell, as (di, dj)."""
    di, dj, dii, djj, dij = differences(positive)
    det = dii * djj - dij * dij
    inverse = djj / det, -dij / det, dii / det
    return -(inverse[0] * di + inverse[1] * dj), -(inverse[1] * di + inverse[2] * dj)


def interpolate_at(maps: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """N x C: C x h x w interpolated bilinearly at rows i and columns j, which lie in the map."""
    top, left = i.floor().long(), j.floor().long()
    bottom, right = i.ceil().long(), j.ceil().long()
    di, dj = i - top, j - left
    value = (
        maps[:, top, left] * (1 - di) * (1 - dj)
        + maps[:, top, right] * (1 - di) * dj
        + maps[:, bottom, left] * di * (1 - dj)
        + maps[:, bottom, right] * di * dj
    )
    return value.t()


def paper_level(dense: Tensor, banned: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns in cells, scores, and the h x w map of detected cells, of one level."""
    positive = F.relu(dense)
    detections = hard_detections(positive)
    if banned is not None:
        detections = detections & ~banned
    step_i, step_j = newton_steps(positive)
    _, channel, row, column = torch.nonzero(detections, as_tuple=True)
    di, dj = step_i[0, channel, row, column], step_j[0, channel, row, column]
    i, j = row + di, column + dj
    h, w = dense.shape[2:]
    kept = (di.abs() < 0.5) & (dj.abs() < 0.5) & (i >= 0) & (i <= h - 1) & (j >= 0) & (j <= w - 1)
    return i[kept], j[kept], positive[0, channel, row, column][kept], detections.any(dim=1)[0]


def fine_map(conv1_2: Tensor, conv2_2: Tensor, conv3_3: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """H x W: r = softplus(R) / (1 + softplus(R)), R = c(relu(a(conv1_2) + up(b(conv2_2) + up(d(conv3_3))))).

    Where there is no d, as in the first versions, that map is 0. Where c has four outputs, a goes by two
    pixels, and there is one `up` less: the outputs are for the upper left, upper right, lower left and lower
    right of 2 x 2 pixels.
    """

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"fine.{name}.weight"], weights[f"fine.{name}.bias"], stride, padding=1)

    def up(x: Tensor) -> Tensor:
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        i = ((torch.arange(height) - 0.5) / 2).clamp(0, x.shape[2] - 1)
        j = ((torch.arange(width) - 0.5) / 2).clamp(0, x.shape[3] - 1)
        i, j = torch.meshgrid(i, j, indexing="ij")
        return interpolate_at(x[0], i.reshape(-1), j.reshape(-1)).t().reshape(1, -1, height, width)

    half = conv(conv2_2, "b")
    if "fine.d.weight" in weights:
        half = half + up(conv(conv3_3, "d"))
    if len(weights["fine.c.bias"]) == 1:
        softplus = F.softplus(conv(F.relu(conv(conv1_2, "a") + up(half)), "c"))[0, 0]
    else:
        four = conv(F.relu(conv(conv1_2, "a", 2) + half), "c")[0]
        softplus = torch.zeros(conv1_2.shape[2:])
        for answer, (y, x) in zip(four, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
            softplus[y::2, x::2] = F.softplus(answer)
    return softplus / (1 + softplus)


def fine_level(dense: Tensor, fine: Tensor, level: Tensor, origin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns in pixels, and scores, of one level."""
    positive = F.relu(dense)
    m = positive.max()
    exponentials = torch.exp(positive / m)
    neighbourhood = 9 * F.avg_pool2d(F.pad(exponentials, (1, 1, 1, 1), value=1.0), 3, 1)
    alpha = torch.where(positive > 0, exponentials / neighbourhood, torch.zeros(()))
    winner = positive.argmax(dim=1, keepdim=True)
    score = alpha.gather(1, winner)[0]
    score = score / score.max()

    height, width = fine.shape
    h, w = dense.shape[2:]
    cell_y = ((torch.arange(height) - origin) / 4).clamp(0, h - 1)
    cell_x = ((torch.arange(width) - origin) / 4).clamp(0, w - 1)
    grid_y, grid_x = torch.meshgrid(cell_y, cell_x, indexing="ij")
    d2 = interpolate_at(score, grid_y.reshape(-1), grid_x.reshape(-1)).reshape(height, width)
    s = fine * d2.clamp(min=1e-6)

    maxima = s == F.max_pool2d(s[None, None], 7, 1, 3)[0, 0]
    maxima[:6], maxima[-6:], maxima[:, :6], maxima[:, -6:] = False, False, False, False
    _, _, dii, djj, _ = (d[0, 0] for d in differences(s[None, None]))
    maxima &= (dii < 0) | (djj < 0)
    rows, columns, scores = [], [], []
    for y, x in torch.nonzero(maxima).tolist():
        around = level[0, :, y - 6 : y + 7 : 3, x - 6 : x + 7 : 3].flatten(1)
        if not bool((around.amax(1) - around.amin(1) >= 1.0).any()):
            continue
        down, across = mean_shift(s[y - 2 : y + 3, x - 2 : x + 3])
        rows.append(y + down)
        columns.append(x + across)
        scores.append(float(s[y, x]))
    i, j, scores = torch.tensor(rows), torch.tensor(columns), torch.tensor(scores)
    length = dense[0].square().sum(dim=0, keepdim=True).sqrt()
    there = ((i - origin) / 4).clamp(0, h - 1), ((j - origin) / 4).clamp(0, w - 1)
    return i, j, scores * interpolate_at(length, *there)[:, 0]


def mean_shift(window: Tensor) -> tuple[float, float]:
    """From the middle of 5 x 5 scores to their mean place, in three steps: (rows, columns).

    Each step weighs a place by its squared score and exp(-d^2 / (2 1.5^2)), d from the mean before.
    """
    i, j = torch.meshgrid(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0), indexing="ij")
    mean_i, mean_j = torch.zeros(()), torch.zeros(())
    for _ in range(3):
        weight = window**2 * torch.exp(-((i - mean_i) ** 2 + (j - mean_j) ** 2) / (2 * 1.5**2))
        mean_i, mean_j = (weight * i).sum() / weight.sum(), (weight * j).sum() / weight.sum()
    return float(mean_i), float(mean_j)


def shrink(image: Tensor, length: int) -> Tensor:
    """... x L to ... x length: means under a triangle that is as wide as two pixels of the result; where it
    reaches over the border it sees the border's pixel. Enlarged by interpolation between pixels.
    """
    step = image.shape[-1] / length
    reach = max(1.0, step)
    result = []
    for x in range(length):
        centre = (x + 0.5) * step - 0.5
        places = torch.arange(math.floor(centre - reach), math.ceil(centre + reach) + 1)
        weights = (1 - (places - centre).abs() / reach).clamp(min=0)
        seen = image[..., places.clamp(0, image.shape[-1] - 1)]
        result.append((seen * weights).sum(-1) / weights.sum())
    return torch.stack(result, dim=-1)


@torch.no_grad()
def extract(
    image: np.ndarray,
    weights: Mapping[str, np.ndarray | Tensor],
    *,
    head: str,
    descriptor_relu: bool,
    coordinates: str = "opencv",
    scales: Sequence[float] = (1.0,),
) -> Reference:
    """Keypoints and descriptors of an H x W x 3 uint8 BGR image, by the letter; on torch's default device."""
    tensors = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in weights.items()}
    pixels = torch.tensor(image.astype(np.float32)) - torch.tensor([103.939, 116.779, 123.68])
    full = pixels.permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    origin = 3.5 if coordinates == "opencv" else 1.5
    coarser: Tensor | None = None
    banned: Tensor | None = None
    found: list[Reference] = []
    for index, rho in enumerate(scales):
        level_height, level_width = math.floor(height * rho), math.floor(width * rho)
        if head == "fine":
            level = shrink(shrink(full, level_width).mT, level_height).mT
        else:
            level = F.interpolate(full, size=(level_height, level_width), mode="bilinear", align_corners=True)
        seen = level
        if head == "fine":  # the last row and column are repeated up to whole cells of four pixels
            while seen.shape[2] % 4:
                seen = torch.cat([seen, seen[:, :, -1:]], dim=2)
            while seen.shape[3] % 4:
                seen = torch.cat([seen, seen[:, :, :, -1:]], dim=3)
        dense, *early = trunk(seen, tensors)
        if descriptor_relu:
            dense = F.relu(dense)
        h, w = dense.shape[2:]
        if head == "fine":
            fine = fine_map(*early, tensors)[:level_height, :level_width]
            y, x, scores = fine_level(dense, fine, level, origin)
            i, j = ((y - origin) / 4).clamp(0, h - 1), ((x - origin) / 4).clamp(0, w - 1)
        else:
            if coarser is not None:
                dense = dense + F.interpolate(coarser, size=(h, w), mode="bilinear", align_corners=True)
            if banned is not None:
                banned = F.interpolate(banned.float(), size=(h, w)).bool()
            i, j, scores, detected = paper_level(dense, banned)
            y, x, scores = 4 * i + origin, 4 * j + origin, scores / (index + 1)
            banned = detected[None, None] if banned is None else banned | detected[None, None]
            coarser = dense
        descriptors = F.normalize(interpolate_at(dense[0], i, j), dim=1)
        if coordinates == "upstream":
            x, y = x * (width / level_width), y * (height / level_height)
        elif head == "fine":
            x, y = (x + 0.5) * (width / level_width) - 0.5, (y + 0.5) * (height / level_height) - 0.5
        else:
            x, y = x * ((width - 1) / (level_width - 1)), y * ((height - 1) / (level_height - 1))
        keypoints = torch.stack([x, y], dim=1)
        found.append(Reference(keypoints, scores, torch.full_like(scores, 1 / rho), descriptors))
    return Reference(*(torch.cat(parts) for parts in zip(*found, strict=True)))
