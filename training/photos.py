"""Photographs, from folders or tar shards, as one uint8 tensor that lives on the training device."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.photographs import read_photographs

CANVAS: Final = (320, 480)
"""Height and width that every photograph is fitted to, lying (a standing one is turned by 90 degrees)."""


@dataclass(frozen=True)
class Photos:
    """N photographs of different sizes on canvases of one size.

    Attributes:
        canvases: N x 3 x H x W uint8, BGR, each photograph in the upper left corner.
        sizes: N x 2 int64, its (width, height) there.
    """

    canvases: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return int(self.canvases.shape[0])

    def digest(self) -> str:
        """SHA-256 of the photographs and their sizes."""
        content = hashlib.sha256(self.sizes.cpu().numpy().tobytes())
        for canvas in self.canvases:
            content.update(canvas.cpu().numpy().tobytes())
        return content.hexdigest()

    def split(self, held_out: int) -> tuple["Photos", "Photos"]:
        """All but the last `held_out` photographs, and those; an eighth of a small collection at most."""
        held_out = min(held_out, len(self) // 8)
        at = len(self) - held_out
        return Photos(self.canvases[:at], self.sizes[:at]), Photos(self.canvases[at:], self.sizes[at:])

    def to(self, device: torch.device) -> "Photos":
        """The same photographs on `device`."""
        return Photos(self.canvases.to(device), self.sizes.to(device))


def read_photos(source: Path, *, limit: int = 0, canvas: tuple[int, int] = CANVAS) -> Photos:
    """Read every photograph under `source`: a folder of images and tar shards, one tar shard, or one image.

    Args:
        source: folder (searched recursively, in the order of names) or file.
        limit: read no more than this many, 0 for all.
        canvas: (height, width) they are fitted to.

    Raises:
        FileNotFoundError: `source` does not exist, or holds no photograph of 64 px that OpenCV can read.
        ValueError: a shard is no tar file, or is damaged.
    """
    fitted = []
    for image in read_photographs(source):
        if min(image.shape[:2]) >= 64:
            fitted.append(fit(image, canvas))
        if limit and len(fitted) == limit:
            break
    if not fitted:
        raise FileNotFoundError(f"no photograph under {source} has 64 px on each side")
    return stack(fitted, canvas)


def fit(image: NDArray[np.uint8], canvas: tuple[int, int] = CANVAS) -> NDArray[np.uint8]:
    """Turn an H x W x 3 image to lie, shrink it (never enlarge) until its height fits, cut its width."""
    if image.shape[0] > image.shape[1]:
        image = np.rot90(image)
    height, width = image.shape[:2]
    shrink = min(1.0, canvas[0] / height)
    if shrink < 1.0:
        shrunk = cv2.resize(
            np.ascontiguousarray(image), (round(width * shrink), canvas[0]), interpolation=cv2.INTER_AREA
        )
        image = np.asarray(shrunk, np.uint8)
    surplus = max(0, image.shape[1] - canvas[1])
    return np.ascontiguousarray(image[:, surplus // 2 : surplus // 2 + canvas[1]])


def stack(images: list[NDArray[np.uint8]], canvas: tuple[int, int] = CANVAS) -> Photos:
    """Put H x W x 3 images, each no larger than the canvas, onto canvases."""
    canvases = torch.zeros((len(images), 3, *canvas), dtype=torch.uint8)
    for place, image in zip(canvases, images, strict=True):
        place[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    sizes = torch.tensor([[image.shape[1], image.shape[0]] for image in images])
    return Photos(canvases, sizes)
