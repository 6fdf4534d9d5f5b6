"""The sparse model: COLMAP's incremental mapper on a database, and the figures of the paper's table."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import D2FeatError, InputError
from .colmap import pycolmap
from .database import SEED, opened_database

_FORWARD: Final = {
    "mapper.init_max_forward_motion": 1.0,
    "mapper.init_min_tri_angle": 4.0,
    "mapper.init_min_num_inliers": 60,
    "mapper.filter_min_tri_angle": 0.5,
    "triangulation.min_angle": 0.5,
}
"""For photos taken while walking ahead, as in a street: what they see is seen at small angles only (degrees),
where COLMAP's defaults (0.95, 16, 100, 1.5, 1.5) find no pair to begin with, or drop the points."""


_LEAST_SCALE: Final = 0.02
"""Of the loss, px: below are no errors but of rounding."""

_POINT: Final = 51
"""Bytes of a point in COLMAP's binary file, at least: without its track."""


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
) -> None:
    """Map a database incrementally, from a seed, and write the largest model to the folder `out`.

    COLMAP's own limits come first. Where they leave photos without a camera, mapping is tried again with
    those of `_FORWARD`, and the larger of the two models is kept, COLMAP's own if they are alike. It is
    adjusted once more, by `adjust`.

    Args:
        photos: folder of the photographs, for the colours.
        registered: called after each photo that got its camera.

    Raises:
        D2FeatError: no two photos to begin with were found.
        InputError: the database is damaged.
    """
    with opened_database(database) as opened:
        count = opened.num_images()
    with replacing_folder(out) as partial:
        best = None
        for limits in ({}, _FORWARD):
            models = _map_incrementally(database, photos, partial, limits, registered)
            # It writes each model to a folder of its own. Ties are broken by the number of points.
            largest = max(models, key=lambda one: (one.num_reg_images(), one.num_points3D()), default=None)
            if largest and (best is None or largest.num_reg_images() > best.num_reg_images()):
                best = largest
            if best and best.num_reg_images() == count:
                break
        if best is None:
            raise D2FeatError(
                "COLMAP found no two photos to begin with: too few matches, or all from one place; "
                "take more photos that overlap, from places that differ"
            )
        shutil.rmtree(partial)
        partial.mkdir()
        adjust(best)
        best.write(partial)


def _map_incrementally(
    database: Path, photos: Path, folder: Path, limits: dict[str, float], registered: Callable[[], None]
) -> list[Any]:
    """All models that COLMAP makes within limits such as ``mapper.init_min_tri_angle``."""
    options = pycolmap.IncrementalPipelineOptions(random_seed=SEED, num_threads=1, min_model_size=3)
    options.image_path = photos
    for name, value in limits.items():
        group, _, key = name.partition(".")
        setattr(getattr(options, group), key, value)
    models = pycolmap.incremental_mapping(
        database,
        photos,
        folder,
        options,
        initial_image_pair_callback=registered,
        next_image_callback=registered,
    )
    return list(models.values())


def read_model(folder: Path) -> Any:
    """The `pycolmap.Reconstruction` in a folder.

    Raises:
        InputError: there is none that COLMAP can read.
    """
    for path in folder.glob("*.bin"):
        # Of one that is cut off COLMAP reads on in what is not there, as far as there is memory.
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
        least = 8 + (_POINT * count if path.stem == "points3D" else 0)
        if path.stat().st_size < least:
            raise InputError(f"COLMAP cannot read a model in {folder}: {path.name} is cut off")
    try:
        return pycolmap.Reconstruction(folder)
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise InputError(f"COLMAP cannot read a model in {folder}: {error}") from None


def read_cameras(reference: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `pycolmap.Camera` and `pycolmap.Rigid3d` (world to camera) of each photo of a COLMAP model.

    Raises:
        InputError: there is no model that COLMAP can read.
    """
    model = read_model(reference)
    images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    cameras = {number: pycolmap.Camera(camera.todict()) for number, camera in model.cameras.items()}
    names = {image.name: cameras[image.camera_id] for image in images}
    return names, {image.name: image.cam_from_world() for image in images}


def triangulate(database: Path, photos: Path, out: Path, poses: dict[str, Any]) -> None:
    """The model of a database whose cameras are known and kept, written to the folder `out`.

    Raises:
        D2FeatError: it has no points.
        InputError: the database is damaged.
    """
    model = pycolmap.Reconstruction()
    with opened_database(database) as opened:
        cameras, images = opened.read_all_cameras(), opened.read_all_images()
    for camera in cameras:
        model.add_camera_with_trivial_rig(camera)
    for image in images:
        fresh = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id)
        model.add_image_with_trivial_frame(fresh, poses[image.name])
    options = pycolmap.IncrementalPipelineOptions(random_seed=SEED, num_threads=1)
    with replacing_folder(out) as partial:
        made = pycolmap.triangulate_points(model, database, photos, partial, options=options)
        if made.num_points3D() == 0:
            raise D2FeatError(
                "no point could be triangulated: the cameras do not fit the photographs, or these share none"
            )
        made.write(partial)


def adjust(model: Any, known: bool = False) -> None:
    """Bundle adjustment of all points of a model, and of its cameras if these are not known.

    With Cauchy's loss, at the scale of the errors there are. COLMAP's own adjustment has the squares of all
    that its filter leaves, up to 4 px where most are a tenth of that, and the few bend the cameras.
    """
    model.update_point_3d_errors()
    errors = [point.error for point in model.points3D.values()]
    options = pycolmap.BundleAdjustmentOptions(print_summary=False)
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = max(_LEAST_SCALE, float(np.median(errors)) if errors else 0.0)
    options.ceres.solver_options.num_threads = 1
    config = pycolmap.BundleAdjustmentConfig()
    for image in model.reg_image_ids():
        config.add_image(image)
    if known:
        options.refine_focal_length = options.refine_extra_params = options.refine_rig_from_world = False
    else:
        # Not TWO_CAMS_FROM_WORLD, which holds one coordinate that may be next to nothing: models of photos of
        # which some are stored on their sides grew a thousandfold.
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.THREE_POINTS)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes its place at `folder` when all is written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
