"""``d2feat reconstruct``, ``d2feat localize``, and what ``d2feat eval`` says of reconstructions."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import D2FeatError, InputError
from ..feature2d import create
from ..model import DEFAULT
from ..options import Model, Multiscale, Provider, check_folder_of
from ..terminal import figure_table, stage_progress
from .layout import DATABASE_FILE, FEATURES_FILE, MODEL_FOLDER, SIFT_FOLDER, best_model

if TYPE_CHECKING:
    from .localize import Localized
    from .reconstruct import Result

FeatureCount = Annotated[int, typer.Option(min=1, help="features a photo, at most; for SIFT alike")]
Reconstruction = Annotated[Path, typer.Argument(metavar="MODEL", help="folder of d2feat reconstruct")]

NFEATURES = 4000

console = Console(highlight=False)


def reconstruct(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="folder of photographs of one scene")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the results; made if missing")],
    pairs: Annotated[
        str, typer.Option(help="auto, exhaustive, sequential, retrieval, or a text file of pairs of names")
    ] = "auto",
    cameras: Annotated[
        Path | None, typer.Option(help="COLMAP model whose cameras are known; only points are computed")
    ] = None,
    own_cameras: Annotated[
        bool,
        typer.Option(
            "--own-cameras",
            help="a camera for each photograph whose EXIF does not tell; else those of one size share one",
        ),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="also OUT/refined, a more exact model: points' places refined by the photographs' pixels",
        ),
    ] = False,
    sift: Annotated[bool, typer.Option(help="with COLMAP's SIFT, too, in OUT/sift")] = True,
    nfeatures: FeatureCount = NFEATURES,
    model: Model = DEFAULT,
    multiscale: Multiscale = False,
    provider: Provider = "auto",
) -> None:
    """Find the cameras of PHOTOS and a sparse model of the scene; go on with it if it was stopped."""
    from . import methods
    from .database import count_sharing
    from .reconstruct import reconstruct as run
    from .stages import is_foreign

    detector = create(nfeatures, scales=None if multiscale else (1.0,), model=model, provider=provider)
    runs = [(methods.d2net(detector), out)]
    if sift:
        runs.append((methods.sift(nfeatures), out / SIFT_FOLDER))
    results: dict[str, Any] = {}
    for method, folder in runs:
        with stage_progress() as progress:
            bars: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in bars:  # noqa: B023  (called within the loop's turn)
                    bars[stage] = progress.add_task(f"{method.name}: {stage}", total=total)  # noqa: B023
                progress.update(bars[stage], advance=done)  # noqa: B023

            try:
                result = run(
                    photos, folder, method, pairs, advance, cameras, own_cameras=own_cameras, refine=refine
                )
                results[methods.FOREIGN if is_foreign(folder) else method.name] = result
            except D2FeatError as error:
                if method.name != methods.SIFT:
                    raise
                console.print(f"{method.name}: {error}", markup=False, soft_wrap=True)
    console.print(_table(results))
    console.print(
        "images: registered / all; points: in space; observed: how often in images;\n"
        "track: mean length; error: of reprojection, mean; pairs: verified / matched"
    )
    if cameras is None and (sharing := count_sharing(out / DATABASE_FILE)):
        console.print(
            f"{sharing} photographs whose EXIF tells no focal length are taken for those of one camera a "
            "size; if they are of several, reconstruct with --own-cameras, in another folder",
            soft_wrap=True,
        )
    console.print(
        f"wrote {out}: COLMAP's model is {best_model(out)}; see {out / 'model.png'}",
        soft_wrap=True,
        markup=False,
    )


def localize(
    folder: Reconstruction,
    queries: Annotated[
        list[Path] | None, typer.Argument(metavar="QUERY...", help="photographs of the same scene")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="text file of queries: NAME MODEL WIDTH HEIGHT PARAMS...")
    ] = None,
    photos: Annotated[Path, typer.Option(help="folder that the names in the list are relative to")] = Path(),
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="text file of poses: NAME QW QX QY QZ TX TY TZ")
    ] = None,
    nfeatures: Annotated[int | None, typer.Option(min=1, help="features a photo, at most")] = None,
    model: Model = DEFAULT,
    multiscale: Annotated[
        bool | None, typer.Option("--multiscale/--single-scale", help="also at smaller sizes")
    ] = None,
    provider: Provider = "auto",
) -> None:
    """Find the cameras of QUERY photographs against the reconstruction in MODEL.

    The network, the number of features and the scales are the reconstruction's, unless they are given.
    Photographs that cannot be read are reported and skipped; the exit code is then 1.
    """
    from . import methods
    from .localize import Map, benchmark_line, localize_photos, read_queries

    if out is not None:
        check_folder_of(out)
    wanted = dict.fromkeys(queries or []) | ({} if listed is None else read_queries(listed, photos))
    if not wanted:
        raise InputError("name photographs to localise, or a list of them with --list")

    asked: dict[str, Any] = {"provider": provider}
    if nfeatures is not None:
        asked["nfeatures"] = nfeatures
    if multiscale is not None:
        asked["scales"] = None if multiscale else (1.0,)
    skipped = 0
    with Map(folder) as place:
        made = {"nfeatures": NFEATURES, "scales": (1.0,), **place.settings}
        method = methods.d2net(methods.detector_of(made, model, **asked))
        poses = localize_photos(place, wanted, method, photos)
        with _open_lines(out) as file:
            for found in poses:
                file.write(benchmark_line(found))
                console.print(_outcome(found), soft_wrap=True)
                skipped += found.error is not None
    if out is not None:
        console.print(f"wrote {out}", markup=False, soft_wrap=True)
    if skipped:
        raise typer.Exit(1)


def eval_night(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="folder of photographs by day")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to write")],
    light: Annotated[float, typer.Option(min=0.0, max=1.0, help="what is left of it, at most")] = 0.35,
) -> None:
    """Write PHOTOS to another folder with every second one darkened as by night, to reconstruct them."""
    from .night import darken_half

    dark = darken_half(photos, out, light)
    console.print(f"wrote {out}; by night: {', '.join(dark)}", markup=False, soft_wrap=True)


def eval_localization(folder: Reconstruction) -> None:
    """Localise each photo of the reconstruction in MODEL against the rest; with SIFT's, if it is there."""
    from .leave_one_out import leave_one_out
    from .methods import D2NET, D2NET_MATCHING, FOREIGN, SIFT, SIFT_MATCHING
    from .stages import is_foreign

    table = figure_table(
        "method", "photos", "found", "rotation, deg", "90 %", "position, %", "90 % ", "inliers"
    )
    # Features are read from the reconstruction: nothing is extracted, only the rules of matching matter.
    rules = {D2NET: (folder, D2NET_MATCHING), SIFT: (folder / SIFT_FOLDER, SIFT_MATCHING)}
    for name, (place, matching) in rules.items():
        if name == SIFT and not (place / MODEL_FOLDER).is_dir():
            continue
        try:
            with console.status(f"{name}: leaving out one photo at a time"):
                errors = leave_one_out(place, matching)
        except InputError as error:
            console.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)
            continue
        rotation, position = (
            np.array([getattr(error, of) for error in errors]) for of in ("rotation", "position")
        )
        cells = [
            f"{np.percentile(values, share, method='higher') * scale:.3f}"
            for values, scale in ((rotation, 1), (position, 100))
            for share in (50, 90)
        ]
        found = int(np.isfinite(rotation).sum())
        inliers = f"{np.median([error.inliers for error in errors]):.0f}"
        shown = FOREIGN if is_foreign(place) else name
        table.add_row(shown, str(len(errors)), str(found), *cells, inliers)
    if not table.row_count:
        raise InputError(f"{folder} has no method whose photos could be left out")
    table.caption = "medians and 90th percentiles; position: % of the greatest distance between two cameras"
    console.print(table)


