"""The command ``d2feat``: match two images, a demonstration, what this installation is, and models."""

import io
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from . import __version__, available_models, create
from .collection.cli import extract
from .conversion import needed_export
from .errors import InputError
from .evaluation.cli import app as evaluation
from .images import cv2_path, read_image
from .model import DEFAULT
from .options import Model, Multiscale, Provider, check_folder_of
from .sfm.cli import localize, reconstruct
from .terminal import figure_table

if TYPE_CHECKING:
    from .compare import Comparison
    from .images import Image

DRAWN = "coffee"
"""The demo's photograph that its picture shows."""


class Method(StrEnum):
    """What D2-Net can be compared with."""

    sift = "sift"


class Geometry(StrEnum):
    """Where the keypoints of a converted model lie."""

    opencv = "opencv"
    upstream = "upstream"


class _Group(TyperGroup):
    """Commands whose errors are one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (cv2.error, OSError) as error:
            line = " ".join(str(error).split())
            Console(stderr=True).print(
                f"error: {line}", style="red", markup=False, soft_wrap=True, highlight=False
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="D2-Net local features for OpenCV: match images, see the demo, examine this installation.",
)
app.add_typer(evaluation, name="eval")
app.command()(extract)
app.command()(reconstruct)
app.command()(localize)
console = Console(highlight=False)

NFeatures = Annotated[
    int, typer.Option(min=1, help="keep at most so many features an image, for every method")
]


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"d2feat {__version__}, OpenCV {cv2.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def match(
    first: Annotated[Path, typer.Argument(metavar="A", help="image file")],
    second: Annotated[Path, typer.Argument(metavar="B", help="image file of the same scene")],
    out: Annotated[Path, typer.Option("-o", "--out", help="picture to write")] = Path("matches.png"),
    vs: Annotated[Method | None, typer.Option(help="match with this method, too")] = None,
    nfeatures: NFeatures = 2048,
    model: Model = DEFAULT,
    multiscale: Multiscale = True,
    provider: Provider = "auto",
) -> None:
    """Match images A and B; print the inliers of a homography and of a fundamental matrix, draw them."""
    from .compare import compare
    from .drawing import draw_comparison, stack

    image1, image2 = read_image(first), read_image(second)
    check_writable(out)
    detectors = _detectors(nfeatures, model, multiscale, provider, sift=vs is Method.sift)
    results = [compare(method, detector, image1, image2) for method, detector in detectors.items()]
    table = figure_table("method", "features", "matches", "homography", "fundamental", "detect", "match")
    for result in results:
        table.add_row(
            result.method,
            f"{result.features[0]} + {result.features[1]}",
            str(result.matches),
            f"{len(result.homography)} inliers",
            f"{len(result.fundamental)} inliers",
            f"{result.detection_seconds:.2f} s",
            f"{result.matching_seconds:.2f} s",
        )
    try:  # the output may go to a program that reads a part of it
        write_image(out, stack([draw_comparison(image1, image2, result) for result in results]))
    finally:
        console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="picture to write")] = Path("demo.png"),
    photo: Annotated[
        list[str] | None, typer.Option(help="one of the demo's photographs; may be repeated; all by default")
    ] = None,
    nfeatures: NFeatures = 2048,
    model: Model = DEFAULT,
    multiscale: Multiscale = True,
    provider: Provider = "auto",
) -> None:
    """Match photographs with themselves seen from elsewhere at night, where the true geometry is known.

    And a pair that two cameras took. D2-Net next to SIFT; needs scikit-image, for its photographs.
    """
    from .compare import compare
    from .demo import PHOTOGRAPHS, STEREO, load_pair
    from .drawing import draw_comparison, stack

    known = (*PHOTOGRAPHS, STEREO)
    names = tuple(photo or known)
    if not set(names) <= set(known):
        raise InputError(
            f"the demo's photographs are {', '.join(known)}; not {', '.join(set(names) - set(known))}"
        )
    check_writable(out)
    detectors = _detectors(nfeatures, model, multiscale, provider, sift=True)
    table = figure_table(
        "photograph", "method", "features", "matches", "inliers", "corner error", "time", names=2
    )
    drawn = DRAWN if DRAWN in names else names[0]
    for name in names:
        pair = load_pair(name)
        results = []
        for method, detector in detectors.items():
            with console.status(f"{name}: {method}"):
                results.append(compare(method, detector, pair.image1, pair.image2, pair.homography))
        for result in results:
            _add_demo_row(table, name, result)
        table.add_section()
        if name == drawn:
            picture = stack([draw_comparison(pair.image1, pair.image2, result) for result in results])
    try:
        write_image(out, picture)
    finally:
        console.print(table)
        console.print(
            "inliers: of a homography, within 3 px; * of a fundamental matrix, within 1 px\n"
            "corner error: mean distance between the image's corners under the homography\n"
            "found and under the true one"
        )


@app.command()
def doctor(model: Model = DEFAULT) -> None:
    """Say what this installation runs on, and what is wrong with it; exit code 1 if something is."""
    from .doctor import examine

    with console.status("examining"):
        report = examine(model)
    for section in report.sections:
        console.print(f"[bold]{section.title}[/bold]")
        for label, value in section.facts:
            console.print(f"  {escape(label)}: {escape(value)}", soft_wrap=True)
    console.print()
    for problem in report.problems:
        console.print(f"[red]problem[/red]: {escape(problem.what)}", soft_wrap=True)
        console.print(f"  remedy: {escape(problem.remedy)}", soft_wrap=True)
    if report.problems:
        raise typer.Exit(1)
    console.print("[green]no problems found[/green]")


@app.command()
def models() -> None:
    """List the models at hand, and those that can be downloaded."""
    from .doctor import describe_model
    from .model import OFFICIAL
    from .session import open_session

    at_hand = available_models()
    chosen = open_session(DEFAULT).path
    for name, path in at_hand.items():
        default = " (default here)" if path == chosen else ""
        console.print(f"[bold]{escape(name)}[/bold]{default}: {escape(describe_model(path))}", soft_wrap=True)
    for name in OFFICIAL:
        if name not in at_hand:
            console.print(
                f"{name}: the original authors'; fetch it with: d2feat download {name}", soft_wrap=True
            )


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="d2_tf, d2_ots or d2_tf_no_phototourism")],
    coordinates: Annotated[
        Geometry, typer.Option(help="opencv (true geometry) or upstream (the original's)")
    ] = Geometry.opencv,
) -> None:
    """Fetch a checkpoint of D2-Net's authors and convert it, for create(model=NAME) to use."""
    from . import download as downloads

    with console.status(f"fetching and converting {escape(name)}"):
        done = downloads.download(name, coordinates.value)
    origin = "fetched" if done.fetched else "was in the cache"
    check = (
        "as at the first download" if done.known else "noted, as the authors publish none to check against"
    )
    console.print(f"{done.checkpoint.name}: {origin}; sha256 {done.sha256} ({check})", soft_wrap=True)
    console.print(
        f"wrote {done.model}; use it with d2feat.create(model={name!r})", soft_wrap=True, markup=False
    )
    console.print(f"licence: {downloads.LICENCE_NOTE}", soft_wrap=True)


