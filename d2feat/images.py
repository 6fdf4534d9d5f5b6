"""From what callers pass as image or mask to the arrays that the model takes."""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import InputError

Image = npt.NDArray[np.uint8]

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
"""What photographs' file names end in."""

_CHANNELS: Final = (1, 2, 3, 4)


def read_image(path: str | os.PathLike[str]) -> Image:
    """The image file at `path`, H x W x 3 uint8 BGR.

    Raises:
        InputError: it is missing, or not an image.
    """
    return decode_file(Path(path), cv2.IMREAD_COLOR)


def decode_file(path: Path, flags: int) -> Image:
    """The image file at `path` as `cv2.imread` reads it with `flags`, whatever its name.

    OpenCV itself is not given a name that is not UTF-8, which crashes the interpreter, and if it can be
    helped no name at all: on Windows it finds only those of the system's code page.

    Raises:
        InputError: it is missing, or not an image.
    """
    try:
        image = decode(path.read_bytes(), flags)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not an image file") from None
    except FileNotFoundError:
        raise InputError(f"no image file at {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if image is None and is_utf8(os.fspath(path)):
        # It takes what there is of a file that is cut off.
        image = cv2.imread(os.fspath(path), flags)  # type: ignore[assignment]
    if image is None:
        raise InputError(f"{path} is not an image that OpenCV can read")
    return image


def decode(content: bytes, flags: int) -> Image | None:
    """The image that a file of such content holds; None if OpenCV cannot read it."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None  # type: ignore[return-value]


def is_image_name(name: str, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether a file's name, with or without folders, ends as an image's does, in upper or lower case."""
    path = Path(name)
    # macOS writes what it knows of a.jpg to ._a.jpg, on disks of others too.
    return path.suffix.lower() in suffixes and not path.name.startswith("._")


def files_under(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Image files in a folder and the subfolders that may be read, sorted; endings count in lower case.

    Those that cannot be read, and links that lead nowhere, are among them. Links to folders elsewhere are
    followed; those to folders within are not, for what these hold has a name.
    """
    root = folder.resolve()

    def walk(inside: Path, above: frozenset[Path]) -> Iterator[Path]:
        try:
            paths = list(inside.iterdir())
        except PermissionError:
            return
        for path in paths:
            kind = _kind(path)
            if kind == stat.S_IFDIR:
                real = path.resolve()
                around = real.is_relative_to(root) or root.is_relative_to(real)
                if real not in above and not (path.is_symlink() and around):
                    yield from walk(path, above | {real})
            elif is_image_name(path.name, suffixes) and kind in (stat.S_IFREG, 0):
                yield path

    return sorted(walk(folder, frozenset([root])))


def _kind(path: Path) -> int:
    """What a path leads to, as `stat.S_IFDIR`; 0 where it leads nowhere or may not be looked at."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return 0


def digest(path: Path) -> str:
    """SHA-256 of a file, or "" where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def cv2_path(path: str | os.PathLike[str]) -> str:
    """`path` as text that OpenCV's functions bear.

    Raises:
        InputError: it is not UTF-8, which crashes them.
    """
    text = os.fspath(path)
    if not is_utf8(text):
        raise InputError(f"OpenCV takes no file name that is not UTF-8: {text!a}")
    return text


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8; Python has signs of its own for bytes of names that are not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_image(image: Any) -> Image:
    """H x W x 3 uint8 BGR, C-contiguous, from what cv2's detectors take.

    Args:
        image: uint8 array, H x W (grey), or H x W x C with C = 1 (grey), 2 (grey, alpha), 3 (BGR) or
            4 (BGRA; alpha is ignored); any strides. Or a `cv2.UMat` of such.

    Raises:
        InputError: it is None, empty, of another depth, shape or type.
    """
    if isinstance(image, cv2.UMat):
        image = image.get()
    if image is None:
        raise InputError("image is None; did cv2.imread find the file? It returns None where it did not")
    if not isinstance(image, np.ndarray):
        raise InputError(f"image must be a NumPy array or cv2.UMat, not {type(image).__name__}")
    if image.size == 0:
        raise InputError(f"image is empty (shape {image.shape})")
    if image.dtype != np.uint8:
        raise InputError(f"image must be 8-bit (uint8), not {image.dtype}; {_remedy(image.dtype)}")
    if image.ndim == 2:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR).view(np.ndarray)  # type: ignore[return-value]
    if image.ndim != 3 or image.shape[2] not in _CHANNELS:
        raise InputError(f"image must be H x W or H x W x C with 1 to 4 channels, not of shape {image.shape}")
    channels = image.shape[2]
    if channels < 3:
        return cv2.cvtColor(np.ascontiguousarray(image[..., 0]), cv2.COLOR_GRAY2BGR)  # type: ignore[return-value]
    return np.ascontiguousarray(image[..., :3])


def as_mask(mask: Any, shape: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """H x W bool, true where keypoints may lie, or None for everywhere.

    Args:
        mask: None, an empty array, or uint8 or bool, H x W or H x W x 1, non-zero where to keep.
        shape: (H, W) of the image.

    Raises:
        InputError: it is of another size, depth or type.
    """
    if isinstance(mask, cv2.UMat):
        mask = mask.get()
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray):
        raise InputError(f"mask must be a NumPy array or cv2.UMat, not {type(mask).__name__}")
    if mask.size == 0:
        return None
    if mask.dtype not in (np.uint8, np.bool_):
        raise InputError(f"mask must be uint8 or bool, not {mask.dtype}")
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    if mask.shape != shape:
        raise InputError(f"mask has shape {mask.shape}; it must have the image's height and width, {shape}")
    return np.asarray(mask != 0)


def allowed_at(mask: npt.NDArray[np.bool_], points: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """N bool: the H x W mask at N x 2 points (x, y), as `cv2.KeyPointsFilter.runByPixelsMask` reads it."""
    column, row = (points + np.float32(0.5)).astype(np.int64).T
    return np.asarray(mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)])


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "convert it with image.astype(np.uint8) * 255"
    if dtype == np.uint16:
        return "convert it with (image // 257).astype(np.uint8)"
    if np.issubdtype(dtype, np.floating):
        return "convert it with (image * 255).clip(0, 255).astype(np.uint8) if it is in [0, 1]"
    return "convert it to 0..255 and astype(np.uint8)"
