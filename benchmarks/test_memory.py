"""Cold start and peak memory, each in a process of its own."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.child import measure
from d2feat.model import EXACT, FAST

CASES = [
    pytest.param(FAST, 640, 480, 0),
    pytest.param(FAST, 1600, 1200, 0),
    pytest.param(EXACT, 640, 480, 0),
    pytest.param(EXACT, 1600, 1200, 0),
    pytest.param(EXACT, 1600, 1200, 640),
    pytest.param(FAST, 4000, 3000, 1024, marks=pytest.mark.heavy),
    pytest.param(EXACT, 4000, 3000, 1024, marks=pytest.mark.heavy),
    pytest.param("literal D2-Net", 640, 480, 0),
    pytest.param("SIFT", 640, 480, 0),
]


@pytest.mark.parametrize(("method", "width", "height", "tile"), CASES)
def test_process(benchmark: BenchmarkFixture, method: str, width: int, height: int, tile: int) -> None:
    """From the first line of Python to the first result."""
    run = benchmark.pedantic
    found = run(measure, args=(method, width, height, tile), rounds=1)  # type: ignore[no-untyped-call]
    label = f"{method}, {width}x{height}" + (f", tile={tile}" if tile else "")
    benchmark.extra_info["process"] = {"label": label, **found}
