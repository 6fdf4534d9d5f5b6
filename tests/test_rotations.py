"""Descriptors pooled over rotations, and features of simulated views."""

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.affine import View, simulate
from d2feat.matching import match_indices
from d2feat.rotations import rotate, to_angles

from .conftest import create, photograph

QUARTER = np.array([[0, 1], [-1, 0]], np.float32)
"""(x, y) to (y, -x): where a quarter turn counter-clockwise takes a direction."""


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return photograph("astronaut", (240, 200))


def turned_points(points: np.ndarray, width: int) -> np.ndarray:
    return (points @ QUARTER.T + (0, width - 1)).astype(np.float32)


def _disc(picture: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass of what is white about the expected place (its reflections lie elsewhere), and that."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    near = np.hypot(x - expected[0], y - expected[1]) < 14
    weight = np.where(near, picture[..., 0], 0).astype(float)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum(), expected


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 225, 270])
def test_a_turned_pixel_lies_where_the_map_says(degrees: float) -> None:
    image = np.zeros((61, 83, 3), np.uint8)
    cv2.circle(image, (50, 20), 4, (255, 255, 255), -1)
    turned, matrix = rotate(image, degrees)
    np.testing.assert_allclose(*_disc(turned, matrix @ (50, 20, 1)), atol=0.3)
    corners = np.array([[0, 0, 1], [82, 0, 1], [0, 60, 1], [82, 60, 1]]) @ matrix.T
    assert corners.min() > -1
    assert (corners < np.array(turned.shape[1::-1])).all()


def test_quarter_turns_of_the_image_leave_the_descriptors_as_they_are(picture: np.ndarray) -> None:
    detector = create(nfeatures=40, rotations=4)
    features = detector.extract(picture)
    turned = np.ascontiguousarray(np.rot90(picture))
    points = np.column_stack([turned_points(features.keypoints, picture.shape[1]), features.scales])
    np.testing.assert_allclose(detector.describe(turned, points), features.descriptors, atol=2e-3)
    upright = create(nfeatures=40)
    changed = np.sum(upright.describe(turned, points) * upright.extract(picture).descriptors, axis=1)
    assert np.median(changed) < 0.9, "upright descriptors are others after a quarter turn"


def test_only_descriptors_change(picture: np.ndarray) -> None:
    upright, pooled = (
        create(nfeatures=30).extract(picture),
        create(nfeatures=30, rotations=2).extract(picture),
    )
    np.testing.assert_array_equal(pooled.keypoints, upright.keypoints)
    np.testing.assert_array_equal(pooled.scores, upright.scores)
    np.testing.assert_allclose(np.linalg.norm(pooled.descriptors, axis=1), 1, atol=1e-5)
    assert (pooled.descriptors >= 0).all()


def test_compute_gives_what_detect_and_compute_does(picture: np.ndarray) -> None:
    detector = create(nfeatures=30, rotations=3)
    keypoints, descriptors = detector.detectAndCompute(picture)
    np.testing.assert_allclose(detector.compute(picture, keypoints)[1], descriptors, atol=1e-4)


def right_matches(one: d2feat.Features, two: d2feat.Features, matrix: np.ndarray) -> int:
    """Mutual nearest neighbours within 3 px of where the 2 x 3 matrix takes the first image's keypoints."""
    pairs, _ = match_indices(one.descriptors, two.descriptors)
    there = one.keypoints[pairs[:, 0]] @ matrix[:, :2].T + matrix[:, 2]
    return int((np.linalg.norm(there - two.keypoints[pairs[:, 1]], axis=1) < 3).sum())


@pytest.mark.parametrize("degrees", [60, 100, 180])
@pytest.mark.parametrize(("model", "least"), [("d2net", 150), ("d2net-lite", 120)])
def test_a_scene_turned_by_any_angle_is_matched(
    picture: np.ndarray, degrees: float, model: str, least: int
) -> None:
    turned, matrix = rotate(picture, degrees)
    detector = create(nfeatures=300, model=model)
    assert right_matches(detector.extract(picture), detector.extract(turned), matrix) > least


