"""Observations of a model to some hundredths of a pixel, by the photos' pixels.

Of the photos that see a point one is its reference, the one whose ray lies in the middle of all. The point's
observations in the others move to where these look most like the reference (`d2feat.refine`). So what each
was off by itself is gone, and all share what the reference is off by, which makes it a point beside the
keypoint. The aim is that of Lindenberger et al., "Pixel-perfect structure-from-motion", ICCV 2021, which
compares maps of a network in place of pixels.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import D2FeatError
from ..images import Image
from ..refinement import refine_points
from .colmap import pycolmap
from .mapping import adjust
from .photos import read_photo

_HELD: Final = 8
"""Photos that are kept decoded."""
_EDGE: Final = 1600
"""Longer edge, px, to which larger photos are made smaller, as features are found in them by default."""
_KEPT: Final = 2.0, 0.5
"""Largest error of reprojection, px, and smallest angle between rays, degrees, of what is kept."""

Pixels = npt.NDArray[np.float64]


def refine_tracks(
    model: Any, photos: Path, known: bool = False, advance: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Refine the observations of a `pycolmap.Reconstruction` in place, and adjust it anew.

    Keypoints that are no observation stay what they are.

    Args:
        photos: folder of the photographs.
        known: whether the cameras are, and stay.
        advance: called with the pairs of photos done since the last call, and all there are.

    Raises:
        InputError: a photo cannot be read.
        D2FeatError: no point is left.
    """

    @lru_cache(_HELD)
    def photo(image_id: int) -> tuple[Image, Pixels]:
        return _reduced(read_photo(photos / model.images[image_id].name).stored)

    observed = {number: _observed(model.images[number]) for number in model.reg_image_ids()}
    references = {number: _reference(model, point) for number, point in model.points3D.items()}
    pairs = sorted(
        {
            (references[number], element.image_id)
            for number, point in model.points3D.items()
            for element in point.track.elements
            if element.image_id != references[number]
        }
    )
    before: dict[tuple[int, int], Pixels] = {}
    for one, two in pairs:
        # All that both see says how the one looks in the other; what has its reference here moves.
        shared = sorted(observed[one].keys() & observed[two].keys())
        (image1, scale1), (image2, scale2) = photo(one), photo(two)
        here, there = (
            _positions(model.images[number], [observed[number][point] for point in shared], scale)
            for number, scale in ((one, scale1), (two, scale2))
        )
        chosen = np.array([references[point] == one for point in shared])
        moved = refine_points(image1, image2, here, there, chosen)
        for point, place in zip(np.array(shared)[chosen].tolist(), moved[chosen], strict=True):
            index = observed[two][point]
            keypoint = model.images[two].points2D[index]
            before[two, index] = keypoint.xy.copy()
            keypoint.xy = (place.astype(np.float64) + 0.5) / scale2
        advance(1, len(pairs))
    adjust(model, known)
    pycolmap.ObservationManager(model).filter_all_points3D(*_KEPT)
    if model.num_points3D() == 0:
        raise D2FeatError("no point is left of the model after refinement; take the one without --refine")
    adjust(model, known)
    for (number, index), place in before.items():
        keypoint = model.images[number].points2D[index]
        if not keypoint.has_point3D():
            keypoint.xy = place


def _observed(image: Any) -> dict[int, int]:
    """By the number of each point that an image sees the index of its keypoint."""
    return {point.point3D_id: i for i, point in enumerate(image.points2D) if point.has_point3D()}


def _reference(model: Any, point: Any) -> int:
    """The image whose ray to a point is nearest to all others."""
    images: list[int] = sorted({element.image_id for element in point.track.elements})
    rays = np.array([model.images[number].projection_center() for number in images]) - point.xyz
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return images[int((rays @ rays.sum(0)).argmax())]


def _reduced(image: Image) -> tuple[Image, Pixels]:
    """An image of at most `_EDGE`, and its size over the one it had, (x, y)."""
    size = np.array(image.shape[1::-1])
    reduced = np.rint(size * min(1.0, _EDGE / size.max())).astype(np.int64).clip(min=1)
    if (reduced < size).any():
        image = np.asarray(cv2.resize(image, reduced.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
    return image, reduced / size


def _positions(image: Any, indices: list[int], scale: Pixels) -> npt.NDArray[np.float32]:
    """N x 2 (x, y) of keypoints in the photo so much smaller, pixel centres at integers."""
    places = np.array([image.points2D[i].xy for i in indices]).reshape(-1, 2)
    return (places * scale - 0.5).astype(np.float32)
