"""Putting other values under names of modules, and back."""

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final

Change = tuple[ModuleType, str, Any]
"""Module, name and the value to put there."""

_ABSENT: Final = object()


def swap(changes: Iterable[Change]) -> Callable[[], None]:
    """Put the values in place, also where loaded modules bound the old ones to names of their own.

    Returns what undoes all of it. ``from cv2 import SIFT_create`` of before and meanwhile is covered so;
    what was put into a class, a closure, a default argument or a container is not.
    """
    done = [(module, name, vars(module).get(name, _ABSENT), new) for module, name, new in changes]
    for module, name, _, new in done:
        setattr(module, name, new)
        if isinstance(new, ModuleType):
            sys.modules[new.__name__] = new  # for import statements
    pairs = [(old, new) for _, _, old, new in done if callable(old)]
    _rebind(pairs)

    def undo() -> None:
        for module, name, old, new in reversed(done):
            if isinstance(new, ModuleType):
                del sys.modules[new.__name__]
            if old is _ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, old)
        _rebind((new, old) for old, new in pairs)

    return undo


def _rebind(pairs: Iterable[tuple[Any, Any]]) -> None:
    """In the modules of the program, names of the first of a pair become names of the second."""
    other = {id(one): two for one, two in pairs}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.partition(".")[0] not in ("cv2", "d2feat"):
            names = vars(module)
            for key in [key for key, value in names.items() if id(value) in other]:
                names[key] = other[id(names[key])]
