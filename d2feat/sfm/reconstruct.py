"""From a folder of photographs to a sparse model, in stages that go on from what they have."""

import dataclasses
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import hdf5
from ..errors import InputError
from ..features import Floats
from ..images import digest
from ..locks import locked
from ..pairs import Pair, check_flat_names
from .database import build_database, verified_pairs
from .layout import (
    DATABASE_FILE,
    FEATURES_FILE,
    GLOBAL_FILE,
    MATCHES_FILE,
    MODEL_FOLDER,
    ORIGIN_FILE,
    PAIRS_FILE,
    REFINED_FOLDER,
    WORDS_FILE,
    best_model,
    model_digest,
)
from .mapping import (
    Figures,
    build_model,
    figures,
    read_cameras,
    read_model,
    replacing_folder,
    triangulate,
)
from .methods import FOREIGN, Method
from .pairs import EXHAUSTIVE, exhaustive, listed, retrieved, sequential
from .photos import cameras_of, find_photos
from .picture import draw_model
from .retrieval import PREVIEWED, SAMPLED, SAMPLES, global_descriptor, learn_words, preview
from .stages import check_source, claim, extract_photos, is_foreign, match_photos, write_json
from .tracks import refine_tracks

PAIRINGS: Final = ("auto", "exhaustive", "sequential", "retrieval")
MODELS: Final = MODEL_FOLDER, REFINED_FOLDER

Progress = Callable[[str, int, int], None]
"""Called with a stage, what was done of it since the last call, and all there is to do."""


@dataclass(frozen=True)
class Result:
    """Of one method.

    Attributes:
        pairs, verified: photos that were matched, and those of them whose geometry was verified.
        seconds: by stage, of the run that did it.
    """

    figures: Figures
    pairs: int
    verified: int
    seconds: dict[str, float]


