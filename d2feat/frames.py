"""Frames of one size, a batch at a time: how a GPU does most images a second.

    decoding (threads)  ->  a batch in one run of the network (lanes)  ->  the caller

The model is one of its own (`export.fixed`): one scale, one size, a fixed number of keypoints and no loop, so
that CUDA can capture a run once and replay it, and TensorRT can compile all of it. Inputs and outputs stay
where they are on the device; up go bytes, down come C + 3 numbers a keypoint.

A GPU has two lanes for batches: while it computes one, another goes up or comes down.
"""

import contextlib
import ctypes
import logging
import os
import queue
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from .bindings import size_of, whole
from .conversion import converted, needed_export
from .errors import D2FeatError, InputError, ModelError, OutOfMemoryError, ProviderError
from .features import Features
from .images import Image, as_image
from .model import EXACT, FRAMES, find_model
from .providers import CUDA, TENSORRT, Provider
from .runs import refused_work, run_stoppable
from .runtime import Started, give_memory_back, import_runtime, is_out_of_memory, start
from .session import checked, first_provider, no_numbers
from .stream import Extraction, check_several, decode, failed, overlap, taken

_LOG: Final = logging.getLogger("d2feat")

LANES: Final = 2
"""Of a GPU, where a batch is more than one image: for one alone nothing else is waiting."""

_KEPT: Final = 1 << 28
"""Bytes of freed memory that the process keeps at most, once it has an extractor on a GPU."""

_OF_ALL: Final = ("keypoints", "scores")
_OF_ONE: Final = "descriptors_{}"
"""Outputs of all images of a batch, and of each."""

_DEVICES: Final = {CUDA: "cuda", TENSORRT: "cuda"}


def create_frames(
    size: tuple[int, int] = (640, 480),
    nfeatures: int = 2048,
    batch: int = 8,
    model: str | os.PathLike[str] = EXACT,
    *,
    half: bool | None = None,
    provider: Provider = "auto",
    threads: int = 0,
) -> "FrameExtractor":
    """An extractor for images of one size, several at a time, at one scale.

    The first call for its arguments converts the model, which takes a minute and needs the extra "export";
    the result is kept in the cache folder. Where that extra is not wanted, ``d2feat export --target
    frames`` writes the file, and `FrameExtractor` takes it.

    Args:
        size: (width, height) of the images in pixels.
        nfeatures: features of an image at most.
        batch: images at a time. More give more images a second, fewer an answer sooner.
        model: name or path of a model in single precision with a fine head.
        half: compute the network in half precision; by default on GPUs.
        provider, threads: as for `d2feat.create`.

    Raises:
        InputError: an argument is unusable.
        ModelError: the model cannot be converted, or a package that this needs is missing.
        ProviderError: the provider asked for cannot be had.
    """
    width, height = size_of(size)
    nfeatures, batch = whole(nfeatures, "nfeatures"), whole(batch, "batch")
    halved = runs_on_gpu(provider) if half is None else half
    path = converted(
        "frames",
        model,
        f"{width}x{height}-{nfeatures}-{batch}-{'half' if halved else 'single'}",
        lambda checkpoint: needed_export("fixed").build_frames(
            checkpoint, (width, height), nfeatures, batch, half=halved
        ),
    )
    frames = FrameExtractor(path, provider=provider, threads=threads)
    if half is None and halved and frames.provider not in _DEVICES:
        # The GPU's provider is installed but did not load, and the processor is slow at half precision.
        return create_frames(
            (width, height), nfeatures, batch, model, half=False, provider=provider, threads=threads
        )
    return frames


