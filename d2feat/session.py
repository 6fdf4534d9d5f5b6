"""Loaded models: running them, and sharing them between the objects that ask for the same."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import D2FeatError, InputError, ModelError, OutOfMemoryError
from .images import Image
from .model import DEFAULT, EXACT, FAST, ModelInfo, find_model, read_info
from .processor import has_fast_int8, usable_processors
from .providers import CPU, Provider, hashable, name_of, provider_list
from .runs import run_stoppable
from .runtime import give_memory_back, import_runtime, is_out_of_memory, start

CACHED: Final = 4
"""Sessions kept for the next object that asks for the same; programs make detectors in loops."""

_MOST_THREADS: Final = 64
"""More than there are processors help nobody; thousands make the system stand still or abort the process."""

_MOST_ELEMENTS: Final = 1 << 31
"""ONNX Runtime's Resize counts in 32 bits and crashes the interpreter above."""

_OUTPUTS: Final = ("keypoints", "scores", "scales", "descriptors", "point_descriptors")

_WINOGRAD: Final = "winograd"
"""Input of models in single precision by which processors take fewer multiplications (`export.winograd`)."""


@dataclass(frozen=True)
class Outputs:
    """What the graph returns: N detections, best first, and M described points.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the image.
        scores, scales: N float32.
        descriptors: N x C float32.
        point_descriptors: M x C float32.
    """

    keypoints: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.float32]
    point_descriptors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Session:
    """A loaded model. `run` may be called from several threads at once.

    Attributes:
        path: the model file.
        info: what it says of itself.
        provider: the execution provider that runs it.
        threads: processors it uses on the CPU.
        given: inputs that are the same in all runs.
        process: that loaded it. A forked child cannot use it.
        sha256: of the model file, as it was loaded.
    """

    path: Path
    info: ModelInfo
    provider: str
    threads: int
    given: Mapping[str, npt.NDArray[Any]]
    _session: Any
    sha256: str
    process: int = field(default_factory=os.getpid)

    def run(
        self,
        image: Image,
        pyramid: npt.NDArray[np.float64],
        max_keypoints: int = -1,
        points: npt.NDArray[np.float32] | None = None,
    ) -> Outputs:
        """Run the graph on an H x W x 3 image; the inputs are described in docs/model-format.md.

        Raises:
            OutOfMemoryError: the image is too large for the memory there is.
            ModelError: the model returns something else than its contract says.
        """
        height, width = image.shape[:2]
        finest = float(pyramid.max())
        if 3 * (height * finest) * (width * finest) >= _MOST_ELEMENTS:
            raise self._too_large(image, pyramid)
        feeds = {**_feeds(image, pyramid, max_keypoints, points), **self.given}

        def call(options: Any) -> Outputs:
            try:
                return Outputs(*self._session.run(list(_OUTPUTS), feeds, options))
            except Exception as error:
                if is_out_of_memory(error):
                    if self.provider == CPU:
                        small = _feeds(np.zeros((32, 32, 3), np.uint8), np.ones(1), 1)
                        give_memory_back(lambda: self._session.run(list(_OUTPUTS), small, options), options)
                    raise self._too_large(image, pyramid) from error
                raise D2FeatError(f"ONNX Runtime failed: {error}") from error

        outputs = run_stoppable(call, apart=self.provider == CPU)
        self._check(outputs, len(feeds["points"]))
        return outputs

    def _check(self, outputs: Outputs, points: int) -> None:
        """Refuse what a damaged or foreign model may return; the rest of the package relies on this."""
        count, channels = len(outputs.scores.reshape(-1)), self.info.channels
        wanted = ((count, 2), (count,), (count,), (count, channels), (points, channels))
        found = [getattr(outputs, name) for name in _OUTPUTS]
        if any(
            one.dtype != np.float32 or one.shape != shape for one, shape in zip(found, wanted, strict=True)
        ):
            shapes = ", ".join(f"{name} {one.shape}" for name, one in zip(_OUTPUTS, found, strict=True))
            raise ModelError(f"{self.path} returned other arrays than its contract says: {shapes}")
        if not all(np.isfinite(one).all() for one in found[:3]) or not (outputs.scales > 0).all():
            raise no_numbers(self.path)

    @staticmethod
    def _too_large(image: Image, pyramid: npt.NDArray[np.float64]) -> OutOfMemoryError:
        height, width = image.shape[:2]
        return OutOfMemoryError(
            f"not enough memory for an image of {width} x {height} at scales {pyramid.tolist()}; "
            "extract in tiles (tile=1024, or smaller), lower maxEdge, or drop the largest scale"
        )


