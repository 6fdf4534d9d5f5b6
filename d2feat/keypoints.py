"""Between arrays of keypoints and `cv2.KeyPoint` objects.

The fields of a d2feat KeyPoint:

- ``pt``: (x, y) in pixels of the image, pixel centres at integers, as everywhere in OpenCV.
- ``size``: diameter of the described region, 32 px times the scale. (The network sees 92 px, but what is
  near the centre counts most.)
- ``response``: the detection score; keypoints come best first.
- ``octave``: log2 of the scale, rounded: 0 at the image's own resolution, 1 at half of it, -1 at double.
- ``angle``: -1, "not applicable": D2-Net has none; with `rotations` an orientation, in degrees, that turns
  with the scene (`d2feat.rotations`).
- ``class_id``: -1.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import InputError

SIZE: Final = 32.0
"""`KeyPoint.size`, in pixels, of a keypoint of scale 1."""


def build_keypoints(
    positions: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    angles: npt.NDArray[np.float32] | None = None,
) -> tuple[cv2.KeyPoint, ...]:
    """KeyPoint objects of N x 2 positions in pixels, N scores, N scales and, if there are any, N angles."""
    x, y = positions.T.tolist() if len(positions) else ([], [])
    octaves = np.rint(np.log2(scales)).astype(np.int64).tolist()
    turned = repeat(-1.0) if angles is None else angles.tolist()
    return tuple(map(cv2.KeyPoint, x, y, (SIZE * scales).tolist(), turned, scores.tolist(), octaves))


def read_keypoints(keypoints: Iterable[Any] | None) -> npt.NDArray[np.float32]:
    """M x 3 float32, (x, y, scale), of a sequence of `cv2.KeyPoint`; None is taken as empty.

    Raises:
        InputError: it holds something else.
    """
    keypoints = () if keypoints is None else keypoints
    try:
        values = [(keypoint.pt[0], keypoint.pt[1], keypoint.size / SIZE) for keypoint in keypoints]
    except (AttributeError, TypeError) as error:
        raise InputError(f"keypoints must be a sequence of cv2.KeyPoint ({error})") from None
    return np.array(values, np.float32).reshape(-1, 3)


def describable(points: npt.NDArray[np.float32], image_size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Indices of the M x 3 points, (x, y, scale), that lie in the image and have a finite positive scale."""
    scale = points[:, 2]
    return np.flatnonzero(within(points[:, :2], image_size) & (scale > 0) & np.isfinite(scale))


def within(places: npt.NDArray[np.floating[Any]], image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which places (x, y), the last axis, lie on the pixels of an image of a size (width, height)."""
    limit = np.array(image_size, places.dtype) - 0.5
    return np.asarray(((places >= -0.5) & (places <= limit)).all(-1))  # NaN compares false