def test_pooling_over_rotations_matches_more_of_it(picture: np.ndarray) -> None:
    turned, matrix = rotate(picture, 135)
    right = []
    for rotations in (1, 4):
        detector = create(nfeatures=300, model="d2net-lite", rotations=rotations)
        one, two = detector.extract(picture), detector.extract(turned)
        right.append(right_matches(one, two, matrix))
    assert right[1] > right[0]


def turns(one: d2feat.Features, two: d2feat.Features, expected: float = 0) -> np.ndarray:
    """By how many degrees, 0 to 180, the angles of matched keypoints differ from the expected difference."""
    pairs, _ = match_indices(one.descriptors, two.descriptors, ratio=0.9)
    assert one.angles is not None
    assert two.angles is not None
    difference = two.angles[pairs[:, 1]] - one.angles[pairs[:, 0]] - expected
    return np.abs((difference + 180) % 360 - 180)


@pytest.mark.parametrize("degrees", [90, 140])
@pytest.mark.parametrize(("model", "typical"), [("d2net-lite", 20), ("d2net", 25)])
def test_angles_turn_with_the_scene(picture: np.ndarray, degrees: float, model: str, typical: float) -> None:
    """Those of a network that holds at any angle are less exact: it answers alike in whatever direction."""
    detector = create(nfeatures=200, model=model, rotations=8)
    turned, _ = rotate(picture, degrees)
    # Counter-clockwise; cv2 counts clockwise.
    error = turns(detector.extract(picture), detector.extract(turned), -degrees)
    assert np.median(error) < typical
    assert (error < 30).mean() > 0.65, "of all matches, a tenth of which are wrong"


def test_angles_are_below_360() -> None:
    directions = np.array([1, 1 + 1j, 1j, -1, -1j, 1 - 1e-12j])
    np.testing.assert_array_equal(to_angles(directions), [0, 45, 90, 180, 270, 0])


def test_keypoints_have_the_angles_whatever_made_them(picture: np.ndarray) -> None:
    detector = create(nfeatures=50, rotations=4)
    features = detector.extract(picture)
    assert features.angles is not None
    assert features.angles.dtype == np.float32
    assert ((features.angles >= 0) & (features.angles < 360)).all()
    assert len(np.unique(features.angles)) > 10
    assert [k.angle for k in features[:7].to_keypoints()] == features.angles[:7].tolist()
    assert {k.angle for k in create(nfeatures=5).detect(picture)} == {-1.0}
    tiled = create(rotations=4, tile=256).extract(cv2.resize(picture, (400, 480)))
    assert tiled.angles is not None
    assert len(tiled.angles) == len(tiled) > 50
    # A view that is turned, but not tilted, gives the image's own orientations back.
    affine = d2feat.AffineFeature(create(nfeatures=200, model="d2net-lite", rotations=8), maxTilt=0)
    affine.views = (View(1, 90),)
    assert np.median(turns(affine.backend.extract(picture), affine.extract(picture))) < 15


def test_tiles_and_small_images_are_pooled_too(picture: np.ndarray) -> None:
    whole = create(rotations=2, maxEdge=120)
    assert len(whole.extract(picture)) > 10
    assert create(rotations=2).extract(np.zeros((9, 9), np.uint8)).descriptors.shape == (0, 512)
    big = np.tile(picture, (2, 2, 1))
    found = create(rotations=2, tile=320).extract(big)
    one_piece = create(rotations=2).extract(big)
    assert abs(len(found) - len(one_piece)) < 0.02 * len(one_piece)


@pytest.mark.parametrize("count", [0, -1, 361, 1.5, "4"])
def test_a_senseless_number_of_rotations_is_refused(count: object) -> None:
    with pytest.raises(d2feat.InputError, match="rotations"):
        create(rotations=count)


