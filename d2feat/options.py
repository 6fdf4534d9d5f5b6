"""Options that several commands share, and a check. How many features is none: its meaning differs."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError

Model = Annotated[str, typer.Option(help="name of a model (see: d2feat models), or path of an .onnx file")]
Multiscale = Annotated[
    bool,
    typer.Option(
        "--multiscale/--single-scale",
        help="also at 0.71, 0.5, 0.35 and 0.25 of the size (not the authors' models)",
    ),
]
Provider = Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt")]


def check_folder_of(path: Path) -> None:
    """Refuse a file to write before the work and not after it.

    Raises:
        InputError: its folder is missing.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}")
