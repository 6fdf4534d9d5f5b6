"""D2-Net with the constructors, setters and getters of the detectors it replaces.

The classes carry the names of those they replace; `cv2.SIFT` is `SIFT` below while d2feat is installed.
Two things that programs rely on without saying so are kept as well:

- Descriptors are float32 for all of them. Those of SIFT and of the binary methods become whole numbers of
  0 to 255, as SIFT's are: a program may take their square root (RootSIFT) or cast them to uint8. That is a
  shift and a factor, which leaves the order and the ratios of L2 distances alone but for the rounding; the
  factor makes two unrelated descriptors as distant as two of SIFT's are. SURF's and KAZE's are signed and of
  unit length, as ours.
- ``angle`` is 0, upright, where `d2feat.create` says -1: programs turn patches by it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt

from ..bindings import cv2_call, paired
from ..errors import InputError
from ..feature2d import D2Feature
from ..features import Features
from .notices import report

FACTOR: Final = 384.0
"""Two unrelated descriptors are sqrt(2) apart; two of SIFT's are about 540."""
SHIFT: Final = 128.0

BUDGETS: Final = ("NFeatures", "MaxFeatures", "MaxPoints")

MANY: Final = 5000
"""Features of an image beyond which a program without a limit is told of it."""

options: dict[str, Any] = {}
"""What `d2feat.create` is called with beside a program's own number of features; set by `install`."""


def _getter(accessor: str) -> Callable[[Any], Any]:
    def get(self: "Replacement") -> Any:
        return self._get(accessor)

    return get


def _setter(name: str, accessor: str) -> Callable[[Any, Any], None]:
    def set_(self: "Replacement", value: Any) -> None:
        if accessor not in BUDGETS:
            self._report([name])
        self._set(accessor, value)

    return set_


