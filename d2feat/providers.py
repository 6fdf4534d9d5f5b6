"""Options of ONNX Runtime's GPU providers, and why they are set so.

What needs no option: an image is uploaded as bytes and only the results come back, N x 515 numbers, for all
between is one graph. Convolutions of the single-precision model run on tensor cores as TF32 (`use_tf32`, on
by default: operands with the ten bits of half precision, sums in single precision); the head computes in
single precision. CUDA graphs cannot hold the graph's loop over scales, but `frames` has models without it.
Images are not padded to a few sizes: that would change what is found near the padding; `D2Feature.warmup`
prepares the sizes that will come.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from .model import cache_folder


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
    if name != "TensorrtExecutionProvider" or "trt_engine_cache_path" in options:
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
    "CUDAExecutionProvider": {"enable_cuda_graph": True, "prefer_nhwc": True, "fuse_conv_bias": True},
    "TensorrtExecutionProvider": {"trt_cuda_graph_enable": True},
}


def _defaults(name: str) -> dict[str, Any]:
    if name == "CUDAExecutionProvider":
        return {
            # EXHAUSTIVE tunes anew at every image size; DEFAULT takes slow algorithms.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Otherwise the arena grows by powers of two, and one large image takes up to twice what it needs.
            "arena_extend_strategy": "kSameAsRequested",
        }
    if name == "TensorrtExecutionProvider":
        folder = cache_folder() / "tensorrt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return {
                "trt_timing_cache_enable": True,
                "trt_timing_cache_path": str(folder),
            }
    return {}
