"""Extraction and matching of many photos, which go on from what they have when they were killed.

Each photo's features, and the matches of all pairs that a photo is the first of, are a file of their own
until the stage is complete; files are written whole or not at all. So a run that was killed any number of
times ends with the same files as one that was not.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from .. import hdf5
from ..errors import InputError
from ..images import digest
from ..pairs import Pair, match_features, match_pairs
from .layout import FEATURES_FILE, MATCHES_FILE, SETTINGS_FILE, SOURCES_FILE
from .methods import FOREIGN, Method
from .photos import check_size, read_photo

_REMEDY: Final = "reconstruct in another folder, or remove the file if all in the folder is as it was"

Advance = Callable[[int], None]
"""Called with the number of photos or pairs that were done, or found done."""


def claim(out: Path, settings: dict[str, Any], later: dict[str, Any] | None = None) -> None:
    """Make the folder `out`, or see that what is there was made with the same settings.

    Args:
        later: settings that may change until all features are there, such as which photos it is of.

    Raises:
        InputError: it was not.
    """
    later = later or {}
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS_FILE
    if path.exists():
        there = read_settings(out)
        complete = (out / FEATURES_FILE).exists()
        checked = settings | later if complete else settings
        differing = [key for key in checked if there.get(key) != json.loads(json.dumps(checked[key]))]
        if differing:
            raise InputError(
                f"{out} holds work with other settings ({', '.join(differing)}); "
                "choose another folder, or remove this one"
            )
        if complete:
            return
    write_json(path, settings | later)


def read_settings(out: Path) -> dict[str, Any]:
    """The settings that the work in a folder was done with; empty if they are not known.

    Raises:
        InputError: they are damaged.
    """
    path = out / SETTINGS_FILE
    return _read_json(path) if path.exists() else {}


def is_foreign(out: Path) -> bool:
    """Whether the features in `out` were put there, and not made by `reconstruct`."""
    return (out / FEATURES_FILE).exists() and read_settings(out).get("method", FOREIGN) == FOREIGN


def check_source(out: Path, name: str, derived: Sequence[str]) -> None:
    """See that what is derived of a file in `out` is of the file that is there, and note which that is.

    Args:
        derived: names of files and folders in `out`.

    Raises:
        InputError: the file was replaced since, and some of these are there.
    """
    path = out / SOURCES_FILE
    noted = _read_json(path) if path.exists() else {}
    now = digest(out / name)
    if noted.get(name, now) != now:
        # Matches that were replaced, too, may be of these features.
        stale = [
            other
            for other in derived
            if (out / other).exists() and (other != MATCHES_FILE or noted.get(other) == digest(out / other))
        ]
        if stale:
            raise InputError(
                f"{out / name} was replaced since it was used for {', '.join(stale)} in {out}; "
                "remove these, or put the file back"
            )
    write_json(path, {**noted, name: now})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); {_REMEDY}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged; {_REMEDY}")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    with hdf5.taking_place(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def extract_photos(
    folder: Path,
    digests: Mapping[str, str],
    cameras: Mapping[str, Any],
    method: Method,
    out: Path,
    advance: Advance = lambda _: None,
) -> None:
    """Write the features of the photos to ``out/features.h5``; attribute ``seconds``: the time it took.

    Args:
        digests: SHA-256 of each photo's file, by name: what is done of the same file is not done again.
        cameras: `pycolmap.Camera` of each.

    Raises:
        InputError: a photo cannot be read, or is not of its camera's size; what is done is kept.
    """
    path = out / FEATURES_FILE
    if path.exists():
        advance(len(digests))
        return
    parts = path.with_name(path.name + ".parts")
    parts.mkdir(exist_ok=True)
    files = []
    for name, found in digests.items():
        key = hashlib.sha256(f"{name}\n{found}".encode()).hexdigest()[:32]
        files.append(parts / f"{key}.h5")
        if not hdf5.is_whole(files[-1]):
            start = time.perf_counter()
            photo = read_photo(folder / name)
            check_size(folder / name, photo, cameras[name])
            features = method.extract(photo)
            with hdf5.replacing(files[-1]) as file:
                hdf5.write_features(file, name, features)
                file.attrs["seconds"] = time.perf_counter() - start
        advance(1)
    hdf5.pack(files, path)
    shutil.rmtree(parts)


def match_photos(pairs: Sequence[Pair], method: Method, out: Path, advance: Advance = lambda _: None) -> None:
    """Write the matches of the pairs of photos of ``out/features.h5`` to ``out/matches.h5``."""
    if (out / MATCHES_FILE).exists():
        advance(len(pairs))
        return
    rule = partial(match_features, **method.matching)
    for done in match_pairs(pairs, out / FEATURES_FILE, out / MATCHES_FILE, rule):
        advance(done)
