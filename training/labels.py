"""Detection supervised by labels that the network makes for itself: which pixels shall be keypoints."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from export import head

from .objectives import TINY, Points, grid_offset, grid_windows, mean_where, patches
from .pairs import gaussian_blur

PIXELS_A_KEYPOINT: Final = 150
"""Labelled keypoints are the best, one for so many pixels: 2048 of 640 x 480."""


def best_maxima(score: Tensor) -> Tensor:
    """B x 1 x H x W bool: the best local maxima of each image, in the windows of fine detection."""
    radius = head.FINE_RADIUS
    tallest = F.max_pool2d(score, 2 * radius + 1, 1, radius)
    heights = (score * (score >= tallest)).flatten(1)
    count = max(1, heights.shape[1] // PIXELS_A_KEYPOINT)
    least = heights.topk(count, dim=1).values[:, -1:]
    return ((heights >= least) & (heights > 0)).view(score.shape)


def warped_target(score_first: Tensor, warped: Tensor, shown: Tensor, sigma: float = 0.5) -> Tensor:
    """Squared difference from the other view's keypoints, as Gaussians of height 1 (LF-Net, Ono et al. 2018).

    LF-Net's image loss (section 3.2): the other view's score is carried over, its best maxima become the
    target, and no gradient flows there. Mean over what is shown.

    Args:
        score_first: B x 1 x H x W. warped: the other view's, seen from the first. shown: B x H x W bool.
        sigma: px.
    """
    with torch.no_grad():
        peaks = best_maxima(warped * shown.unsqueeze(1)).float()
        sigmas = peaks.new_full((len(peaks),), sigma)
        target = gaussian_blur(peaks, sigmas, sigmas)
        target = target / target.amax((1, 2, 3), keepdim=True).clamp(min=TINY)
    return mean_where((score_first - target).square()[:, 0], shown)


def adaptation(score: Tensor, labels: Tensor, window: int, generator: Generator) -> Tensor:
    """Cross-entropy of "which pixel of this cell, or none, is a keypoint" (SuperPoint, DeTone et al. 2018).

    Cells of a randomly placed grid; logits log(S / (1 - S)) of their pixels, and 0 for none. The labels
    (B x 1 x H x W bool) are the best maxima of the score averaged over random homographies of the image:
    SuperPoint's homographic adaptation (section 5), made anew in every step instead of once in advance.
    """
    offset = grid_offset(window, generator)
    logits = F.pad(grid_windows(torch.logit(score, eps=1e-6), window, offset), (0, 1))
    wanted = F.pad(grid_windows(labels.float(), window, offset), (0, 1), value=0.5).argmax(2)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def evolution(score: Tensor, points: Points, good: Tensor) -> Tensor:
    """Cross-entropy of "this very pixel of its surroundings, or none": self-evolving keypoints.

    After SEKD (Song et al. 2020), whose detector learns from those of its own detections that proved
    repeatable and reliable (`good`, B x K bool: `objectives.found_again`), and in which those evolve with
    it. Each detection's window of suppression is one case: its own place is right where it is good, "none"
    elsewhere. Logits as in `adaptation`.
    """
    patch, corner = patches(torch.logit(score, eps=1e-6), points.first, head.FINE_RADIUS)
    side = 2 * head.FINE_RADIUS + 1
    place = (points.first - corner).long()
    wanted = torch.where(good, place[..., 1] * side + place[..., 0], side * side)
    entropy = F.cross_entropy(F.pad(patch, (0, 1)).flatten(0, 1), wanted.flatten(), reduction="none")
    return mean_where(entropy.view(wanted.shape), points.valid)
