"""Programs written for OpenCV's detectors, with D2-Net in their place: in process and as whole programs."""

import copy
import functools
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.evaluation import open_methods
from d2feat.evaluation.metrics import corner_error
from d2feat.legacy import replacements
from d2feat.legacy.__main__ import parse_options
from d2feat.legacy.matchers import as_real
from tests.programs.__main__ import run, write_pair, write_panorama

OPTIONS = {"model": "d2net", "provider": "cpu", "threads": 1}
LEGACY = "--d2feat model=d2net,provider=cpu,threads=1"
ALL = "sift,surf,orb,akaze,kaze,brisk"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def everything() -> Iterator[None]:
    """All methods are replaced; what is reported is let pass."""
    with warnings.catch_warnings(), d2feat.installed(ALL, **OPTIONS):
        warnings.simplefilter("ignore")
        yield


def state() -> dict[str, Any]:
    """What installing may change."""
    places = {"cv2": cv2, "detail": cv2.detail, "flann": cv2.flann}
    found = {
        f"{place}.{name}": value for place, module in places.items() for name, value in vars(module).items()
    }
    return found | {"modules": set(sys.modules) & {"cv2.xfeatures2d"}}


# ---- installing and undoing


def test_undo_leaves_nothing() -> None:
    before = state()
    with d2feat.installed(ALL, **OPTIONS):
        assert state() != before
        assert issubclass(type(cv2.SIFT_create()), d2feat.D2Feature)
    assert state() == before
    with pytest.raises(ZeroDivisionError), d2feat.installed(**OPTIONS):
        1 / 0  # noqa: B018
    assert state() == before


def test_nested_and_repeated() -> None:
    before = state()
    sift, orb = cv2.SIFT_create, cv2.ORB_create
    d2feat.install("sift", nfeatures=7, **OPTIONS)
    d2feat.install("sift", nfeatures=8, **OPTIONS)
    assert cv2.SIFT_create(500).getNFeatures() == 8
    with d2feat.installed("orb", **OPTIONS):
        assert cv2.SIFT_create is sift
        assert cv2.ORB_create().getMaxFeatures() == 500
        with d2feat.installed("sift", nfeatures=9, **OPTIONS):
            assert cv2.SIFT_create().getNFeatures() == 9
            assert cv2.ORB_create is orb
        assert cv2.ORB_create is not orb
        d2feat.install("sift", nfeatures=10, **OPTIONS)  # shows when the block ends
        assert cv2.SIFT_create is sift
    assert cv2.SIFT_create(500).getNFeatures() == 10
    d2feat.uninstall()
    assert state() == before
    d2feat.uninstall()
    assert state() == before


def test_names_bound_before_and_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    early = types.ModuleType("a_program")
    monkeypatch.setitem(sys.modules, "a_program", early)
    sift, matcher = cv2.SIFT_create, cv2.BFMatcher
    early.SIFT_create, early.Matcher, early.held = sift, matcher, [sift]
    with d2feat.installed(**OPTIONS):
        assert issubclass(type(early.SIFT_create()), d2feat.D2Feature)
        assert early.Matcher is cv2.BFMatcher
        exec("from cv2 import SIFT\nfrom cv2 import xfeatures2d\nimport cv2.xfeatures2d as x", early.__dict__)
        assert early.SIFT is cv2.SIFT
        assert early.x is cv2.xfeatures2d is early.xfeatures2d
        assert early.held[0] is sift, "containers are out of reach, as documented"
    assert (early.SIFT_create, early.Matcher, early.SIFT) == (sift, matcher, cv2.SIFT)
    assert "replacements" not in repr(cv2.SIFT)


@pytest.mark.parametrize(
    ("replace", "options", "words"),
    [
        ("sift,shift", {}, "shift"),
        ("", {}, "sift, surf"),
        (None, {"model": "nowhere"}, "nowhere"),
        (None, {"neatures": 3}, "neatures"),
    ],
)
def test_what_cannot_be_installed(replace: str | None, options: dict[str, Any], words: str) -> None:
    before = state()
    with pytest.raises(d2feat.D2FeatError, match=words):
        d2feat.install(replace, **options)
    assert state() == before


