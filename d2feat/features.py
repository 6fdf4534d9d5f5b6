"""Features as arrays, for those who want no KeyPoint objects."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .keypoints import build_keypoints

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints and descriptors of one image, best first.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the image, pixel centres at integers.
        scores: N float32, the detection scores (`KeyPoint.response`).
        scales: N float32, pixels of the image per pixel of the pyramid level of detection.
        descriptors: N x C float32, C-contiguous, unit length.
        image_size: (width, height) in pixels.
        angles: N float32, orientations in degrees as `cv2.KeyPoint` counts them (0 to 360, clockwise from the
            x axis), or None where none was estimated: with `rotations=1`.
    """

    keypoints: Floats
    scores: Floats
    scales: Floats
    descriptors: Floats
    image_size: tuple[int, int]
    angles: Floats | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, index: Any) -> "Features":
        """The features that `index` selects, a slice, mask, array of indices or one index."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        return Features(
            self.keypoints[index],
            self.scores[index],
            self.scales[index],
            np.ascontiguousarray(self.descriptors[index]),
            self.image_size,
            None if self.angles is None else self.angles[index],
        )

    def to_keypoints(self) -> tuple[cv2.KeyPoint, ...]:
        """The keypoints as `cv2.KeyPoint` objects; see `d2feat.keypoints` for their fields."""
        return build_keypoints(self.keypoints, self.scores, self.scales, self.angles)

    def to_opencv(self) -> tuple[tuple[cv2.KeyPoint, ...], Floats | None]:
        """(keypoints, descriptors) as `cv2.Feature2D.detectAndCompute` returns them; ((), None) for none."""
        if len(self) == 0:
            return (), None
        return self.to_keypoints(), self.descriptors
