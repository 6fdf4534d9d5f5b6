"""Which photos are matched with which. A pair is two names in the photos' order, and occurs once."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..features import Floats
from ..pairs import Pair, read_pairs
from .retrieval import nearest_photos

NEIGHBOURS: Final = 20
"""Photos that each is matched with by retrieval, on average."""
LEAST: Final = 3
"""Photos that each is matched with at least."""
OVERLAP: Final = 10
"""Photos that follow in a sequence and are matched."""
EXHAUSTIVE: Final = 60
"""Photos above which "auto" is retrieval: beyond it, pairs that show the same place become the exception."""


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """All pairs."""
    return list(itertools.combinations(names, 2))


def sequential(names: Sequence[str], overlap: int = OVERLAP) -> list[Pair]:
    """Each photo with the `overlap` next ones, and those 2, 4, 8, ... times as far, as in COLMAP.

    Numbers in names count as such: frame10 follows frame9.
    """
    place = {name: i for i, name in enumerate(names)}
    names = sorted(names, key=_numbered)
    steps = sorted({*range(1, overlap + 1), *(overlap * 2**power for power in range(1, 8))})
    near = [(names[i], names[i + step]) for i in range(len(names)) for step in steps if i + step < len(names)]
    return [(one, two) if place[one] < place[two] else (two, one) for one, two in near]


def _numbered(name: str) -> list[str | int]:
    """A name's texts and numbers, by turns."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def retrieved(
    names: Sequence[str],
    descriptors: Floats,
    agreement: Callable[[int, int], int],
    count: int = NEIGHBOURS,
) -> list[Pair]:
    """The likeliest pairs, as many as if each of N photos were matched with `count` others.

    Candidates are each photo with the 2 `count` nearest by its row of the N x D global descriptors. Of these
    each photo keeps its `LEAST` best, and the others go to whom they promise most: a photo of a crowded place
    has more than one at the edge, where an equal number for each would waste pairs.

    Args:
        agreement: of photos i < j, such as the number of matches in a preview.
    """
    nearest = nearest_photos(descriptors, descriptors, 2 * count + 1)
    candidates = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row if i != j}
    ranked = sorted(candidates, key=lambda pair: (-agreement(*pair), pair))
    kept: list[tuple[int, int]] = []
    others = []
    partners = [0] * len(names)
    for pair in ranked:
        if min(partners[i] for i in pair) < min(LEAST, count):
            kept.append(pair)
        else:
            others.append(pair)
        for i in pair:
            partners[i] += 1
    kept += others[: max(0, count * len(names) // 2 - len(kept))]
    return [(names[i], names[j]) for i, j in sorted(kept)]


def listed(names: Sequence[str], path: Path) -> list[Pair]:
    """The pairs of a text file; see `d2feat.pairs.read_pairs`."""
    order = {name: i for i, name in enumerate(names)}
    pairs = {tuple(sorted(pair, key=order.__getitem__)) for pair in read_pairs(path, names)}
    return sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]]))  # type: ignore[arg-type]
