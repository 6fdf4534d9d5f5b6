"""D2-Net inside OpenCV 5: it agrees with `d2feat.create`, and what of OpenCV then works and what does not.

At 160 x 128 on a few images; D2FEAT_NATIVE=50 does fifty images at 640 x 480, which takes minutes.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import d2feat
from d2feat import conversion, native
from tests.conftest import create, photograph

FIFTY = int(os.environ.get("D2FEAT_NATIVE", "0"))
WIDTH, HEIGHT = SIZE = (160, 128)
NFEATURES = 200
TOLERANCE = {"aliked": 0.05, "disk": 0.75}
"""Pixels; cv::DISK has whole ones, up to .71 from the place."""

NAMES = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "camera",
    "brick",
    "grass",
    "gravel",
    "page",
    "text",
    "coins",
)

needs_opencv_5 = pytest.mark.skipif(not hasattr(cv2, "ALIKED"), reason="cv2.ALIKED came with OpenCV 5")


def pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Photographs, whole, turned and in parts, colour and grey."""
    found = []
    for i in range(count):
        picture = photograph(NAMES[i % len(NAMES)], (size[0] * 5 // 4, size[1] * 5 // 4))
        picture = [picture, np.rot90(picture), picture[::-1], picture[:, ::-1], np.rot90(picture, 3)][i % 5]
        if i % 2:
            picture = picture[picture.shape[0] // 6 :, : picture.shape[1] * 5 // 6]
        found.append(cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA))
    return found


def nearest(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(points[:, None] - others, axis=2)
    return distance.min(1), distance.argmin(1)


def agreement(
    feature: Any, ours: d2feat.D2Feature, image: np.ndarray, tolerance: float
) -> tuple[float, float]:
    """Share of the keypoints of both that the other has too, and the least cosine of their descriptors."""
    keypoints, descriptors = feature.detectAndCompute(image, None)
    expected = ours.extract(image)
    real = [i for i, keypoint in enumerate(keypoints) if keypoint.response > 0]  # no repetition of the last
    points, descriptors = np.array([keypoints[i].pt for i in real]), descriptors[real]
    distance, match = nearest(points, expected.keypoints)
    reverse, _ = nearest(expected.keypoints, points)
    same = distance <= tolerance
    share = (same.sum() + (reverse <= tolerance).sum()) / (len(distance) + len(reverse))
    return float(share), float((descriptors * expected.descriptors[match]).sum(1)[same].min())


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("torch", reason="the export extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2FEAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = {name: d2feat.create_native(SIZE, NFEATURES, name, "d2net") for name in native.CONTRACTS}
        patch.setattr(conversion, "needed_export", None)  # the second time nothing is converted
        assert isinstance(d2feat.create_native(SIZE, NFEATURES, "disk", "d2net"), cv2.DISK)
    return made


@pytest.fixture(scope="module", params=native.CONTRACTS)
def feature(request: pytest.FixtureRequest, features: dict[str, Any]) -> Any:
    return features[request.param]


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two views of one photograph, the second 50 px to the right and 10 px down."""
    wide = photograph("astronaut", (260, 208))
    return np.ascontiguousarray(wide[20:148, 20:180]), np.ascontiguousarray(wide[30:158, 70:230])


@needs_opencv_5
def test_it_agrees_with_create_on_one_image_after_the_other(features: dict[str, Any]) -> None:
    ours = create(NFEATURES)
    for name, feature in features.items():
        found = [agreement(feature, ours, image, TOLERANCE[name]) for image in pictures(8, SIZE)]
        assert np.mean([share for share, _ in found]) >= 0.98, (name, found)
        assert min(cosine for _, cosine in found) > 0.999, (name, found)


@needs_opencv_5
@pytest.mark.skipif(not FIFTY, reason="takes minutes; D2FEAT_NATIVE=50 runs it")
@pytest.mark.parametrize("name", native.CONTRACTS)
def test_it_agrees_with_create_on_fifty_images(name: str) -> None:
    feature, ours = d2feat.create_native((640, 480), 2048, name, "d2net"), create(2048, threads=0)
    found = [agreement(feature, ours, image, TOLERANCE[name]) for image in pictures(FIFTY, (640, 480))]
    shares, cosines = np.transpose(found)
    print(f"{name}: {len(found)} images, share mean {shares.mean():.4f} least {shares.min():.4f}, ", end="")
    print(f"cosine least {cosines.min():.6f}")
    assert shares.mean() >= 0.98
    assert cosines.min() > 0.999


@needs_opencv_5
@pytest.mark.parametrize("name", native.CONTRACTS)
def test_the_default_size_loads_and_agrees(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV's engine lacks operations that the exporter folds away in small images only."""
    pytest.importorskip("torch", reason="the export extra is not installed")
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    feature = d2feat.create_native(nfeatures=512, contract=name, model="d2net-lite")
    share, cosine = agreement(
        feature, create(512, model="d2net-lite"), *pictures(1, (640, 480)), TOLERANCE[name]
    )
    assert share >= 0.98
    assert cosine > 0.999


@needs_opencv_5
def test_it_is_a_real_feature2d(feature: Any, pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert isinstance(feature, (cv2.ALIKED, cv2.DISK))
    assert feature.defaultNorm() == cv2.NORM_L2
    assert feature.descriptorSize() == 128, "OpenCV says so whatever the model yields"
    keypoints, descriptors = feature.detectAndCompute(pair[0], None)
    assert descriptors.shape == (len(keypoints), 512)
    assert len(feature.detect(pair[0])) == len(keypoints)


@needs_opencv_5
def test_where_there_are_fewer_keypoints_aliked_repeats_the_last_and_disk_gives_fewer(
    features: dict[str, Any], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    expected = create().extract(pair[0])
    count = len(expected)
    assert 20 < count < NFEATURES
    assert len(features["disk"].detect(pair[0])) == count
    keypoints, descriptors = features["aliked"].detectAndCompute(pair[0], None)
    assert len(keypoints) == NFEATURES
    assert {keypoint.pt for keypoint in keypoints[count - 1 :]} == {keypoints[count - 1].pt}
    assert all(keypoint.response == 0 for keypoint in keypoints[count:])
    assert (descriptors[count:] == descriptors[count - 1]).all()
    even = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    assert features["disk"].detect(even) == ()
    assert {keypoint.response for keypoint in features["aliked"].detect(even)} == {0}


@needs_opencv_5
def test_disk_takes_a_mask_and_aliked_ignores_it(
    features: dict[str, Any], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, : WIDTH // 2] = 255
    assert max(keypoint.pt[0] for keypoint in features["disk"].detect(pair[0], left)) < WIDTH / 2
    assert max(keypoint.pt[0] for keypoint in features["aliked"].detect(pair[0], left)) > WIDTH / 2


@needs_opencv_5
def test_positions_in_an_image_of_another_size_are_those_of_the_stretched_one(
    features: dict[str, Any], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    image = cv2.resize(pair[0], (2 * WIDTH, 2 * HEIGHT))
    points = [
        np.array([keypoint.pt for keypoint in features["disk"].detect(one)]) for one in (image, pair[0])
    ]
    assert np.median(nearest(points[0] / 2, points[1])[0]) <= 1
    assert points[0].max() > WIDTH


@needs_opencv_5
def test_compute_at_given_keypoints_is_not_what_they_do(
    features: dict[str, Any], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    given = [cv2.KeyPoint(50, 50, 32)]
    with pytest.raises(cv2.error, match="providing keypoints"):
        features["disk"].compute(pair[0], given)
    assert len(features["aliked"].compute(pair[0], given)[0]) == NFEATURES, "it detects its own"


MATCHERS: dict[str, Callable[[np.ndarray, np.ndarray], list[Any]]] = {
    "BFMatcher": lambda a, b: list(cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a, b)),
    "FLANN": lambda a, b: [
        first
        for first, second in cv2.FlannBasedMatcher({"algorithm": 1, "trees": 5}, {"checks": 50}).knnMatch(
            a, b, 2
        )
        if first.distance < 0.8 * second.distance
    ],
    "d2feat.match": lambda a, b: list(d2feat.match(a, b)),
}


@needs_opencv_5
@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS.keys())
def test_matchers_find_the_motion(
    matcher: Callable[[np.ndarray, np.ndarray], list[Any]], feature: Any, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    (keypoints1, descriptors1), (keypoints2, descriptors2) = (
        feature.detectAndCompute(image, None) for image in pair
    )
    good = matcher(descriptors1, descriptors2)
    moves = [np.subtract(keypoints2[m.trainIdx].pt, keypoints1[m.queryIdx].pt) for m in good]
    assert len(good) >= 40
    np.testing.assert_allclose(np.median(moves, axis=0), (-50, -10), atol=0.5)


@needs_opencv_5
@pytest.mark.parametrize(
    "make",
    [
        lambda: cv2.detail.BestOf2NearestMatcher_create(False, 0.3),
        lambda: cv2.detail.AffineBestOf2NearestMatcher(False, False, 0.3),
        lambda: cv2.detail.BestOf2NearestRangeMatcher(5, False, 0.3),
    ],
    ids=["best of 2", "affine", "range"],
)
def test_pieces_of_the_stitcher_take_it(
    make: Callable[[], Any], feature: Any, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    found = [cv2.detail.computeImageFeatures2(feature, image) for image in pair]
    assert [len(one.getKeypoints()) for one in found] == [len(feature.detect(image)) for image in pair]
    shifts = []
    for seed in range(9):  # a single fit draws its samples, and is off by .2 to .7 px
        cv2.setRNGSeed(seed)
        matches = make().apply2(found)
        (between,) = [match for match in matches if (match.src_img_idx, match.dst_img_idx) == (0, 1)]
        shifts.append(between.H[:2, 2])
        assert between.confidence > 1
    np.testing.assert_allclose(np.median(shifts, axis=0), (-50, -10), atol=0.5)
    assert len(cv2.detail.leaveBiggestComponent(found, matches, 0.3)) == 2
    done, cameras = cv2.detail_HomographyBasedEstimator().apply(found, matches, None)
    assert done
    for camera in cameras:
        camera.R = camera.R.astype(np.float32)
    adjuster = cv2.detail_BundleAdjusterRay()
    adjuster.setConfThresh(0.3)
    assert adjuster.apply(found, matches, cameras)[0]


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contract": "sift"}, "contract must be one of aliked, disk"),
        ({"size": 640}, r"a size is a pair \(width, height\)"),
        ({"size": (640.5, 480)}, "width and height must be a whole number"),
        ({"size": (650, 480)}, "multiples of 16"),
        ({"size": (32, 32)}, "multiples of 16 from 64"),
        ({"nfeatures": 0}, "keypoints, not 0"),
        ({"nfeatures": 10**6}, "keypoints, not 1000000"),
        ({"model": "d2net-int8"}, "single precision"),
    ],
)
def test_what_cannot_be_made_is_refused(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "contract" not in arguments and arguments.get("size") not in (640, (640.5, 480)):
        pytest.importorskip("torch", reason="the export extra is not installed")
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    with pytest.raises(d2feat.InputError, match=message):
        native.native_model(**arguments)


@pytest.mark.skipif(hasattr(cv2, "ALIKED"), reason="this OpenCV has them")
def test_opencv_4_is_refused_with_what_to_do() -> None:
    with pytest.raises(d2feat.ProviderError, match=r"OpenCV 4.*came with OpenCV 5.*d2feat\.create"):
        d2feat.create_native()


def test_command_line_refuses_what_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the export extra is not installed")
    from typer.testing import CliRunner

    from export.__main__ import app

    weights = str(d2feat.available_models()["d2net"])
    start = ["--weights", weights, "--out", str(tmp_path / "x.onnx"), "--target", "opencv"]
    for more, said in (
        (["--size", "640"], "640x480"),
        (["--contract", "sift"], "sift"),
        (["--keypoints", "0"], "0"),
    ):
        result = CliRunner().invoke(app, start + more)
        assert result.exit_code == 1
        assert said in result.output
    assert CliRunner().invoke(app, [*start, "--int8", "."]).exit_code == 2
