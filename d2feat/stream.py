"""Many images in a row: files are decoded ahead while the network runs, KeyPoints are built while it runs on.

    decoding (threads)  ->  network (one image at a time)  ->  the caller

Each stage works while the others do; at most `AHEAD` images are under way. The model takes one image, so that
images of any size may follow each other.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat, zip_longest
from typing import Any, Final, TypeVar

import cv2
import numpy as np

from .errors import D2FeatError, InputError
from .features import Features, Floats
from .images import read_image
from .runs import Runs, refused_work

AHEAD: Final = 4
"""Images under way at most: decoded, in the network, or not yet taken by the caller."""

DECODERS: Final = 2

_END: Final = object()

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Extraction:
    """What came of one image of a stream.

    Attributes:
        index: its place in the stream, from 0.
        source: the path or the image, as it was given.
        error: why there are no features, or None. Its message names the image.
    """

    index: int
    source: Any
    error: D2FeatError | None
    _features: Features | None

    @property
    def name(self) -> str:
        """The path of the file, or "image" and its place."""
        return _name(self.index, self.source)

    @property
    def features(self) -> Features:
        """Keypoints and descriptors as arrays; raises `error` if there is one."""
        if self._features is None:
            assert self.error is not None
            raise self.error
        return self._features

    @cached_property
    def _opencv(self) -> tuple[tuple[cv2.KeyPoint, ...], Floats | None]:
        return self.features.to_opencv()

    @property
    def keypoints(self) -> tuple[cv2.KeyPoint, ...]:
        """As `detectAndCompute` returns them; raises `error` if there is one."""
        return self._opencv[0]

    @property
    def descriptors(self) -> Floats | None:
        """As `detectAndCompute` returns them; raises `error` if there is one."""
        return self._opencv[1]


def stream(
    extract: Callable[[Any, Any], Features], images: Iterable[Any], masks: Iterable[Any] | None = None
) -> Generator[Extraction]:
    """Extract features of images, in order; see `D2Feature.stream`.

    Args:
        extract: image and mask to features.
        images: paths of files, or images; taken one by one, at most `AHEAD` more than were yielded.
        masks: as many masks, or None.

    Raises:
        InputError: `images` is one image or path.
    """
    check_several(images)
    pairs = zip(taken(images), repeat(None)) if masks is None else _masked(images, masks)

    def extracted(index: int, pair: tuple[Any, Any], image: "Future[Any]") -> Extraction:
        source, mask = pair
        try:
            return Extraction(index, source, None, extract(image.result(), mask))
        except Exception as error:
            return failed(index, source, error)

    return overlap(pairs, lambda pair: decode(pair[0]), extracted)


def check_several(images: Any) -> None:
    """Refuse one image or path where several are meant.

    Raises:
        InputError: it is one, or nothing that can be gone through.
    """
    one = isinstance(images, (str, bytes, os.PathLike, cv2.UMat))
    if isinstance(images, np.ndarray):
        several_of = 1 if images.dtype.kind in "UO" else 3  # paths or images; else pixels
        one = images.ndim < several_of or (several_of == 3 == images.ndim and images.shape[2] <= 4)
    if one or not isinstance(images, Iterable):
        kind = type(images).__name__
        if isinstance(images, cv2.VideoCapture):
            raise InputError("of a VideoCapture give the frames: a generator that yields what read() does")
        raise InputError(f"a list of images or paths is meant, not one {kind}: put it into a list")


def taken(images: Iterable[Any]) -> Iterator[Any]:
    """Images one by one; arrays that come from no list are copied: a camera may fill one again and again."""
    if isinstance(images, Sequence):
        yield from images
        return
    for image in images:
        if isinstance(image, cv2.UMat):
            yield cv2.UMat(image.get())  # type: ignore[call-overload]  # not in stubs
        else:
            yield image.copy() if isinstance(image, np.ndarray) else image


def _masked(images: Iterable[Any], masks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for count, (image, mask) in enumerate(zip_longest(taken(images), taken(masks), fillvalue=_END)):
        if image is _END or mask is _END:
            fewer, more = ("images", "masks") if image is _END else ("masks", "images")
            raise InputError(
                f"there are only {count} {fewer}, and more {more}: every image needs a mask or None"
            )
        yield image, mask


def overlap(
    jobs: Iterator[Job],
    prepare: Callable[[Job], Any],
    process: Callable[[int, Job, "Future[Any]"], Result],
    lanes: int = 1,
) -> Generator[Result]:
    """Prepare jobs in some threads and process them in others, ahead of who takes the results, in order.

    Args:
        jobs: taken one by one, at most `AHEAD` more than were yielded.
        prepare: of a job, done in `DECODERS` threads.
        process: place, job, and what `prepare` will return of it, to the result; raises nothing.
        lanes: jobs that are processed at a time.
    """
    waiting: deque[Future[Result]] = deque()
    broken: Exception | None = None
    decoders = ThreadPoolExecutor(DECODERS, "d2feat-decode")
    runs = Runs()
    network = ThreadPoolExecutor(lanes, "d2feat-network", initializer=runs.enter)
    index = 0
    try:
        while True:
            while broken is None and len(waiting) < AHEAD:
                try:
                    job = next(jobs)
                except StopIteration:
                    break
                except Exception as error:  # what came before it is still owed
                    broken = error
                    break
                try:
                    prepared = decoders.submit(prepare, job)
                    waiting.append(network.submit(process, index, job, prepared))
                except RuntimeError as error:
                    broken = refused_work(error)
                    break
                index += 1
            if not waiting:
                break
            yield waiting.popleft().result()
        if broken is not None:
            raise broken
    finally:
        # The caller may have stopped early, or pressed Ctrl-C. Nobody waits for the threads: this may run in
        # the garbage collector, in the midst of a thread's start, where joining another never returns.
        runs.stop()
        decoders.shutdown(wait=False, cancel_futures=True)
        network.shutdown(wait=False, cancel_futures=True)


def decode(source: Any) -> Any:
    """The image in the file at `source`, or `source`, if it is an image."""
    return read_image(source) if isinstance(source, (str, os.PathLike)) else source


def failed(index: int, source: Any, error: Exception) -> Extraction:
    """What came of an image that could not be used; the message names it."""
    kind = type(error) if isinstance(error, D2FeatError) else D2FeatError
    message = str(error)
    name = _name(index, source)
    named = kind(message if name in message else f"{name}: {message}")
    named.__cause__ = error
    return Extraction(index, source, named, None)


def _name(index: int, source: Any) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {index}"
