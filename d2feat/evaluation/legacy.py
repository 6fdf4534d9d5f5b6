"""The recipe of many an old script: FLANN, Lowe's ratio, RANSAC within 3 px, with constants nobody tuned.

A drop-in detector must do well here, where nothing is chosen for it: the constants are those of OpenCV's
tutorials, and the same for every method.
"""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .fitting import Fit, fit_homographies
from .methods import Extraction, matched_points
from .metrics import Indices

RATIO: Final = 0.75

_KD_TREE: Final[dict[str, Any]] = {"algorithm": 1, "trees": 5}
_LSH: Final[dict[str, Any]] = {"algorithm": 6, "table_number": 6, "key_size": 12, "multi_probe_level": 1}
_SEARCH: Final[dict[str, Any]] = {"checks": 50}


@dataclass(frozen=True, eq=False)
class LegacyResult:
    """What the recipe found.

    Attributes:
        points: M x 2 float32, the places in image 1 of the matches that the ratio left.
        fits: those of `fitting` to these matches.
    """

    points: npt.NDArray[np.float32]
    fits: list[Fit]


def run_legacy(one: Extraction, two: Extraction) -> LegacyResult:
    """Match two images' features and fit homographies, as old scripts do."""
    matched1, matched2 = matched_points(one, two, ratio_matches(one, two))
    return LegacyResult(matched1, fit_homographies(matched1, matched2, cv2.RANSAC))


def ratio_matches(one: Extraction, two: Extraction) -> Indices:
    """M x 2 indices: FLANN's two nearest, kept if the first is nearer than `RATIO` times the second.

    FLANN's trees are random; OpenCV's generator is seeded so that they are the same at every call.
    """
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
