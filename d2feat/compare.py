"""Match two images with one method and say how well that went: features, inliers, error, time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .evaluation.metrics import corner_error
from .matching import match_indices

Matrix = npt.NDArray[np.float64]

HOMOGRAPHY_THRESHOLD: Final = 3.0
"""Distance in pixels within which a match agrees with a homography."""

FUNDAMENTAL_THRESHOLD: Final = 1.0
"""Distance in pixels from its epipolar line within which a match agrees with a fundamental matrix."""

CONFIDENCE: Final = 0.9999
ITERATIONS: Final = 10_000

_CURVED: Final = 1.5
"""How many times the homography's inliers the fundamental matrix needs to be called the better model."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A geometric model of M matches.

    Attributes:
        matrix: 3 x 3, from image 1 to image 2; None if there are too few matches for any.
        inliers: M bool, the matches that agree with it.
    """

    matrix: Matrix | None
    inliers: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of inliers."""
        return int(self.inliers.sum())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two images matched by one method.

    Attributes:
        method: its name, for tables and pictures.
        features: number of features in image 1 and in image 2.
        points1, points2: M x 2 float32, (x, y) in pixels, the matched keypoints in image 1 and in image 2.
        homography, fundamental: robust estimates from the matches.
        corner_error: of the homography in pixels, see `corner_error`; None without a known homography.
        detection_seconds: wall time of detection and description, both images together.
        matching_seconds: wall time of matching.
    """

    method: str
    features: tuple[int, int]
    points1: npt.NDArray[np.float32]
    points2: npt.NDArray[np.float32]
    homography: Estimate
    fundamental: Estimate
    corner_error: float | None
    detection_seconds: float
    matching_seconds: float

    @property
    def matches(self) -> int:
        """Number of mutual nearest neighbours."""
        return len(self.points1)

    @property
    def planar(self) -> bool:
        """Whether a homography explains the matches: a flat or distant scene, or a turning camera."""
        return len(self.fundamental) <= _CURVED * len(self.homography)

    @property
    def inliers(self) -> npt.NDArray[np.bool_]:
        """M bool, the inliers of the model that explains the matches."""
        return self.homography.inliers if self.planar else self.fundamental.inliers


def compare(
    method: str,
    detector: Any,
    image1: npt.NDArray[np.uint8],
    image2: npt.NDArray[np.uint8],
    true_homography: Matrix | None = None,
) -> Comparison:
    """Match two images; every method gets the same matcher and the same estimators.

    Args:
        method: name of the method.
        detector: a `D2Feature`, a `cv2.SIFT`, or another with float descriptors.
        image1, image2: H x W x 3 uint8 BGR, or H x W.
        true_homography: 3 x 3, from pixels of image 1 to pixels of image 2, if it is known.
    """
    start = time.perf_counter()
    keypoints1, descriptors1 = detector.detectAndCompute(image1, None)
    keypoints2, descriptors2 = detector.detectAndCompute(image2, None)
    detected = time.perf_counter()
    matches, _ = match_indices(descriptors1, descriptors2)
    matched = time.perf_counter()
    points1 = _positions(keypoints1)[matches[:, 0]]
    points2 = _positions(keypoints2)[matches[:, 1]]
    homography = estimate_homography(points1, points2)
    error = None
    if true_homography is not None:
        error = corner_error(homography.matrix, true_homography, (image1.shape[1], image1.shape[0]))
    return Comparison(
        method,
        (len(keypoints1), len(keypoints2)),
        points1,
        points2,
        homography,
        estimate_fundamental(points1, points2),
        error,
        detected - start,
        matched - detected,
    )


def estimate_homography(points1: npt.NDArray[np.float32], points2: npt.NDArray[np.float32]) -> Estimate:
    """Homography that maps the M x 2 `points1` to `points2`.

    MAGSAC++ with `HOMOGRAPHY_THRESHOLD` finds it and its inliers; least squares on these polish it.
    """

    def find() -> Any:
        return cv2.findHomography(
            points1,
            points2,
            cv2.USAC_MAGSAC,
            HOMOGRAPHY_THRESHOLD,
            maxIters=ITERATIONS,
            confidence=CONFIDENCE,
        )

    found = _estimate(find, len(points1), minimum=4)
    if found.matrix is None or len(found) < 4:
        return found
    polished, _ = cv2.findHomography(points1[found.inliers], points2[found.inliers], 0)
    return found if polished is None else Estimate(polished.astype(np.float64), found.inliers)


def estimate_fundamental(points1: npt.NDArray[np.float32], points2: npt.NDArray[np.float32]) -> Estimate:
    """Fundamental matrix of the M x 2 `points1` and `points2`, by MAGSAC++ within `FUNDAMENTAL_THRESHOLD`."""

    def find() -> Any:
        return cv2.findFundamentalMat(
            points1, points2, cv2.USAC_MAGSAC, FUNDAMENTAL_THRESHOLD, CONFIDENCE, ITERATIONS
        )

    return _estimate(find, len(points1), minimum=8)


def _positions(keypoints: Sequence[cv2.KeyPoint]) -> npt.NDArray[np.float32]:
    return np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)


def _estimate(find: Callable[[], Any], count: int, minimum: int) -> Estimate:
    nothing = Estimate(None, np.zeros(count, bool))
    if count < minimum:
        return nothing
    try:
        matrix, inliers = find()
    except cv2.error:  # OpenCV's estimators give up in this way, too, when the points allow no model
        return nothing
    if matrix is None or matrix.shape != (3, 3) or inliers is None:
        return nothing
    return Estimate(matrix, inliers.ravel() > 0)
