"""Matches of the images of a file of features, in hloc's HDF5 layout."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..features import Features
from ..hdf5 import image_names, open_hdf5, pack, read_features, replacing, write_matches
from ..matching import match
from .parts import part_path, parts_folder

HELD = 64
"""Images whose features are held in memory."""


def read_pairs(source: str, features: Path) -> list[tuple[str, str]]:
    """Pairs of names from a file with two a line, as hloc writes them; "all" is every pair of images.

    Raises:
        InputError: there is no such file, a line does not hold two names, or an image has no features.
    """
    with open_hdf5(features) as file:
        names = image_names(file)
    if source == "all":
        return list(itertools.combinations(names, 2))
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"no file of pairs at {path}; it has two names of images a line, or say: --match all"
        )
    pairs, known = [], set(names)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not known.issuperset(words):
            unknown = [word for word in words if word not in known]
            wrong = f"no features of {unknown[0]}" if unknown else "not two names"
            raise InputError(f"{path}, line {number}: {wrong}")
        pairs.append((words[0], words[1]))
    return list(dict.fromkeys(pairs))


def match_pairs(pairs: Sequence[tuple[str, str]], features: Path, out: Path) -> Iterator[int]:
    """Match pairs by mutual nearest neighbours into `out`; yields how many more are done.

    The pairs that share their first image are one part, so that a kill loses no more than those.
    """
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    by_first: dict[str, list[str]] = {}
    for first, second in pairs:
        by_first.setdefault(first, []).append(second)
    parts = []
    with open_hdf5(features) as file:

        @functools.lru_cache(HELD)
        def read(name: str) -> Features:
            return read_features(file, name)

        for first, others in by_first.items():
            parts.append(part_path(folder, "\n".join([first, *others])))
            if not parts[-1].exists():
                with replacing(parts[-1]) as part:
                    for second in others:
                        _write(part, first, read(first), second, read(second))
            yield len(others)
    pack(parts, out)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _write(file: object, first: str, one: Features, second: str, two: Features) -> None:
    found = match(one.descriptors, two.descriptors)
    indices = np.array([(m.queryIdx, m.trainIdx) for m in found], np.int64).reshape(-1, 2)
    # Of unit descriptors, so that distances are 0 to 2: higher is better.
    scores = np.array([1 - m.distance / 2 for m in found], np.float32)
    write_matches(file, first, second, indices, scores, len(one))
