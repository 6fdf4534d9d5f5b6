"""Image sequences with known homographies, and the evaluation of methods on them."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from .. import __version__
from ..errors import InputError
from ..images import Image, cv2_path, read_image
from . import metrics
from .fitting import Fit, fit_homographies
from .legacy import run_legacy
from .methods import Extraction, Method, matched_points, mutual_matches
from .metrics import Floats, Size


@dataclass(frozen=True, eq=False)
class ImageSequence:
    """Image 1 and others of the same plane.

    Attributes:
        name: "i_..." where light changes and "v_..." where the viewpoint does, or any other.
        load: returns the image of a number, 1, 2, ...
        homographies: by number k > 1 the 3 x 3 `H` with x_k ~ H x_1.
    """

    name: str
    load: Callable[[int], Image]
    homographies: dict[int, Floats]


@dataclass(frozen=True)
class PairResult:
    """Figures of image 1 and image k of a sequence; see `metrics`. None stands for infinite or undefined.

    Attributes:
        sequence, image: its name, and k.
        features: numbers of keypoints in image 1 and k.
        matches: number of mutual nearest neighbours.
        accuracy: share of the matches within `metrics.THRESHOLDS`.
        matching_score, repeatability: within `metrics.CORRECT`.
        localisation: median error of correct matches, px.
        corner_errors: of the homographies that USAC_MAGSAC fits to the matches, px; see `fitting`.
        legacy_matches, legacy_inliers, legacy_distinct, legacy_corner_errors: of the legacy recipe, see
            `legacy`; inliers, and how many of their places in image 1 are `metrics.distinct`, are the means
            of its fits.
    """

    sequence: str
    image: int
    features: tuple[int, int]
    matches: int
    accuracy: tuple[float, ...]
    matching_score: float
    repeatability: float
    localisation: float | None
    corner_errors: tuple[float | None, ...]
    legacy_matches: int
    legacy_inliers: float
    legacy_distinct: float
    legacy_corner_errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Summary:
    """Means over pairs of `PairResult`'s figures; shares of fits and areas at `metrics.CORNER_THRESHOLDS`.

    Attributes:
        pairs: how many.
        features: keypoints an image.
        matches, mma, matching_score, repeatability: means.
        localisation: mean over the pairs that have one, None if none has.
        homography, auc: share of fits with such a corner error, and area under that curve (USAC_MAGSAC).
        legacy_matches, legacy_inliers, legacy_distinct: means.
        legacy_homography: share of fits, legacy recipe.
    """

    pairs: int
    features: float
    matches: float
    mma: tuple[float, ...]
    matching_score: float
    repeatability: float
    localisation: float | None
    homography: tuple[float, ...]
    auc: tuple[float, ...]
    legacy_matches: float
    legacy_inliers: float
    legacy_distinct: float
    legacy_homography: tuple[float, ...]


@dataclass(frozen=True)
class MethodResult:
    """A method's figures: over all pairs, over those of i_ and v_ sequences where named so, and each."""

    name: str
    model: str
    overall: Summary
    light: Summary | None
    viewpoint: Summary | None
    sequences: dict[str, Summary]
    pairs: tuple[PairResult, ...]


