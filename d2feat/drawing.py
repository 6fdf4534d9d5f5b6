"""Pictures of matches: two images side by side, lines between what was matched, a caption above."""

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .compare import Comparison
from .images import Image

WIDTH: Final = 1600
"""Of a picture, in pixels."""

MAX_HEIGHT: Final = 900
"""Of the images in a picture, in pixels."""

MAX_LINES: Final = 120

_GAP: Final = 12
_CAPTION_HEIGHT: Final = 56
_BACKGROUND: Final = (28, 24, 22)
_WHITE: Final = (245, 245, 245)
_GREY: Final = (178, 170, 165)
_SHIFT: Final = 4  # fractional bits of the coordinates that OpenCV draws at
_FINER: Final = 2  # text is drawn this much larger, then reduced, for smooth edges


def draw_comparison(image1: Image, image2: Image, result: Comparison) -> Image:
    """The images side by side with the result's inliers, under a caption that sums the result up.

    Args:
        image1, image2: H x W x 3 uint8 BGR, or H x W; their sizes may differ.
        result: of matching them.

    Returns:
        BGR picture, `WIDTH` wide.
    """
    title, details = describe_result(result)
    body = draw_matches(image1, image2, result.points1[result.inliers], result.points2[result.inliers])
    return np.vstack([_caption(title, details), body])


def stack(pictures: Sequence[Image]) -> Image:
    """Pictures of equal width, one above the other."""
    gap = np.full((_GAP, pictures[0].shape[1], 3), _BACKGROUND, np.uint8)
    rows: list[Image] = []
    for picture in pictures:
        rows += [gap, picture] if rows else [picture]
    return np.vstack(rows)


def describe_result(result: Comparison) -> tuple[str, str]:
    """Title and details of a result for a caption, in ASCII, all that OpenCV's fonts have."""
    model = "homography" if result.planar else "fundamental matrix"
    details = [
        f"{result.features[0]} + {result.features[1]} features",
        f"{result.matches} matches",
        f"{int(result.inliers.sum())} inliers of a {model}",
    ]
    if result.corner_error is not None:
        found = np.isfinite(result.corner_error)
        details.append(f"corner error {result.corner_error:.2f} px" if found else "no homography found")
    details.append(f"{result.detection_seconds + result.matching_seconds:.2f} s")
    return result.method, "   |   ".join(details)


def draw_matches(
    image1: Image,
    image2: Image,
    points1: npt.NDArray[np.float32],
    points2: npt.NDArray[np.float32],
    width: int = WIDTH,
) -> Image:
    """Two images side by side, at the same height, and at most `MAX_LINES` of their matches.

    Args:
        image1, image2: H x W x 3 uint8 BGR, or H x W.
        points1, points2: M x 2, (x, y) in pixels of each image.
        width: of the picture.
    """
    images = [_as_colour(image1), _as_colour(image2)]
    ratios = [image.shape[1] / image.shape[0] for image in images]
    fitting = (width - _GAP) / sum(ratios)
    height = max(1, min(MAX_HEIGHT, int(fitting)))
    resized = [
        _resized(image, height, max(1, int(min(height, fitting) * ratio)))
        for image, ratio in zip(images, ratios, strict=True)
    ]
    canvas: Image = np.full((height, width, 3), _BACKGROUND, np.uint8)
    left = (width - _GAP - sum(image.shape[1] for image in resized)) // 2
    offsets = [left, left + resized[0].shape[1] + _GAP]
    for image, offset in zip(resized, offsets, strict=True):
        canvas[:, offset : offset + image.shape[1]] = image

    chosen = spread(points1, MAX_LINES)
    ends = [
        (points[chosen] + 0.5) * np.divide(image.shape[1::-1], original.shape[1::-1]) - 0.5 + (offset, 0)
        for points, image, original, offset in zip((points1, points2), resized, images, offsets, strict=True)
    ]
    colours = _ramp(ends[0])
    lines = canvas.copy()
    for a, b, colour in zip(*map(_fixed, ends), colours, strict=True):
        cv2.line(lines, a, b, colour, 1, cv2.LINE_AA, _SHIFT)
    canvas = cv2.addWeighted(lines, 0.6, canvas, 0.4, 0)  # type: ignore[assignment]
    for points in ends:
        for point, colour in zip(_fixed(points), colours, strict=True):
            cv2.circle(canvas, point, 4 << _SHIFT, (20, 20, 20), cv2.FILLED, cv2.LINE_AA, _SHIFT)
            cv2.circle(canvas, point, 3 << _SHIFT, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return canvas


def spread(points: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.int64]:
    """Indices of at most `count` of M x 2 points that lie evenly over the image, each far from the others."""
    if len(points) <= count:
        return np.arange(len(points))
    chosen = np.empty(count, np.int64)
    chosen[0] = 0
    distance = np.full(len(points), np.inf)
    for i in range(1, count):
        distance = np.minimum(distance, ((points - points[chosen[i - 1]]) ** 2).sum(1))
        chosen[i] = distance.argmax()
    return np.sort(chosen)


def _ramp(points: npt.NDArray[np.floating[Any]]) -> list[tuple[int, int, int]]:
    """A colour for each of M x 2 points, by height in the picture: neighbours are told apart by it."""
    if len(points) == 0:
        return []
    order = points[:, 1].argsort().argsort() / max(1, len(points) - 1)
    levels = np.rint(255 * (0.1 + 0.8 * order)).astype(np.uint8)
    colours = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_TURBO).reshape(-1, 3)
    return [(int(blue), int(green), int(red)) for blue, green, red in colours]


def _fixed(points: npt.NDArray[np.floating[Any]]) -> list[tuple[int, int]]:
    """(x, y) as the fixed-point numbers that OpenCV draws at."""
    return [(int(x), int(y)) for x, y in np.rint(points * (1 << _SHIFT))]


def _caption(title: str, details: str) -> Image:
    """A bar of `WIDTH` pixels: the title in bold white, the details smaller beside it."""
    large: Image = np.full((_CAPTION_HEIGHT * _FINER, WIDTH * _FINER, 3), _BACKGROUND, np.uint8)
    font, baseline = cv2.FONT_HERSHEY_DUPLEX, int(0.66 * _CAPTION_HEIGHT * _FINER)
    title_size, details_size = 1.05 * _FINER, 0.68 * _FINER
    x = 20 * _FINER
    cv2.putText(large, title, (x, baseline), font, title_size, _WHITE, 2 * _FINER, cv2.LINE_AA)
    x += cv2.getTextSize(title, font, title_size, 2 * _FINER)[0][0] + 32 * _FINER
    room = WIDTH * _FINER - x - 20 * _FINER
    details_size *= min(1.0, room / cv2.getTextSize(details, font, details_size, _FINER)[0][0])
    cv2.putText(large, details, (x, baseline), font, details_size, _GREY, _FINER, cv2.LINE_AA)
    return cv2.resize(large, (WIDTH, _CAPTION_HEIGHT), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _as_colour(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image  # type: ignore[return-value]


def _resized(image: Image, height: int, width: int) -> Image:
    interpolation = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)  # type: ignore[return-value]