def reconstruct(
    folder: Path,
    out: Path,
    method: Method,
    pairing: str = "auto",
    progress: Progress = lambda *_: None,
    reference: Path | None = None,
    *,
    own_cameras: bool = False,
    refine: bool = False,
) -> Result:
    """Reconstruct the photographs of a folder, in `out`.

    Writes ``features.h5``, ``global.h5``, ``pairs.txt``, ``matches.h5`` (in hloc's layouts), ``database.db``
    and ``sparse`` (COLMAP's), ``points.ply``, ``model.png`` and ``report.json``. What is there is not made
    again: a run that was killed is gone on with, and features and matches of others that are put there are
    taken.

    Args:
        pairing: "exhaustive", "sequential", "retrieval", "auto" (exhaustive up to `EXHAUSTIVE` photos, beyond
            that retrieval), or the path of a text file of pairs.
        reference: COLMAP model whose cameras are known: its photos are taken, its cameras kept, and points
            triangulated.
        own_cameras: of photos whose EXIF does not tell their camera each has its own; else those of one size
            share one, which is more exact where one camera took them, and wrong where not.
        refine: a second model, in ``refined``, whose observations were moved by the photos' pixels
            (`refine_tracks`). Figures and pictures are of it, in later runs, too, and `localize` takes it.

    Raises:
        InputError: there are no photographs, or two are called alike in a file of matches; `out` is among
            them, or it holds work with other settings or of other features; a photo cannot be read, or one
            of `reference` is missing or of another size; the pairs, the reference or what is there cannot be
            read.
        D2FeatError: COLMAP found no two photographs to begin with.
    """
    if pairing not in PAIRINGS and not Path(pairing).is_file():
        raise InputError(f"pairs are {', '.join(PAIRINGS)}, or a text file; there is no file {pairing}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{out} lies in the folder of the photographs, where its pictures would be taken for such"
        )
    if own_cameras and reference is not None:
        raise InputError("cameras are known or each photo's own: leave out one of the two")
    if reference is None:
        names, poses = find_photos(folder), None
        cameras = cameras_of(folder, names, own=own_cameras)
    else:
        cameras, poses = read_cameras(reference)
        names = list(cameras)
        _check_photos(folder, names, reference)
    check_flat_names(names)
    digests = {name: digest(folder / name) for name in names}
    rules = {
        "matching": method.matching,
        "min_inliers": method.min_inliers,
        # What files say, and not where they are: an edited one is another setting. Of pairs the parsed list,
        # for `out`'s own pairs.txt, which is written anew, may be the file.
        "pairs": pairing if pairing in PAIRINGS else _digest(_pair_lines(listed(names, Path(pairing)))),
        "own_cameras": own_cameras,
        "reference": "None" if poses is None else _digest(_camera_lines(cameras, poses)),
    }
    with locked(out / ".lock", temporary=True):  # another run of the same folder waits
        # Of features that are another program's nothing is known.
        made = {"method": FOREIGN} if is_foreign(out) else {"method": method.name, **method.settings}
        claim(out, made, {**rules, "photos": digests})
        extract_photos(
            folder, digests, cameras, method, out, lambda done: progress("extraction", done, len(names))
        )
        check_source(out, FEATURES_FILE, (MATCHES_FILE, DATABASE_FILE, *MODELS))
        pairs = choose_pairs(names, out, pairing)
        match_photos(pairs, method, out, lambda done: progress("matching", done, len(pairs)))
        check_source(out, MATCHES_FILE, (DATABASE_FILE, *MODELS))
        seconds = {}
        for stage, name in (("extraction", FEATURES_FILE), ("matching", MATCHES_FILE)):
            with hdf5.open_hdf5(out / name) as file:
                seconds[stage] = float(file.attrs.get("seconds", 0))
        verified = functools.partial(_verify, cameras, out, pairs, method, progress)
        seconds["verification"] = _timed(out / DATABASE_FILE, verified)
        seconds["mapping"] = _timed(
            out / MODEL_FOLDER, lambda: _map(folder, out, len(names), poses, progress)
        )
        chosen = best_model(out)
        if refine and chosen.name != REFINED_FOLDER:
            chosen = out / REFINED_FOLDER
            shutil.rmtree(chosen, ignore_errors=True)  # of another model
        if chosen.name == REFINED_FOLDER:
            moving = functools.partial(_refine, folder, out, poses is not None, progress)
            seconds["refinement"] = _timed(chosen, moving)
        model = read_model(chosen)
        model.export_PLY(out / "points.ply")
        draw_model(model, out / "model.png")
        result = Result(
            figures(model, len(names)), len(pairs), len(verified_pairs(out / DATABASE_FILE)), seconds
        )
        write_json(out / "report.json", dataclasses.asdict(result))
        return result


def choose_pairs(names: Sequence[str], out: Path, pairing: str) -> list[Pair]:
    """The pairs of photos to match, written to ``out/pairs.txt``; global descriptors to ``out/global.h5``."""
    words, vectors = describe_photos(out / FEATURES_FILE, names)
    with hdf5.replacing(out / GLOBAL_FILE) as file:
        for name, vector in zip(names, vectors, strict=True):
            file[f"{name}/global_descriptor"] = vector
    with hdf5.taking_place(out / WORDS_FILE) as partial, partial.open("wb") as file:
        np.save(file, words)
    if pairing == "auto":
        pairing = "exhaustive" if len(names) <= EXHAUSTIVE else "retrieval"
    if pairing == "retrieval":
        pairs = retrieved(names, vectors, previews(out / FEATURES_FILE, names))
    elif pairing in ("exhaustive", "sequential"):
        pairs = exhaustive(names) if pairing == "exhaustive" else sequential(names)
    else:
        pairs = listed(names, Path(pairing))
    with hdf5.taking_place(out / PAIRS_FILE) as partial:
        partial.write_text("".join(_pair_lines(pairs)), encoding="utf-8")
    return pairs


