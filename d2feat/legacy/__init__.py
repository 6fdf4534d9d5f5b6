"""Programs written for OpenCV's SIFT, SURF, AKAZE, KAZE or BRISK run with D2-Net, unchanged.

``python -m d2feat.legacy app.py ARGS...`` runs a program so; `installed` and `install` do it in process:

>>> import cv2, d2feat
>>> with d2feat.installed(nfeatures=2000):
...     type(cv2.SIFT_create()).__module__
'd2feat.legacy.replacements'

`replacements` holds the detectors, `matchers` what becomes of Hamming distances, `swaps` the names of cv2
that change, `patching` how they change and change back. docs/migrating-from-sift.md says what is kept.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..feature2d import create
from . import notices, replacements
from .patching import swap
from .swaps import DEFAULT, changes

__all__ = ["install", "installed", "uninstall"]


@dataclass(frozen=True)
class Settings:
    """What is replaced, the options of `d2feat.create`, and the length of the descriptors that this gives."""

    methods: tuple[str, ...]
    options: dict[str, Any]
    length: int


_lock = threading.RLock()
_process: Settings | None = None
_blocks: list[Settings] = []
_undo: Callable[[], None] | None = None


def install(replace: str | Iterable[str] | None = None, **options: Any) -> None:
    """Put D2-Net in the place of cv2's detectors, in the whole process, until `uninstall`.

    Called again, it changes what was installed.

    Args:
        replace: names of methods, of "sift", "surf", "orb", "akaze", "kaze", "brisk": a sequence, or a string
            with commas. By default sift and surf, and akaze, kaze and brisk where OpenCV (5) has none.
        options: of `d2feat.create`, for every detector that is made, such as ``model="d2net"``; ``nfeatures``
            goes before the number that the program makes it with.

    Raises:
        InputError: a method or an option is unknown.
        ModelError, ProviderError: such a detector cannot be had.
    """
    settings = _checked(replace, options)
    global _process
    with _lock:
        _process = settings
        _refresh()


def uninstall() -> None:
    """Undo `install`; nothing, if it was not called."""
    global _process
    with _lock:
        _process = None
        _refresh()


@contextlib.contextmanager
def installed(replace: str | Iterable[str] | None = None, **options: Any) -> Iterator[None]:
    """`install` for the length of a with block; blocks may be nested, the innermost counts."""
    settings = _checked(replace, options)
    with _lock:
        _blocks.append(settings)
        _refresh()
    try:
        yield
    finally:
        with _lock:
            # By identity: an equal block of another thread stays.
            del _blocks[next(i for i, block in enumerate(_blocks) if block is settings)]
            _refresh()


def _checked(replace: str | Iterable[str] | None, options: dict[str, Any]) -> Settings:
    names = DEFAULT if replace is None else replace.split(",") if isinstance(replace, str) else replace
    methods = tuple(name.strip().lower() for name in names)
    unknown = [name for name in methods if name not in replacements.METHODS]
    if unknown or not methods:
        known = ", ".join(replacements.METHODS)
        raise InputError(f"cannot replace {', '.join(unknown) or 'nothing'}; methods are {known}")
    detector = create(**options)  # what is wrong with them shows here, not in the middle of the program
    return Settings(methods, dict(options), detector.descriptorSize())


def _refresh() -> None:
    """Make cv2 what the innermost block says, or `install`, or what it was."""
    global _undo
    if _undo is not None:
        _undo()
        _undo = None
    settings = _blocks[-1] if _blocks else _process
    replacements.options.clear()
    notices.forget()
    if settings is not None:
        replacements.options.update(settings.options)
        _undo = swap(changes(settings.methods, settings.length))
