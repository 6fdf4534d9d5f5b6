"""Features of simulated views of a plane, for strong tilts: ASIFT (Morel and Yu, SIAM J. Imaging 2009).

`cv2.AffineFeature` takes detectors of C++ only; this one takes those of `d2feat.create`, with its parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .bindings import Feature2DObject, cv2_call, deliver, paired, real, whole
from .errors import InputError
from .feature2d import D2Feature, KeyPoints
from .features import Features
from .images import Image, allowed_at, as_image, as_mask
from .rotations import rotate, to_angles
from .tiles import best_of

BLUR = 0.8
"""Sigma, px, before a shrinking by t along one axis: this times sqrt(t^2 - 1) (Morel and Yu, section 3)."""


MOST_TILT: Final = 20
"""Of maxTilt: a surface seen so is a line."""


class View(NamedTuple):
    """A simulated view: the image turned by `roll` degrees, then shrunk along x by `tilt`."""

    tilt: float
    roll: float


class AffineFeature(Feature2DObject):
    """Detect and describe in simulated views, and gather what they give.

    The defaults make 1 + 4 + 5 + 8 + 10 + 15 = 43 views, of about 22 times the image's pixels, and cost
    accordingly; maxTilt=2 makes 10 views. Each gives up to the detector's nfeatures; a place seen in several
    views gives several features, so mutual matches (`d2feat.match`) suit better than a ratio test.

    Args:
        backend: detector of `d2feat.create`.
        maxTilt, minTilt: the tilts are tiltStep^n for minTilt <= n <= maxTilt.
        tiltStep: ratio of successive tilts.
        rotateStepBase: degrees between the views of a tilt, times the tilt.
    """

    @staticmethod
    def create(*args: Any, **kwargs: Any) -> "AffineFeature":
        """The constructor, where `cv2.AffineFeature.create` was written."""
        return AffineFeature(*args, **kwargs)

    @cv2_call
    def __init__(
        self,
        backend: D2Feature,
        maxTilt: int = 5,
        minTilt: int = 0,
        tiltStep: float = math.sqrt(2),
        rotateStepBase: float = 72.0,
    ) -> None:
        if not issubclass(type(backend), D2Feature):
            raise InputError(f"AffineFeature takes a detector of d2feat.create, not {type(backend).__name__}")
        least, most = whole(minTilt, "minTilt"), whole(maxTilt, "maxTilt")
        step, base = real(tiltStep, "tiltStep"), real(rotateStepBase, "rotateStepBase")
        if not 0 <= least <= most <= MOST_TILT:
            raise InputError(f"0 <= minTilt <= maxTilt <= {MOST_TILT} must hold, not {least} and {most}")
        if not (step > 1 and 0 < base <= 360):
            raise InputError("tiltStep must be above 1 and rotateStepBase in (0, 360]")
        tilts = [step**n for n in range(least, most + 1)]
        views = (_rolls(tilt, base) for tilt in tilts)
        self.backend = backend
        self.views = tuple(chain.from_iterable(views))

    def getViewParams(self) -> tuple[list[float], list[float]]:
        """Tilts and rolls (degrees) of the views."""
        return [view.tilt for view in self.views], [view.roll for view in self.views]

    @cv2_call
    def setViewParams(self, tilts: Sequence[float], rolls: Sequence[float]) -> None:
        """Views of one's own choice: as many tilts (1 or more) as rolls (degrees)."""
        if not all(isinstance(values, (Sequence, np.ndarray)) for values in (tilts, rolls)):
            raise InputError("setViewParams takes lists of tilts and of rolls")
        steep, turned = [real(tilt, "a tilt") for tilt in tilts], [real(roll, "a roll") for roll in rolls]
        if len(steep) != len(turned) or not steep or min(steep) < 1:
            raise InputError("setViewParams takes as many tilts as rolls, at least one, and no tilt below 1")
        self.views = tuple(map(View, steep, turned))

    @cv2_call
    def extract(self, image: Any, mask: Any = None) -> Features:
        """Features of all views as arrays, in pixels of the image, best first."""
        pixels = as_image(image)
        allowed = as_mask(mask, pixels.shape[:2])
        return best_of([self._extract_view(pixels, allowed, view) for view in self.views], 0)

    @cv2_call
    def detectAndCompute(
        self, image: Any, mask: Any = None, descriptors: Any = None, useProvidedKeypoints: bool = False
    ) -> tuple[KeyPoints, Any]:
        """Keypoints and descriptors of all views, as `D2Feature.detectAndCompute` returns them."""
        if useProvidedKeypoints:  # none can be provided
            as_image(image)
            return (), deliver(None, descriptors, image)
        keypoints, found = self.extract(image, mask).to_opencv()
        return keypoints, deliver(found, descriptors, image)

    @cv2_call
    def detect(self, image: Any, mask: Any = None) -> Any:
        """Keypoints of all views; for a list of images (and masks) a tuple of such tuples."""
        if isinstance(image, (list, tuple)):
            return tuple(self.extract(*one).to_keypoints() for one in paired(image, mask, "masks"))
        return self.extract(image, mask).to_keypoints()

    @cv2_call
    def compute(self, image: Any, keypoints: Any, descriptors: Any = None) -> tuple[Any, Any]:
        """Not to be had: a keypoint does not say in which view it was found."""
        raise InputError("AffineFeature describes what it detects: call detectAndCompute")

    def getDefaultName(self) -> str:
        """The class's name for OpenCV."""
        return f"AffineFeature.{self.backend.getDefaultName()}"

    def empty(self) -> bool:
        """Whether there is no model: never."""
        return self.backend.empty()

    def descriptorSize(self) -> int:
        """Elements of a descriptor."""
        return self.backend.descriptorSize()

    def descriptorType(self) -> int:
        """`cv2.CV_32F`."""
        return self.backend.descriptorType()

    def defaultNorm(self) -> int:
        """`cv2.NORM_L2`."""
        return self.backend.defaultNorm()

    def _extract_view(self, image: Image, mask: npt.NDArray[np.bool_] | None, view: View) -> Features:
        picture, matrix = simulate(image, view)
        shown = None
        if mask is not None:  # before the detector takes its best
            shape = picture.shape[1], picture.shape[0]
            shown = cv2.warpAffine(mask.view(np.uint8), matrix, shape, flags=cv2.INTER_NEAREST)
        found = self.backend.extract(picture, shown)
        back: Any = cv2.invertAffineTransform(matrix)
        keypoints = (found.keypoints @ back[:, :2].T + back[:, 2]).astype(np.float32)
        size = image.shape[1], image.shape[0]
        scales = found.scales * np.float32(math.sqrt(abs(np.linalg.det(back[:, :2]))))
        angles = found.angles
        if angles is not None:
            x, y = back[:, :2] @ (np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles)))
            angles = to_angles(x + 1j * y)
        placed = replace(found, keypoints=keypoints, scales=scales, image_size=size, angles=angles)
        # Beyond the image a view shows its reflection.
        inside = ((keypoints >= -0.5) & (keypoints < np.array(size) - 0.5)).all(axis=1)
        if mask is not None:
            inside &= allowed_at(mask, keypoints)
        return placed[inside]


def simulate(image: Image, view: View) -> tuple[Image, npt.NDArray[np.float64]]:
    """The picture of a view, and the 2 x 3 map of the image's pixels to its pixels."""
    turned, matrix = (image, np.eye(2, 3)) if view.roll == 0 else rotate(image, view.roll)
    if view.tilt == 1:
        return turned, matrix
    height, width = turned.shape[:2]
    narrow = max(1, round(width / view.tilt))
    sigma = BLUR * math.sqrt(view.tilt**2 - 1)
    blurred = cv2.GaussianBlur(turned, (0, 0), sigmaX=sigma, sigmaY=0.01)
    picture = cv2.resize(blurred, (narrow, height), interpolation=cv2.INTER_LINEAR)
    matrix[:, 2] += 0.5
    matrix[0] *= narrow / width
    matrix[:, 2] -= 0.5
    return picture, matrix  # type: ignore[return-value]


def _rolls(tilt: float, base: float) -> list[View]:
    """The views of one tilt; an untilted one is the image itself."""
    step = base / tilt
    count = 1 if tilt == 1 else math.ceil(180 / step - 1e-6)
    return [View(tilt, i * step) for i in range(count)]
