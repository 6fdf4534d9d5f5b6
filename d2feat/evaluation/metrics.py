"""The figures of merit, as functions of arrays.

Points are N x 2, (x, y) in pixels, pixel centres at integers. Sizes are (width, height) in pixels. `H` is
3 x 3 and takes points of image 1 to points of image 2 (x2 ~ H x1). Matches are M x 2 indices, (of image 1,
of image 2). Errors are distances in pixels of image 2.

Sources: Mikolajczyk & Schmid, "A performance evaluation of local descriptors", PAMI 2005; Mikolajczyk et al.,
"A comparison of affine region detectors", IJCV 2005; DeTone et al., "SuperPoint", CVPRW 2018; Dusmanu et al.,
"D2-Net", CVPR 2019, section 5.1; Sarlin et al., "SuperGlue", CVPR 2020.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..keypoints import within

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Size = tuple[int, int]

THRESHOLDS: Final = tuple(range(1, 11))
"""Of the matching accuracy, px (D2-Net, section 5.1)."""

CORRECT: Final = 3.0
"""Error within which a match or a repeated keypoint counts as correct, px (SuperPoint)."""

CORNER_THRESHOLDS: Final = (3, 5, 10)
"""Of the mean corner error, px (SuperGlue)."""

_BLOCK_ELEMENTS: Final = 1 << 22


def project(points: npt.ArrayLike, H: npt.ArrayLike) -> Floats:
    """N x 2 points mapped by `H`; NaN where the third coordinate is not positive: not in front (`facing`)."""
    mapped, depth = _mapped(points, H)
    return np.where(depth[:, None] > 0, mapped, np.nan)


def facing(H: npt.ArrayLike, points1: npt.ArrayLike, points2: npt.ArrayLike) -> Floats:
    """`H` or its negative, so that what both cameras see has a positive third coordinate, there and back.

    A homography keeps the sign of the third coordinate for all that both cameras see, but which sign that is
    cannot be read off the matrix: any pixel, (0, 0) too, may lie beyond the horizon, and images may be
    mirrored. So the keypoints of both images vote.
    """
    matrix = np.asarray(H, np.float64)
    depths = _mapped(points1, matrix)[1], _mapped(points2, np.linalg.inv(matrix))[1]
    votes = sum(float(np.sign(depth).sum()) for depth in depths)
    return np.asarray(matrix * np.sign(votes or matrix[2, 2] or 1.0))


def match_errors(matched1: npt.ArrayLike, matched2: npt.ArrayLike, H: npt.ArrayLike) -> Floats:
    """M errors of M x 2 matching points: from point 1 mapped by `H` to point 2; infinite if not in front."""
    first, second = (np.asarray(points, np.float64).reshape(-1, 2) for points in (matched1, matched2))
    errors = np.hypot(*(project(first, facing(H, first, second)) - second).T)
    return np.where(np.isnan(errors), np.inf, errors)


def matching_accuracy(errors: Floats, thresholds: Sequence[float] = THRESHOLDS) -> Floats:
    """Share of a pair's matches whose error is at most each threshold; 0 of no matches.

    Its mean over pairs is the mean matching accuracy, MMA (D2-Net, section 5.1).
    """
    if len(errors) == 0:
        return np.zeros(len(thresholds))
    return np.array([(errors <= threshold).mean() for threshold in thresholds])


def localisation(errors: Floats, threshold: float = CORRECT) -> float:
    """Median error, px, of the correct matches, those within the threshold; NaN if there are none.

    After SuperPoint's localisation error, which is the mean.
    """
    correct = errors[errors <= threshold]
    return float(np.median(correct)) if len(correct) else float("nan")


def in_common(
    points1: npt.ArrayLike, points2: npt.ArrayLike, H: npt.ArrayLike, size1: Size, size2: Size
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which points of each image lie, mapped by the truth, within the other: N and M booleans."""
    forth = facing(H, points1, points2)
    return (
        within(project(points1, forth), size2),
        within(project(points2, np.linalg.inv(forth)), size1),
    )


def matching_score(
    points1: npt.ArrayLike,
    points2: npt.ArrayLike,
    matches: Indices,
    errors: Floats,
    H: npt.ArrayLike,
    size1: Size,
    size2: Size,
    threshold: float = CORRECT,
) -> float:
    """Correct matches over the smaller number of keypoints in the common area (Mikolajczyk et al. 2005).

    `errors` are the matches', see `match_errors`. Unlike the accuracy it falls when a method gives few
    matches; 0 without keypoints in common.
    """
    common1, common2 = in_common(points1, points2, H, size1, size2)
    fewer = int(min(common1.sum(), common2.sum()))
    correct = errors <= threshold
    correct &= common1[matches[:, 0]] & common2[matches[:, 1]]
    return float(correct.sum() / fewer) if fewer else 0.0