class FrameExtractor:
    """Features of images of one size, a batch at a time.

    May be used from several threads, which then wait for each other.

    Args:
        model: path of a file that `create_frames` or ``d2feat export --target frames`` made.
        provider, threads: as for `d2feat.create`.

    Attributes:
        size: (width, height) of the images in pixels.
        batch: images at a time.
        nfeatures: features of an image at most.
        provider: the execution provider that runs the network.

    Raises:
        ModelError: the file is missing, damaged, or another kind of model.
        OutOfMemoryError: the device has too little memory for a batch.
        ProviderError: the provider asked for cannot be had.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, provider: Provider = "auto", threads: int = 0
    ) -> None:
        path = find_model(model)
        chosen, count = checked(provider, threads)
        lane = _Lane(path, chosen, count)
        self.batch, height, width, _ = lane.shape
        self.size: tuple[int, int] = (width, height)
        self.nfeatures = lane.nfeatures
        self.provider = lane.provider
        self._path, self._process = path, os.getpid()
        lanes = [lane]
        if self.batch > 1 and self.provider in _DEVICES:
            for _ in range(LANES - 1):
                with contextlib.suppress(OutOfMemoryError, ProviderError):  # fewer do as well
                    another = _Lane(path, chosen, count)
                    if another.provider == self.provider:  # "auto" may have gone to the processor
                        lanes.append(another)
        self._lanes = len(lanes)
        self._free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def extract(self, images: Sequence[Any]) -> list[Features]:
        """Features of images, as `D2Feature.extract` finds them at one scale, without limits of the edges.

        Args:
            images: as for `detectAndCompute`, or paths of files; any number.

        Raises:
            InputError: an image is unusable or of another size; the message says which.
        """
        check_several(images)
        images = images if isinstance(images, Sequence | np.ndarray) else list(taken(images))
        if len(images) > self.batch:
            # What is under way is stopped where one raises an error.
            with contextlib.closing(self.stream(images)) as extractions:
                return [found.features for found in extractions]
        return [found.features for found in self._extracted(0, images, self._decoded(images))]

    def stream(self, images: Iterable[Any]) -> Generator[Extraction]:
        """Features of many images, in order; as `D2Feature.stream`, but as many at a time as a batch has.

        A batch waits until it is full or the images end.
        """

        def extracted(
            place: int, sources: Sequence[Any], decoded: "Future[list[Image | Exception]]"
        ) -> list[Extraction]:
            return self._extracted(place, sources, decoded.result())

        def streamed() -> Generator[Extraction]:
            groups = _groups(taken(images), self.batch)
            # Not chain.from_iterable, which cannot be closed.
            with contextlib.closing(overlap(groups, self._decoded, extracted, self._lanes)) as batches:
                for batch in batches:
                    yield from batch

        check_several(images)
        return streamed()

    def _decoded(self, sources: Sequence[Any]) -> list[Image | Exception]:
        found: list[Image | Exception] = []
        for source in sources:
            try:
                image = as_image(decode(source))
                if image.shape[1::-1] != self.size:
                    here, there = ("{} x {}".format(*size) for size in (image.shape[1::-1], self.size))
                    raise InputError(f"the image is {here}, and frames of this extractor are {there}")
                found.append(image)
            except Exception as error:
                found.append(error)
        return found

    def _extracted(
        self, place: int, sources: Sequence[Any], images: Sequence[Image | Exception]
    ) -> list[Extraction]:
        good = [image for image in images if not isinstance(image, Exception)]
        results: Iterator[Features | Exception]
        try:
            results = iter(self._run(good) if good else [])
        except Exception as error:
            results = iter([error] * len(good))
        found = []
        for i, (source, image) in enumerate(zip(sources, images, strict=True), place * self.batch):
            result = image if isinstance(image, Exception) else next(results)
            if isinstance(result, Exception):
                found.append(failed(i, source, result))
            else:
                found.append(Extraction(i, source, None, result))
        return found

    def _run(self, images: Sequence[Image]) -> list[Features]:
        """Features of no more images than a batch has."""
        # The runtime would wait for threads that a forked process does not inherit.
        if os.getpid() != self._process:
            raise D2FeatError("this extractor was made in another process; make one in each that uses it")

        def call(options: Any) -> list[Any]:
            lane = self._free.get()
            try:
                return lane.run(images, options)
            finally:
                self._free.put(lane)

        keypoints, scores, *descriptors = run_stoppable(call, apart=self.provider not in _DEVICES)
        if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
            raise no_numbers(self._path)
        found = []
        for i in range(len(images)):
            count = np.count_nonzero(scores[i] > 0)
            one = Features(
                keypoints[i, :count],
                scores[i, :count],
                np.ones(count, np.float32),
                descriptors[i][:count],
                self.size,
            )
            # A copy, or an image with few features would hold on to the memory of many.
            found.append(one if 2 * count > self.nfeatures else one[np.arange(count)])
        return found


class _Lane:
    """One session, with the arrays that it reads and writes where they are on the device.

    All that it does is done in a thread of its own: the runtime captures a CUDA graph, and keeps cuDNN, for
    the thread that asks.

    Attributes:
        shape: (images, height, width, 3) of a batch. nfeatures: of an image at most.
        provider: the execution provider that runs it.
    """

    def __init__(self, path: Path, provider: Any, threads: int) -> None:
        self._thread = ThreadPoolExecutor(1, "d2feat-lane")
        self._thread.submit(self._open, path, provider, threads).result()

    def _open(self, path: Path, provider: Any, threads: int, captured: bool = True) -> None:
        started = start(path, provider, threads, frames=captured)
        shapes = {**started.inputs, **started.outputs}
        if started.properties.get("contract") != FRAMES or not _fit(shapes):
            raise ModelError(
                f"{path} is no model for frames; make one with d2feat.create_frames, "
                "or with: d2feat export --target frames"
            )
        self.shape: tuple[int, ...] = tuple(shapes["images"])
        self.nfeatures: int = shapes["scores"][1]
        self.provider = started.provider
        self._device = _DEVICES.get(started.provider, "cpu")
        try:
            self._bind(started, shapes)
            return
        except Exception as error:
            if self._device == "cpu" or not captured or is_out_of_memory(error):
                raise self._failure(error) from error
            _LOG.warning("%s runs without a CUDA graph: %s", path.name, error)
        # Two sessions may be more than there is memory for.
        del started
        for name in ("_session", "_binding", "_images", "_outputs"):
            self.__dict__.pop(name, None)
        self._open(path, provider, threads, captured=False)

    def _bind(self, started: Started, shapes: dict[str, list[Any]]) -> None:
        device = self._device
        # What is bound must lie on the provider's device: from another it is copied once, and never again.
        chosen = started.session.get_provider_options().get(started.provider, {})
        number = int(chosen.get("device_id", 0)) if device != "cpu" else 0
        value = import_runtime().OrtValue.ortvalue_from_shape_and_type
        # A captured run reads and writes the same memory each time.
        self._batch = np.zeros(self.shape, np.uint8)
        self._images = value(shapes["images"], np.uint8, device, number)
        names = (*_OF_ALL, *map(_OF_ONE.format, range(self.shape[0])))
        self._outputs = [value(shapes[name], np.float32, device, number) for name in names]
        self._session, self._binding = started.session, started.session.io_binding()
        self._binding.bind_ortvalue_input("images", self._images)
        for name, output in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, output)
        if device != "cpu":  # what is tuned and captured is so before the first image
            _keep_freed_memory()
            for _ in range(3):
                self._session.run_with_iobinding(self._binding)

    def run(self, images: Sequence[Image], options: Any) -> list[Any]:
        """New arrays of keypoints, scores and each image's descriptors; past the last they mean nothing."""
        try:
            done = self._thread.submit(self._run, images, options)
        except RuntimeError as error:
            raise refused_work(error) from error
        try:
            return done.result()
        except Exception as error:
            failure = self._failure(error)
            if isinstance(failure, OutOfMemoryError) and self._device == "cpu":
                again = partial(self._session.run_with_iobinding, self._binding, options)
                with contextlib.suppress(RuntimeError):
                    self._thread.submit(give_memory_back, again, options).result()
            raise failure from error

    def _run(self, images: Sequence[Image], options: Any) -> list[Any]:
        self._batch[: len(images)] = images
        self._images.update_inplace(self._batch)
        self._session.run_with_iobinding(self._binding, options)
        arrays = [output.numpy() for output in self._outputs]
        # On the CPU these are the outputs themselves, and so the next run's.
        return [array if array.flags.owndata else array.copy() for array in arrays]

    def _failure(self, error: Exception) -> D2FeatError:
        """What to tell of a run that failed."""
        images, height, width, _ = self.shape
        if is_out_of_memory(error):
            return OutOfMemoryError(
                f"not enough memory for {images} images of {width} x {height} at a time; "
                "make the extractor with a smaller batch"
            )
        return D2FeatError(f"ONNX Runtime failed: {error}")


