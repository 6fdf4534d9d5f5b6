"""The recipe of many an old script: FLANN, Lowe's ratio, RANSAC, with constants nobody tuned.

A drop-in detector must do well here, where nothing is chosen for it: the constants are those of OpenCV's
tutorials, and the same for every method.
"""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np

from .methods import Extraction
from .metrics import Floats, Indices

RATIO: Final = 0.75
RANSAC_THRESHOLD: Final = 3.0
"""Pixels."""

_KD_TREE: Final[dict[str, Any]] = {"algorithm": 1, "trees": 5}
_LSH: Final[dict[str, Any]] = {"algorithm": 6, "table_number": 6, "key_size": 12, "multi_probe_level": 1}
_SEARCH: Final[dict[str, Any]] = {"checks": 50}


@dataclass(frozen=True, eq=False)
class LegacyResult:
    """What the recipe found: matches left by the ratio, inliers of RANSAC, 3 x 3 homography or None."""

    matches: int
    inliers: int
    homography: Floats | None


def run_legacy(one: Extraction, two: Extraction) -> LegacyResult:
    """Match two images' features and fit a homography, as old scripts do."""
    matches = ratio_matches(one, two)
    if len(matches) < 4:
        return LegacyResult(len(matches), 0, None)
    # OpenCV's kd-trees and samples are random.
    homography, mask = cv2.findHomography(
        one.points[matches[:, 0]], two.points[matches[:, 1]], cv2.RANSAC, RANSAC_THRESHOLD
    )
    if homography is None or mask is None:
        return LegacyResult(len(matches), 0, None)
    return LegacyResult(len(matches), int(mask.sum()), np.asarray(homography, np.float64))


def ratio_matches(one: Extraction, two: Extraction) -> Indices:
    """M x 2 indices: FLANN's two nearest, kept if the first is nearer than `RATIO` times the second."""
    if len(one.points) < 2 or len(two.points) < 2:
        return np.zeros((0, 2), np.int64)
    cv2.setRNGSeed(0)
    matcher = cv2.FlannBasedMatcher(_KD_TREE if one.norm == cv2.NORM_L2 else _LSH, _SEARCH)
    # LSH may find one neighbour or none.
    found = [pair for pair in matcher.knnMatch(one.descriptors, two.descriptors, k=2) if len(pair) == 2]
    kept = [
        (first.queryIdx, first.trainIdx)
        for first, second in found
        if first.distance < RATIO * second.distance
    ]
    return np.array(kept, np.int64).reshape(-1, 2)
