"""Metrics against cases computed by hand, and evaluations whose outcome is known beforehand."""

import dataclasses
import io
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import d2feat
from d2feat.evaluation import (
    ImageSequence,
    evaluate,
    fitting,
    legacy,
    make_sequences,
    methods,
    metrics,
    open_methods,
    read_sequences,
    report,
    sequences,
    synthetic,
)
from d2feat.evaluation.cli import app
from d2feat.evaluation.methods import Extraction, Method

SIZE = 100, 80
MOVE = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
EYE = np.eye(3)


def indices(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


# ---- metrics


def test_project_divides_by_depth() -> None:
    H = np.array([[2.0, 0, 4], [0, 2, 6], [0.5, 0, 1]])
    np.testing.assert_allclose(metrics.project([(2, 3)], H), [(8 / 2, 12 / 2)])


@pytest.mark.parametrize("sign", [1, -1])
def test_project_refuses_what_is_at_or_beyond_the_horizon(sign: int) -> None:
    H = sign * np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])
    points = [(0, 1), (10, 1), (20, 1)]
    mapped = metrics.project(points, metrics.facing(H, points, []))
    np.testing.assert_allclose(mapped[0], (0, 1))
    assert np.isnan(mapped[1:]).all()


def test_match_errors_are_measured_in_image_2() -> None:
    half = np.diag([0.5, 0.5, 1])
    errors = metrics.match_errors([(10, 10), (20, 20)], [(13, 14), (10, 10)], half)
    np.testing.assert_allclose(errors, [np.hypot(8, 9), 0])


def test_match_errors_of_points_beyond_the_horizon_are_infinite() -> None:
    H = np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])
    assert metrics.match_errors([(20, 1)], [(20, 1)], H).tolist() == [np.inf]


@pytest.mark.parametrize("sign", [1, -1])
def test_pixel_0_0_may_lie_beyond_the_horizon(sign: int) -> None:
    """A road seen from above and, from y = 50 down, by a camera: (0, 0) of either is not in the other."""
    back = (
        sign
        * np.array([[1.0, 0, 0], [0, 1, -30], [0, 0, 1]])
        @ [[100, 150, -22500], [0, 0, 9000], [0, 1, -50]]
    )
    H = np.linalg.inv(back)
    size, truth2 = (300, 200), np.random.default_rng(0).uniform((100, 92), (200, 190), (50, 2))
    truth1 = np.array([cv2.perspectiveTransform(truth2[None], back)[0]]).reshape(-1, 2)
    matches = np.repeat(np.arange(50)[:, None], 2, axis=1)
    for one, two, forth in ((truth1, truth2, H), (truth2, truth1, back)):
        errors = metrics.match_errors(one, two, forth)
        np.testing.assert_allclose(errors, 0, atol=1e-6)
        assert metrics.repeatability(one, two, forth, size, size) == 1
        assert metrics.matching_score(one, two, matches, errors, forth, size, size) == 1
        assert metrics.corner_error(forth / forth[2, 2], forth, size) == pytest.approx(0, abs=1e-6)
        assert metrics.corner_error(forth @ MOVE, forth, size) > 5


def test_matching_accuracy_counts_its_threshold_in() -> None:
    accuracy = metrics.matching_accuracy(np.array([0.5, 1.0, 2.5, 50.0]))
    np.testing.assert_allclose(accuracy, [0.5, 0.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75])


def test_matching_accuracy_of_no_matches_is_0() -> None:
    assert metrics.matching_accuracy(np.zeros(0)).tolist() == [0.0] * 10


def test_localisation_is_the_median_of_correct_matches() -> None:
    assert metrics.localisation(np.array([0.5, 40.0, 1.0, 3.0, 9.0])) == 1.0
    assert np.isnan(metrics.localisation(np.array([3.1])))


