"""Homographies fitted to matches, several times: robust estimators are a matter of chance.

Their samples depend on the order of the matches. Where matches are inaccurate one order may give a corner
error of 2 px and another of 5: over 40 pairs the share within 3 px varies by some .03 (standard deviation)
from this alone. So each pair is fitted in several orders, and all fits count.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from .metrics import Floats

TRIALS: Final = 10

THRESHOLD: Final = 3.0
"""Of inliers, px."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A 3 x 3 homography from image 1 to image 2, or None, and which of the matches are its inliers."""

    homography: Floats | None
    inliers: npt.NDArray[np.int64]


def fit_homographies(
    matched1: npt.NDArray[np.float32], matched2: npt.NDArray[np.float32], estimator: int
) -> list[Fit]:
    """`TRIALS` fits to M matches: in the given order, then in random ones, the same at every call.

    Args:
        matched1, matched2: M x 2, (x, y) in pixels, of image 1 and image 2.
        estimator: `cv2.RANSAC`, `cv2.USAC_MAGSAC` or another of `cv2.findHomography`, with its defaults.
    """
    none = Fit(None, np.zeros(0, np.int64))
    if len(matched1) < 4:
        return [none] * TRIALS
    random = np.random.default_rng(0)
    orders = [np.arange(len(matched1)), *(random.permutation(len(matched1)) for _ in range(TRIALS - 1))]
    fits = []
    for order in orders:
        homography, mask = cv2.findHomography(matched1[order], matched2[order], estimator, THRESHOLD)
        if homography is None or mask is None:
            fits.append(none)
        else:
            fits.append(Fit(np.asarray(homography, np.float64), np.sort(order[mask.ravel() > 0])))
    return fits