def eval_retrieval(folder: Reconstruction) -> None:
    """Share of the verified pairs of an exhaustive reconstruction in MODEL that retrieval finds."""
    from .. import hdf5
    from .database import verified_pairs
    from .pairs import exhaustive, retrieved
    from .reconstruct import describe_photos, previews
    from .retrieval import recall

    # COLMAP makes a database that is missing.
    verified = verified_pairs(folder / DATABASE_FILE) if (folder / DATABASE_FILE).is_file() else {}
    if not verified:
        raise InputError(
            f"{folder} has no verified pair of photographs that retrieval could find; "
            "reconstruct photographs that overlap, with --pairs exhaustive"
        )
    with hdf5.open_hdf5(folder / FEATURES_FILE) as file:
        names = hdf5.image_names(file)
        extraction = float(file.attrs.get("seconds", np.nan))  # unknown of features that were brought
    start = time.perf_counter()
    _, vectors = describe_photos(folder / FEATURES_FILE, names)
    seconds = time.perf_counter() - start
    everything = len(exhaustive(names))
    agreement = previews(folder / FEATURES_FILE, names)
    table = figure_table("neighbours", "pairs", "of all", "verified pairs found", "their inliers", names=0)
    for count in range(1, len(names)):
        pairs = retrieved(names, vectors, agreement, count)
        inliers = sum(verified.get(pair, 0) for pair in pairs) / sum(verified.values())
        found = recall(pairs, verified)
        row = len(pairs), f"{len(pairs) / everything:.3f}", f"{found:.3f}", f"{inliers:.3f}"
        table.add_row(str(count), *map(str, row))
        if found == 1:
            break
    console.print(f"{len(names)} photos, {everything} pairs, {len(verified)} verified")
    console.print(f"global descriptors: {seconds:.1f} s, {seconds / extraction:.1%} of the extraction's time")
    console.print(table)


def _open_lines(path: Path | None) -> TextIO:
    """A text file in which each line is safe once it is written; without a path, nowhere.

    Raises:
        InputError: it cannot be written.
    """
    if path is None:
        return io.StringIO()
    try:
        return path.open("w", buffering=1, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _outcome(found: "Localized") -> str:
    """What is said of one query, in rich's markup."""
    if found.error is not None:
        return f"[red]skipped[/red] {escape(f'{found.name}: {found.error}')}"
    centre = "no pose" if found.pose is None else str(np.round(found.pose.inverse().translation, 3))
    return escape(f"{found.name}: {found.inliers} of {found.correspondences} inliers, {centre}")


def _table(results: "dict[str, Result]") -> Table:
    """The paper's table (section 5.2), one method a row."""
    table = figure_table("method", "images", "points", "observed", "track", "error", "pairs", "time")
    for name, result in results.items():
        figures = result.figures
        table.add_row(
            name,
            f"{figures.registered} / {figures.images}",
            str(figures.points),
            str(figures.observations),
            f"{figures.track_length:.2f}",
            f"{figures.reprojection_error:.2f} px",
            f"{result.verified} / {result.pairs}",
            f"{sum(result.seconds.values()):.0f} s",
        )
    return table
