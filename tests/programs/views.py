"""What turned and tilted copies bring: ``python -m tests.programs.views FOLDER [SEQUENCE ...]``.

FOLDER holds sequences in HPatches' layout; bark, boat, graf and wall of Oxford affine by default. The default
detector as it is, with `rotations=4`, both with 2048 features, and with as many in each view of
`AffineFeature`; MMA and homographies as in docs/accuracy.md, and the time an image against the first.
"""

import statistics
import sys
import time
from pathlib import Path

import d2feat
from d2feat.evaluation.methods import Extraction, Method, d2feat_method
from d2feat.evaluation.sequences import evaluate, read_sequences
from d2feat.images import Image

NFEATURES = 2048
SEQUENCES = ("bark", "boat", "graf", "wall")
VIEWS = 2
"""The largest tilt of `AffineFeature`, as a power of the root of 2: ten views."""


def timed(method: Method, seconds: list[float]) -> Method:
    """The method, noting how long it took."""

    def extract(image: Image) -> Extraction:
        start = time.perf_counter()
        found = method.extract(image)
        seconds.append(time.perf_counter() - start)
        return found

    return Method(method.name, extract)


def main(folder: str, *names: str) -> None:
    """Print the table as Markdown."""
    detector = d2feat.create(NFEATURES)
    entrants = {
        "as it is": detector,
        "`rotations=4`": d2feat.create(NFEATURES, rotations=4),
        f"`AffineFeature(detector, maxTilt={VIEWS})`": d2feat.AffineFeature(detector, VIEWS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    methods = [timed(d2feat_method(entrant, name), seconds[name]) for name, entrant in entrants.items()]
    sequences = read_sequences(Path(folder), names or SEQUENCES)
    found = evaluate(
        sequences, methods, NFEATURES, advance=lambda done: print(done, file=sys.stderr, flush=True)
    )
    columns = [sequence.name for sequence in sequences]
    print(f"| MMA@3, homographies within 3 px | features | {' | '.join(columns)} | time |")
    print("|---" * (len(columns) + 3) + "|")
    for result in found.methods:
        cells = [
            f"{result.sequences[name].mma[2]:.2f}, {result.sequences[name].homography[0]:.2f}"
            for name in columns
        ]
        ratio = statistics.median(seconds[result.name]) / statistics.median(seconds["as it is"])
        print(f"| {result.name} | {result.overall.features:.0f} | {' | '.join(cells)} | {ratio:.1f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
