"""Which of two images is the blurred one, and by how much.

A sharp and a blurred patch are alike at several shifts; blurred alike they are at one.
"""

from functools import cache
from typing import Final

import numpy as np

from .patches import Array, Grey, correlation, normalised, sample, smooth, warped, window

FEWEST: Final = 20
"""Matches that can tell."""
MARGIN: Final = 0.004
"""Correlation by which the patches must be more alike with one image blurred than with both."""

_ASKED: Final = 100
"""Matches at most."""
_TRIED: Final = 1.0, 2.0, 3.0
"""Blurs by which is found out whether an image is the sharper one, in samples,"""
_BLURS: Final = tuple(0.5 * 2 ** (i / 2) for i in range(9))
"""and those of which the best is taken: 0.5 to 8."""


def blur_between(
    image1: Grey, image2: Grey, steps: tuple[float, float], points1: Array, points2: Array, maps: Array
) -> float:
    """The blur that the sharper image lacks, a standard deviation in samples: image 1 above 0, image 2 below.

    Any image is more like another once it is blurred, if it is noisy. So either is blurred alone, and both
    alike: only where they differ in blur is one alone better than both.

    Args:
        steps: pixels of either image between samples.
        points1, points2, maps: of M matches, and the affine maps about them.

    Returns:
        0 where they are alike, or fewer than `FEWEST` matches tell.
    """
    if len(points1) < FEWEST:
        return 0.0
    chosen = np.linspace(0, len(points1) - 1, min(len(points1), _ASKED)).astype(np.int64)
    weights = window()[1]
    identity = np.broadcast_to(np.eye(2, dtype=np.float32), (len(chosen), 2, 2))
    places1 = warped(points1[chosen], identity * np.float32(steps[0]))
    places2 = warped(points2[chosen], maps[chosen] * np.float32(steps[0]))

    @cache
    def patches(number: int, blur: float) -> Array:
        image, places = ((image1, places1), (image2, places2))[number]
        return normalised(sample(smooth(image, steps[number], blur), places), weights)[0]

    def alike(blur1: float, blur2: float) -> float:
        return float(correlation(patches(0, blur1), patches(1, blur2), weights).clip(min=0).mean())

    for blur in _TRIED:
        both = alike(blur, blur)
        gains = alike(blur, 0) - both, alike(0, blur) - both
        if max(gains) > MARGIN:
            break
    else:
        return 0.0
    first = gains[0] > gains[1]
    found: list[float] = []
    for blur in _BLURS:
        found.append(alike(blur, 0) if first else alike(0, blur))
        if len(found) > 2 and found[-1] < found[-2]:
            break
    return (1 if first else -1) * _peak(found)


def _peak(found: list[float]) -> float:
    """The best of `_BLURS`, between which it is taken from the parabola through it and its neighbours."""
    top = int(np.argmax(found))
    if top in (0, len(found) - 1):
        return _BLURS[top]
    before, after = found[top - 1], found[top + 1]
    offset = (before - after) / (2 * (before - 2 * found[top] + after))
    return float(_BLURS[top] * 2 ** (offset / 2))
