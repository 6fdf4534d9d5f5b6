"""Command line: ``python -m export --weights FILE --out FILE``, ``python -m export verify FILE``."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from .checkpoint import Checkpoint, read_checkpoint
from .fixed import build_frames, parse_size
from .geometry import COORDINATES, Coordinates
from .graph import build_graph, save_model
from .opencv import build_native
from .photographs import read_photographs

CALIBRATION: Final = 32
"""Photographs that the ranges of an eight-bit model are taken from."""

LARGEST: Final = 320 * 480
"""Pixels that they are made smaller to, if they have more."""

app = typer.Typer(add_completion=False, help="Export D2-Net checkpoints to ONNX, and verify the result.")
console = Console()


@app.callback(invoke_without_command=True)
def export(
    context: typer.Context,
    weights: Annotated[Path | None, typer.Option(help="checkpoint, ours or an official d2_*.pth")] = None,
    out: Annotated[Path | None, typer.Option(help="model file to write")] = None,
    coordinates: Annotated[
        str, typer.Option(help="opencv (true geometry) or upstream (the original's)")
    ] = "opencv",
    name: Annotated[str | None, typer.Option(help="the model's name; the checkpoint's by default")] = None,
    version: Annotated[
        str | None, typer.Option(help="of the weights; the checkpoint's by default, or 1")
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(help="quantise to eight bits, by the first 32 photographs of this folder or tar"),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="compute the network in half precision, for GPUs")
    ] = False,
    target: Annotated[
        str,
        typer.Option(help="onnxruntime; frames: batches of one size; opencv: a model for OpenCV 5's classes"),
    ] = "onnxruntime",
    contract: Annotated[
        str, typer.Option(help="of the target opencv: aliked (sub-pixel) or disk")
    ] = "aliked",
    size: Annotated[
        str, typer.Option(help="of the targets frames and opencv: width and height of the images")
    ] = "640x480",
    keypoints: Annotated[int, typer.Option(help="of the targets frames and opencv: how many, always")] = 2048,
    batch: Annotated[int, typer.Option(help="of the target frames: images at a time")] = 8,
) -> None:
    """Write the checkpoint WEIGHTS as one ONNX graph to OUT."""
    if context.invoked_subcommand:
        return
    if weights is None or out is None:
        raise typer.BadParameter("--weights and --out are both needed")
    if coordinates not in COORDINATES:
        raise typer.BadParameter(f"--coordinates is one of {', '.join(COORDINATES)}, not {coordinates}")
    if target not in ("onnxruntime", "frames", "opencv"):
        raise typer.BadParameter(f"--target is onnxruntime, frames or opencv, not {target}")
    if target != "onnxruntime" and (int8 is not None or coordinates != "opencv"):
        raise typer.BadParameter(f"--target {target} takes neither --int8 nor --coordinates")
    if contract != "aliked" and target != "opencv":
        raise typer.BadParameter("--contract goes with --target opencv")
    if half and (int8 is not None or target == "opencv"):
        raise typer.BadParameter("--half goes with neither --int8 nor --target opencv")
    with _errors_said():
        if target == "opencv":
            checkpoint = _named(weights, name, version)
            path = save_model(build_native(checkpoint, parse_size(size), keypoints, contract), out)  # type: ignore[arg-type]
        elif target == "frames":
            checkpoint = _named(weights, name, version)
            path = save_model(build_frames(checkpoint, parse_size(size), keypoints, batch, half=half), out)
        else:
            path = export_checkpoint(weights, out, coordinates, name, int8, version, half)  # type: ignore[arg-type]
    console.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, markup=False)


@app.command()
def verify(model: Annotated[Path, typer.Argument(help="model file that this package wrote")]) -> None:
    """Compare MODEL with the formulas, written literally, on five photographs at three sizes."""
    from .verify import verify_model

    table = Table("image", "size", "scales", "keypoints", "same", "descriptors", "")
    failed = 0
    with _errors_said():
        for row in verify_model(model):
            failed += not row.passed
            size = f"{row.size[1]} x {row.size[0]}"
            scales = " ".join(f"{scale:g}" for scale in row.scales)
            verdict = "ok" if row.passed else "FAILED"
            cells = (str(row.keypoints), f"{row.same:.2%}", f"{row.descriptor_error:.1e}", verdict)
            table.add_row(row.image, size, scales, *cells)
            console.print(
                f"{row.image} {size} at {scales}: {row.same:.2%} of the keypoints, {verdict}", highlight=False
            )
    console.print(table)
    if failed:
        console.print(f"{failed} comparisons failed", style="red")
        raise typer.Exit(1)


@contextlib.contextmanager
def _errors_said() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        stderr = Console(stderr=True, highlight=False)
        stderr.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(1) from None


def export_checkpoint(
    weights: str | Path,
    out: str | Path,
    coordinates: Coordinates = "opencv",
    name: str | None = None,
    int8: Path | None = None,
    version: str | None = None,
    half: bool = False,
) -> Path:
    """Export the checkpoint at `weights` to `out`; what ``python -m export`` does.

    With `int8` the network is quantised, calibrated on the photographs that are there; with `half` it
    computes in half precision.

    Raises:
        FileNotFoundError, CheckpointError: there is no D2-Net checkpoint at `weights`.
        FileNotFoundError, ValueError: there are no photographs at `int8`, or a damaged tar file.
    """
    checkpoint = _named(weights, name, version)
    calibration = None if int8 is None else map(_small, itertools.islice(read_photographs(int8), CALIBRATION))
    model = build_graph(checkpoint, coordinates, calibration=calibration, half=half)
    return save_model(model, out)


def _small(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photograph, made smaller if it is large: memory grows with its pixels, 6 GB at 1280 x 960."""
    factor = math.sqrt(LARGEST / photograph[..., 0].size)
    if factor >= 1:
        return photograph
    height, width = (max(1, round(factor * side)) for side in photograph.shape[:2])
    return np.asarray(cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _named(weights: str | Path, name: str | None, version: str | None) -> Checkpoint:
    """The checkpoint, under another name and version where these are given."""
    checkpoint = read_checkpoint(weights)
    given = {"name": name, "version": version}
    checkpoint.metadata.update({key: value for key, value in given.items() if value is not None})
    return checkpoint


if __name__ == "__main__":
    app()