def repeatability(
    points1: npt.ArrayLike,
    points2: npt.ArrayLike,
    H: npt.ArrayLike,
    size1: Size,
    size2: Size,
    threshold: float = CORRECT,
) -> float:
    """Share of keypoints in the common area that are found again, whatever their descriptors.

    Found again are pairs of keypoints that are each other's nearest in image 2 and within the threshold, so
    no keypoint counts twice; their number is divided by the smaller number of keypoints in the common area
    (Mikolajczyk et al. 2005, with distance in place of overlap, as SuperPoint does). 0 without any. Keypoints
    of one place, as SIFT has them for several orientations, are one.
    """
    points1, points2 = (
        np.unique(np.asarray(points, np.float64).reshape(-1, 2), axis=0) for points in (points1, points2)
    )
    common1, common2 = in_common(points1, points2, H, size1, size2)
    here = project(points1, facing(H, points1, points2))[common1]
    there = points2[common2]
    if len(here) == 0 or len(there) == 0:
        return 0.0
    nearest, distance, reverse = _nearest(here, there)
    repeated = (reverse[nearest] == np.arange(len(here))) & (distance <= threshold)
    return float(repeated.sum() / min(len(here), len(there)))


def distinct(points: npt.ArrayLike, radius: float = 1.0) -> int:
    """How many of N x 2 points are left when each takes out the later ones within the radius, px.

    A keypoint found at several levels of a pyramid, or for several orientations, is one place, and two
    matches of it are not two witnesses of a geometry.
    """
    values = np.asarray(points, np.float64).reshape(-1, 2)
    count = 0
    while len(values):
        count += 1
        values = values[np.hypot(*(values - values[0]).T) > radius]
    return count


def corner_error(estimated: npt.ArrayLike | None, truth: npt.ArrayLike, size1: Size) -> float:
    """Mean distance, px, of the four corner pixels of image 1 mapped by both homographies (SuperPoint).

    Infinite where no homography was found, where either sends a corner to infinity, or where they disagree on
    which corners lie on the same side of the horizon; on which side that is does not count.
    """
    if estimated is None:
        return float("inf")
    right, bottom = size1[0] - 1, size1[1] - 1
    corners = np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], np.float64)
    (one, depth), (two, true_depth) = _mapped(corners, estimated), _mapped(corners, truth)
    if len(set(np.sign(depth * true_depth))) > 1:
        return float("inf")
    with np.errstate(invalid="ignore"):
        error = np.hypot(*(one - two).T).mean()
    return float(error) if np.isfinite(error) else float("inf")


def homography_accuracy(
    corner_errors: npt.ArrayLike, thresholds: Sequence[float] = CORNER_THRESHOLDS
) -> Floats:
    """Share of pairs whose mean corner error is at most each threshold (SuperPoint)."""
    return matching_accuracy(np.asarray(corner_errors, np.float64), thresholds)


def area_under_curve(corner_errors: npt.ArrayLike, thresholds: Sequence[float] = CORNER_THRESHOLDS) -> Floats:
    """Area under the cumulative curve of errors up to each threshold, over the threshold: 0 to 1 (SuperGlue).

    The curve joins (0, 0) and (i-th smallest error, i / n) by straight lines and is level from the last
    error below the threshold on, as in SuperGlue's evaluation.
    """
    errors = np.sort(np.asarray(corner_errors, np.float64))
    share = np.arange(len(errors) + 1) / max(1, len(errors))
    errors = np.concatenate([[0.0], errors])
    areas = []
    for threshold in thresholds:
        below = int(np.searchsorted(errors, threshold))  # 0, the first entry, is always below
        x = np.append(errors[:below], threshold)
        y = np.append(share[:below], share[below - 1])
        areas.append(float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / threshold))
    return np.array(areas)


def _mapped(points: npt.ArrayLike, H: npt.ArrayLike) -> tuple[Floats, Floats]:
    """N x 2 points mapped by `H`, on either side of the horizon, and their N third coordinates."""
    values, matrix = np.asarray(points, np.float64).reshape(-1, 2), np.asarray(H, np.float64)
    mapped = values @ matrix[:, :2].T + matrix[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return mapped[:, :2] / mapped[:, 2:], mapped[:, 2]


def _nearest(here: Floats, there: Floats) -> tuple[Indices, Floats, Indices]:
    """For each point here its nearest there and the distance; for each there its nearest here."""
    nearest, distance = np.empty(len(here), np.int64), np.empty(len(here))
    reverse, reverse_distance = np.zeros(len(there), np.int64), np.full(len(there), np.inf)
    block = max(1, _BLOCK_ELEMENTS // len(there))
    for start in range(0, len(here), block):
        part = slice(start, min(start + block, len(here)))
        away = np.hypot(here[part, None, 0] - there[:, 0], here[part, None, 1] - there[:, 1])
        nearest[part], distance[part] = away.argmin(1), away.min(1)
        better = away.min(0) < reverse_distance
        reverse[better] = away.argmin(0)[better] + start
        reverse_distance[better] = away.min(0)[better]
    return nearest, distance, reverse
