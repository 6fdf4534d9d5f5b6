"""Relative pose: the camera's motion between two photos, from an essential matrix (``d2feat eval pose``).

Pair lists are those of Sarlin et al., "SuperGlue", CVPR 2020: a pair a line, 38 fields:

    NAME0 NAME1 ROT0 ROT1 K0 (9) K1 (9) T_0TO1 (16)

ROT: quarter turns counter-clockwise that make the image upright. K: 3 x 3 intrinsics in pixels of the file as
it is stored. T_0TO1: 4 x 4, from camera 0 to camera 1. Matrices row by row. Features are found in the upright
image and taken back, so neither intrinsics nor poses are turned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..errors import InputError
from ..images import decode_file
from ..lists import read_lines
from ..orientation import to_stored, turned
from .methods import Extraction, Method, matched_points, mutual_matches
from .metrics import Floats, area_under_curve

THRESHOLDS: Final = (5, 10, 20)
"""Degrees, of the area under the curve of pose errors."""
INLIER: Final = 1.0
"""Distance to the epipolar line of an inlier, px."""

_FIELDS: Final = 38


@dataclass(frozen=True, eq=False)
class PosePair:
    """Two photos, their intrinsics, and the motion between them.

    Attributes:
        names: of the files.
        quarters: quarter turns counter-clockwise that make each upright.
        intrinsics: 3 x 3 each.
        motion: 4 x 4, from camera 0 to camera 1.
    """

    names: tuple[str, str]
    quarters: tuple[int, int]
    intrinsics: tuple[Floats, Floats]
    motion: Floats


@dataclass(frozen=True)
class PoseResult:
    """Of one method.

    Attributes:
        auc: areas under the curve of max(rotation, translation) error, at `THRESHOLDS`.
        errors: (rotation, translation) of each pair, degrees; infinite where no pose was found.
        matches, inliers: means over the pairs.
    """

    name: str
    auc: tuple[float, ...]
    errors: tuple[tuple[float, float], ...]
    matches: float
    inliers: float


def read_pose_pairs(path: Path) -> list[PosePair]:
    """The pairs of a list.

    Raises:
        InputError: there is no such file, it is empty, or a line has not the 38 fields.
    """
    if not path.is_file():
        raise InputError(f"no list of pairs at {path}")
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != _FIELDS:
            raise InputError(
                f"{path}, line {number}: not the {_FIELDS} fields NAME0 NAME1 ROT0 ROT1 K0 (9) K1 (9) "
                f"T_0TO1 (16), but {len(fields)}"
            )
        try:
            quarters = int(fields[2]) % 4, int(fields[3]) % 4
            values = np.array(fields[4:], np.float64)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        intrinsics = values[:9].reshape(3, 3), values[9:18].reshape(3, 3)
        pairs.append(PosePair((fields[0], fields[1]), quarters, intrinsics, values[18:].reshape(4, 4)))
    if not pairs:
        raise InputError(f"{path} lists no pairs")
    return pairs


def evaluate_poses(
    pairs: Sequence[PosePair],
    folder: Path,
    methods: Sequence[Method],
    advance: Callable[[], None] = lambda: None,
) -> list[PoseResult]:
    """Estimate the motion of each pair with each method: mutual neighbours, USAC_MAGSAC.

    Args:
        folder: of the photos.
        advance: called after each pair and method.

    Raises:
        InputError: a photo is missing or no image.
    """
    for number, pair in enumerate(pairs, 1):
        for name in pair.names:
            if not (folder / name).is_file():  # found out before the hours that others take
                raise InputError(f"pair {number}: no image file at {folder / name}")
    last = {key: i for i, pair in enumerate(pairs) for key in zip(pair.names, pair.quarters, strict=True)}
    results = []
    for method in methods:
        features: dict[tuple[str, int], Extraction] = {}
        errors, matches, inliers = [], [], []
        for number, pair in enumerate(pairs):
            keys = tuple(zip(pair.names, pair.quarters, strict=True))
            for key in keys:
                if key not in features:
                    features[key] = _extract(folder / key[0], key[1], method)
            one, two = (features[key] for key in keys)
            for key in keys:
                if last[key] == number:  # thousands of images do not fit into memory
                    features.pop(key, None)
            indices = mutual_matches(one, two)
            motion, agreeing = estimate_motion(*matched_points(one, two, indices), *pair.intrinsics)
            errors.append((np.inf, np.inf) if motion is None else motion_error(motion, pair.motion))
            matches.append(len(indices))
            inliers.append(agreeing)
            advance()
        auc = tuple(area_under_curve([max(error) for error in errors], THRESHOLDS).tolist())
        results.append(
            PoseResult(method.name, auc, tuple(errors), float(np.mean(matches)), float(np.mean(inliers)))
        )
    return results


def estimate_motion(
    points0: npt.NDArray[np.float32], points1: npt.NDArray[np.float32], K0: Floats, K1: Floats
) -> tuple[Floats | None, int]:
    """3 x 4 (R, t) from camera 0 to camera 1 of N x 2 matching points, |t| = 1, and its number of inliers."""
    if len(points0) < 5:
        return None, 0
    rays0, rays1 = _rays(points0, K0), _rays(points1, K1)
    focal = np.mean([K0[0, 0], K0[1, 1], K1[0, 0], K1[1, 1]])
    stacked, mask = cv2.findEssentialMat(
        rays0, rays1, np.eye(3), method=cv2.USAC_MAGSAC, prob=0.99999, threshold=float(INLIER / focal)
    )
    best: tuple[Floats | None, int] = (None, 0)
    # The five-point solver may give several.
    for essential in () if stacked is None else np.split(stacked, len(stacked) // 3):
        count, rotation, translation, _ = cv2.recoverPose(
            essential, rays0, rays1, np.eye(3), distanceThresh=1e9, mask=mask.copy()
        )[:4]
        if count > best[1]:
            best = np.column_stack([rotation, translation]), int(count)
    return best


def motion_error(motion: Floats, truth: Floats) -> tuple[float, float]:
    """Angles in degrees between the rotations and between the directions of translation.

    A translation's sign is not seen from an essential matrix alone: the angle is at most 90 degrees, as in
    SuperGlue's evaluation.
    """
    cosine = (np.trace(motion[:3, :3].T @ truth[:3, :3]) - 1) / 2
    lengths = np.linalg.norm(motion[:3, 3]) * np.linalg.norm(truth[:3, 3])
    along = abs(motion[:3, 3] @ truth[:3, 3]) / max(float(lengths), 1e-12)
    rotation, translation = np.rad2deg(np.arccos(np.clip([cosine, along], -1, 1)))
    return float(rotation), float(translation)


def pose_table(results: Sequence[PoseResult]) -> Table:
    """One method a row."""
    pairs = len(results[0].errors)
    table = Table(title=f"Relative pose, {pairs} pairs, USAC_MAGSAC", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("method")
    for heading in (*(f"AUC@{degrees}" for degrees in THRESHOLDS), "median error", "matches", "inliers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        error = np.median([max(errors) for errors in result.errors])
        cells = [*(f"{area:.3f}" for area in result.auc), f"{error:.2f} deg"]
        table.add_row(result.name, *cells, f"{result.matches:.0f}", f"{result.inliers:.0f}")
    return table


def _rays(points: npt.NDArray[np.float32], K: Floats) -> Floats:
    rays: Floats = (points.astype(np.float64) - K[:2, 2]) / K[[0, 1], [0, 1]]
    return rays


def _extract(path: Path, quarters: int, method: Method) -> Extraction:
    image = decode_file(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    found = method.extract(turned(image, quarters))
    size = image.shape[1], image.shape[0]
    return replace(
        found,
        points=to_stored(found.points, size, quarters),
        image=None if found.image is None else image,
    )
