"""One process at a time, where several write to one place."""

import contextlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .errors import D2FeatError, InputError

_LOG: Final = logging.getLogger("d2feat")

_held: set[tuple[int, ...]] = set()
"""Process, thread, device and inode of the locks held here: a thread would wait for itself for ever."""


@contextlib.contextmanager
def locked(folder: Path, *, temporary: bool = False) -> Iterator[None]:
    """Wait until no other process of this machine has locked the folder, which is made if it is not there.

    The lock is the system's, on the folder itself: it leaves no file, and ends with a process that is killed.
    The folder may be removed while it is locked.

    Args:
        temporary: remove the folder at the end, if it is empty.

    Raises:
        D2FeatError: this thread has locked it.
        InputError: a file or a link to nowhere stands where it should be.
    """
    with _opened_locked(folder):
        try:
            yield
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def _opened_locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":  # which lets nobody replace a file that another has open
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    import fcntl

    lock = _lock(folder)
    there = os.fstat(lock)
    held = os.getpid(), threading.get_ident(), there.st_dev, there.st_ino
    _held.add(held)
    try:
        yield
    finally:
        _held.discard(held)
        if os.getpid() == held[0]:  # a forked child shares it, and may go on for long
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _is_no_folder(path: Path) -> bool:
    """Whether there is something else; asked at once, for others make and remove folders meanwhile."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return path.is_symlink()


def _lock(folder: Path) -> int:
    """A descriptor of the folder, locked."""
    import fcntl

    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            # Another process removed it in between, unless something else is there, as a link to nowhere.
            if obstacle := next(filter(_is_no_folder, (folder, *folder.parents)), None):
                raise InputError(f"cannot make {folder}: {obstacle} is no folder") from None
            continue
        try:
            there = os.fstat(lock)
            if (os.getpid(), threading.get_ident(), there.st_dev, there.st_ino) in _held:
                raise D2FeatError(f"this thread is at work on {folder} already: let it end first")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _LOG.warning("waiting for another process that is at work on %s", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # some network file systems have no such locks
                return lock
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), folder.stat()):
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
