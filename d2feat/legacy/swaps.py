"""Which names of cv2 become what while d2feat is installed."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, Final

import cv2

from ..affine import AffineFeature
from ..bow import BOWImgDescriptorExtractor, BOWKMeansTrainer
from ..feature2d import D2Feature
from ..image_features import check_image_features, to_image_features
from . import matchers
from .notices import report
from .patching import Change
from .replacements import METHODS

STITCHED: Final = 500
"""Features that OpenCV's own stitching takes of an image."""


DEFAULT: Final = (
    "sift",
    "surf",
    *(name for name in ("akaze", "kaze", "brisk") if not hasattr(cv2, f"{name.upper()}_create")),
)
"""Methods that are replaced if none is named: those two, and what OpenCV, here still as it came, lacks."""


def changes(methods: Sequence[str], length: int) -> Iterator[Change]:
    """All changes for the methods that are replaced by detectors with descriptors of that length."""
    for module, name, new in itertools.chain(_detectors(methods), _matchers(length), _consumers()):
        if isinstance(new, FunctionType):  # for pickle, which finds functions by their names
            new.__module__, new.__name__, new.__qualname__ = module.__name__, name, name
        yield module, name, new


def _detectors(methods: Sequence[str]) -> Iterator[Change]:
    contrib = getattr(cv2, "xfeatures2d", None)
    if contrib is None:
        contrib = ModuleType("cv2.xfeatures2d", "What programs expect of opencv-contrib's module, by d2feat.")
        yield cv2, "xfeatures2d", contrib
    for name in methods:
        cls = METHODS[name]
        places = [cv2, contrib] if name in ("sift", "surf") else [cv2]
        for place in places:
            yield place, cls.__name__, cls
            yield place, f"{cls.__name__}_create", cls.create
        if contrib in places:
            yield cv2, f"xfeatures2d_{cls.__name__}", cls
        for constant, value in vars(cls).items():
            if constant.isupper() and isinstance(value, int):
                yield cv2, f"{cls.__name__}_{constant}", value


def _matchers(length: int) -> Iterator[Change]:
    brute_force = matchers.make_brute_force(cv2.BFMatcher, length)
    flann = matchers.make_flann(cv2.FlannBasedMatcher, length)
    named = matchers.make_named(cv2.DescriptorMatcher_create, brute_force)  # type: ignore[attr-defined]
    index = matchers.facade(cv2.flann.Index, matchers.make_flann_index(cv2.flann.Index, length))
    yield cv2, "BFMatcher", matchers.facade(cv2.BFMatcher, brute_force)
    yield cv2, "BFMatcher_create", brute_force
    yield cv2, "FlannBasedMatcher", matchers.facade(cv2.FlannBasedMatcher, flann)
    yield cv2, "FlannBasedMatcher_create", flann
    yield cv2, "DescriptorMatcher", matchers.facade(cv2.DescriptorMatcher, named)
    yield cv2, "DescriptorMatcher_create", named
    yield cv2, "flann_Index", index
    yield cv2.flann, "Index", index


def _consumers() -> Iterator[Change]:
    """Functions of C++ that take a detector: what Python can do in their place, or why it cannot."""
    one, several = cv2.detail.computeImageFeatures2, cv2.detail.computeImageFeatures
    yield cv2.detail, "computeImageFeatures2", _either(one, _compute_image_features)
    yield cv2.detail, "computeImageFeatures", _either(several, _compute_all_image_features)
    affine = _either(cv2.AffineFeature_create, _affine_feature)  # type: ignore[attr-defined]
    yield cv2, "AffineFeature", matchers.facade(cv2.AffineFeature, affine)
    yield cv2, "AffineFeature_create", affine
    stitcher = _reported(cv2.Stitcher_create)  # type: ignore[attr-defined]
    yield cv2, "Stitcher", matchers.facade(cv2.Stitcher, stitcher)
    yield cv2, "Stitcher_create", stitcher
    if hasattr(cv2, "BOWImgDescriptorExtractor"):
        real = cv2.BOWImgDescriptorExtractor
        yield (
            cv2,
            "BOWImgDescriptorExtractor",
            matchers.facade(real, _either(real, BOWImgDescriptorExtractor)),
        )
    else:
        yield cv2, "BOWImgDescriptorExtractor", BOWImgDescriptorExtractor
        yield cv2, "BOWKMeansTrainer", BOWKMeansTrainer


def _either(real: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """`ours` if the detector is one of d2feat's, else `real`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(issubclass(type(value), D2Feature) for value in (*args, *kwargs.values())):
            return ours(*args, **kwargs)
        return real(*map(matchers.as_real, args), **{name: matchers.as_real(kwargs[name]) for name in kwargs})

    return call


def _compute_image_features(featuresFinder: Any, image: Any, mask: Any = None) -> Any:
    check_image_features()
    pixels = image.get() if isinstance(image, cv2.UMat) else image
    if featuresFinder.getNFeatures() <= 0:
        report(
            f"computeImageFeatures2: the {STITCHED} best features are taken, for with many cv2.detail takes "
            "images that match well for one image twice; to have more give the detector a number"
        )
        featuresFinder = copy.copy(featuresFinder)
        featuresFinder.setNFeatures(STITCHED)
    keypoints, descriptors = featuresFinder.detectAndCompute(pixels, mask)
    return to_image_features(keypoints, descriptors, pixels.shape[1::-1])


def _compute_all_image_features(featuresFinder: Any, images: Any, masks: Any = None) -> tuple[Any, ...]:
    masks = masks or [None] * len(images)
    found = [_compute_image_features(featuresFinder, *pair) for pair in zip(images, masks, strict=True)]
    for index, features in enumerate(found):
        features.img_idx = index
    return tuple(found)


def _reported(create: Callable[..., Any]) -> Callable[..., Any]:
    """OpenCV's own stitcher, and a word that it stays so."""

    def make(*args: Any, **kwargs: Any) -> Any:
        report("Stitcher: takes no features from Python, and goes on with OpenCV's own")
        return create(*args, **kwargs)

    return make


def _affine_feature(*args: Any, **kwargs: Any) -> AffineFeature:
    report("AffineFeature: each simulated view is a run of D2-Net, 43 of them by default")
    return AffineFeature(*args, **kwargs)