def test_default_replaces_what_is_gone() -> None:
    with d2feat.installed(**OPTIONS):
        for name in ("AKAZE", "KAZE", "BRISK"):
            ours = issubclass(type(getattr(cv2, f"{name}_create")()), d2feat.D2Feature)
            assert ours == (int(cv2.__version__[0]) >= 5)
        with d2feat.installed(**OPTIONS):
            assert cv2.AKAZE_create().getDefaultName() == "Feature2D.AKAZE"
        assert cv2.AKAZE_DESCRIPTOR_MLDB == 5
        assert cv2.KAZE_DIFF_PM_G2 == 1
        assert not issubclass(type(cv2.ORB_create()), d2feat.D2Feature)


# ---- constructors, setters and getters


SPELLINGS = (
    "cv2.SIFT_create(50)",
    "cv2.SIFT.create(nfeatures=50)",
    "cv2.SIFT(50)",
    "cv2.xfeatures2d.SIFT_create(50)",
    "cv2.xfeatures2d.SIFT.create(50)",
    "cv2.xfeatures2d_SIFT.create(50)",
    "getattr(cv2, 'SIFT' + '_create')(50, 3, 0.04, 10, 1.6)",
    "cv2.SIFT_create(50, 3, 0.04, 10, 1.6, True)",
    "cv2.SIFT_create(50, 3, 0.04, 10, 1.6, cv2.CV_32F, True)",
    "cv2.ORB_create(nfeatures=50)",
    "cv2.ORB(50)",
    "cv2.AKAZE_create(max_points=50)",
)
WITHOUT_LIMIT = (
    "cv2.SIFT_create()",
    "cv2.xfeatures2d.SURF_create(400)",
    "cv2.xfeatures2d_SURF.create()",
    "cv2.SURF(400)",
    "cv2.KAZE_create()",
    "cv2.BRISK_create(30, 3, 1.0)",
    "cv2.AKAZE.create()",
)


@pytest.mark.usefixtures("everything")
def test_constructors() -> None:
    for spelling in (*SPELLINGS, *WITHOUT_LIMIT):
        made = eval(spelling)
        assert isinstance(made, cv2.Feature2D)
        assert issubclass(type(made), d2feat.D2Feature)
        assert max(0, made.getNFeatures()) == (50 if spelling in SPELLINGS else 0), spelling
    with pytest.raises(cv2.error, match="sigma"):
        cv2.SIFT_create(sigmas=1)
    with pytest.raises(cv2.error):
        cv2.SIFT_create(0, 3, 0.04, 10, 1.6, cv2.CV_32F, False, 9)


@pytest.mark.parametrize("name", ["SIFT", "ORB", "AKAZE", "KAZE", "BRISK"])
def test_parameters_are_opencvs(name: str) -> None:
    """Names, order and defaults, where this OpenCV has the method."""
    if not hasattr(cv2, f"{name}_create"):
        pytest.skip(f"OpenCV {cv2.__version__} has no {name}")
    real, ours = getattr(cv2, f"{name}_create"), getattr(replacements, name)
    for line in re.findall(rf"^{name}_create\((.*)\) ->", real.__doc__, re.MULTILINE):
        names = re.findall(r"\w+", line)
        assert set(names) <= set(ours.parameters)
        if "radiusList" not in names:
            expected = [one for one in ours.parameters if one in names]
            assert names == expected
    with d2feat.installed(name.lower(), **OPTIONS):
        made = ours()
    accessors = [one for one in dir(real()) if one.startswith("get") and one != "getDefaultName"]
    assert len(accessors) > 2
    for getter in accessors:
        if getter not in ("getDescriptorSize",):
            assert getattr(made, getter)() == pytest.approx(getattr(real(), getter)()), getter
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(made, getter.replace("get", "set", 1))(3)
        assert getattr(made, getter)() == 3