def no_numbers(path: Path) -> ModelError:
    """What to tell of a model whose keypoints are not finite."""
    return ModelError(f"{path} returned keypoints that are no numbers: the file is damaged")


def _feeds(
    image: Image,
    pyramid: npt.NDArray[np.float64],
    max_keypoints: int,
    points: npt.NDArray[np.float32] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The graph's inputs by name."""
    return {
        "image": image,
        "pyramid": pyramid,
        "max_keypoints": np.array(max_keypoints, np.int64),
        "points": np.zeros((0, 3), np.float32) if points is None else points,
    }


_cache: OrderedDict[Any, Session] = OrderedDict()
_in_use: weakref.WeakValueDictionary[Any, Session] = weakref.WeakValueDictionary()
"""Of the sessions kept, and of all that some object holds on to."""

_loading: dict[Any, threading.Lock] = {}
"""Held while that session is loaded: others need not wait for it."""

_lock = threading.Lock()


def open_session(model: str | os.PathLike[str], provider: Provider = "auto", threads: int = 0) -> Session:
    """Load a model; objects that ask for the same share one.

    Args:
        model: name of a bundled or downloaded model, path of a file, or "auto".
        provider: "auto" (CUDA if it loads, else CPU), "cuda", "tensorrt", "cpu", or a list as ONNX
            Runtime's `InferenceSession` takes it.
        threads: on the CPU; 0 takes as many as affinity and quota allow.

    Raises:
        InputError: so many threads are more than the system can bear.
        ModelError: the model is missing, damaged or not one of d2feat's.
        ProviderError: the provider asked for cannot be had; the message says why and what to do.
    """
    chosen, count = checked(provider, threads)
    if model == DEFAULT:
        found = open_session(_default_model(chosen), provider, threads)
        suits = _default_model("cpu")
        if provider == "auto" and found.provider == CPU and found.path.stem != suits:
            # A GPU's runtime that found no GPU.
            return open_session(suits, "cpu", threads)
        return found
    path = find_model(model)
    state = path.stat()
    key = path, (state.st_mtime_ns, state.st_size), chosen, count
    with _lock:
        if kept := _kept(key):
            return kept
        loading = _loading.setdefault(key, threading.Lock())
    with loading:
        with _lock:
            if kept := _kept(key):
                return kept
        try:
            made = _load(path, chosen, count)
            with _lock:
                _in_use[key] = made
                _kept(key)
        finally:
            with _lock:
                _loading.pop(key, None)
        return made


def _kept(key: Any) -> Session | None:
    """The session that is loaded already; it is the last to be forgotten."""
    found = _in_use.get(key)
    if found is not None:
        _cache[key] = found
        _cache.move_to_end(key)
        while len(_cache) > CACHED:
            _cache.popitem(last=False)
    return found


def checked(provider: Provider, threads: int) -> tuple[Any, int]:
    """Provider and number of threads as `start` takes them.

    Raises:
        InputError: `threads` is no such number, or more than the system can bear.
        ProviderError: `provider` is neither a name nor a list.
    """
    chosen = hashable(provider)
    if not isinstance(threads, (int, np.integer)) or threads < 0:
        raise InputError(f"threads must be a whole number, 0 or more, not {threads!r}")
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads > most:
        raise InputError(f"threads must be at most {most} on this machine, not {threads}")
    return chosen, threads or usable_processors()


def _forget_inherited_sessions() -> None:
    """A forked child loads models anew."""
    global _lock
    _lock = threading.Lock()
    _cache.clear()
    _in_use.clear()
    _loading.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_sessions)


def _default_model(provider: Any) -> str:
    """The shipped model that suits a provider: eight bits where the processor is fast at them."""
    first = provider_list(import_runtime(), provider)[0]
    return FAST if first == CPU and has_fast_int8() else EXACT


def first_provider(provider: Provider) -> str:
    """Name of the execution provider that is to run a model, if it loads.

    Raises:
        ProviderError: the provider asked for is not installed; the message says what to do.
    """
    return name_of(provider_list(import_runtime(), checked(provider, 0)[0])[0])


def _load(path: Path, provider: Any, threads: int) -> Session:
    started = start(path, provider, threads)
    info = read_info(started.properties, path)
    if "image" not in started.inputs or not started.outputs.keys() >= set(_OUTPUTS):
        raise ModelError(f"{path} has other inputs and outputs than its contract says: export it again")
    given = {}
    if started.provider == CPU and _WINOGRAD in started.optional:
        given[_WINOGRAD] = np.array(True)
    return Session(path, info, started.provider, threads, given, started.session, started.sha256)
