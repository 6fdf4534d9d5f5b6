"""A small scene with exact truth: a corner of three photographs, two walls and a floor, and known cameras.

The corner is at the origin, y points down, and the faces are squares at x = 0, z = 0 and y = 0 (the floor),
in the octant of positive x and z and negative y. Cameras look into it, so no face hides another.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage import data

SIZE = 288, 216
FOCAL = 300.0
SIDE = 3.0
"""Of the faces; the cameras are about 4.5 from the corner."""


@dataclass(frozen=True, eq=False)
class View:
    """An image of the scene (BGR) and its camera: x ~ K (R X + t), pixel centres at integers."""

    image: np.ndarray
    K: np.ndarray
    R: np.ndarray
    t: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        return -self.R.T @ self.t


def photographs() -> list[np.ndarray]:
    """The faces: two walls and the floor."""
    pictures = [data.coffee(), data.astronaut(), data.chelsea()]
    return [cv2.resize(picture[..., ::-1], (600, 600), interpolation=cv2.INTER_AREA) for picture in pictures]


def render(azimuth: float, height: float = 1.6, distance: float = 4.4, larger: int = 1) -> View:
    """The scene from `azimuth` degrees between the walls (45 is the diagonal), so many times larger."""
    size, focal = (SIZE[0] * larger, SIZE[1] * larger), FOCAL * larger
    angle = np.deg2rad(azimuth)
    centre = np.array([distance * np.cos(angle), -height, distance * np.sin(angle)])
    forward = np.array([0.7, -1.1, 0.7]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    t = -R @ centre
    K = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])
    # Each face by its corner in the scene and the directions of its picture's x and y.
    faces = [
        ((0, -1, 1), (0, 0, -1), (0, 1, 0)),
        ((0, -1, 0), (1, 0, 0), (0, 1, 0)),
        ((0, 0, 0), (1, 0, 0), (0, 0, 1)),
    ]
    samples = 3
    fine = np.diag([samples, samples, 1.0])
    fine[:2, 2] = (samples - 1) / 2
    canvas = np.full((size[1] * samples, size[0] * samples, 3), 128, np.uint8)
    for picture, (corner, across, down) in zip(photographs(), faces, strict=True):
        to_scene = SIDE * np.column_stack([np.array(across) / 599, np.array(down) / 599, corner])
        H = fine @ K @ (R @ to_scene + np.column_stack([np.zeros((3, 2)), t]))
        whole = canvas.shape[1::-1]
        seen = cv2.warpPerspective(
            np.full(picture.shape[:2], 255, np.uint8), H, whole, flags=cv2.INTER_NEAREST
        )
        cv2.copyTo(cv2.warpPerspective(picture, H, whole, flags=cv2.INTER_CUBIC), seen, canvas)
    return View(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), K, R, t)


def write_views(folder: Path, views: dict[str, View]) -> None:
    """The images as files."""
    for name, view in views.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), view.image)
