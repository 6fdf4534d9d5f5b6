"""How exact localisation is: each photo of a reconstruction in turn as the query, against the rest.

The photo and its observations leave the model, points that fewer than two photos are left to see go, and what
remains is bundle-adjusted anew, so that nothing of the photo is left in it but its lens, where no other photo
has the same, and its part in the visual words. It is then localised like any query. The truth is its camera
in the whole model, after the similarity that aligns the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import D2FeatError, InputError
from .colmap import pycolmap
from .localize import Map, calibrated, localize
from .mapping import adjust


@dataclass(frozen=True)
class PoseError:
    """Of one photo; infinite where no pose was found.

    Attributes:
        rotation: degrees.
        position: distance of the centres, as a share of the scene's extent: the greatest distance between two
            cameras of the reconstruction.
        inliers: 2D-3D matches that agree with the pose.
    """

    name: str
    rotation: float
    position: float
    inliers: int


def leave_one_out(folder: Path, matching: dict[str, Any]) -> list[PoseError]:
    """The errors of all registered photos of the reconstruction in `folder`.

    Args:
        matching: arguments of `d2feat.match` for its features, beside mutual nearest neighbours.

    Raises:
        InputError: there is no model in it, or it has fewer than four.
    """
    with Map(folder) as place:  # which sees that the features are those of the model
        whole = place.model
    if whole.num_reg_images() < 4:
        raise InputError(f"{folder} has {whole.num_reg_images()} registered photos; four are needed")
    extent = camera_extent(whole, registered(whole))
    errors = []
    for number in sorted(whole.reg_image_ids()):
        truth = whole.images[number]
        rest = without(whole, number)
        with Map(folder, rest) as rest_map:
            camera = calibrated(rest.cameras[truth.camera_id])
            found = localize(rest_map, truth.name, rest_map.features(truth.name), camera, matching)
        if found.pose is None:
            errors.append(PoseError(truth.name, np.inf, np.inf, 0))
        else:
            pose = aligned(rest, whole).transform_camera_world(found.pose)
            errors.append(
                PoseError(truth.name, *pose_error(pose, truth.cam_from_world(), extent), found.inliers)
            )
    return errors


def without(model: Any, image_id: int) -> Any:
    """A copy of the model without a photo, adjusted anew."""
    rest = pycolmap.Reconstruction(model)
    image = rest.images[image_id]
    for index in image.get_observation_point2D_idxs():
        if image.points2D[index].has_point3D():
            rest.delete_observation(image_id, index)
    rest.deregister_frame(image.frame_id)
    adjust(rest)
    return rest


def aligned(source: Any, target: Any) -> Any:
    """The similarity from `source` to `target` that their common cameras agree on best (Umeyama 1991).

    Of each camera the centre counts and, for cameras on a line say nothing of a turn about it, a point on
    each of its axes, as far away as the model's extent.
    """
    names = registered(source)
    found = pycolmap.estimate_sim3d(_corners(source, names), _corners(target, names))
    if found is None:
        raise D2FeatError("the model cannot be aligned with the whole: its cameras are at one place")
    return found


def _corners(model: Any, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Centre and three points on the axes of each of N cameras, 4N x 3."""
    extent = camera_extent(model, names)
    poses = [model.find_image_with_name(name).cam_from_world().inverse() for name in names]
    steps = extent * np.vstack([np.zeros(3), np.eye(3)])
    return np.concatenate([pose.translation + steps @ pose.rotation.matrix().T for pose in poses])


def pose_error(pose: Any, truth: Any, extent: float) -> tuple[float, float]:
    """Rotation in degrees, and distance of the centres over `extent`, of two world-to-camera poses."""
    angle = np.rad2deg((pose.rotation * truth.rotation.inverse()).angle())
    distance = np.linalg.norm(pose.inverse().translation - truth.inverse().translation)
    return float(angle), float(distance / extent)


def registered(model: Any) -> list[str]:
    """Names of the photos of a model that have a camera."""
    return [image.name for image in model.images.values() if image.has_pose]


def camera_extent(model: Any, names: Iterable[str]) -> float:
    """The greatest distance between two of the named cameras of a model."""
    centres = np.array([model.find_image_with_name(name).projection_center() for name in names])
    return float(np.linalg.norm(centres[:, None] - centres, axis=2).max())
