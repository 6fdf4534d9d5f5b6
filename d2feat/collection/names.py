"""From paths, folders and lists of files to images and their names."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..hdf5 import stored_name
from ..images import SUFFIXES, files_under
from ..lists import read_lines

TAKEN: Final = (*SUFFIXES, ".avif", ".jp2")
"""What is taken of a folder."""


def find_images(sources: Sequence[Path]) -> dict[str, Path]:
    """Names and paths of images, in the order given.

    Args:
        sources: folders, searched through (names are relative to the folder); ``.txt`` files with a path a
            line, relative to the list's folder (names as written there, but for ./ and the like); and image
            files (names relative to the folder that all of them share).

    Raises:
        InputError: a source is missing or a list is no text, two images have one name, or there is none.
    """
    files = [path for path in sources if not path.is_dir() and path.suffix.lower() != ".txt"]
    shared = _shared_folder(files)
    found: dict[str, Path] = {}
    for source in sources:
        if source.is_dir():
            named: Iterable[tuple[str, Path]] = _of_folder(source)
        elif not source.exists():
            raise InputError(f"there is no file or folder {source}")
        elif source.suffix.lower() == ".txt":
            named = _of_list(source)
        else:
            named = [(_absolute(source).relative_to(shared).as_posix(), source)]
        for name, path in named:
            if name in found and found[name].resolve() != path.resolve():
                raise InputError(f"{found[name]} and {path} would both be named {name}; give a folder above")
            found[name] = path
    if not found:
        raise InputError(f"no images in {', '.join(map(str, sources))}")
    return found


def _shared_folder(files: Sequence[Path]) -> Path:
    folders = [_absolute(path).parent for path in files] or [Path()]
    shared = folders[0]
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    return shared


def _absolute(path: Path) -> Path:
    """Without . and .., but with links as they are named: two may lead to one file."""
    return Path(os.path.normpath(path.absolute()))


def _of_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in files_under(folder, TAKEN):
        yield path.relative_to(folder).as_posix(), path


def _of_list(path: Path) -> Iterator[tuple[str, Path]]:
    for line in filter(None, map(str.strip, read_lines(path))):
        yield stored_name(line), path.parent / line
