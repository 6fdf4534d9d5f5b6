"""The work on this machine."""

from collections.abc import Iterator
from pathlib import Path

from ..feature2d import D2Feature
from ..images import digest
from .parts import write_part


def extract_local(
    detector: D2Feature, images: dict[str, Path], folder: Path, settings: str
) -> Iterator[tuple[str, str | None]]:
    """Extract images into parts; yields each one's name when it is done, and what was wrong or None."""
    names, digests = list(images), list[str]()

    def paths() -> Iterator[Path]:
        for path in images.values():
            # Before it is read: a file that changes in between is taken for changed the next time.
            digests.append(digest(path))
            yield path

    for found in detector.stream(paths()):
        name = names[found.index]
        if found.error is None:
            write_part(folder, name, found.features, settings, digests[found.index])
        yield name, None if found.error is None else str(found.error)
