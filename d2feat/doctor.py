"""What d2feat runs on here, and what is wrong with it. No probe raises: a failure is a line of the report."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from .errors import ModelError
from .model import DEFAULT, available_models, cache_folder
from .processor import cgroup_quota, usable_processors
from .providers import CPU, CUDA
from .runtime import import_runtime
from .session import open_session

OPENCV: Final = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
"""Distributions that all install the one module cv2."""

RUNTIMES: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
)
"""Distributions that all install the one module onnxruntime."""

LIBRARIES: Final = {
    "CUDA runtime": "cudart",
    "cuBLAS": "cublas",
    "cuFFT": "cufft",
    "cuDNN": "cudnn",
    "TensorRT": "nvinfer",
}
"""What ONNX Runtime's GPU providers load, by the library's name."""

Fact = tuple[str, str]


@dataclass(frozen=True)
class Section:
    """One part of the report: a title, and (label, value) lines."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """All that was found."""

    sections: tuple[Section, ...]
    problems: tuple[Problem, ...]


def examine(model: str = DEFAULT) -> Report:
    """Look at this installation and machine; takes as long as loading `model`."""
    probes: dict[str, Callable[[], list[Fact]]] = {
        "Software": software,
        "OpenCV": opencv,
        "ONNX Runtime": runtime,
        "GPU libraries": gpu_libraries,
        "Processors": processors,
        "Models": models,
        "Running": lambda: running(model),
    }
    sections = tuple(Section(title, tuple(_facts(probe))) for title, probe in probes.items())
    return Report(sections, tuple(problems(model)))


def software() -> list[Fact]:
    """Versions of d2feat, Python, NumPy, and the platform."""
    from . import __version__

    return [
        ("d2feat", f"{__version__} at {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} at {sys.executable}"),
        ("NumPy", np.__version__),
        ("platform", platform.platform()),
    ]


def opencv() -> list[Fact]:
    """OpenCV's version and the distributions that claim to have installed it."""
    return [("cv2", f"{cv2.__version__} at {Path(cv2.__file__).parent}"), *_distribution_facts(OPENCV)]


def runtime() -> list[Fact]:
    """ONNX Runtime's version, its distributions, and the providers it is built with."""
    module = import_runtime()
    return [
        ("onnxruntime", f"{module.__version__} at {Path(module.__file__).parent}"),
        *_distribution_facts(RUNTIMES),
        ("built with", ", ".join(module.get_available_providers())),
    ]


def gpu_libraries() -> list[Fact]:
    """Where CUDA, cuDNN and TensorRT are: known to the system's loader, or in NVIDIA's wheels."""
    facts = []
    for label, library in LIBRARIES.items():
        places = find_library(library)
        facts.append((label, ", ".join(places) if places else "not found"))
    return facts


def find_library(name: str) -> list[str]:
    """Where the shared library `name` is to be had, in the order in which it would be looked for."""
    places = []
    known = ctypes.util.find_library(name)
    if known:
        places.append(known)
    patterns = (f"lib{name}.so*", f"{name}64_*.dll", f"{name}_*.dll")
    for folder in dict.fromkeys(Path(entry) for entry in sys.path if entry):
        for package in ("nvidia/*/lib", "nvidia/*/bin", "tensorrt_libs"):
            places += [
                str(path) for pattern in patterns for path in sorted(folder.glob(f"{package}/{pattern}"))
            ]
    return list(dict.fromkeys(places))


def processors() -> list[Fact]:
    """Processors of the machine, and what affinity and the control group leave of them."""
    quota = cgroup_quota()
    facts = [("of the machine", str(os.cpu_count()))]
    if hasattr(os, "sched_getaffinity"):
        facts.append(("by affinity", str(len(os.sched_getaffinity(0)))))
    facts.append(("by cgroup quota", "no quota" if quota is None else f"{quota:g}"))
    facts.append(("threads d2feat uses", str(usable_processors())))
    return facts


def models() -> list[Fact]:
    """The models at hand, and what their files say of themselves."""
    facts = [(name, describe_model(path)) for name, path in available_models().items()]
    try:
        cache = str(cache_folder())
    except ModelError as error:
        cache = str(error)
    return [*facts, ("cache folder", cache)]


def describe_model(path: Path) -> str:
    """One line on the model file at `path`; says so if it cannot be loaded."""
    try:
        info = open_session(path, "cpu").info
    except Exception as error:
        return f"{path}: {_one_line(error)}"
    size = path.stat().st_size / 1e6
    return (
        f"version {info.version}, {info.head} head, {info.channels} channels, {info.coordinates} "
        f"coordinates, weights {info.weights_sha256[:12]}, licence {info.licence}, {size:.1f} MB at {path}"
    )


def running(model: str) -> list[Fact]:
    """On what the model really runs with provider "auto"."""
    session = open_session(model)
    return [("model", session.info.name), ("provider", session.provider), ("threads", str(session.threads))]


def problems(model: str = DEFAULT) -> list[Problem]:
    """What is wrong here, each with its remedy; empty if all is well."""
    found = []
    for check in (doubled_distributions, lambda: not_on_the_gpu(model)):
        try:
            found += check()
        except Exception as error:
            found.append(Problem("a check failed", _one_line(error)))
    return found


def doubled_distributions() -> list[Problem]:
    """Distributions installed together that overwrite each other's files."""
    found = []
    for module, names in (("cv2", OPENCV), ("onnxruntime", RUNTIMES)):
        installed = list(_distributions(names))
        if len(installed) > 1:
            found.append(
                Problem(
                    f"{' and '.join(installed)} are installed together and overwrite each other's {module}",
                    f"pip uninstall {' '.join(installed)}, then install the one you want",
                )
            )
    return found


def not_on_the_gpu(model: str) -> list[Problem]:
    """Why the model does not run at all, or not on the GPU that there is."""
    try:
        session = open_session(model)
    except Exception as error:
        return [Problem(f"model {model!r} does not run", _one_line(error))]
    if session.provider != CPU:
        return []
    if CUDA in import_runtime().get_available_providers():
        missing = [
            label for label in ("CUDA runtime", "cuBLAS", "cuDNN") if not find_library(LIBRARIES[label])
        ]
        return [
            Problem(
                "this ONNX Runtime is built for CUDA, and the model runs on the CPU"
                + (f"; not found: {', '.join(missing)}" if missing else ""),
                "see nvidia-smi for a device and its driver; "
                "pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries",
            )
        ]
    if _has_nvidia_device():
        return [
            Problem(
                "there is an NVIDIA GPU, and this ONNX Runtime is built without CUDA",
                "pip uninstall onnxruntime, then pip install 'd2feat[gpu]'",
            )
        ]
    return []


def _has_nvidia_device() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _distributions(names: Iterable[str]) -> dict[str, str]:
    """Version of each of these distributions that is installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _distribution_facts(names: Iterable[str]) -> list[Fact]:
    installed = ", ".join(f"{name} {version}" for name, version in _distributions(names).items())
    return [("installed by", installed or "none of pip's distributions")]


def _facts(probe: Callable[[], list[Fact]]) -> list[Fact]:
    try:
        return probe()
    except Exception as error:
        return [("failed", _one_line(error))]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
