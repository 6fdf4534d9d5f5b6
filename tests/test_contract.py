"""The contract of `cv2.Feature2D`, case by case against `cv2.SIFT` itself.

Each case is one call, made on both. What is compared is the kind of the result: types, nesting, dtypes,
dimensions and what is empty, or that both raise an error that can be caught as `cv2.error`. Where d2feat
behaves otherwise on purpose, because SIFT is unsafe or silent there, that is a case of its own, which also
shows what SIFT does, so that a change in OpenCV is noticed.
"""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

import d2feat
from tests.conftest import assert_same_keypoints, create, photograph

WIDTH, HEIGHT = SIZE = (112, 84)
COLOUR = photograph("astronaut", SIZE)
OTHER = photograph("chelsea", (120, 80))
GREY = photograph("camera", SIZE)
EVERYWHERE = np.full(GREY.shape, 255, np.uint8)
LEFT = EVERYWHERE * (np.arange(WIDTH) < WIDTH // 2).astype(np.uint8)
NOWHERE = np.zeros_like(EVERYWHERE)
FLAT = np.full(GREY.shape, 127, np.uint8)
# Round numbers, far enough from the border for either method.
GIVEN = tuple(cv2.KeyPoint(float(x), float(y), 16) for x in (30, 56, 80) for y in (30, 42, 54))

Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def sift() -> cv2.SIFT:
    return cv2.SIFT_create()


class Array(NamedTuple):
    """Kind of an array: what is compared of it."""

    dtype: str
    dimensions: int
    contiguous: bool


class ManyKeyPoints(NamedTuple):
    """Kind of a tuple of keypoints whose number depends on the method."""


def kind(result: Any, count: bool = False) -> Any:
    """What two results must have in common; `count` compares the number of keypoints and rows too."""
    if isinstance(result, tuple) and result and all(isinstance(one, cv2.KeyPoint) for one in result):
        return len(result) if count else ManyKeyPoints()
    if isinstance(result, tuple):
        return tuple(kind(one, count) for one in result)
    if isinstance(result, cv2.UMat):
        return "UMat", kind(result.get(), count)
    if isinstance(result, np.ndarray):
        array = Array(str(result.dtype), result.ndim, result.flags.c_contiguous)
        return (*array, len(result)) if count else array
    return type(result)


def outcome(call: Call, feature2d: Any, count: bool = False) -> Any:
    """Kind of the result of the call, or `cv2.error` if it raised that; any other error is let through."""
    try:
        return kind(call(feature2d), count)
    except cv2.error:
        return cv2.error


def with_alpha(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], 200, np.uint8)])


