"""ONNX Runtime: which execution provider runs the model, and running it."""

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import D2FeatError, InputError, ModelError, OutOfMemoryError, ProviderError
from .images import Image
from .model import DEFAULT, EXACT, FAST, ModelInfo, find_model, read_info
from .onnx_file import read_model
from .processor import has_fast_int8, usable_processors
from .providers import for_frames, for_model, with_options

Result = TypeVar("Result")

Provider = str | Sequence[str | tuple[str, dict[str, Any]]]

_LOG: Final = logging.getLogger("d2feat")

CACHED: Final = 4
"""Sessions kept for the next object that asks for the same; programs make detectors in loops."""

_CPU: Final = "CPUExecutionProvider"
_NAMES: Final = {"cpu": _CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_LIBRARIES: Final = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_MOST_THREADS: Final = 64
"""More than there are processors help nobody; thousands make the system stand still or abort the process."""

_LONGEST_STOP: Final = 10.0
"""Seconds that the exit of the program waits for runs to stop."""

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
                    if self.provider == _CPU:
                        small = _feeds(np.zeros((32, 32, 3), np.uint8), np.ones(1), 1)
                        give_memory_back(lambda: self._session.run(list(_OUTPUTS), small, options), options)
                    raise self._too_large(image, pyramid) from error
                raise D2FeatError(f"ONNX Runtime failed: {error}") from error

        outputs = run_stoppable(call, apart=self.provider == _CPU)
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


def give_memory_back(run: Callable[[], object], options: Any) -> None:
    """Free what the arena of the CPU keeps of a run that failed for want of memory, by one run more.

    Otherwise nothing is left, and glibc ends the process where it cannot get what a new thread needs.

    Args:
        run: with `options`, those of the run that failed.
    """
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    with contextlib.suppress(Exception):  # the error that led here is the one to tell
        run()


def is_out_of_memory(error: Exception) -> bool:
    """Whether ONNX Runtime failed for want of memory; it has no error of its own for that."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in message or "out of memory" in message


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


class Runs:
    """Runs of the network that are ended together: those going on, and those that would follow."""

    def __init__(self) -> None:
        self.stopped = False
        self._options: set[Any] = set()

    def enter(self) -> None:
        """From now on the runs of this thread belong here as well."""
        _of_thread.runs = self

    def stop(self) -> None:
        """End them; the runtime does so between two nodes of its graph. Nobody waits for that here."""
        self.stopped = True
        for options in tuple(self._options):
            options.terminate = True

    def __bool__(self) -> bool:
        """Whether any are going on."""
        return bool(self._options)

    @contextlib.contextmanager
    def holding(self, options: Any) -> Iterator[None]:
        """While a run with these options goes on."""
        self._options.add(options)
        try:
            yield
        finally:
            self._options.discard(options)


_all = Runs()
_of_thread = threading.local()


def run_stoppable(call: Callable[[Any], Result], *, apart: bool) -> Result:
    """`call` with options for a run; it is stopped when the program exits or a signal's handler raises.

    Python handles signals such as Ctrl-C in the main thread, between two of its own instructions, and a run
    is a single one. So it is done apart, in a thread of its own, while the main thread waits, which can be
    interrupted. The runtime stops between two nodes of the graph, in seconds at worst; nobody waits for that.
    """
    options = import_runtime().RunOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    group: Runs = getattr(_of_thread, "runs", _all)
    silent = group is not _all or threading.current_thread().daemon

    def ended() -> BaseException:
        # SystemExit ends a thread without a word.
        return SystemExit() if silent else D2FeatError("the program is ending, and the network runs no more")

    def run() -> Result:
        with _all.holding(options), group.holding(options):
            try:
                if _all.stopped or group.stopped:
                    raise ended()
                return call(options)
            except D2FeatError:
                if _all.stopped or group.stopped:
                    raise ended() from None
                raise

    if not apart or threading.current_thread() is not threading.main_thread():
        return run()
    result: Future[Result] = Future()
    worker = threading.Thread(target=_fulfil, args=(result, run), name="d2feat", daemon=False)
    try:
        try:
            worker.start()
        except RuntimeError:  # no memory for a thread
            return run()
        return result.result()
    except BaseException:
        options.terminate = True
        raise


def _fulfil(result: Future[Result], function: Callable[[], Result]) -> None:
    try:
        result.set_result(function())
    except BaseException as error:
        result.set_exception(error)


def refused_work(error: RuntimeError) -> D2FeatError:
    """What to tell where an executor or the system starts no more threads.

    Raises:
        SystemExit: the program is at its end, and this is a daemon thread: it ends without a word.
    """
    if "shutdown" not in str(error):
        return D2FeatError(f"no thread could be started: {error}")
    if threading.current_thread().daemon:
        raise SystemExit from None
    return D2FeatError("the program is ending, and starts no more threads; wait for this one before it does")


@atexit.register
def _stop_runs() -> None:
    """Let no daemon thread be inside the runtime when Python is finalised: that aborts the process."""
    _all.stop()
    deadline = time.monotonic() + _LONGEST_STOP
    while _all and time.monotonic() < deadline:
        time.sleep(0.005)


_cache: OrderedDict[Any, Session] = OrderedDict()
_in_use: weakref.WeakValueDictionary[Any, Session] = weakref.WeakValueDictionary()
"""Of the sessions kept, and of all that some object holds on to."""

_loading: dict[Any, threading.Lock] = {}
"""Held while that session is loaded: others need not wait for it."""

_alive: weakref.WeakSet[Any] = weakref.WeakSet()
"""The runtime's sessions."""

_forked: list[Any] = []
"""The same, while the process forks, so that no garbage collector finds those that nobody uses any more."""

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
        if provider == "auto" and found.provider == _CPU and found.path.stem != suits:
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
    if isinstance(provider, str):
        chosen: Any = provider
    elif isinstance(provider, Sequence):
        chosen = tuple(_hashable(entry) for entry in provider)
    else:
        raise ProviderError(f"provider must be a name or a list for ONNX Runtime, not {provider!r}")
    if not isinstance(threads, (int, np.integer)) or threads < 0:
        raise InputError(f"threads must be a whole number, 0 or more, not {threads!r}")
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads > most:
        raise InputError(f"threads must be at most {most} on this machine, not {threads}")
    return chosen, threads or usable_processors()


def _abandon_inherited_sessions() -> None:
    """Make a forked child load models anew, and never destroy what it inherited.

    The runtime's threads were not inherited; a session's destructor would wait for them for ever.
    """
    global _all, _lock
    _lock, _all = threading.Lock(), Runs()
    for session in _forked:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _cache.clear()
    _in_use.clear()
    _loading.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _forked.extend(_alive),
        after_in_parent=_forked.clear,
        after_in_child=_abandon_inherited_sessions,
    )


