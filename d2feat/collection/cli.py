"""``d2feat extract``: features, and matches, of whole collections of images."""

import itertools
import shutil
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from ..errors import InputError
from ..feature2d import D2Feature, session_of
from ..hdf5 import image_names, import_h5py, open_hdf5
from ..images import digest, is_utf8
from ..model import DEFAULT
from ..options import Model, Multiscale, Provider, check_folder_of
from ..pairs import Pair, check_flat_names, match_pairs, read_pairs
from .local import extract_local
from .names import find_images
from .parts import join_parts, parts_folder, still_to_do


class Engine(StrEnum):
    """Who does the work."""

    local = "local"
    ray = "ray"


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """The mean rate so far."""
        if not task.elapsed:
            return Text("")
        rate = task.completed / task.elapsed
        return Text(f"{rate:.2g} a second" if rate < 100 else f"{rate:.0f} a second")


console = Console(highlight=False)


def extract(
    sources: Annotated[
        list[Path], typer.Argument(help="images, folders of images, or .txt files with a path a line")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="file.h5, or with Ray folder.parquet")] = Path(
        "features.h5"
    ),
    nfeatures: Annotated[int, typer.Option(min=0, help="keep at most so many features an image")] = 2048,
    model: Model = DEFAULT,
    multiscale: Multiscale = True,
    max_edge: Annotated[int, typer.Option(help="make larger images smaller first; 0: no limit")] = 1600,
    tile: Annotated[int, typer.Option(help="extract larger images in tiles, at full resolution")] = 0,
    provider: Provider = "auto",
    match: Annotated[
        str, typer.Option(metavar="PAIRS", help="match, too: a file with two names a line, or: all")
    ] = "",
    engine: Annotated[Engine, typer.Option(help="on this machine, or on a Ray cluster")] = Engine.local,
    workers: Annotated[int, typer.Option(min=1, help="Ray: actors, each with a model")] = 2,
    gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs an actor")] = 0,
) -> None:
    """Extract the features of many images into one file, in hloc's layout.

    The same command again goes on where it was stopped or killed, and takes images that are new or changed.
    Images that cannot be read are reported and skipped; the exit code is then 1.
    """
    found = find_images(sources)
    images = {name: path for name, path in found.items() if is_utf8(name)}
    unnamed = [
        (ascii(name), "HDF5 and Parquet take UTF-8 names only") for name in found if name not in images
    ]
    parquet = out.suffix == ".parquet"
    if not parquet and out.suffix not in (".h5", ".hdf5"):
        raise InputError(f"cannot write {out}: its ending is none of .h5, .hdf5 and .parquet")
    if parquet and (engine is Engine.local or match):
        raise InputError("Parquet is written with --engine ray, and without --match")
    check_folder_of(out)
    if not parquet:
        import_h5py()
    if match not in ("", "all") and not Path(match).is_file():
        raise InputError(f"--match is a file of pairs or all; there is no file {match}")
    pairs = [] if match in ("", "all") else read_pairs(Path(match), {*images, *_held(out)})
    if match:
        check_flat_names(
            sorted({*images, *_held(out)}) if match == "all" else itertools.chain.from_iterable(pairs)
        )
    detector = D2Feature(
        nfeatures,
        scales=None if multiscale else (1.0,),
        maxEdge=max_edge,
        maxSumEdges=max_edge * 7 // 4,  # as create() has them
        model=model,
        provider=provider,
        # An actor is promised one processor.
        threads=1 if engine is Engine.ray else 0,
        tile=tile,
    )
    if parquet:
        failed = _to_parquet(detector, images, out, workers, gpus)
    else:
        failed = _to_hdf5(detector, images, out, engine, workers, gpus)
    failed += unnamed
    for name, why in failed:
        console.print(f"[red]skipped[/red] {escape(f'{name}: {why}')}", soft_wrap=True)
    matches = out.with_name(f"{out.stem}-matches{out.suffix}")
    if match:
        _match(out, matches, None if match == "all" else pairs)
    elif out.exists() and matches.exists() and matches.stat().st_mtime_ns < out.stat().st_mtime_ns:
        console.print(
            f"{matches} was made before {out} changed; --match makes it anew", soft_wrap=True, markup=False
        )
    if failed:
        raise typer.Exit(1)


def _match(out: Path, matches: Path, asked: list[Pair] | None) -> None:
    """Match pairs of images, None for all; those without features are named and left out."""
    held = _held(out)
    known = set(held)
    pairs = []
    for pair in itertools.combinations(held, 2) if asked is None else asked:
        if known.issuperset(pair):
            pairs.append(pair)
        else:
            console.print(f"[red]not matched[/red] {escape(' '.join(pair))}: no features", soft_wrap=True)
    if held:
        with _progress() as progress:
            task = progress.add_task("matching", total=len(pairs))
            for done in match_pairs(pairs, out, matches):
                progress.advance(task, done)
        console.print(f"wrote {matches}: {len(pairs)} pairs", soft_wrap=True, markup=False)


def _held(out: Path) -> list[str]:
    """Names of the images that a file of features holds; none of one that is not there yet."""
    if not out.exists():
        return []
    with open_hdf5(out) as file:
        return image_names(file)


def _to_hdf5(
    detector: D2Feature, images: dict[str, Path], out: Path, engine: Engine, workers: int, gpus: float
) -> list[tuple[str, str]]:
    settings, folder = _settings(detector), parts_folder(out)
    with console.status("comparing the images with those that are done"):
        todo = {name: images[name] for name in still_to_do(out, images, settings)}
    results: Iterable[tuple[str, str | None]]
    if not todo:
        results = ()
    elif engine is Engine.ray:
        from .ray_engine import extract_ray

        results = extract_ray(detector, todo, folder, settings, workers, gpus)
    else:
        results = extract_local(detector, todo, folder, settings)
    failed = []
    with _progress() as progress:
        task = progress.add_task("extracting", total=len(todo))
        for name, why in results:
            progress.advance(task)
            if why is not None:
                failed.append((name, why))
    # What `out` holds of a file that is no image now is of another; of a missing file it may still be right.
    held = join_parts(out, images, [name for name, _ in failed if digest(images[name])], settings)
    console.print(
        f"{len(todo) - len(failed)} of {len(images)} images extracted, "
        f"{len(images) - len(todo)} were done; {out} holds {held}",
        soft_wrap=True,
        markup=False,
    )
    return failed


def _to_parquet(
    detector: D2Feature, images: dict[str, Path], out: Path, workers: int, gpus: float
) -> list[tuple[str, str]]:
    from .ray_engine import extract_parquet

    if out.exists():
        raise InputError(f"{out} is there already; choose another -o, or remove it")
    try:
        with console.status("extracting"):
            failed = extract_parquet(detector, images, out, workers, gpus)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    console.print(f"wrote {out}: {len(images) - len(failed)} images", soft_wrap=True, markup=False)
    return failed


def _settings(detector: D2Feature) -> str:
    """How features are made, whatever the number of threads and the provider."""
    session = session_of(detector)
    return (
        f"model {session.info.name} {session.info.version} ({session.sha256[:12]}), "
        f"nfeatures {max(0, detector.getNFeatures())}, scales {detector.getScales()}, "
        f"maxEdge {max(0, detector.getMaxEdge())}, maxSumEdges {max(0, detector.getMaxSumEdges())}, "
        f"tile {detector.getTile()}"
    )


def _progress() -> Progress:
    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
    )
