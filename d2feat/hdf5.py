"""Features and matches in HDF5, in the layout of hloc (Sarlin et al., CVPR 2019), which its tools read.

A group for each image, named as the image is (a slash makes a group in a group), with the datasets

- ``keypoints``: N x 2 float32, (x, y) in pixels, pixel centres at integers, as hloc has them; it adds the
  half pixel of COLMAP's coordinates when it fills a database. Attribute ``uncertainty``, in pixels.
- ``scores``, ``scales``, and ``angles`` where they were estimated: N float32. The last two are our own.
- ``descriptors``: C x N float16 (one column a keypoint), as hloc's own writer rounds them: half the disk
  space, an error of 2e-5 an element. Keypoints are not rounded so: beyond 1024 px half precision is 1 px.
- ``image_size``: (width, height).

A group for each pair, ``NAME0/NAME1`` with the slashes of the names replaced by "-":

- ``matches0``: N0 int32, for each keypoint of image 0 the index of its match in image 1, or -1.
- ``matching_scores0``: N0 float16, 0 where there is no match.

A process that is killed while it writes can leave an HDF5 file that nobody can read. So what must survive is
written by `replacing`, and long work as one such file a step, joined by `pack` at the end.
"""

import contextlib
import glob
import io
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import D2FeatError, InputError
from .features import Features

STALE: Final = 24 * 3600
"""Seconds after which a file that is half written is a killed run's, however large it is."""

_GOES_ON: Final = "what is done is kept, the same command goes on with it"


def write_features(file: Any, name: str, features: Features) -> None:
    """Write the features of the image `name` into an `h5py.File` or group; what was there goes."""
    group = _fresh_group(file, name)
    keypoints = group.create_dataset("keypoints", data=features.keypoints)
    keypoints.attrs["uncertainty"] = float(features.scales.mean()) if len(features) else 1.0
    group["scores"] = features.scores
    group["scales"] = features.scales
    if features.angles is not None:
        group["angles"] = features.angles
    group["descriptors"] = features.descriptors.T.astype(np.float16)
    group["image_size"] = np.array(features.image_size)


def read_features(file: Any, name: str) -> Features:
    """The features of the image `name`; files of hloc and of others may lack scores and scales, then 1.

    Raises:
        InputError: the file has no such image, or it is not in this layout.
    """
    group = _group(file, name)
    keypoints, descriptors = _dataset(group, "keypoints"), _dataset(group, "descriptors")
    count = len(keypoints)
    if keypoints.shape != (count, 2) or descriptors.ndim != 2 or descriptors.shape[1] != count:
        raise InputError(
            f"{name}: keypoints of shape {keypoints.shape} and descriptors of shape {descriptors.shape}; "
            "hloc's layout has N x 2 and C x N"
        )
    ones = np.ones(count, np.float32)
    width, height = _dataset(group, "image_size").tolist()
    return Features(
        keypoints.astype(np.float32),
        group["scores"][()].astype(np.float32) if "scores" in group else ones,
        group["scales"][()].astype(np.float32) if "scales" in group else ones,
        np.ascontiguousarray(descriptors.T, np.float32),
        (int(width), int(height)),
        group["angles"][()].astype(np.float32) if "angles" in group else None,
    )


def read_keypoints(file: Any, name: str) -> npt.NDArray[np.float32]:
    """The positions alone of the features of the image `name`, N x 2; errors as of `read_features`."""
    return _dataset(_group(file, name), "keypoints").astype(np.float32)


def write_matches(
    file: Any,
    name0: str,
    name1: str,
    matches: npt.NDArray[np.integer[Any]],
    scores: npt.NDArray[np.floating[Any]],
    count: int,
) -> None:
    """Write the matches of two images into an `h5py.File` or group; what was there goes.

    Args:
        matches: M x 2, indices of keypoints of image 0 and 1; no keypoint of image 0 occurs twice.
        scores: M, higher is better.
        count: keypoints of image 0.
    """
    group = _fresh_group(file, pair_name(name0, name1))
    matches0, scores0 = np.full(count, -1, np.int32), np.zeros(count, np.float16)
    matches0[matches[:, 0]] = matches[:, 1]
    scores0[matches[:, 0]] = scores
    group["matches0"] = matches0
    group["matching_scores0"] = scores0