class Replacement(D2Feature):
    """A `D2Feature` that is made and set as another detector is."""

    parameters: ClassVar[dict[str, tuple[str, Any]]] = {}
    """By name, in the order of the constructor: what follows get and set, and the default."""
    positional: ClassVar[int] = 0
    """How many of them may be given by position."""
    bytelike: ClassVar[bool] = True
    """Whether descriptors are whole numbers of 0 to 255."""
    filed: ClassVar[dict[str, str]] = {}
    """What parameters are called in a `cv2.FileStorage`, where that is not their name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {name: value for name, value in self._bind(args, kwargs).items() if value is not None}
        self._stored = dict(self.parameters.values())
        self._stored |= {self.parameters[name][0]: value for name, value in given.items()}
        budget = next((value for accessor, value in self._stored.items() if accessor in BUDGETS), 0)
        self._report(name for name in given if self.parameters[name][0] not in BUDGETS)
        arguments: dict[str, Any] = {"nfeatures": budget, **options}
        super().__init__(**arguments)

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> "Replacement":  # type: ignore[override]
        """The constructor under its other name."""
        return cls(*args, **kwargs)

    @classmethod
    def _bind(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name."""
        names = list(cls.parameters)
        signature = inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD
                    if i < cls.positional
                    else inspect.Parameter.KEYWORD_ONLY,
                )
                for i, name in enumerate(names)
            ]
        )
        try:
            return signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(
                f"{cls.__name__}_create: {error}; its parameters are {', '.join(names)}"
            ) from None

    @classmethod
    def _report(cls, names: Iterable[str]) -> None:
        for name in names:
            report(f"{cls.__name__}: {name} means nothing to D2-Net, which replaces it; it is only stored")

    def _get(self, accessor: str) -> Any:
        return self.getNFeatures() if accessor in BUDGETS else self._stored[accessor]

    def _set(self, accessor: str, value: Any) -> None:
        if accessor in BUDGETS:
            self.setNFeatures(value)
        else:
            self._stored[accessor] = value

    def __init_subclass__(cls) -> None:
        for name, (accessor, _) in cls.__dict__.get("parameters", {}).items():
            if accessor != "NFeatures":  # D2Feature's own
                setattr(cls, f"get{accessor}", _getter(accessor))
                setattr(cls, f"set{accessor}", _setter(name, accessor))

    # ---- results as the replaced detector gives them

    def extract(self, image: Any, mask: Any = None) -> Features:
        """As `D2Feature.extract`, with this detector's kind of descriptors and angles of 0 for none."""
        found = super().extract(image, mask)
        if self.getNFeatures() <= 0 and len(found) > MANY:
            report(
                f"{type(self).__name__}: without a limit D2-Net finds thousands of features in an image, and "
                "matching takes a multiple of the time; where 2000 do, give the detector that number"
            )
        angles = np.zeros(len(found), np.float32) if found.angles is None else found.angles
        return dataclasses.replace(found, descriptors=self._converted(found.descriptors), angles=angles)

    def describe(self, image: Any, points: npt.ArrayLike) -> Any:
        """As `D2Feature.describe`, with this detector's kind of descriptors."""
        return self._converted(super().describe(image, points))

    def _converted(self, descriptors: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if not self.bytelike:
            return descriptors
        values: npt.NDArray[Any] = np.rint(descriptors * np.float32(FACTOR) + np.float32(SHIFT)).clip(0, 255)
        return values.astype(np.uint8 if self.descriptorType() == cv2.CV_8U else np.float32)

    # OpenCV finds nothing in no image, such as a part of a frame that lies beyond it, and says so without an
    # error; but for SIFT's and others' detectAndCompute.

    @cv2_call
    def detect(self, image: Any, mask: Any = None) -> Any:
        """As `D2Feature.detect`; nothing in an empty image."""
        if not isinstance(image, (list, tuple)):
            return () if _is_empty(image) else super().detect(image, mask)
        given = [(one, by) for one, by in paired(image, mask, "masks") if not _is_empty(one)]
        found = iter(super().detect([one for one, _ in given], [by for _, by in given]))
        return tuple(() if _is_empty(one) else next(found) for one in image)

    @cv2_call
    def compute(self, image: Any, keypoints: Any, descriptors: Any = None) -> Any:
        """As `D2Feature.compute`; no descriptors in an empty image."""
        if _is_empty(image):
            return () if keypoints is None else tuple(keypoints), None
        return super().compute(image, keypoints, descriptors)

    def getDefaultName(self) -> str:
        """Name of the replaced class."""
        return f"Feature2D.{type(self).__name__}"

    # ---- persistence, in the replaced detector's own terms as well

    def _write_parameters(self, fs: cv2.FileStorage) -> None:
        super()._write_parameters(fs)
        for name, (accessor, _) in self.parameters.items():
            value = self._get(accessor)
            if self._key(name) != "nfeatures" and isinstance(value, (int, float)):
                fs.write(self._key(name), int(value) if isinstance(value, bool) else value)

    def _read_parameters(self, fn: cv2.FileNode) -> None:
        """Of a node that the replaced detector wrote, or that is missing, as that would: what is there."""
        if not fn.getNode("model").empty():
            super()._read_parameters(fn)
        elif not fn.empty() and fn.getNode("name").string() != self.getDefaultName():
            raise InputError(f"the node does not hold the parameters of {type(self).__name__}")
        for name, (accessor, default) in self.parameters.items():
            node = fn.getNode(self._key(name))
            if default is None or not (node.isInt() or (node.isReal() and isinstance(default, float))):
                continue
            self._set(accessor, type(default)(node.real()))

    @classmethod
    def _key(cls, name: str) -> str:
        return cls.filed.get(name, name)

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"_stored": dict(self._stored)}


def _is_empty(image: Any) -> bool:
    return image is None or (isinstance(image, np.ndarray) and image.size == 0)


class SIFT(Replacement):
    """In the place of `cv2.SIFT`."""

    parameters: ClassVar = {
        "nfeatures": ("NFeatures", 0),
        "nOctaveLayers": ("NOctaveLayers", 3),
        "contrastThreshold": ("ContrastThreshold", 0.04),
        "edgeThreshold": ("EdgeThreshold", 10.0),
        "sigma": ("Sigma", 1.6),
        "descriptorType": ("DescriptorType", cv2.CV_32F),
        "enable_precise_upscale": ("EnablePreciseUpscale", False),
    }
    positional = 7

    @classmethod
    def _bind(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) == 6 and isinstance(args[-1], bool):  # of OpenCV's two overloads the one without a type
            args, kwargs = args[:-1], {"enable_precise_upscale": args[-1], **kwargs}
        given = super()._bind(args, kwargs)
        if given.get("descriptorType", cv2.CV_32F) not in (cv2.CV_32F, cv2.CV_8U):
            raise InputError(
                f"SIFT's descriptorType is cv2.CV_32F or cv2.CV_8U, not {given['descriptorType']!r}"
            )
        return given

    @classmethod
    def _report(cls, names: Iterable[str]) -> None:
        super()._report(name for name in names if name != "descriptorType")

    def descriptorType(self) -> int:
        """`cv2.CV_32F`, or `cv2.CV_8U` if the constructor was told so."""
        return int(self._stored["DescriptorType"])


