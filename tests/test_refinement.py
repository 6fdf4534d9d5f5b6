"""`refine`: positions of matches where the truth is known, and what it must leave alone."""

from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

import d2feat
from d2feat.evaluation.metrics import match_errors, project
from d2feat.evaluation.synthetic import relight, render
from d2feat.matching import match_indices
from d2feat.refinement import refine_points
from d2feat.refinement.affinities import local_affinities
from d2feat.refinement.sharpness import blur_between

SIZE = (480, 400)


def turned(degrees: float, scale: float = 1.0, tilt: float = 0.0) -> np.ndarray:
    """Homography of an image of `SIZE` about its middle."""
    middle = np.array([[1.0, 0, SIZE[0] / 2], [0, 1, SIZE[1] / 2], [0, 0, 1]])
    cos, sin = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return middle @ [[cos, -sin, 0], [sin, cos, 0], [tilt, 0, 1]] @ np.linalg.inv(middle)


def views(H: np.ndarray, name: str = "coffee") -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its view through the homography, each sampled once and without aliasing."""
    photo = cv2.cvtColor(getattr(data, name)(), cv2.COLOR_RGB2BGR)
    scale = np.sqrt(np.linalg.det(H[:2, :2]))
    smooth = cv2.GaussianBlur(photo, (0, 0), 0.45 / scale) if scale < 1 else photo
    return render(photo, np.eye(3), SIZE), render(smooth, H, SIZE)


def corners(
    image: np.ndarray, H: np.ndarray, noise: float, wrong: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of image 1 and, in image 2, their places up to noise, in px; a share of them is anywhere."""
    random = np.random.default_rng(0)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    points = cv2.goodFeaturesToTrack(grey, 500, 0.01, 5).reshape(-1, 2)
    there = project(points, H)
    inside = (
        (there > 12) & (there < np.array(SIZE) - 13) & (points > 12) & (points < np.array(SIZE) - 13)
    ).all(1)
    points, there = points[inside], there[inside] + random.normal(0, noise, (inside.sum(), 2))
    lost = random.random(len(points)) < wrong
    there[lost] = random.uniform(0, SIZE, (lost.sum(), 2))
    return points, there.astype(np.float32)


@pytest.mark.parametrize(
    "H",
    [
        turned(0),
        turned(40, tilt=3e-4),
        turned(-170),
        turned(10, scale=0.5),
        turned(10, scale=1 / 3),
        turned(20, scale=2),
        turned(-30, scale=3),
    ],
    ids=["as it is", "turned and tilted", "upside down", "half", "a third", "double", "triple"],
)
def test_matches_come_to_a_tenth_of_a_pixel(H: np.ndarray) -> None:
    """From a pixel beside it, with three of ten matches wrong; in pixels of the image with fewer of them."""
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.8, wrong=0.3)
    coarser = max(1.0, np.sqrt(np.linalg.det(H[:2, :2])))
    before = match_errors(points1, points2, H) / coarser
    after = match_errors(points1, refine_points(one, two, points1, points2), H) / coarser
    assert len(points1) > 25
    right = before < 5
    assert np.median(after[right]) < 0.1 < 0.2 < np.median(before[right])
    assert (after[right] < 0.5).mean() > 0.85


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6], ids=["light", "gamma", "blur", "noise", "JPEG"])
def test_light_blur_noise_and_jpeg_are_borne(number: int) -> None:
    H = turned(3, tilt=1e-4)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.8)
    changed = relight(two, number, np.random.default_rng(number))
    errors = match_errors(points1, refine_points(one, changed, points1, points2), H)
    assert np.median(errors) < 0.25
    assert (errors < 1).mean() > (match_errors(points1, points2, H) < 1).mean() + 0.2


