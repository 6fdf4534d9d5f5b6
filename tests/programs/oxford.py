"""Constants of old scripts, SIFT and D2-Net: ``python -m tests.programs.oxford FOLDER [SEQUENCE ...]``.

FOLDER holds sequences in HPatches' layout. sequence.py is run on each unmodified, by Python itself and by
``python -m d2feat.legacy``; what it printed is kept in oxford.json, and the tables of
docs/migrating-from-sift.md are printed. Before FOLDER may stand options of d2feat: ``--d2feat=rotations=4``.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from d2feat.evaluation.metrics import corner_error
from d2feat.evaluation.sequences import read_sequences

from .__main__ import run

RATIOS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
PIXELS = (3.0, 4.0, 5.0)
TUTORIAL = (0.7, 5.0)
METHODS = {"SIFT": None, "d2feat": ""}


def measure(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Every result that sequence.py printed, with the corner error of its homography."""
    results = []
    for sequence in read_sequences(folder, names):
        paths = [next(folder.glob(f"{sequence.name}/{number}.*")) for number in (1, *sequence.homographies)]
        size = sequence.load(1).shape[1::-1]
        for method, legacy in METHODS.items():
            args = ["--ratio", *RATIOS, "--pixels", *PIXELS, "--", *paths]
            for result in run("sequence.py", *args, legacy=legacy, timeout=3000):
                truth = sequence.homographies[int(Path(result["image"]).stem)]
                error = corner_error(result["H"], truth, size)
                results.append(
                    result | {"sequence": sequence.name, "method": method, "error": min(error, 1e9)}
                )
        print(sequence.name, file=sys.stderr, flush=True)
    return results


def summary(results: list[dict[str, Any]], **wanted: Any) -> tuple[int, int, int, float, float]:
    """Pairs, those within 3 and within 5 px, mean inliers, mean share of inliers, of the results that fit."""
    chosen = [one for one in results if all(one[key] == value for key, value in wanted.items())]
    errors = np.array([one["error"] for one in chosen])
    shares = [one["inliers"] / max(1, one["matches"]) for one in chosen]
    inliers = float(np.mean([one["inliers"] for one in chosen]))
    return len(chosen), int((errors <= 3).sum()), int((errors <= 5).sum()), inliers, float(np.mean(shares))


def main(folder: str, *names: str) -> None:
    """Measure, and print the tables as Markdown."""
    if folder.startswith("--d2feat="):
        METHODS["d2feat"] = folder
        folder, *names = names
    results = measure(Path(folder), list(names))
    Path("oxford.json").write_text(json.dumps(results))
    ratio, pixels = TUTORIAL
    print("| sequence | pairs | SIFT: within 3 / 5 px | inliers | d2feat: within 3 / 5 px | inliers |")
    print("|---" * 6 + "|")
    for name in (*dict.fromkeys(one["sequence"] for one in results), None):
        wanted = {"ratio": ratio, "pixels": pixels} | ({} if name is None else {"sequence": name})
        cells = []
        for method in METHODS:
            pairs, three, five, inliers, _ = summary(results, method=method, **wanted)
            cells += [f"{three} / {five}", f"{inliers:.0f}"]
        print(f"| {name or 'all'} | {pairs} | {' | '.join(cells)} |")
    columns = "within 3 / 5 px | inliers | share"
    print(f"\n| ratio, RANSAC px | SIFT: {columns} | d2feat: {columns} |")
    print("|---" * 7 + "|")
    for ratio in RATIOS:
        for pixels in PIXELS:
            cells = []
            for method in METHODS:
                _, three, five, inliers, share = summary(results, method=method, ratio=ratio, pixels=pixels)
                cells += [f"{three} / {five}", f"{inliers:.0f}", f"{share:.2f}"]
            print(f"| {ratio}, {pixels:g} | {' | '.join(cells)} |")
    seconds = {
        method: np.median([one["seconds"] for one in results if one["method"] == method])
        for method in METHODS
    }
    assert all(math.isfinite(value) for value in seconds.values())
    print("\nmedian time of detectAndCompute: " + ", ".join(f"{m} {s:.2f} s" for m, s in seconds.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
