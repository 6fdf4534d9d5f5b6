"""Where D2-Net does better than SIFT and where worse: ``python examples/strengths.py -o docs``.

Photographs of scikit-image are changed in ways that are known exactly. A table is printed, and two pictures
are written: light-blur-jpeg.jpg (light, blur, JPEG) and rotation.jpg (turned).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from skimage import data

import d2feat
from d2feat.compare import Comparison, compare
from d2feat.demo import relight, view_change
from d2feat.drawing import draw_comparison, stack
from d2feat.evaluation.metrics import localisation, match_errors

Image = np.ndarray
Change = Callable[[Image], tuple[Image, np.ndarray]]

SIZE = 360, 270
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")


def light(change: Callable[[Image], Image]) -> Change:
    """A change of the pixels of the same view."""
    return lambda image: (change(image), np.eye(3))


def view(rotation: float, scale: float) -> Change:
    """A change of the viewpoint: the picture turned by degrees, and its size."""

    def change(image: Image) -> tuple[Image, np.ndarray]:
        H = view_change(image.shape[1::-1], rotation, scale, tilt=0)
        return cv2.warpPerspective(image, H, image.shape[1::-1], flags=cv2.INTER_CUBIC), H

    return change


def jpeg(image: Image, quality: int) -> Image:
    """The picture after strong compression."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


CHANGES: dict[str, Change] = {
    "night": light(relight),
    "blur, sigma 3 px": light(lambda image: cv2.GaussianBlur(image, (0, 0), 3)),
    "JPEG, quality 5": light(lambda image: jpeg(image, 5)),
    "night, blurred (sigma 1.5 px), JPEG 20": light(
        lambda image: jpeg(cv2.GaussianBlur(relight(image), (0, 0), 1.5), 20)
    ),
    "turned by 5 degrees": view(5, 0.97),
    "turned by 30 degrees": view(30, 0.97),
    "turned by 90 degrees": view(90, 0.97),
    "half the size": view(0, 0.5),
}
PICTURES = {
    "light-blur-jpeg.jpg": ("coffee", "night, blurred (sigma 1.5 px), JPEG 20"),
    "rotation.jpg": ("coffee", "turned by 90 degrees"),
}


def median_errors(result: Comparison, image: Image, changed: Image, H: np.ndarray) -> tuple[float, float]:
    """Median error, px, of the matches within 3 px: how exact the right ones are, also once refined."""
    refined = d2feat.refine(image, result.points1, changed, result.points2)
    raw = result.points1, result.points2
    before, after = (localisation(match_errors(*points, H)) for points in (raw, refined))
    return before, after


def main() -> None:
    """Print the table, write the pictures."""
    parser = argparse.ArgumentParser(description="Compare D2-Net and SIFT under known changes.")
    parser.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    detectors = {"D2-Net": d2feat.create(1000), "SIFT": cv2.SIFT_create(1000)}
    columns = "inliers | corner error | right matches off by | refined"
    print(f"| change | D2-Net: {columns} | SIFT: {columns} |")
    print("|---" * 9 + "|")
    for name, change in CHANGES.items():
        figures: dict[str, list[tuple[float, ...]]] = {method: [] for method in detectors}
        for photograph in PHOTOGRAPHS:
            picture = cv2.cvtColor(getattr(data, photograph)(), cv2.COLOR_RGB2BGR)
            image = cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)
            changed, H = change(image)
            results = [compare(method, one, image, changed, H) for method, one in detectors.items()]
            for result in results:
                error = float("inf") if result.corner_error is None else result.corner_error
                off = median_errors(result, image, changed, H)
                figures[result.method].append((len(result.homography), error, *off))
            for file, shown in PICTURES.items():
                if shown == (photograph, name):
                    drawn = stack([draw_comparison(image, changed, result) for result in results])
                    small = cv2.resize(drawn, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
                    cv2.imwrite(str(out / file), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
        cells = []
        for rows in figures.values():
            inliers, corner, off, refined = np.median(np.array(rows), axis=0)
            cells += [
                f"{inliers:.0f}",
                f"{corner:.2f} px" if np.isfinite(corner) else "none found",
                f"{off:.2f} px",
                f"{refined:.2f} px",
            ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
