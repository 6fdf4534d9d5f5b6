"""Least squares matching: the shift and the affine warp that make a patch of image 2 most like one in 1.

Lucas & Kanade, "An iterative image registration technique", IJCAI 1981; Gruen, "Adaptive least squares
correlation", 1985; in the inverse compositional form of Baker & Matthews, "Lucas-Kanade 20 years on", IJCV
2004: what shift and warp do to the patch of image 1 is computed once.
"""

from typing import Final

import numpy as np

from ..keypoints import within
from .patches import RADIUS, Array, Grey, correlation, normalised, sample, transposed, warped, window

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


def align(
    image1: Grey, image2: Grey, points1: Array, points2: Array, maps: Array, step: float, iterations: int
) -> tuple[Array, Array]:
    """B points 2 and maps (B x 2 x 2, image 1 to image 2) moved so, or left as they were where that fails.

    Args:
        image1, image2: smoothed for the samples (`patches.smooth`).
        step: pixels of image 1 between the samples of a patch.
        iterations: each moves a match by a sample at most.
    """
    offsets, weights = window()
    begun = maps * np.float32(step)
    places = points1[:, None] + offsets * np.float32(step)
    # What of a patch lies beyond an image's edge does not count.
    size1, size2 = image1.shape[::-1], image2.shape[::-1]
    weights = weights * within(places, size1) * within(warped(points2, begun), size2)
    seen = weights.sum(1)
    weights /= np.maximum(seen, np.finfo(np.float32).tiny)[:, None]
    root = np.sqrt(weights)
    patch, contrast = normalised(sample(image1, places), weights)
    halves = np.array([(step / 2, 0), (0, step / 2)], np.float32)
    slopes = np.stack([sample(image1, places + half) - sample(image1, places - half) for half in halves], 1)
    slopes /= contrast[:, None, None]
    lever = offsets.T / np.float32(RADIUS)
    # B x 6 x S, how the patch changes with the shift and with the four numbers of the warp, in samples. What
    # a gain or an offset of its brightness explains is taken out of it.
    basis = np.concatenate([slopes, slopes[:, :1] * lever, slopes[:, 1:] * lever], 1)
    basis = (basis - basis @ weights[..., None]) * root[:, None]
    basis -= (patch * root)[:, None] * (basis @ (patch * root)[..., None])
    damping = np.diag(np.array([_SHIFT_DAMPING] * 2 + [_WARP_DAMPING] * 4, np.float32))
    solver = np.linalg.inv(basis @ transposed(basis) + damping) @ basis * root[:, None]

    moved, warps = points2, begun
    other = normalised(sample(image2, warped(moved, warps)), weights)[0]
    before = correlation(patch, other, weights)
    for _ in range(iterations):
        change = (solver @ other[..., None])[..., 0]
        shift, bend = change[:, :2], change[:, 2:].reshape(-1, 2, 2) / np.float32(RADIUS)
        shift = shift / np.maximum(1, np.linalg.norm(shift, axis=1, keepdims=True))
        warps = warps @ np.linalg.inv(np.eye(2, dtype=np.float32) + bend.clip(-_MOST_BEND, _MOST_BEND))
        moved = moved - (warps @ shift[..., None])[..., 0]
        other = normalised(sample(image2, warped(moved, warps)), weights)[0]
    after = correlation(patch, other, weights)
    good = (after > before) & (after > CORRELATION) & (seen > SEEN)
    points2, maps = points2.copy(), maps.copy()
    points2[good], maps[good] = moved[good], warps[good] / np.float32(step)
    return points2, maps
