"""``python -m d2feat.legacy [--replace sift,surf] [--d2feat nfeatures=2000,model=d2net] app.py ARGS...``."""

import argparse
import ast
import builtins
import importlib.machinery
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import cv2

from . import install
from .spawned import VARIABLE


def main() -> None:
    """Install D2-Net in cv2's place and run the program as Python itself would."""
    parser = argparse.ArgumentParser(
        prog="python -m d2feat.legacy",
        description="Run a program that was written for OpenCV's detectors with D2-Net in their place.",
    )
    parser.add_argument(
        "--replace",
        metavar="METHODS",
        help="comma-separated: sift, surf, orb, akaze, kaze, brisk; by default sift and surf, and of the "
        "last three those that this OpenCV lacks",
    )
    parser.add_argument(
        "--d2feat",
        metavar="OPTIONS",
        default="",
        help="options of d2feat.create, such as nfeatures=2000,model=d2net,scales=(0.5,1,2)",
    )
    parser.add_argument("program", help="a Python file")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args()
    path = Path(given.program)
    try:
        options = parse_options(given.d2feat)
        install(given.replace, **options)
        with io.open_code(str(path.absolute())) as file:
            source = file.read()
    except cv2.error as error:
        parser.error(" ".join(str(error).split()))
    except OSError as error:
        parser.error(f"cannot read {path}: {error.strerror}")
    # Processes that multiprocessing spawns run d2feat.legacy.spawned first, which reads this.
    settings = {"program": str(path.absolute()), "replace": given.replace, "options": options}
    os.environ[VARIABLE] = json.dumps(settings)
    first = len(sys.argv) - len(given.args)
    # argparse swallows it.
    dashes = ["--"] if sys.argv[first - 1] == "--" and given.program != "--" else []
    sys.argv = [given.program, *dashes, *given.args]
    run(source, path)


def run(source: bytes, path: Path) -> None:
    """Run a program's source as ``__main__``, with its folder first on the path of modules."""
    module = types.ModuleType("__main__")
    module.__file__ = str(path.absolute())
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", module.__file__)
    # By this name multiprocessing has its children import the program.
    module.__spec__ = importlib.machinery.ModuleSpec(f"{__package__}.spawned", None)
    sys.modules["__main__"] = module
    package = str(Path(__file__).parents[2])
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    if package not in sys.path:
        sys.path.insert(1, package)  # d2feat was found in the working directory, and must be there again
    sys.excepthook = _print_program_frames
    exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)


def parse_options(text: str) -> dict[str, Any]:
    """Names and values of ``name=value,name=value``; values are Python's, or else words."""
    options = {}
    for part in filter(None, _split(text)):
        name, _, value = part.partition("=")
        try:
            options[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[name.strip()] = value.strip()
    return options


def _split(text: str) -> list[str]:
    """What commas separate, but for those within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not (depth or quote):
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _print_program_frames(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The program's own traceback, without the frames of this module that run it."""
    while (
        trace is not None and trace.tb_frame.f_globals.get("__spec__") is not sys.modules["__main__"].__spec__
    ):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    main()
