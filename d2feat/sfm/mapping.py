"""The sparse model: COLMAP's incremental mapper on a database, and the figures of the paper's table."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import D2FeatError
from .colmap import pycolmap
from .database import SEED

MAX_REPROJECTION: Final = 4.0
"""Error above which an observation is no inlier, px, COLMAP's own."""


@dataclass(frozen=True)
class Figures:
    """What the paper reports of a reconstruction (section 5.2).

    Attributes:
        images, registered: photos given, and photos with a camera in the model.
        points, observations: of 3D points, and of them in photos.
        track_length: observations a point, mean.
        reprojection_error: px, mean over points, as COLMAP reports it.
    """

    images: int
    registered: int
    points: int
    observations: int
    track_length: float
    reprojection_error: float


def build_model(
    database: Path, photos: Path, out: Path, registered: Callable[[], None] = lambda: None
) -> Any:
    """Map a database incrementally, from a seed, and write the largest model to the folder `out`.

    Args:
        photos: folder of the photographs, for the colours.
        registered: called after each photo that got its camera.

    Raises:
        D2FeatError: no two photos to begin with were found.
    """
    options = pycolmap.IncrementalPipelineOptions(random_seed=SEED, num_threads=1, min_model_size=3)
    options.image_path = photos
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    models = pycolmap.incremental_mapping(
        database,
        photos,
        partial,
        options,
        initial_image_pair_callback=registered,
        next_image_callback=registered,
    )
    if not models:
        raise D2FeatError(
            "COLMAP found no two photos to begin with: too few matches, or all from one place; "
            "take more photos that overlap, from places that differ"
        )
    # Ties are broken by the number of points.
    best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
    shutil.rmtree(partial)
    partial.mkdir()
    best.write(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return best


def figures(model: Any, images: int) -> Figures:
    """The figures of a `pycolmap.Reconstruction` of so many photos."""
    return Figures(
        images,
        model.num_reg_images(),
        model.num_points3D(),
        model.compute_num_observations(),
        model.compute_mean_track_length(),
        model.compute_mean_reprojection_error(),
    )
