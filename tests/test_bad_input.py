"""Bad input of every kind: a `cv2.error` that says what is wrong, and an object as good as before."""

import copy
import importlib.util
import pickle
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import cv2
import numpy as np
import onnxruntime
import pytest

import d2feat
from d2feat import session
from d2feat.model import bundled_folder
from tests.conftest import MODEL, assert_same_features, create

GREY = np.zeros((40, 50), np.uint8)
KEYPOINT = cv2.KeyPoint(20, 20, 16)
NAN = np.full((40, 50), np.nan, np.float32)
SHIPPED = bundled_folder() / f"{MODEL}.onnx"

Call = Callable[[Any], Any]

IMAGES: dict[str, tuple[Any, str]] = {
    "None": (None, r"None.*cv2\.imread"),
    "empty": (np.zeros((0, 0), np.uint8), r"image is empty.*\(0, 0\)"),
    "no rows": (np.zeros((0, 50, 3), np.uint8), "image is empty"),
    "float": (GREY.astype(np.float32), r"uint8.*not float32.*\* 255"),
    "NaN": (NAN, "uint8.*not float32"),
    "float64": (GREY / 255, r"not float64.*\* 255"),
    "uint16": (GREY.astype(np.uint16), "not uint16.*// 257"),
    "int8": (GREY.astype(np.int8), "not int8.*astype"),
    "int64": (GREY.astype(np.int64), "not int64.*astype"),
    "bool": (GREY > 0, r"not bool.*\* 255"),
    "object": (GREY.astype(object), "not object"),
    "complex": (GREY.astype(complex), "not complex128"),
    "five channels": (np.zeros((40, 50, 5), np.uint8), r"1 to 4 channels.*\(40, 50, 5\)"),
    "no channels": (np.zeros((40, 50, 0), np.uint8), "empty"),
    "one dimension": (np.zeros(50, np.uint8), r"H x W.*\(50,\)"),
    "batch array": (np.zeros((2, 40, 50, 3), np.uint8), r"H x W.*\(2, 40, 50, 3\)"),
    "scalar": (np.uint8(3), "NumPy array.*not uint8"),
    "number": (5, "NumPy array.*not int"),
    "str": ("photo.jpg", "NumPy array.*not str|no image file at photo.jpg"),
    "bytes": (b"photo", "NumPy array.*not bytes"),
    "path": (Path("photo.jpg"), "NumPy array.*Path|no image file at photo.jpg"),
    "dict": ({}, "NumPy array.*not dict"),
}


@pytest.fixture(scope="module")
def before(detector: d2feat.D2Feature, other_image: np.ndarray) -> d2feat.Features:
    return detector.extract(other_image)


@pytest.fixture(scope="module", autouse=True)
def _as_good_as_before(detector: d2feat.D2Feature, other_image: np.ndarray, before: d2feat.Features) -> Any:
    """After all the errors of this module the shared detector gives what it gave at the start."""
    parameters = repr(detector)
    yield
    assert repr(detector) == parameters
    assert_same_features(detector.extract(other_image), before)


def raises(call: Callable[[], Any], message: str, kind: type[Exception] = d2feat.InputError) -> None:
    """The call raises `kind`, which can be caught as `cv2.error`, has a code and says `message`."""
    with pytest.raises(cv2.error, match=f"(?s){message}") as caught:
        call()
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, d2feat.D2FeatError)
    assert caught.value.code < 0


@pytest.mark.parametrize(("image", "message"), IMAGES.values(), ids=IMAGES.keys())
def test_bad_image_is_named_by_every_method(detector: d2feat.D2Feature, image: Any, message: str) -> None:
    for call in (
        lambda: detector.detectAndCompute(image, None),
        lambda: detector.detectAndCompute(image, None, useProvidedKeypoints=True),
        lambda: detector.detect(image),
        lambda: detector.detect([image]),
        lambda: detector.compute(image, [KEYPOINT]),
        lambda: detector.compute([image], [[KEYPOINT]]),
        lambda: detector.compute(image, []),
        lambda: detector.detectAndComputeBatch([image]),
        lambda: detector.extract(image),
        lambda: detector.describe(image, [[1, 2, 1]]),
    ):
        raises(call, message)


