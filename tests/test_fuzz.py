"""Whatever is passed or read: a right result or a `cv2.error`, never another exception, a crash or a hang.

500 cases; D2FEAT_FUZZ=20000 in the environment makes as many. Damaged models are loaded in a process of its
own, for there a defect of ONNX Runtime would end the tests.
"""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import d2feat
from d2feat import onnx_file
from d2feat.model import bundled_folder
from tests.conftest import assert_same_features, create, photograph

CASES = int(os.environ.get("D2FEAT_FUZZ", "500"))
MODEL = bundled_folder() / "d2net-int8.onnx"
PICTURE = photograph("astronaut", (48, 40))

Detector = d2feat.D2Feature


def cases(share: float) -> Any:
    """Settings for a share of all the cases: the same ones every time, but in the long run."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        deadline=timedelta(seconds=120),
        derandomize="D2FEAT_FUZZ" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---- what callers pass

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(-3, 300), max_size=3),
    st.sampled_from(
        [object(), {}, (), np.int64(3), np.float32(2.5), 3j, cv2.UMat(), cv2.KeyPoint(), Path("x")]
    ),
)
dtypes = st.sampled_from(
    [np.uint8] * 12 + [np.int8, np.uint16, np.float32, np.float64, np.bool_, np.int64, object]
)


@st.composite
def arrays(draw: Any, channels: tuple[int, ...] = (0, 0, 3, 3, 3, 1, 2, 4, 5)) -> np.ndarray:
    """Arrays such as images are, of all shapes, contents and strides."""
    height, width = draw(st.integers(0, 48)), draw(st.integers(0, 48))
    depth = draw(st.sampled_from(channels))
    shape = (height, width, depth) if depth else (height, width)
    content = draw(st.sampled_from(["noise", "flat", "ramp", "photograph"]))
    if content == "photograph" and depth in (0, 3):
        values = PICTURE[:height, :width] if depth else PICTURE[:height, :width, 1]
    elif content == "flat":
        values = np.full(shape, draw(st.integers(0, 255)), np.uint8)
    elif content == "ramp":
        values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)
    else:
        values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8)
    values = values.astype(draw(dtypes))
    form = draw(
        st.sampled_from(["plain", "plain", "flipped", "strided", "Fortran", "read-only", "transposed"])
    )
    if form == "flipped":
        values = values[::-1, ::-1]
    elif form == "strided":
        values = values[::2, ::3]
    elif form == "Fortran":
        values = np.asfortranarray(values)
    elif form == "read-only":
        values.setflags(write=False)
    elif form == "transposed":
        values = values.T
    return values


numbers = st.one_of(st.floats(-5, 60), st.floats(width=32))
keypoint = st.builds(
    cv2.KeyPoint, numbers, numbers, st.one_of(st.floats(1, 64), st.floats(width=32)), st.just(-1.0), numbers
)
keypoints = st.one_of(
    st.lists(keypoint, max_size=6), st.lists(st.one_of(keypoint, anything), max_size=3), anything
)
images = st.one_of(arrays(), arrays(), arrays(), anything)
masks = st.one_of(st.none(), st.none(), arrays((0, 0, 0, 1, 3)), st.just("fitting"), anything)
scales = st.one_of(
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=3),
    st.lists(st.floats(1e-320, 3), min_size=1, max_size=3),
    st.sampled_from([[1e-300], [1e300], [5e-324, 1.0]]),
    anything,
)
whole = st.one_of(st.integers(-3, 50), anything)

call = st.one_of(
    st.tuples(st.just("detectAndCompute"), images, masks),
    st.tuples(st.just("detectAndCompute"), images, masks, st.one_of(anything, arrays()), st.booleans()),
    st.tuples(st.just("detectAndComputeBatch"), st.one_of(st.lists(images, max_size=2), images)),
    st.tuples(st.just("detect"), images, masks),
    st.tuples(st.just("detect"), st.lists(images, max_size=2), st.one_of(st.lists(masks, max_size=2), masks)),
    st.tuples(st.just("compute"), images, keypoints),
    st.tuples(
        st.just("compute"),
        st.lists(images, max_size=2),
        st.one_of(st.lists(keypoints, max_size=2), keypoints),
    ),
    st.tuples(st.just("extract"), images, masks),
    st.tuples(
        st.just("describe"),
        images,
        st.one_of(st.lists(st.tuples(numbers, numbers, st.floats(0.01, 9)), max_size=4), anything, arrays()),
    ),
    st.tuples(st.just("setNFeatures"), whole),
    st.tuples(st.just("setScoreThreshold"), st.one_of(st.floats(0, 0.5), anything)),
    st.tuples(st.just("setScales"), scales),
    st.tuples(st.just("setMaxEdge"), whole),
    st.tuples(st.just("setMaxSumEdges"), whole),
    st.tuples(st.just("read"), anything),
    st.tuples(st.just("write"), st.sampled_from([None, 3, [], b"x", object()])),
    st.tuples(st.sampled_from(["empty", "clear", "defaultNorm", "descriptorSize", "__repr__", "__reduce__"])),
)


@pytest.fixture(scope="module")
def before() -> d2feat.Features:
    return create(model="d2net-int8").extract(PICTURE)


@cases(0.6)
@given(st.lists(call, min_size=1, max_size=4))
def test_calls_in_any_order_with_any_arguments(before: d2feat.Features, calls: list[tuple[Any, ...]]) -> None:
    detector = create(model="d2net-int8")
    for name, *arguments in calls:
        if name in ("detectAndCompute", "extract", "detect") and isinstance(arguments[1], str):
            shape = getattr(arguments[0], "shape", ())[:2]
            arguments[1] = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
        try:
            result = getattr(detector, name)(*arguments)
        except cv2.error:
            continue
        if name == "extract":
            check(detector, result, *arguments)
        elif name == "describe":
            assert result.dtype == np.float32
            assert np.isfinite(result).all()
        elif name == "detectAndCompute" and not isinstance(arguments[0], cv2.UMat):
            found, descriptors = result
            assert (descriptors is None) == (len(found) == 0)
            assert descriptors is None or descriptors.shape == (len(found), 512)
    for name, value in (("NFeatures", 0), ("ScoreThreshold", 0), ("Scales", (1,)), ("MaxEdge", 0)):
        getattr(detector, f"set{name}")(value)
    detector.setMaxSumEdges(0)
    assert_same_features(detector.extract(PICTURE), before)


def check(detector: Detector, found: d2feat.Features, image: np.ndarray, mask: Any) -> None:
    """What must hold of every result."""
    count = len(found)
    assert found.descriptors.shape == (count, 512)
    assert found.descriptors.dtype == np.float32
    assert count <= detector.getNFeatures() or detector.getNFeatures() <= 0
    assert (found.scores > detector.getScoreThreshold()).all() or detector.getScoreThreshold() <= 0
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    last = np.array(image.shape[1::-1]) - 0.5
    assert ((found.keypoints >= -0.5) & (found.keypoints <= last)).all()
    if isinstance(mask, np.ndarray) and mask.size and count:
        column, row = (found.keypoints + 0.5).astype(int).clip(0, last.astype(int)).T
        assert mask.reshape(image.shape[:2])[row, column].all()


parameters = st.fixed_dictionaries(
    {},
    optional={
        "nfeatures": whole,
        "scoreThreshold": st.one_of(st.floats(), anything),
        "scales": scales,
        "maxEdge": whole,
        "model": st.one_of(st.just("d2net-int8"), anything),
        "provider": st.one_of(st.just("cpu"), anything),
        "threads": st.one_of(st.integers(-1, 2), anything),
    },
)


@cases(0.1)
@given(parameters)
def test_parameters_of_create(arguments: dict[str, Any]) -> None:
    try:
        made = d2feat.create(**{"model": "d2net-int8", "provider": "cpu", "threads": 1, **arguments})
        assert made.getNFeatures() == arguments.get("nfeatures", 0)
    except cv2.error:
        pass


descriptors = st.one_of(arrays((0,)), arrays((0,)), anything)


@cases(0.1)
@given(
    descriptors,
    descriptors,
    st.one_of(st.none(), st.floats(), anything),
    st.one_of(st.none(), st.floats(), anything),
)
def test_matching(first: Any, second: Any, ratio: Any, distance: Any) -> None:
    try:
        found = d2feat.match(first, second, ratio=ratio, maxDistance=distance)
    except cv2.error:
        return
    assert all(m.queryIdx < len(first) and m.trainIdx < len(second) and m.distance >= 0 for m in found)


# ---- what is read


@st.composite
def damages(draw: Any) -> list[tuple[float, bytes, int]]:
    """Where (0 to 1), bytes to write there, and how many there were."""
    where = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(where, st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=8))


def damaged(
    content: bytes, damage: list[tuple[float, bytes, int]], places: np.ndarray | None = None
) -> bytes:
    changed = bytearray(content)
    for where, new, old in damage:
        at = int(where * len(changed)) if places is None else int(places[int(where * len(places))])
        changed[at : at + old] = new
    return bytes(changed)


def structure(content: bytes) -> np.ndarray:
    """Offsets of all bytes of a model but the weights, which are nearly all and whose damage has no form."""
    base = np.frombuffer(content, np.uint8).ctypes.data
    weights = np.zeros(len(content), bool)
    todo = [("model", memoryview(content))]
    while todo:
        kind, message = todo.pop()
        for number, value in onnx_file._fields(message):
            inside = onnx_file._INSIDE[kind].get(number)
            if inside in onnx_file._INSIDE and isinstance(value, memoryview):
                todo.append((inside, value))
            elif kind == "tensor" and isinstance(value, memoryview) and len(value) > 64:
                start = np.frombuffer(value, np.uint8).ctypes.data - base
                weights[start : start + len(value)] = True
    return np.flatnonzero(~weights)


READER = """
import sys
import cv2, numpy as np, d2feat
image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
for line in sys.stdin:
    try:
        detector = d2feat.create(model=line.strip(), provider="cpu", threads=1)
        detector.detectAndCompute(image)
        detector.describe(image, [[5, 5, 1]])
        print("used", flush=True)
    except cv2.error:
        print("refused", flush=True)
