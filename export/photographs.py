"""Photographs to train, calibrate and verify on: folders, tar shards, and what scikit-image ships."""

import contextlib
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

SUFFIXES: Final = frozenset({".webp", ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

SHIPPED: Final = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
"""Names of photographs that scikit-image ships."""

TOGETHER: Final = 16
"""Photographs that are decoded at a time, one a thread; so many are in memory, however large."""


def shipped_photographs(names: Sequence[str] = SHIPPED) -> dict[str, NDArray[np.uint8]]:
    """H x W x 3 uint8 BGR photographs of scikit-image, by name."""
    from skimage import data

    stereo_pair: Any = data.stereo_motorcycle
    pictures = {}
    for name in names:
        picture = stereo_pair()[0] if name == "motorcycle" else getattr(data, name)()
        pictures[name] = np.ascontiguousarray(picture[..., ::-1])
    return pictures


def read_photographs(source: Path) -> Iterator[NDArray[np.uint8]]:
    """Every readable photograph, H x W x 3 uint8 BGR, under `source`, in the order of names.

    Args:
        source: folder of images and tar shards (searched recursively), one tar shard, or one image.

    Raises:
        FileNotFoundError: `source` does not exist, or holds no photograph that OpenCV can read.
        ValueError: a shard is no tar file, or is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"no photographs at {source}")
    files, found = _encoded(source), False
    with ThreadPoolExecutor() as pool:
        while encoded := list(islice(files, TOGETHER)):
            for image in pool.map(_decoded, encoded):
                if image is not None:
                    found = True
                    yield image
    if not found:
        raise FileNotFoundError(f"no readable photograph under {source}")


def _decoded(encoded: bytes) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # nothing in it, or more pixels than OpenCV takes
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _encoded(source: Path) -> Iterator[bytes]:
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if not path.is_file():
            continue
        if is_photograph(path):
            yield path.read_bytes()
        elif path.suffix.lower() == ".tar" or path == source:
            yield from _members(path)


def _members(path: Path) -> Iterator[bytes]:
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                content = None
                if is_photograph(Path(member.name)):
                    with contextlib.suppress(KeyError):  # of a link to what is not in the file
                        content = shard.extractfile(member)
                if content is not None:
                    yield content.read()
    except (tarfile.TarError, EOFError):
        raise ValueError(f"{path} is not a tar file, or is damaged: replace it or take it away") from None


def is_photograph(path: Path) -> bool:
    """Whether a file's name ends as a photograph's does."""
    # macOS writes what it knows of a.jpg to ._a.jpg.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
