"""The table of ratios that a benchmark run ends with."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print ours, the other, and the ratio of every comparison of the run."""
    session = getattr(config, "_benchmarksession", None)
    compared = [b for b in getattr(session, "benchmarks", []) if "ratio" in b.extra_info]
    if not compared:
        return
    table = Table(
        "what", "ours, ms", "compared with", "ms", "times faster", "floor, ms", title="Medians of one run"
    )
    for bench in compared:
        info = bench.extra_info
        floor = f"{1000 * info['floor s']:.0f}" if "floor s" in info else ""
        times = f"{1000 * bench.stats.median:.1f}", f"{1000 * info['other median s']:.1f}"
        table.add_row(
            bench.name.removeprefix("test_").replace("_", " "),
            times[0],
            info["compared with"],
            times[1],
            f"{info['ratio']:.2f}",
            floor,
        )
    terminalreporter.write_line("")
    Console(width=150).print(table)