@dataclass(frozen=True)
class Evaluation:
    """Results of one run, best read with `report`.

    Attributes:
        data: what the sequences are.
    """

    nfeatures: int
    methods: tuple[MethodResult, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    data: str = ""
    thresholds: tuple[int, ...] = metrics.THRESHOLDS
    corner_thresholds: tuple[int, ...] = metrics.CORNER_THRESHOLDS
    opencv: str = cv2.__version__
    d2feat: str = __version__


def read_sequences(folder: Path, only: Sequence[str] = ()) -> list[ImageSequence]:
    """Sequences in HPatches' layout: SEQUENCE/1.ppm, 2.ppm, ... (any format), H_1_2, ... (text, 3 x 3).

    Or in that of the Oxford affine sequences: img1.ppm, img2.ppm, ... and H1to2p, ...

    Args:
        folder: the folder of sequence folders, or one of these.
        only: names of sequences to read; all by default.

    Raises:
        InputError: there is no such folder or no sequence in it, or a sequence lacks an image, or has a
            homography that is none.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    folder = folder.resolve()  # of ".", too, the name may be wanted
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = {path.name: path for path in folders if _truths(path)}
    if not found:
        raise InputError(
            f"no sequences in {folder}: folders with images 1, 2, ... and H_1_2, ..., or img1, img2, ... and "
            "H1to2p, ..."
        )
    unknown = [name for name in only if name not in found]
    if unknown:
        raise InputError(f"no sequence {', '.join(unknown)} in {folder}; there are {', '.join(found)}")
    return [_read_sequence(found[name]) for name in dict.fromkeys(only) or found]


def evaluate(
    sequences: Sequence[ImageSequence],
    methods: Sequence[Method],
    nfeatures: int,
    skipped: dict[str, str] | None = None,
    advance: Callable[[str], None] = lambda _: None,
    data: str = "",
) -> Evaluation:
    """Compare the methods on the pairs (image 1, image k) of the sequences.

    Args:
        sequences: as of `read_sequences` or `synthetic.make_sequences`.
        methods: as of `open_methods`.
        nfeatures: the budget they were opened with, for the record.
        skipped: reasons of the methods that could not be opened, for the record.
        advance: called with "SEQUENCE, METHOD" after each image that was extracted.
        data: what the sequences are, for the record.
    """
    results: dict[str, list[PairResult]] = {method.name: [] for method in methods}
    for sequence in sequences:
        numbers = [1, *sequence.homographies]
        images = {number: sequence.load(number) for number in numbers}
        for method in methods:
            found = {}
            for number in numbers:
                found[number] = method.extract(images[number])
                advance(f"{sequence.name}, {method.name}")
            sizes = {number: (image.shape[1], image.shape[0]) for number, image in images.items()}
            for number, homography in sequence.homographies.items():
                results[method.name].append(
                    evaluate_pair(
                        sequence.name, number, found[1], found[number], homography, sizes[1], sizes[number]
                    )
                )
    summarised = tuple(_method_result(method, results[method.name]) for method in methods)
    return Evaluation(nfeatures, summarised, skipped or {}, data)


def evaluate_pair(
    sequence: str, number: int, one: Extraction, two: Extraction, H: Floats, size1: Size, size2: Size
) -> PairResult:
    """The figures of the features of a sequence's first image and of another, by its number.

    Args:
        H: 3 x 3, first image to the other.
        size1, size2: (width, height) of the images.
    """
    matches = mutual_matches(one, two)
    matched = matched_points(one, two, matches)
    errors = metrics.match_errors(*matched, H)
    legacy = run_legacy(one, two)
    both = one.points, two.points

    def corner_errors(fits: Iterable[Fit]) -> tuple[float | None, ...]:
        return tuple(_finite(metrics.corner_error(fit.homography, H, size1)) for fit in fits)

    return PairResult(
        sequence=sequence,
        image=number,
        features=(len(one.points), len(two.points)),
        matches=len(matches),
        accuracy=tuple(metrics.matching_accuracy(errors).tolist()),
        matching_score=metrics.matching_score(*both, matches, errors, H, size1, size2),
        repeatability=metrics.repeatability(*both, H, size1, size2),
        localisation=_finite(metrics.localisation(errors)),
        corner_errors=corner_errors(fit_homographies(*matched, cv2.USAC_MAGSAC)),
        legacy_matches=len(legacy.points),
        legacy_inliers=float(np.mean([len(fit.inliers) for fit in legacy.fits])),
        legacy_distinct=float(np.mean([metrics.distinct(legacy.points[fit.inliers]) for fit in legacy.fits])),
        legacy_corner_errors=corner_errors(legacy.fits),
    )


def summarise(pairs: Sequence[PairResult]) -> Summary:
    """Means over one or more pairs."""
    located = [pair.localisation for pair in pairs if pair.localisation is not None]
    corners = _infinite(error for pair in pairs for error in pair.corner_errors)
    legacy = _infinite(error for pair in pairs for error in pair.legacy_corner_errors)
    return Summary(
        pairs=len(pairs),
        features=float(np.mean([pair.features for pair in pairs])),
        matches=float(np.mean([pair.matches for pair in pairs])),
        mma=tuple(np.mean([pair.accuracy for pair in pairs], axis=0).tolist()),
        matching_score=float(np.mean([pair.matching_score for pair in pairs])),
        repeatability=float(np.mean([pair.repeatability for pair in pairs])),
        localisation=float(np.mean(located)) if located else None,
        homography=tuple(metrics.homography_accuracy(corners).tolist()),
        auc=tuple(metrics.area_under_curve(corners).tolist()),
        legacy_matches=float(np.mean([pair.legacy_matches for pair in pairs])),
        legacy_inliers=float(np.mean([pair.legacy_inliers for pair in pairs])),
        legacy_distinct=float(np.mean([pair.legacy_distinct for pair in pairs])),
        legacy_homography=tuple(metrics.homography_accuracy(legacy).tolist()),
    )


def _method_result(method: Method, pairs: Sequence[PairResult]) -> MethodResult:
    light = [pair for pair in pairs if pair.sequence.startswith("i_")]
    viewpoint = [pair for pair in pairs if pair.sequence.startswith("v_")]
    by_name: dict[str, list[PairResult]] = {}
    for pair in pairs:
        by_name.setdefault(pair.sequence, []).append(pair)
    return MethodResult(
        method.name,
        method.model,
        summarise(pairs),
        summarise(light) if light else None,
        summarise(viewpoint) if viewpoint else None,
        {sequence: summarise(members) for sequence, members in by_name.items()},
        tuple(pairs),
    )


def _read_sequence(folder: Path) -> ImageSequence:
    homographies = {}
    for path in _truths(folder):
        try:
            number = int(path.name.removeprefix("H_1_").removeprefix("H1to").removesuffix("p"))
            with warnings.catch_warnings(action="ignore"):  # of an empty file
                matrix = np.loadtxt(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is not a homography: {error}") from None
        if number < 2:
            raise InputError(f"{path}: a homography is of image 1 and another, from 2 on")
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
            raise InputError(f"{path} is not an invertible 3 x 3 matrix")
        homographies[number] = matrix
    paths = {}
    for number in (1, *homographies):
        files = [*sorted(folder.glob(f"{number}.*")), *sorted(folder.glob(f"img{number}.*"))]
        candidates = [path for path in files if cv2.haveImageReader(cv2_path(path))]
        if not candidates:
            raise InputError(f"{folder} has no image {number} that OpenCV can read")
        paths[number] = candidates[0]
    return ImageSequence(folder.name, partial(_load, paths), dict(sorted(homographies.items())))


def _truths(folder: Path) -> list[Path]:
    """The files of homographies in a folder."""
    return [*folder.glob("H_1_*"), *folder.glob("H1to*p")]


def _load(paths: dict[int, Path], number: int) -> Image:
    return read_image(paths[number])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(values: Iterable[float | None]) -> list[float]:
    return [math.inf if value is None else value for value in values]
