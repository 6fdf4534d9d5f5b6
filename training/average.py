"""``python -m training.average BEFORE AFTER --out FILE``: mean of the weights before and after fine-tuning.

Training for one thing (turned scenes) costs something of another (blur). Between the two networks' weights
lie networks that have most of both (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), as
long as one was trained from the other.
"""

import pickle
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from export.checkpoint import read_checkpoint

from .trainer import write_checkpoint


def average(before: Path, after: Path, out: Path, share: float = 0.5) -> None:
    """Write the checkpoint (1 - share) * before + share * after, with what `after` says of itself.

    Args:
        before: what `after` was trained from: the run's start.pth, since training may have changed channels
            of what it was given.
        after: checkpoint of a run of `training`.
        share: of `after`, 0 to 1.

    Raises:
        FileNotFoundError, CheckpointError: one of them is no checkpoint.
        ValueError: the share is out of range, or they are different networks.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share must be 0 to 1, not {share}")
    start, end = (read_checkpoint(path).net for path in (before, after))
    first, second = start.state_dict(), end.state_dict()
    if {name: value.shape for name, value in first.items()} != {n: v.shape for n, v in second.items()}:
        raise ValueError(f"{before} and {after} are networks of different widths")
    try:
        content = torch.load(after, map_location="cpu", weights_only=True)
        said = content["d2feat"]
    except (pickle.UnpicklingError, KeyError):
        raise ValueError(f"{after} is no checkpoint of a run of `python -m training`") from None
    content["model"] = {name: torch.lerp(first[name], second[name], share).half() for name in first}
    said["averaged"] = {"with": before.name, "share": share}
    write_checkpoint(content, out)


def main(
    before: Annotated[Path, typer.Argument(help="What AFTER was trained from, OUT/start.pth.")],
    after: Annotated[Path, typer.Argument(help="Checkpoint of a run, OUT/d2net.pth.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    share: Annotated[float, typer.Option(help="Of AFTER, 0 to 1.")] = 0.5,
) -> None:
    """Average the weights of a network before and after fine-tuning."""
    try:
        average(before, after, out, share)
    except (OSError, ValueError) as error:
        Console().print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
