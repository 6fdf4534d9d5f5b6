"""Matchers written for binary descriptors, given D2-Net's floats: L2 takes the place of the Hamming distance.

Only matchers that were asked for a Hamming distance or an LSH index are replaced, and these by something that
still holds the real one: real binary descriptors, of ORB for example, go there. Distances are scaled so that
two unrelated descriptors are as many "bits" apart as two of ORB's are, for programs that compare them to a
number.
"""

import abc
import types
from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np

from ..errors import InputError
from .notices import report

BITS: Final = 0.25
"""Of the distance between descriptors of 0 to 255 (540 if unrelated) that between ORB's (128 of 256 bits)."""

_HAMMING: Final = (cv2.NORM_HAMMING, cv2.NORM_HAMMING2)
_LSH, _KD_TREE = 6, 1


class Facade(abc.ABCMeta):
    """Type of the classes that stand where those of cv2 stood: calls go to a function, all else to these."""

    _real: Any

    def __new__(mcs, name: str, bases: tuple[Any, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """A subclass, of the real one."""
        real = tuple(base._real if isinstance(base, Facade) else base for base in bases)
        return types.new_class(name, real, kwargs, lambda body: body.update(namespace))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make one."""
        return cls.create(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real, name)

    def __dir__(cls) -> list[str]:
        return dir(cls._real)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._real)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return issubclass(subclass._real if isinstance(subclass, Facade) else subclass, cls._real)

    def __repr__(cls) -> str:
        return repr(cls._real)


def facade(real: Any, make: Callable[..., Any]) -> Facade:
    """The class in place of the class `real`, whose instances `make` makes."""
    namespace = {"__module__": real.__module__, "_real": real, "create": staticmethod(make)}
    return abc.ABCMeta.__new__(Facade, real.__name__, (), namespace)


def as_real(value: Any) -> Any:
    """OpenCV's own matcher of a matcher for either kind, for what takes no Python object; else `value`."""
    return value._binary if type(value) is EitherMatcher else value


class EitherMatcher:
    """A `cv2.DescriptorMatcher` for binary descriptors, and another for floats: each gets its own kind.

    Args:
        length: of D2-Net's descriptors: bytes of so many a row were cast from these.
        notice: what is said when the other is used.
    """

    def __init__(self, binary: Any, floating: Any, length: int, notice: str) -> None:
        self._binary, self._floating, self._length, self._notice = binary, floating, length, notice

    __class__ = property(lambda self: type(self._binary))  # type: ignore[assignment]  # for isinstance()

    def add(self, descriptors: Any) -> None:
        """As of `cv2.DescriptorMatcher`."""
        several = isinstance(descriptors, (list, tuple))
        matcher, parts = self._choose(*(descriptors if several else [descriptors]))
        matcher.add(parts if several else parts[0])

    def match(self, *args: Any, **kwargs: Any) -> Any:
        """As of `cv2.DescriptorMatcher`."""
        return self._search("match", args, kwargs)

    def knnMatch(self, *args: Any, **kwargs: Any) -> Any:
        """As of `cv2.DescriptorMatcher`."""
        return self._search("knnMatch", args, kwargs)

    def radiusMatch(self, *args: Any, **kwargs: Any) -> Any:
        """As of `cv2.DescriptorMatcher`."""
        return self._search("radiusMatch", args, kwargs)

    def train(self) -> None:
        """As of `cv2.DescriptorMatcher`."""
        self._current().train()

    def clear(self) -> None:
        """As of `cv2.DescriptorMatcher`."""
        self._binary.clear()
        self._floating.clear()

    def empty(self) -> bool:
        """As of `cv2.DescriptorMatcher`."""
        return bool(self._binary.empty() and self._floating.empty())

    def getTrainDescriptors(self) -> Any:
        """As of `cv2.DescriptorMatcher`; floats are scaled."""
        return self._current().getTrainDescriptors()

    def clone(self, emptyTrainData: bool = False) -> "EitherMatcher":
        """As of `cv2.DescriptorMatcher`."""
        binary, floating = self._binary.clone(emptyTrainData), self._floating.clone(emptyTrainData)
        return EitherMatcher(binary, floating, self._length, self._notice)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._binary, name)

    def _current(self) -> Any:
        return self._binary if self._floating.empty() else self._floating

    def _search(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = ("queryDescriptors", "trainDescriptors")
        # A list in the second place holds masks: descriptors are arrays.
        count = 2 if len(args) > 1 and isinstance(args[1], (np.ndarray, cv2.UMat)) else min(1, len(args))
        keywords = [name for name in names if name in kwargs]
        matcher, converted = self._choose(*args[:count], *(kwargs[name] for name in keywords))
        kwargs |= zip(keywords, converted[count:], strict=True)
        return getattr(matcher, method)(*converted[:count], *args[count:], **kwargs)

    def _choose(self, *descriptors: Any) -> tuple[Any, list[Any]]:
        """The matcher for descriptors, and these as it takes them."""
        arrays = [part.get() if isinstance(part, cv2.UMat) else part for part in descriptors]
        kinds = {_is_floating(part, self._length) for part in arrays} - {None}
        if kinds == {True, False}:
            raise InputError("binary descriptors cannot be matched to D2-Net's: both images need the same")
        if not kinds:
            return self._current(), list(descriptors)
        if kinds == {False}:
            if not self._floating.empty():
                raise InputError("binary descriptors cannot be matched to D2-Net's, which this matcher holds")
            return self._binary, list(descriptors)
        if not self._binary.empty():
            raise InputError(
                "D2-Net's descriptors cannot be matched to binary ones, which this matcher holds"
            )
        report(self._notice)
        return self._floating, [
            part if _is_floating(part, self._length) is None else part.astype(np.float32) * np.float32(BITS)
            for part in arrays
        ]


def _is_floating(descriptors: Any, length: int) -> bool | None:
    """Whether an array holds floats, or bytes cast from ours of that length; None if no descriptors."""
    if not isinstance(descriptors, np.ndarray) or descriptors.ndim != 2 or descriptors.size == 0:
        return None
    return bool(descriptors.dtype.kind == "f" or descriptors.shape[1] == length)


def make_brute_force(real: Any, length: int) -> Callable[..., Any]:
    """`cv2.BFMatcher` for any descriptors."""

    def make(normType: int = cv2.NORM_L2, crossCheck: bool = False) -> Any:
        matcher = real(normType, crossCheck)
        if normType not in _HAMMING:
            return matcher
        notice = "BFMatcher: D2-Net's descriptors are floats and matched by L2, not by the Hamming distance"
        return EitherMatcher(matcher, real(cv2.NORM_L2, crossCheck), length, notice)

    return make


def make_flann(real: Any, length: int) -> Callable[..., Any]:
    """`cv2.FlannBasedMatcher` for any descriptors."""

    def make(indexParams: Any = None, searchParams: Any = None) -> Any:
        if indexParams is None:
            return real()
        search = {} if searchParams is None else searchParams
        matcher = real(indexParams, search)
        if dict(indexParams).get("algorithm") != _LSH:
            return matcher
        notice = "FlannBasedMatcher: D2-Net's descriptors are floats and get a kd-tree, not an LSH index"
        return EitherMatcher(matcher, real({"algorithm": _KD_TREE, "trees": 5}, search), length, notice)

    return make


def make_named(real: Any, brute_force: Callable[..., Any]) -> Callable[..., Any]:
    """`cv2.DescriptorMatcher_create` for any descriptors."""
    hamming = {
        "BruteForce-Hamming": cv2.NORM_HAMMING,
        "BruteForce-HammingLUT": cv2.NORM_HAMMING,
        "BruteForce-Hamming(2)": cv2.NORM_HAMMING2,
        cv2.DescriptorMatcher_BRUTEFORCE_HAMMING: cv2.NORM_HAMMING,
        cv2.DescriptorMatcher_BRUTEFORCE_HAMMINGLUT: cv2.NORM_HAMMING,
    }

    def make(*args: Any, **kwargs: Any) -> Any:
        kind = next(iter((*args, *kwargs.values())), None)
        return brute_force(hamming[kind]) if kind in hamming else real(*args, **kwargs)

    return make


def make_flann_index(real: Any, length: int) -> Callable[..., Any]:
    """`cv2.flann_Index` for any descriptors."""

    def make(*args: Any, **kwargs: Any) -> Any:
        values = dict(zip(("features", "params", "distType"), args, strict=False)) | kwargs
        features, params = values.get("features"), values.get("params")
        if params is not None and dict(params).get("algorithm") == _LSH and _is_floating(features, length):
            report("flann_Index: D2-Net's descriptors are floats and get a kd-tree, not an LSH index")
            return real(np.asarray(features, np.float32), {"algorithm": _KD_TREE, "trees": 5})
        return real(*args, **kwargs)

    return make
