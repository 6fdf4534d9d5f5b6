"""A real `cv2.Feature2D` on OpenCV 5: the network in OpenCV's own engine, behind cv::DISK or cv::ALIKED.

OpenCV's C++ functions take such an object, as they take no object written in Python. What it costs is in
docs/native-opencv.md: images of one size, a fixed number of features, single precision, one scale.
"""

import os
from pathlib import Path
from typing import Final

import cv2

from .bindings import size_of
from .conversion import converted, needed_export
from .errors import InputError, ProviderError
from .model import EXACT

CONTRACTS: Final = ("aliked", "disk")


def create_native(
    size: tuple[int, int] = (640, 480),
    nfeatures: int = 2048,
    contract: str = "aliked",
    model: str | os.PathLike[str] = EXACT,
) -> cv2.Feature2D:
    """D2-Net as a `cv2.ALIKED` or `cv2.DISK`, which OpenCV's C++ functions take.

    The first call for its arguments converts the model, which takes a minute and needs the extra "export";
    the result is kept in the cache folder. `native_model` returns that file, for C++ programs.

    Args:
        size: (width, height) of the images in pixels, multiples of 16. Images of another size are stretched
            to it by OpenCV.
        nfeatures: features that every image gives. cv2.DISK gives fewer where there are fewer; cv2.ALIKED
            repeats the last one, with a response of 0.
        contract: "aliked" (sub-pixel positions, no mask) or "disk" (whole pixels, mask).
        model: name or path of a model in single precision with a fine head.

    Raises:
        ProviderError: this OpenCV is older than 5.
        InputError: size, nfeatures or contract is unusable.
        ModelError: the model cannot be converted, or a package that this needs is missing.
    """
    if not hasattr(cv2, "ALIKED"):
        raise ProviderError(
            f"OpenCV {cv2.__version__} has neither cv2.ALIKED nor cv2.DISK, which came with OpenCV 5; "
            "upgrade OpenCV, or use d2feat.create()"
        )
    size = size_of(size)
    path = str(native_model(size, nfeatures, contract, model))
    if contract == "disk":
        return cv2.DISK.create(path, imageSize=size)
    parameters = cv2.ALIKED.Params()
    parameters.inputSize = size
    return cv2.ALIKED.create(path, parameters)


def native_model(
    size: tuple[int, int] = (640, 480),
    nfeatures: int = 2048,
    contract: str = "aliked",
    model: str | os.PathLike[str] = EXACT,
) -> Path:
    """The file that `create_native` gives to OpenCV; converted now, or in the cache folder already."""
    if contract not in CONTRACTS:
        raise InputError(f"contract must be one of {', '.join(CONTRACTS)}, not {contract!r}")
    width, height = size = size_of(size)
    return converted(
        "native",
        model,
        f"{contract}-{width}x{height}-{nfeatures}",
        lambda checkpoint: needed_export("opencv").build_native(checkpoint, size, nfeatures, contract),
    )
