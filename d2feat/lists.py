"""Text files that list images, pairs or queries, one a line."""

from pathlib import Path

from .errors import InputError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
