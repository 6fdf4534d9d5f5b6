"""An evaluation as tables, a JSON file and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from ..errors import D2FeatError
from .metrics import THRESHOLDS
from .sequences import Evaluation, MethodResult, Summary

# Okabe & Ito's colours, told apart by the colour-blind.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS: Final = "osD^vP*"


def tables(evaluation: Evaluation) -> list[Table]:
    """Three tables: matching, homographies, and MMA@3 by sequence."""
    at = evaluation.corner_thresholds
    budget = f"{evaluation.nfeatures} features" if evaluation.nfeatures > 0 else "all features"
    matching = Table(title=f"Mutual nearest neighbours, {budget}", title_justify="left")
    for heading in ("method", "", "pairs", "features", "matches", "MMA@1", "@3", "@5", "@10"):
        matching.add_column(heading, justify="left" if heading in ("method", "") else "right")
    for heading in ("localis. px", "repeat.", "score"):
        matching.add_column(heading, justify="right")
    fitting = Table(title="Homographies, corner error in px", title_justify="left")
    fitting.add_column("method")
    fitting.add_column("")
    for heading in (
        f"MAGSAC <= {at[0]}",
        *(f"<= {t}" for t in at[1:]),
        f"AUC@{at[0]}",
        *(f"@{t}" for t in at[1:]),
    ):
        fitting.add_column(heading, justify="right")
    for heading in (f"legacy <= {at[0]}", *(f"<= {t}" for t in at[1:]), "inliers"):
        fitting.add_column(heading, justify="right")
    for result in evaluation.methods:
        for group, summary in _groups(result):
            matching.add_row(result.name, group, *_matching_cells(summary))
            fitting.add_row(result.name, group, *_fitting_cells(summary))
    return [matching, fitting, _by_sequence(evaluation.methods)]


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
    groups = [name for name, _ in _groups(evaluation.methods[0])] if evaluation.methods else []
    figure: Any = Figure(figsize=(1.2 + 3.6 * max(1, len(groups)), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, max(1, len(groups)), sharey=True, squeeze=False)[0]
    for axes, group in zip(all_axes, groups, strict=False):
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
    if groups:
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


_TITLES: Final = {"all": "All", "i": "Light", "v": "Viewpoint"}


def _groups(result: MethodResult) -> list[tuple[str, Summary]]:
    groups = [("all", result.overall), ("i", result.light), ("v", result.viewpoint)]
    return [(name, summary) for name, summary in groups if summary is not None]


def _matching_cells(summary: Summary) -> list[str]:
    mma = dict(zip(THRESHOLDS, summary.mma, strict=True))
    return [
        str(summary.pairs),
        f"{summary.features:.0f}",
        f"{summary.matches:.0f}",
        *_shares([mma[1], mma[3], mma[5], mma[10]]),
        "-" if summary.localisation is None else f"{summary.localisation:.2f}",
        *_shares([summary.repeatability, summary.matching_score]),
    ]


def _fitting_cells(summary: Summary) -> list[str]:
    shares = _shares([*summary.homography, *summary.auc, *summary.legacy_homography])
    return [*shares, f"{summary.legacy_inliers:.0f}"]


def _by_sequence(methods: Sequence[MethodResult]) -> Table:
    table = Table("MMA@3", title="By sequence", title_justify="left")
    for result in methods:
        table.add_column(result.name, justify="right")
    for name in methods[0].sequences if methods else ():
        table.add_row(name, *_shares([result.sequences[name].mma[2] for result in methods]))
    return table


def _shares(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
