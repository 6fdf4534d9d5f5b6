"""What the pipeline runs on: D2-Net, or COLMAP's SIFT beside it, each with its own rule of matching."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np

from ..errors import ModelError
from ..feature2d import SETTINGS, D2Feature, create, session_of, settings_of
from ..features import Features
from ..images import digest
from ..model import DEFAULT, available_models
from ..orientation import turned
from .colmap import pycolmap
from .photos import Photo

SIFT: Final = "SIFT"
D2NET: Final = "D2-Net"
FOREIGN: Final = "another program"
"""In place of a method's name where the features are none that `reconstruct` made."""

D2NET_MATCHING: Final[dict[str, Any]] = {"ratio": 0.9}
"""Of `d2feat.match`. Without it, as many neighbours of photos that share nothing agree on some geometry as of
photos that share a little, and RANSAC takes twice as long."""
D2NET_INLIERS: Final = 25
"""Matches that must agree on a geometry for it to count: by chance 15 to 20 do."""
SIFT_MATCHING: Final[dict[str, Any]] = {"ratio": 0.8, "maxDistance": 0.7}
"""COLMAP's own."""
SIFT_INLIERS: Final = 15
"""COLMAP's own."""


@dataclass(frozen=True)
class Method:
    """A named function from a photo to its features, in the file's pixels, and how these are matched.

    Attributes:
        matching: arguments of `d2feat.match`, beside mutual nearest neighbours.
        min_inliers: matches of two photos that must agree on a geometry.
        settings: all that its features depend on, for `stages` to know theirs again.
    """

    name: str
    extract: Callable[[Photo], Features]
    matching: dict[str, Any] = field(default_factory=dict)
    min_inliers: int = SIFT_INLIERS
    settings: dict[str, Any] = field(default_factory=dict)


def d2net(detector: D2Feature) -> Method:
    """D2-Net as `detector` has it."""

    def extract(photo: Photo) -> Features:
        found = detector.extract(photo.upright)
        return Features(
            photo.to_stored(found.keypoints),
            found.scores,
            found.scales,
            found.descriptors,
            photo.stored_size,
        )

    settings = {"model": session_of(detector).sha256, **settings_of(detector)}
    return Method(D2NET, extract, D2NET_MATCHING, D2NET_INLIERS, settings)


def detector_of(settings: dict[str, Any], model: str = DEFAULT, **asked: Any) -> D2Feature:
    """A detector like the one of a reconstruction, but where something else is asked for.

    Args:
        settings: of the reconstruction; what they lack is as `d2feat.create` has it.
        model: "auto" is that of the settings.
        asked: arguments of `d2feat.create`.

    Raises:
        ModelError: the model of the settings is none of those at hand.
    """
    if model == DEFAULT and "model" in settings:
        found = model_at_hand(settings["model"])
        if found is None:
            raise ModelError(
                f"the reconstruction was made with {model_name(settings['model'])}, which is none of "
                "those at hand; give its file with --model"
            )
        model = found
    made: dict[str, Any] = {name: settings[name] for name in SETTINGS if name in settings}
    return create(**{**made, **asked}, model=model)


def model_at_hand(sha256: str) -> str | None:
    """The name of the model whose file has this SHA-256, or None."""
    paths = available_models().items()
    return next((name for name, path in paths if digest(path) == sha256), None)


def model_name(sha256: str) -> str:
    """What to call the model whose file has this SHA-256."""
    return model_at_hand(sha256) or f"the model of sha256 {sha256[:12]}"


def sift(nfeatures: int) -> Method:
    """COLMAP's SIFT (RootSIFT) and its rule of matching.

    COLMAP keeps whole octaves and several orientations a point, thus more than it is asked for; here the
    `nfeatures` of largest scale are kept, which is COLMAP's preference, too.
    """
    options = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1)
    options.sift.max_num_features = nfeatures
    extractor = pycolmap.FeatureExtractor.create(options)

    def extract(photo: Photo) -> Features:
        grey = cv2.cvtColor(turned(photo.upright, -photo.quarters), cv2.COLOR_BGR2GRAY)
        keypoints, found = extractor.extract_from_uint8_array(grey)
        matrix = pycolmap.keypoints_to_matrix(keypoints).reshape(-1, 4)
        kept = np.argsort(-matrix[:, 2], kind="stable")[:nfeatures]
        descriptors = found.data.reshape(-1, 128)[kept].astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True).clip(min=1)
        # COLMAP's origin is the corner of the first pixel.
        points = (matrix[kept, :2] - 0.5).astype(np.float32)
        scales = matrix[kept, 2].astype(np.float32)
        return Features(points, scales, scales, descriptors, photo.stored_size)

    return Method(
        SIFT,
        extract,
        SIFT_MATCHING,
        SIFT_INLIERS,
        {"nfeatures": nfeatures, "colmap": pycolmap.COLMAP_version},
    )
