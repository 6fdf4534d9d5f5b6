"""ONNX Runtime's execution providers: which are asked for, whether they are to be had, and their options.

What needs no option: an image is uploaded as bytes and only the results come back, N x 515 numbers, for all
between is one graph. Convolutions of the single-precision model run on tensor cores as TF32 (`use_tf32`, on
by default: operands with the ten bits of half precision, sums in single precision); the head computes in
single precision. CUDA graphs cannot hold the graph's loop over scales, but `frames` has models without it.
Images are not padded to a few sizes: that would change what is found near the padding; `D2Feature.warmup`
prepares the sizes that will come.
"""

import contextlib
import ctypes
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .errors import ProviderError
from .model import cache_folder

Provider = str | Sequence[str | tuple[str, dict[str, Any]]]
"""What users say: a name of `NAMES` or "auto", or a list as ONNX Runtime's `InferenceSession` takes it."""

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
NAMES: Final = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

_LIBRARIES: Final = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}


def hashable(provider: Provider) -> Any:
    """The name as it is; a list as a tuple of names and options that can be a key.

    Raises:
        ProviderError: it is neither a name nor a list of providers.
    """
    if isinstance(provider, str):
        return provider
    if isinstance(provider, Sequence):
        return tuple(_hashable_entry(entry) for entry in provider)
    raise ProviderError(f"provider must be a name or a list for ONNX Runtime, not {provider!r}")


def _hashable_entry(entry: Any) -> tuple[str, tuple[tuple[str, Any], ...]]:
    if isinstance(entry, str):
        return entry, ()
    try:
        name, options = entry
        pairs = tuple(sorted(options.items()))
        hash(pairs)
        return str(name), pairs
    except (TypeError, ValueError, AttributeError):
        raise ProviderError(f"a provider is a name or (name, options), not {entry!r}") from None


def provider_list(runtime: Any, provider: Any) -> list[Any]:
    """The list for ONNX Runtime's `InferenceSession`.

    Args:
        runtime: the module.
        provider: as of `hashable`.

    Raises:
        ProviderError: such a provider is unknown, or not to be had; the message says why and what to do.
    """
    available = runtime.get_available_providers()
    if isinstance(provider, tuple):
        if not provider:
            raise ProviderError("the list of providers is empty")
        entries = [(name, dict(options)) for name, options in provider]
        unknown = [name for name, _ in entries if name not in available]
        if unknown:
            raise ProviderError(f"{why_not(runtime, unknown[0])}; available: {', '.join(available)}")
        return [with_options(name, options) for name, options in entries]
    if provider == "auto":
        wanted = [name for name in (CUDA, CPU) if name in available]
    elif provider in NAMES:
        name = NAMES[provider]
        if name not in available:
            raise ProviderError(f"provider {provider!r} is not to be had: {why_not(runtime, name)}")
        wanted = list(dict.fromkeys([name, *([CUDA] if provider == "tensorrt" else []), CPU]))
    else:
        known = ", ".join(["auto", *NAMES])
        raise ProviderError(
            f"unknown provider {provider!r}; it is one of {known}, or a list for ONNX Runtime"
        )
    return [with_options(name) for name in wanted]


def why_not(runtime: Any, name: str) -> str:
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


def name_of(entry: Any) -> str:
    """Name of an entry of ONNX Runtime's list of providers."""
    return str(entry if isinstance(entry, str) else entry[0])


def with_options(name: str, options: dict[str, Any] | None = None) -> str | tuple[str, dict[str, Any]]:
    """The entry for a provider in ONNX Runtime's list: our options, and over them the caller's."""
    merged = {**_defaults(name), **(options or {})}
    return (name, merged) if merged else name


def for_frames(entries: Sequence[str | tuple[str, dict[str, Any]]]) -> list[Any]:
    """The list of providers, the first one told what pays where all images have one size.

    What the caller said goes over it. Only the first, for it is to run all of the graph, and two cannot
    capture at once.
    """
    first, *others = entries
    name, options = (first, {}) if isinstance(first, str) else first
    return [(name, {**_FRAMES.get(name, {}), **options}), *others]


def for_model(entries: Sequence[Any], content: bytes) -> list[Any]:
    """The list of providers, TensorRT told to keep the engines of this model apart.

    ONNX Runtime names an engine's file by the graph's names, not by weights and sizes: in one folder another
    model's engine would be taken, silently.
    """
    return [_with_engines(entry, content) for entry in entries]


def _with_engines(entry: Any, content: bytes) -> Any:
    name, options = (entry, {}) if isinstance(entry, str) else entry
    if name != TENSORRT or "trt_engine_cache_path" in options:
        return entry
    folder = cache_folder() / "tensorrt" / hashlib.sha256(content).hexdigest()[:16]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Building an engine takes minutes. Its profile, the sizes that it takes, is cached with it, and
        # widened by a rebuild when an image lies outside.
        ours = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder)}
        return name, {**ours, **options}
    return entry


_FRAMES: Final = {
    # A run is captured once as a CUDA graph and replayed. Tensor cores take channels last, and there cuDNN
    # can add the bias in the convolution's kernel (docs/speed.md has what each brings).
    CUDA: {"enable_cuda_graph": True, "prefer_nhwc": True, "fuse_conv_bias": True},
    TENSORRT: {"trt_cuda_graph_enable": True},
}


def _defaults(name: str) -> dict[str, Any]:
    if name == CUDA:
        return {
            # EXHAUSTIVE tunes anew at every image size; DEFAULT takes slow algorithms.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Otherwise the arena grows by powers of two, and one large image takes up to twice what it needs.
            "arena_extend_strategy": "kSameAsRequested",
        }
    if name == TENSORRT:
        folder = cache_folder() / "tensorrt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return {
                "trt_timing_cache_enable": True,
                "trt_timing_cache_path": str(folder),
            }
    return {}
