"""ONNX Runtime: the module, and a model loaded into it."""

import contextlib
import ctypes
import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from .errors import ModelError, ProviderError
from .onnx_file import read_model
from .providers import CPU, for_frames, for_model, name_of, provider_list, why_not

_LOG: Final = logging.getLogger("d2feat")

_alive: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""The runtime's sessions."""

_forked: Final[list[Any]] = []
"""The same, while the process forks, so that no garbage collector finds those that nobody uses any more."""


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
        provider: as of `providers.hashable`.
        threads: on the CPU.
        frames: let a GPU do what pays for images of one size (`providers.for_frames`), if it can.

    Raises:
        ModelError: ONNX Runtime does not load it.
        ProviderError: the provider asked for cannot be had; the message says why.
    """
    runtime = import_runtime()
    wanted = provider_list(runtime, provider)
    if not isinstance(provider, tuple) and wanted[0] != CPU and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA and cuDNN from NVIDIA's or PyTorch's wheels
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")  # of what was checked
    if wanted[0] == CPU and not frames:
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

    first = name_of(wanted[0])
    session = refused = None
    if frames and first != CPU:
        try:
            session = load(for_frames(wanted))
        except Exception as error:
            _LOG.warning("%s runs without a CUDA graph: %s", path.name, error)
    try:
        if session is None:
            try:
                session = load(wanted)
            except Exception as error:
                if first == CPU:
                    raise
                refused, session = error, load([CPU])  # so it is the provider's fault, not the model's
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
        why = why_not(runtime, first) if refused is None else str(refused)
        if provider != "auto":
            raise ProviderError(f"{first} was asked for and did not load: {why}") from refused
        _LOG.warning("running on the CPU: %s did not load: %s", first, why)
    sha256 = hashlib.sha256(content).hexdigest()
    return Started(session, got, properties, inputs, outputs, optional, sha256)


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


def _abandon_inherited() -> None:
    """Let a forked child never destroy the sessions that it inherited.

    The runtime's threads were not inherited; a session's destructor would wait for them for ever.
    """
    for session in _forked:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _forked.extend(_alive),
        after_in_parent=_forked.clear,
        after_in_child=_abandon_inherited,
    )