@pytest.mark.parametrize(
    "image", [GREY.tolist(), [[[1, 2, 3]]], ((1, 2), (3, 4))], ids=["grey", "BGR", "tuple"]
)
def test_lists_of_numbers_are_no_images(detector: d2feat.D2Feature, image: Any) -> None:
    raises(lambda: detector.detectAndCompute(image, None), "one image.*detectAndComputeBatch")
    raises(lambda: detector.detect(image), "image 0: .*NumPy array.*not (list|tuple)")
    raises(lambda: detector.compute(image, [KEYPOINT]), "as many keypoints|expected|NumPy array")
    raises(lambda: detector.extract(image), "NumPy array")


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 3), (2, 3), (3, 5000), (5000, 3), (15, 15), (16, 17)], ids=str
)
def test_image_too_small_for_any_keypoint_has_none(
    detector: d2feat.D2Feature, shape: tuple[int, ...]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    keypoints, descriptors = detector.detectAndCompute(noise, None)
    if min(shape[:2]) <= 12:
        assert (keypoints, descriptors) == ((), None)
    else:
        assert all(0 <= p.pt[0] <= shape[1] - 1 and 0 <= p.pt[1] <= shape[0] - 1 for p in keypoints)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3)], ids=str)
def test_tiny_image_can_be_described(detector: d2feat.D2Feature, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    corner = cv2.KeyPoint(shape[1] - 1.0, shape[0] - 1.0, 16)
    kept, descriptors = detector.compute(noise, [corner])
    assert len(kept) == 1
    assert np.linalg.norm(descriptors) == pytest.approx(1, abs=1e-5)


MASKS: dict[str, tuple[Any, str]] = {
    "larger": (np.ones((41, 51), np.uint8), r"mask.*\(41, 51\).*height and width, \(40, 50\)"),
    "smaller": (np.ones((20, 25), np.uint8), r"mask.*\(20, 25\)"),
    "transposed": (np.ones((50, 40), np.uint8), r"mask.*\(50, 40\)"),
    "three channels": (np.ones((40, 50, 3), np.uint8), "mask.*height and width"),
    "float": (np.ones((40, 50), np.float32), "mask.*uint8 or bool, not float32"),
    "int32": (np.ones((40, 50), np.int32), "mask.*not int32"),
    "list": ([[1] * 50] * 40, "mask.*NumPy array.*not list"),
    "str": ("mask.png", "mask.*NumPy array.*not str"),
}


@pytest.mark.parametrize(("mask", "message"), MASKS.values(), ids=MASKS.keys())
def test_bad_mask_is_named(detector: d2feat.D2Feature, mask: Any, message: str) -> None:
    raises(lambda: detector.detectAndCompute(GREY, mask), message)
    raises(lambda: detector.detect(GREY, mask), message)
    raises(lambda: detector.detect([GREY], [mask]), message)
    raises(lambda: detector.extract(GREY, mask), message)


ARGUMENTS: dict[str, tuple[Call, str]] = {
    "image missing": (
        lambda d: d.detectAndCompute(),
        "detectAndCompute.*'image'.*parameters are image, mask",
    ),
    "unknown keyword": (lambda d: d.detect(GREY, octaves=3), "detect.*'octaves'.*parameters are image, mask"),
    "argument given twice": (lambda d: d.detect(GREY, image=GREY), "multiple values.*'image'"),
    "image and images": (lambda d: d.detect(image=GREY, images=[GREY]), "'images'"),
    "too many": (lambda d: d.detect(GREY, None, 1), "too many"),
    "fewer masks than images": (lambda d: d.detect([GREY, GREY], [GREY]), "2 images need as many masks"),
    "one mask for several images": (lambda d: d.detect([GREY, GREY], GREY), "2 images need as many masks"),
    "fewer keypoints than images": (
        lambda d: d.compute([GREY, GREY], [[]]),
        "2 images need as many keypoints",
    ),
    "batch of one image, bare": (lambda d: d.detectAndComputeBatch(GREY), "list of images, not ndarray"),
    "one keypoint": (lambda d: d.compute(GREY, KEYPOINT), r"sequence of cv2\.KeyPoint"),
    "keypoints as positions": (lambda d: d.compute(GREY, np.ones((2, 2))), r"sequence of cv2\.KeyPoint"),
    "keypoints as str": (lambda d: d.compute(GREY, "ab"), r"sequence of cv2\.KeyPoint"),
    "None among keypoints": (lambda d: d.compute(GREY, [KEYPOINT, None]), r"sequence of cv2\.KeyPoint"),
    "points of two columns": (lambda d: d.describe(GREY, [[1, 2]]), "points must be M x 3"),
    "points of letters": (lambda d: d.describe(GREY, "abc"), "points must be M x 3"),
    "NaN point": (lambda d: d.describe(GREY, [[np.nan, 2, 1]]), "points must be finite"),
    "huge point": (lambda d: d.describe(GREY, [[1e300, 2, 1]]), "points must be finite"),
    "point of scale 0": (lambda d: d.describe(GREY, [[1, 2, 0]]), "scales positive"),
    "nfeatures fraction": (lambda d: d.setNFeatures(1.5), r"nfeatures.*whole number, not 1\.5"),
    "nfeatures float": (lambda d: d.setNFeatures(100.0), r"nfeatures.*whole number, not 100\.0"),
    "nfeatures str": (lambda d: d.setNFeatures("5"), "nfeatures.*whole number, not '5'"),
    "nfeatures None": (lambda d: d.setNFeatures(None), "nfeatures.*whole number, not None"),
    "nfeatures of 41 bits": (lambda d: d.setNFeatures(2**40), "nfeatures.*32 bits"),
    "setter's keyword": (lambda d: d.setNFeatures(count=5), "'count'|'maxFeatures'"),
    "threshold NaN": (lambda d: d.setScoreThreshold(float("nan")), "scoreThreshold.*finite.*nan"),
    "threshold infinite": (lambda d: d.setScoreThreshold(np.inf), "scoreThreshold.*finite.*inf"),
    "threshold huge": (lambda d: d.setScoreThreshold(10**400), "scoreThreshold.*finite.*1000"),
    "threshold str": (lambda d: d.setScoreThreshold("high"), "scoreThreshold.*'high'"),
    "scales NaN": (lambda d: d.setScales([1.0, np.nan]), "scales.*positive"),
    "scales infinite": (lambda d: d.setScales([np.inf]), "scales.*positive"),
    "scales negative": (lambda d: d.setScales([-0.5, 1.0]), r"scales.*positive.*-0\.5"),
    "scales zero": (lambda d: d.setScales([0.0]), "scales.*positive"),
    "scales none": (lambda d: d.setScales([]), "scales.*one or more"),
    "scales None": (lambda d: d.setScales(None), "scales.*not None"),
    "scales str": (lambda d: d.setScales("paper"), "scales.*numbers.*'paper'"),
    "maxEdge fraction": (lambda d: d.setMaxEdge(0.5), r"maxEdge.*whole number, not 0\.5"),
    "maxSumEdges str": (lambda d: d.setMaxSumEdges("a"), "maxSumEdges.*whole number"),
    "write to a number": (lambda d: d.write(5), r"path or a cv2\.FileStorage, not int"),
    "read from a number": (lambda d: d.read(5), r"path or a cv2\.FileNode, not int"),
    "read what is not there": (lambda d: d.read("not/there.yml"), r"cannot open not.there\.yml"),
    "write where nothing can be": (lambda d: d.write("not/there/x.yml"), "cannot open not"),
    "save where nothing can be": (lambda d: d.save("not/there/x.yml"), "cannot open not"),
}


@pytest.mark.parametrize(("call", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_bad_argument_is_named_and_changes_nothing(
    detector: d2feat.D2Feature, call: Call, message: str
) -> None:
    parameters = repr(detector)
    raises(lambda: call(detector), message)
    assert repr(detector) == parameters


CREATE: dict[str, tuple[dict[str, Any], str]] = {
    "nfeatures fraction": ({"nfeatures": 1.5}, r"nfeatures.*1\.5"),
    "scales negative": ({"scales": [-1]}, "scales.*positive"),
    "scales NaN": ({"scales": [float("nan")]}, "scales.*positive"),
    "threshold": ({"scoreThreshold": None}, "scoreThreshold.*None"),
    "threads negative": ({"threads": -1}, "threads.*0 or more.*-1"),
    "threads fraction": ({"threads": 0.5}, "threads.*whole"),
    "SIFT's parameter": ({"contrastThreshold": 0.04}, "contrastThreshold.*parameters are nfeatures"),
    "misspelt": ({"nFeatures": 100}, "nFeatures.*parameters are nfeatures"),
}


@pytest.mark.parametrize(("arguments", "message"), CREATE.values(), ids=CREATE.keys())
def test_create_names_the_bad_parameter(arguments: dict[str, Any], message: str) -> None:
    raises(lambda: d2feat.create(**arguments), message)


# ---- models


@pytest.mark.parametrize("name", ["d2_tf", "d2_ots", "d2_tf_no_phototourism"])
def test_official_model_not_downloaded_names_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    raises(lambda: d2feat.create(model=name), f"'{name}'.*d2feat download {name}$", d2feat.ModelError)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("d2nett", "no model named 'd2nett'.*d2net.*path"),
        ("", "name or a path"),
        (None, "name or a path, not None"),
        (5, "name or a path, not 5"),
        (b"d2net", "name or a path"),
        ("not/there.onnx", "no model file at .*there.onnx"),
        (Path("not/there.onnx"), "no model file at .*there.onnx"),
    ],
    ids=str,
)
def test_missing_model_is_named(model: Any, message: str) -> None:
    raises(lambda: d2feat.create(model=model), message, d2feat.ModelError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_model_is_an_error(share: float, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    whole = SHIPPED.read_bytes()
    cut.write_bytes(whole[: int(len(whole) * share)])
    raises(lambda: d2feat.create(model=cut, provider="cpu"), r"cut\.onnx", d2feat.ModelError)


def test_random_bytes_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    raises(lambda: d2feat.create(model=path), r"noise\.onnx is not a model", d2feat.ModelError)


def test_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    raises(lambda: d2feat.create(model=tmp_path / "folder.onnx"), "no model file", d2feat.ModelError)


def write_foreign_model(path: Path, properties: dict[str, str]) -> Path:
    """A valid ONNX model that has nothing to do with d2feat, but the given metadata."""
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("the package onnx, which makes the foreign model, is not installed")
    import onnx
    from onnx import helper

    graph = onnx.parser.parse_graph("identity (float[N] x) => (float[N] y) { y = Identity (x) }")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, properties)
    path.write_bytes(model.SerializeToString())
    return path


OURS = {
    "contract": "1",
    "name": "other",
    "version": "1",
    "weights_sha256": "0" * 64,
    "head": "fine",
    "coordinates": "opencv",
    "channels": "512",
    "licence": "none",
}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "not one of d2feat's.*contract.*d2feat export"),
        ({"contract": "1"}, "metadata lacks name, version"),
        (OURS | {"contract": "99"}, "contract 99.*runs contract 1"),
        (OURS | {"channels": "many"}, "channels = 'many'"),
        (OURS, "other inputs and outputs.*export it again"),
    ],
    ids=["bare", "incomplete", "of the future", "channels", "inputs"],
)
def test_foreign_model_is_named_as_such(properties: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write_foreign_model(tmp_path / "foreign.onnx", properties)
    raises(lambda: d2feat.create(model=path, provider="cpu"), rf"foreign\.onnx.*{message}", d2feat.ModelError)


def test_model_that_vanishes_is_an_error_and_returning_it_mends_the_object(
    tmp_path: Path, other_image: np.ndarray, before: d2feat.Features
) -> None:
    path = tmp_path / "mine.onnx"
    shutil.copy2(SHIPPED, path)
    loaded = create(model=path)
    mine = copy.deepcopy(loaded)  # which loads it when it is needed
    path.unlink()
    raises(lambda: mine.extract(other_image), r"no model file at .*mine\.onnx", d2feat.ModelError)
    for held in (loaded, copy.copy(loaded)):
        assert_same_features(held.extract(other_image), before)
    tiled = copy.copy(loaded)
    tiled.setTile(256)
    assert len(tiled.extract(np.pad(other_image, ((0, 300), (0, 300), (0, 0))))) > 0
    shutil.copy2(SHIPPED, path)
    assert_same_features(mine.extract(other_image), before)


def test_errors_carry_their_own_message_and_none_of_opencvs(detector: d2feat.D2Feature) -> None:
    with pytest.raises(cv2.error):
        cv2.cvtColor(np.zeros((0, 0), np.uint8), cv2.COLOR_BGR2GRAY)
    with pytest.raises(cv2.error) as caught:
        detector.detectAndCompute(None, None)
    error = caught.value
    assert error.msg == error.err == str(error)
    assert "cv2.imread" in error.msg
    assert (error.func, error.file, error.line) == ("", "", 0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.msg) == (type(error), error.msg)


def test_the_image_of_a_list_that_cannot_be_described_is_named(
    detector: d2feat.D2Feature, other_image: np.ndarray
) -> None:
    raises(lambda: detector.compute([other_image, None], [[KEYPOINT], [KEYPOINT]]), "image 1: image is None")


# ---- providers


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("gpu", "unknown provider 'gpu'.*auto, cpu, cuda, tensorrt"),
        ("", "unknown provider ''"),
        ("CPUExecutionProvider", "unknown provider.*list"),
        (["NoSuchProvider"], "NoSuchProvider.*available: .*CPUExecutionProvider"),
        ([], "empty"),
        ([5], "name or .name, options., not 5"),
        ([("CPUExecutionProvider", 5)], "name or .name, options."),
        ([("CPUExecutionProvider", {"a": []})], "name or .name, options."),
        (None, "name or a list.*None"),
        (5, "name or a list.*5"),
    ],
    ids=str,
)
def test_unknown_provider_is_named(provider: Any, message: str) -> None:
    raises(lambda: d2feat.create(provider=provider), message, d2feat.ProviderError)