def test_parameters_without_meaning_are_reported_once() -> None:
    with d2feat.installed(**OPTIONS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made, *_ = [cv2.SIFT_create(100, contrastThreshold=0.01) for _ in range(3)]
        made.setContrastThreshold(0.02)
        made.setSigma(2.0)
        made.setNFeatures(5)
    assert [re.findall("contrastThreshold|sigma", str(one.message)) for one in caught] == [
        ["contrastThreshold"],
        ["sigma"],
    ]
    assert {one.filename for one in caught} == {__file__}
    assert (made.getContrastThreshold(), made.getSigma(), made.getNFeatures()) == (0.02, 2.0, 5)


@pytest.mark.usefixtures("everything")
def test_subclasses_copies_and_pickles(image: np.ndarray) -> None:
    class Counting(cv2.SIFT):
        calls = 0

        def detectAndCompute(self, image: Any, mask: Any = None) -> Any:
            self.calls += 1
            return super().detectAndCompute(image, mask)

    counting = Counting(30)
    keypoints, _ = counting.detectAndCompute(image)
    assert (counting.calls, len(keypoints)) == (1, 30)
    assert isinstance(counting, cv2.SIFT)
    assert not isinstance(counting, cv2.ORB)
    made = cv2.SIFT_create(30, sigma=2)
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is cv2.SIFT
        assert (other.getNFeatures(), other.getSigma()) == (30, 2)
        assert np.array_equal(other.detectAndCompute(image, None)[1], made.detectAndCompute(image, None)[1])


@pytest.mark.parametrize("name", ["SIFT", "ORB", "AKAZE", "KAZE", "BRISK"])
def test_parameters_are_written_and_read(name: str, tmp_path: Path) -> None:
    """Those that mean nothing to D2-Net, too, and files of the replaced detector."""
    path = str(tmp_path / "parameters.yml")
    kind = getattr(replacements, name)
    others = {key: type(default)(3) for key, (_, default) in kind.parameters.items() if default is not None}
    others.pop("descriptorType", None)

    def parameters(detector: Any) -> dict[str, Any]:
        getters = [f"get{accessor}" for accessor, _ in kind.parameters.values()]
        return {getter: getattr(detector, getter)() for getter in getters if hasattr(detector, getter)}

    with warnings.catch_warnings(), d2feat.installed(name.lower(), **OPTIONS):
        warnings.simplefilter("ignore")
        made, read = kind(**others), kind()
        made.write(path)
        assert parameters(read) != parameters(made)
        read.read(path)
        assert parameters(read) == parameters(made)
        with pytest.raises(cv2.error, match="does not hold"):
            replacements.SURF().read(path)
    if not hasattr(cv2, f"{name}_create"):
        pytest.skip(f"OpenCV {cv2.__version__} has no {name}: a file of it cannot be made")
    real = getattr(cv2, f"{name}_create")()
    storage = cv2.FileStorage(path, cv2.FILE_STORAGE_WRITE)
    real.write(storage, "it")
    storage.release()
    storage = cv2.FileStorage(path, cv2.FILE_STORAGE_READ)
    read.read(storage.getNode("nothing"))
    assert parameters(read) == parameters(made)
    read.read(storage.getNode("it"))
    filed = parameters(real).keys() - {"getEnablePreciseUpscale", "getPatternScale"}
    assert len(filed) > 1
    for getter in filed:
        assert getattr(read, getter)() == pytest.approx(getattr(real, getter)()), getter


def test_descriptor_type_is_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "parameters.yml")
    with d2feat.installed(**OPTIONS):
        cv2.SIFT_create(descriptorType=cv2.CV_8U).write(path)
        read = cv2.SIFT_create()
        read.read(path)
    assert read.descriptorType() == cv2.CV_8U


# ---- results


