"""One level of the image pyramid (paper, section 3.3): the body of the exported graph's loop.

Levels are taken from coarse to fine. The dense map of a level is its own map plus the resized *summed*
map of the level before; cells that a coarser level already detected are banned. With the fine head the
summed map gives the descriptors and the D2 score, the fine map is the level's own, and what is banned is
still cells: the cell about each detected pixel.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .geometry import STRIDE, Coordinates, cell_origin
from .head import describe, detect_fine, detect_paper


class Level(NamedTuple):
    """What one level yields.

    Attributes:
        banned: 1 x 1 x h x w float, 1 at cells detected so far, for the next level.
        keypoints: N x 2 float32, (x, y) in pixels of the input image, best first.
        scores: N float32, divided by the level's 1-based index.
        scales: N float32, 1 / rho.
        descriptors: N x C float32, of unit length.
        point_descriptors: M x C float32, of the given points.
        point_here: M bool, whether this is the level whose scale is nearest to the point's.
    """

    banned: Tensor
    keypoints: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor
    point_descriptors: Tensor
    point_here: Tensor


class DetectAndDescribe(nn.Module):
    """Detection and description at one level, from its summed dense map, as a module to export.

    Args:
        coordinates: geometry of the keypoints, see `export.geometry`.
    """

    def __init__(self, coordinates: Coordinates = "opencv") -> None:
        super().__init__()
        self.upstream = coordinates == "upstream"
        self.origin = cell_origin(coordinates)

    def forward(
        self,
        dense: Tensor,
        repeatability: Tensor | None,
        level: Tensor,
        banned: Tensor,
        index: Tensor,
        pyramid: Tensor,
        level_size: Tensor,
        image_size: Tensor,
        max_keypoints: Tensor,
        points: Tensor,
    ) -> Level:
        """Keypoints and descriptors of level `index` of `pyramid`.

        Args:
            dense: 1 x C x h x w, the summed dense map.
            repeatability: 1 x 1 x H' x W', the level's own fine map; None for the paper's head.
            level: 1 x 3 x H' x W', the level's pixels, padded at the end if very small.
            banned: 1 x 1 x h' x w' float, 1 at cells banned at the level before.
            index: int64 scalar.
            pyramid: L float64, the levels' sizes relative to the image, ascending.
            level_size, image_size: 2 int64, (width, height).
            max_keypoints: int64 scalar; at most so many of the best are described, all if negative.
            points: M x 3 float32, (x, y, scale) in pixels of the image, to be described.
        """
        h, w = dense.shape[2:]
        rows = dense[0].permute(1, 2, 0).reshape(h * w, dense.shape[1])
        banned = resize_nearest(banned[0, 0], h, w)
        if repeatability is None:
            found = detect_paper(rows, h, w, banned > 0, self.origin)
        else:
            found = detect_fine(rows, h, w, repeatability[0, 0], level[0], banned > 0, self.origin)
        inside = (found.pixels <= level_size - 1).all(dim=1)  # and not in the padding
        kept = torch.nonzero(inside).squeeze(1)
        best = kept[best_first(found.scores[kept], max_keypoints)]
        to_image = self._scale(image_size, level_size)
        scales = pyramid.float().reciprocal()
        nearest = (torch.log(points[:, 2:]) - torch.log(scales)).abs().argmin(dim=1)
        point_cells = (points[:, :2] / to_image - self.origin) / STRIDE
        scores = found.scores[best]
        return Level(
            torch.maximum(banned, found.detected.float())[None, None],
            found.pixels[best] * to_image,
            scores / (index + 1),
            scales[index] * torch.ones_like(scores),
            describe(rows, h, w, found.cells[best]),
            describe(rows, h, w, point_cells),
            nearest == index,
        )

    def _scale(self, image_size: Tensor, level_size: Tensor) -> Tensor:
        """Pixels of the image per pixel of the level, (x, y); the level's corners are the image's."""
        if self.upstream:
            return image_size / level_size
        return (image_size - 1).clamp(min=1) / (level_size - 1).clamp(min=1)


def resize_nearest(cell_map: Tensor, h: int, w: int) -> Tensor:
    """H' x w' to h x w: cell i takes the value of cell floor(i h'/h), in whole numbers and so exactly."""
    row = torch.arange(h) * cell_map.shape[0] // h
    column = torch.arange(w) * cell_map.shape[1] // w
    return cell_map[row][:, column]


def best_first(scores: Tensor, limit: Tensor) -> Tensor:
    """Indices of the `limit` highest scores (all if negative), highest first."""
    count = scores.shape[0]
    wanted = torch.where(limit < 0, count, limit.clamp(max=count)).item()
    torch._check(wanted <= count)  # type: ignore[no-untyped-call]  # what the exporter cannot know
    return torch.topk(scores, wanted).indices  # type: ignore[arg-type]  # int() would fix its value