def test_matching_score_is_relative_to_keypoints_in_common() -> None:
    # Image 2 is image 1 moved by 10 px: the point at x = 95 leaves it, that at x = 5 of image 2 is new.
    points1 = [(20, 20), (40, 20), (60, 20), (95, 20)]
    points2 = [(30, 22), (50, 20), (90, 60), (5, 20)]
    matches = indices((0, 0), (1, 1), (2, 2), (3, 3))
    # Three and three lie in common; errors are 2, 0 and 45 px.
    errors = metrics.match_errors(points1, points2, MOVE)
    truth = MOVE, SIZE, SIZE
    assert metrics.matching_score(points1, points2, matches, errors, *truth) == pytest.approx(2 / 3)
    assert metrics.matching_score(points1, points2, matches, errors, *truth, 1.0) == pytest.approx(1 / 3)
    assert metrics.matching_score(points1, points2, matches[:0], errors[:0], *truth) == 0


def test_places_nearer_than_a_pixel_are_one() -> None:
    # 0, .6 and 1.2 px: the first takes out the second, and not the third.
    assert metrics.distinct([(0, 0), (0.6, 0), (1.2, 0), (9, 9), (9, 9)]) == 3
    assert metrics.distinct([(0, 0), (3, 4)], radius=5) == 1
    assert metrics.distinct([]) == 0


def test_keypoints_that_are_there_twice_are_no_more_distinct_inliers(folder: Path) -> None:
    once = perfect()

    def twice(image: np.ndarray) -> Extraction:
        found = once.extract(image)
        # Each copy has a descriptor of its own, or the ratio test would take out both.
        descriptors = np.vstack([found.descriptors, found.descriptors + 1000])
        return dataclasses.replace(found, points=np.vstack([found.points] * 2), descriptors=descriptors)

    summary = evaluate(read_sequences(folder), [Method("twice", twice)], 80).methods[0].overall
    assert summary.legacy_inliers == 80
    assert summary.legacy_distinct == 40


def test_repeatability_counts_no_keypoint_twice() -> None:
    # Three points crowd around the one of image 2: only one is repeated.
    points1 = [(20, 20), (21, 20), (22, 20), (60, 60)]
    assert metrics.repeatability(points1, [(31, 20), (30, 70)], MOVE, SIZE, SIZE) == 1 / 2


def test_keypoints_of_one_place_count_once() -> None:
    points = [(20, 20), (20, 20), (40, 30)]
    assert metrics.repeatability(points, points, EYE, SIZE, SIZE) == 1
    assert metrics.repeatability(points, [(20, 20), (60, 60), (60, 60)], EYE, SIZE, SIZE) == 1 / 2


def test_repeatability_ignores_what_is_not_in_common() -> None:
    assert metrics.repeatability([(20, 20), (95, 20)], [(30, 20), (5, 20)], MOVE, SIZE, SIZE) == 1
    assert metrics.repeatability([(95, 20)], [(5, 20)], MOVE, SIZE, SIZE) == 0
    assert metrics.repeatability([], [(5, 20)], MOVE, SIZE, SIZE) == 0


def test_repeatability_counts_its_threshold_in() -> None:
    assert metrics.repeatability([(20, 20)], [(33, 20)], MOVE, SIZE, SIZE) == 1
    assert metrics.repeatability([(20, 20)], [(33.01, 20)], MOVE, SIZE, SIZE) == 0


def test_repeatability_in_blocks_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    one, two = random.uniform(0, 60, (2, 200, 2))
    whole = metrics.repeatability(one, two, MOVE, SIZE, SIZE)
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 1000)
    assert 0 < whole < 1
    assert metrics.repeatability(one, two, MOVE, SIZE, SIZE) == whole


def test_corner_error_of_a_move_is_its_length() -> None:
    assert metrics.corner_error(MOVE, EYE, SIZE) == 10


def test_corner_error_of_a_zoom_is_the_mean_over_the_corner_pixels() -> None:
    # Corners (0, 0), (99, 0), (99, 79), (0, 79) move by as much as they are from the origin.
    expected = (0 + 99 + np.hypot(99, 79) + 79) / 4
    assert metrics.corner_error(np.diag([2.0, 2, 1]), EYE, SIZE) == pytest.approx(expected)