@pytest.mark.parametrize("blur", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("blurred", [1, 2])
def test_a_blurred_image_is_no_less_exact(blur: float, blurred: int) -> None:
    """Sharp patches lie as well anywhere within what blur has spread: blurred alike they lie at one place."""
    H = turned(10, tilt=1e-4)
    images = list(views(H))
    points1, points2 = corners(images[0], H, noise=0.8)
    images[blurred - 1] = cv2.GaussianBlur(images[blurred - 1], (0, 0), blur)
    errors = match_errors(points1, refine_points(*images, points1, points2), H)
    assert np.median(errors) < (0.1 if blur < 4 else 0.4)


def test_noise_is_not_taken_for_sharpness() -> None:
    """Nor a darker image for a blurred one: only blur is, and its amount is found."""
    H = turned(5)
    one, two = views(H)
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) for image in (one, two)]
    points1, points2 = corners(one, H, noise=0.0)
    maps = np.broadcast_to(H[:2, :2].astype(np.float32), (len(points1), 2, 2))

    def blur(image1: np.ndarray, image2: np.ndarray) -> float:
        return blur_between(image1, image2, (1.0, 1.0), points1, points2, maps)

    noisy = greys[1] + np.random.default_rng(0).normal(0, 20, greys[1].shape).astype(np.float32)
    assert blur(*greys) == blur(greys[0], noisy) == blur(noisy, greys[0]) == blur(greys[0], greys[1] / 4) == 0
    for amount in (1.0, 1.5, 3.0, 5.0):
        soft = cv2.GaussianBlur(greys[1], (0, 0), amount)
        assert blur(greys[0], soft) == pytest.approx(amount, rel=0.2)
        assert blur(cv2.GaussianBlur(greys[0], (0, 0), amount), greys[1]) == pytest.approx(-amount, rel=0.2)


def test_gain_and_offset_change_nothing() -> None:
    one, two = views(turned(5))
    points1, points2 = corners(one, turned(5), noise=0.5)
    darker = (two * 0.5 + 40).astype(np.uint8)
    same, other = (refine_points(one, image, points1, points2) for image in (two, darker))
    assert np.median(np.linalg.norm(same - other, axis=1)) < 0.02


def test_features_of_two_cameras_come_nearer_to_their_rows() -> None:
    """A rectified pair, real depth: a match's rows are the same in both images."""
    left, right = (cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in data.stereo_motorcycle()[:2])
    for detector in (d2feat.create(1000, model="d2net-lite-int8"), cv2.SIFT_create(1000)):
        (kp1, des1), (kp2, des2) = (detector.detectAndCompute(image, None) for image in (left, right))
        matches = d2feat.match(des1, des2, ratio=0.9)
        raw = [np.array([kp.pt for kp in found], np.float32) for found in (kp1, kp2)]
        source, target = d2feat.refine(left, kp1, right, kp2, matches)
        assert source.dtype == target.dtype == np.float32
        assert np.array_equal(source, raw[0][[m.queryIdx for m in matches]])
        rows = raw[1][[m.trainIdx for m in matches], 1] - source[:, 1]
        refined = target[:, 1] - source[:, 1]
        assert np.median(np.abs(refined[np.abs(refined) < 3])) < 0.9 * np.median(
            np.abs(rows[np.abs(rows) < 3])
        )
        assert (np.abs(refined) < 0.5).mean() > (np.abs(rows) < 0.5).mean()


def test_arrays_and_objects_say_the_same() -> None:
    H = turned(10)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.5)
    count = len(points1)
    order = np.random.default_rng(1).permutation(count)
    indices = np.column_stack([order, order])
    keypoints = [tuple(cv2.KeyPoint(float(x), float(y), 32) for x, y in some) for some in (points1, points2)]
    matches = [cv2.DMatch(int(i), int(i), 0.0) for i in order]
    source, target = d2feat.refine(one, points1, two, points2, indices)
    assert np.array_equal(source, points1[order])
    for some in (
        d2feat.refine(one, keypoints[0], two, keypoints[1], matches),
        d2feat.refine(cv2.UMat(one), points1.astype(np.float64), two, keypoints[1], tuple(matches)),
        d2feat.refine(one, np.array(keypoints[0]), two, points2[:, None], np.array(matches)),
        d2feat.refine(one, points1[order], two, points2[order, None]),
    ):
        assert np.array_equal(some[0], source)
        assert np.array_equal(some[1], target)
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (one, two)]
    assert np.array_equal(d2feat.refine(grey[0], points1, grey[1], points2, indices)[1], target)


