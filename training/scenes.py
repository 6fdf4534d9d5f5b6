"""Real scenes: photographs of one place with their cameras, and depth maps or tracks.

A folder of scenes holds scene_info/*.npz and what these name. Two kinds are read: D2-Net's preprocessed
MegaDepth (Dusmanu et al. 2019, section 4.2), with a depth map of every photograph; and what `sfm` makes, with
verified tracks instead.
"""

import hashlib
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_OVERLAP: Final = 0.3
"""Share of the points of one photograph that a pair's other one must see too."""

NEIGHBOURS: Final = 8
"""Points nearest to one that say how the surface lies there."""

FLATNESS: Final = 0.3
"""Of their spread across the plane to that within it, above which there is none."""


class SceneError(ValueError):
    """A folder of scenes cannot be used; the message says why."""


class Scene(NamedTuple):
    """N photographs of one place; pixel centres at integers.

    Attributes:
        folder: that the paths are relative to. images: N paths.
        depths: N paths of HDF5 files with a dataset "depth", H x W as the image, 0 where unknown; or empty.
        intrinsics: N x 3 x 3. poses: N x 4 x 4, world to camera. pairs: P x 2, indices of photographs.
        tracks: for every photograph, the numbers of points it sees, and their places, M x 2; or empty.
        points: Q x 3, in the world.
        normals: Q x 3, of the surface there, up to their sign; 0 where it is no plane.
        digest: SHA-256 of its file.
    """

    folder: Path
    images: list[str]
    depths: list[str]
    intrinsics: Tensor
    poses: Tensor
    pairs: NDArray[np.int64]
    tracks: list[tuple[NDArray[np.int64], Tensor]]
    points: Tensor
    normals: Tensor
    digest: str


def read_scenes(folder: Path) -> list[Scene]:
    """All scenes of a folder, in the order of names.

    Raises:
        FileNotFoundError: the folder has no scene_info/*.npz.
        SceneError: none has a pair of photographs that overlap; or a file is not what it should be.
    """
    files = sorted(folder.glob("scene_info/*.npz"))
    if not files:
        raise FileNotFoundError(f"no scenes at {folder}: there is no scene_info/*.npz")
    scenes = [scene for file in files if len((scene := _read_scene(file, folder)).pairs)]
    if not scenes:
        raise SceneError(f"no two photographs of the scenes of {folder} overlap by {LEAST_OVERLAP:.0%}")
    return scenes


def _read_scene(file: Path, folder: Path) -> Scene:
    try:
        arrays = _arrays(file)
        images = [path or "" for path in arrays["image_paths"].tolist()]
        depths = [path or "" for path in arrays["depth_paths"].tolist()] if "depth_paths" in arrays else []
        intrinsics = torch.stack([_matrix(value, 3) for value in arrays["intrinsics"]])
        poses = torch.stack([_matrix(value, 4) for value in arrays["poses"]])
        overlap = arrays["overlap_matrix"]
        # Upstream's later preprocessing counts what both see against the points of the row's photograph.
        overlap = np.maximum(overlap, overlap.T)
        points = torch.from_numpy(arrays["points3D"]) if not depths else torch.zeros(0, 3)
        table = arrays["tracks"] if not depths else np.zeros((0, 4))
        if not np.isin(table[:, 1], np.arange(len(points))).all():
            raise ValueError(f"its tracks name points that are not among its {len(points)}")
    except (KeyError, IndexError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as error:
        raise SceneError(f"{file} is not a scene: {error}") from error
    # COLMAP's first pixel has its centre at 0.5.
    intrinsics[:, :2, 2] -= 0.5
    usable = np.array([bool(path) and (not depths or bool(depths[i])) for i, path in enumerate(images)])
    pairs = np.argwhere(np.triu(overlap >= LEAST_OVERLAP, 1) & np.outer(usable, usable))
    rows = [table[table[:, 0] == i] for i in range(len(images))] if not depths else []
    tracks = [(row[:, 1].astype(np.int64), torch.from_numpy(row[:, 2:] - 0.5)) for row in rows]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Scene(folder, images, depths, intrinsics, poses, pairs, tracks, points, _normals(points), digest)


def _normals(points: Tensor) -> Tensor:
    """Q x 3 unit normals of the planes through the points nearest to each of Q x 3; 0 where there is none."""
    normals = torch.zeros_like(points)
    if len(points) <= NEIGHBOURS:
        return normals
    for part in torch.split(torch.arange(len(points)), 1024):
        nearest = torch.cdist(points[part], points).topk(NEIGHBOURS + 1, largest=False).indices
        spread = points[nearest] - points[nearest].mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh(spread.mT @ spread)
        flat = values[:, 0] <= FLATNESS**2 * values[:, 1]
        normals[part] = vectors[:, :, 0] * flat[:, None]
    return normals


def _matrix(value: Any, size: int) -> Tensor:
    if value is None:
        return torch.full((size, size), torch.nan, dtype=torch.float64)
    return torch.tensor(np.asarray(value, np.float64).reshape(size, size))


class _Unpickler(pickle.Unpickler):
    """Arrays, numbers, text and their containers: a file of someone else's must not run anything."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, of objects too (upstream has None where a photograph lacks something)."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as content:
                version = np.lib.format.read_magic(content)
                read_header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                if read_header(content)[2].hasobject:
                    arrays[name.removesuffix(".npy")] = _Unpickler(content, encoding="latin1").load()
                    continue
            with archive.open(name) as content:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


@lru_cache(maxsize=64)
def read_image(path: Path) -> NDArray[np.uint8]:
    """H x W x 3 uint8 BGR, as stored: cameras know nothing of a turn that EXIF asks for."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SceneError(f"no readable photograph at {path}")
    return np.asarray(image, np.uint8)


@lru_cache(maxsize=64)
def read_depth(path: Path) -> Tensor:
    """H x W float32, 0 where unknown."""
    import h5py

    try:
        with h5py.File(path) as file:
            depth = torch.from_numpy(np.asarray(file["depth"], np.float32))
    except (OSError, KeyError) as error:
        raise SceneError(f"no readable depth map at {path}: {error}") from error
    # MegaDepth marks what is unknown by 0, and by negative numbers.
    return torch.nan_to_num(depth, posinf=0.0).clamp(min=0)
