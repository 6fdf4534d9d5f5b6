"""What is done survives a kill: each image's features are a file of their own until all are joined.

``features.h5.parts/`` holds one HDF5 file an image, written whole or not at all. When all images are done
they are joined into ``features.h5``, which takes its place whole or not at all, and the folder goes.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import D2FeatError, InputError
from ..features import Features
from ..hdf5 import image_names, open_hdf5, pack, replacing, write_features

SETTINGS = "d2feat"
"""Attribute of each image's group: how its features were made."""


def parts_folder(out: Path) -> Path:
    """Folder of the parts of the file `out`."""
    return out.with_name(out.name + ".parts")


def part_path(folder: Path, name: str) -> Path:
    """The part of one image; names may hold what file names may not."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.h5"


def write_part(folder: Path, name: str, features: Features, settings: str) -> None:
    """Write the features of one image, whole or not at all.

    Raises:
        D2FeatError: the file cannot be written.
    """
    try:
        with replacing(part_path(folder, name)) as file:
            write_features(file, name, features)
            file[name].attrs[SETTINGS] = settings
    except OSError as error:
        raise D2FeatError(
            f"cannot write to {folder}: {error}; what is done is kept, the same command goes on with it"
        ) from error


def still_to_do(out: Path, names: Iterable[str], settings: str) -> list[str]:
    """The names that neither `out` nor its parts hold.

    Raises:
        InputError: what is there was made with other settings.
    """
    folder, done = parts_folder(out), set()
    if out.exists():
        with open_hdf5(out) as file:
            done = set(image_names(file))
            for name in sorted(done)[:1]:
                _check_settings(out, file[name].attrs.get(SETTINGS), settings)
    for part in sorted(folder.glob("*.h5"))[:1]:
        with open_hdf5(part) as file:
            _check_settings(folder, file[image_names(file)[0]].attrs.get(SETTINGS), settings)
    return [name for name in names if name not in done and not part_path(folder, name).exists()]


def join_parts(out: Path, names: Iterable[str]) -> int:
    """Join the parts of the images into `out`, beside what it holds, and remove them.

    Returns:
        How many images it holds then.
    """
    folder, held = parts_folder(out), set[str]()
    if out.exists():
        with open_hdf5(out) as file:
            held = set(image_names(file))
    # A kill between joining and removing leaves parts that are in the file already.
    new = {name: part_path(folder, name) for name in names if name not in held}
    new = {name: path for name, path in new.items() if path.exists()}
    if new:
        pack([*([out] if held else []), *new.values()], out)
    shutil.rmtree(folder, ignore_errors=True)
    return len(held) + len(new)


def _check_settings(path: Path, found: str | None, settings: str) -> None:
    if found != settings:
        raise InputError(
            f"{path} holds features made with {found}, not {settings}; choose another -o, or remove it"
        )
