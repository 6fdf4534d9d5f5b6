"""Compare an exported graph with the literal reference of the tests, keypoint by keypoint."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from .checkpoint import network_weights
from .photographs import shipped_photographs
from .winograd import WINOGRAD

SIZES: Final = ((240, 320), (333, 447), (480, 640))
"""Height and width of the images compared; one of them fits no power of two."""

PYRAMIDS: Final = ((1.0,), (0.25, 0.35, 0.71), (0.5, 1.0, 2.0))

POSITION_TOLERANCE: Final = 0.01  # pixels
DESCRIPTOR_TOLERANCE: Final = 1e-3
REQUIRED: Final = 0.995


@dataclass(frozen=True)
class Agreement:
    """How well graph and reference agree on one image.

    Attributes:
        image: its name.
        size: (height, width).
        scales: of the pyramid.
        keypoints: number of the reference.
        same: share of the keypoints of both that the other has within `POSITION_TOLERANCE`; where the graph
            has two ways to convolve, the worse of them, here and below.
        descriptor_error: largest difference of an element of these keypoints' descriptors.
        graph_seconds, reference_seconds: wall time, the graph's of one way in the mean.
    """

    image: str
    size: tuple[int, int]
    scales: tuple[float, ...]
    keypoints: int
    same: float
    descriptor_error: float
    graph_seconds: float
    reference_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the graph does what the formulas say."""
        return self.same >= REQUIRED and self.descriptor_error <= DESCRIPTOR_TOLERANCE


def verify_model(
    path: str | Path,
    images: dict[str, np.ndarray] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    pyramids: Sequence[tuple[float, ...]] = PYRAMIDS,
) -> Iterator[Agreement]:
    """Compare the model at `path` with `tests.reference` on every image, size and pyramid.

    Raises:
        ModuleNotFoundError: outside a checkout, where the tests are not to be had.
        ValueError: the model is not in single precision.
    """
    import cv2

    from d2feat.processor import usable_processors
    from d2feat.runtime import start

    try:
        from tests.reference import extract
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the formulas are among the tests, so only a checkout can verify") from None
    try:
        model = onnx.load(path)
    except DecodeError:
        raise ValueError(f"{path} is no ONNX model, or a part of one") from None
    said = {entry.key: entry.value for entry in model.metadata_props}
    if said.get("precision") != "fp32":
        raise ValueError(f"{path} is not a model of ours in single precision: only those follow the formulas")
    weights = network_weights(model)
    started = start(Path(path), "cpu", usable_processors())
    session = started.session
    given: list[dict[str, np.ndarray]] = [{}]
    if WINOGRAD in started.optional:
        given.append({WINOGRAD: np.array(True)})  # as `d2feat.create` runs it on processors
    for name, picture in (shipped_photographs() if images is None else images).items():
        for height, width in sizes:
            image = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            for scales in pyramids:
                feeds = {"image": image, "pyramid": np.array(scales, np.float64)}
                begin = time.perf_counter()
                ways = [session.run(None, {**feeds, **way}) for way in given]
                middle = time.perf_counter()
                expected = extract(
                    image,
                    weights,
                    head=said["head"],
                    descriptor_relu=said["descriptor_relu"] == "true",
                    coordinates=said["coordinates"],
                    scales=scales,
                )
                end = time.perf_counter()
                wanted = expected.keypoints.numpy(), expected.scales.numpy(), expected.descriptors.numpy()
                same, errors = zip(*(compare((out[0], out[2], out[3]), wanted) for out in ways), strict=True)
                yield Agreement(
                    name,
                    (height, width),
                    scales,
                    len(expected.keypoints),
                    min(same),
                    max(errors),
                    (middle - begin) / len(ways),
                    end - middle,
                )


def compare(
    found: tuple[np.ndarray, np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """Share of the keypoints that both sets have, and the largest difference of their descriptors.

    Args:
        found, expected: N x 2 keypoints in pixels, N scales, N x C descriptors.
    """
    if len(found[0]) == 0 or len(expected[0]) == 0:
        return float(len(found[0]) == len(expected[0])), 0.0
    # Levels are compared with themselves: put them far apart.
    there = np.column_stack([expected[0], 1e4 * expected[1]])
    here = np.column_stack([found[0], 1e4 * found[1]])
    nearest, distance = _nearest(here, there)
    reverse = _nearest(there, here)[1]
    hits = distance <= POSITION_TOLERANCE
    share = (hits.sum() + (reverse <= POSITION_TOLERANCE).sum()) / (len(here) + len(there))
    error = np.abs(found[2][hits] - expected[2][nearest[hits]]).max(initial=0.0)
    return float(share), float(error)


def _nearest(queries: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.empty(len(queries), np.int64)
    distance = np.empty(len(queries))
    for start in range(0, len(queries), 512):
        part = queries[start : start + 512]
        squared = ((part[:, None] - points[None]) ** 2).sum(2)
        index[start : start + 512] = squared.argmin(1)
        distance[start : start + 512] = np.sqrt(squared.min(1))
    return index, distance
