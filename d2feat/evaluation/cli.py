"""``d2feat eval``: compare d2feat with OpenCV's features where the truth is known."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import D2FeatError
from ..options import Multiscale
from ..sfm.cli import eval_localization, eval_night, eval_retrieval
from ..terminal import stage_progress
from .methods import Method, open_methods
from .pose import evaluate_poses, pose_table, read_pose_pairs
from .report import draw_curves, tables, write_json
from .sequences import ImageSequence, evaluate, read_sequences
from .synthetic import make_sequences

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Compare d2feat with OpenCV's features on image sequences whose homographies are known.",
)
app.command("localization")(eval_localization)
app.command("night")(eval_night)
app.command("retrieval")(eval_retrieval)

Methods = Annotated[
    str,
    typer.Option(
        help="comma-separated: sift, sift-faint, rootsift, orb, akaze, names or paths of d2feat models"
    ),
]
Budget = Annotated[int, typer.Option(min=0, help="features an image, best by response; 0 for all")]
Models = Annotated[
    list[str] | None, typer.Option(help="a further d2feat model, name or path; may be repeated")
]
Rotations = Annotated[int, typer.Option(help="rotations that d2feat models pool descriptors over")]
Refine = Annotated[
    bool, typer.Option("--refine", help="refine the positions of all methods' matches (d2feat.refine)")
]
Output = Annotated[
    Path | None, typer.Option("-o", "--out", help="folder for evaluation.json and mma.png; made if missing")
]

METHODS = "d2net,sift,rootsift,orb"


@app.command()
def sequences(
    folder: Annotated[Path, typer.Argument(help="folder of sequences, or one of them", metavar="DIR")],
    methods: Methods = METHODS,
    nfeatures: Budget = 2048,
    model: Models = None,
    multiscale: Multiscale = True,
    rotations: Rotations = 1,
    refine: Refine = False,
    only: Annotated[str, typer.Option(help="comma-separated names of sequences; all by default")] = "",
    out: Output = None,
) -> None:
    """Compare on the sequences in DIR: SEQUENCE/1.ppm to 6.ppm (or any format) and H_1_2 to H_1_6.

    Or, as the Oxford affine sequences are published, img1.ppm to img6.ppm and H1to2p to H1to6p.
    """
    found, names = read_sequences(folder, _split(only)), [*_split(methods), *(model or [])]
    _run(found, str(folder), names, nfeatures, multiscale, rotations, refine, out)


@app.command()
def synthetic(
    photos: Annotated[str, typer.Argument(help="folder of photographs or tar files, a tar file, or skimage")],
    methods: Methods = METHODS,
    nfeatures: Budget = 2048,
    model: Models = None,
    multiscale: Multiscale = True,
    rotations: Rotations = 1,
    refine: Refine = False,
    count: Annotated[int, typer.Option(min=1, help="photographs to take")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the choice and of all changes")] = 0,
    out: Output = None,
) -> None:
    """Compare on sequences made from PHOTOS, with exact truth: change of light (i_) and of viewpoint (v_)."""
    made = make_sequences(photos, count, seed)
    data = f"{len(made)} photographs of {photos}, seed {seed}"
    _run(made, data, [*_split(methods), *(model or [])], nfeatures, multiscale, rotations, refine, out)


@app.command()
def pose(
    pairs: Annotated[
        Path, typer.Argument(help="list of pairs as SuperGlue's evaluation has", metavar="PAIRS")
    ],
    images: Annotated[
        Path | None, typer.Option(help="folder of the images; that of PAIRS by default")
    ] = None,
    methods: Methods = "d2net,sift,orb",
    nfeatures: Budget = 2048,
    model: Models = None,
    multiscale: Multiscale = True,
    rotations: Rotations = 1,
    refine: Refine = False,
) -> None:
    """Compare relative poses estimated on PAIRS, lines of NAME0 NAME1 ROT0 ROT1 K0 K1 T_0TO1."""
    console = Console(highlight=False)
    found = read_pose_pairs(pairs)
    opened = _open([*_split(methods), *(model or [])], nfeatures, multiscale, rotations, refine, console)[0]
    with stage_progress() as progress:
        task = progress.add_task("", total=len(found) * len(opened))
        folder = pairs.parent if images is None else images
        results = evaluate_poses(found, folder, opened, lambda: progress.update(task, advance=1))
    console.print(pose_table(results))


def _run(
    found: list[ImageSequence],
    data: str,
    names: list[str],
    nfeatures: int,
    multiscale: bool,
    rotations: int,
    refine: bool,
    out: Path | None,
) -> None:
    console = Console(highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    methods, skipped = _open(names, nfeatures, multiscale, rotations, refine, console)
    with stage_progress() as progress:
        images = sum(1 + len(sequence.homographies) for sequence in found)
        task = progress.add_task("", total=images * len(methods))
        evaluation = evaluate(
            found,
            methods,
            nfeatures,
            skipped,
            lambda what: progress.update(task, advance=1, description=what),
            data,
        )
    try:
        if out is not None:  # first, for the output may go to a program that reads a part of it
            write_json(evaluation, out / "evaluation.json")
            draw_curves(evaluation, out / "mma.png")
    finally:
        for table in tables(evaluation):
            console.print(table)
    if out is not None:
        console.print(f"wrote {out / 'evaluation.json'} and {out / 'mma.png'}", markup=False, soft_wrap=True)


def _open(
    names: list[str], nfeatures: int, multiscale: bool, rotations: int, refine: bool, console: Console
) -> tuple[list[Method], dict[str, str]]:
    methods, skipped = open_methods(names, nfeatures, None if multiscale else (1.0,), rotations, refine)
    for name, reason in skipped.items():
        console.print(f"{name} is left out: {reason}", markup=False)
    if not methods:
        raise D2FeatError("no method is left to evaluate")
    return methods, skipped


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
