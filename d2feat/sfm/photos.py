"""The photographs of a folder: their names, their pixels upright, and the cameras that took them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from ..errors import InputError
from ..features import Floats
from ..images import SUFFIXES, Image, decode_file, files_under, is_utf8
from ..orientation import to_stored, turned
from .colmap import pycolmap

_QUARTERS: Final = {3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
"""Quarter turns counter-clockwise that make a photo upright, by EXIF orientation."""

_GUESS: Final = 1.2
"""Focal length over the longer side, where it is not known, as COLMAP has it."""

_MIRRORED: Final = (2, 4, 5, 7)
"""EXIF orientations that a turn alone does not make right."""


@dataclass(frozen=True, eq=False)
class Photo:
    """Pixels of a photograph, turned upright, as D2-Net wants them: it does not estimate orientations.

    Those of a mirrored file remain mirrored, for COLMAP's cameras are those of its pixels.

    Attributes:
        upright: H x W x 3 uint8 BGR.
        quarters: quarter turns counter-clockwise from the file's pixels to `upright`.
    """

    upright: Image
    quarters: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the file's pixels, which COLMAP's coordinates refer to."""
        height, width = self.upright.shape[:2]
        return (height, width) if self.quarters % 2 else (width, height)

    @property
    def stored(self) -> Image:
        """The file's pixels."""
        return turned(self.upright, -self.quarters)

    def to_stored(self, points: Floats) -> Floats:
        """N x 2 positions in `upright` in the file's pixels."""
        return to_stored(points, self.stored_size, self.quarters)


def find_photos(folder: Path) -> list[str]:
    """Names of the photographs in a folder and its subfolders, relative to it, sorted.

    Raises:
        InputError: there is no such folder or no photograph in it, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    found = (path for path in files_under(folder, SUFFIXES) if path.exists())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if not names:
        raise InputError(f"no photographs in {folder}; their names end in {', '.join(SUFFIXES)}")
    for name in names:
        if not is_utf8(name):
            raise InputError(f"HDF5 takes UTF-8 names only; rename {name!a} in {folder}")
    return names


def read_photo(path: Path) -> Photo:
    """The photograph at `path`.

    Raises:
        InputError: it is missing or not an image.
    """
    bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    # OpenCV turns it: its decoder of TIFF does so even if told not to. WebP is taken as it is stored.
    image = decode_file(path, cv2.IMREAD_COLOR | (0 if bitmap else cv2.IMREAD_IGNORE_ORIENTATION))
    orientation = bitmap.exif_orientation() if bitmap else None
    if orientation in _MIRRORED:
        image = np.ascontiguousarray(image[:, ::-1])
    return Photo(image, _QUARTERS.get(orientation or 1, 0))


def check_size(path: Path, photo: Photo, camera: Any) -> None:
    """Raise InputError if a photo is not of the size that its camera has."""
    if photo.stored_size != (camera.width, camera.height):
        size, known = ("{} x {}".format(*pair) for pair in (photo.stored_size, (camera.width, camera.height)))
        raise InputError(
            f"{path} has {size} pixels, its known camera {known}; give the photograph, or the camera, in the "
            "other's size"
        )


def cameras_of(folder: Path, names: Iterable[str], *, own: bool = False) -> dict[str, Any]:
    """A `pycolmap.Camera` for each photo, the same object for photos of one camera at one focal length.

    Photos of one size whose EXIF does not tell are taken for one camera's; with `own` each has its own.

    Intrinsics are COLMAP's guess: the focal length of EXIF, or 1.2 times the longer side; one radial
    distortion. Of a photo that only OpenCV can read, such as WebP, EXIF is not known.

    Raises:
        InputError: a photo cannot be read.
    """
    known: dict[Any, Any] = {}
    cameras = {}
    for name in names:
        bitmap: Any = pycolmap.Bitmap.read(folder / name, as_rgb=False)
        if bitmap is None:
            width, height = read_photo(folder / name).stored_size
            guess = [_GUESS * max(width, height), width / 2, height / 2, 0]
            camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=width, height=height, params=guess)
        else:
            camera = pycolmap.infer_camera_from_image(folder / name)
        maker = bitmap and bitmap.exif_camera_model()
        if own and not camera.has_prior_focal_length:
            maker = name
        key = maker, camera.width, camera.height, *camera.params
        cameras[name] = known.setdefault(key, camera)
    return cameras
