"""What the matches about a match agree on: the affine map from image 1 to image 2 there.

Nothing needs to be known of the scene, the cameras or the features, and half of the matches may be wrong.
"""

from itertools import combinations
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from .patches import Array

Mask = npt.NDArray[np.bool_]

NEIGHBOURS: Final = 20
"""Matches about each that may agree with it."""
PROPOSING: Final = 8
"""The nearest of these, of which every two propose a map."""
AGREEING: Final = 5
"""Neighbours that must agree."""
APART: Final = 2.0
"""Distance in px from which on a match is a neighbour; nearer ones are the same point of another level. Of
those in a square of this size one is asked."""
TOLERANCE: Final = (2.0, 0.1)
"""Disagreement allowed in px of image 2: so much, and so much for each pixel of distance in image 1."""
REACH: Final = 20.0
"""Distance in px at which a neighbour counts half."""
LARGEST_SCALE: Final = 8.0
"""Between the images; a map that stretches any direction by more, or by less than its inverse, is none."""

_BLOCK: Final = 256
"""Matches at once, for which some 5 MB are needed."""
_EXACT: Final = {"algorithm": 4}, {"checks": -1}
"""FLANN's single kd-tree, searched to the end."""


def local_affinities(points1: Array, points2: Array) -> tuple[Array, Mask]:
    """The affine map, image 1 to image 2, about each match.

    Each two of the nearest neighbours propose the map that takes them, and the match itself, to where they
    were matched. The one that most of the neighbours agree with is fitted to these by least squares. Of
    several matches at one place the first is asked.

    Args:
        points1, points2: M x 2, (x, y) in pixels, of matches.

    Returns:
        M x 2 x 2, linear parts; and M bool, whether enough neighbours agree, and the map keeps the handedness
        and stretches no direction by more than `LARGEST_SCALE`, or less than its inverse.
    """
    count = len(points1)
    maps, believed = np.tile(np.eye(2, dtype=np.float32), (count, 1, 1)), np.zeros(count, bool)
    first, second = (np.ascontiguousarray(points, np.float32) for points in (points1, points2))
    places = np.unique(np.floor(first / APART), axis=0, return_index=True)[1]
    if len(places) <= AGREEING:
        return maps, believed
    index, search = _EXACT
    tree = cv2.flann_Index(first[places], index)  # type: ignore[attr-defined]
    # More than are wanted, for up to nine lie too near.
    nearest, squares = tree.knnSearch(first, min(len(places), NEIGHBOURS + 9), params=search)
    nearest = places[nearest]
    for start in range(0, count, _BLOCK):
        part = slice(start, start + _BLOCK)
        away = squares[part] >= APART**2
        order = np.argsort(~away, axis=1, kind="stable")[:, :NEIGHBOURS]
        about = np.take_along_axis(nearest[part], order, 1)
        offsets1, offsets2 = (points[about] - points[part, None] for points in (first, second))
        maps[part], believed[part] = _agreed(offsets1, offsets2, np.take_along_axis(away, order, 1))
    return maps, believed


def _agreed(offsets1: Array, offsets2: Array, away: Mask) -> tuple[Array, Mask]:
    """The maps of B matches, of B x K x 2 offsets of their neighbours, of which those that are away count."""
    lengths = np.linalg.norm(offsets1, axis=-1)
    pairs = np.array(list(combinations(range(min(PROPOSING, lengths.shape[1])), 2)))
    base = offsets1[:, pairs]  # B x T x 2 x 2, an offset a row
    determinants = base[..., 0, 0] * base[..., 1, 1] - base[..., 0, 1] * base[..., 1, 0]
    spanning = (np.abs(determinants) > 0.1 * lengths[:, pairs].prod(-1)) & away[:, pairs].all(-1)
    adjugates = np.stack([base[..., 1, 1], -base[..., 0, 1], -base[..., 1, 0], base[..., 0, 0]], -1)
    inverses = adjugates.reshape(base.shape) / np.where(spanning, determinants, 1)[..., None, None]
    proposed = inverses @ offsets2[:, pairs]  # transposed, as offsets are rows

    squares = ((offsets1[:, None] @ proposed - offsets2[:, None]) ** 2).sum(-1)
    allowed = (TOLERANCE[0] + TOLERANCE[1] * lengths) ** 2
    support = (np.maximum(0, 1 - squares / allowed[:, None]) * away[:, None]).sum(-1)
    best, rows = np.where(spanning, support, -1).argmax(1), np.arange(len(lengths))
    agree = (squares[rows, best] < allowed) & away

    weights = agree / (1 + (lengths / REACH) ** 2)
    weighted = (offsets1 * weights[..., None]).transpose(0, 2, 1)
    normal, right = weighted @ offsets1, weighted @ offsets2
    # Drawn a little to what was proposed, or offsets along one line would leave the map open.
    drawn = (1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6)[:, None, None] * np.eye(2)
    fitted = np.linalg.solve(normal + drawn, right + drawn @ proposed[rows, best]).transpose(0, 2, 1)
    most, least = np.linalg.svd(fitted, compute_uv=False).T
    believed = (agree.sum(1) >= AGREEING) & spanning[rows, best] & (np.linalg.det(fitted) > 0)
    believed &= (most < LARGEST_SCALE) & (least > 1 / LARGEST_SCALE)
    return fitted.astype(np.float32), believed
