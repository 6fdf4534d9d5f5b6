"""A day and night test made of photographs by day: every second one is darkened, as a camera sees it."""

from pathlib import Path
from typing import Final

import cv2
import numpy as np

from ..errors import InputError
from ..images import Image, decode_file
from .photos import find_photos, read_photo

SEED: Final = 0
LIGHT: Final = 0.35
"""Of day, at most: the training's."""


def darken_half(photos: Path, out: Path, light: float = LIGHT) -> list[str]:
    """Write the photographs of a folder to another, every second one by night; the names of these.

    A JPEG file's EXIF is kept, for the focal length; other photographs by night are upright in the file.

    Raises:
        InputError: there are no photographs, one cannot be read or written, or `out` is among them.
    """
    if out.resolve().is_relative_to(photos.resolve()):
        raise InputError(f"{out} lies in the folder of the photographs, which are not written over")
    dark = []
    for number, name in enumerate(find_photos(photos)):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        encoded = (photos / name).read_bytes()
        if number % 2:
            exif = _exif(encoded)
            if target.suffix.lower() in (".jpg", ".jpeg"):
                day = decode_file(photos / name, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            else:
                day = read_photo(photos / name).upright
            image = night(day, np.random.default_rng([SEED, number]), light)
            if target.suffix.lower() == ".pgm":
                image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
            done, code = cv2.imencode(target.suffix, image)
            if not done:
                raise InputError(f"OpenCV cannot write {target.suffix}")
            encoded = code.tobytes()
            if exif and encoded[:2] == b"\xff\xd8":
                encoded = encoded[:2] + exif + encoded[2:]
            dark.append(name)
        target.write_bytes(encoded)
    return dark


def night(image: Image, random: np.random.Generator, light: float = LIGHT) -> Image:
    """An H x W x 3 image by night: a quarter to all of `light`, by colour, deeper shadows, a sensor's noise.

    The formulas and ranges of the training's change of light.
    """
    day = (image.astype(np.float32) / 255).clip(1e-4, 1)
    tint = random.uniform(0.5, 1.0, 3).astype(np.float32)
    dark = 0.03 + light * tint * day**1.5 * random.uniform(0.5, 1)
    grain = random.standard_normal(image.shape, np.float32) * np.float32(6 / 255)
    noisy = dark + grain * (0.5 + np.sqrt(dark))
    return np.asarray(np.rint(255 * noisy.clip(0, 1)), np.uint8)


def _exif(jpeg: bytes) -> bytes:
    """The EXIF segment of a JPEG file, marker included, or nothing."""
    position = 2
    while jpeg[:2] == b"\xff\xd8" and jpeg[position : position + 1] == b"\xff" and jpeg[position + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 4 : position + 8] == b"Exif":
            return jpeg[position : position + length]
        position += length
    return b""