def test_nothing_given_is_written_to() -> None:
    H = turned(10)
    given = [*views(H), *corners(views(H)[0], H, noise=0.5)]
    copies = [array.copy() for array in given]
    for array in given:
        array.setflags(write=False)
    one, two, points1, points2 = given
    indices = np.repeat(np.arange(len(points1))[:, None], 2, axis=1)
    assert not np.array_equal(d2feat.refine(one, points1, two, points2, indices)[1], points2)
    assert all(np.array_equal(array, copy) for array, copy in zip(given, copies, strict=True))


def test_what_cannot_be_refined_stays() -> None:
    H = turned(5)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.5)
    # Nothing to see in either image; or nothing alike.
    flat = np.full_like(one, 90)
    noise = np.random.default_rng(2).integers(0, 256, two.shape, np.uint8)
    for image1, image2 in ((flat, flat), (one, flat), (flat, two), (one, noise)):
        assert np.array_equal(refine_points(image1, image2, points1, points2), points2)
    # Neighbours that agree on nothing.
    anywhere = np.random.default_rng(3).uniform(0, SIZE, points1.shape).astype(np.float32)
    moved = (refine_points(one, two, points1, anywhere) != anywhere).any(1)
    assert moved.mean() < 0.05
    # A mirrored scene: no camera sees the like.
    mirrored = points1 * (-1, 1) + (SIZE[0] - 1, 0)
    flipped = np.ascontiguousarray(one[:, ::-1])
    assert np.array_equal(refine_points(one, flipped, points1, mirrored.astype(np.float32)), mirrored)


def test_no_match_moves_far() -> None:
    """Blurred, so that each is drawn to its place from far away; from 6 px it comes there, from 20 not."""
    one = cv2.GaussianBlur(views(turned(0))[0], (0, 0), 8)
    points1 = np.random.default_rng(0).uniform(60, 340, (200, 2)).astype(np.float32)
    for offset, comes in ((6, True), (20, False)):
        points2 = points1 + np.float32((offset, 0))
        refined = refine_points(one, one, points1, points2)
        assert np.linalg.norm(refined - points2, axis=1).max() < 15
        assert ((np.linalg.norm(refined - points1, axis=1) < 1).mean() > 0.5) == comes


def test_a_match_on_a_straight_edge_does_not_run_along_it() -> None:
    random = np.random.default_rng(0)
    edge = np.where(np.arange(300)[:, None] < 150, 60, 180) * np.ones((1, 400))
    one, two = (
        np.clip(cv2.GaussianBlur(edge, (0, 0), 1) + random.normal(0, 4, edge.shape), 0, 255).astype(np.uint8)
        for _ in range(2)
    )
    points1 = np.column_stack([random.uniform(30, 370, 200), random.uniform(145, 155, 200)]).astype(
        np.float32
    )
    points2 = points1 + random.normal(0, 1, points1.shape).astype(np.float32)
    along, across = np.abs(refine_points(one, two, points1, points2) - points1).T
    assert np.median(across) < 0.25
    assert np.median(along) < 1.2 * np.median(np.abs(points2 - points1)[:, 0])
    assert along.max() < 8


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_matches_at_the_rim_are_refined_by_what_both_images_show(turn: float) -> None:
    """The rim of image 2 runs through the patches, and beyond it is not what image 1 shows."""
    H = turned(turn)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.5)
    for image1, image2, first, second, truth in (
        (one, np.ascontiguousarray(two[:, 100:]), points1, points2 - np.float32((100, 0)), H),
        (np.ascontiguousarray(two[:, 100:]), one, points2 - np.float32((100, 0)), points1, np.linalg.inv(H)),
    ):
        cut = np.array([[1.0, 0, -100], [0, 1, 0], [0, 0, 1]])
        truth = cut @ truth if image2 is not one else truth @ np.linalg.inv(cut)
        there = second if image2 is not one else first
        near = (there[:, 0] > 1) & (there[:, 0] < 10)
        inside = there[:, 0] > -0.5
        before = match_errors(first, second, truth)
        refined = second.copy()
        refined[inside] = refine_points(image1, image2, first[inside], second[inside])
        after = match_errors(first, refined, truth)
        assert near.sum() > 5
        assert np.median(after[near]) < 0.2 < np.median(before[near])
        assert (after[near] > before[near] + 0.3).sum() <= 1


