"""Cameras of further photos against a reconstruction."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import hdf5
from ..errors import InputError
from ..features import Features
from ..images import is_utf8
from ..lists import read_lines
from ..pairs import match_features
from .colmap import pycolmap
from .database import SEED
from .layout import FEATURES_FILE, GLOBAL_FILE, WORDS_FILE, best_model
from .mapping import read_model
from .methods import Method, model_name
from .photos import cameras_of, check_size, read_photo
from .retrieval import global_descriptor, nearest_photos
from .stages import read_settings

NEAREST: Final = 20
"""Photos of the reconstruction that a query is matched with."""
MAX_ERROR: Final = 8.0
"""Reprojection error of an inlier of the pose, px."""
MIN_INLIERS: Final = 12
_SAME: Final = 1e-2
"""Distance of positions that are the same, px, but for rounding;"""
_REFINED: Final = 16.0
"""and of those of which half were refined, at most."""
GAIN: Final = 0.03
"""Where EXIF tells no focal length, an estimated one is taken if the cost falls by more than this share, or
by 5 / N with N matches, for a parameter more fits noise (by a tenth of that in the mean, of chi-squared): a
lens of another focal length costs .08 and more."""


@dataclass(frozen=True, eq=False)
class Localized:
    """The camera of one query.

    Attributes:
        name: as it stands in the benchmark's file; with its folders where other photos are named alike.
        pose: `pycolmap.Rigid3d`, world to camera, or None if none was found.
        inliers, correspondences: 2D-3D matches that agree with it, and all.
        error: why the photo could not be used, or None.
    """

    name: str
    pose: Any
    inliers: int
    correspondences: int
    error: InputError | None = None


class Map:
    """A reconstruction's folder, opened for localisation; use it in a `with`.

    Args:
        folder: of `reconstruct`.
        model: a part of its model, to be taken in its place.

    Attributes:
        model: `pycolmap.Reconstruction`.
        names: of its registered photos, whose points are `points`.
        settings: with which it was made; empty if that is not known.
    """

    def __init__(self, folder: Path, model: Any = None) -> None:
        whole = model is None
        if whole:
            chosen = best_model(folder)
            if not chosen.is_dir():
                raise InputError(f"{folder} holds no reconstruction; make one with: d2feat reconstruct")
            model = read_model(chosen)
        self.folder = folder
        self.settings = read_settings(folder)
        self.model = model
        self.images = {image.name: image for image in self.model.images.values() if image.has_pose}
        self.names = sorted(self.images)
        self._features = hdf5.open_hdf5(folder / FEATURES_FILE)
        if whole:
            self._check_features()
        self._words = np.load(folder / WORDS_FILE)
        with hdf5.open_hdf5(folder / GLOBAL_FILE) as file:
            self._global = np.stack([file[name]["global_descriptor"][()] for name in self.names])
        self._points: dict[str, npt.NDArray[np.int64]] = {}

    def __enter__(self) -> "Map":
        return self

    def __exit__(self, *_: object) -> None:
        self._features.close()

    def _check_features(self) -> None:
        """Raise InputError if the features are not those of which the model was made.

        Those that no point has are where they were; observations may have been refined.
        """
        for name in self.names:
            points, keypoints = self.images[name].points2D, hdf5.read_keypoints(self._features, name)
            same = len(points) == len(keypoints)
            if same and len(points):
                apart = np.abs(np.array([point.xy for point in points]) - keypoints - 0.5).max(1)
                observed = np.array([point.has_point3D() for point in points])
                same = (apart[~observed] < _SAME).all() and np.median(apart) < _REFINED
            if not same:
                raise InputError(
                    f"{self.folder / FEATURES_FILE} is not the file that the model there was made of: {name} "
                    f"has {len(keypoints)} keypoints, {len(points)} in the model, or others; put the file "
                    "back, or reconstruct in another folder"
                )

    def check(self, method: Method) -> None:
        """See that a method's features can be matched with those of the reconstruction.

        Raises:
            InputError: these are another method's, or another model's.
        """
        made = self.settings.get("method", method.name)
        if made != method.name:
            raise InputError(
                f"{self.folder} was made with {made}, whose features {method.name}'s do not match; "
                f"give a reconstruction that was made with {method.name}"
            )
        theirs, ours = self.settings.get("model"), method.settings.get("model")
        if theirs and ours and theirs != ours:
            raise InputError(
                f"{self.folder} was made with {model_name(theirs)}, whose features those of "
                f"{model_name(ours)} do not match; leave --model out, or reconstruct with that model"
            )

    def features(self, name: str) -> Features:
        """Those of a photo."""
        return hdf5.read_features(self._features, name)

    def points(self, name: str) -> npt.NDArray[np.int64]:
        """For each keypoint of a photo the id of its 3D point, or -1."""
        if name not in self._points:
            points = self.images[name].points2D
            ids = [point.point3D_id if point.has_point3D() else -1 for point in points]
            self._points[name] = np.array(ids, np.int64)
        return self._points[name]

    def nearest(self, features: Features) -> list[str]:
        """The photos that look most like one with these features.

        Raises:
            InputError: descriptors of the reconstruction are of another length.
        """
        length, expected = features.descriptors.shape[1], self._words.shape[1]
        if length != expected:
            raise InputError(
                f"the query's descriptors have {length} elements, those of {self.folder} {expected}: "
                "it was made with other features; localise with these"
            )
        query = global_descriptor(features.descriptors, self._words)
        return [self.names[i] for i in nearest_photos(query[None], self._global, NEAREST)[0]]

    def camera_like(self, camera: Any) -> Any:
        """The camera of the model that a guess from EXIF agrees with best, or the guess.

        The model's is calibrated; it counts as the same if it is of the same size, and the focal lengths are
        within 10 %, if EXIF tells one: what it is without is no reason for or against any.
        """

        def difference(known: Any) -> float:
            return abs(float(known.mean_focal_length() / camera.mean_focal_length()) - 1)

        size = camera.width, camera.height
        alike = [one for one in self.model.cameras.values() if (one.width, one.height) == size]
        nearest = min(alike, key=difference, default=None)
        if nearest is None or (camera.has_prior_focal_length and difference(nearest) >= 0.1):
            return camera
        return calibrated(nearest)


def calibrated(camera: Any) -> Any:
    """A copy of a `pycolmap.Camera` whose focal length is known, and not to be estimated."""
    known = pycolmap.Camera(camera.todict())
    known.has_prior_focal_length = True
    return known


def localize(
    folder: Map, name: str, features: Features, camera: Any, matching: dict[str, Any], guess: Any = None
) -> Localized:
    """The pose of a photo: matches with the map's nearest photos, their 3D points, LO-RANSAC, refinement.

    Args:
        camera: `pycolmap.Camera`; a focal length that is only a guess is estimated, too.
        matching: arguments of `d2feat.match`, beside mutual nearest neighbours.
        guess: another camera, taken if the matches agree clearly better with it (`GAIN`).
    """
    found: set[tuple[int, int]] = set()
    for other in folder.nearest(features):
        indices, _ = match_features(features, folder.features(other), **matching)
        ids = folder.points(other)[indices[:, 1]]
        found.update(zip(indices[ids >= 0, 0].tolist(), ids[ids >= 0].tolist(), strict=True))
    pairs = sorted(found)
    if len(pairs) < MIN_INLIERS:
        return Localized(name, None, 0, len(pairs))
    points2d = features.keypoints[[one for one, _ in pairs]].astype(np.float64) + 0.5
    points3d = np.array([folder.model.points3D[two].xyz for _, two in pairs])
    located = _pose(name, points2d, points3d, camera)
    if guess is None:
        return located
    estimated = _pose(name, points2d, points3d, guess)
    cost, others = (_cost(one, points2d, points3d, by) for one, by in ((located, camera), (estimated, guess)))
    return estimated if others < cost * (1 - max(GAIN, 5 / len(pairs))) else located


def _pose(name: str, points2d: Any, points3d: Any, camera: Any) -> Localized:
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = MAX_ERROR
    options.ransac.random_seed = SEED
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    if not camera.has_prior_focal_length:
        options.estimate_focal_length = refinement.refine_focal_length = True
    answer = pycolmap.estimate_and_refine_absolute_pose(points2d, points3d, camera, options, refinement)
    if answer is None or answer["num_inliers"] < MIN_INLIERS:
        return Localized(name, None, 0, len(points2d))
    return Localized(name, answer["cam_from_world"], answer["num_inliers"], len(points2d))


def _cost(found: Localized, points2d: Any, points3d: Any, camera: Any) -> float:
    """Mean square of the reprojection errors, px, none counted above `MAX_ERROR`; infinite without a pose."""
    if found.pose is None:
        return np.inf
    seen = camera.img_from_cam(points3d @ found.pose.rotation.matrix().T + found.pose.translation)
    errors = np.nan_to_num(np.linalg.norm(seen - points2d, axis=1), nan=MAX_ERROR)  # behind it
    return float((errors.clip(max=MAX_ERROR) ** 2).mean())


def localize_photos(
    folder: Map, queries: dict[Path, Any], method: Method, photos: Path = Path()
) -> Iterable[Localized]:
    """`localize` each photo with its `pycolmap.Camera`; None is that of the map, or of EXIF.

    A photo that cannot be read or is not of its camera's size is one without a pose, with `Localized.error`.

    Args:
        photos: folder that names are relative to, where those of files alone would be of several photos.

    Raises:
        InputError: the map was made with other features.
    """
    folder.check(method)  # at once, and not when the first photo's turn comes
    counts = Counter(path.name for path in queries)

    def name(path: Path) -> str:
        if counts[path.name] == 1:
            return path.name
        return (path.relative_to(photos) if path.is_relative_to(photos) else path).as_posix()

    return (_localize_photo(folder, name(path), path, known, method) for path, known in queries.items())


def _localize_photo(folder: Map, name: str, path: Path, known: Any, method: Method) -> Localized:
    if not is_utf8(name):
        return Localized(ascii(name), None, 0, 0, InputError("its name is not UTF-8; rename it"))
    try:
        photo = read_photo(path)
        guess = known or cameras_of(path.parent, [path.name])[path.name]
        camera = known or folder.camera_like(guess)
        check_size(path, photo, camera)
    except InputError as error:
        return Localized(name, None, 0, 0, error)
    other = None if camera is guess or guess.has_prior_focal_length else guess
    return localize(folder, name, method.extract(photo), camera, method.matching, other)


def read_queries(path: Path, photos: Path) -> dict[Path, Any]:
    """The queries of a list as the Aachen data sets have it, NAME MODEL WIDTH HEIGHT PARAMS..., and cameras.

    Args:
        photos: folder that the names are relative to.

    Raises:
        InputError: there is no such list, or a line is not of this form.
    """
    if not path.is_file():
        raise InputError(f"no list of queries at {path}")
    queries = {}
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            name, model, width, height, *values = fields
            camera = pycolmap.Camera(
                model=model, width=int(width), height=int(height), params=[float(value) for value in values]
            )
            camera.has_prior_focal_length = True
            well = bool(values) and camera.verify_params()
        except (ValueError, TypeError, RuntimeError, AttributeError):
            well = False
        if not well:
            raise InputError(f"{path}, line {number}: {line!r} is not NAME MODEL WIDTH HEIGHT PARAMS...")
        queries[photos / name] = camera
    return queries


def benchmark_line(found: Localized) -> str:
    """NAME QW QX QY QZ TX TY TZ, world to camera, as the long-term visual localisation benchmark has it.

    Empty if no pose was found.
    """
    if found.pose is None:
        return ""
    x, y, z, w = found.pose.rotation.quat
    values = (w, x, y, z, *found.pose.translation)
    return " ".join([found.name, *(f"{value:.9g}" for value in values)]) + "\n"