def test_descriptors_are_like_those_they_replace(image: np.ndarray, everything: None) -> None:
    unit = d2feat.create(200, **OPTIONS).extract(image)
    expected = (unit.descriptors * 384 + 128).round().clip(0, 255)
    for name in ("SIFT", "ORB", "AKAZE", "BRISK"):
        kp, des = getattr(cv2, f"{name}_create")().detectAndCompute(image, None)
        assert des.dtype == np.float32
        assert np.array_equal(des[:200], expected)
        assert np.array_equal(des.astype(np.uint8), des)
        assert {one.angle for one in kp} == {0.0}
    for make in (cv2.xfeatures2d.SURF_create, cv2.KAZE_create):
        _, des = make().detectAndCompute(image, None)
        assert np.array_equal(des[:200], unit.descriptors)
    sift = cv2.SIFT_create(200)
    root = np.sqrt(expected / expected.sum(axis=1, keepdims=True))
    distances = [np.linalg.norm(d[:, None] - d, axis=2) for d in (unit.descriptors, expected, root)]
    for other in distances[1:]:
        assert np.corrcoef(distances[0].ravel(), other.ravel())[0, 1] > 0.99
    bytes_ = cv2.SIFT_create(200, 3, 0.04, 10, 1.6, cv2.CV_8U)
    kp, des = bytes_.detectAndCompute(image, None)
    assert (des.dtype, bytes_.descriptorType(), sift.descriptorType()) == (np.uint8, cv2.CV_8U, cv2.CV_32F)
    assert np.array_equal(des, expected)
    _, again = bytes_.compute(image, kp)
    assert np.abs(again.astype(int) - des.astype(int)).max() <= 1
    assert all(one.angle == 0 for many in sift.detect([image, image]) for one in many)
    with pytest.raises(cv2.error, match="descriptorType"):
        cv2.SIFT_create(200, 3, 0.04, 10, 1.6, cv2.CV_16S)


# ---- matchers


def as_numbers(matches: Any) -> list[tuple[int, int, float]]:
    return [(m.queryIdx, m.trainIdx, m.distance) for m in matches]


def test_hamming_matchers(image: np.ndarray, other_image: np.ndarray, everything: None) -> None:
    detector = cv2.AKAZE_create(max_points=150)
    des1, des2 = (detector.detectAndCompute(one, None)[1] for one in (image, other_image))
    l2 = cv2.BFMatcher(cv2.NORM_L2, True)
    assert "legacy" not in type(l2).__module__
    expected = as_numbers(l2.match(des1, des2))
    for matcher in (
        cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True),
        cv2.BFMatcher.create(normType=cv2.NORM_HAMMING2, crossCheck=True),
        cv2.BFMatcher_create(cv2.NORM_HAMMING, True),
    ):
        assert isinstance(matcher, cv2.BFMatcher)
        assert isinstance(matcher, cv2.DescriptorMatcher)
        assert matcher.isMaskSupported() == type(l2)(cv2.NORM_L2).isMaskSupported()
        for one, two in ((des1, des2), (des1.astype(np.uint8), des2), (cv2.UMat(des1), cv2.UMat(des2))):
            found = as_numbers(matcher.match(one, trainDescriptors=two))
            assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
            assert [pair[2] for pair in found] == pytest.approx([pair[2] / 4 for pair in expected], rel=1e-4)
    for matcher in (
        cv2.DescriptorMatcher_create("BruteForce-Hamming"),
        cv2.DescriptorMatcher.create(cv2.DescriptorMatcher_BRUTEFORCE_HAMMING),
        cv2.DescriptorMatcher.create(matcherType=cv2.DescriptorMatcher_BRUTEFORCE_HAMMINGLUT),
    ):
        pairs = matcher.knnMatch(des1, des2, k=2)
        assert [len(pair) for pair in pairs] == [2] * len(des1)
        assert len(matcher.radiusMatch(des1, des1, 0.1)) == len(des1)
    mask = np.zeros((len(des1), len(des2)), np.uint8)
    mask[:, 3] = 1
    found = cv2.BFMatcher(cv2.NORM_HAMMING).match(des1, des2, mask)
    assert {m.trainIdx for m in found} == {3}


def test_lsh_matchers(image: np.ndarray, other_image: np.ndarray, everything: None) -> None:
    detector = cv2.ORB_create(150)
    des1, des2 = (detector.detectAndCompute(one, None)[1] for one in (image, other_image))
    lsh = {"algorithm": 6, "table_number": 6, "key_size": 12, "multi_probe_level": 1}
    matcher = cv2.FlannBasedMatcher(lsh, {})
    assert isinstance(matcher, cv2.FlannBasedMatcher)
    assert matcher.empty()
    matcher.add([np.uint8(des2)])
    matcher.clear()
    matcher.add([np.uint8(des2)])
    matcher.add([des1])
    matcher.train()
    assert [part.shape for part in matcher.getTrainDescriptors()] == [des2.shape, des1.shape]
    found = matcher.knnMatch(des1, k=2)
    assert sum(m[0].imgIdx == 1 and m[0].trainIdx == m[0].queryIdx for m in found) > 0.9 * len(des1)
    assert len(matcher.clone(True).knnMatch(des1, des2, 2)) == len(des1)
    index = cv2.flann_Index(des2, lsh)
    nearest, _ = index.knnSearch(des2, 1, params={})
    assert (nearest.ravel() == np.arange(len(des2))).mean() > 0.9