SAME: dict[str, Call] = {
    # Overloads and keywords.
    "detectAndCompute": lambda f: f.detectAndCompute(COLOUR, None),
    "detectAndCompute by keywords": lambda f: f.detectAndCompute(
        image=COLOUR, mask=None, descriptors=None, useProvidedKeypoints=False
    ),
    "detect": lambda f: f.detect(COLOUR),
    "detect by keywords": lambda f: f.detect(image=COLOUR, mask=LEFT),
    "detect of a list": lambda f: f.detect([COLOUR, OTHER]),
    "detect of a tuple": lambda f: f.detect((COLOUR, OTHER)),
    "detect of a list and masks": lambda f: f.detect([COLOUR, GREY], [LEFT, NOWHERE]),
    "detect of a list and no masks": lambda f: f.detect([COLOUR, GREY], []),
    "detect of a list and None": lambda f: f.detect([COLOUR, GREY], None),
    "detect of a list by keywords": lambda f: f.detect(images=[COLOUR, GREY], masks=[LEFT, NOWHERE]),
    "detect of an empty list": lambda f: f.detect([]),
    "detect of an empty tuple": lambda f: f.detect(()),
    "detect of as many masks as images only": lambda f: f.detect([COLOUR, GREY], [LEFT]),
    "detectAndCompute of a list": lambda f: f.detectAndCompute([COLOUR, OTHER], None),
    # Images.
    "grey": lambda f: f.detectAndCompute(GREY, None),
    "one channel": lambda f: f.detectAndCompute(GREY[..., None], None),
    "grey and alpha": lambda f: f.detectAndCompute(with_alpha(GREY), None),
    "BGRA": lambda f: f.detectAndCompute(with_alpha(COLOUR), None),
    "strided view": lambda f: f.detectAndCompute(COLOUR[::2, ::2], None),
    "flipped view": lambda f: f.detectAndCompute(COLOUR[::-1, ::-1], None),
    "channels reversed": lambda f: f.detectAndCompute(COLOUR[..., ::-1], None),
    "Fortran order": lambda f: f.detectAndCompute(np.asfortranarray(GREY), None),
    "read-only": lambda f: f.detectAndCompute(
        np.frombuffer(GREY.tobytes(), np.uint8).reshape(GREY.shape), None
    ),
    "flat": lambda f: f.detectAndCompute(FLAT, None),
    "flat, detect": lambda f: f.detect(FLAT),
    "1 x 1": lambda f: f.detectAndCompute(FLAT[:1, :1], None),
    "3 x 5000": lambda f: f.detectAndCompute(np.tile(GREY[:3], (1, 50))[:, :5000], None),
    # Images that are none.
    "image None": lambda f: f.detectAndCompute(None, None),
    "image missing": lambda f: f.detectAndCompute(),
    "image empty": lambda f: f.detectAndCompute(np.zeros((0, 0), np.uint8), None),
    "image without channels": lambda f: f.detectAndCompute(np.zeros((9, 9, 0), np.uint8), None),
    "image of four dimensions": lambda f: f.detectAndCompute(np.zeros((2, 9, 9, 3), np.uint8), None),
    "list of lists": lambda f: f.detectAndCompute(GREY.tolist(), None),
    "list of lists, detect": lambda f: f.detect(GREY.tolist()),
    "str": lambda f: f.detectAndCompute("image.png", None),
    "number": lambda f: f.detect(5),
    **{
        f"image of {np.dtype(dtype).name}": lambda f, dtype=dtype: f.detectAndCompute(
            GREY.astype(dtype), None
        )
        for dtype in (
            np.float32,
            np.float64,
            np.float16,
            np.uint16,
            np.int8,
            np.int16,
            np.int64,
            bool,
            object,
        )
    },
    # Masks.
    "mask": lambda f: f.detectAndCompute(COLOUR, LEFT),
    "mask of one channel": lambda f: f.detectAndCompute(COLOUR, LEFT[..., None]),
    "mask of zeros": lambda f: f.detectAndCompute(COLOUR, NOWHERE),
    "mask of zeros, detect": lambda f: f.detect(COLOUR, NOWHERE),
    "mask empty": lambda f: f.detectAndCompute(COLOUR, np.zeros((0, 0), np.uint8)),
    "mask float": lambda f: f.detectAndCompute(COLOUR, LEFT.astype(np.float32)),
    "mask int32": lambda f: f.detectAndCompute(COLOUR, LEFT.astype(np.int32)),
    "mask int8": lambda f: f.detectAndCompute(COLOUR, LEFT.astype(np.int8)),
    "mask of three channels": lambda f: f.detectAndCompute(COLOUR, np.dstack([LEFT] * 3)),
    "mask str": lambda f: f.detectAndCompute(COLOUR, "mask"),
    # Other arguments.
    "unknown keyword": lambda f: f.detectAndCompute(COLOUR, None, angles=True),
    "too many arguments": lambda f: f.detectAndCompute(COLOUR, None, None, False, 1),
    "provided keypoints": lambda f: f.detectAndCompute(COLOUR, None, useProvidedKeypoints=True),
    "out-argument of another shape": lambda f: f.detectAndCompute(COLOUR, None, np.zeros((3, 3), np.float32)),
    "out-argument of another type": lambda f: f.detectAndCompute(COLOUR, None, np.zeros((3, 3))),
    # UMat.
    "UMat": lambda f: f.detectAndCompute(cv2.UMat(COLOUR), None),
    "UMat, mask UMat": lambda f: f.detectAndCompute(cv2.UMat(COLOUR), cv2.UMat(LEFT)),
    "UMat, nothing found": lambda f: f.detectAndCompute(cv2.UMat(FLAT), None),
    "UMat, detect": lambda f: f.detect(cv2.UMat(COLOUR)),
    "UMat empty": lambda f: f.detectAndCompute(cv2.UMat(), None),
    # What it says of itself.
    "descriptorSize": lambda f: f.descriptorSize(),
    "empty": lambda f: f.empty(),
    "clear": lambda f: f.clear(),
    "getDefaultName": lambda f: f.getDefaultName(),
    "getNFeatures": lambda f: f.getNFeatures(),
    # Persistence.
    "write without a name": lambda f: written(f, ""),
    "write by name": lambda f: written(f, "it"),
}


