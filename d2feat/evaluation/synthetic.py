"""Image sequences made from photographs, so that the truth is exact.

Every image of a sequence, the first included, is rendered from the same larger photograph through a known
homography, three by three samples a pixel, averaged. So all images are resampled alike, zooming out does not
alias, and the homography between two images is exact by construction.

- "i_" sequences change the light: images 2 to 6 are under other light (gain and shade), gamma, blur, noise,
  and JPEG, in this order. They are shifted by a random part of a pixel, or detectors would profit from a
  pixel grid that is the same in both images.
- "v_" sequences change the viewpoint: rotation, scale and perspective grow from image 2 to 6.
"""

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from ..errors import D2FeatError, InputError
from ..images import Image, as_image, decode, is_image_name, read_image
from .metrics import Floats, Size
from .sequences import ImageSequence

SKIMAGE: Final = "skimage"
"""Source of photographs that scikit-image ships, named in `PHOTOGRAPHS`."""
PHOTOGRAPHS: Final = (
    "astronaut", "coffee", "chelsea", "rocket", "camera", "brick", "coins", "grass", "gravel",
    "hubble_deep_field",
)  # fmt: skip


IMAGES: Final = 6
LONGEST: Final = 640
"""Longer side of the images, px, if the photograph has as many."""
MARGIN: Final = 1 / 8
"""Of the photograph on each side that image 1 leaves for the others; beyond it is mirrored."""
SAMPLES: Final = 3
"""A pixel, along each axis."""

ROTATION: Final = 45.0
"""Of image 6 at most, degrees."""
ZOOM: Final = 2.0
"""Of image 6 at most, and 1 / 2 at least."""
PERSPECTIVE: Final = 0.3
"""Of image 6 at most: change of depth from centre to edge, as a share."""


def make_sequences(photos: str | Path, count: int = 20, seed: int = 0) -> list[ImageSequence]:
    """Sequences of photographs, "i_" and "v_" by turns, the same for the same seed and photographs.

    Args:
        photos: folder of images and tar files of images, one tar file, or "skimage".
        count: photographs to take at random; all, if there are fewer.
        seed: of the choice and of all changes.

    Raises:
        InputError: there is no such folder, or no photograph in it, or one of them cannot be read.
        D2FeatError: scikit-image is asked for and not installed.
    """
    available = _names(photos)
    order = np.random.default_rng(seed).permutation(len(available))[:count]
    chosen = [available[i] for i in sorted(order.tolist())]
    return [
        make_sequence(f"{'iv'[i % 2]}_{i + 1:02}_{Path(name).stem}", _read(photos, name), [seed, i])
        for i, name in enumerate(chosen)
    ]


def make_sequence(name: str, photo: Image, seed: list[int]) -> ImageSequence:
    """The sequence of one photograph (H x W x 3), of the kind that its name begins with, "i_" or "v_".

    Raises:
        InputError: the photograph is but a line.
    """
    height, width = photo.shape[:2]
    photo, to_first, size = _placed(photo)
    if min(photo.shape[:2]) < 2:  # about whose edge nothing can be reflected
        raise InputError(f"{name}: no views can be made of a photograph of {width} x {height} pixels")
    change = viewpoint if name.startswith("v_") else shift
    homographies = {k: change(size, k, np.random.default_rng([*seed, k])) for k in range(2, IMAGES + 1)}

    def load(number: int) -> Image:
        image = render(photo, homographies.get(number, np.eye(3)) @ to_first, size)
        if number == 1 or name.startswith("v_"):
            return image
        return relight(image, number, np.random.default_rng([*seed, number, 1]))

    return ImageSequence(name, load, homographies)


