"""Small photographs and detectors that the tests of the package share; none of this needs PyTorch."""

import os
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

import d2feat

# Some tests import the runtime before d2feat does. Its thread that reports to its maker opens a database and
# the network, and may hold a lock when a test forks.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MODEL = "d2net"
"""The default may be another one, by the processor; what is compared exactly is compared on this one."""


def create(*args: Any, **kwargs: Any) -> d2feat.D2Feature:
    """`d2feat.create` on one thread, so that nothing depends on the machine, and at one scale: quick."""
    if len(args) < 3:
        kwargs = {"scales": (1.0,), **kwargs}
    return d2feat.create(*args, **{"model": MODEL, "provider": "cpu", "threads": 1, **kwargs})


def photograph(name: str, size: tuple[int, int]) -> np.ndarray:
    """A photograph of scikit-image, BGR or grey as it is there, resized to (width, height)."""
    picture = getattr(data, name)()
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def frozen(image: np.ndarray) -> np.ndarray:
    """The image, read-only: no call may write into what it is given."""
    image.setflags(write=False)
    return image


def assert_same_keypoints(ours: tuple, theirs: tuple, tolerance: float = 0.0) -> None:
    """Every field of two tuples of `cv2.KeyPoint` is alike."""
    fields = [
        [(*one.pt, one.size, one.angle, one.response, one.octave, one.class_id) for one in some]
        for some in (ours, theirs)
    ]
    assert len(fields[0]) == len(fields[1])
    np.testing.assert_allclose(fields[0], fields[1], rtol=0, atol=tolerance)


def assert_same_features(
    ours: d2feat.Features,
    theirs: d2feat.Features,
    position: float = 0.0,
    descriptor: float = 0.0,
    score: float = 0.0,
) -> None:
    """Two `Features` are alike in every array, up to the tolerances; `score` is a relative one, on top."""
    assert ours.image_size == theirs.image_size
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours.keypoints, theirs.keypoints, rtol=0, atol=position)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=score, atol=descriptor)
    np.testing.assert_allclose(ours.scales, theirs.scales, rtol=1e-6)
    np.testing.assert_allclose(ours.descriptors, theirs.descriptors, rtol=0, atol=descriptor)


@pytest.fixture(scope="session")
def detector() -> d2feat.D2Feature:
    """A detector at one scale; tests that set a parameter make their own."""
    return create()


@pytest.fixture(scope="session")
def multiscale() -> d2feat.D2Feature:
    """A detector on the pyramid that is the default."""
    return create(scales=d2feat.MULTISCALE)


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    """A colour photograph, 112 x 84: a call costs about a tenth of a second."""
    return frozen(photograph("astronaut", (112, 84)))


@pytest.fixture(scope="session")
def other_image() -> np.ndarray:
    """Another colour photograph, of another size."""
    return frozen(photograph("chelsea", (120, 80)))


@pytest.fixture(scope="session")
def grey() -> np.ndarray:
    """A grey photograph, 112 x 84."""
    return frozen(photograph("camera", (112, 84)))


@pytest.fixture(scope="session")
def features(detector: d2feat.D2Feature, image: np.ndarray) -> d2feat.Features:
    """What `detector` finds in `image`."""
    found = detector.extract(image)
    assert len(found) > 50
    return found
