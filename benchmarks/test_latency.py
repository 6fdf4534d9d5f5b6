"""One image, from pixels to KeyPoints."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import d2feat
from benchmarks.floors import floor_seconds
from benchmarks.race import race
from d2feat.model import find_model
from export.photographs import SHIPPED, shipped_photographs

SINGLE = (1.0,)
PAPER = (0.5, 1.0, 2.0)
"""The pyramid of the literal D2-Net, where ours have theirs."""
SMALL, MEDIUM, LARGE = (320, 240), (640, 480), (1600, 1200)
heavy = pytest.mark.heavy


@pytest.mark.parametrize(
    ("size", "scales", "rounds", "literal"),
    [
        pytest.param(SMALL, SINGLE, 7, True, id="320x240"),
        pytest.param(MEDIUM, SINGLE, 5, True, id="640x480"),
        pytest.param(LARGE, SINGLE, 3, False, id="1600x1200"),
        pytest.param(SMALL, d2feat.MULTISCALE, 3, True, id="320x240 multi-scale"),
        pytest.param(MEDIUM, d2feat.MULTISCALE, 3, True, id="640x480 multi-scale", marks=heavy),
        pytest.param(LARGE, d2feat.MULTISCALE, 3, False, id="1600x1200 multi-scale", marks=heavy),
    ],
)
def test_latency(
    benchmark: BenchmarkFixture,
    models: list[str],
    photo: Callable[[int, int], np.ndarray],
    reference: Callable[[np.ndarray, tuple[float, ...]], Any],
    opencv: dict[str, Any],
    size: tuple[int, int],
    scales: tuple[float, ...],
    rounds: int,
    literal: bool,
) -> None:
    """All models, the literal reference (12 GB at 1600x1200, so not there) and OpenCV's detectors in turn."""
    image = photo(*size)
    entrants: dict[str, Callable[[], Any]] = {}
    for name in models:
        detector = d2feat.create(2048, model=name, provider="cpu", scales=scales)
        entrants[name] = lambda detector=detector: detector.detectAndCompute(image)  # type: ignore[misc]
    if literal:
        entrants["literal D2-Net"] = lambda: reference(image, SINGLE if scales == SINGLE else PAPER)
    if scales == SINGLE:
        for name, other in opencv.items():
            entrants[name] = lambda other=other: other.detectAndCompute(image, None)  # type: ignore[misc]
    race(
        benchmark,
        entrants,
        rounds=rounds,
        floors={name: floor_seconds(find_model(name), *size, scales) for name in models},
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_lite_beside_sift(benchmark: BenchmarkFixture, opencv: dict[str, Any], name: str) -> None:
    """The smallest model and SIFT alone by turns: SIFT's time depends on the photograph."""
    image = cv2.resize(shipped_photographs((name,))[name], MEDIUM, interpolation=cv2.INTER_AREA)
    lite = d2feat.create(2048, model="d2net-lite-int8", provider="cpu", scales=SINGLE)
    race(
        benchmark,
        {
            "d2net-lite-int8": lambda: lite.detectAndCompute(image),
            "SIFT": lambda: opencv["SIFT"].detectAndCompute(image, None),
        },
        rounds=15,
    )


def test_growth_with_pixels(benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray]) -> None:
    """The default model at growing sizes."""
    detector = d2feat.create(2048, scales=SINGLE, provider="cpu")
    sizes = [(160, 120), (320, 240), (640, 480), (1280, 960)]
    images = {f"{width * height / 1e6:.3f}": photo(width, height) for width, height in sizes}
    entrants = {
        megapixels: lambda image=image: detector.detectAndCompute(image)  # type: ignore[misc]
        for megapixels, image in images.items()
    }
    race(benchmark, entrants, rounds=3, growth="megapixels")


def test_growth_with_keypoints(benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray]) -> None:
    """640 x 480 with ever more keypoints described and built."""
    image = photo(*MEDIUM)
    limits = [1, 500, 1000, 2000, 0]
    detectors = [d2feat.create(limit, scales=SINGLE, provider="cpu") for limit in limits]
    entrants = {
        str(len(detector.detect(image))): lambda detector=detector: detector.detectAndCompute(image)  # type: ignore[misc]
        for detector in detectors
    }
    race(benchmark, entrants, rounds=5, growth="keypoints")


def test_keypoints_are_built(benchmark: BenchmarkFixture) -> None:
    """5000 KeyPoint objects; OpenCV's own conversion knows one size and response for all."""
    rng = np.random.default_rng(0)
    positions, ones = rng.uniform(0, 1000, (5000, 2)).astype(np.float32), np.ones(5000, np.float32)
    scores, descriptors = rng.random(5000).astype(np.float32), np.zeros((5000, 512), np.float32)
    features = d2feat.Features(positions, scores, ones, descriptors, (1000, 1000))
    race(
        benchmark,
        {
            "to_keypoints": features.to_keypoints,
            "cv2.KeyPoint.convert": lambda: cv2.KeyPoint.convert(positions, 32.0, 1.0),  # type: ignore[call-overload]
        },
        rounds=50,
    )


def test_refine(benchmark: BenchmarkFixture) -> None:
    """A thousand matches of a rectified pair, 741 x 500, beside OpenCV's, which know no warp and no gain."""
    data = pytest.importorskip("skimage.data")
    sift = cv2.SIFT_create(2048)  # type: ignore[attr-defined]
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in data.stereo_motorcycle()[:2]]
    detector = d2feat.create(2048, model="d2net-lite-int8")
    (kp1, des1), (kp2, des2) = (detector.detectAndCompute(image, None) for image in images)
    matches = d2feat.match(des1, des2)[:1000]
    assert len(matches) == 1000
    src = np.array([kp1[m.queryIdx].pt for m in matches], np.float32)
    dst = np.array([kp2[m.trainIdx].pt for m in matches], np.float32)
    guess = cv2.OPTFLOW_USE_INITIAL_FLOW
    race(
        benchmark,
        {
            "d2feat.refine": lambda: d2feat.refine(images[0], src, images[1], dst),
            "cv2.calcOpticalFlowPyrLK": lambda: cv2.calcOpticalFlowPyrLK(
                images[0], images[1], src, dst.copy(), winSize=(21, 21), maxLevel=1, flags=guess
            ),
            "cv2.SIFT, both images": lambda: [sift.detectAndCompute(image, None) for image in images],
        },
        rounds=10,
    )


def test_match(benchmark: BenchmarkFixture) -> None:
    """Mutual nearest neighbours of 6000 x 6000 descriptors of 512 elements."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((6000, 512)).astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = first + 0.05 * rng.standard_normal((6000, 512)).astype(np.float32)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    assert len(d2feat.match(first, second)) == len(matcher.match(first, second)) > 5000
    race(
        benchmark,
        {
            "d2feat.match": lambda: d2feat.match(first, second),
            "cv2.BFMatcher(crossCheck=True)": lambda: matcher.match(first, second),
        },
        rounds=3,
    )
