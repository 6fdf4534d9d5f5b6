"""Comparison, its pictures, and the demo's pairs, with cv2.SIFT: no model is needed to check them."""

import cv2
import numpy as np
import pytest

from d2feat.compare import (
    Comparison,
    Estimate,
    compare,
    estimate_fundamental,
    estimate_homography,
)
from d2feat.drawing import MAX_LINES, WIDTH, draw_comparison, draw_matches, spread, stack
from d2feat.evaluation.metrics import corner_error

WARP = np.array([[0.9, -0.2, 30.0], [0.15, 0.95, -12.0], [2e-4, -1e-4, 1.0]])


def warped_points(count: int, outliers: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    points1 = generator.uniform(0, 400, (count, 2)).astype(np.float32)
    points2 = cv2.perspectiveTransform(points1[:, None], WARP)[:, 0]
    points2[:outliers] = generator.uniform(0, 400, (outliers, 2))
    return points1, points2


def result_of(points1: np.ndarray, points2: np.ndarray, error: float | None = 0.5) -> Comparison:
    every = np.ones(len(points1), bool)
    estimate = Estimate(np.eye(3), every)
    points = points1.astype(np.float32), points2.astype(np.float32)
    return Comparison("SIFT", (10, 12), *points, estimate, estimate, error, 0.1, 0.01)


@pytest.mark.parametrize(
    ("estimate", "truth", "expected"),
    [
        (np.eye(3), np.eye(3), 0.0),
        (np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]]), np.eye(3), 5.0),
        # The corners of 101 x 101 pixels are 0 and 100: shifts of 0, 100, 100 and 100 sqrt(2).
        (np.diag([2.0, 2.0, 1.0]), np.eye(3), (200 + 100 * 2**0.5) / 4),
        (None, np.eye(3), np.inf),
    ],
)
def test_corner_error(estimate: np.ndarray | None, truth: np.ndarray, expected: float) -> None:
    assert corner_error(estimate, truth, (101, 101)) == pytest.approx(expected)


def test_estimates_survive_outliers() -> None:
    points1, points2 = warped_points(200, outliers=80)
    homography = estimate_homography(points1, points2)
    assert corner_error(homography.matrix, WARP, (400, 400)) < 0.01
    assert homography.inliers[80:].all()
    assert len(homography) <= 123
    assert len(estimate_fundamental(points1, points2)) >= 120


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_matches_estimate_nothing(count: int) -> None:
    points = np.zeros((count, 2), np.float32)
    for estimate in (estimate_homography(points, points), estimate_fundamental(points, points)):
        assert estimate.matrix is None
        assert estimate.inliers.shape == (count,)


def test_points_in_one_place_estimate_no_homography() -> None:
    points = np.full((20, 2), 7, np.float32)
    found = estimate_homography(points, points)
    assert found.matrix is None
    assert found.inliers.shape == (20,)
    assert estimate_fundamental(points, points).inliers.shape == (20,)


def test_images_without_features() -> None:
    flat = np.full((60, 80, 3), 128, np.uint8)
    result = compare("SIFT", cv2.SIFT_create(), flat, flat, np.eye(3))
    assert result.features == (0, 0)
    assert result.matches == 0
    assert result.corner_error == np.inf
    assert draw_comparison(flat, flat, result).shape[1] == WIDTH


def test_the_demos_homography_is_exact() -> None:
    demo = pytest.importorskip("d2feat.demo")
    pytest.importorskip("skimage")
    pair = demo.load_pair("astronaut")
    size = pair.image1.shape[1::-1]
    by_day = cv2.warpPerspective(pair.image1, pair.homography, size, flags=cv2.INTER_CUBIC)
    result = compare("SIFT", cv2.SIFT_create(2048), pair.image1, by_day, pair.homography)
    assert result.corner_error is not None
    assert result.corner_error < 0.3  # SIFT localises no better
    assert result.planar
    centre = np.array([[[(size[0] - 1) / 2, (size[1] - 1) / 2]]])
    assert cv2.perspectiveTransform(centre, pair.homography) == pytest.approx(centre)
    assert pair.image2.mean() < 0.5 * by_day.mean()
    assert (demo.load_pair("astronaut").image2 == pair.image2).all()


