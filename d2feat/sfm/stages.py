"""Extraction and matching of many photos, which go on from what they have when they were killed.

Each photo's features, and the matches of all pairs that a photo is the first of, are a file of their own
until the stage is complete; files are written whole or not at all. So a run that was killed any number of
times ends with the same files as one that was not.
"""

import json
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .. import hdf5
from ..errors import InputError
from ..features import Features
from .database import Pair
from .methods import Method, matched
from .photos import read_photo

FEATURES: Final = "features.h5"
MATCHES: Final = "matches.h5"

_HELD: Final = 64
"""Photos whose descriptors are held in memory while matching: 8 MB each at 4000 features."""

Advance = Callable[[int], None]
"""Called with the number of photos or pairs that were done, or found done."""


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder `out`, or see that what is there was made with the same settings.

    Raises:
        InputError: it was not.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in settings if there.get(key) != json.loads(json.dumps(settings[key]))]
        if differing:
            raise InputError(
                f"{out} holds work with other settings ({', '.join(differing)}); "
                "choose another folder, or remove this one"
            )
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def extract_photos(
    folder: Path, names: Sequence[str], method: Method, out: Path, advance: Advance = lambda _: None
) -> None:
    """Write the features of the photos to ``out/features.h5``."""

    def write(file: Any, name: str) -> None:
        hdf5.write_features(file, name, method.extract(read_photo(folder / name)))

    _in_parts(out / FEATURES, dict.fromkeys(names, 1), write, advance)


def match_photos(pairs: Sequence[Pair], method: Method, out: Path, advance: Advance = lambda _: None) -> None:
    """Write the matches of the pairs of photos of ``out/features.h5`` to ``out/matches.h5``."""
    seconds: dict[str, list[str]] = {}
    for one, two in pairs:
        seconds.setdefault(one, []).append(two)
    held: OrderedDict[str, Features] = OrderedDict()
    with hdf5.open_hdf5(out / FEATURES) as features:

        def read(name: str) -> Features:
            if name not in held:
                held[name] = hdf5.read_features(features, name)
                while len(held) > _HELD:
                    held.popitem(last=False)
            held.move_to_end(name)
            return held[name]

        def write(file: Any, one: str) -> None:
            for two in seconds[one]:
                indices, scores = matched(method, read(one), read(two))
                hdf5.write_matches(file, one, two, indices, scores, len(read(one)))

        _in_parts(out / MATCHES, {one: len(two) for one, two in seconds.items()}, write, advance)


def _in_parts(path: Path, steps: dict[str, int], write: Callable[[Any, str], None], advance: Advance) -> None:
    """Make the file at `path` of one part a step; attribute ``seconds``: the time that the steps took.

    Args:
        steps: how much each step does, for `advance`.
    """
    if path.exists():
        advance(sum(steps.values()))
        return
    folder = path.with_name(path.name + ".parts")
    folder.mkdir(exist_ok=True)
    parts = [folder / f"{number:06}.h5" for number in range(len(steps))]
    for part, (step, amount) in zip(parts, steps.items(), strict=True):
        if not part.exists():
            with hdf5.replacing(part) as file:
                start = time.perf_counter()
                write(file, step)
                file.attrs["seconds"] = time.perf_counter() - start
        advance(amount)
    hdf5.pack(parts, path)
    shutil.rmtree(folder)