def test_places_outside_of_an_image_or_nowhere_stay() -> None:
    H = turned(0)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.5)
    outside = np.float32([(-5, 10), (np.nan, 10), (SIZE[0] + 1, 10), (np.inf, 3), (20, SIZE[1]), (1e30, 1)])
    within = np.tile(np.float32((100, 100)), (len(outside), 1))
    for extra1, extra2 in ((outside, within), (within, outside)):
        refined = refine_points(one, two, np.vstack([points1, extra1]), np.vstack([points2, extra2]))
        np.testing.assert_array_equal(refined[len(points1) :], extra2)
        assert np.array_equal(refined[: len(points1)], refine_points(one, two, points1, points2))


def test_images_of_any_size_are_taken() -> None:
    points = np.random.default_rng(0).uniform(0, 3, (40, 2)).astype(np.float32)
    for shape in ((1, 1), (1, 60), (2, 2), (4, 4, 3), (70, 3, 4)):
        image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        assert np.isfinite(refine_points(image, image, points, points)).all()


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_few_matches(count: int) -> None:
    one, two = views(turned(0))
    points1, points2 = corners(one, turned(0), noise=0.5)
    indices = np.repeat(np.arange(count)[:, None], 2, axis=1)
    source, target = d2feat.refine(one, points1, two, points2, indices)
    assert source.shape == target.shape == (count, 2)
    if count < 6:
        assert np.array_equal(target, points2[:count])
    nothing = np.array([])
    for none in (d2feat.refine(one, (), two, None, ()), d2feat.refine(one, nothing, two, nothing, nothing)):
        assert none[0].shape == none[1].shape == (0, 2)


def test_matches_of_one_place_are_all_refined() -> None:
    """As a keypoint found at several levels gives them; they say nothing of the map about it."""
    H = turned(30)
    one, two = views(H)
    points1, points2 = corners(one, H, noise=0.0)
    again1, again2 = (np.repeat(points, 12, axis=0) for points in (points1, points2))
    again2 = again2 + np.random.default_rng(4).normal(0, 0.8, again2.shape).astype(np.float32)
    errors = match_errors(again1, refine_points(one, two, again1, again2), H)
    assert np.median(errors) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image1": None}, "image is None"),
        ({"image2": np.zeros((4, 4), np.float32)}, "must be 8-bit"),
        ({"keypoints1": np.zeros((3, 3))}, r"N x 2 array of numbers, not float64 of shape \(3, 3\)"),
        ({"keypoints2": [1, 2]}, "sequence of cv2.KeyPoint"),
        ({"matches": [[cv2.DMatch(0, 0, 0.0)]]}, "of the lists that knnMatch gives take the first"),
        ({"matches": np.zeros((2, 2))}, r"M x 2 array of indices, not float64 of shape \(2, 2\)"),
        ({"matches": [cv2.DMatch(1, 3, 0.0)]}, "of keypoint 3 of image 2, which has 3"),
        ({"matches": np.array([(-1, 0)])}, "of keypoint -1 of image 1"),
        ({"matches": None, "keypoints2": np.zeros((2, 2))}, "3 and 2 keypoints do not match one by one"),
        ({"image1": np.zeros((1, 32767), np.uint8)}, "at most 32766 px"),
    ],
)
def test_bad_input_is_told(change: dict[str, Any], message: str) -> None:
    image, points = np.zeros((40, 40), np.uint8), np.zeros((3, 2), np.float32)
    given = {"image1": image, "keypoints1": points, "image2": image, "keypoints2": points, "matches": ()}
    with pytest.raises(d2feat.InputError, match=message):
        d2feat.refine(**(given | change))


