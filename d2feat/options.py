"""Options that several commands share. How many features is not among them: its meaning differs."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="name of a model (see: d2feat models), or path of an .onnx file")]
Multiscale = Annotated[
    bool,
    typer.Option(
        "--multiscale/--single-scale",
        help="also at 0.71, 0.5, 0.35 and 0.25 of the size (not the authors' models)",
    ),
]
Provider = Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt")]
