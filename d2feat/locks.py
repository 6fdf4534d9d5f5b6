"""One process at a time, where several write to one place."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger("d2feat")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine has locked the folder, which is made if it is not there.

    The lock is the system's, on the folder itself: it leaves no file, and ends with a process that is killed.
    The folder may be removed while it is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # which lets nobody replace a file that another has open
        yield
        return
    import fcntl

    while True:
        lock = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _LOG.info("waiting for another process that writes to %s", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # some network file systems have no such locks
                pass
            folder.mkdir(parents=True, exist_ok=True)
            if os.path.samestat(os.fstat(lock), folder.stat()):
                yield
                return
        finally:
            os.close(lock)