# ---- affinities


def test_neighbours_agree_on_the_map_though_half_are_wrong() -> None:
    random = np.random.default_rng(0)
    truth = np.float32([(0.6, -1.1), (1.2, 0.7)])
    points1 = random.uniform(0, 300, (400, 2)).astype(np.float32)
    points2 = (points1 @ truth.T + (30, -50) + random.normal(0, 0.3, points1.shape)).astype(np.float32)
    wrong = random.random(400) < 0.55
    points2[wrong] = random.uniform(-300, 600, (wrong.sum(), 2))
    maps, believed = local_affinities(points1, points2)
    assert believed[~wrong].mean() > 0.8
    assert believed[wrong].mean() < 0.05
    apart = np.abs(maps[believed & ~wrong] - truth).max((1, 2))
    assert np.median(apart) < 0.03
    assert np.quantile(apart, 0.95) < 0.15


@pytest.mark.parametrize(
    "linear",
    [np.diag([-1.0, 1]), np.diag([9.0, 9]), np.diag([0.1, 0.1]), np.diag([200, 1 / 200])],
    ids=["mirror", "9", "1 / 10", "a line"],
)
def test_maps_that_are_none_are_not_believed(linear: np.ndarray) -> None:
    points = np.random.default_rng(0).uniform(0, 300, (100, 2)).astype(np.float32)
    assert not local_affinities(points, (points @ linear).astype(np.float32))[1].any()


def test_matches_along_a_line_say_nothing_of_the_map() -> None:
    points = np.column_stack([np.arange(0, 300, 5), np.full(60, 7)]).astype(np.float32)
    assert not local_affinities(points, points)[1].any()


def test_the_map_does_not_depend_on_the_order() -> None:
    random = np.random.default_rng(5)
    points1 = random.uniform(0, 300, (300, 2)).astype(np.float32)
    points1 = points1[np.unique(np.floor(points1 / 2), axis=0, return_index=True)[1]]  # no place twice
    points2 = (points1 + random.normal(0, 0.5, points1.shape)).astype(np.float32)
    order = random.permutation(len(points1))
    maps, believed = local_affinities(points1, points2)
    others, too = local_affinities(points1[order], points2[order])
    assert np.array_equal(believed[order], too)
    np.testing.assert_allclose(maps[order], others, atol=1e-5)


def test_mutual_matches_of_the_fast_model_come_within_a_fifth_of_a_pixel() -> None:
    """End to end, from images to positions, as a program has it."""
    H = turned(15, scale=0.8)
    one, two = views(H, "astronaut")
    detector = d2feat.create(1000, model="d2net-lite")
    found = [detector.extract(image) for image in (one, two)]
    indices, _ = match_indices(found[0].descriptors, found[1].descriptors)
    source, target = d2feat.refine(one, found[0].keypoints, two, found[1].keypoints, indices)
    raw = match_errors(source, found[1].keypoints[indices[:, 1]], H)
    errors = match_errors(source, target, H)
    assert np.median(errors[errors < 3]) < 0.1 < 0.2 < np.median(raw[raw < 3])
    assert (errors < 1).mean() > (raw < 1).mean() + 0.05
