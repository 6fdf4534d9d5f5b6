"""Pairs of photographs with known geometry: what scikit-image ships, seen from elsewhere at night."""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import D2FeatError
from .images import Image

Matrix = npt.NDArray[np.float64]

PHOTOGRAPHS: Final = ("astronaut", "coffee", "chelsea", "rocket")
"""Names in `skimage.data` of the photographs that are warped and relit."""

STEREO: Final = "motorcycle"
"""Name of the pair that two cameras really took (Middlebury stereo, 2014)."""

ROTATION: Final = 10.0  # degrees
SCALE: Final = 0.9
TILT: Final = 0.3
"""Across the image's width, how much further (as a share) its right edge is than its left."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two views of one scene.

    Attributes:
        name: of the photograph.
        image1, image2: H x W x 3 uint8 BGR.
        homography: 3 x 3, from pixels of image 1 to pixels of image 2; None where no homography is true.
    """

    name: str
    image1: Image
    image2: Image
    homography: Matrix | None


def load_pair(name: str) -> Pair:
    """The pair of one of `PHOTOGRAPHS`, or the stereo pair `STEREO`.

    Raises:
        D2FeatError: scikit-image is not installed.
    """
    data = _skimage_data()
    if name == STEREO:
        left, right, _ = data.stereo_motorcycle()
        return Pair(name, _to_bgr(left), _to_bgr(right), None)
    return night_view(name, _to_bgr(getattr(data, name)()))


def night_view(name: str, photograph: Image) -> Pair:
    """The photograph, and the same seen from elsewhere at night: `view_change`, then `relight`."""
    height, width = photograph.shape[:2]
    homography = view_change((width, height))
    seen = cv2.warpPerspective(photograph, homography, (width, height), flags=cv2.INTER_CUBIC)
    return Pair(name, photograph, relight(seen), homography)  # type: ignore[arg-type]


def view_change(
    size: tuple[int, int], rotation: float = ROTATION, scale: float = SCALE, tilt: float = TILT
) -> Matrix:
    """The 3 x 3 homography of a camera that moved: about the image's centre, rotated, smaller, tilted.

    Args:
        size: (width, height) in pixels; the centre is ((width - 1) / 2, (height - 1) / 2).
        rotation: in degrees, clockwise as displayed.
        scale: of the picture.
        tilt: how much further the right edge is than the left, as a share; upwards, two thirds of it.
    """
    width, height = size
    angle = np.deg2rad(rotation)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    to_centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, 1, 0], [tilt / width, -tilt / width * 2 / 3, 1]])
    matrix: Matrix = np.linalg.inv(to_centre) @ tip @ turn @ to_centre
    matrix /= matrix[2, 2]
    return matrix


def relight(image: Image, seed: int = 0) -> Image:
    """A night-like picture of a scene by day: darker, more contrasty, bluish, noisy, soft, compressed.

    Args:
        image: H x W x 3 uint8 BGR.
        seed: of the noise.
    """
    light = cv2.GaussianBlur(image, (0, 0), 0.6).astype(np.float32) / 255
    dark = 255 * 0.5 * light**1.5 * np.array([1.0, 0.75, 0.55], np.float32)
    dark += np.random.default_rng(seed).normal(0, 2.5, dark.shape).astype(np.float32)
    pixels = np.clip(np.rint(dark), 0, 255).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)  # type: ignore[return-value]


def _skimage_data() -> Any:
    try:
        from skimage import data
    except ImportError as error:
        raise D2FeatError(
            f"the demo's photographs come with scikit-image, which cannot be imported ({error}); "
            "pip install 'd2feat[demo]'"
        ) from error
    return data


def _to_bgr(rgb: Any) -> Image:
    return np.ascontiguousarray(np.asarray(rgb, np.uint8)[..., ::-1])
