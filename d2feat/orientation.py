"""Images turned upright by quarters, and points taken back to the file's pixels."""

import numpy as np

from .features import Floats
from .images import Image


def turned(image: Image, quarters: int) -> Image:
    """The image turned by so many quarters counter-clockwise, C-contiguous."""
    return np.ascontiguousarray(np.rot90(image, quarters))


def to_stored(points: Floats, size: tuple[int, int], quarters: int) -> Floats:
    """N x 2 points (x, y) of the turned image in pixels of the image as it was, of `size` (width, height)."""
    x, y = points.T
    right, bottom = (np.float32(side - 1) for side in size)
    return np.column_stack([(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][quarters % 4])
