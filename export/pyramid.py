"""One level of the image pyramid: the body of the exported graph's loop. Levels go from coarse to fine.

Fine head: every level is an image of its own, made smaller by antialiased linear interpolation; what it finds
keeps its own map and its own score. So a scene of twice the size has at half scale the features it had before
(as R2D2 and ASLFeat have it).

The paper's head (section 3.3): the dense map of a level is its own plus the resized *summed* map of the level
before; cells that a coarser level already detected are banned; scores are divided by the level's number.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .geometry import STRIDE, Coordinates, cell_origin
from .head import FINE_BORDER, Detections, describe, detect_fine, detect_paper


class Level(NamedTuple):
    """What one level yields.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the input image, best first.
        scores: N float32.
        scales: N float32, 1 / rho.
        descriptors: N x C float32, of unit length.
        point_descriptors: M x C float32, of the given points.
        point_here: M bool, whether this is the level whose scale is nearest to the point's.
    """

    keypoints: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor
    point_descriptors: Tensor
    point_here: Tensor


class _DetectAndDescribe(nn.Module):
    """What both heads do with their detections.

    Args:
        coordinates: geometry of the keypoints, see `export.geometry`.
    """

    border: int = 1
    """Pixels by which keypoints are below the level's size; after it there may be repeated rows."""

    def __init__(self, coordinates: Coordinates = "opencv") -> None:
        super().__init__()
        self.upstream = coordinates == "upstream"
        self.origin = cell_origin(coordinates)

    def _level(
        self,
        rows: Tensor,
        h: int,
        w: int,
        found: Detections,
        factor: Tensor,
        shift: Tensor,
        index: Tensor,
        pyramid: Tensor,
        level_size: Tensor,
        max_keypoints: Tensor,
        points: Tensor,
    ) -> Level:
        """The best detections and the points, described; pixel p is `factor` p + `shift` of the image."""
        inside = (found.pixels <= level_size - self.border).all(dim=1)
        kept = torch.nonzero(inside).squeeze(1)
        best = kept[best_first(found.scores[kept], max_keypoints)]
        scales = pyramid.float().reciprocal()
        nearest = (torch.log(points[:, 2:]) - torch.log(scales)).abs().argmin(dim=1)
        point_cells = ((points[:, :2] - shift) / factor - self.origin) / STRIDE
        scores = found.scores[best]
        return Level(
            found.pixels[best] * factor + shift,
            scores,
            scales[index] * torch.ones_like(scores),
            describe(rows, h, w, found.cells[best]),
            describe(rows, h, w, point_cells),
            nearest == index,
        )


class FineLevel(_DetectAndDescribe):
    """Detection and description at one level with the fine head, as a module to export."""

    border = FINE_BORDER

    def forward(
        self,
        cells: Tensor,
        repeatability: Tensor,
        level: Tensor,
        index: Tensor,
        pyramid: Tensor,
        level_size: Tensor,
        image_size: Tensor,
        max_keypoints: Tensor,
        points: Tensor,
    ) -> Level:
        """Keypoints and descriptors of level `index` of `pyramid`.

        Args:
            cells: h x w x C, the level's dense map.
            repeatability: 1 x 1 x H' x W', its fine map.
            level: 1 x 3 x H' x W', its pixels, the last ones repeated if it is very small.
            index: int64 scalar.
            pyramid: L float64, the levels' sizes relative to the image, ascending.
            level_size, image_size: 2 int64, (width, height).
            max_keypoints: int64 scalar; at most so many of the best are described, all if negative.
            points: M x 3 float32, (x, y, scale) in pixels of the image, to be described.
        """
        h, w, channels = cells.shape
        rows = cells.reshape(h * w, channels)
        found = detect_fine(rows, h, w, repeatability, level.squeeze(0), self.origin)
        factor = image_size / level_size
        # Half pixels: a pixel of the level covers whole areas of the image.
        shift = torch.zeros_like(factor) if self.upstream else (factor - 1) / 2
        return self._level(
            rows, h, w, found, factor, shift, index, pyramid, level_size, max_keypoints, points
        )


class PaperLevel(_DetectAndDescribe):
    """Detection and description at one level with the paper's head, as a module to export."""

    def forward(
        self,
        cells: Tensor,
        banned: Tensor,
        index: Tensor,
        pyramid: Tensor,
        level_size: Tensor,
        image_size: Tensor,
        max_keypoints: Tensor,
        points: Tensor,
    ) -> tuple[Tensor, Level]:
        """1 x 1 x h x w float, 1 at cells detected so far, and what level `index` of `pyramid` yields.

        Args:
            cells: h x w x C, the summed dense map.
            banned: 1 x 1 x h' x w' float, 1 at cells banned at the level before.
            index, pyramid, level_size, image_size, max_keypoints, points: as for `FineLevel`.
        """
        h, w, channels = cells.shape
        rows = cells.reshape(h * w, channels)
        banned = resize_nearest(banned[0, 0], h, w)
        found, detected = detect_paper(rows, h, w, banned > 0, self.origin)
        found = found._replace(scores=found.scores / (index + 1))
        if self.upstream:
            factor = image_size / level_size
        else:  # the level's corners are the image's
            factor = (image_size - 1).clamp(min=1) / (level_size - 1).clamp(min=1)
        shift = torch.zeros_like(factor)
        level = self._level(
            rows, h, w, found, factor, shift, index, pyramid, level_size, max_keypoints, points
        )
        return torch.maximum(banned, detected.float())[None, None], level


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
