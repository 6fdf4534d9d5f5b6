"""``python -m training --photos DIR --minutes 60 --out run/``."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from export.checkpoint import CheckpointError

from . import trainer
from .config import Config
from .photos import read_photos
from .scenes import SceneError, read_scenes


def main(
    photos: Annotated[Path, typer.Option(help="Folder of photographs or tar shards, or one shard.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there is continued.")],
    scenes: Annotated[
        Path | None,
        typer.Option(
            help="Folder of scenes (of `python -m training.sfm`, or MegaDepth) to train on as well."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time budget.")] = 60.0,
    steps: Annotated[int, typer.Option(help="Step budget, in place of the time.")] = 0,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    limit: Annotated[int, typer.Option(help="Read only so many photographs.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any value of training.config.Config, as weights.match=0.5; repeat."),
    ] = None,
) -> None:
    """Train D2-Net on photographs; OUT/d2net.pth is then ready for `python -m export`."""
    console = Console()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = Config().override(**{"minutes": minutes, "steps": steps, **_changes(set_ or [])})
        _try(device)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out is a folder; there is a file {out}")
        collection = read_photos(photos, limit=limit)
        places = read_scenes(scenes) if scenes else []
        run = trainer.Trainer(collection, config, out, scenes=places, init=init, device=device)
    except (ValueError, OSError, CheckpointError, trainer.TrainingError) as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    console.print(
        f"{len(run.photos)} photographs, {len(run.held_out)} held out, {len(places)} scenes, on {device}; "
        f"from step {run.step}",
        soft_wrap=True,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1.0)

        def show(progress: trainer.Progress) -> None:
            row = progress.row
            bar.update(
                task, completed=progress.done, description=f"step {row['step']:.0f} loss {row['loss']:.4f}"
            )
            for kind, judgement in progress.judged.items():
                console.print(f"step {row['step']:.0f} {kind}: MMA@1/@3 {judgement}")

        try:
            path = run.run(show)
        except (trainer.TrainingError, SceneError, OSError) as error:
            console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
    console.print(f"wrote {path}")


def _try(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be had here: {reason}") from None


def _changes(assignments: list[str]) -> dict[str, Any]:
    changes = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {assignment!r}")
        try:
            changes[name.replace(".", "__")] = json.loads(value)
        except json.JSONDecodeError:
            changes[name.replace(".", "__")] = value
    return changes


if __name__ == "__main__":
    typer.run(main)
