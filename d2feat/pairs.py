"""Which images are matched with which, and the matches of all pairs, in hloc's layouts."""

import contextlib
import functools
import hashlib
import itertools
import shutil
import time
import types
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import hdf5
from .errors import InputError
from .features import Features
from .lists import read_lines
from .locks import locked
from .matching import match_indices

Pair = tuple[str, str]
"""Names of two images."""

Matches = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""M x 2 indices of matching features, and M scores, 0 to 1."""

HELD: Final = 64
"""Images whose features are held in memory: 8 MB each at 4000 features."""


MADE_OF: Final = "made_of"
"""Attribute of each pair's group: a digest of the features and the rule."""


def read_pairs(path: Path, names: Collection[str]) -> list[Pair]:
    """The pairs of a text file, two names a line, as hloc and COLMAP write them; each once.

    Names may hold spaces: a line is split where that gives two of `names`.

    Raises:
        InputError: there is no such file, or a line is not two of the names.
    """
    if not path.is_file():
        raise InputError(f"no file of pairs at {path}; it has the names of two images a line")
    known = set(names)
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        splits = [(line[:i], line[i:]) for i, character in enumerate(line) if character.isspace()]
        named = [(hdf5.stored_name(one.strip()), hdf5.stored_name(two.strip())) for one, two in splits]
        pair = next((both for both in named if known.issuperset(both)), None)
        if pair is None and len(words) == 2:
            unknown = next(word for word in words if hdf5.stored_name(word) not in known)
            raise InputError(f"{path}, line {number}: there is no image {unknown}")
        if pair is None or pair[0] == pair[1]:
            raise InputError(f"{path}, line {number}: {line!r} is not the names of two images")
        pairs.append(pair)
    return list(dict.fromkeys(pairs))


def check_flat_names(names: Iterable[str]) -> None:
    """See that no two images have one name in pairs, where a slash is written as a hyphen.

    Raises:
        InputError: two have.
    """
    flat: dict[str, str] = {}
    for name in names:
        other = flat.setdefault(hdf5.flat_name(name), name)
        if other != name:
            raise InputError(f"hloc's layout has one name for the images {other} and {name}: rename one")


def match_features(one: Features, two: Features, **rule: Any) -> Matches:
    """Mutual nearest neighbours, as `d2feat.match` finds them; scores are (1 + cosine) / 2, as hloc's."""
    indices, distance = match_indices(one.descriptors, two.descriptors, **rule)
    return indices, (1 - distance * distance / 4).astype(np.float32)


def match_pairs(
    pairs: Sequence[Pair],
    features: Path,
    out: Path,
    rule: Callable[[Features, Features], Matches] = match_features,
) -> Iterator[int]:
    """Match the pairs of images of the file `features` into the file `out`; yields how many more are done.

    What is done survives a kill: the pairs that share their first image are a file of their own, in
    ``OUT.parts``, until all are joined. The file's attribute ``seconds`` says how long it took.
    Pairs of an earlier `out` are kept. A part, or such a pair, is taken only if it was made of the same
    features by the same rule, a digest of which is with it. A rule that is neither a function of a module nor
    a `functools.partial` of one cannot be known again: all its pairs are matched.

    While another process matches into the same file this one waits.

    Raises:
        InputError: there is no such file, it lacks an image of the pairs, or two names are one in the layout.
    """
    check_flat_names(itertools.chain.from_iterable(pairs))
    folder = out.with_name(out.name + ".parts")
    by_first: dict[str, list[str]] = {}
    for first, second in pairs:
        by_first.setdefault(first, []).append(second)
    parts = []
    with locked(folder, temporary=True), hdf5.open_hdf5(features) as file, contextlib.ExitStack() as stack:
        earlier: Any = stack.enter_context(hdf5.open_hdf5(out)) if out.exists() else {}
        images = _Images(file, rule)
        for first, others in by_first.items():
            parts.append(folder / f"{images.key(first, *others)}.h5")
            if not hdf5.is_whole(parts[-1]):
                _match_part(parts[-1], first, others, images, earlier)
            yield len(others)
        for first, kept in _others(earlier, pairs, hdf5.image_names(file), images.key):
            parts.append(folder / f"kept-{len(parts)}.h5")
            with hdf5.replacing(parts[-1]) as part:
                for second in kept:
                    earlier.copy(f"{first}/{second}", part, f"{first}/{second}")
        stack.close()
        hdf5.pack(parts, out)
        shutil.rmtree(folder)


