"""Refinement of matches: `refine` for what programs hold, `refine_points` for arrays."""

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..images import as_image
from ..keypoints import read_keypoints, within
from .affinities import local_affinities
from .alignment import align
from .patches import Array, Grey, smooth
from .sharpness import blur_between

COARSE: Final = 2.0, 4
FINE: Final = 1.0, 3
"""Of either pass: pixels between a patch's samples, and iterations, which move by a sample each at most."""

_ROUNDS: Final = 3
"""How often the blur is estimated: better aligned it is seen better."""
_SETTLED: Final = 0.1
"""Change of the blur, in samples, that is none."""
_BLOCK: Final = 128
"""Matches at once: their patches fit into a processor's cache."""
_LARGEST: Final = 32766
"""Edge of an image that `cv2.remap` takes, px."""


def refine(
    image1: Any,
    keypoints1: Sequence[cv2.KeyPoint] | npt.NDArray[np.floating[Any]],
    image2: Any,
    keypoints2: Sequence[cv2.KeyPoint] | npt.NDArray[np.floating[Any]],
    matches: Sequence[cv2.DMatch] | npt.NDArray[np.integer[Any]] | None = None,
) -> tuple[Array, Array]:
    """The positions of matches in both images, those in image 2 refined; of any features, not d2feat's alone.

    For `cv2.findHomography`, `cv2.findEssentialMat`, `cv2.triangulatePoints` and their like. A wrong match
    stays wrong. One that too few of its neighbours agree with, or whose patches differ, stays where it is,
    and so do all of fewer than six matches. None moves by more than a dozen pixels of the coarser image.

    Args:
        image1, image2: as `detectAndCompute` takes them.
        keypoints1, keypoints2: of these images, or N x 2 arrays of (x, y) in pixels.
        matches: `cv2.DMatch` objects, or M x 2 indices of keypoints 1 and 2; as the matcher gave them, or
            what a robust estimator left of them. None: keypoints 1 and 2 match one by one.

    Returns:
        Two M x 2 float32 arrays in the order of the matches, (x, y) in pixels of image 1 and of image 2,
        pixel centres at integers.

    Raises:
        InputError: an image is none or larger than 32766 px, or a match is not of these keypoints.

    >>> src = np.float32([kp1[m.queryIdx].pt for m in good])         # doctest: +SKIP
    >>> dst = np.float32([kp2[m.trainIdx].pt for m in good])         # doctest: +SKIP
    >>> src, dst = d2feat.refine(left, src, right, dst)              # doctest: +SKIP
    >>> H, inliers = cv2.findHomography(src, dst, cv2.RANSAC, 3.0)   # doctest: +SKIP
    """
    positions = _positions(keypoints1), _positions(keypoints2)
    if matches is None:
        if len(positions[0]) != len(positions[1]):
            raise InputError(
                f"{len(positions[0])} and {len(positions[1])} keypoints do not match one by one: give matches"
            )
        return positions[0], refine_points(image1, image2, *positions)
    indices = _indices(matches)
    for number, (points, of) in enumerate(zip(positions, indices.T, strict=True), 1):
        wrong = of[(of < 0) | (of >= len(points))]
        if len(wrong):
            raise InputError(
                f"a match is of keypoint {wrong[0]} of image {number}, which has {len(points)}; "
                "are images and keypoints in the order in which they were matched?"
            )
    points1, points2 = positions[0][indices[:, 0]], positions[1][indices[:, 1]]
    return points1, refine_points(image1, image2, points1, points2)