@pytest.mark.parametrize(
    ("provider", "full"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_gpu_that_is_not_there_is_an_error_with_a_remedy(provider: str, full: str) -> None:
    if full in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime is built with {full}")
    remedy = r"pip install 'd2feat\[gpu\]'"
    raises(
        lambda: d2feat.create(provider=provider), f"{provider}.*built without.*{remedy}", d2feat.ProviderError
    )
    raises(lambda: d2feat.create(provider=[full]), remedy, d2feat.ProviderError)


class RuntimeWithoutCuda:
    """An ONNX Runtime that is built with CUDA, on a machine that has none: it falls back silently."""

    __file__, __version__ = onnxruntime.__file__, onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def InferenceSession(path: str, options: Any, providers: list[Any], **given: Any) -> Any:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], **given)


@pytest.fixture
def _without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built with CUDA")
    monkeypatch.setitem(sys.modules, "onnxruntime", RuntimeWithoutCuda)
    monkeypatch.setattr(session, "_cache", OrderedDict())
    monkeypatch.setattr(session, "_in_use", WeakValueDictionary())


@pytest.mark.usefixtures("_without_cuda")
def test_gpu_that_does_not_load_is_an_error_if_asked_for() -> None:
    message = "CUDAExecutionProvider was asked for and did not load: .*cuDNN.*d2feat doctor"
    for provider in ("cuda", ["CUDAExecutionProvider"]):
        raises(lambda p=provider: d2feat.create(model=MODEL, provider=p), message, d2feat.ProviderError)


