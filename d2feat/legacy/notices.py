"""What the user is told of replacements: once each, where the program's own line is the cause."""

import itertools
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Final

_PACKAGE: Final = str(Path(__file__).parents[1])

_told: set[str] = set()


def report(message: str) -> None:
    """Warn of something once in a program; worker processes leave it to their parent."""
    if message in _told or multiprocessing.parent_process() is not None:
        return
    _told.add(message)
    frame = sys._getframe(1)
    for level in itertools.count(2):
        if frame.f_back is None or not frame.f_code.co_filename.startswith(_PACKAGE):
            break
        frame = frame.f_back
    warnings.warn(message, stacklevel=level)


def forget() -> None:
    """Report everything again."""
    _told.clear()
