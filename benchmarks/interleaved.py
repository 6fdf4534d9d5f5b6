"""Time two functions in turn, A B A B, so that a machine whose speed drifts slows both alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def compare(
    benchmark: Any, ours: Callable[[], Any], other: Callable[[], Any], *, name: str, rounds: int
) -> float:
    """Benchmark `ours`, running `other` once before each round; the median of `other` over that of `ours`.

    The ratio and the other's median, in seconds, go into the benchmark's `extra_info` (and so its JSON).

    Args:
        benchmark: pytest-benchmark's fixture; it holds the times of `ours`.
        ours, other: called without arguments; each is called once beforehand, uncounted.
        name: what `other` is, for the table.
        rounds: counted runs of each.
    """
    times = []
    ours(), other()

    def before() -> None:
        start = time.perf_counter()
        other()
        times.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=before, rounds=rounds, iterations=1)
    ratio = float(statistics.median(times) / benchmark.stats.stats.median)
    benchmark.extra_info.update(
        {"compared with": name, "other median s": statistics.median(times), "ratio": ratio}
    )
    return ratio
