"""Photographs to train, calibrate and verify on: folders, tar shards, and what scikit-image ships."""

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
        source: folder of images and tar shards (searched recursively), or one tar shard.

    Raises:
        FileNotFoundError: `source` does not exist.
    """
    if not source.exists():
        raise FileNotFoundError(f"no photographs at {source}")
    files = _encoded(source)
    with ThreadPoolExecutor() as pool:
        while encoded := list(islice(files, TOGETHER)):
            yield from (image for image in pool.map(_decoded, encoded) if image is not None)


def _decoded(encoded: bytes) -> NDArray[np.uint8] | None:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else image.astype(np.uint8, copy=False)


def _encoded(source: Path) -> Iterator[bytes]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() == ".tar":
                yield from _encoded(path)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                yield path.read_bytes()
        return
    with tarfile.open(source) as shard:
        for member in shard:
            content = shard.extractfile(member) if Path(member.name).suffix.lower() in SUFFIXES else None
            if content is not None:
                yield content.read()
