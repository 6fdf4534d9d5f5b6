"""The objective's terms, each a small function of maps and positions, with its source.

Shapes: B pairs; dense maps B x C x h x w (conv4_3); scores B x 1 x H x W, in (0, 1], the detection score
at full resolution; points B x K x 2, (x, y) in pixels; `valid` B x K bool. Every term is a mean, finite
for any finite input and 0 where nothing is valid.
"""

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from export import head
from export.geometry import STRIDE, cell_origin

from .pairs import Correspondence, sample

ORIGIN = cell_origin("opencv")
TINY = 1e-8


def mean_where(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`, 0 if that is nowhere."""
    weight = valid.float()
    return (values * weight).sum() / weight.sum().clamp(min=1)


# Scores


def soft_scores(dense: Tensor) -> Tensor:
    """D2-Net's soft detection s, B x 1 x h x w, summing to 1 over the image (Dusmanu et al., eqs. 4-7).

    Divisions are guarded: an all-zero map scores 0 everywhere, where upstream has 0/0.
    """
    positive = F.relu(dense.float())
    exponentials = torch.exp(positive / positive.amax((1, 2, 3), keepdim=True).clamp(min=TINY))
    neighbours = 9 * F.avg_pool2d(F.pad(exponentials, (1, 1, 1, 1), value=1.0), 3, 1)
    alpha = exponentials / neighbours
    beta = positive / positive.amax(1, keepdim=True).clamp(min=TINY)
    gamma = (alpha * beta).amax(1, keepdim=True)
    return gamma / gamma.sum((2, 3), keepdim=True).clamp(min=TINY)


def fine_scores(dense: Tensor, repeatability: Tensor) -> Tensor:
    """The score that fine detection takes maxima of (`export.head.detect_fine`), B x 1 x H x W."""
    with dense.device:
        alphas: Tensor = torch.vmap(head.d2_score_map)(dense.float())
    return head.fine_scores(alphas, repeatability, ORIGIN).unsqueeze(1)


# Positions


class Points(NamedTuple):
    """B x K x 2 pixel positions in the first view, in the second, and which are valid (B x K)."""

    first: Tensor
    second: Tensor
    valid: Tensor

    def joined(self, other: "Points") -> "Points":
        """These points and those of `other`."""
        return Points(*(torch.cat(both, 1) for both in zip(self, other, strict=True)))


def random_points(truth: Correspondence, count: int, generator: Generator) -> Points:
    """K points drawn evenly from what is shown of the first view, at sub-pixel positions."""
    width = truth.shown.shape[2]
    weight = truth.shown.flatten(1) + 1e-12
    at = torch.multinomial(weight, count, generator=generator)
    draw = torch.rand((*at.shape, 2), generator=generator, device=at.device)
    first = torch.stack([at % width, at // width], dim=2) + draw - 0.5
    return Points(first, *truth.at(first))


def window_peaks(
    score: Tensor, truth: Correspondence, window: int, count: int, generator: Generator
) -> Points:
    """Up to K detections of the first view: highest pixels of the cells of a randomly placed grid.

    Cells are drawn without replacement, by the root of their score: mostly those that would be detected.
    """
    height, width = score.shape[2:]
    offset = grid_offset(window, generator)
    cropped = score.detach()[:, :, offset[0] :, offset[1] :]
    tallest, place = F.max_pool2d(cropped, window, return_indices=True)
    tallest, place = tallest.flatten(1), place.flatten(1)
    y = place // cropped.shape[3] + offset[0]
    x = place % cropped.shape[3] + offset[1]
    margin = STRIDE
    inner = (x >= margin) & (x < width - margin) & (y >= margin) & (y < height - margin)
    at = y * width + x
    allowed = truth.shown.flatten(1).gather(1, at) & inner
    # A network gone bad scores NaN: the trainer finds out by the loss, not multinomial by an exception.
    weight = torch.nan_to_num(allowed * tallest.clamp(min=TINY).sqrt(), nan=0.0, posinf=0.0) + 1e-12
    drawn = torch.multinomial(weight, min(count, weight.shape[1]), generator=generator)
    at = at.gather(1, drawn)
    first = torch.stack([at % width, at // width], dim=2).float()
    second = truth.positions.flatten(1, 2).gather(1, at.unsqueeze(2).expand(-1, -1, 2))
    return Points(first, second, allowed.gather(1, drawn))


def nearest_peaks(score: Tensor, points: Tensor, radius: int) -> Tensor:
    """B x K x 2: the highest pixel of B x 1 x H x W scores within `radius` (square) of each point."""
    patch, corner = patches(score.detach(), points, radius)
    best = patch.argmax(2)
    side = 2 * radius + 1
    return corner + torch.stack([best % side, best // side], dim=2).float()


def patches(maps: Tensor, points: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """B x K x side^2 pixels around the rounded points, and B x K x 2: the patch's first pixel (clamped)."""
    height, width = maps.shape[2:]
    side = 2 * radius + 1
    last = points.new_tensor([width - side, height - side])
    corner = torch.minimum((points.detach().round() - radius).clamp(min=0), last)
    steps = torch.arange(side, device=maps.device)
    x = corner[..., 0].long().unsqueeze(2) + steps
    y = corner[..., 1].long().unsqueeze(2) + steps
    index = (y.unsqueeze(3) * width + x.unsqueeze(2)).flatten(1)
    gathered = maps[:, 0].flatten(1).gather(1, index)
    return gathered.view(*points.shape[:2], side * side), corner


def grid_offset(window: int, generator: Generator) -> tuple[int, int]:
    """Where a grid of windows begins: by the generator's seed, so that nothing waits for the device."""
    draw = random.Random(generator.initial_seed())
    return draw.randrange(window), draw.randrange(window)


def grid_windows(maps: Tensor, window: int, offset: tuple[int, int]) -> Tensor:
    """B x N x window^2: the pixels of B x 1 x H x W maps by whole windows of a grid that begins at (y, x)."""
    top, left = offset
    return F.unfold(maps[:, :, top:, left:], window, stride=window).mT


# Description


def descriptors(dense: Tensor, points: Tensor) -> Tensor:
    """B x K x C unit descriptors at sub-cell positions, as `export.head.describe` samples them."""
    return F.normalize(sample(dense.float(), (points - ORIGIN) / STRIDE).mT, dim=2)


def near_cells(dense: Tensor, points: Tensor, radius: float) -> Tensor:
    """B x K x (h w) bool: cells whose centre is within `radius` cells of a point, row-major."""
    h, w = dense.shape[2:]
    cell = (points - ORIGIN) / STRIDE
    dx = torch.arange(w, device=dense.device) - cell[..., :1]
    dy = torch.arange(h, device=dense.device) - cell[..., 1:]
    return (dy.square().unsqueeze(3) + dx.square().unsqueeze(2) <= radius * radius).flatten(2)


def info_nce(
    dense_first: Tensor,
    dense_second: Tensor,
    points: Points,
    scene: Tensor,
    temperature: float,
    radius: float,
) -> tuple[Tensor, Tensor]:
    """Loss of every point, B x K, and B x K bool: whether it is nearer to its match than to any negative.

    InfoNCE (van den Oord et al. 2018) over positions: the positive is interpolated at the true sub-cell
    place; negatives are all cells of the second view beyond `radius` cells of it, and all cells of another
    image of the batch, unless that is of the same `scene` (B). Similarities are computed in the dense maps'
    own precision.
    """
    anchors = descriptors(dense_first, points.first)
    positive = (anchors * descriptors(dense_second, points.second)).sum(2)
    cells = F.normalize(dense_second.float(), dim=1).flatten(2).to(dense_second.dtype)
    anchors = anchors.to(dense_second.dtype)
    near = near_cells(dense_second, points.second, radius)
    own = (anchors @ cells).float().masked_fill(near, -torch.inf)
    alike = (scene == scene.roll(1)).view(-1, 1, 1)
    other = (anchors @ cells.roll(1, 0)).float().masked_fill(alike, -torch.inf)
    logits = torch.cat([positive.unsqueeze(2), own, other], dim=2) / temperature
    return torch.logsumexp(logits, 2) - logits[..., 0], positive > own.amax(2)


def triplet(
    dense_first: Tensor,
    dense_second: Tensor,
    points: Points,
    radius: float,
    margin: float = 1.0,
) -> Tensor:
    """The paper's loss: triplet margin ranking weighted by soft detection (Dusmanu et al., eqs. 8-13).

    p = |d1 - d2|; n = the smaller distance to the hardest in-image negatives of either side, outside a
    safe radius; mean of max(0, margin + p^2 - n^2) weighted by s1 s2.
    """
    one, two = descriptors(dense_first, points.first), descriptors(dense_second, points.second)
    positive = (one * two).sum(2)

    def hardest(anchor: Tensor, dense: Tensor, place: Tensor) -> Tensor:
        cells = F.normalize(dense.float(), dim=1).flatten(2)
        return (anchor @ cells).masked_fill(near_cells(dense, place, radius), -1.0).amax(2)

    negative = torch.maximum(
        hardest(one, dense_second, points.second), hardest(two, dense_first, points.first)
    )
    # Unit vectors: squared distance = 2 - 2 cosine.
    ranking = F.relu(margin + 2 * negative - 2 * positive)
    cell_one, cell_two = (points.first - ORIGIN) / STRIDE, (points.second - ORIGIN) / STRIDE
    weight = (
        sample(soft_scores(dense_first), cell_one)[:, 0] * sample(soft_scores(dense_second), cell_two)[:, 0]
    )
    weight = weight * points.valid
    return (weight * ranking).sum() / weight.sum().clamp(min=1e-12)


def peaked_scores(maps: Tensor, dilation: int) -> Tensor:
    """B x 1 x h x w: the largest over channels of peakiness in space times across channels.

    ASLFeat's score (Luo et al. 2020, section 3.3), in place of D2-Net's ratio to the maximum:
    softplus(y - mean of its 3x3 neighbourhood, dilated) softplus(y - mean over channels). Of a single
    channel the second factor is left out.
    """
    channels = maps.shape[1]
    kernel = maps.new_full((channels, 1, 3, 3), 1 / 9)
    padded = F.pad(maps, (dilation,) * 4, mode="replicate")
    peaked = F.softplus(maps - F.conv2d(padded, kernel, dilation=dilation, groups=channels))
    if channels > 1:
        peaked = peaked * F.softplus(maps - maps.mean(1, keepdim=True))
    return peaked.amax(1, keepdim=True)


def multilevel(
    loss: Tensor, scores: tuple[Tensor, Tensor], denses: tuple[Tensor, Tensor], points: Points
) -> Tensor:
    """The match loss (B x K) where both views detect (ASLFeat, sections 3.3 and 3.4).

    Detection is the weighted sum of the peakiness of the fine score, whose logarithm is taken for the
    channel, and of the dense map: ASLFeat's first and last levels, with its weights 1 and 3 and dilations 3
    and 1. Weights are normalised in each image, so that detections move to where matching succeeds.
    """

    def detection(score: Tensor, dense: Tensor, at: Tensor) -> Tensor:
        fine = sample(peaked_scores(score.clamp(min=TINY).log(), 3), at)[:, 0]
        coarse = sample(peaked_scores(dense.float(), 1), (at - ORIGIN) / STRIDE)[:, 0]
        return (fine + 3 * coarse) / 4

    weight = detection(scores[0], denses[0], points.first) * detection(scores[1], denses[1], points.second)
    weight = weight * points.valid
    weighted = (weight * loss).sum(1) / weight.sum(1).clamp(min=TINY)
    return mean_where(weighted, points.valid.any(1))


# Detection


def repeatability(score_first: Tensor, warped: Tensor, shown: Tensor, window: int) -> Tensor:
    """1 - cosine of the two score maps over windows (R2D2, Revaud et al. 2019, eq. 2).

    `warped` is the second view's score seen from the first; windows not wholly shown do not count.
    """
    one = F.unfold(score_first, window, stride=window // 2)
    two = F.unfold(warped, window, stride=window // 2)
    valid = F.unfold(shown.float().unsqueeze(1), window, stride=window // 2).amin(1) > 0.5
    return mean_where(1 - F.cosine_similarity(one, two, dim=1, eps=TINY), valid)


def peakiness(score: Tensor, window: int) -> Tensor:
    """1 - mean of (maximum - mean) over windows (R2D2, eq. 3)."""
    top = F.max_pool2d(score, window, stride=window // 2)
    return 1 - (top - F.avg_pool2d(score, window, stride=window // 2)).mean()


def coincidence(
    score_first: Tensor,
    warped: Tensor,
    shown: Tensor,
    window: int,
    sharpness: float,
    tolerance: float,
    generator: Generator,
) -> Tensor:
    """-log of the chance that both views put a window's keypoint at the same place.

    In every cell of a randomly placed grid a keypoint is drawn from softmax(sharpness log S), as DISK
    does (Tyszkiewicz et al. 2020, section 3.1); the expected Gaussian agreement exp(-d^2/2 tolerance^2) of
    the two views' draws is computed in closed form instead of by policy gradient. It is 1 only where both
    maps are peaks and the peaks agree, so no separate peakiness term is needed. Bounded, so that windows
    without structure do not dominate.

    Args:
        score_first, warped, shown: see `repeatability`. window, tolerance: px.
    """
    offset = grid_offset(window, generator)
    one, two = (
        torch.softmax(sharpness * grid_windows(score.clamp(min=TINY).log(), window, offset), dim=2)
        for score in (score_first, warped)
    )
    place = torch.arange(window, device=warped.device, dtype=warped.dtype)
    gauss = torch.exp(-0.5 * ((place.view(-1, 1) - place) / tolerance) ** 2)
    agreement = (one @ torch.kron(gauss, gauss) * two).sum(2)
    valid = grid_windows(shown.float().unsqueeze(1), window, offset).amin(2) > 0.5
    floor = 0.05
    return mean_where(-torch.log((agreement + floor) / (1 + floor)), valid)


def reprojection(
    score_first: Tensor,
    score_second: Tensor,
    points: Points,
    truth: Correspondence,
    reach: float = 3.0,
) -> Tensor:
    """Distance, px, of differentiable keypoints that belong together (ALIKED, Zhao et al. 2023, eq. 12).

    A keypoint is the `head.centroid` about a detection, as it will be found; the first view's is carried over
    and compared with the second's about the highest pixel there. Pairs apart by more than `reach` do not
    belong together.
    """
    one = centroids(score_first, points.first)
    target, known = truth.at(one)
    two = centroids(score_second, nearest_peaks(score_second, points.second, head.FINE_RADIUS))
    distance = (target - two).square().sum(2).add(1e-6).sqrt()
    return mean_where(distance, points.valid & known & (distance.detach() < reach))


def centroids(score: Tensor, points: Tensor) -> Tensor:
    """B x K x 2: where the score about each point is centred (`head.centroid`)."""
    patch, corner = patches(score, points, head.CENTROID_RADIUS)
    steps = head.centroid(patch.movedim(2, 0))
    return corner + head.CENTROID_RADIUS + torch.stack(steps, dim=2)


def found_again(score_second: Tensor, points: Points, matched: Tensor, within: float) -> Tensor:
    """B x K bool: `matched`, and the second view's detection lies `within` so many px of the true place."""
    peak = nearest_peaks(score_second, points.second, head.FINE_RADIUS)
    return matched & ((peak - points.second).square().sum(2) <= within**2)


def matchability(
    score_first: Tensor, score_second: Tensor, points: Points, matched: Tensor, within: float
) -> Tensor:
    """Cross-entropy between a detection's score and whether it would give a correct match.

    After R2D2's reliability (section 3.2), with the outcome itself (`found_again`) as target. So the
    best-scored detections are those that match.
    """
    target = found_again(score_second, points, matched, within).float()
    score = sample(score_first, points.first)[:, 0].clamp(1e-4, 1 - 1e-4)
    entropy = -(target * score.log() + (1 - target) * (1 - score).log())
    return mean_where(entropy, points.valid)