class SURF(Replacement):
    """In the place of `cv2.xfeatures2d.SURF`."""

    parameters: ClassVar = {
        "hessianThreshold": ("HessianThreshold", 100.0),
        "nOctaves": ("NOctaves", 4),
        "nOctaveLayers": ("NOctaveLayers", 3),
        "extended": ("Extended", False),
        "upright": ("Upright", False),
    }
    positional = 5
    bytelike = False


class KAZE(Replacement):
    """In the place of `cv2.KAZE`."""

    parameters: ClassVar = {
        "extended": ("Extended", False),
        "upright": ("Upright", False),
        "threshold": ("Threshold", 0.001),
        "nOctaves": ("NOctaves", 4),
        "nOctaveLayers": ("NOctaveLayers", 4),
        "diffusivity": ("Diffusivity", 1),
    }
    positional = 6
    filed: ClassVar = {"nOctaves": "octaves", "nOctaveLayers": "sublevels"}
    bytelike = False
    DIFF_PM_G1, DIFF_PM_G2, DIFF_WEICKERT, DIFF_CHARBONNIER = range(4)


class AKAZE(Replacement):
    """In the place of `cv2.AKAZE`."""

    parameters: ClassVar = {
        "descriptor_type": ("DescriptorType", 5),
        "descriptor_size": ("DescriptorSize", 0),
        "descriptor_channels": ("DescriptorChannels", 3),
        "threshold": ("Threshold", 0.001),
        "nOctaves": ("NOctaves", 4),
        "nOctaveLayers": ("NOctaveLayers", 4),
        "diffusivity": ("Diffusivity", 1),
        "max_points": ("MaxPoints", -1),
    }
    positional = 8
    filed: ClassVar = {"descriptor_type": "descriptor", "nOctaves": "octaves", "nOctaveLayers": "sublevels"}
    DESCRIPTOR_KAZE_UPRIGHT, DESCRIPTOR_KAZE, DESCRIPTOR_MLDB_UPRIGHT, DESCRIPTOR_MLDB = range(2, 6)


class BRISK(Replacement):
    """In the place of `cv2.BRISK`."""

    parameters: ClassVar = {
        "thresh": ("Threshold", 30),
        "octaves": ("Octaves", 3),
        "patternScale": ("PatternScale", 1.0),
        "radiusList": ("RadiusList", None),
        "numberList": ("NumberList", None),
        "dMax": ("DMax", 5.85),
        "dMin": ("DMin", 8.2),
        "indexChange": ("IndexChange", None),
    }
    positional = 3
    filed: ClassVar = {"thresh": "threshold"}


class ORB(Replacement):
    """In the place of `cv2.ORB`."""

    parameters: ClassVar = {
        "nfeatures": ("MaxFeatures", 500),
        "scaleFactor": ("ScaleFactor", 1.2),
        "nlevels": ("NLevels", 8),
        "edgeThreshold": ("EdgeThreshold", 31),
        "firstLevel": ("FirstLevel", 0),
        "WTA_K": ("WTA_K", 2),
        "scoreType": ("ScoreType", 0),
        "patchSize": ("PatchSize", 31),
        "fastThreshold": ("FastThreshold", 20),
    }
    positional = 9
    filed: ClassVar = {"WTA_K": "wta_k"}
    HARRIS_SCORE, FAST_SCORE = range(2)

    @cv2_call
    def detectAndCompute(
        self, image: Any, mask: Any = None, descriptors: Any = None, useProvidedKeypoints: bool = False
    ) -> Any:
        """As `D2Feature.detectAndCompute`; nothing in an empty image."""
        if _is_empty(image):
            return (), None
        return super().detectAndCompute(image, mask, descriptors, useProvidedKeypoints)


METHODS: Final[dict[str, type[Replacement]]] = {
    "sift": SIFT,
    "surf": SURF,
    "orb": ORB,
    "akaze": AKAZE,
    "kaze": KAZE,
    "brisk": BRISK,
}