class _Images:
    """The features in an open file, of which those read last are held, and what their matches are made of."""

    def __init__(self, file: Any, rule: Callable[[Features, Features], Matches]) -> None:
        self.rule, self._identity = rule, _identity(rule)
        self.read = functools.lru_cache(HELD)(functools.partial(hdf5.read_features, file))
        self._digests: dict[str, str] = {}

    def key(self, *names: str) -> str:
        """A digest of the rule and of the images' features."""
        for name in names:
            if name not in self._digests:
                self._digests[name] = _digest(self.read(name))
        made_of = [f"{name}\n{self._digests[name]}" for name in names]
        return hashlib.sha256("\n".join([self._identity, *made_of]).encode()).hexdigest()[:32]


def _match_part(path: Path, first: str, others: Sequence[str], images: _Images, earlier: Any) -> None:
    """Write the matches of an image with others; those of `earlier` that are made of the same are copied."""
    start = time.perf_counter()
    with hdf5.replacing(path) as part:
        for second in others:
            pair, made_of = hdf5.pair_name(first, second), images.key(first, second)
            if pair in earlier and earlier[pair].attrs.get(MADE_OF) == made_of:
                earlier.copy(pair, part, pair)
                continue
            found = images.rule(images.read(first), images.read(second))
            hdf5.write_matches(part, first, second, *found, len(images.read(first)))
            part[pair].attrs[MADE_OF] = made_of
        part.attrs["seconds"] = time.perf_counter() - start


def _others(
    earlier: Any, pairs: Sequence[Pair], images: Sequence[str], key: Callable[[str, str], str]
) -> Iterator[tuple[str, list[str]]]:
    """The pairs of an earlier file, beside `pairs`, that are of the images as they are: first, seconds.

    Args:
        key: what a pair of two images is made of now, as its `MADE_OF` has it.
    """
    names: dict[str, list[str]] = {}
    for name in images:
        names.setdefault(hdf5.flat_name(name), []).append(name)
    matched = {hdf5.pair_name(*order) for pair in pairs for order in (pair, pair[::-1])}

    def is_of(pair: Any, first: str, second: str) -> bool:
        both = itertools.product(names.get(first, ()), names.get(second, ()))
        return any(pair.attrs.get(MADE_OF) == key(*images) for images in both)

    for first, group in earlier.items():
        if hasattr(group, "items"):
            kept = [
                second
                for second, pair in group.items()
                if f"{first}/{second}" not in matched and is_of(pair, first, second)
            ]
            if kept:
                yield first, kept


def _digest(features: Features) -> str:
    """Of all that a rule can see: the same settings may give others on another device."""
    arrays = [features.keypoints, features.scores, features.scales, features.descriptors, features.angles]
    found = hashlib.sha256(repr(features.image_size).encode())
    for array in arrays:
        if array is not None:
            found.update(repr(array.shape).encode())
            found.update(array.tobytes())
    return found.hexdigest()


def _identity(rule: Callable[..., Any]) -> str:
    """What tells a rule from others: its name and what is bound to it. Closures and methods hold more."""
    if isinstance(rule, functools.partial):
        return f"{_identity(rule.func)} {rule.args} {sorted(rule.keywords.items())}"
    if isinstance(rule, types.FunctionType) and "<" not in rule.__qualname__:
        return f"{rule.__module__}.{rule.__qualname__}"
    return uuid.uuid4().hex
