"""On a GPU: one image, many, and memory. Left out where ONNX Runtime has no provider that loads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import d2feat
from benchmarks.race import race

PROVIDERS = ("cuda", "tensorrt")
SINGLE = (1.0,)
SIZE = (640, 480)
LIMIT = 1 << 30
"""Bytes of the GPU's memory that 1600 x 1200 shall do with."""


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """A GPU's provider; creating something with it says why it cannot be had."""
    try:
        d2feat.create(model="d2net-lite", provider=request.param)
    except d2feat.ProviderError as error:
        pytest.skip(str(error))
    return str(request.param)


def test_gpu_one_image(
    benchmark: BenchmarkFixture,
    provider: str,
    photo: Callable[[int, int], np.ndarray],
    reference: Callable[[np.ndarray, tuple[float, ...]], Any],
) -> None:
    """From pixels to KeyPoints, and the literal D2-Net on the same GPU."""
    import torch

    image = photo(*SIZE)
    frames = d2feat.create_frames(SIZE, 2048, 1, provider=provider)
    detector = d2feat.create(2048, scales=SINGLE, provider=provider)

    def literal() -> Any:
        with torch.device("cuda"):
            found = reference(image, SINGLE)
            return found.keypoints.cpu(), found.descriptors.cpu()

    entrants: dict[str, Callable[[], Any]] = {
        "create_frames, one at a time": lambda: frames.extract([image])[0].to_opencv(),
        "create": lambda: detector.detectAndCompute(image),
    }
    if torch.cuda.is_available():
        entrants["literal D2-Net"] = literal
    race(benchmark, entrants, rounds=20)


def test_gpu_images_in_batches(
    benchmark: BenchmarkFixture, provider: str, photo: Callable[[int, int], np.ndarray]
) -> None:
    """Sixty-four images to KeyPoints."""
    whole = photo(SIZE[0] + 64, SIZE[1] + 64)
    images = [np.ascontiguousarray(whole[i : i + SIZE[1], i : i + SIZE[0]]) for i in range(64)]
    frames = d2feat.create_frames(SIZE, 2048, 8, provider=provider)
    detector = d2feat.create(2048, scales=SINGLE, provider=provider)
    race(
        benchmark,
        {
            "create_frames, eight at a time": lambda: [one.keypoints for one in frames.stream(images)],
            "create, one by one": lambda: [one.keypoints for one in detector.stream(images)],
        },
        rounds=5,
    )


@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
def test_gpu_options(
    benchmark: BenchmarkFixture, provider: str, photo: Callable[[int, int], np.ndarray]
) -> None:
    """What each of the options of `d2feat.providers.for_frames` brings, one image at a time."""
    image = photo(*SIZE)
    without: dict[str, dict[str, bool]] = {
        "all options": {},
        "no CUDA graph": {"enable_cuda_graph": False},
        "bias apart": {"fuse_conv_bias": False},
        "bias apart, channels first": {"fuse_conv_bias": False, "prefer_nhwc": False},
    }
    made = {
        name: d2feat.create_frames(
            SIZE, 2048, 1, provider=[("CUDAExecutionProvider", options), "CPUExecutionProvider"]
        )
        for name, options in without.items()
    }
    race(benchmark, {name: partial(frames.extract, [image]) for name, frames in made.items()}, rounds=20)


@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
def test_gpu_within_a_gigabyte(
    benchmark: BenchmarkFixture, provider: str, photo: Callable[[int, int], np.ndarray]
) -> None:
    """1600 x 1200 where the runtime may take no more memory than `LIMIT`; it fails where it needs more."""
    image = photo(1600, 1200)
    limited = [("CUDAExecutionProvider", {"gpu_mem_limit": LIMIT})]
    frames = d2feat.create_frames((1600, 1200), 2048, 1, provider=limited)
    race(benchmark, {"create_frames in 1 GB": lambda: frames.extract([image])}, rounds=5)
