"""How good are the published homographies? ``python -m tests.programs.truth FOLDER [SEQUENCE ...]``.

FOLDER holds sequences in HPatches' layout. Every pair is fitted by features that have nothing in common, and
without any, by aligning the pixels (ECC, Evangelidis and Psarakis 2008, from the published homography on). A
pair is printed where all features are farther than `LIMIT` from what is published, and two of them nearer to
each other than `AGREED`: no method can come within `LIMIT` of such a truth but by being wrong.
"""

import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from d2feat.evaluation.fitting import fit_homographies
from d2feat.evaluation.methods import matched_points, mutual_matches, open_methods
from d2feat.evaluation.metrics import Floats, corner_error
from d2feat.evaluation.sequences import read_sequences
from d2feat.images import Image

LIMIT = 3.0
AGREED = 1.5
BLUR = 3.0
ROTATIONS = 4
FEATURES = ("sift", "orb")


def align(one: Image, two: Image, start: Floats) -> Floats:
    """The homography from image 1 to 2 that makes their blurred pixels most alike, from `start` on."""
    grey = [cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (0, 0), BLUR) for image in (one, two)]
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-5)
    first = (start / start[2, 2]).astype(np.float32)
    return np.asarray(cv2.findTransformECC(*grey, first, cv2.MOTION_HOMOGRAPHY, criteria)[1], np.float64)


def main(folder: str, *names: str) -> None:
    """Print the pairs whose published homography is wrong, as Markdown."""
    methods = open_methods(["d2net-int8"], 4000, rotations=ROTATIONS)[0] + open_methods(FEATURES, 4000)[0]
    pairs = 0
    columns = [method.name for method in methods] + ["pixels", "the nearest two apart"]
    print("| pair | " + " | ".join(f"{column}, px" for column in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for sequence in read_sequences(Path(folder), list(names)):
        one = sequence.load(1)
        size = one.shape[1::-1]
        first = [method.extract(one) for method in methods]
        for number, truth in sequence.homographies.items():
            two = sequence.load(number)
            fits = []
            for method, before in zip(methods, first, strict=True):
                after = method.extract(two)
                found = mutual_matches(before, after)
                fit = fit_homographies(*matched_points(before, after, found), cv2.USAC_MAGSAC)[0]
                fits.append(fit.homography)
            errors = [corner_error(fit, truth, size) for fit in fits]
            apart = min(
                corner_error(fit, other, size) if other is not None else np.inf
                for fit, other in combinations(fits, 2)
            )
            pairs += 1
            if min(errors) > LIMIT and apart < AGREED:
                cells = [*errors, corner_error(align(one, two, truth), truth, size), apart]
                print(f"| {sequence.name} 1-{number} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    print(f"\nof {pairs} pairs; errors are distances from the published homography, at the corners")


if __name__ == "__main__":
    main(*sys.argv[1:])