def test_corner_error_of_no_homography_is_infinite() -> None:
    assert metrics.corner_error(None, EYE, SIZE) == np.inf
    for tilt in (-1 / 99, -1 / 50):  # a corner at infinity, a corner beyond the horizon
        assert metrics.corner_error([[1, 0, 0], [0, 1, 0], [tilt, 0, 1]], EYE, SIZE) == np.inf


def test_homography_accuracy() -> None:
    accuracy = metrics.homography_accuracy([0.5, 3.0, 4.0, np.inf])
    np.testing.assert_allclose(accuracy, [0.5, 0.75, 0.75])


def test_area_under_curve_by_hand() -> None:
    # From (0, 0) to (1, 1/2), level to (2, 1/2): a triangle of 1/4 and a square of 1/2, over 2.
    # To 4: on from (1, 1/2) to (3, 1), level to (4, 1): 1/4 + 3/2 + 1, over 4.
    np.testing.assert_allclose(metrics.area_under_curve([3.0, 1.0], [2, 4]), [0.375, 0.6875])


def test_area_under_curve_at_its_ends() -> None:
    assert metrics.area_under_curve([0.0, 0.0], [3]).tolist() == [1.0]
    assert metrics.area_under_curve([np.inf, 7.0], [3]).tolist() == [0.0]
    assert metrics.area_under_curve([], [3]).tolist() == [0.0]


# ---- methods


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:256, 64:384, ::-1])


@pytest.mark.parametrize("name", ["sift", "rootsift", "orb"])
def test_methods_keep_to_the_budget(name: str, photo: np.ndarray) -> None:
    [method], skipped = open_methods([name], 100)
    found = method.extract(photo)
    assert not skipped
    assert found.points.shape == (100, 2)
    assert len(found.descriptors) == 100
    assert found.norm == (cv2.NORM_HAMMING if name == "orb" else cv2.NORM_L2)


def test_the_budget_keeps_the_best() -> None:
    keypoints = [cv2.KeyPoint(i, 0, 1, response=response) for i, response in enumerate([0.1, 0.9, 0.5, 0.9])]
    best = methods._best((keypoints, np.eye(4, dtype=np.float32)), 3, cv2.NORM_L2, 4)
    assert best.points[:, 0].tolist() == [1, 3, 2]
    np.testing.assert_array_equal(best.descriptors, np.eye(4)[[1, 3, 2]])


def test_rootsift_is_the_root_of_sift(photo: np.ndarray) -> None:
    [sift, root], _ = open_methods(["sift", "rootsift"], 50)
    plain, rooted = sift.extract(photo), root.extract(photo)
    np.testing.assert_allclose(np.linalg.norm(rooted.descriptors, axis=1), 1, rtol=1e-5)
    row = plain.descriptors[7]
    np.testing.assert_allclose(rooted.descriptors[7], np.sqrt(row / row.sum()), rtol=1e-5)


@pytest.mark.parametrize("name", ["sift", "rootsift", "orb"])
def test_an_image_without_features(name: str) -> None:
    [method], _ = open_methods([name], 100)
    flat = method.extract(np.full((64, 64, 3), 128, np.uint8))
    assert flat.points.shape == (0, 2)
    assert len(flat.descriptors) == 0
    pair = sequences.evaluate_pair("flat", 2, flat, flat, EYE, (64, 64), (64, 64))
    assert pair.matches == 0
    assert set(pair.corner_errors) == set(pair.legacy_corner_errors) == {None}
    assert pair.localisation is None


def test_akaze_runs_or_says_why_not(photo: np.ndarray) -> None:
    found, skipped = open_methods(["akaze"], 100)
    if hasattr(cv2, "AKAZE_create"):
        assert found[0].extract(photo).points.shape == (100, 2)
    else:
        assert not found
        assert cv2.__version__ in skipped["akaze"]


def test_other_names_are_models() -> None:
    with pytest.raises(d2feat.ModelError, match="d2nte"):
        open_methods(["d2nte"], 100)


@pytest.mark.skipif("d2net" not in d2feat.available_models(), reason="no model is at hand")
def test_models_are_called_by_their_names_in_tables() -> None:
    path = str(d2feat.available_models()["d2net"])
    assert open_methods(["sift", path], 9)[0][1].name == "d2net"
    assert [method.name for method in open_methods(["d2net", path], 9)[0]] == ["d2net", path]
    assert open_methods(["d2net"], 9, (1.0,))[0][0].name == "d2net single scale"


