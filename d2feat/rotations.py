"""Descriptors that do not depend on how the image is turned: pooled over rotated copies of it.

A D2-Net is upright unless it was trained on turned scenes, as ours were: turned by much more than the pairs
that it saw, a place gets another descriptor. Here every keypoint is described in copies of the image turned
by multiples of 360 / n degrees, and each channel keeps its largest positive value (max-pooling over a group
of transformations, as in Laptev et al., "TI-Pooling", CVPR 2016). Turning the image by a multiple of 360 / n
only permutes the copies, so the pooled descriptor stays as it is. There is still one descriptor a keypoint,
so that ratio tests mean what they did.

The copies give an orientation as well. The network does not respond to a place alike whichever way up it is,
and so the copies' responses, as vectors in the directions of their rotations, have a sum that turns with it.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .features import Floats
from .images import Image


def pool_rotations(
    describe: Callable[[Image, Floats], Floats], image: Image, points: Floats, upright: Floats, count: int
) -> tuple[Floats, Floats]:
    """M x C unit descriptors of M points, pooled over `count` rotations, and M angles.

    Angles are in degrees, clockwise as `cv2.KeyPoint` counts them: the direction of the sum over the copies
    of their positive responses; how exact they are: docs/how-it-works.md, "Turned images".

    Args:
        describe: gives the M x C unit descriptors of points in an image.
        image: H x W x 3.
        points: M x 3, (x, y, scale) in pixels.
        upright: M x C, the descriptors of `points` in the image as it is.
        count: number of evenly spaced rotations, the upright one among them.
    """
    pooled = np.maximum(upright, 0)
    direction = pooled.sum(axis=1).astype(np.complex128)
    for turn in range(1, count):
        turned, matrix = rotate(image, 360 * turn / count)
        moved = np.column_stack([points[:, :2] @ matrix[:, :2].T + matrix[:, 2], points[:, 2]])
        response = np.maximum(describe(turned, moved.astype(np.float32)), 0)
        direction += response.sum(axis=1) * np.exp(2j * np.pi * turn / count)
        np.maximum(pooled, response, out=pooled)
    norm = np.linalg.norm(pooled, axis=1, keepdims=True)
    unit: Floats = pooled / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit, to_angles(direction)


def to_angles(directions: npt.NDArray[np.complex128]) -> Floats:
    """Directions x + iy as `KeyPoint.angle` has them, degrees from 0 up to but not including 360."""
    angles = (np.angle(directions, deg=True) % 360).astype(np.float32)
    return angles % np.float32(360)  # rounding makes 360 of what is hardly below 0


def rotate(image: Image, degrees: float) -> tuple[Image, npt.NDArray[np.float64]]:
    """The image turned counter-clockwise about its centre, and the 2 x 3 map of its pixels.

    The canvas holds all of it; the corners are filled by reflection, which the network finds less strange
    than a black edge. Quarter turns move whole pixels.
    """
    height, width = image.shape[:2]
    middle = (width - 1) / 2, (height - 1) / 2
    matrix: Any = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    if degrees % 90 == 0:
        matrix = np.rint(matrix * 2) / 2
        turned = np.rot90(image, round(degrees / 90))
        size = turned.shape[1::-1]
    else:
        reach = np.abs(matrix[:, :2]) @ (width, height)
        size = tuple(np.ceil(reach).astype(int).tolist())
    matrix[:, 2] += (np.array(size) - 1) / 2 - middle
    if degrees % 90 == 0:
        return np.ascontiguousarray(turned), matrix
    canvas = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return canvas, matrix  # type: ignore[return-value]
