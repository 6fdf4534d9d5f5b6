"""Tables and plots of a run of the benchmarks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Benches = Sequence[Mapping[str, Any]]


def read(path: Path) -> Benches:
    """The name of each benchmark in pytest-benchmark's JSON, and what `race` and others noted of it."""
    return [{"name": b["name"], **b["extra_info"]} for b in json.loads(path.read_text())["benchmarks"]]


def print_tables(benches: Benches) -> None:
    """Print all tables for which there is anything."""
    console = Console(width=120)
    for table in (_races(benches), _processes(benches), _soaks(benches)):
        if table.row_count:
            console.print(table)


def draw(benches: Benches, folder: Path) -> list[Path]:
    """Draw latency against the floor, and how cost grows, into PNG files; needs matplotlib."""
    from matplotlib.figure import Figure

    written = []
    latency = [bench for bench in benches if "floors" in bench]
    if latency:
        figure = Figure(figsize=(9, 1 + 1.2 * len(latency)), layout="constrained")
        axes = figure.subplots()
        labels, values, floors = [], [], []
        for bench in latency:
            for name, median in bench["medians"].items():
                labels.append(f"{_title(bench['name'])}: {name}")
                values.append(median)
                floors.append(bench["floors"].get(name))
        axes.barh(labels, values, color="#4878a8")
        for i, floor in enumerate(floors):
            if floor is not None:
                axes.plot([floor, floor], [i - 0.4, i + 0.4], color="black", label="" if i else "floor")
        axes.set(xscale="log", xlabel="seconds, median; black line: the multiplications at peak rate")
        axes.invert_yaxis()
        written.append(_save(figure, folder / "latency.png"))
    growth = [bench for bench in benches if "growth" in bench]
    if growth:
        figure = Figure(figsize=(4.5 * len(growth), 3.5), layout="constrained")
        for axes, bench in zip(figure.subplots(1, len(growth), squeeze=False)[0], growth, strict=True):
            points = sorted((float(x), y) for x, y in bench["medians"].items())
            axes.plot(*zip(*points, strict=True), marker="o", color="#4878a8")
            axes.set(xlabel=bench["growth"], ylabel="seconds, median", ylim=0, xlim=0)
        written.append(_save(figure, folder / "growth.png"))
    return written


def _races(benches: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("what", "who", "median, ms", "first is faster by", "floor, ms", title="Medians of one run")
    for bench in benches:
        if "medians" not in bench:
            continue
        first = next(iter(bench["medians"].values()))
        for i, (name, median) in enumerate(bench["medians"].items()):
            floor = bench.get("floors", {}).get(name)
            label = f"{name} {bench['growth']}" if "growth" in bench else name
            table.add_row(
                "" if i else _title(bench["name"]),
                label,
                f"{1000 * median:.2f}" if median < 0.01 else f"{1000 * median:.0f}",
                f"{median / first:.2f}" if i else "",
                "" if floor is None else f"{1000 * floor:.0f}",
            )
        table.add_section()
    return table


def _processes(benches: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(
        "process of its own", "start to first result, s", "memory at most, MB", "of which imports, MB"
    )
    for bench in benches:
        if "process" in bench:
            found = bench["process"]
            sizes = (f"{found[key] / 1e6:.0f}" for key in ("peak", "imported"))
            table.add_row(found["label"], f"{found['start']:.2f}", *sizes)
    return table


def _soaks(benches: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("images in a row", "memory after a tenth, MB", "at the end, MB", "growth", "slowdown")
    for bench in benches:
        if "soak" in bench:
            found = bench["soak"]
            table.add_row(
                str(found["images"]),
                f"{found['memory before'] / 1e6:.0f}",
                f"{found['memory after'] / 1e6:.0f}",
                f"{100 * (found['memory after'] / found['memory before'] - 1):+.1f} %",
                f"{100 * (found['median after'] / found['median before'] - 1):+.1f} %",
            )
    return table


def _title(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ").replace("[", " ").removesuffix("]")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
