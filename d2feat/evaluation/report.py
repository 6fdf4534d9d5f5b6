"""An evaluation as tables, a JSON file and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from ..errors import D2FeatError
from .legacy import RATIO
from .metrics import CORRECT, THRESHOLDS
from .sequences import Evaluation, MethodResult, Summary

WIDTH: Final = 80

# Okabe & Ito's colours, told apart by the colour-blind.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS: Final = "osD^vP*"


def tables(evaluation: Evaluation) -> list[Table]:
    """Matching, homographies, the legacy recipe, and MMA@3 by sequence, of one or more methods.

    `WIDTH` characters wide at most.
    """
    budget = f"{evaluation.nfeatures} features" if evaluation.nfeatures > 0 else "all features"
    pairs = evaluation.methods[0].overall.pairs
    within = [f"<={threshold} px" for threshold in evaluation.corner_thresholds]
    area = [f"AUC@{threshold}" for threshold in evaluation.corner_thresholds]
    mma = ["MMA@1", "@3", "@5", "@10"]
    matching = _table(
        f"Mutual nearest neighbours, {budget}, {pairs} pairs",
        ["method", "", "features", "matches", *mma, "px", "rep.", "score"],
    )
    fitted = _table("Homographies, USAC_MAGSAC", ["method", "", *within, *area])
    counted = ["matches", "inliers", "distinct"]
    legacy = _table(f"Legacy recipe: FLANN, ratio {RATIO:g}, RANSAC", ["method", "", *counted, *within])
    for result in evaluation.methods:
        for group, summary in _groups(result):
            name = escape(result.name), group
            matching.add_row(*name, *_matching_cells(summary))
            fitted.add_row(*name, *_shares([*summary.homography, *summary.auc]))
            found = summary.legacy_matches, summary.legacy_inliers, summary.legacy_distinct
            counts = [f"{count:.0f}" for count in found]
            legacy.add_row(*name, *counts, *_shares(summary.legacy_homography))
    matching.caption = (
        f"px: median error of correct matches; rep.: repeatability; score: matching score; at {CORRECT:g} px"
    )
    legacy.caption = "distinct: inliers' places in image 1 that are more than a pixel apart"
    return [matching, fitted, legacy, *_by_sequence(evaluation.methods)]


def write_json(evaluation: Evaluation, path: Path) -> None:
    """All figures, every pair's included; null stands for infinite or undefined."""
    text = json.dumps(dataclasses.asdict(evaluation), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def draw_curves(evaluation: Evaluation, path: Path) -> None:
    """Write the MMA curves as a picture; its format is that of the path's suffix.

    Raises:
        D2FeatError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise D2FeatError(
            f"the curves are drawn by matplotlib, which cannot be imported ({error}); "
            "pip install 'd2feat[eval]'"
        ) from error
    groups = [name for name, _ in _groups(evaluation.methods[0])]
    figure: Any = Figure(figsize=(1.2 + 3.6 * len(groups), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(all_axes, groups, strict=True):
        for i, result in enumerate(evaluation.methods):
            summary = dict(_groups(result))[group]
            style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
            axes.plot(THRESHOLDS, summary.mma, label=result.name, markersize=4, linewidth=1.8, **style)
        pairs = dict(_groups(evaluation.methods[0]))[group].pairs
        axes.set_title(f"{_TITLES[group]} ({pairs} pairs)", fontsize=10)
        axes.set_xlabel("threshold, px")
        axes.set_xticks(THRESHOLDS)
        axes.set_ylim(0, 1)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("mean matching accuracy")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


_TITLES: Final = {"all": "All", "i": "Light", "v": "Viewpoint"}


def _groups(result: MethodResult) -> list[tuple[str, Summary]]:
    groups = [("all", result.overall), ("i", result.light), ("v", result.viewpoint)]
    return [(name, summary) for name, summary in groups if summary is not None]


def _matching_cells(summary: Summary) -> list[str]:
    mma = dict(zip(THRESHOLDS, summary.mma, strict=True))
    return [
        f"{summary.features:.0f}",
        f"{summary.matches:.0f}",
        *_shares([mma[1], mma[3], mma[5], mma[10]]),
        "-" if summary.localisation is None else f"{summary.localisation:.2f}",
        *_shares([summary.repeatability, summary.matching_score]),
    ]


def _by_sequence(methods: Sequence[MethodResult]) -> list[Table]:
    """A table of as many methods as its width has room for, and more of the others."""
    names = list(methods[0].sequences)
    room = WIDTH - 2 - max(map(cell_len, names))
    groups, left = list[list[MethodResult]](), 0
    for result in methods:
        column = 1 + max(cell_len(result.name), len(".000") + 1)
        if column > left:
            groups.append([])
            left = room
        groups[-1].append(result)
        left -= column
    found = []
    for group in groups:
        found.append(_table("MMA@3 by sequence", ["", *(escape(result.name) for result in group)]))
        for name in names:
            found[-1].add_row(escape(name), *_shares([result.sequences[name].mma[2] for result in group]))
    return found


def _table(title: str, headings: Sequence[str]) -> Table:
    """A table whose named headings stand over numbers, but for the first and an empty second."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, title_justify="left", caption_justify="left")
    for i, heading in enumerate(headings):
        words = i == 0 or not heading
        table.add_column(heading, justify="left" if words else "right", no_wrap=i > 0)
    return table


def _shares(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}".removeprefix("0") for value in values]