def written(feature2d: Any, name: str) -> tuple[bool, bool]:
    """Where in a file its parameters are: at the root, or in a map of that name."""
    storage = cv2.FileStorage(".yml", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    feature2d.write(storage, name)
    content = storage.releaseAndGetString()
    storage = cv2.FileStorage(content, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    root = storage.root()
    return root.getNode("nfeatures").isInt(), root.getNode(name or "it").isMap()


OPENCV = tuple(int(number) for number in cv2.__version__.split(".")[:2])
SINCE = {"image without channels": (4, 14), "clear": (4, 12)}
"""OpenCV's SIFT before that reads foreign memory for the one, and does not have the other."""


@pytest.mark.parametrize("name", SAME)
def test_result_is_of_the_kind_that_sift_returns(
    name: str, sift: cv2.SIFT, detector: d2feat.D2Feature
) -> None:
    if SINCE.get(name, OPENCV) > OPENCV:
        pytest.skip("not in this OpenCV")
    assert outcome(SAME[name], detector) == outcome(SAME[name], sift)


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_parameters_are_written_and_read_by_keywords(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    feature2d, path = request.getfixturevalue(name), str(tmp_path / "it.yml")
    feature2d.write(fileName=path)
    changed = d2feat.create(5, provider="cpu") if name == "detector" else cv2.SIFT_create(5)
    changed.read(fileName=path)
    assert changed.getNFeatures() == feature2d.getNFeatures() == 0


def test_parameters_of_sift_are_said_to_mean_nothing() -> None:
    with pytest.raises(cv2.error, match=r"by name scoreThreshold, .*SIFT_create.* mean nothing here"):
        d2feat.create(100, sigma=1.6, contrastThreshold=0.04)


SAME_COMPUTE: dict[str, Call] = {
    "tuple": lambda f: f.compute(COLOUR, GIVEN),
    "list": lambda f: f.compute(COLOUR, list(GIVEN)),
    "array of objects": lambda f: f.compute(COLOUR, np.array(GIVEN)),
    "by keywords": lambda f: f.compute(image=COLOUR, keypoints=GIVEN, descriptors=None),
    "empty list": lambda f: f.compute(COLOUR, []),
    "empty tuple": lambda f: f.compute(COLOUR, ()),
    "None": lambda f: f.compute(COLOUR, None),
    "missing": lambda f: f.compute(COLOUR),
    "one keypoint, not in a list": lambda f: f.compute(COLOUR, GIVEN[0]),
    "positions": lambda f: f.compute(COLOUR, np.ones((3, 2), np.float32)),
    "str": lambda f: f.compute(COLOUR, "abc"),
    "two images": lambda f: f.compute([COLOUR, GREY], [GIVEN, GIVEN[:4]]),
    "two images in a tuple": lambda f: f.compute((COLOUR, GREY), (GIVEN, GIVEN[:4])),
    "two images by keywords": lambda f: f.compute(images=[COLOUR, GREY], keypoints=[GIVEN, GIVEN[:4]]),
    "two images, none in one": lambda f: f.compute([COLOUR, GREY], [GIVEN, []]),
    "two images, one list": lambda f: f.compute([COLOUR, GREY], [GIVEN]),
    "two images, flat list": lambda f: f.compute([COLOUR, GREY], GIVEN[:2]),
    "no images": lambda f: f.compute([], []),
    "UMat": lambda f: f.compute(cv2.UMat(COLOUR), GIVEN),
    "UMat, none": lambda f: f.compute(cv2.UMat(COLOUR), []),
    "float image": lambda f: f.compute(COLOUR / 255, GIVEN),
}


@pytest.mark.parametrize("call", SAME_COMPUTE.values(), ids=SAME_COMPUTE.keys())
def test_compute_returns_what_sift_returns_and_as_many(
    call: Call, sift: cv2.SIFT, detector: d2feat.D2Feature
) -> None:
    assert outcome(call, detector, count=True) == outcome(call, sift, count=True)


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_compute_keeps_the_order_and_makes_new_objects(name: str, request: pytest.FixtureRequest) -> None:
    given = [
        cv2.KeyPoint(80.5 - 7 * i, 30.25 + 3 * i, 10.0 + i, 20.0 * i, 0.5 / (i + 1), 0, i) for i in range(5)
    ]
    kept, descriptors = request.getfixturevalue(name).compute(COLOUR, given)
    assert_same_keypoints(kept, tuple(given))
    assert not {id(one) for one in kept} & {id(one) for one in given}
    assert len(descriptors) == 5


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_descriptors_are_written_into_an_out_argument_that_fits(
    name: str, request: pytest.FixtureRequest
) -> None:
    feature2d = request.getfixturevalue(name)
    _, wanted = feature2d.detectAndCompute(COLOUR, None)
    for call in (
        lambda out: feature2d.detectAndCompute(COLOUR, None, out),
        lambda out: feature2d.detectAndCompute(COLOUR, None, descriptors=out),
    ):
        out = np.full_like(wanted, -1)
        _, returned = call(out)
        assert returned is out
        np.testing.assert_array_equal(out, wanted)
    _, wanted = feature2d.compute(COLOUR, GIVEN)
    out = np.full_like(wanted, -1)
    assert feature2d.compute(COLOUR, GIVEN, out)[1] is out
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_out_argument_that_does_not_fit_is_left_alone(name: str, request: pytest.FixtureRequest) -> None:
    out = np.full((3, 3), -1, np.float32)
    _, returned = request.getfixturevalue(name).detectAndCompute(COLOUR, None, out)
    assert returned is not out
    assert (out == -1).all()


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_mask_keeps_the_points_on_it_and_no_others(name: str, request: pytest.FixtureRequest) -> None:
    feature2d = request.getfixturevalue(name)
    everything = feature2d.detect(COLOUR)
    assert_same_keypoints(feature2d.detect(COLOUR, EVERYWHERE), everything)
    # Not only 255 means "keep"; a neighbouring pixel would be read otherwise.
    mask = np.random.default_rng(0).integers(0, 2, GREY.shape, np.uint8)
    kept = feature2d.detect(COLOUR, mask)
    assert 0 < len(kept) < len(everything)
    assert_same_keypoints(kept, tuple(p for p in everything if mask[int(p.pt[1] + 0.5), int(p.pt[0] + 0.5)]))


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_detect_finds_what_detect_and_compute_finds(name: str, request: pytest.FixtureRequest) -> None:
    feature2d = request.getfixturevalue(name)
    keypoints, descriptors = feature2d.detectAndCompute(COLOUR, None)
    assert descriptors.shape == (len(keypoints), feature2d.descriptorSize())
    assert_same_keypoints(feature2d.detect(COLOUR), keypoints)
    assert_same_keypoints(feature2d.detect([OTHER, COLOUR])[1], keypoints)


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_colour_order_of_alpha_and_views_is_read_as_pixels(name: str, request: pytest.FixtureRequest) -> None:
    feature2d = request.getfixturevalue(name)
    plain = feature2d.detect(COLOUR)
    assert_same_keypoints(feature2d.detect(with_alpha(COLOUR)), plain)
    flipped = feature2d.detect(COLOUR[:, ::-1])
    assert_same_keypoints(flipped, feature2d.detect(COLOUR[:, ::-1].copy()))
    assert [p.pt for p in flipped[:5]] != [p.pt for p in plain[:5]]


@pytest.mark.parametrize("name", ["sift", "detector"])
def test_type_norm_and_name(name: str, request: pytest.FixtureRequest) -> None:
    feature2d = request.getfixturevalue(name)
    assert feature2d.descriptorType() == cv2.CV_32F == 5
    assert feature2d.defaultNorm() == cv2.NORM_L2 == 4
    assert feature2d.getDefaultName().startswith("Feature2D.")
    if name == "detector" or SINCE["clear"] <= OPENCV:
        assert feature2d.clear() is None


@pytest.mark.parametrize("make", [cv2.SIFT_create, cv2.SIFT.create, d2feat.create, d2feat.D2Feature.create])
def test_nfeatures_as_argument_and_by_setter(make: Callable[..., Any]) -> None:
    assert make(nfeatures=20).getNFeatures() == 20
    limited = make(np.int64(20))
    # SIFT keeps ties with the last one.
    assert 20 <= len(limited.detect(COLOUR)) <= 22
    for everything in (0, -1):
        limited.setNFeatures(everything)
        assert limited.getNFeatures() == everything
        assert len(limited.detect(COLOUR)) > 30
    limited.setNFeatures(maxFeatures=np.int32(5))
    assert 5 <= len(limited.detect(COLOUR)) <= 7


@pytest.mark.parametrize("make", [cv2.SIFT_create, d2feat.create], ids=["sift", "d2feat"])
@pytest.mark.parametrize(
    "arguments", [{"nfeatures": 1.5}, {"nfeatures": "a"}, {"wrong": 1}, {"nfeatures": 2**40}], ids=str
)
def test_create_refuses_what_sift_refuses(make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(cv2.error) as caught:
        make(**arguments)
    # SIFT's bindings raise without setting the code's attribute in some cases: the text has it.
    assert caught.value.code == -5 or "-5:" in str(caught.value)


@pytest.mark.parametrize("code_of", ["none", "empty", "float image", "float mask", "unknown keyword"])
def test_error_code_is_bad_argument_as_sift_says(
    code_of: str, sift: cv2.SIFT, detector: d2feat.D2Feature
) -> None:
    call: Call = {
        "none": lambda f: f.detectAndCompute(None, None),
        "empty": lambda f: f.detectAndCompute(np.zeros((0, 5), np.uint8), None),
        "float image": lambda f: f.detectAndCompute(GREY / 255, None),
        "float mask": lambda f: f.detectAndCompute(GREY, GREY / 255),
        "unknown keyword": lambda f: f.detectAndCompute(GREY, None, angles=True),
    }[code_of]
    for feature2d in (sift, detector):
        with pytest.raises(cv2.error) as caught:
            call(feature2d)
        assert caught.value.code == cv2.Error.StsBadArg == -5


@pytest.mark.parametrize("make", [cv2.SIFT_create, d2feat.create], ids=["sift", "d2feat"])
def test_parameters_are_written_and_read(make: Callable[..., Any], tmp_path: Path) -> None:
    path = str(tmp_path / "parameters.yml")
    assert make(37).write(path) is None
    fresh = make()
    assert fresh.read(path) is None
    assert fresh.getNFeatures() == 37

    storage = cv2.FileStorage(str(tmp_path / "nested.yml"), cv2.FILE_STORAGE_WRITE)
    make(38).write(storage, "mine")
    storage.release()
    storage = cv2.FileStorage(str(tmp_path / "nested.yml"), cv2.FILE_STORAGE_READ)
    fresh.read(storage.getNode("mine"))
    storage.release()
    assert fresh.getNFeatures() == 38


# ---- where d2feat differs on purpose


def test_mask_is_optional(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    with pytest.raises(cv2.error):
        sift.detectAndCompute(COLOUR)
    keypoints, descriptors = detector.detectAndCompute(COLOUR)
    with_mask, same = detector.detectAndCompute(COLOUR, None)
    assert_same_keypoints(keypoints, with_mask)
    np.testing.assert_array_equal(descriptors, same)


@pytest.mark.parametrize("channels", [5, 6])
def test_more_than_four_channels_raise(channels: int, sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    many = np.dstack([GREY] * channels)
    # SIFT takes it silently and finds what is not there.
    assert outcome(lambda f: f.detectAndCompute(many, None), sift) is not cv2.error
    with pytest.raises(cv2.error, match="1 to 4 channels"):
        detector.detectAndCompute(many, None)


@pytest.mark.parametrize("change", [(1, 1), (-1, 0), (0, -1), (-50, 0)])
def test_mask_of_another_size_raises(
    change: tuple[int, int], sift: cv2.SIFT, detector: d2feat.D2Feature
) -> None:
    mask = np.full((HEIGHT + change[0], WIDTH + change[1]), 255, np.uint8)
    if min(change) > 0:  # a smaller one makes SIFT read beyond its end
        assert kind(sift.detect(COLOUR, mask)) == ManyKeyPoints()
    with pytest.raises(cv2.error, match=r"height and width"):
        detector.detectAndCompute(COLOUR, mask)


def test_bool_mask_is_accepted(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    with pytest.raises(cv2.error):
        sift.detectAndCompute(COLOUR, LEFT > 0)
    assert_same_keypoints(detector.detect(COLOUR, LEFT > 0), detector.detect(COLOUR, LEFT))


@pytest.mark.parametrize(
    ("x", "y", "size"),
    [
        (1e6, 60.0, 16.0),
        (-1e6, 60.0, 16.0),
        (50.0, HEIGHT + 0.0, 16.0),
        (WIDTH + 0.0, 60.0, 16.0),
        (-0.6, 60.0, 16.0),
        (float("nan"), 60.0, 16.0),
        (80.0, float("inf"), 16.0),
        (80.0, 60.0, 0.0),
        (80.0, 60.0, -3.0),
        (80.0, 60.0, float("nan")),
        (80.0, 60.0, float("inf")),
    ],
)
def test_compute_drops_what_cannot_be_described(
    x: float, y: float, size: float, detector: d2feat.D2Feature
) -> None:
    # Not shown on SIFT, which keeps every row: with some of these it computes out of bounds.
    bad = cv2.KeyPoint(x, y, size)
    kept, descriptors = detector.compute(COLOUR, [GIVEN[0], bad, GIVEN[1]])
    assert_same_keypoints(kept, GIVEN[:2])
    np.testing.assert_array_equal(descriptors, detector.compute(COLOUR, GIVEN[:2])[1])
    assert detector.compute(COLOUR, [bad]) == ((), None)


def test_compute_keeps_points_on_the_outermost_pixels(detector: d2feat.D2Feature) -> None:
    corners = [cv2.KeyPoint(float(x), float(y), 16) for x in (0, WIDTH - 1) for y in (0, HEIGHT - 1)]
    kept, descriptors = detector.compute(COLOUR, corners)
    assert_same_keypoints(kept, tuple(corners))
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)


def test_compute_takes_any_iterable(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    with pytest.raises(cv2.error):
        sift.compute(COLOUR, iter(GIVEN))
    assert_same_keypoints(detector.compute(COLOUR, iter(GIVEN))[0], GIVEN)


def test_batch_is_the_images_one_by_one(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    assert not hasattr(sift, "detectAndComputeBatch")
    keypoints, descriptors = detector.detectAndComputeBatch([COLOUR, OTHER, FLAT], [LEFT, None, None])
    assert kind(keypoints) == (ManyKeyPoints(), ManyKeyPoints(), ())
    alone = [detector.detectAndCompute(COLOUR, LEFT), detector.detectAndCompute(OTHER)]
    for i, (wanted_keypoints, wanted_descriptors) in enumerate(alone):
        assert_same_keypoints(keypoints[i], wanted_keypoints)
        np.testing.assert_array_equal(descriptors[i], wanted_descriptors)
    assert descriptors[2] is None
    assert detector.detectAndComputeBatch([]) == ((), ())
    with pytest.raises(cv2.error, match="as many masks"):
        detector.detectAndComputeBatch([COLOUR, OTHER], [LEFT])
    with pytest.raises(cv2.error, match="list of images"):
        detector.detectAndComputeBatch(COLOUR)


def test_image_none_is_always_an_error(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    assert sift.detect(None) == ()
    with pytest.raises(cv2.error, match=r"cv2\.imread"):
        detector.detect(None)
    with pytest.raises(cv2.error, match=r"cv2\.imread"):
        detector.compute(None, GIVEN)


def test_says_of_itself(sift: cv2.SIFT, detector: d2feat.D2Feature) -> None:
    assert sift.empty() is True  # SIFT has no model
    assert detector.empty() is False
    assert sift.getDefaultName() == "Feature2D.SIFT"
    assert detector.getDefaultName() == "Feature2D.D2Feature"
    assert sift.descriptorSize() == 128
    assert detector.descriptorSize() == detector.detectAndCompute(COLOUR)[1].shape[1] == 512


def test_save_works(sift: cv2.SIFT, tmp_path: Path) -> None:
    path = str(tmp_path / "saved.yml")
    with pytest.raises(cv2.error if hasattr(sift, "save") else AttributeError):  # 4.8 has none
        sift.save(path)
    d2feat.create(41, scoreThreshold=0.25).save(path)
    fresh = d2feat.create()
    fresh.read(path)
    assert (fresh.getNFeatures(), fresh.getScoreThreshold()) == (41, 0.25)


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deep", "pickle"],
)
def test_detector_can_be_copied_and_pickled(clone: Callable[[Any], Any], sift: cv2.SIFT) -> None:
    with pytest.raises(TypeError):
        clone(sift)
    original = create(30, scoreThreshold=0.001, scales=(1.0, 0.5), maxEdge=1000, maxSumEdges=1800)
    twin = clone(original)
    assert twin is not original
    assert repr(twin) == repr(original)
    assert_same_keypoints(twin.detect(COLOUR), original.detect(COLOUR))
    twin.setNFeatures(3)
    assert original.getNFeatures() == 30


def test_is_an_instance_of_feature2d(detector: d2feat.D2Feature) -> None:
    assert isinstance(detector, cv2.Feature2D)
    assert isinstance(detector, d2feat.D2Feature)
    assert not isinstance(detector, cv2.SIFT)
    assert not issubclass(d2feat.D2Feature, cv2.Feature2D)


REFUSED = """
import cv2, numpy as np, d2feat
detector = d2feat.create(model="d2net", provider="cpu")
assert isinstance(detector, cv2.Feature2D)
image = np.zeros((40, 40), np.uint8)
calls = [
    lambda: cv2.AffineFeature_create(detector),
    lambda: cv2.detail.computeImageFeatures2(detector, image),
    lambda: cv2.detail.computeImageFeatures(detector, [image]),
    lambda: cv2.Feature2D.detect(detector, image),
    lambda: cv2.Feature2D.empty(detector),
    lambda: cv2.Algorithm.save(detector, "nowhere.yml"),
]
for call in calls:
    try:
        call()
    except (TypeError, cv2.error):
        print("refused")
"""


def test_native_functions_refuse_it_and_do_not_crash() -> None:
    """In a process of its own: what is feared is a segmentation fault."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, cwd=root, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 6