"""


class Reader:
    """Another process that loads and uses models."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def verdict(self, path: Path) -> str:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", READER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], 100)[0]:
            self.process.kill()
            return "hangs"
        return self.process.stdout.readline().strip() or f"ended with {self.process.wait()}"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


@pytest.fixture(scope="module")
def model() -> tuple[bytes, np.ndarray]:
    content = MODEL.read_bytes()
    return content, structure(content)


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe cannot be waited for there")
@cases(0.08)
@given(damages(), st.one_of(st.none(), st.floats(0, 1)))
def test_damaged_models(
    reader: Reader,
    model: tuple[bytes, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
    damage: Any,
    cut: Any,
) -> None:
    content, places = model
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    changed = damaged(content, damage, places)
    path.write_bytes(changed if cut is None else changed[: int(cut * len(changed))])
    assert reader.verdict(path) in ("used", "refused")


@cases(0.08)
@given(damages())
def test_damaged_files_of_parameters(tmp_path_factory: pytest.TempPathFactory, damage: Any) -> None:
    for suffix in ("yml", "xml", "json"):
        path = tmp_path_factory.getbasetemp() / f"parameters.{suffix}"
        create(model="d2net-int8").save(str(path))
        path.write_bytes(damaged(path.read_bytes(), damage))
        with contextlib.suppress(cv2.error):
            create(model="d2net-int8").read(str(path))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    from export.trunk import D2Net

    path = tmp_path_factory.mktemp("checkpoint") / "x.pth"
    torch.save({"model": D2Net((2, 2, 2, 2)).state_dict()}, path)
    return path


@cases(0.07)
@given(damages())
def test_damaged_checkpoints(
    checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory, damage: Any
) -> None:
    from export.checkpoint import CheckpointError, read_checkpoint

    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(damaged(checkpoint.read_bytes(), damage))
    with contextlib.suppress(CheckpointError):
        read_checkpoint(path)


@cases(0.07)
@given(st.one_of(st.binary(max_size=70), st.text(max_size=70).map(str.encode)), st.binary(max_size=30))
def test_damaged_cache(tmp_path_factory: pytest.TempPathFactory, record: bytes, checkpoint: bytes) -> None:
    pytest.importorskip("torch", reason="the export extra is not installed")
    from d2feat.download import download

    folder = tmp_path_factory.getbasetemp()
    (folder / "d2_tf.pth.sha256").write_bytes(record)
    (folder / "d2_tf.pth").write_bytes(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2FEAT_CACHE", str(folder))
        with pytest.raises(d2feat.ModelError):
            download("d2_tf")


# ---- what this has found


def test_masks_that_are_no_sequence() -> None:
    with pytest.raises(d2feat.InputError, match="as many masks"):
        create(model="d2net-int8").detect([], np.array(0, np.uint8))


def test_parameters_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "parameters.yml"
    detector = create(model="d2net-int8")
    detector.save(str(path))
    path.write_bytes(path.read_bytes().replace(b"Feature2D.D2", b"Feature2D\x80D2"))
    with pytest.raises(d2feat.InputError, match="not hold text"):
        detector.read(str(path))


def test_a_model_whose_metadata_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    content = MODEL.read_bytes()
    assert content.count(b"Apache-2.0") == 1
    path.write_bytes(content.replace(b"Apache-2.0", b"Apache\x802.0"))
    with pytest.raises(d2feat.ModelError, match="can't decode"):
        create(model=path)


def test_a_byte_before_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """The unpickler of torch then fails by an IndexError."""
    from export.checkpoint import CheckpointError, read_checkpoint

    path = tmp_path / "x.pth"
    path.write_bytes(b"." + checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match="plain tensors"):
        read_checkpoint(path)


@pytest.mark.parametrize("record", [b"", b"\x80"], ids=["empty", "no text"])
def test_record_of_a_checksum_that_is_none(
    record: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="the export extra is not installed")
    from d2feat.download import download

    (tmp_path / "d2_tf.pth.sha256").write_bytes(record)
    (tmp_path / "d2_tf.pth").write_bytes(b"")
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    with pytest.raises(d2feat.ModelError, match="not the file it was"):
        download("d2_tf")
