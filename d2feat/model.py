"""Model files: where they are and what they must say of themselves (docs/model-format.md)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import ModelError

CONTRACT: Final = "1"
"""Version of the model contract that this package runs."""

FRAMES: Final = "frames"
"""The contract of models for frames of one size, which `d2feat.FrameExtractor` runs."""

DEFAULT: Final = "auto"
"""`FAST` where the processor is good at it and no GPU is used, `EXACT` elsewhere."""

EXACT: Final = "d2net"
FAST: Final = "d2net-int8"

OFFICIAL: Final = ("d2_tf", "d2_ots", "d2_tf_no_phototourism")
"""Checkpoints of the original authors, to be had by ``d2feat download``."""

_REQUIRED: Final = ("name", "version", "weights_sha256", "head", "coordinates", "channels", "licence")


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself.

    Attributes:
        name, version, licence, weights_sha256: as the file says.
        head: "fine" or "paper".
        coordinates: "opencv" or "upstream".
        channels: elements of a descriptor.
    """

    name: str
    version: str
    licence: str
    weights_sha256: str
    head: str
    coordinates: str
    channels: int


def bundled_folder() -> Path:
    """Folder of the models that come with the package: in the wheel, or beside it in a checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "onnx_models"


def cache_folder() -> Path:
    """Folder of downloaded and converted models; the environment variable D2FEAT_CACHE overrides it.

    Raises:
        ModelError: it is not set, and the user has no home folder.
    """
    chosen = os.environ.get("D2FEAT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    usual = os.environ.get({"win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME"))
    if usual and sys.platform != "darwin":
        return Path(usual) / "d2feat"
    inside = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / inside / "d2feat"
    except RuntimeError:
        raise ModelError("there is no home folder for models; let D2FEAT_CACHE name another") from None


def _folders() -> Iterator[Path]:
    """Where models are, bundled ones first."""
    yield bundled_folder()
    with contextlib.suppress(ModelError):  # those that are bundled need none
        yield cache_folder()


def find_model(model: str | os.PathLike[str]) -> Path:
    """Path of a model given by name (bundled or downloaded) or by path.

    Raises:
        ModelError: there is none; the message says what there is and what to do.
    """
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str) or not name:
        raise ModelError(f"model must be a name or a path, not {model!r}")
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"no model file at {path}")
        return path.resolve()
    for folder in _folders():
        path = folder / f"{name}.onnx"
        if path.is_file():
            return path
    if name in OFFICIAL:
        raise ModelError(
            f"the official model {name!r} is not here yet; fetch it with: d2feat download {name}"
        )
    known = ", ".join(available_models()) or "none"
    raise ModelError(
        f"no model named {name!r}; there are: {known}. A file is given by its path, ending in .onnx"
    )


def is_path(model: str) -> bool:
    """Whether a model is given by the path of its file, and not by its name."""
    return model.endswith(".onnx") or os.sep in model


def available_models() -> dict[str, Path]:
    """Name and path of every model at hand, bundled ones first."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*.onnx")):
            found.setdefault(path.stem, path)
    return found


def read_info(properties: dict[str, str], path: Path) -> ModelInfo:
    """Check the metadata of a model file.

    Raises:
        ModelError: it is not a model of ours, or of a newer contract.
    """
    if properties.get("contract") == FRAMES:
        raise ModelError(f"{path} is a model for frames of one size: d2feat.FrameExtractor takes it")
    missing = [key for key in ("contract", *_REQUIRED) if key not in properties]
    if missing:
        raise ModelError(
            f"{path} is an ONNX model, but not one of d2feat's: its metadata lacks {', '.join(missing)}. "
            "Make one with: d2feat export --weights FILE --out model.onnx"
        )
    if properties["contract"] != CONTRACT:
        raise ModelError(
            f"{path} keeps contract {properties['contract']}, this d2feat runs contract {CONTRACT}; "
            "export the model again or upgrade d2feat"
        )
    try:
        channels = int(properties["channels"])
    except ValueError:
        raise ModelError(f"{path} says channels = {properties['channels']!r}, not a whole number") from None
    values = {key: properties[key] for key in _REQUIRED if key != "channels"}
    return ModelInfo(channels=channels, **values)