def read_matches(file: Any, name0: str, name1: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """M x 2 indices of the keypoints of image 0 and 1, and M scores, whichever way round they were written.

    Raises:
        InputError: the file has no such pair, or it is not in this layout.
    """
    turned = pair_name(name0, name1) not in file and pair_name(name1, name0) in file
    group = _group(file, pair_name(*((name1, name0) if turned else (name0, name1))))
    matches0 = _dataset(group, "matches0").astype(np.int64)
    found = np.flatnonzero(matches0 >= 0)
    scores = group["matching_scores0"][()][found] if "matching_scores0" in group else np.ones(len(found))
    order = [1, 0] if turned else [0, 1]
    return np.column_stack([found, matches0[found]])[:, order], scores.astype(np.float32)


def image_names(file: Any) -> list[str]:
    """Names of the images that have features in an open `h5py.File`, sorted."""
    paths: list[str] = []
    file.visit(lambda path: paths.append(path) if path.endswith("/keypoints") else None)
    # Not the folder of images that is called so.
    return sorted(path.removesuffix("/keypoints") for path in paths if hasattr(file[path], "shape"))


def stored_name(name: str) -> str:
    """A name as HDF5 keeps it, without "." and empty parts: a/b.jpg of ./a//b.jpg."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def flat_name(name: str) -> str:
    """An image's name as hloc's layout of matches has it."""
    return name.replace("/", "-")


def pair_name(name0: str, name1: str) -> str:
    """Name of the group of the matches of two images."""
    return f"{flat_name(name0)}/{flat_name(name1)}"


def import_h5py() -> Any:
    """The module.

    Raises:
        D2FeatError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise D2FeatError(
            f"HDF5 files are read and written by h5py, which cannot be imported ({error}); "
            "pip install 'd2feat[sfm]'"
        ) from error
    return h5py


def open_hdf5(path: str | os.PathLike[str] | io.BytesIO, mode: str = "r") -> Any:
    """The `h5py.File` at `path`, or in memory.

    Raises:
        D2FeatError: h5py is not installed.
        InputError: there is no such file, or it is not HDF5.
    """
    h5py = import_h5py()
    try:
        return h5py.File(path, mode)
    except FileNotFoundError:
        raise InputError(f"no HDF5 file at {path}") from None
    except OSError as error:
        raise InputError(f"cannot open {path} as HDF5: {error}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A new `h5py.File`, in memory, that takes its place at `path` when it is made, whole or not at all.

    In memory, for HDF5 crashes the interpreter when it exits after the disk was full.

    Raises:
        D2FeatError: it cannot be written.
    """
    content = io.BytesIO()
    with open_hdf5(content, "w") as file:
        yield file
    with taking_place(path) as partial:
        partial.parent.mkdir(exist_ok=True)  # of parts: another run removes it where it finds it empty
        partial.write_bytes(content.getbuffer())


@contextlib.contextmanager
def taking_place(path: Path) -> Iterator[Path]:
    """A path to write to; what is there then takes its place at `path`, after it is on the disk.

    Where `path` is a link, that is the place that it leads to.
    """
    path = path.resolve()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except D2FeatError:
        raise
    except (OSError, RuntimeError) as error:  # h5py's of a full disk is the latter
        raise D2FeatError(f"cannot write {path}: {error}; {_GOES_ON}") from error
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(partial: Path, age: float = STALE) -> None:
    """Remove a file that is half written, unless somebody may be writing it: since it is younger, seconds."""
    with contextlib.suppress(OSError):
        if time.time() - partial.stat().st_mtime > age:
            partial.unlink()


def is_whole(path: Path) -> bool:
    """Whether there is an HDF5 file at `path`; what is left of one after a power loss is removed.

    Raises:
        InputError: it cannot be read, which says nothing of what it holds.
    """
    if not path.exists():
        return False
    try:
        open_hdf5(path).close()
    except InputError as error:
        if _starts_as_hdf5(path) and "truncated" not in str(error):
            raise
        path.unlink()
        return False
    return True


def _starts_as_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return True  # for all that is known


def pack(parts: Iterable[Path], path: Path, without: Collection[str] = ()) -> None:
    """Join HDF5 files into one new file at `path`.

    A group that several hold in part is merged; numbers that are attributes of the files are added up.

    Args:
        without: groups that are not taken from the first of the files, for others replace them.

    Raises:
        D2FeatError: it cannot be written.
    """
    parts, path = list(parts), path.resolve()
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        remove_stale(partial)
    needed, (total, _, free) = sum(part.stat().st_size for part in parts), shutil.disk_usage(path.parent)
    if needed > free and total:  # some file systems do not say
        raise D2FeatError(
            f"no space for {path}: it takes {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free; "
            f"{_GOES_ON}"
        )
    with taking_place(path) as partial, open_hdf5(partial, "w") as whole:
        for place, part in enumerate(parts):
            with open_hdf5(part) as file:
                try:
                    _merge(file, whole, () if place else without)
                except (OSError, RuntimeError) as error:  # of a full disk, or of a part that is damaged
                    raise D2FeatError(
                        f"cannot write {part} to {path}: {error}; what is done is kept"
                    ) from error
                for name, number in file.attrs.items():
                    whole.attrs[name] = whole.attrs.get(name, 0) + number


def _merge(source: Any, target: Any, without: Collection[str]) -> None:
    for name, item in source.items():
        inside = {path.removeprefix(f"{name}/") for path in without if path.startswith(f"{name}/")}
        is_group = hasattr(item, "items")
        if name in without:
            # Its datasets: a group inside is of another image, in a folder that is named as this one.
            own = set(_datasets(item)) if is_group else set()
            if not is_group or own >= item.keys():
                continue
            inside |= own
        if is_group and (inside or name in target):
            group = target.require_group(name)
            _merge(item, group, inside)
            if name not in without:
                group.attrs.update(item.attrs)
        else:
            source.copy(item, target, name)


def _fresh_group(file: Any, name: str) -> Any:
    group = file.require_group(name)
    for dataset in _datasets(group):
        del group[dataset]
    for attribute in list(group.attrs):
        del group.attrs[attribute]
    return group


def _datasets(group: Any) -> list[str]:
    """Names of the datasets in a group."""
    return [name for name, item in group.items() if not hasattr(item, "items")]


def _group(file: Any, name: str) -> Any:
    if name not in file:
        raise InputError(f"{file.file.filename} holds no {name}")
    return file[name]


def _dataset(group: Any, name: str) -> npt.NDArray[Any]:
    if name not in group:
        raise InputError(f"{group.file.filename} has no dataset {name} in {group.name}: not hloc's layout")
    return np.asarray(group[name][()])