def test_binary_descriptors_keep_hamming(image: np.ndarray, other_image: np.ndarray) -> None:
    orb = cv2.ORB_create(100)
    des1, des2 = (orb.detectAndCompute(one, None)[1] for one in (image, other_image))
    expected = as_numbers(cv2.BFMatcher(cv2.NORM_HAMMING, True).match(des1, des2))
    with d2feat.installed(**OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_numbers(cv2.BFMatcher(cv2.NORM_HAMMING, True).match(des1, des2)) == expected
        matcher = cv2.FlannBasedMatcher({"algorithm": 6, "table_number": 6, "key_size": 12}, {})
        matcher.add([des1])
        matcher.train()
        assert sum(m.trainIdx == m.queryIdx for m in matcher.match(des1)) > 0.9 * len(des1)
        _, floats = cv2.SIFT_create().detectAndCompute(image, None)
        both = cv2.BFMatcher(cv2.NORM_HAMMING)
        for refused in (lambda: both.match(des1, floats), lambda: matcher.match(floats)):
            with pytest.raises(d2feat.InputError, match="binary"):
                refused()

    query, train = np.zeros((1, 256), np.uint8), np.zeros((2, 256), np.uint8)
    train[0, 0], train[1, :20] = 128, 1  # one bit, and twenty: no length of ours
    with d2feat.installed(**OPTIONS):
        assert cv2.BFMatcher(cv2.NORM_HAMMING).match(query, train)[0].trainIdx == 0

    class Mine(cv2.BFMatcher):
        pass

    with d2feat.installed(**OPTIONS):
        for value in (cv2.BFMatcher(cv2.NORM_HAMMING), orb):
            assert type(as_real(value)).__module__ == "cv2", "what C++ takes"

        class MineInstalled(cv2.BFMatcher):
            pass

        assert MineInstalled.__mro__[1:] == Mine.__mro__[1:]
        assert issubclass(MineInstalled, cv2.BFMatcher)


def test_replaced_matchers_are_classes_and_can_be_pickled(image: np.ndarray) -> None:
    @functools.singledispatch
    def kind(_: Any) -> str:
        return "other"

    with d2feat.installed(**OPTIONS):
        kind.register(cv2.BFMatcher, lambda _: "brute force")
        for matcher in (cv2.BFMatcher(), cv2.BFMatcher(cv2.NORM_HAMMING)):
            assert kind(matcher) == "brute force"
            match matcher:
                case cv2.FlannBasedMatcher():
                    pytest.fail("it is none")
                case cv2.BFMatcher():
                    pass
                case _:
                    pytest.fail("it is one")
        assert isinstance(None, cv2.BFMatcher | None)
        assert issubclass(cv2.BFMatcher, cv2.DescriptorMatcher)
        assert inspect.isclass(cv2.FlannBasedMatcher)
        for made in (
            *(cv2.BFMatcher, cv2.FlannBasedMatcher, cv2.DescriptorMatcher, cv2.flann_Index, cv2.flann.Index),
            *(cv2.BFMatcher_create, cv2.DescriptorMatcher.create, cv2.AffineFeature_create, cv2.SIFT_create),
            *(cv2.AffineFeature.create, cv2.Stitcher, cv2.detail.computeImageFeatures2),
        ):
            assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("empty", [None, np.zeros((0, 5, 3), np.uint8)])
def test_in_an_empty_image_there_is_nothing(empty: Any, image: np.ndarray) -> None:
    orb = cv2.ORB_create()
    keypoint = cv2.KeyPoint(5, 5, 31)

    def answers(sift: Any, orb: Any) -> list[Any]:
        found = [sift.detect(empty), sift.detect(empty, None), orb.detectAndCompute(empty, None)]
        between = sift.detect([empty, image, empty])
        assert between[0] == between[2] == ()
        assert len(between[1]) > 10
        (alone,), nothing = sift.compute(empty, np.array([keypoint]))
        ((listed,),), (none,) = sift.compute([empty], [[keypoint]])
        assert alone.pt == listed.pt == (5, 5)
        assert nothing is none is None
        with pytest.raises(cv2.error):
            sift.detectAndCompute(empty, None)
        return found

    expected = answers(cv2.SIFT_create(), orb)
    with d2feat.installed("sift,orb", **OPTIONS):
        assert answers(cv2.SIFT_create(), cv2.ORB_create()) == expected == [(), (), ((), None)]


def test_the_evaluation_does_not_take_d2net_for_sift(image: np.ndarray) -> None:
    with d2feat.installed("sift,orb", **OPTIONS):
        for name in ("sift", "rootsift", "orb"):
            with pytest.raises(
                d2feat.InputError, match=r"cv2\.(SIFT|ORB) is D2-Net while d2feat is installed"
            ):
                open_methods([name], 100)
    assert open_methods(["sift"], 100)[0][0].extract(image).descriptors.max() > 2


def test_the_change_of_distance_is_reported_once(image: np.ndarray) -> None:
    with d2feat.installed(**OPTIONS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, des = cv2.SIFT_create(20).detectAndCompute(image, None)
        for _ in range(2):
            cv2.BFMatcher(cv2.NORM_HAMMING).match(des, des)
            cv2.FlannBasedMatcher({"algorithm": 6}, {}).match(des, des)
    assert [str(one.message).split(":")[0] for one in caught] == ["BFMatcher", "FlannBasedMatcher"]
    assert {one.filename for one in caught} == {__file__}


def test_thousands_of_features_are_told_of(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2feat.legacy.replacements.MANY", 20)
    with d2feat.installed("sift", **OPTIONS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(cv2.SIFT_create(50).detect(image, None)) == 50
        assert not caught
        assert len(cv2.SIFT_create().detect(image, None)) > 50
    assert [str(one.message).split(",")[0] for one in caught] == [
        "SIFT: without a limit D2-Net finds thousands of features in an image"
    ]


# ---- functions of C++ that take a detector


def test_stitcher_stays_opencvs_and_says_so(everything: None) -> None:
    with pytest.warns(UserWarning, match="Stitcher: takes no features from Python"):
        made = cv2.Stitcher.create(cv2.Stitcher_SCANS)
    assert isinstance(made, cv2.Stitcher)
    assert cv2.Stitcher_create().registrationResol() > 0


@pytest.mark.usefixtures("everything")
def test_affine_feature_becomes_ours(image: np.ndarray) -> None:
    for make in (cv2.AffineFeature_create, cv2.AffineFeature.create):
        upright, _ = (detector := cv2.SIFT_create(40)).detectAndCompute(image, None)
        keypoints, descriptors = make(detector, 1).detectAndCompute(image, None)
        assert len(upright) < len(keypoints) == len(descriptors)
        assert descriptors.max() > 100  # of 0 to 255, as the detector's own
        assert all(0 <= one.angle < 360 for one in keypoints)
        assert all(one.angle == 0 for one in detector.detectAndComputeBatch([image])[0][0])
    with d2feat.installed("sift", **OPTIONS):
        assert cv2.AffineFeature_create(cv2.ORB_create(), 3).getDefaultName()


@pytest.mark.usefixtures("everything")
def test_none_is_the_default_as_for_opencv() -> None:
    assert cv2.SIFT_create(None, None).getNOctaveLayers() == 3


def test_compute_image_features(image: np.ndarray, everything: None) -> None:
    sift = cv2.SIFT_create(40)
    if int(cv2.__version__[0]) < 5:
        with pytest.raises(d2feat.D2FeatError, match="OpenCV 5"):
            cv2.detail.computeImageFeatures2(sift, image)
        return
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[:, :50] = 255
    found = cv2.detail.computeImageFeatures2(featuresFinder=sift, image=image, mask=mask)
    assert found.img_size == image.shape[1::-1]
    assert max(kp.pt[0] for kp in found.getKeypoints()) <= 50
    several = cv2.detail.computeImageFeatures(sift, [image, image])
    assert [(one.img_idx, len(one.getKeypoints())) for one in several] == [(0, 40), (1, 40)]
    with d2feat.installed("sift", **OPTIONS):
        real = cv2.detail.computeImageFeatures2(cv2.ORB_create(30), image)
        assert real.descriptors.get().dtype == np.uint8


# ---- whole programs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray, tuple[int, int]]:
    return write_pair(tmp_path_factory.mktemp("pair"), "coffee", (240, 160))


HOMOGRAPHIES: dict[str, tuple[str, list[str], str, bool]] = {
    # Program, arguments before the images, methods to replace, whether it runs without d2feat.
    "tutorial": ("tutorial.py", [], "sift", True),
    "find_object sift-flann": ("find_object.py", ["--feature=sift-flann"], "sift", True),
    "find_object surf": ("find_object.py", ["--feature=surf"], "sift,surf", False),
    "find_object orb-flann": ("find_object.py", ["--feature=orb-flann"], "orb", True),
    "AKAZE": ("binary_tutorial.py", ["AKAZE"], "akaze", hasattr(cv2, "AKAZE")),
    "track_plane": ("track_plane.py", ["30,20,210,140"], "orb", False),
}


@pytest.mark.parametrize("name", HOMOGRAPHIES)
def test_programs_find_the_homography(name: str, pair: tuple[Any, ...]) -> None:
    program, before, replace, has_plain = HOMOGRAPHIES[name]
    one, two, truth, size = pair

    arguments = [*before, str(one), str(two)]
    if has_plain:
        assert run(program, *arguments)[-1]["matches"] > 0
    result = run(program, *arguments, legacy=f"{LEGACY} --replace {replace}")[-1]
    assert result["inliers"] > 40
    # One draw of RANSAC: other orders of the same matches give up to 7 px, half of them less than 1.
    assert corner_error(result["H"], truth, size) < 8
    if "near" in result:
        assert 10 < result["near"] < result["mutual"]


def test_program_with_threads_and_written_keypoints(tmp_path: Path) -> None:
    # Larger than `pair`: on so small a picture a draw of RANSAC with 5 px may be off by more than 4.
    one, two, truth, size = write_pair(tmp_path, "coffee", (360, 240))
    result = run("tilted_views.py", one, two, 1, legacy=LEGACY)[-1]
    assert result["inliers"] > 200
    assert corner_error(result["H"], truth, size) < 4


def test_program_with_others_points_patches_and_clusters(pair: tuple[Any, ...]) -> None:
    plain, result = (run("patches.py", *pair[:2], legacy=legacy)[-1] for legacy in (None, LEGACY))
    assert set(plain) == set(result)
    assert result["fast"] >= plain["fast"] // 2
    assert result["corners"] > plain["corners"]
    assert result["grid"] == plain["grid"]
    assert result["limit"] == 300
    assert result["upright"]
    assert result["bytes"]
    assert result["umat"]
    assert result["clusters"] == 8


@pytest.mark.parametrize(("start", "where"), [("fork", "parent"), ("fork", "worker"), ("spawn", "worker")])
def test_program_with_processes(start: str, where: str, pair: tuple[Any, ...], tmp_path: Path) -> None:
    one, two = pair[:2]
    result = run("workers.py", start, where, tmp_path / "out", one, two, legacy=LEGACY)[-1]
    assert result == {"features": [100, 100], "shape": [200, 512], "dtype": "float32"}
    assert len(pickle.loads((tmp_path / "out.pickle").read_bytes())) == 2


def test_workers_leave_warnings_to_their_parent(tmp_path: Path) -> None:
    """A spawned process imports the program before it knows that it has a parent."""
    (tmp_path / "app.py").write_text(
        "import multiprocessing, cv2\n"
        "sift = cv2.SIFT_create(contrastThreshold=0.03)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, -2]))\n"
    )
    done = launch("--d2feat", "model=d2net-lite", "app.py", cwd=tmp_path)
    assert done.stdout == "[1, 2]\n"
    assert done.stderr.count("contrastThreshold means nothing") == 1, done.stderr


def test_program_with_visual_words(pair: tuple[Any, ...], tmp_path: Path) -> None:
    if int(cv2.__version__[0]) >= 5:
        pytest.importorskip("sklearn")
    names = [*pair[:2], *write_panorama(tmp_path)[0][:2]]
    result = run("visual_words.py", 30, *names, legacy=LEGACY)[-1]
    assert result["vocabulary"] == [30, 512]
    assert result["nearest"][2:] == [3, 2]


def test_program_that_stitches(tmp_path: Path) -> None:
    images, _ = write_panorama(tmp_path)
    arguments = ["--features", "sift", "--output", tmp_path / "out.png", *images]
    plain = run("stitch.py", *arguments)[-1]
    if int(cv2.__version__[0]) < 5:
        with pytest.raises(RuntimeError, match="OpenCV 5 takes it"):
            run("stitch.py", *arguments, legacy=LEGACY)
        return
    result = run("stitch.py", *arguments, legacy=LEGACY)[-1]
    assert result["images"] == 3
    assert result["size"] == pytest.approx(plain["size"], rel=0.05)
    assert result["inliers"][0] > 2 * plain["inliers"][0]


# ---- the runner


def launch(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "d2feat.legacy", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)


def test_runner_is_like_python(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "beside.py").write_text("VALUE = 7\n")
    (folder / "data.txt").write_text("hello")
    (folder / "app.py").write_text(
        "import atexit, json, os, sys\nimport beside\n"
        "atexit.register(print, 'at exit')\n"
        "print(json.dumps([__name__, sys.argv, beside.VALUE, open('data.txt').read(), sys.path[0],\n"
        "    os.path.basename(__file__), __doc__, sys.modules['__main__'].beside is beside]))\n"
        "def fail():\n    raise KeyError('lost')\n"
        "if sys.argv[1] == 'fail':\n    fail()\n"
        "if sys.argv[1] == 'interrupt':\n    raise KeyboardInterrupt\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    done = launch("app.py", "3", "--replace", "x", "-h", cwd=folder)
    assert done.returncode == 3
    first, last = done.stdout.splitlines()
    expected = [
        "__main__",
        ["app.py", "3", "--replace", "x", "-h"],
        7,
        "hello",
        str(folder),
        "app.py",
        None,
        True,
    ]
    assert json.loads(first) == expected
    assert last == "at exit"
    for dashes in (["3", "--", "x"], ["--", "3"]):
        first, _ = launch("app.py", *dashes, cwd=folder).stdout.splitlines() or ("[0, 0]", "")
        plain = subprocess.run(
            [sys.executable, "app.py", *dashes], capture_output=True, text=True, cwd=folder
        )
        assert json.loads(first)[1] == ["app.py", *dashes], plain.stderr
    plain = subprocess.run([sys.executable, "app.py", "fail"], capture_output=True, text=True, cwd=folder)
    failed = launch("app.py", "fail", cwd=folder)
    assert (failed.returncode, failed.stderr) == (plain.returncode, plain.stderr)
    plain = subprocess.run(
        [sys.executable, "app.py", "interrupt"], capture_output=True, text=True, cwd=folder
    )
    failed = launch("app.py", "interrupt", cwd=folder)
    assert (failed.returncode, failed.stderr) == (plain.returncode, plain.stderr)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "required: program"),
        (["nowhere.py"], "nowhere.py: No such file"),
        (["--replace", "shift", "nowhere.py"], "cannot replace shift"),
        (["--d2feat", "neatures=1", "nowhere.py"], "neatures"),
    ],
)
def test_runner_says_what_is_wrong(args: list[str], words: str) -> None:
    done = launch(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_options() -> None:
    assert parse_options("") == {}
    assert parse_options("nfeatures=2000,model=d2net-int8, scales=(0.5,1,2),scoreThreshold=0.5") == {
        "nfeatures": 2000,
        "model": "d2net-int8",
        "scales": (0.5, 1, 2),
        "scoreThreshold": 0.5,
    }
    assert parse_options("provider=[('CUDAExecutionProvider',{'device_id':1}),('CPU',{})],tile=512") == {
        "provider": [("CUDAExecutionProvider", {"device_id": 1}), ("CPU", {})],
        "tile": 512,
    }
    assert parse_options('model="a)b,c",scales=[1,(2,3)]') == {"model": "a)b,c", "scales": [1, (2, 3)]}
