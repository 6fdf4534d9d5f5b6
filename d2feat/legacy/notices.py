"""What the user is told of replacements: once each, where the program's own line is the cause."""

import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Final

_PACKAGE: Final = str(Path(__file__).parents[1])

_told: set[str] = set()


def report(message: str) -> None:
    """Warn of something once in a program; worker processes leave it to their parent."""
    if message in _told or _is_worker():
        return
    _told.add(message)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_worker() -> bool:
    # While a spawned process imports the program it does not know its parent yet.
    inheriting = getattr(multiprocessing.current_process(), "_inheriting", False)
    return inheriting or multiprocessing.parent_process() is not None


def forget() -> None:
    """Report everything again."""
    _told.clear()