def render(photo: Image, H: Floats, size: Size) -> Image:
    """Image of `size` (width, height) of the photograph through the 3 x 3 `H`, photograph to image."""
    fine = np.diag([SAMPLES, SAMPLES, 1.0])
    fine[:2, 2] = (SAMPLES - 1) / 2  # pixel centres at integers
    samples = cv2.warpPerspective(
        photo,
        fine @ H,
        (size[0] * SAMPLES, size[1] * SAMPLES),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(cv2.resize(samples, size, interpolation=cv2.INTER_AREA), np.uint8)


def viewpoint(size: Size, number: int, random: np.random.Generator) -> Floats:
    """3 x 3 homography from image 1 to image `number`: rotation, scale and tilt about the centre."""
    strength = (number - 1) / (IMAGES - 1)
    angle = np.deg2rad(ROTATION) * strength * random.uniform(-1, 1)
    scale = ZOOM ** (strength * random.uniform(-1, 1))
    tilt = 2 * PERSPECTIVE * strength * random.uniform(-1, 1, 2) / size
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    about_centre = np.array([[cos, -sin, 0], [sin, cos, 0], [*tilt, 1]])
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    around: Floats = _moved(x, y) @ about_centre @ _moved(-x, -y)
    return around


def shift(size: Size, number: int, random: np.random.Generator) -> Floats:
    """3 x 3 homography of a move by up to half a pixel."""
    return _moved(*random.uniform(-0.5, 0.5, 2))


def relight(image: Image, number: int, random: np.random.Generator) -> Image:
    """The image under the change that image `number` of an "i_" sequence has."""
    values: Any = image.astype(np.float32)
    change = ("light", "gamma", "blur", "noise", "jpeg")[number - 2]
    sign = random.choice([-1, 1])
    if change == "light":
        across = np.linspace(-1, 1, image.shape[1], dtype=np.float32)[:, None]
        values = values * np.exp2(sign * random.uniform(0.4, 1.0)) * (1 + random.uniform(-0.4, 0.4) * across)
    elif change == "gamma":
        values = 255 * (values / 255) ** np.float32(np.exp2(sign * random.uniform(0.4, 1.0)))
    elif change == "blur":
        values = cv2.GaussianBlur(values, (0, 0), random.uniform(0.8, 2.0))
    elif change == "noise":
        values = values + random.normal(0, random.uniform(5, 15), image.shape).astype(np.float32)
    relit: Image = np.rint(values).clip(0, 255).astype(np.uint8)
    if change == "jpeg":
        _, encoded = cv2.imencode(".jpg", relit, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(10, 41))])
        relit = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return relit


def _placed(photo: Image) -> tuple[Image, Floats, Size]:
    """The photograph (shrunk if huge), the homography from it to image 1, and image 1's size."""
    window = (1 - 2 * MARGIN) * max(photo.shape[:2])
    if window > 2 * LONGEST:
        smaller = [max(1, round(side * 2 * LONGEST / window)) for side in (photo.shape[1], photo.shape[0])]
        photo = np.asarray(cv2.resize(photo, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    height, width = photo.shape[:2]
    factor = min(1.0, LONGEST / ((1 - 2 * MARGIN) * max(height, width)))
    size = tuple(max(16, round(factor * (1 - 2 * MARGIN) * side)) for side in (width, height))
    to_first = np.diag([factor, factor, 1.0])
    # The centres coincide.
    to_first[0, 2] = (size[0] - 1) / 2 - factor * (width - 1) / 2
    to_first[1, 2] = (size[1] - 1) / 2 - factor * (height - 1) / 2
    return photo, to_first, (size[0], size[1])


def _moved(x: float, y: float) -> Floats:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _names(photos: str | Path) -> list[str]:
    """Names of the photographs: of scikit-image, paths, or TAR:MEMBER."""
    if str(photos) == SKIMAGE:
        return list(PHOTOGRAPHS)
    source = Path(photos)
    if not source.exists():
        raise InputError(f"no photographs at {source}")
    names = []
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if not path.is_file():
            continue
        if path.suffix.lower() == ".tar":
            with _opened(path) as shard:
                names += [f"{path}:{member}" for member in shard.getnames() if is_image_name(member)]
        elif is_image_name(path.name):
            names.append(str(path))
    if not names:
        raise InputError(f"no photographs in {source}")
    return names


def _read(photos: str | Path, name: str) -> Image:
    """The photograph of a name, H x W x 3 BGR."""
    if str(photos) == SKIMAGE:
        return _read_skimage(name)
    shard_name = re.match(r"(.*\.tar):", name, re.IGNORECASE | re.DOTALL)
    if not shard_name:
        return read_image(name)
    with _opened(Path(shard_name[1])) as shard:
        content = None
        with suppress(KeyError):  # of a link to what is not in the file
            content = shard.extractfile(name[shard_name.end() :])
        image = decode(content.read(), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise InputError(f"{name} is not an image that OpenCV can read")
    return image


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as shard:
            yield shard
    except (tarfile.TarError, EOFError):
        raise InputError(f"{path} is not a tar file, or is damaged: replace it or take it away") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _read_skimage(name: str) -> Image:
    try:
        from skimage import data
    except ImportError as error:
        raise D2FeatError(
            f"these photographs come with scikit-image, which cannot be imported ({error}); "
            "pip install 'd2feat[demo]'"
        ) from error
    image = np.asarray(getattr(data, name)())
    return as_image(image[..., ::-1] if image.ndim == 3 else image)
