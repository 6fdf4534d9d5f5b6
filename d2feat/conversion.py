"""Models made here out of other models, and kept in the cache folder."""

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, ModelError
from .model import DEFAULT, EXACT, cache_folder, find_model


def converted(kind: str, model: str | os.PathLike[str], name: str, build: Callable[[Any], Any]) -> Path:
    """The file `name` of the cache's folder for this kind and model, built now if it is not there.

    Args:
        kind: of the new model, for the folder's name and the error's message.
        model: name or path of a model in single precision; "auto" is `EXACT`.
        name: of the file, without its ending.
        build: a checkpoint to an ONNX model.

    Raises:
        InputError: the model or what `build` was given does not suit.
        ModelError: there is no such model, it is no checkpoint, or a package that this needs is missing.
    """
    source = find_model(EXACT if model == DEFAULT else model)
    path = cache_folder() / f"{kind}-{source.stem}-{_digest(source)}" / f"{name}.onnx"
    if not path.is_file():
        checkpoints, graphs = needed_export("checkpoint"), needed_export("graph")
        try:
            content = build(checkpoints.read_checkpoint(source))
        except (ValueError, TypeError) as error:
            raise InputError(f"cannot make a {kind} model of {source.name}: {error}") from error
        with cache_errors(path.parent):
            graphs.save_model(content, path)
    return path


def needed_export(module: str) -> Any:
    """A module of the package that converts: inside of this one in a wheel, beside it in a checkout.

    Raises:
        ModelError: it needs a package that is not installed.
    """
    package = f"{__package__}.export" if _export_folder().parent == Path(__file__).parent else "export"
    return needed(f"{package}.{module}")


def _export_folder() -> Path:
    here = Path(__file__).parent
    return here / "export" if (here / "export").is_dir() else here.parent / "export"


def _digest(model: Path) -> str:
    """Of the model and of the code that converts it: what another version made may be of another kind."""
    digest = hashlib.sha256(model.read_bytes())
    for module in sorted(_export_folder().glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:12]


def needed(module: str) -> Any:
    """A module of another package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"converting checkpoints and models needs a package that is not to be had ({error}); "
            "pip install 'd2feat[export]'"
        ) from error


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Errors of reading and writing there, as `ModelError`."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"cannot write to the cache folder {folder}: {error}; "
            "the environment variable D2FEAT_CACHE names another one"
        ) from error
