"""Positions of matches to some hundredths of a pixel, by the pixels of both images.

A detector places a keypoint without a look at the other image, to a third of a pixel. Of a match both are
known: here its second point is moved to where the patch about it, under an affine warp and any gain and
offset of its brightness, is most like the patch about the first. This is least squares matching (Lucas &
Kanade, "An iterative image registration technique", IJCAI 1981; Gruen, "Adaptive least squares correlation",
1985) in the inverse compositional form (Baker & Matthews, "Lucas-Kanade 20 years on", IJCV 2004): first in
patches of 40 px, then of 20. The warp begins as the matches about it say (`affinities`).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .affinities import local_affinities
from .errors import InputError
from .images import as_image
from .keypoints import read_keypoints

Array = npt.NDArray[np.float32]


RADIUS: Final = 10
"""Of a patch, in samples."""
BLUR: Final = 0.7
"""Standard deviation of the smoothing before patches are sampled, in samples."""
PASSES: Final = ((2.0, 4), (1.0, 3))
"""Pixels between the samples of a patch, and iterations, which move the match by a sample each at most."""
CORRELATION: Final = 0.7
"""Of the patches in the end, up to which the match stays where it is."""
SEEN: Final = 0.6
"""Share of a patch, by weight, that must lie in both images."""

_SHIFT_DAMPING: Final = 1e-3
"""Against running along a straight edge; the energy of a patch is 1."""
_WARP_DAMPING: Final = 2e-2
"""Against deformation at the patch's rim, which shifts less than the middle does."""
_MOST_BEND: Final = 0.3
"""Change of the warp in one iteration."""
_FLAT: Final = 1e-3
"""Contrast in grey levels of what has none."""
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
    usable = np.flatnonzero(_inside(points1, greys[0]) & _inside(points2, greys[1]))
    maps, believed = local_affinities(points1[usable], points2[usable])
    if chosen is not None:
        believed &= chosen[usable]
    usable, maps = usable[believed], maps[believed]
    # Patches are compared at the resolution of the image that shows the place smaller.
    octaves = np.rint(np.log2(np.linalg.det(maps)) / 2)
    for octave in np.unique(octaves):
        rows = usable[octaves == octave]
        moved, warps = refined[rows], maps[octaves == octave]
        for step, iterations in PASSES:
            coarser = step * 2.0 ** max(0.0, -octave), step * 2.0 ** max(0.0, octave)
            smooth = [
                cv2.GaussianBlur(grey, (0, 0), BLUR * by) for grey, by in zip(greys, coarser, strict=True)
            ]
            for start in range(0, len(rows), _BLOCK):
                part = slice(start, start + _BLOCK)
                ends = points1[rows[part]], moved[part]
                moved[part], warps[part] = _align(
                    smooth[0], smooth[1], *ends, warps[part], coarser[0], iterations
                )
        refined[rows] = moved
    return refined


def _align(
    image1: npt.NDArray[Any],
    image2: npt.NDArray[Any],
    points1: Array,
    points2: Array,
    maps: Array,
    step: float,
    iterations: int,
) -> tuple[Array, Array]:
    """B points 2 and maps (B x 2 x 2) that make the patches most alike, or as they were.

    `step` is in pixels of image 1; all else within is in samples of the patch about point 1.
    """
    offsets, window = _window()
    begun = maps * np.float32(step)
    places = points1[:, None] + offsets * np.float32(step)
    # What of a patch lies beyond an image's edge does not count.
    weights = window * _inside(places, image1) * _inside(points2[:, None] + offsets @ _turned(begun), image2)
    seen = weights.sum(1)
    weights /= np.maximum(seen, np.finfo(np.float32).tiny)[:, None]
    root = np.sqrt(weights)
    patch, contrast = _normalised(_sample(image1, places), weights)
    halves = np.array([(step / 2, 0), (0, step / 2)], np.float32)
    slopes = np.stack([_sample(image1, places + half) - _sample(image1, places - half) for half in halves], 1)
    slopes /= contrast[:, None, None]
    lever = offsets.T / np.float32(RADIUS)
    # B x 6 x S, how the patch changes with the shift and with the four numbers of the warp; what a gain or an
    # offset of its brightness explains is taken out of it.
    basis = np.concatenate([slopes, slopes[:, :1] * lever, slopes[:, 1:] * lever], 1)
    basis = (basis - basis @ weights[..., None]) * root[:, None]
    basis -= (patch * root)[:, None] * (basis @ (patch * root)[..., None])
    damping = np.diag(np.array([_SHIFT_DAMPING] * 2 + [_WARP_DAMPING] * 4, np.float32))
    solver = np.linalg.inv(basis @ _turned(basis) + damping) @ basis * root[:, None]

    moved, warps = points2, begun
    other = _normalised(_sample(image2, moved[:, None] + offsets @ _turned(warps)), weights)[0]
    before = (patch * other * weights).sum(1)
    for _ in range(iterations):
        change = (solver @ other[..., None])[..., 0]
        shift, bend = change[:, :2], change[:, 2:].reshape(-1, 2, 2) / np.float32(RADIUS)
        shift = shift / np.maximum(1, np.linalg.norm(shift, axis=1, keepdims=True))  # at most a sample
        warps = warps @ np.linalg.inv(np.eye(2, dtype=np.float32) + bend.clip(-_MOST_BEND, _MOST_BEND))
        moved = moved - (warps @ shift[..., None])[..., 0]
        other = _normalised(_sample(image2, moved[:, None] + offsets @ _turned(warps)), weights)[0]
    after = (patch * other * weights).sum(1)
    good = (after > before) & (after > CORRELATION) & (seen > SEEN)
    points2, maps = points2.copy(), maps.copy()
    points2[good], maps[good] = moved[good], warps[good] / np.float32(step)
    return points2, maps


@cache
def _window() -> tuple[Array, Array]:
    """S x 2 offsets of a patch's samples from its middle, and their weights, whose sum is 1."""
    edge = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    offsets = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    squares = (offsets**2).sum(1)
    weights = np.exp(-squares / (2 * (RADIUS / 2) ** 2))[squares <= RADIUS**2]
    return offsets[squares <= RADIUS**2], weights / weights.sum()


def _sample(image: npt.NDArray[Any], places: Array) -> Array:
    """B x S values of an image at B x S x 2 places (x, y) in pixels, bilinear."""
    x, y = (np.ascontiguousarray(places[..., axis]) for axis in (0, 1))
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.float32)


def _normalised(patches: Array, weights: Array) -> tuple[Array, Array]:
    """B x S patches of mean 0 and of length 1 in their weights, and the B lengths they had."""
    centred: Array = patches - (patches * weights).sum(1)[:, None]
    lengths = np.sqrt((centred**2 * weights).sum(1)) + _FLAT
    return centred / lengths[:, None], lengths


def _turned(matrices: Array) -> Array:
    return np.swapaxes(matrices, 1, 2)


def _inside(places: Array, image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which places (x, y), the last axis, lie on an image's pixels."""
    limit = np.array(image.shape[::-1], np.float32) - 0.5
    return np.asarray(((places >= -0.5) & (places <= limit)).all(-1))  # NaN compares false


def _grey(image: Any) -> Array:
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