@app.command("export", context_settings={"ignore_unknown_options": True}, add_help_option=False)
def export_model(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="--weights FILE --out FILE ...")] = None,
) -> None:
    """Convert a checkpoint to a model; d2feat export --help lists its options. Needs the extra "export"."""
    needed_export("__main__").app(arguments or [], prog_name="d2feat export")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what it cannot
            stream.reconfigure(errors="backslashreplace")
    app()


def check_writable(path: Path) -> None:
    """Refuse a picture's path before the work and not after it.

    Raises:
        InputError: its folder is missing or its ending names no image format.
    """
    check_folder_of(path)
    if not path.suffix or not cv2.haveImageWriter(cv2_path(path)):
        raise InputError(f"cannot write {path}: its ending names no image format; .png and .jpg do")


def write_image(path: Path, image: "Image") -> None:
    """Write a picture and say so.

    Raises:
        InputError: it cannot be written.
    """
    if not cv2.imwrite(cv2_path(path), image):
        raise InputError(f"cannot write {path}")
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _detectors(nfeatures: int, model: str, multiscale: bool, provider: str, *, sift: bool) -> dict[str, Any]:
    """Detectors by the name of their method."""
    scales = None if multiscale else (1.0,)
    detectors: dict[str, Any] = {
        "D2-Net": create(nfeatures, scales=scales, model=model, provider=provider),
    }
    if sift:
        detectors["SIFT"] = cv2.SIFT_create(nfeatures)  # type: ignore[attr-defined]
    return detectors


def _add_demo_row(table: Table, name: str, result: "Comparison") -> None:
    if result.corner_error is None:
        inliers, error = f"{len(result.fundamental)}*", "-"
    else:
        inliers = str(len(result.homography))
        error = f"{result.corner_error:.2f} px" if math.isfinite(result.corner_error) else "none found"
    table.add_row(
        name,
        result.method,
        f"{result.features[0]} + {result.features[1]}",
        str(result.matches),
        inliers,
        error,
        f"{result.detection_seconds + result.matching_seconds:.2f} s",
    )