@pytest.mark.usefixtures("_without_cuda")
def test_auto_goes_on_without_gpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert "on CPU" in repr(d2feat.create(model=MODEL, provider="auto"))
    (record,) = caplog.records
    assert record.name == "d2feat"
    assert record.levelname == "WARNING"
    assert "running on the CPU: CUDAExecutionProvider did not load" in record.getMessage()


# ---- sizes


@pytest.mark.parametrize("scale", [300.0, 1e9, 1e300, 6e307])
def test_level_beyond_all_memory_is_an_error_and_no_crash(
    scale: float, other_image: np.ndarray, before: d2feat.Features
) -> None:
    """At 300 ONNX Runtime's own arithmetic overflows and kills the interpreter: it must not come to that."""
    mine = create(scales=[scale])
    message = "not enough memory for an image of 120 x 80.*maxEdge.*scale"
    raises(lambda: mine.extract(np.repeat(other_image, 2, 0)[::2]), message, d2feat.OutOfMemoryError)
    raises(lambda: mine.compute(other_image, [KEYPOINT]), message, MemoryError)
    mine.setScales([1.0])
    assert_same_features(mine.extract(other_image), before)


# ---- match()

ONES = np.ones((3, 8), np.float32)

MATCHES: dict[str, tuple[Callable[[], Any], str]] = {
    "str": (lambda: d2feat.match("a", ONES), "descriptors1.*N x C.*str"),
    "list": (lambda: d2feat.match(ONES, ONES.tolist()), "descriptors2.*N x C.*list"),
    "one row, flat": (lambda: d2feat.match(ONES[0], ONES), r"descriptors1.*N x C.*\(8,\)"),
    "three dimensions": (lambda: d2feat.match(ONES, ONES[None]), r"descriptors2.*\(1, 3, 8\)"),
    "binary": (lambda: d2feat.match(ONES.astype(np.uint8), ONES), "uint8.*NORM_HAMMING"),
    "object": (lambda: d2feat.match(ONES, ONES.astype(object)), "descriptors2.*not object"),
    "NaN": (lambda: d2feat.match(ONES * np.nan, ONES), "descriptors1.*not finite"),
    "infinite": (lambda: d2feat.match(ONES, ONES * np.inf), "descriptors2.*not finite"),
    "too large to square": (lambda: d2feat.match(ONES * 1e30, ONES), "descriptors1.*too large"),
    "too large for float32": (
        lambda: d2feat.match(ONES.astype(float) * 1e200, ONES),
        "descriptors1.*too large",
    ),
    "other length": (lambda: d2feat.match(ONES, ONES[:, :4]), "8 and 4 elements"),
    "ratio 0": (lambda: d2feat.match(ONES, ONES, ratio=0), r"ratio.*\(0, 1\], not 0"),
    "ratio 1.5": (lambda: d2feat.match(ONES, ONES, ratio=1.5), r"ratio.*not 1\.5"),
    "ratio NaN": (lambda: d2feat.match(ONES, ONES, ratio=float("nan")), "ratio.*nan"),
    "ratio str": (lambda: d2feat.match(ONES, ONES, ratio="0.8"), "ratio.*number.*'0.8'"),
    "distance negative": (lambda: d2feat.match(ONES, ONES, maxDistance=-1), "maxDistance.*negative.*-1"),
    "distance NaN": (lambda: d2feat.match(ONES, ONES, maxDistance=float("nan")), "maxDistance.*nan"),
    "distance str": (lambda: d2feat.match(ONES, ONES, maxDistance="far"), "maxDistance.*number.*'far'"),
}


@pytest.mark.parametrize(("call", "message"), MATCHES.values(), ids=MATCHES.keys())
@pytest.mark.filterwarnings("error")
def test_bad_descriptors_or_options_of_match_are_named(call: Callable[[], Any], message: str) -> None:
    raises(call, message)
