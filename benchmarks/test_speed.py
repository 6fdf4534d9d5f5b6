"""Full `detectAndCompute` and matching against the literal reference and OpenCV, each pair in one run."""

import time

import cv2
import numpy as np
import onnx
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import d2feat
from benchmarks.interleaved import compare
from d2feat.model import find_model
from d2feat.processor import usable_processors
from export.checkpoint import network_weights
from export.photographs import shipped_photographs
from tests.reference import extract

TRUNK_MULTIPLICATIONS = 170e9
"""Of one 640 x 480 image (design: the floor is these over the measured peak rate)."""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return cv2.resize(
        shipped_photographs(("motorcycle",))["motorcycle"], (640, 480), interpolation=cv2.INTER_AREA
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return network_weights(onnx.load(find_model("d2net")))


@pytest.fixture(scope="module")
def multiplications_per_second() -> float:
    """Peak fp32 rate of this machine: the best of ten large matrix products."""
    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return float(2048**3 / min(times))


@pytest.mark.parametrize("model", ["d2net", "d2net-int8"])
@pytest.mark.parametrize("scales", [(1.0,), d2feat.MULTISCALE], ids=["single scale", "multi-scale"])
def test_against_the_literal_reference(
    benchmark: BenchmarkFixture,
    image: np.ndarray,
    weights: dict[str, np.ndarray],
    multiplications_per_second: float,
    scales: tuple[float, ...],
    model: str,
) -> None:
    """640 x 480 from pixels to KeyPoints; the reference is upstream's algorithm, dense on all channels."""
    torch.set_num_threads(usable_processors())
    detector = d2feat.create(model=model, provider="cpu", scales=scales)
    if model == "d2net":
        multiplications = TRUNK_MULTIPLICATIONS * sum(scale**2 for scale in scales)
        benchmark.extra_info["floor s"] = multiplications / multiplications_per_second
    compare(
        benchmark,
        lambda: detector.detectAndCompute(image),
        lambda: extract(
            image, weights, head="paper", descriptor_relu=True, coordinates="upstream", scales=scales
        ),
        name="literal D2-Net (PyTorch)",
        rounds=5 if len(scales) == 1 else 3,
    )


def test_against_sift(benchmark: BenchmarkFixture, image: np.ndarray) -> None:
    """640 x 480 at 2048 features."""
    detector, sift = d2feat.create(2048, provider="cpu"), cv2.SIFT.create(2048)
    compare(
        benchmark,
        lambda: detector.detectAndCompute(image),
        lambda: sift.detectAndCompute(image, None),
        name="cv2.SIFT",
        rounds=5,
    )


def test_match_against_brute_force_matcher(benchmark: BenchmarkFixture) -> None:
    """Mutual nearest neighbours of 6000 x 6000 descriptors of 512 elements."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((6000, 512)).astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = first + 0.05 * rng.standard_normal((6000, 512)).astype(np.float32)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    assert len(d2feat.match(first, second)) == len(matcher.match(first, second)) > 5000
    compare(
        benchmark,
        lambda: d2feat.match(first, second),
        lambda: matcher.match(first, second),
        name="cv2.BFMatcher(crossCheck=True)",
        rounds=3,
    )
