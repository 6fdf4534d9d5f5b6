"""Time several functions in turn, A B C A B C, so that a machine whose speed drifts slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def race(benchmark: Any, entrants: Mapping[str, Callable[[], Any]], *, rounds: int, **facts: Any) -> None:
    """Benchmark the first entrant and time all others before each of its rounds.

    Medians, in seconds, and `facts` go into the benchmark's `extra_info`: into its JSON and the tables.

    Args:
        benchmark: pytest-benchmark's fixture; it holds the times of the first.
        entrants: by name, called without arguments; each is called once beforehand, uncounted.
        rounds: counted runs of each.
        facts: what else the tables are to show.
    """
    (first, ours), *others = entrants.items()
    times: dict[str, list[float]] = {name: [] for name, _ in others}
    for run in entrants.values():
        run()

    def before() -> None:
        for name, run in others:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=before, rounds=rounds, iterations=1)
    if benchmark.stats is None:  # --benchmark-disable: each was called, and nothing measured
        return
    medians = {name: statistics.median(values) for name, values in times.items()}
    benchmark.extra_info.update(medians={first: benchmark.stats.stats.median, **medians}, **facts)
