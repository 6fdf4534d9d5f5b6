"""Large images in overlapping tiles: memory is bounded by the tile, not by the image.

A cell of the network sees 92 px of its level, and a detection sees a few cells. Tiles start on the grid of
the two poolings, so that cells of the tile are cells of the image, and overlap so far that what lies in a
tile's core sees nothing of its cut edges. With one scale a tile's dense map there is the image's, and so are
the descriptors (but for those pooled over rotations), and with the paper's head all else. The fine head's
score is relative to the strongest response of what the network is given, tile or image: scores of one tile
differ from those of the whole image by a nearly constant factor, of a few per cent on photographs, and
positions by some thousandths of a pixel (measured in docs/speed.md). With several scales the fine head's
levels, which know nothing of each other, are tiled one by one; the levels of a tile are sampled between the
pixels where those of the image are not, so that features agree only as those of an image moved by a fraction
of a pixel do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .features import Features, Floats
from .images import Image

MARGIN: Final = 64
"""Pixels of a level between a tile's cut edge and its core: half of the 92 that a cell sees, two cells for
the score between cells, and the window of the maximum."""

GRID: Final = 8
"""Tiles start at multiples of it: cells of 4 px, at half size, too."""

SEAM: Final = 1.0
"""Neighbouring tiles both keep what lies within this distance, in pixels, of the line between their cores."""

LONGEST: Final = 2.0**31
"""No image is longer, in pixels, and no tile or margin need be."""

Mask = npt.NDArray[np.bool_]


class Span(NamedTuple):
    """One tile along one axis, in pixels: the network sees start..stop, features of first..last count."""

    start: int
    stop: int
    first: int
    last: int


def margin(scales: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """`MARGIN` of the coarsest level in pixels of the image, on the grid."""
    return math.ceil(min(MARGIN / min(1.0, *map(float, scales)), LONGEST) / GRID) * GRID


def smallest_tile(scales: Sequence[float] | npt.NDArray[np.float64], *, one_by_one: bool) -> int:
    """Edge of the smallest tile that has a core to speak of; levels tiled one by one, or all together."""
    if one_by_one:
        return math.ceil(min(4 * MARGIN * max(1.0, *map(float, scales)), LONGEST))
    return 4 * margin(scales)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of at most `tile` pixels over `length` pixels that overlap by at least `overlap`."""
    if length <= tile:
        return [Span(0, length, 0, length)]
    reach = (tile - overlap - GRID) // GRID * GRID
    count = math.ceil((length - tile) / reach) + 1
    starts = [math.ceil((length - tile) * i / (count - 1) / GRID) * GRID for i in range(count)]
    stops = [min(start + tile, length) for start in starts]
    lines = [0, *((stops[i] + starts[i + 1]) // 2 for i in range(count - 1)), length]
    return [Span(starts[i], stops[i], lines[i], lines[i + 1]) for i in range(count)]


def extract_tiled(
    extract: Callable[[Image, Mask | None], Features],
    image: Image,
    mask: Mask | None,
    tile: int,
    border: int,
    nfeatures: int,
) -> Features:
    """Features of a large image, best first.

    Args:
        extract: gives all features of a tile and its mask, in pixels of the tile.
        image: H x W x 3.
        mask: H x W bool, or None; tiles where nothing may lie are not looked at.
        tile: largest edge of a tile.
        border: `margin` of the scales.
        nfeatures: keep so many of the best; 0 or less keeps all.
    """
    parts: list[Features] = []
    for x, y in _tiles(image, tile, border):
        window = np.s_[y.start : y.stop, x.start : x.stop]
        allowed = None if mask is None else mask[window]
        if allowed is not None and not allowed.any():
            continue
        found = _placed(extract(np.ascontiguousarray(image[window]), allowed), x, y, image)
        parts.append(found[~_doubled(parts, found, x, y)])
        if nfeatures > 0:
            parts = [best_of(parts, nfeatures)]
    if not parts:  # the mask is zero
        return replace(extract(image[:1, :1], None), image_size=(image.shape[1], image.shape[0]))
    return best_of(parts, nfeatures)


def describe_tiled(
    describe: Callable[[Image, Floats], Floats], image: Image, points: Floats, tile: int, border: int
) -> Floats:
    """M x C descriptors of M x 3 points, (x, y, scale), of a large image, each from the tile whose it is.

    Args:
        describe: gives the descriptors of points of a tile, in its pixels.
        image, tile, border: as for `extract_tiled`.
        points: those outside of the image are described at its border.
    """
    descriptors: Floats | None = None
    last = np.array(image.shape[1::-1], np.float32) - 1
    pixels = np.rint(points[:, :2].clip(0, last))
    for x, y in _tiles(image, tile, border):
        mine = (pixels >= (x.first, y.first)).all(1) & (pixels < (x.last, y.last)).all(1)
        if not mine.any():
            continue
        moved = points[mine] - np.array([x.start, y.start, 0], np.float32)
        found = describe(np.ascontiguousarray(image[y.start : y.stop, x.start : x.stop]), moved)
        if descriptors is None:
            descriptors = np.empty((len(points), found.shape[1]), np.float32)
        descriptors[mine] = found
    return describe(image[:1, :1], points) if descriptors is None else descriptors


def _tiles(image: Image, tile: int, border: int) -> Iterator[tuple[Span, Span]]:
    """Spans along x and y of every tile, row by row."""
    across = spans(image.shape[1], tile, 2 * border)
    for y in spans(image.shape[0], tile, 2 * border):
        for x in across:
            yield x, y


def _placed(found: Features, x: Span, y: Span, image: Image) -> Features:
    """Features of a tile's core and seams, in pixels of the image."""
    keypoints = found.keypoints + np.array([x.start, y.start], np.float32)
    low = np.array([x.first, y.first]) - (0.5 + SEAM)
    high = np.array([x.last, y.last]) - (0.5 - SEAM)
    mine = ((keypoints >= low) & (keypoints < high)).all(1)
    size = image.shape[1], image.shape[0]
    return replace(found, keypoints=keypoints, image_size=size)[mine]


def _doubled(parts: list[Features], found: Features, x: Span, y: Span) -> Mask:
    """Which of a tile's features a neighbour has found already.

    The two differ by rounding and by the factor of the fine head's score. Who owns a feature that close to
    the line is so decided by who came first, never by rounding: none is lost, none is there twice.
    """
    centre = np.array([x.first + x.last - 1, y.first + y.last - 1], np.float32) / 2
    core = np.array([x.last - x.first, y.last - y.first], np.float32) / 2 - SEAM
    doubled = np.zeros(len(found), np.bool_)
    seam = np.flatnonzero((np.abs(found.keypoints - centre) >= core).any(1))
    for part in parts:
        near = (np.abs(part.keypoints - centre) < core + 3 * SEAM).all(1)
        offsets = np.abs(found.keypoints[seam, None] - part.keypoints[near])
        same = (offsets < SEAM / 2).all(2) & (found.scales[seam, None] == part.scales[near])
        doubled[seam] |= same.any(1)
    return doubled


def best_of(parts: list[Features], nfeatures: int) -> Features:
    """The parts as one, best first; `nfeatures` of them if positive."""
    scores = np.concatenate([part.scores for part in parts])
    best = np.argsort(-scores, kind="stable")
    best = best[:nfeatures] if nfeatures > 0 else best
    # Descriptors can take gigabytes: each is copied once, to its place.
    place = np.full(len(scores), -1)
    place[best] = np.arange(len(best))
    ends = np.cumsum([len(part) for part in parts])
    descriptors = np.empty((len(best), parts[0].descriptors.shape[1]), np.float32)
    for part, places in zip(parts, np.split(place, ends[:-1]), strict=True):
        descriptors[places[places >= 0]] = part.descriptors[places >= 0]
    angles = [part.angles for part in parts if part.angles is not None]
    return Features(
        np.concatenate([part.keypoints for part in parts])[best],
        scores[best],
        np.concatenate([part.scales for part in parts])[best],
        descriptors,
        parts[0].image_size,
        np.concatenate(angles)[best] if len(angles) == len(parts) else None,
    )
