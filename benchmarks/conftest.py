"""Pictures and entrants that the benchmarks share, and the tables that a run ends with."""

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.model import OFFICIAL
from d2feat.processor import usable_processors
from export.photographs import shipped_photographs

from .report import print_tables

Run = Callable[[], Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for what takes long."""
    parser.addoption(
        "--heavy", action="store_true", help="large images at several scales, 2000 images in a row"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for."""
    if not config.getoption("--heavy"):
        for item in items:
            if "heavy" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="only with --heavy"))


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "heavy: takes minutes; run with --heavy")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was measured."""
    session = getattr(config, "_benchmarksession", None)
    found = [{"name": b.name, **b.extra_info} for b in getattr(session, "benchmarks", []) if b.extra_info]
    terminalreporter.write_line("")
    print_tables(found)


@pytest.fixture(scope="session")
def models() -> list[str]:
    """The models that come with the package or are at hand, but for the original authors'."""
    return [name for name in d2feat.available_models() if name not in OFFICIAL]


@pytest.fixture(scope="session")
def photo() -> Callable[[int, int], np.ndarray]:
    """A photograph of scikit-image at any (width, height)."""
    whole = shipped_photographs(("motorcycle",))["motorcycle"]
    return lambda width, height: cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="session")
def reference() -> Callable[[np.ndarray, tuple[float, ...]], Any]:
    """The literal D2-Net in PyTorch: upstream's algorithm, dense on all channels."""
    import onnx
    import torch

    from d2feat.model import find_model
    from export.checkpoint import network_weights
    from tests.reference import extract

    torch.set_num_threads(usable_processors())
    weights = network_weights(onnx.load(find_model("d2net")))

    @cache
    def weights_on(device: torch.device) -> dict[str, torch.Tensor]:
        return {
            key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in weights.items()
        }

    def run(image: np.ndarray, scales: tuple[float, ...]) -> Any:
        there = weights_on(torch.get_default_device())
        return extract(
            image, there, head="paper", descriptor_relu=True, coordinates="upstream", scales=scales
        )

    return run


@pytest.fixture(scope="session")
def opencv() -> dict[str, Any]:
    """OpenCV's own detectors, as far as this OpenCV has them, at 2048 features where they can be limited."""
    makers = {"SIFT": {"nfeatures": 2048}, "ORB": {"nfeatures": 2048}, "AKAZE": {}}
    return {
        name: getattr(cv2, f"{name}_create")(**options)
        for name, options in makers.items()
        if hasattr(cv2, f"{name}_create")
    }