def _default_model(provider: Any) -> str:
    """The shipped model that suits a provider: eight bits where the processor is fast at them."""
    first = _provider_list(import_runtime(), provider)[0]
    return FAST if first == _CPU and has_fast_int8() else EXACT


def first_provider(provider: Provider) -> str:
    """Name of the execution provider that is to run a model, if it loads.

    Raises:
        ProviderError: the provider asked for is not installed; the message says what to do.
    """
    return _name(_provider_list(import_runtime(), checked(provider, 0)[0])[0])


def _name(entry: Any) -> str:
    """Name of an entry of ONNX Runtime's list of providers."""
    return str(entry if isinstance(entry, str) else entry[0])


def _load(path: Path, provider: Any, threads: int) -> Session:
    started = start(path, provider, threads)
    info = read_info(started.properties, path)
    if "image" not in started.inputs or not started.outputs.keys() >= set(_OUTPUTS):
        raise ModelError(f"{path} has other inputs and outputs than its contract says: export it again")
    given = {}
    if started.provider == _CPU and _WINOGRAD in started.optional:
        given[_WINOGRAD] = np.array(True)
    return Session(path, info, started.provider, threads, given, started.session, started.sha256)


class Started(NamedTuple):
    """ONNX Runtime's session of a model.

    Attributes:
        session: ONNX Runtime's.
        provider: that runs it.
        properties: the file's metadata.
        inputs, outputs: their shapes by name.
        optional: names of the inputs that have a default.
        sha256: of the file.
    """

    session: Any
    provider: str
    properties: dict[str, str]
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    optional: set[str]
    sha256: str