@pytest.mark.skipif("d2net-lite" not in d2feat.available_models(), reason="no model is at hand")
def test_no_two_methods_have_one_name(tmp_path: Path) -> None:
    for name in ("d2net-lite", "sift"):
        shutil.copy(d2feat.available_models()["d2net-lite"], tmp_path / f"{name}.onnx")
    paths = [str(tmp_path / "d2net-lite.onnx"), "d2net-lite", str(tmp_path / "sift.onnx"), "sift"]
    for scales in (None, (1.0,)):
        names = [method.name for method in open_methods(paths, 9, scales)[0]]
        assert len(set(names)) == 4
        assert all(name.endswith(" single scale") == (scales is not None) for name in names[:3])


@pytest.mark.parametrize("norm", [cv2.NORM_L2, cv2.NORM_HAMMING])
def test_mutual_matches(norm: int) -> None:
    # 0 and 1 of image 1 are both nearest to 0 of image 2, which is nearer to 1.
    rows1, rows2 = [[0b0111], [0b0001], [0b11110000]], [[0b0000], [0b11111000]]
    dtype = np.uint8 if norm == cv2.NORM_HAMMING else np.float32
    one, two = (
        Extraction(np.zeros((len(r), 2), np.float32), np.array(r, dtype), norm) for r in (rows1, rows2)
    )
    assert methods.mutual_matches(one, two).tolist() == [[1, 0], [2, 1]]


# ---- legacy and fitting


def test_fits_vary_with_the_order_of_matches_and_repeat_themselves() -> None:
    random = np.random.default_rng(2)
    points = random.uniform(0, 80, (60, 2)).astype(np.float32)
    moved = (metrics.project(points, MOVE) + random.normal(0, 1.5, points.shape)).astype(np.float32)
    moved[:30] = random.uniform(0, 80, (30, 2))
    one, two = (fitting.fit_homographies(points, moved, cv2.RANSAC) for _ in range(2))
    errors = [metrics.corner_error(fit.homography, MOVE, SIZE) for fit in one]
    assert len(errors) == fitting.TRIALS
    assert len(set(errors)) > 1
    assert errors == [metrics.corner_error(fit.homography, MOVE, SIZE) for fit in two]


def test_ratio_matches_drop_the_ambiguous() -> None:
    train = np.zeros((3, 8), np.float32)
    train[0, 0], train[1, 1], train[2, 2] = 1, 1, 1
    query = np.zeros((2, 8), np.float32)
    query[0, 0] = 1  # distances 0, sqrt 2
    query[1, :2] = 0.5, 0.6  # distances .64, .78: above three quarters
    one, two = (Extraction(np.zeros((len(d), 2), np.float32), d, cv2.NORM_L2) for d in (query, train))
    assert legacy.ratio_matches(one, two).tolist() == [[0, 0]]


@pytest.mark.parametrize("norm", [cv2.NORM_L2, cv2.NORM_HAMMING])
def test_legacy_finds_the_homography(norm: int) -> None:
    random = np.random.default_rng(1)
    points = random.uniform(0, 80, (60, 2)).astype(np.float32)
    descriptors = random.integers(0, 256, (60, 32)).astype(
        np.uint8 if norm == cv2.NORM_HAMMING else np.float32
    )
    moved = metrics.project(points, MOVE).astype(np.float32)
    moved[:20] = random.uniform(0, 80, (20, 2))
    result = legacy.run_legacy(Extraction(points, descriptors, norm), Extraction(moved, descriptors, norm))
    # The kd-tree finds all of them, LSH most of those that have a second neighbour.
    assert len(result.points) == 60 if norm == cv2.NORM_L2 else len(result.points) > 30
    for fit in result.fits:
        assert len(result.points) / 2 < len(fit.inliers) < 45
        assert metrics.corner_error(fit.homography, MOVE, SIZE) < 0.5


