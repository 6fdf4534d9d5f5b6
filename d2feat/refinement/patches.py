"""Patches of images: discs of samples about points, under a Gaussian window, of mean 0 and length 1."""

from functools import cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Grey = npt.NDArray[Any]
"""H x W float32."""

RADIUS: Final = 10
"""Of a patch, in samples."""
BLUR: Final = 0.7
"""Standard deviation of the smoothing before patches are sampled, in samples."""

_FLAT: Final = 1e-3
"""Contrast in grey levels of what has none."""


def smooth(image: Grey, step: float, blur: float = 0.0) -> Grey:
    """An image for samples `step` pixels apart, blurred by a further standard deviation in samples."""
    return cv2.GaussianBlur(image, (0, 0), float(np.hypot(BLUR, blur)) * step)


@cache
def window() -> tuple[Array, Array]:
    """S x 2 offsets of a patch's samples from its middle, in samples, and their weights, whose sum is 1."""
    edge = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    offsets = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    squares = (offsets**2).sum(1)
    weights = np.exp(-squares / (2 * (RADIUS / 2) ** 2))[squares <= RADIUS**2]
    return offsets[squares <= RADIUS**2], weights / weights.sum()


def warped(points: Array, maps: Array) -> Array:
    """B x S x 2 places (x, y) of the samples about B points, by B x 2 x 2 maps from samples to pixels."""
    return points[:, None] + window()[0] @ transposed(maps)


def sample(image: Grey, places: Array) -> Array:
    """B x S values of an image at B x S x 2 places, bilinear."""
    x, y = (np.ascontiguousarray(places[..., axis]) for axis in (0, 1))
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.float32)


def normalised(values: Array, weights: Array) -> tuple[Array, Array]:
    """B x S values of mean 0 and length 1 in their weights (B x S, or S for all), and the B lengths."""
    centred: Array = values - (values * weights).sum(1)[:, None]
    lengths = np.sqrt((centred**2 * weights).sum(1)) + _FLAT
    return centred / lengths[:, None], lengths


def correlation(patches1: Array, patches2: Array, weights: Array) -> Array:
    """B numbers of two times B x S normalised values: 1 where they are alike."""
    return np.asarray((patches1 * patches2 * weights).sum(1))


def transposed(matrices: Array) -> Array:
    """Of each of a stack of matrices."""
    return np.swapaxes(matrices, 1, 2)
