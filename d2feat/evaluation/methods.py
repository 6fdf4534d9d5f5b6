"""The methods that are compared: d2feat's models and OpenCV's detectors, at equal feature budgets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from ..affine import AffineFeature
from ..errors import InputError
from ..feature2d import D2Feature, create, session_of
from ..images import Image
from ..matching import match_indices
from ..refinement import refine_points
from .metrics import Indices


@dataclass(frozen=True, eq=False)
class Extraction:
    """Features of one image.

    Attributes:
        points: N x 2 float32, (x, y) in pixels.
        descriptors: N x C float32, or N x bytes uint8 of a binary method.
        norm: `cv2.NORM_L2` or `cv2.NORM_HAMMING`, the distance between descriptors.
        image: that they are of, where the positions of matches are to be refined.
    """

    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[Any]
    norm: int
    image: Image | None = None


@dataclass(frozen=True)
class Method:
    """A named function from an image to its features; of a d2feat model what it is, for the record."""

    name: str
    extract: Callable[[Image], Extraction]
    model: str = ""


def open_methods(
    names: Iterable[str],
    nfeatures: int,
    scales: Sequence[float] | None = None,
    rotations: int = 1,
    refined: bool = False,
) -> tuple[list[Method], dict[str, str]]:
    """Methods by name, and the reason for each that this OpenCV lacks.

    Args:
        names: "sift", "sift-faint" (of a quarter of its default contrast threshold, which leaves it short of
            the budget on small or dark images), "rootsift", "orb", "akaze"; any other is the name or path of
            a d2feat model.
        nfeatures: features that each method may give an image, best by response; 0 for all.
        scales, rotations: of the d2feat models, see `d2feat.create`.
        refined: whether the positions of all methods' matches are refined (`d2feat.refine`).

    Raises:
        ModelError: there is no such model.
        InputError: d2feat is installed (`d2feat.install`) in the place of one of OpenCV's.
    """
    methods: list[Method] = []
    skipped = {}
    for name in dict.fromkeys(name.lower() if name.lower() in _CV2 else name for name in names):
        if name not in _CV2:
            manner = " single scale" if scales == (1.0,) else ""
            manner += f" {rotations} rotations" if rotations > 1 else ""
            taken = {*_CV2, *(method.name for method in methods)}
            short = Path(name).stem if name.endswith(".onnx") else name
            labels = (f"{one}{manner}" for one in chain((short, name), (f"{name} ({n})" for n in count(2))))
            detector = create(nfeatures, scales=scales, model=name, rotations=rotations)
            methods.append(d2feat_method(detector, next(one for one in labels if one not in taken)))
        elif name == "akaze" and not hasattr(cv2, "AKAZE_create"):
            skipped[name] = f"OpenCV {cv2.__version__} has no AKAZE in its main package"
        else:
            methods.append(Method(name, _CV2[name](nfeatures)))
    return [_refining(method) for method in methods] if refined else methods, skipped


def d2feat_method(detector: D2Feature | AffineFeature, name: str) -> Method:
    """A detector of `d2feat.create` as a method; its own nfeatures is the budget."""

    def extract(image: Image) -> Extraction:
        features = detector.extract(image)
        return Extraction(features.keypoints, features.descriptors, detector.defaultNorm())

    session = session_of(detector.backend if isinstance(detector, AffineFeature) else detector)
    return Method(name, extract, f"{session.info.name} {session.info.version}, sha256 {session.sha256}")


def mutual_matches(one: Extraction, two: Extraction) -> Indices:
    """M x 2 indices of the descriptors that are each other's nearest neighbours."""
    if len(one.points) == 0 or len(two.points) == 0:
        return np.zeros((0, 2), np.int64)
    if one.norm == cv2.NORM_L2:
        return match_indices(one.descriptors, two.descriptors)[0]
    found = cv2.BFMatcher(one.norm, crossCheck=True).match(one.descriptors, two.descriptors)
    return np.array([(pair.queryIdx, pair.trainIdx) for pair in found], np.int64).reshape(-1, 2)


def matched_points(
    one: Extraction, two: Extraction, matches: Indices
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The M x 2 positions of matches in either image, refined where the method is to be."""
    points1, points2 = one.points[matches[:, 0]], two.points[matches[:, 1]]
    if one.image is None or two.image is None:
        return points1, points2
    return points1, refine_points(one.image, two.image, points1, points2)


def _refining(method: Method) -> Method:
    def extract(image: Image) -> Extraction:
        return replace(method.extract(image), image=image)

    return Method(f"{method.name} refined", extract, method.model)


def _sift(nfeatures: int, root: bool = False, contrast: float = 0.04) -> Callable[[Image], Extraction]:
    detector = _opencvs("SIFT").create(nfeatures, contrastThreshold=contrast)

    def extract(image: Image) -> Extraction:
        found = _best(detector.detectAndCompute(image, None), nfeatures, cv2.NORM_L2, 128)
        if not root:
            return found
        # RootSIFT: Arandjelovic & Zisserman, "Three things everyone should know", CVPR 2012.
        total = found.descriptors.sum(axis=1, keepdims=True).clip(min=1e-12)
        return Extraction(found.points, np.sqrt(found.descriptors / total), cv2.NORM_L2)

    return extract


def _rootsift(nfeatures: int) -> Callable[[Image], Extraction]:
    return _sift(nfeatures, root=True)


def _faint_sift(nfeatures: int) -> Callable[[Image], Extraction]:
    return _sift(nfeatures, contrast=0.01)


def _orb(nfeatures: int) -> Callable[[Image], Extraction]:
    detector = _opencvs("ORB").create(nfeatures if nfeatures > 0 else 1_000_000)

    def extract(image: Image) -> Extraction:
        return _best(detector.detectAndCompute(image, None), nfeatures, cv2.NORM_HAMMING, 32)

    return extract


def _akaze(nfeatures: int) -> Callable[[Image], Extraction]:
    # The default threshold of 1e-3 leaves it far short of the budget.
    detector = _opencvs("AKAZE").create(threshold=1e-4)

    def extract(image: Image) -> Extraction:
        return _best(detector.detectAndCompute(image, None), nfeatures, cv2.NORM_HAMMING, 61)

    return extract


def _opencvs(name: str) -> Any:
    cls = getattr(cv2, name)
    if issubclass(cls, D2Feature):
        raise InputError(
            f"cv2.{name} is D2-Net while d2feat is installed in its place; measure it before or after"
        )
    return cls


_CV2: Final[dict[str, Callable[[int], Callable[[Image], Extraction]]]] = {
    "sift": _sift,
    "sift-faint": _faint_sift,
    "rootsift": _rootsift,
    "orb": _orb,
    "akaze": _akaze,
}


def _best(found: tuple[Any, Any], nfeatures: int, norm: int, elements: int) -> Extraction:
    """OpenCV's result as arrays, no more than `nfeatures` of them (SIFT keeps ties beyond its limit)."""
    keypoints, descriptors = found
    if descriptors is None:
        dtype = np.float32 if norm == cv2.NORM_L2 else np.uint8
        return Extraction(np.zeros((0, 2), np.float32), np.zeros((0, elements), dtype), norm)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    if 0 < nfeatures < len(points):
        responses = np.array([keypoint.response for keypoint in keypoints])
        kept = np.argsort(-responses, kind="stable")[:nfeatures]
        points, descriptors = points[kept], np.ascontiguousarray(descriptors[kept])
    return Extraction(points, descriptors, norm)
