"""Many images: batches, streams of files, images of many sizes, and thousands in a row."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import d2feat
from benchmarks.race import race


def test_batch(benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray]) -> None:
    """Sixteen images of 320 x 240 in one call, and one by one."""
    images = [np.ascontiguousarray(photo(340, 260)[i : i + 240, i : i + 320]) for i in range(16)]
    detector = d2feat.create(2048, scales=(1.0,), provider="cpu")
    race(
        benchmark,
        {
            "detectAndComputeBatch": lambda: detector.detectAndComputeBatch(images),
            "detectAndCompute, one by one": lambda: [detector.detectAndCompute(image) for image in images],
        },
        rounds=3,
    )


def test_files(benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray], tmp_path: Path) -> None:
    """Eight photographs of 12 megapixels from JPEG files, made smaller to 320 px, to KeyPoints."""
    path = str(tmp_path / "photo.jpg")
    cv2.imwrite(path, photo(4000, 3000))
    detector = d2feat.create(2048, scales=(1.0,), maxEdge=320, provider="cpu")
    race(
        benchmark,
        {
            "stream of files": lambda: [found.keypoints for found in detector.stream([path] * 8)],
            "imread and detectAndCompute": lambda: [
                detector.detectAndCompute(cv2.imread(path)) for _ in range(8)
            ],
        },
        rounds=3,
    )


def test_mixed_sizes(benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray]) -> None:
    """Fifty images of fifty sizes, and fifty equal ones of as many pixels."""
    widths = range(180, 230)
    mixed = [photo(width, 205 * 154 // width) for width in widths]
    equal = [photo(205, 154)] * len(mixed)
    pixels = [sum(image.shape[0] * image.shape[1] for image in images) for images in (mixed, equal)]
    assert len({image.shape for image in mixed}) == 50
    assert abs(pixels[0] / pixels[1] - 1) < 0.01
    detector = d2feat.create(2048, scales=(1.0,), provider="cpu")
    race(
        benchmark,
        {
            "fifty sizes": lambda: [detector.detectAndCompute(image) for image in mixed],
            "one size": lambda: [detector.detectAndCompute(image) for image in equal],
        },
        rounds=3,
    )


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.heavy)])
def test_many_in_a_row(
    benchmark: BenchmarkFixture, photo: Callable[[int, int], np.ndarray], count: int
) -> None:
    """Memory and time of small images of changing sizes, after the first tenth and at the end."""
    images = [photo(96 + i, 120 - i) for i in range(24)]
    detector = d2feat.create(2048, scales=(1.0,), provider="cpu")
    memory, times = [], []

    def run() -> None:
        for i in range(count):
            start = time.perf_counter()
            detector.detectAndCompute(images[i % len(images)])
            times.append(time.perf_counter() - start)
            memory.append(_resident())

    benchmark.pedantic(run, rounds=1)  # type: ignore[no-untyped-call]
    tenth = count // 10
    benchmark.extra_info["soak"] = {
        "images": count,
        "memory before": memory[tenth],
        "memory after": max(memory[-tenth:]),
        "median before": statistics.median(times[tenth : 2 * tenth]),
        "median after": statistics.median(times[-tenth:]),
    }


def _resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
