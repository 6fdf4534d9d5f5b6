"""What OpenCV's bindings do with classes, arguments and results, for ours to do the same."""

import contextlib
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import cv2
import numpy as np

from .errors import InputError
from .features import Floats
from .images import cv2_path

P = ParamSpec("P")
R = TypeVar("R")

_OTHER_NAMES: Final = {"images": ("image",), "masks": ("mask",), "fileName": ("fs", "fn")}
"""What other overloads of OpenCV call these arguments."""


def cv2_call(function: Callable[P, R]) -> Callable[P, R]:
    """Arguments that do not fit raise an error that is a `cv2.error`, as OpenCV's own bindings do."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for other, ours in _OTHER_NAMES.items():
            name = next((name for name in ours if name in signature.parameters), None)
            if name and other in kwargs and other not in signature.parameters and name not in kwargs:
                kwargs[name] = kwargs.pop(other)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            kinds = {name: one.kind for name, one in signature.parameters.items() if name != "self"}
            named = [name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY]
            names = ", ".join(name for name in kinds if name not in named)
            if named:
                names += f", and by name {', '.join(named)}"
            if "nfeatures" in kinds:
                names += "; leave out what else SIFT_create or ORB_create takes, it would mean nothing here"
            raise InputError(f"{function.__name__}: {error}; its parameters are {names}") from None
        return function(*args, **kwargs)

    return call


class Feature2DObject:
    """Base of what `isinstance(x, cv2.Feature2D)` holds for; it can be copied and pickled.

    A real subclass of `cv2.Feature2D` crashes the interpreter when C++ is handed it; this answers
    isinstance() and nothing else.
    """

    __class__ = property(lambda self: cv2.Feature2D)  # type: ignore[assignment]

    def _state(self) -> dict[str, Any]:
        """The attributes that a copy has."""
        return dict(self.__dict__)

    # By `__class__` these would be those of cv2.Feature2D.

    def __reduce__(self) -> tuple[Any, ...]:
        return new_object, (type(self),), self._state()

    def __dir__(self) -> list[str]:
        return dir(type(self)) + list(self.__dict__)


def new_object(kind: type[Any]) -> Any:
    """An object of the class `kind` that copying and unpickling fill."""
    return object.__new__(kind)


@contextlib.contextmanager
def opened_storage(path: str | os.PathLike[str], mode: int) -> Iterator[cv2.FileStorage]:
    """A `cv2.FileStorage`, released at the end, or a clear error."""
    storage = cv2.FileStorage()
    try:
        opened = storage.open(cv2_path(path), mode)
    except cv2.error as error:
        raise InputError(f"cannot open {os.fspath(path)} as a file of parameters: {error}") from None
    if not opened:
        raise InputError(f"cannot open {os.fspath(path)} as a file of parameters (.yml, .xml or .json)")
    try:
        yield storage
    finally:
        storage.release()


def paired(images: Any, others: Any, name: str) -> Iterable[tuple[Any, Any]]:
    """A list's images, each with its own of `others` ("masks" or "keypoints"); masks may be None."""
    if not isinstance(images, (list, tuple)):
        raise InputError(f"expected a list of images, not {type(images).__name__}")
    if others is None or (name == "masks" and isinstance(others, (list, tuple)) and not others):
        others = [None] * len(images)
    if not isinstance(others, (list, tuple)) or len(others) != len(images):
        raise InputError(f"{len(images)} images need as many {name}")
    return zip(images, others, strict=True)


def deliver(found: Floats | None, wanted: Any, image: Any) -> Any:
    """The descriptors in the form the caller asked for."""
    if isinstance(image, cv2.UMat):
        return cv2.UMat() if found is None else cv2.UMat(found)  # type: ignore[call-overload]  # not in stubs
    if found is None:
        return None
    fits = isinstance(wanted, np.ndarray) and wanted.dtype == found.dtype and wanted.shape == found.shape
    if fits and wanted.flags.writeable and wanted.flags.c_contiguous:
        wanted[...] = found
        return wanted
    return found


def copied(keypoint: cv2.KeyPoint) -> cv2.KeyPoint:
    """A keypoint of its own."""
    x, y = keypoint.pt
    return cv2.KeyPoint(
        x, y, keypoint.size, keypoint.angle, keypoint.response, keypoint.octave, keypoint.class_id
    )


def whole(value: Any, name: str) -> int:
    """A parameter that is a whole number."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, not {value!r}") from None
    if not -(2**31) <= number < 2**31:
        raise InputError(f"{name} must fit in 32 bits, as OpenCV's numbers do, not {value!r}")
    return number


def size_of(size: Any) -> tuple[int, int]:
    """(width, height) of an image."""
    if not isinstance(size, (Sequence, np.ndarray)) or len(size) != 2:
        raise InputError(f"a size is a pair (width, height), not {size!r}")
    width, height = (whole(edge, "width and height") for edge in size)
    if width < 1 or height < 1:
        raise InputError(f"width and height are at least 1, not {size!r}")
    return width, height


def real(value: Any, name: str) -> float:
    """A parameter that is a finite number."""
    if isinstance(value, (int, float, np.integer, np.floating)):
        with contextlib.suppress(OverflowError):  # of whole numbers beyond all floating-point ones
            if math.isfinite(number := float(value)):
                return number
    raise InputError(f"{name} must be a finite number, not {value!r}")
