"""Cold start and peak memory, each in a process of its own."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.child import measure
from d2feat.model import EXACT, FAST

CASES = [
    pytest.param(FAST, 640, 480, 0, 0),
    pytest.param(FAST, 1600, 1200, 0, 0),
    pytest.param(EXACT, 640, 480, 0, 0),
    pytest.param(EXACT, 1600, 1200, 0, 0),
    pytest.param(EXACT, 1600, 1200, 640, 0),
    pytest.param(FAST, 4000, 3000, 1024, 8000, marks=pytest.mark.heavy),
    pytest.param(EXACT, 4000, 3000, 1024, 8000, marks=pytest.mark.heavy),
    pytest.param("d2net-lite-int8", 12500, 8000, 1024, 0, marks=pytest.mark.heavy),
    pytest.param("literal D2-Net", 640, 480, 0, 0),
    pytest.param("SIFT", 640, 480, 0, 0),
]


@pytest.mark.parametrize(("method", "width", "height", "tile", "nfeatures"), CASES)
def test_process(
    benchmark: BenchmarkFixture, method: str, width: int, height: int, tile: int, nfeatures: int
) -> None:
    """From the first line of Python to the first result."""
    run = benchmark.pedantic
    found = run(measure, args=(method, width, height, tile, nfeatures), rounds=1)  # type: ignore[no-untyped-call]
    label = f"{method}, {width}x{height}" + (f", tile={tile}" if tile else "")
    benchmark.extra_info["process"] = {"label": label, **found}