# ---- sequences


def perfect(name: str = "perfect", error: float = 0.0, calls: list[int] | None = None) -> Method:
    """Keypoints at the corners of a grid painted in the image, described by their colour."""

    def extract(image: np.ndarray) -> Extraction:
        if calls is not None:
            calls.append(1)
        y, x = np.nonzero(image[..., 0])
        colour = image[y, x].astype(np.float32)
        points = np.column_stack([x, y]).astype(np.float32)
        if image[0, 0, 2] == 255:
            points[:, 0] += error
        return Extraction(points, colour, cv2.NORM_L2)

    return Method(name, extract)


def dotted(move: int) -> np.ndarray:
    """100 x 80 image with 40 dots of different colours, moved to the right."""
    image = np.zeros((80, 100, 3), np.uint8)
    place = np.random.default_rng(5).permutation(79 * 60)[:40]
    for i, (y, x) in enumerate(zip(1 + place // 60, 5 + place % 60, strict=True)):
        image[y, x + move] = 1 + i, (37 * i) % 251, 0
    image[0, 0, 2] = 255 if move else 0
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, suffix in (("i_one", "png"), ("v_two", "bmp")):
        (tmp_path / name).mkdir()
        for number, move in ((1, 0), (2, 10), (3, 20)):
            cv2.imwrite(str(tmp_path / name / f"{number}.{suffix}"), dotted(move))
            if move:
                H = np.array([[1, 0, move], [0, 1, 0], [0, 0, 1]])
                np.savetxt(tmp_path / name / f"H_1_{number}", H)
    return tmp_path


def test_sequences_as_oxford_has_them_and_one_alone(folder: Path) -> None:
    for path in list((folder / "v_two").iterdir()):
        path.rename(
            path.with_name(re.sub(r"^H_1_(\d)$", r"H1to\1p", re.sub(r"^(\d\.)", r"img\1", path.name)))
        )
    assert (folder / "v_two/img3.bmp").is_file()
    assert (folder / "v_two/H1to3p").is_file()
    both = evaluate(read_sequences(folder), [perfect()], 40).methods[0]
    assert [(pair.sequence, pair.image) for pair in both.pairs] == [
        ("i_one", 2), ("i_one", 3), ("v_two", 2), ("v_two", 3),
    ]  # fmt: skip
    assert both.overall.mma == (1.0,) * 10
    (alone,) = read_sequences(folder / "v_two")
    assert (alone.name, list(alone.homographies)) == ("v_two", [2, 3])


def test_a_perfect_method_scores_perfectly(folder: Path) -> None:
    result = evaluate(read_sequences(folder), [perfect()], 40).methods[0]
    assert [(pair.sequence, pair.image) for pair in result.pairs] == [
        ("i_one", 2), ("i_one", 3), ("v_two", 2), ("v_two", 3),
    ]  # fmt: skip
    summary = result.overall
    assert (summary.pairs, summary.features, summary.matches) == (4, 40, 40)
    assert summary.mma == (1.0,) * 10
    assert summary.matching_score == summary.repeatability == 1
    assert summary.localisation == pytest.approx(0)
    assert summary.homography == summary.legacy_homography == (1, 1, 1)
    assert summary.legacy_inliers == summary.legacy_matches == 40
    assert summary.legacy_distinct == 40
    assert min(summary.auc) > 0.99


def test_an_error_of_known_size_shows_in_every_figure(folder: Path) -> None:
    summary = evaluate(read_sequences(folder), [perfect(error=4.0)], 40).methods[0].overall
    assert summary.mma == (0, 0, 0, 1, 1, 1, 1, 1, 1, 1)
    assert summary.matching_score == 0
    assert summary.localisation is None
    assert summary.homography == summary.legacy_homography == (0, 1, 1)
    # Forty errors of 4: from (0, 0) to (4, 1/40), up to (4, 1), level to the threshold.
    np.testing.assert_allclose(summary.auc, [0, (1 / 20 + 1) / 5, (1 / 20 + 6) / 10], atol=0.005)


def test_groups_are_by_name(folder: Path) -> None:
    result = evaluate(read_sequences(folder, ["v_two"]), [perfect()], 40).methods[0]
    assert result.light is None
    assert result.viewpoint == result.overall
    assert list(result.sequences) == ["v_two"]


def test_what_is_named_twice_counts_once(folder: Path) -> None:
    assert [sequence.name for sequence in read_sequences(folder, ["v_two", "v_two"])] == ["v_two"]
    assert [method.name for method in open_methods(["SIFT", "sift", "orb"], 9)[0]] == ["sift", "orb"]


def test_images_are_extracted_once(folder: Path) -> None:
    calls: list[int] = []
    told: list[str] = []
    evaluate(read_sequences(folder), [perfect(calls=calls)], 40, advance=told.append)
    assert len(calls) == len(told) == 6


def test_broken_sequences_are_named(folder: Path) -> None:
    with pytest.raises(d2feat.InputError, match=r"nowhere"):
        read_sequences(folder / "nowhere")
    with pytest.raises(d2feat.InputError, match=r"no sequences"):
        read_sequences(Path(__file__).parent / "programs")
    with pytest.raises(d2feat.InputError, match=r"graf.*i_one, v_two"):
        read_sequences(folder, ["graf"])
    with warnings.catch_warnings(action="error"):
        (folder / "v_two" / "H_1_4").mkdir()
        with pytest.raises(d2feat.InputError, match="H_1_4 is not a homography"):
            read_sequences(folder)
        (folder / "v_two" / "H_1_4").rmdir()
        (folder / "v_two" / "H_1_1").write_text("1 0 0\n0 1 0\n0 0 1\n")
        with pytest.raises(d2feat.InputError, match=r"H_1_1.*from 2 on"):
            read_sequences(folder)
        (folder / "v_two" / "H_1_1").unlink()
    for broken in ("", "1 0 0\n0 1 0\n", "1 0 0\n0 nan 0\n0 0 1\n", "1 0 0\n1 0 0\n0 0 1\n", "a b c\n"):
        (folder / "v_two" / "H_1_3").write_text(broken)
        with pytest.raises(d2feat.InputError, match="H_1_3"):
            read_sequences(folder)
    (folder / "i_one" / "3.png").unlink()
    with pytest.raises(d2feat.InputError, match="image 3"):
        read_sequences(folder, ["i_one"])


# ---- synthetic sequences


@pytest.mark.parametrize("number", [2, 4, 6])
def test_the_truth_is_exact(number: int) -> None:
    """Blobs painted on a photograph are where the homography says, to a fiftieth of a pixel."""
    y, x = np.mgrid[:300, :400].astype(np.float64)
    places = np.array([(120, 110), (200, 150), (270, 190), (150, 200), (260, 100)], np.float64) + 0.3
    values = sum(200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in places)
    photo = np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)
    sequence = synthetic.make_sequence("v_blobs", photo, [3, 1])
    first, other = sequence.load(1), sequence.load(number)
    _, to_first, _ = synthetic._placed(photo)
    truth = metrics.project(metrics.project(places, to_first), sequence.homographies[number])
    assert first.shape == (225, 300, 3)
    measured = [centroid(other[..., 0], place) for place in truth]
    np.testing.assert_allclose(measured, truth, atol=0.15)
    assert np.abs((np.array(measured) - truth).mean(0)).max() < 0.05


def centroid(image: np.ndarray, place: np.ndarray) -> tuple[float, float]:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image * (np.hypot(x - place[0], y - place[1]) < 14).astype(np.float64)
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


def test_huge_photographs_are_shrunk_in_place() -> None:
    photo = np.zeros((1500, 3000, 3), np.uint8)
    photo[742:758, 1492:1508] = 255  # the centre, (1499.5, 749.5)
    sequence = synthetic.make_sequence("i_huge", photo, [0])
    image = sequence.load(1)
    assert image.shape == (320, 640, 3)
    np.testing.assert_allclose(centroid(image[..., 0], np.array([319.5, 159.5])), (319.5, 159.5), atol=0.02)


def test_synthetic_sequences_are_deterministic_and_differ() -> None:
    pytest.importorskip("skimage")
    one, two, other = (
        make_sequences("skimage", 4),
        make_sequences("skimage", 4),
        make_sequences("skimage", 4, 1),
    )
    assert [sequence.name for sequence in one] == [sequence.name for sequence in two]
    assert [sequence.name[:4] for sequence in one] == ["i_01", "v_02", "i_03", "v_04"]
    for number in (1, 2, 5, 6):
        np.testing.assert_array_equal(one[0].load(number), two[0].load(number))
    np.testing.assert_array_equal(one[1].homographies[6], two[1].homographies[6])
    assert not np.array_equal(one[1].homographies[6], other[1].homographies[6])
    for number in range(2, 7):
        assert np.abs(one[0].load(number).astype(int) - one[0].load(1)).mean() > 1


def test_photographs_come_from_folders_and_shards(tmp_path: Path) -> None:
    import tarfile

    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), random.integers(0, 255, (90, 120, 3), np.uint8))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("b", "c"):
            shard.add(tmp_path / f"{name}.png", f"inside/{name}.png")
            (tmp_path / f"{name}.png").unlink()
    names = [sequence.name for sequence in make_sequences(tmp_path, 9)]
    assert names == ["i_01_a", "v_02_b", "i_03_c"]
    from_shard = make_sequences(tmp_path / "shard.tar", 1)
    assert from_shard[0].load(6).shape == (68, 90, 3)
    (tmp_path / "shard.tar").rename(tmp_path / "SHARD.TAR")
    assert make_sequences(tmp_path / "SHARD.TAR", 1)[0].load(6).shape == (68, 90, 3)
    (tmp_path / "._a.png").write_bytes(b"what macOS knows of a.png")
    assert len(make_sequences(tmp_path, 9)) == 3
    for broken in (b"no image", b""):
        (tmp_path / "a.png").write_bytes(broken)
        with pytest.raises(d2feat.InputError, match=r"a\.png"):
            make_sequences(tmp_path, 9)
    (tmp_path / "a.png").unlink()
    with tarfile.open(tmp_path / "SHARD.TAR", "w") as shard:
        link = tarfile.TarInfo("lost.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.png"
        shard.addfile(link)
    with pytest.raises(d2feat.InputError, match=r"lost\.png is not an image"):
        make_sequences(tmp_path, 9)
    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((9000, 1, 3), np.uint8))
    with pytest.raises(d2feat.InputError, match="no views can be made of a photograph of 1 x 9000 pixels"):
        make_sequences(tmp_path / "narrow.png", 1)
    (tmp_path / "narrow.png").unlink()
    (tmp_path / "SHARD.TAR").write_bytes(b"no shard")
    with pytest.raises(d2feat.InputError, match=r"SHARD\.TAR is not a tar file, or is damaged"):
        make_sequences(tmp_path, 9)
    with pytest.raises(d2feat.InputError, match="nowhere"):
        make_sequences(tmp_path / "nowhere")