def _fit(shapes: dict[str, list[Any]]) -> bool:
    """Whether the shapes of inputs and outputs by name are fixed, and those of a model for frames."""
    images, scores = shapes.get("images", []), shapes.get("scores", [])
    channels = shapes.get(_OF_ONE.format(0), [None])[-1]
    fixed = all(isinstance(edge, int) and edge > 0 for edge in (*images, *scores, channels))
    if not fixed or len(images) != 4 or images[3] != 3 or len(scores) != 2 or scores[0] != images[0]:
        return False
    batch, nfeatures = scores
    wanted = {"keypoints": [batch, nfeatures, 2]}
    wanted |= {_OF_ONE.format(i): [nfeatures, channels] for i in range(batch)}
    return all(shapes.get(name) == shape for name, shape in wanted.items())


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next batch.

    The descriptors of eight images are 32 MB. Given back to the system and zeroed by it anew for every batch,
    they take longer than the batch does.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, _KEPT)
        mallopt(mmap_threshold, 1 << 25)  # the most that it takes


def runs_on_gpu(provider: Provider) -> bool:
    """Whether this is a GPU's provider, or with "auto" one is installed.

    Raises:
        ProviderError: the provider asked for is not installed.
    """
    return first_provider(provider) in _DEVICES


def _groups(images: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Lists of `count`, and of what is left when the images end or taking one more fails."""
    group: list[Any] = []
    try:
        for image in images:
            group.append(image)
            if len(group) == count:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group