def test_a_stereo_pair_is_explained_by_a_fundamental_matrix() -> None:
    pytest.importorskip("skimage")
    from d2feat.demo import STEREO, load_pair

    pair = load_pair(STEREO)
    result = compare("SIFT", cv2.SIFT_create(1000), pair.image1, pair.image2, pair.homography)
    assert result.corner_error is None
    assert not result.planar
    assert len(result.fundamental) > 1.5 * len(result.homography)
    # The pair is rectified: what the model calls an inlier lies on the same row.
    inliers = result.inliers
    assert np.percentile(np.abs(result.points1 - result.points2)[inliers, 1], 95) < 2


def test_spread_takes_every_region() -> None:
    crowd = np.random.default_rng(0).uniform(0, 10, (500, 2))
    outposts = np.array([[100, 0], [0, 100], [100, 100.0]])
    chosen = spread(np.vstack([crowd, outposts]), 20)
    assert len(set(chosen.tolist())) == 20
    assert {500, 501, 502} <= set(chosen.tolist())
    assert spread(crowd[:5], 20).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("shape1", "shape2"),
    [
        ((300, 400, 3), (300, 400, 3)),
        ((480, 640), (200, 900, 3)),
        ((900, 200, 3), (700, 300)),
        ((9, 9), (5, 3)),
    ],
)
def test_a_dot_lies_where_its_match_does(shape1: tuple[int, ...], shape2: tuple[int, ...]) -> None:
    images = np.zeros(shape1, np.uint8), np.full(shape2, 255, np.uint8)
    centres = [np.array([[(shape[1] - 1) / 2, (shape[0] - 1) / 2]]) for shape in (shape1, shape2)]
    plain = draw_matches(*images, np.zeros((0, 2)), np.zeros((0, 2)))
    drawn = draw_matches(*images, *centres)
    assert plain.shape == drawn.shape
    assert plain.shape[1] == WIDTH
    # The white image shows where it lies: the dot is in the middle of it.
    columns = np.flatnonzero((plain == 255).all(axis=(0, 2)))
    changed = (drawn != plain).any(axis=2)
    changed[:, : columns[0]] = False
    x, y = (columns[0] + columns[-1]) / 2, (plain.shape[0] - 1) / 2
    rows = np.flatnonzero(changed[:, round(x)])
    assert abs(rows.mean() - y) <= 1
    assert abs(np.flatnonzero(changed.any(axis=0)).max() - x - 4) <= 2


def test_pictures_of_any_shape_fit() -> None:
    points = np.array([[0.0, 0.0]])
    for shapes in (((1, 3000), (100, 100)), ((3000, 1), (1, 3000)), ((1, 3000), (1, 3000))):
        images = [np.full((*shape, 3), 200, np.uint8) for shape in shapes]
        assert draw_comparison(*images, result_of(points, points)).size > 0


def test_no_more_lines_than_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(0, 100, (1000, 2))
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = []
    line = cv2.line
    monkeypatch.setattr(cv2, "line", lambda *args: (drawn.append(1), line(*args))[1])
    draw_comparison(image, image, result_of(points, points))
    assert len(drawn) == MAX_LINES


def test_pictures_are_stacked_and_captions_fit() -> None:
    image = np.full((200, 300, 3), 200, np.uint8)
    points = np.array([[10.0, 10.0]])
    pictures = [
        draw_comparison(image, image, result_of(points, points, error)) for error in (0.5, None, np.inf)
    ]
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    assert stack(pictures).shape[0] > 3 * pictures[0].shape[0]
    caption = pictures[0][:56]
    assert caption.max() > 200
    assert caption[:, -10:].max() < 60
