"""Mutual nearest neighbours of two sets of descriptors, by matrix products."""

from numbers import Real
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import InputError

BLOCK_ELEMENTS: Final = 1 << 24
"""Similarities held at once (64 MB), however large the sets."""


_LARGEST_MEAN: Final = 1e6
"""Beyond it a mean is not taken away: values so large may overflow once moved and squared."""


def match(
    descriptors1: Any,
    descriptors2: Any,
    *,
    ratio: float | None = None,
    maxDistance: float | None = None,
    crossCheck: bool = True,
) -> tuple[cv2.DMatch, ...]:
    """Match descriptors by L2 distance, like `cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)` and much faster.

    Args:
        descriptors1: N x C, the query set, floating point; None, as detectors say "no features", is empty.
        descriptors2: M x C, the train set.
        ratio: keep a match only if its distance is below `ratio` times that to the second nearest of the
            train set (Lowe 2004, section 7.1); 0.8 is usual.
        maxDistance: keep a match only if its distance is at most this. Unit descriptors are 0 to 2 apart.
        crossCheck: keep a match only if each is the other's nearest.

    Returns:
        `cv2.DMatch` objects by queryIdx, as `cv2.drawMatches` takes them.

    Raises:
        InputError: the arrays are not N x C and M x C of numbers, or the options are out of range.
    """
    indices, distances = match_indices(
        descriptors1, descriptors2, ratio=ratio, maxDistance=maxDistance, crossCheck=crossCheck
    )
    pairs = zip(*indices.T.tolist(), distances.tolist(), strict=True)
    return tuple(cv2.DMatch(query_row, train_row, 0, apart) for query_row, train_row, apart in pairs)


def match_indices(
    descriptors1: Any,
    descriptors2: Any,
    *,
    ratio: float | None = None,
    maxDistance: float | None = None,
    crossCheck: bool = True,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What `match` finds, as arrays: M x 2 rows of the two sets, by those of the first, and M distances."""
    query = _as_descriptors(descriptors1, "descriptors1")
    train = _as_descriptors(descriptors2, "descriptors2")
    if ratio is not None and not (isinstance(ratio, Real) and 0 < ratio <= 1):
        raise InputError(f"ratio must be a number in (0, 1], not {ratio!r}")
    if maxDistance is not None and not (isinstance(maxDistance, Real) and maxDistance >= 0):
        raise InputError(f"maxDistance must be a number and not negative, not {maxDistance!r}")
    if len(query) == 0 or len(train) == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    if query.shape[1] != train.shape[1]:
        raise InputError(
            f"descriptors have {query.shape[1]} and {train.shape[1]} elements; they must be alike"
        )
    nearest, second, reverse = _neighbours(query, train, ratio is not None)
    distance = _distances(query, train[nearest])
    rows = np.arange(len(query))
    kept = np.ones(len(query), bool)
    if crossCheck:
        kept &= reverse[nearest] == rows
    if ratio is not None and len(train) > 1:
        kept &= distance < ratio * _distances(query, train[second])
    if maxDistance is not None:
        kept &= distance <= maxDistance
    return np.column_stack([rows, nearest])[kept], distance[kept]


def _neighbours(
    query: npt.NDArray[np.float32], train: npt.NDArray[np.float32], want_second: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each query row its nearest and second nearest train row; for each train row its nearest query row.

    The second nearest is found only if wanted.
    """
    count, others = len(query), len(train)
    # About the mean rounding loses least; whole numbers stay such, and small or huge values as they are.
    middle = np.rint(train.mean(0))
    middle[np.abs(middle) > _LARGEST_MEAN] = 0
    query, train = query - middle, train - middle
    # |q - t|^2 = (q, |q|^2, 1) . (-2 t, 1, |t|^2): one matrix product and nothing else.
    left = np.column_stack([query, (query * query).sum(1), np.ones(count, np.float32)])
    right = np.column_stack([-2 * train, np.ones(others, np.float32), (train * train).sum(1)]).T
    nearest, second = np.empty(count, np.int64), np.zeros(count, np.int64)
    reverse, reverse_distance = np.zeros(others, np.int64), np.full(others, np.inf, np.float32)
    columns = np.arange(others)
    block = max(1, BLOCK_ELEMENTS // others)
    for start in range(0, count, block):
        part = slice(start, min(start + block, count))
        squared = left[part] @ right
        here = squared.argmin(1)
        nearest[part] = here
        there = squared.argmin(0)
        better = squared[there, columns] < reverse_distance
        reverse[better] = there[better] + start
        reverse_distance[better] = squared[there, columns][better]
        if want_second:
            squared[np.arange(len(here)), here] = np.inf
            second[part] = squared.argmin(1)
    return nearest, second, reverse


def _distances(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Distances row by row, of differences: exact, and 0 between equal rows, unlike those of products."""
    difference = a - b
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))


def _as_descriptors(descriptors: Any, name: str) -> npt.NDArray[np.float32]:
    if isinstance(descriptors, cv2.UMat):
        descriptors = descriptors.get()
    if descriptors is None:
        return np.zeros((0, 0), np.float32)
    if not isinstance(descriptors, np.ndarray) or descriptors.ndim != 2:
        shape = getattr(descriptors, "shape", type(descriptors).__name__)
        raise InputError(f"{name} must be an N x C array, not {shape}")
    if not np.issubdtype(descriptors.dtype, np.floating):
        raise InputError(
            f"{name} must be floating point, not {descriptors.dtype}: those of SIFT by .astype(np.float32); "
            "binary ones are matched by cv2.BFMatcher(cv2.NORM_HAMMING)"
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(descriptors, np.float32)
    if not np.isfinite(np.einsum("ij,ij->i", values, values)).all():
        raise InputError(f"{name} holds values that are not finite, or too large to be squared")
    return values