# ---- report and command line


def test_the_command_writes_table_json_and_picture(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = [
        "sequences",
        str(folder),
        "--methods",
        "sift,orb",
        "--nfeatures",
        "64",
        "-o",
        str(folder / "out"),
    ]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "MMA@1" in result.output
    assert "…" not in result.output
    assert "sift" in result.output
    written = json.loads((folder / "out" / "evaluation.json").read_text())
    assert [method["name"] for method in written["methods"]] == ["sift", "orb"]
    assert (written["data"], written["d2feat"]) == (str(folder), d2feat.__version__)
    assert written["methods"][0]["overall"]["pairs"] == 4
    assert len(written["methods"][0]["pairs"][0]["accuracy"]) == 10
    picture = cv2.imread(str(folder / "out" / "mma.png"))
    assert picture is not None
    assert picture.std() > 5


def test_tables_show_every_name_in_eighty_columns(folder: Path) -> None:
    names = [f"d2net-{kind} single scale" for kind in ("int8", "float", "lite", "lite-int8", "paper")]
    evaluation = evaluate(read_sequences(folder), [perfect(name) for name in [*names, "sift", "orb"]], 40)
    console = Console(width=80, file=io.StringIO())
    for table in report.tables(evaluation):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "…" not in shown
    by_sequence = shown[shown.index("MMA@3 by sequence") :]
    for name in (*names, "sift", "orb"):
        assert by_sequence.count(name) == 1
    assert by_sequence.count("i_one") == by_sequence.count("v_two") == by_sequence.count("MMA@3") > 1


def test_figures_are_shown_where_they_cannot_be_written(folder: Path) -> None:
    (folder / "out/evaluation.json").mkdir(parents=True)
    arguments = ["sequences", str(folder), "--methods", "orb", "--nfeatures", "64", "-o", str(folder / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "MMA@1" in result.output


def test_the_synthetic_command() -> None:
    pytest.importorskip("skimage")
    arguments = ["synthetic", "skimage", "--count", "2", "--methods", "orb", "--nfeatures", "300"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "v_02" in result.output


def test_refined_matches_are_nearer_to_the_truth() -> None:
    pytest.importorskip("skimage")
    pair = next(sequence for sequence in make_sequences("skimage", 2) if sequence.name.startswith("v_"))
    few = ImageSequence(pair.name, pair.load, {2: pair.homographies[2]})
    raw, refined = (
        evaluate([few], open_methods(["sift"], 500, refined=refined)[0], 500).methods[0]
        for refined in (False, True)
    )
    assert (raw.name, refined.name) == ("sift", "sift refined")
    assert raw.overall.localisation is not None
    assert refined.overall.localisation is not None
    assert refined.overall.localisation < 0.5 * raw.overall.localisation
    assert refined.overall.auc[0] > raw.overall.auc[0]
    assert refined.overall.mma[0] > raw.overall.mma[0]
    assert refined.overall.matching_score >= raw.overall.matching_score
    legacy = [np.mean([pair.legacy_corner_errors for pair in one.pairs]) for one in (raw, refined)]
    assert legacy[1] < legacy[0]
    # What is found and matched is the same.
    assert refined.overall.matches == raw.overall.matches
    assert refined.overall.repeatability == raw.overall.repeatability
    assert refined.overall.legacy_matches == raw.overall.legacy_matches


def test_the_commands_refine(folder: Path) -> None:
    pytest.importorskip("skimage")
    for what in (["synthetic", "skimage", "--count", "1"], ["sequences", str(folder)]):
        arguments = [*what, "--methods", "orb", "--nfeatures", "300", "--refine"]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
        assert result.exit_code == 0, result.output
        assert "orb refined" in result.output


def test_without_matplotlib_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    evaluation = evaluate(read_sequences(folder), [perfect()], 40)
    with pytest.raises(d2feat.D2FeatError, match=r"pip install 'd2feat\[eval\]'"):
        report.draw_curves(evaluation, folder / "mma.png")


def test_importing_the_evaluation_imports_no_matplotlib() -> None:
    import subprocess

    program = (
        "import sys, d2feat.evaluation.cli; sys.exit('matplotlib' in sys.modules or 'skimage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.skipif("d2net" not in d2feat.available_models(), reason="no model is at hand")
def test_our_models_are_as_good_as_sift_on_an_easy_pair(photo: np.ndarray) -> None:
    moved = synthetic.render(photo, np.array([[1, 0, -12.0], [0, 1, -7.0], [0, 0, 1]]), (280, 230))
    first = synthetic.render(photo, EYE, (280, 230))
    H = np.array([[1, 0, -12.0], [0, 1, -7.0], [0, 0, 1]])
    easy = ImageSequence("v_easy", {1: first, 2: moved}.__getitem__, {2: H})
    chosen, _ = open_methods(["d2net", "d2net-lite", "d2net-lite-int8", "sift", "sift-faint"], 300)
    described = [bool(re.match(r"d2net.* \d.*, sha256 \w{64}$", one.model)) for one in chosen]
    assert described == [True] * 3 + [False] * 2
    for result in evaluate([easy], chosen, 300).methods:
        assert result.overall.mma[0] > 0.8, result.name
        assert result.overall.homography[0] == 1, result.name
