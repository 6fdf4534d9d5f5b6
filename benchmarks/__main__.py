"""Run the benchmarks, print their tables, draw their plots, and keep the JSON."""

import sys
from pathlib import Path

import pytest

from .report import draw, read

RESULTS = Path(".benchmarks")

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    latest = RESULTS / "latest.json"
    before = latest.stat().st_mtime_ns if latest.exists() else 0
    code = pytest.main(
        ["benchmarks", "-q", "--benchmark-autosave", f"--benchmark-json={latest}", *sys.argv[1:]]
    )
    if latest.exists() and latest.stat().st_mtime_ns != before:
        for path in draw(read(latest), RESULTS):
            print(f"wrote {path}")
        print(f"wrote {latest}; the runs that are kept are compared by: pytest-benchmark compare")
    raise SystemExit(code)