def refine_points(
    image1: Any,
    image2: Any,
    points1: Array,
    points2: Array,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Array:
    """What `refine` makes of M x 2 points 2, which match points 1; of those of M booleans, where given."""
    greys = _grey(image1), _grey(image2)
    refined = points2.copy()
    sizes = [grey.shape[::-1] for grey in greys]
    usable = np.flatnonzero(within(points1, sizes[0]) & within(points2, sizes[1]))
    maps, believed = local_affinities(points1[usable], points2[usable])
    if chosen is not None:
        believed &= chosen[usable]
    usable, maps = usable[believed], maps[believed]
    # Patches are compared at the resolution of the image that shows the place smaller.
    octaves = np.rint(np.log2(np.linalg.det(maps)) / 2)
    for octave in np.unique(octaves):
        rows = usable[octaves == octave]
        steps = 2.0 ** max(0.0, -octave), 2.0 ** max(0.0, octave)
        refined[rows] = _refine_alike(greys, steps, points1[rows], points2[rows], maps[octaves == octave])
    return refined


def _refine_alike(
    greys: tuple[Grey, Grey], steps: tuple[float, float], points1: Array, points2: Array, maps: Array
) -> Array:
    """Points 2 of matches that are of one resolution, whose pixels are so many of either image."""

    def aligned(
        points: Array, warps: Array, samples: float, iterations: int, blur: float
    ) -> tuple[Array, Array]:
        points, warps = points.copy(), warps.copy()
        image1, image2 = (
            smooth(grey, step * samples, max(0.0, lacking) / samples)
            for grey, step, lacking in zip(greys, steps, (blur, -blur), strict=True)
        )
        for start in range(0, len(points), _BLOCK):
            part = slice(start, start + _BLOCK)
            points[part], warps[part] = align(
                image1, image2, points1[part], points[part], warps[part], samples * steps[0], iterations
            )
        return points, warps

    blur = 0.0
    moved, warps = aligned(points2, maps, *COARSE, blur)
    for _ in range(_ROUNDS):
        found = blur_between(*greys, steps, points1, moved, warps)
        if abs(found - blur) < _SETTLED:
            break
        blur = found
        moved, warps = aligned(points2, maps, *COARSE, blur)
    return aligned(moved, warps, *FINE, blur)[0]


def _grey(image: Any) -> Grey:
    grey = cv2.cvtColor(as_image(image), cv2.COLOR_BGR2GRAY).astype(np.float32)
    if max(grey.shape) > _LARGEST:
        raise InputError(f"matches are refined in images of at most {_LARGEST} px, not {grey.shape[::-1]}")
    return grey


def _positions(keypoints: Any) -> Array:
    """N x 2, of KeyPoint objects or an array, N x 1 x 2 as OpenCV has points, too."""
    if not isinstance(keypoints, np.ndarray) or keypoints.dtype == object:
        return read_keypoints(keypoints)[:, :2]
    if keypoints.size == 0:
        return np.zeros((0, 2), np.float32)
    if keypoints.dtype.kind not in "fiu" or keypoints.shape not in (
        (len(keypoints), 2),
        (len(keypoints), 1, 2),
    ):
        raise InputError(
            "keypoints must be cv2.KeyPoint objects or an N x 2 array of numbers, "
            f"not {keypoints.dtype} of shape {keypoints.shape}"
        )
    with np.errstate(over="ignore"):
        return keypoints.reshape(-1, 2).astype(np.float32)


def _indices(matches: Any) -> npt.NDArray[np.int64]:
    """M x 2, of DMatch objects or an array."""
    if not isinstance(matches, np.ndarray) or matches.dtype == object:
        try:
            pairs = [(match.queryIdx, match.trainIdx) for match in matches]
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"matches must be cv2.DMatch objects, or an M x 2 array of indices ({error}); of the lists "
                "that knnMatch gives take the first of each"
            ) from None
        return np.array(pairs, np.int64).reshape(-1, 2)
    if matches.size == 0:
        return np.zeros((0, 2), np.int64)
    if matches.ndim != 2 or matches.shape[1] != 2 or matches.dtype.kind not in "iu":
        raise InputError(
            "matches must be cv2.DMatch objects, or an M x 2 array of indices, "
            f"not {matches.dtype} of shape {matches.shape}"
        )
    return np.asarray(matches, np.int64)
