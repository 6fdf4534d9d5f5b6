"""What is done survives a kill: each image's features are a file of their own until all are joined.

``features.h5.parts/`` holds one HDF5 file an image, written whole or not at all. When all images of a run are
done they are joined into ``features.h5``, which takes its place whole or not at all. Parts of other runs,
killed or at work, stay; the folder goes with the last of them. Of two runs one waits while the other joins.

With each image's features is the digest of its file. What is done is what has the digest that the file has
now: other files under the same name are extracted anew, and so are images of releases that noted no digest.
"""

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

from ..errors import InputError
from ..features import Features
from ..hdf5 import image_names, is_whole, open_hdf5, pack, remove_stale, replacing, write_features
from ..images import digest
from ..locks import locked

SETTINGS = "d2feat"
"""Attribute of each image's group: how its features were made."""

DIGEST = "image_sha256"
"""Attribute of each image's group: of which file."""

STALE = 10
"""Seconds after which a part that is half written is a killed run's: writing takes milliseconds."""


def parts_folder(out: Path) -> Path:
    """Folder of the parts of the file `out`."""
    return out.with_name(out.name + ".parts")


def part_path(folder: Path, name: str) -> Path:
    """The part of one image; names may hold what file names may not."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.h5"


def write_part(folder: Path, name: str, features: Features, settings: str, image: str) -> None:
    """Write the features of one image, whole or not at all.

    Args:
        image: `digest` of its file.

    Raises:
        D2FeatError: the file cannot be written.
    """
    with replacing(part_path(folder, name)) as file:
        write_features(file, name, features)
        file[name].attrs[SETTINGS] = settings
        file[name].attrs[DIGEST] = image


def still_to_do(out: Path, images: Mapping[str, Path], settings: str) -> list[str]:
    """The names of the images that neither `out` nor its parts hold the features of; outdated parts go.

    Raises:
        InputError: what is there was made with other settings.
    """
    folder, held = parts_folder(out), dict[str, str]()
    with locked(out.resolve().parent):
        if out.exists():
            with open_hdf5(out) as file:
                names = image_names(file)
                if len(file) and not names:
                    raise InputError(f"{out} holds something else than features of images; choose another -o")
                held = {name: file[name].attrs.get(DIGEST, "") for name in names if name in images}
                for name in names[:1]:
                    _check_settings(out, file[name].attrs.get(SETTINGS), settings)
        whole = (part for part in sorted(folder.glob("*.h5")) if is_whole(part))
        for part in islice(whole, 1):
            with open_hdf5(part) as file:
                _check_settings(folder, file[image_names(file)[0]].attrs.get(SETTINGS), settings)
        return [name for name, path in images.items() if not _is_done(name, path, folder, held)]


def join_parts(out: Path, names: Collection[str], outdated: Collection[str], settings: str) -> int:
    """Join the parts of the images into `out`, beside what it holds, and remove them; other parts stay.

    Args:
        names: images, the parts of which replace what `out` holds.
        outdated: images, what `out` holds of which is removed.

    Returns:
        How many images it holds then.

    Raises:
        InputError: another run has written what was made with other settings; the parts stay.
    """
    folder, held = parts_folder(out), set[str]()
    with locked(out.resolve().parent):
        if out.exists():
            with open_hdf5(out) as file:
                held = set(image_names(file))
                for name in sorted(held)[:1]:
                    _check_settings(out, file[name].attrs.get(SETTINGS), settings)
        new = {name: path for name in names if (path := part_path(folder, name)).exists()}
        for name, path in new.items():
            with open_hdf5(path) as file:
                _check_settings(folder, file[name].attrs.get(SETTINGS), settings)
        gone = held & {*new, *outdated}
        if new or gone:
            pack([*([out] if held else []), *new.values()], out, gone)
        for path in new.values():
            path.unlink()
        _remove_if_empty(folder)
    return len(held - gone) + len(new)


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of parts, but for what other runs have in it."""
    with contextlib.suppress(OSError):
        for partial in folder.glob("*.partial"):
            remove_stale(partial, STALE)
        folder.rmdir()


def _is_done(name: str, path: Path, folder: Path, held: Mapping[str, str]) -> bool:
    """Whether the image is done; a part of another file goes, for it would be joined."""
    part = part_path(folder, name)
    if name not in held and not part.exists():
        return False
    now = digest(path)
    if is_whole(part):
        with open_hdf5(part) as file:
            of_part = file[name].attrs.get(DIGEST, "")
        if now and of_part == now:
            return True
        part.unlink()
    return bool(now) and held.get(name) == now


def _check_settings(path: Path, found: str | None, settings: str) -> None:
    if found is None:
        raise InputError(f"{path} holds features that d2feat extract did not make; choose another -o")
    if found != settings:
        raise InputError(
            f"{path} holds features made with {found}, not {settings}; choose another -o, or remove it"
        )
