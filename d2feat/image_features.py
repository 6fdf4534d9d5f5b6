"""The bridge to `cv2.detail`: what OpenCV's stitching takes features as."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from .errors import D2FeatError, InputError


def to_image_features(
    keypoints: Sequence[cv2.KeyPoint], descriptors: Any, image_size: tuple[int, int], img_idx: int = 0
) -> Any:
    """A `cv2.detail.ImageFeatures`, for the matchers, estimators and adjusters of `cv2.detail`.

    Args:
        keypoints, descriptors: of one image, as `detectAndCompute` returns them.
        image_size: (width, height) of the image in pixels: ``image.shape[1::-1]``.
        img_idx: the image's place among the images, from 0.

    Raises:
        D2FeatError: this OpenCV is older than 5, whose ImageFeatures crash the interpreter when Python
            gives them descriptors.
        InputError: keypoints and descriptors are not equally many, or the size is none.
    """
    check_image_features()
    if isinstance(descriptors, cv2.UMat):
        descriptors = descriptors.get()
    rows = 0 if descriptors is None else len(descriptors)
    if rows != len(keypoints):
        raise InputError(f"{len(keypoints)} keypoints need as many descriptors, not {rows}")
    try:
        width, height = (int(edge) for edge in image_size)
    except (TypeError, ValueError):
        raise InputError(f"image_size must be (width, height), not {image_size!r}") from None
    made = cv2.detail.ImageFeatures()
    made.img_idx, made.img_size = img_idx, (width, height)
    made.keypoints = tuple(keypoints)
    values = np.zeros((0, 1), np.float32) if descriptors is None else descriptors
    made.descriptors = cv2.UMat(np.ascontiguousarray(values))  # type: ignore[call-overload]  # not in stubs
    return made


def check_image_features() -> None:
    """Raise `D2FeatError` where this OpenCV's ImageFeatures crash."""
    if int(cv2.__version__.split(".")[0]) < 5:
        raise D2FeatError(
            f"OpenCV {cv2.__version__} crashes when Python fills a cv2.detail.ImageFeatures; OpenCV 5 takes "
            "it. Here match with d2feat.match or a cv2.DescriptorMatcher, and find the transformation with "
            "cv2.findHomography"
        )