def test_rotations_are_kept_by_copies_and_files(tmp_path: object) -> None:
    import copy

    detector = create(rotations=4)
    assert copy.copy(detector).getRotations() == 4
    assert "rotations=4" in repr(detector)
    path = str(tmp_path / "parameters.yml")  # type: ignore[operator]
    detector.save(path)
    other = create()
    other.read(path)
    assert other.getRotations() == 4


# Simulated views


@pytest.mark.parametrize("view", [View(1, 0), View(2, 0), View(2, 50), View(1.4, 120)])
def test_a_simulated_pixel_lies_where_the_map_says(view: View) -> None:
    image = np.zeros((121, 163, 3), np.uint8)
    cv2.circle(image, (100, 40), 8, (255, 255, 255), -1)
    picture, matrix = simulate(image, view)
    np.testing.assert_allclose(*_disc(picture, matrix @ (100, 40, 1)), atol=0.3)


def test_simulated_views_match_a_strong_tilt(picture: np.ndarray) -> None:
    tilted, matrix = simulate(cv2.resize(picture, (480, 400)), View(4, 45))
    small = cv2.resize(picture, (480, 400))
    right = []
    for detector in (
        create(nfeatures=200),
        d2feat.AffineFeature(create(nfeatures=200), maxTilt=4, minTilt=3),
    ):
        one, two = detector.extract(small), create(nfeatures=200).extract(tilted)
        right.append(right_matches(one, two, matrix))
    assert right[1] > 30
    assert right[1] > 2 * right[0]


def test_simulated_views_have_the_contract_of_a_feature2d(picture: np.ndarray) -> None:
    affine = d2feat.AffineFeature(create(nfeatures=50), maxTilt=1)
    assert isinstance(affine, cv2.Feature2D)
    assert len(affine.views) == 5
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:, :100] = 1
    keypoints, descriptors = affine.detectAndCompute(picture, mask)
    assert descriptors.shape == (len(keypoints), affine.descriptorSize())
    assert descriptors.dtype == np.float32
    assert 0 < max(keypoint.pt[0] for keypoint in keypoints) < 100
    identity = d2feat.AffineFeature.create(create(nfeatures=50), maxTilt=0)
    assert len(identity.detect(picture, mask)) == len(create(nfeatures=50).detect(picture, mask)) == 50
    responses = [keypoint.response for keypoint in keypoints]
    assert responses == sorted(responses, reverse=True)
    assert affine.detectAndCompute(np.zeros((64, 64), np.uint8), None) == ((), None)
    assert isinstance(affine.detectAndCompute(cv2.UMat(picture), None)[1], cv2.UMat)
    assert [len(found) for found in affine.detect([picture, picture[:0:-1]], [mask, None])] != [0, 0]
    affine.setViewParams([1, 2], [0, 30])
    assert affine.getViewParams() == ([1.0, 2.0], [0.0, 30.0])
    assert affine.views == (View(1, 0), View(2, 30))
    assert affine.detectAndCompute(picture, None, useProvidedKeypoints=True) == ((), None)
    with pytest.raises(d2feat.InputError, match="as many tilts as rolls"):
        affine.setViewParams([1, 2], [0])
    for call in (
        lambda: affine.setViewParams([np.nan], [0]),
        lambda: affine.setViewParams(5, 5),
        lambda: d2feat.AffineFeature(create(), 3000),
        lambda: d2feat.AffineFeature(create(), "a"),
        lambda: d2feat.AffineFeature(create(), 2.5),
        lambda: d2feat.AffineFeature(create(), tiltStep=None),
        lambda: d2feat.AffineFeature(create(), tilts=3),
        lambda: affine.detect(),
    ):
        with pytest.raises(cv2.error):
            call()
    with pytest.raises(d2feat.InputError, match=r"d2feat\.create"):
        d2feat.AffineFeature(cv2.ORB_create())
    with pytest.raises(d2feat.InputError, match="minTilt"):
        d2feat.AffineFeature(create(), maxTilt=1, minTilt=2)
