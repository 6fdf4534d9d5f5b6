"""A picture of a model: its points in their colours and its cameras as pyramids, from above and in front."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure


def draw_model(model: Any, path: Path, title: str = "") -> None:
    """Write the picture of a `pycolmap.Reconstruction`; its format is that of the path's suffix.

    Cameras look along +z of the mean camera; "above" looks along its +y, "front" along its +z.
    """
    images = [model.images[i] for i in model.reg_image_ids()]
    upright = _mean_rotation([image.cam_from_world().rotation.matrix() for image in images])
    points = list(model.points3D.values())
    positions = np.array([point.xyz for point in points]) @ upright.T
    colours = np.array([point.color for point in points]) / 255
    frames = [_pyramid(image, 1.0) @ upright.T for image in images]
    centres = np.array([frame[0, 0] for frame in frames])
    near = _near(positions)
    size = 0.04 * float(np.ptp(np.concatenate([positions[near], centres]), axis=0).max())
    figure: Any = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (x, y), name in zip(figure.subplots(1, 2), ((0, 2), (0, 1)), ("above", "front"), strict=True):
        axes.scatter(*positions[near][:, [x, y]].T, c=colours[near], s=3, linewidths=0)
        lines = [side[:, [x, y]] for image in images for side in _pyramid(image, size) @ upright.T]
        axes.add_collection(LineCollection(lines, colors="#D55E00", linewidths=0.8))
        axes.plot(*centres[:, [x, y]].T, ".", color="#D55E00", markersize=3)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(name, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        if name == "front":
            axes.invert_yaxis()
    figure.suptitle(title or f"{len(images)} cameras, {len(points)} points")
    figure.savefig(path, dpi=100)


def _pyramid(image: Any, size: float) -> Any:
    """8 x 2 x 3: the edges of a camera's pyramid, `size` high, in the world; first from its centre."""
    camera = image.camera
    corners = np.array([(0, 0), (camera.width, 0), (camera.width, camera.height), (0, camera.height)], float)
    centre = (camera.width / 2, camera.height / 2)
    base = np.column_stack([(corners - centre) / camera.mean_focal_length(), np.ones(4)]) * size
    world = image.cam_from_world().inverse()
    base, apex = np.array([world * corner for corner in base]), world.translation
    edges = [(apex, corner) for corner in base] + list(zip(base, np.roll(base, 1, axis=0), strict=True))
    return np.array(edges)


def _near(positions: Any) -> Any:
    """Which points are not so far off that the rest would be a dot."""
    low, high = np.percentile(positions, (2, 98), axis=0)
    margin = 0.3 * (high - low)
    return ((positions > low - margin) & (positions < high + margin)).all(1)


def _mean_rotation(rotations: list[Any]) -> Any:
    """The rotation nearest to the mean of 3 x 3 rotations."""
    u, _, vt = np.linalg.svd(np.mean(rotations, axis=0))
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
