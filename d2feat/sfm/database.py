"""COLMAP's database: cameras, photos, keypoints, matches, and which pairs of photos agree on a geometry."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import hdf5
from ..errors import InputError
from ..pairs import Pair
from .colmap import pycolmap

SEED: Final = 0

MAX_ERROR: Final = 4.0
"""Of an inlier of two views, px, COLMAP's own."""


def build_database(
    path: Path,
    cameras: dict[str, Any],
    features: Any,
    matches: Any,
    pairs: Iterable[Pair],
    min_inliers: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write the database at `path`, whole or not at all.

    Keypoints get COLMAP's half pixel. Each pair's geometry (essential, fundamental or homography) is
    estimated as COLMAP does, from a seed, so that the same input gives the same database.

    Args:
        cameras: of each photo, by name; the photos' order is COLMAP's.
        features, matches: open files in `d2feat.hdf5`'s layout.
        min_inliers: matches that must agree on a pair's geometry, or it has none.
        advance: called after each pair.

    Raises:
        InputError: matches are of other features.
    """
    partial = path.with_name(path.name + ".partial")
    for stale in path.parent.glob(partial.name + "*"):  # SQLite's journals, too
        stale.unlink()
    with pycolmap.Database.open(partial) as database:
        keypoints = _write_photos(database, cameras, features)
        ids = {name: number for number, name in enumerate(cameras, 1)}
        for one, two in pairs:
            found, _ = hdf5.read_matches(matches, one, two)
            _check_matches(found, (one, two), keypoints, matches)
            geometry = verify(cameras[one], keypoints[one], cameras[two], keypoints[two], found, min_inliers)
            database.write_matches(ids[one], ids[two], found.astype(np.uint32))
            database.write_two_view_geometry(ids[one], ids[two], geometry)
            advance()
    partial.replace(path)


def verify(camera1: Any, points1: Any, camera2: Any, points2: Any, matches: Any, min_inliers: int) -> Any:
    """The `pycolmap.TwoViewGeometry` of M x 2 matches of N x 2 points in COLMAP's coordinates."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error = MAX_ERROR
    options.min_num_inliers = min_inliers
    options.ransac.random_seed = SEED
    return pycolmap.estimate_two_view_geometry(
        camera1, points1, camera2, points2, matches.astype(np.uint32), options
    )


def verified_pairs(path: Path) -> dict[Pair, int]:
    """Number of inliers of each pair of photos that COLMAP's mapper would use.

    Raises:
        InputError: the file is damaged.
    """
    with opened_database(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        ids, counts = database.read_two_view_geometry_num_inliers()
    pairs = (sorted(names[i] for i in pycolmap.pair_id_to_image_pair(pair)) for pair in ids)
    return {(one, two): count for (one, two), count in zip(pairs, counts, strict=True) if count}


def count_sharing(path: Path) -> int:
    """How many photos share a camera whose focal length is a guess.

    Raises:
        InputError: the file is damaged.
    """
    with opened_database(path) as database:
        guessed = {one.camera_id for one in database.read_all_cameras() if not one.has_prior_focal_length}
        counts = Counter(image.camera_id for image in database.read_all_images())
    return sum(count for camera, count in counts.items() if camera in guessed and count > 1)


@contextlib.contextmanager
def opened_database(path: Path) -> Iterator[Any]:
    """The `pycolmap.Database` of a file that is there.

    Raises:
        InputError: it is damaged.
    """
    try:
        with pycolmap.Database.open(path) as database:
            yield database
    except RuntimeError as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and it is made again") from None


def _check_matches(found: Any, pair: Pair, keypoints: dict[str, Any], matches: Any) -> None:
    """Raise InputError if M x 2 matches name keypoints that are not there: COLMAP would read beyond them."""
    for name, indices in zip(pair, found.T, strict=True):
        if len(indices) and indices.max() >= len(keypoints[name]):
            raise InputError(
                f"{matches.file.filename}: the matches of {' and '.join(pair)} are of other features: they "
                f"name keypoint {indices.max()} of {name}, which has {len(keypoints[name])}; "
                "remove the file, or put its features back"
            )


def _write_photos(database: Any, cameras: dict[str, Any], features: Any) -> dict[str, Any]:
    """Write cameras, photos and keypoints; the keypoints by name, N x 2 float64."""
    camera_ids: dict[int, int] = {}
    keypoints = {}
    for number, (name, camera) in enumerate(cameras.items(), 1):
        if id(camera) not in camera_ids:
            camera_ids[id(camera)] = database.write_camera(camera)
            camera.camera_id = camera_ids[id(camera)]
            rig = pycolmap.Rig(rig_id=camera.camera_id)
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=number)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(frame_id=number, rig_id=camera.camera_id)
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        points = hdf5.read_keypoints(features, name) + np.float32(0.5)
        database.write_keypoints(number, points)
        keypoints[name] = points.astype(np.float64)
    return keypoints
