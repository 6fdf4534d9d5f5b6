"""Fetch the original authors' checkpoints and convert them; nothing else in d2feat touches the network."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .conversion import cache_errors, needed, needed_export
from .errors import InputError, ModelError
from .model import OFFICIAL, cache_folder

BASE_URL: Final = "https://dusmanu.com/files/d2-net/"
"""Where the authors of D2-Net publish their checkpoints (README of github.com/mihaidusmanu/d2-net)."""

COORDINATES: Final = ("opencv", "upstream")

LICENCE_NOTE: Final = (
    "D2-Net's code is under the BSD 3-Clause Clear licence (github.com/mihaidusmanu/d2-net); its authors "
    "state no licence for these weights, which derive from VGG16 trained on ImageNet and, but for d2_ots, "
    "were trained further on MegaDepth. Whether your use is allowed is for you to judge."
)


@dataclass(frozen=True)
class Download:
    """What `download` did.

    Attributes:
        model: the converted model file.
        checkpoint: the authors' file, kept beside it.
        sha256: of the checkpoint.
        known: whether this sum was on record from an earlier download, and so has been checked.
        fetched: whether the checkpoint came over the network now; False if it was in the cache.
    """

    model: Path
    checkpoint: Path
    sha256: str
    known: bool
    fetched: bool


def download(name: str, coordinates: str = "opencv", base_url: str = BASE_URL) -> Download:
    """Fetch the official checkpoint `name`, convert it, and put it where ``create(model=name)`` finds it.

    A checkpoint that is in the cache folder already, be it from an earlier download or put there by hand, is
    not fetched again. The authors publish no checksums: the sum of the first download is kept beside the
    file, and a file that differs from it later is refused.

    Args:
        name: one of `d2feat.model.OFFICIAL`.
        coordinates: "opencv" (true geometry) or "upstream" (the original's), see `export.geometry`.
        base_url: folder on a web server that holds ``<name>.pth``.

    Raises:
        InputError: `name` or `coordinates` is unknown.
        ModelError: the file cannot be fetched, has changed, or is not a D2-Net checkpoint; or a package
            that this needs is missing. The message says what to do.
    """
    if name not in OFFICIAL:
        raise InputError(f"no official model is named {name!r}; there are: {', '.join(OFFICIAL)}")
    if coordinates not in COORDINATES:
        raise InputError(f"coordinates must be one of {', '.join(COORDINATES)}, not {coordinates!r}")
    pooch, _ = needed("pooch"), needed("onnxscript")
    checkpoint_module, graph_module = (needed_export(part) for part in ("checkpoint", "graph"))

    folder = cache_folder()
    checkpoint, record = folder / f"{name}.pth", folder / f"{name}.pth.sha256"
    fetched = not checkpoint.is_file()
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        recorded = record.read_text(errors="replace").partition(" ")[0] if record.is_file() else None
    if fetched:
        _fetch(pooch, f"{base_url.rstrip('/')}/{name}.pth", checkpoint)
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    if recorded not in (None, sha256):
        if fetched:
            checkpoint.unlink()
        raise ModelError(
            f"{checkpoint.name} is not the file it was: its sha256 is {sha256}, that of the first "
            f"download was {recorded}. If you trust the new one, delete {record} and {checkpoint} and "
            "download again"
        )
    try:
        loaded = checkpoint_module.read_checkpoint(checkpoint)
    except checkpoint_module.CheckpointError as error:
        if fetched:
            checkpoint.unlink()
        raise ModelError(f"what came as {checkpoint.name} cannot be used: {error}") from error
    with cache_errors(folder):
        model = graph_module.save_model(
            graph_module.build_graph(loaded, coordinates), folder / f"{name}.onnx"
        )
        record.write_text(f"{sha256}  {checkpoint.name}\n")
    return Download(model, checkpoint, sha256, recorded is not None, fetched)


def _fetch(pooch: Any, url: str, path: Path) -> None:
    """The file at `url` to `path`, whole or not at all."""
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
    except OSError as error:  # which the errors of the HTTP library are, too
        raise ModelError(
            f"cannot fetch {url}. With a browser or on another machine, download that file, put it at "
            f"{path}, and run this command again. The reason: {error}"
        ) from error