def start(path: Path, provider: Any, threads: int, *, frames: bool = False) -> Started:
    """Load a model file into ONNX Runtime.

    Args:
        path: of the model.
        provider: name, or tuple of hashable entries; see `open_session`.
        threads: on the CPU.
        frames: let a GPU do what pays for images of one size (`providers.for_frames`), if it can.

    Raises:
        ModelError: ONNX Runtime does not load it.
        ProviderError: the provider asked for cannot be had; the message says why.
    """
    runtime = import_runtime()
    wanted = _provider_list(runtime, provider)
    if not isinstance(provider, tuple) and wanted[0] != _CPU and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA and cuDNN from NVIDIA's or PyTorch's wheels
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")  # of what was checked
    if wanted[0] == _CPU and not frames:
        # A sixth (single precision) to a third (eight bits) of the memory less: the fine head reads the
        # largest map at once, and it is not kept. Models for frames have an order that is better as it is.
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    content = read_model(path)
    wanted = for_model(wanted, content)
    # Before 1.23 this one aborts the process at d2net, where the other way of convolution is a subgraph.
    old = tuple(int(part) for part in runtime.__version__.split(".")[:2]) < (1, 23)
    left_out = ["ConvActivationFusion"] if old else []

    def load(providers: Sequence[Any]) -> Any:
        try:
            # Without the runtime's own fallback: a run that fails would go on elsewhere without a word.
            made = runtime.InferenceSession(
                content, options, providers=providers, disabled_optimizers=left_out, enable_fallback=0
            )
        except Exception as error:
            # Whoever keeps the traceback keeps a session that is not in `_alive`, and its threads.
            raise error.with_traceback(None) from None
        _alive.add(made)
        return made

    first = _name(wanted[0])
    session = refused = None
    if frames and first != _CPU:
        try:
            session = load(for_frames(wanted))
        except Exception as error:
            _LOG.warning("%s runs without a CUDA graph: %s", path.name, error)
    try:
        if session is None:
            try:
                session = load(wanted)
            except Exception as error:
                if first == _CPU:
                    raise
                refused, session = error, load([_CPU])  # so it is the provider's fault, not the model's
        properties = dict(session.get_modelmeta().custom_metadata_map)
        inputs = {value.name: value.shape for value in session.get_inputs()}
        outputs = {value.name: value.shape for value in session.get_outputs()}
        optional = {value.name for value in session.get_overridable_initializers()}
    except Exception as error:  # also of names that are no text
        raise ModelError(f"{path} is not a model that ONNX Runtime can load: {error}") from error
    got = session.get_providers()[0]
    if got == first:
        _LOG.info("%s runs on %s", path.name, got)
    else:
        why = _why_not(runtime, first) if refused is None else str(refused)
        if provider != "auto":
            raise ProviderError(f"{first} was asked for and did not load: {why}") from refused
        _LOG.warning("running on the CPU: %s did not load: %s", first, why)
    sha256 = hashlib.sha256(content).hexdigest()
    return Started(session, got, properties, inputs, outputs, optional, sha256)


def import_runtime() -> Any:
    """The module of ONNX Runtime, whichever flavour is installed.

    Raises:
        ProviderError: none is; the message names the extras.
    """
    # Its wheels report to their maker by default. d2feat uses no network; and the thread that reports makes
    # forked children hang when they exit.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install a flavour: "
            "pip install 'd2feat[cpu]' or, with an NVIDIA GPU, pip install 'd2feat[gpu]'"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ProviderError(
            "the installed onnxruntime is broken, as happens when one of two flavours was uninstalled; "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    return onnxruntime


def _provider_list(runtime: Any, provider: Any) -> list[Any]:
    available = runtime.get_available_providers()
    if isinstance(provider, tuple):
        if not provider:
            raise ProviderError("the list of providers is empty")
        entries = [(name, dict(options)) for name, options in provider]
        unknown = [name for name, _ in entries if name not in available]
        if unknown:
            raise ProviderError(f"{_why_not(runtime, unknown[0])}; available: {', '.join(available)}")
        return [with_options(name, options) for name, options in entries]
    if provider == "auto":
        wanted = [name for name in ("CUDAExecutionProvider", _CPU) if name in available]
    elif provider in _NAMES:
        name = _NAMES[provider]
        if name not in available:
            raise ProviderError(f"provider {provider!r} is not to be had: {_why_not(runtime, name)}")
        wanted = list(
            dict.fromkeys([name, *(["CUDAExecutionProvider"] if provider == "tensorrt" else []), _CPU])
        )
    else:
        known = ", ".join(["auto", *_NAMES])
        raise ProviderError(
            f"unknown provider {provider!r}; it is one of {known}, or a list for ONNX Runtime"
        )
    return [with_options(name) for name in wanted]


def _why_not(runtime: Any, name: str) -> str:
    """Why a provider is not to be had, and the remedy."""
    if name not in runtime.get_available_providers():
        if name in _LIBRARIES:
            return (
                "the installed ONNX Runtime is built without it; "
                "pip uninstall onnxruntime, then pip install 'd2feat[gpu]'"
            )
        return f"the installed ONNX Runtime has no {name}"
    library = Path(runtime.__file__).parent / "capi" / _LIBRARIES.get(name, "")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error}; install the CUDA and cuDNN that this ONNX Runtime needs, see: d2feat doctor"
    return "no usable device was found; see: nvidia-smi and d2feat doctor"


def _hashable(entry: Any) -> tuple[str, tuple[tuple[str, Any], ...]]:
    if isinstance(entry, str):
        return entry, ()
    try:
        name, options = entry
        pairs = tuple(sorted(options.items()))
        hash(pairs)
        return str(name), pairs
    except (TypeError, ValueError, AttributeError):
        raise ProviderError(f"a provider is a name or (name, options), not {entry!r}") from None