def describe_photos(features: Path, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Visual words learned on the photos, and a global descriptor of each, one a row.

    Raises:
        InputError: no photo has a feature.
    """
    with hdf5.open_hdf5(features) as file:
        shown = [name for name in names if len(hdf5.read_keypoints(file, name))]
        if not shown:
            raise InputError(f"none of the {len(names)} photographs shows anything: no features were found")
        sampled = shown[:: -(-len(shown) // SAMPLED)]
        # Some are read twice, for all photos' descriptors may not fit into memory.
        words = learn_words(
            np.concatenate([hdf5.read_features(file, name).descriptors[:SAMPLES] for name in sampled])
        )
        vectors = [global_descriptor(hdf5.read_features(file, name).descriptors, words) for name in names]
    return words, np.stack(vectors)


def previews(features: Path, names: Sequence[str]) -> Callable[[int, int], int]:
    """The agreement of photos i and j by a preview of their matches, each pair matched once."""
    with hdf5.open_hdf5(features) as file:
        # Half precision: 0.4 MB a photo.
        best = [hdf5.read_features(file, name).descriptors[:PREVIEWED].astype(np.float16) for name in names]

    @functools.cache
    def agreement(i: int, j: int) -> int:
        return preview(best[i].astype(np.float32), best[j].astype(np.float32))

    return agreement


def _check_photos(folder: Path, names: Sequence[str], reference: Path) -> None:
    """Raise InputError if a photo that a COLMAP model names is not in the folder."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(names)} photographs of the model in {reference}, "
            f"such as {missing[0]}; give the folder that the model's names are relative to"
        )


def _pair_lines(pairs: Iterable[Pair]) -> Iterable[str]:
    return (f"{one} {two}\n" for one, two in pairs)


def _camera_lines(cameras: dict[str, Any], poses: dict[str, Any]) -> Iterable[str]:
    """All that is taken of a reference model, a photo a line."""
    for name, camera in cameras.items():
        known = camera.model.name, camera.width, camera.height, camera.params.tolist()
        yield f"{name} {known} {poses[name].matrix().tolist()}\n"


def _digest(lines: Iterable[str]) -> str:
    return "sha256 " + hashlib.sha256("".join(lines).encode()).hexdigest()


def _verify(
    cameras: dict[str, Any], out: Path, pairs: Sequence[Pair], method: Method, progress: Progress
) -> None:
    with hdf5.open_hdf5(out / FEATURES_FILE) as features, hdf5.open_hdf5(out / MATCHES_FILE) as matches:
        build_database(
            out / DATABASE_FILE,
            cameras,
            features,
            matches,
            pairs,
            method.min_inliers,
            lambda: progress("verification", 1, len(pairs)),
        )


def _map(folder: Path, out: Path, count: int, poses: dict[str, Any] | None, progress: Progress) -> None:
    if poses is None:
        build_model(out / DATABASE_FILE, folder, out / MODEL_FOLDER, lambda: progress("mapping", 1, count))
    else:
        triangulate(out / DATABASE_FILE, folder, out / MODEL_FOLDER, poses)


def _refine(folder: Path, out: Path, known: bool, progress: Progress) -> None:
    model = read_model(out / MODEL_FOLDER)
    with replacing_folder(out / REFINED_FOLDER) as partial:
        refine_tracks(model, folder, known, functools.partial(progress, "refinement"))
        model.write(partial)
        (partial / ORIGIN_FILE).write_text(model_digest(out / MODEL_FOLDER) + "\n")


def _timed(made: Path, make: Callable[[], Any]) -> float:
    """Seconds that it takes to make what is at a path; those it once took if it is there."""
    clock = made.with_name(made.name + ".seconds")
    if not made.exists():
        start = time.perf_counter()
        make()
        clock.write_text(f"{time.perf_counter() - start:.3f}\n")
    return float(clock.read_text()) if clock.exists() else 0.0
