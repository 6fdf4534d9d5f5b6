"""`match`: the matches of `cv2.BFMatcher`, whatever the sizes, and what its options keep."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import d2feat
from d2feat import matching


def unit_vectors(seed: int, count: int, length: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, length)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def disturbed(descriptors: np.ndarray, amount: float = 0.5, seed: int = 9) -> np.ndarray:
    """The same descriptors in another order, each a little changed: some pairs are right, some are not."""
    random = np.random.default_rng(seed)
    shuffled = descriptors[random.permutation(len(descriptors))]
    noise = random.standard_normal(shuffled.shape) / np.sqrt(shuffled.shape[1])
    return (shuffled + amount * noise).astype(np.float32)


def pairs(matches: tuple[cv2.DMatch, ...]) -> list[tuple[int, int]]:
    return [(m.queryIdx, m.trainIdx) for m in matches]


def assert_same_matches(ours: tuple[cv2.DMatch, ...], theirs: tuple[cv2.DMatch, ...]) -> None:
    """The same pairs at the same distances, ours by queryIdx."""
    theirs = sorted(theirs, key=lambda m: m.queryIdx)
    assert {m.imgIdx for m in ours} == {m.imgIdx for m in theirs}
    assert pairs(ours) == pairs(theirs)
    np.testing.assert_allclose([m.distance for m in ours], [m.distance for m in theirs], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    query = unit_vectors(1, 200, 64)
    return query, np.vstack([disturbed(query)[:150], unit_vectors(2, 120, 64)])


def test_is_brute_force_with_cross_check(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    ours = d2feat.match(*two_sets)
    assert 100 < len(ours) < 200
    assert_same_matches(ours, cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(*two_sets))


def test_nothing_is_lost_where_all_are_far_from_zero(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    query, train = (1000 + descriptors for descriptors in two_sets)
    assert_same_matches(
        d2feat.match(query, train), cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(query, train)
    )


@pytest.mark.parametrize("most", [1, 9, 255])
def test_whole_numbers_are_matched_exactly(most: int) -> None:
    """However many are equally near."""
    random = np.random.default_rng(most)
    query, train = random.integers(0, most + 1, (2, 300, 32)).astype(np.float32)
    for cross_check in (False, True):
        theirs = cv2.BFMatcher(cv2.NORM_L2, crossCheck=cross_check).match(query, train)
        assert_same_matches(d2feat.match(query, train, crossCheck=cross_check), theirs)


def test_without_cross_check_is_plain_brute_force(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    ours = d2feat.match(*two_sets, crossCheck=False)
    assert len(ours) == len(two_sets[0])
    assert_same_matches(ours, cv2.BFMatcher(cv2.NORM_L2).match(*two_sets))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    others=st.integers(1, 40),
    length=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 512.0]),
    seed=st.integers(0, 2**32 - 1),
    cross_check=st.booleans(),
)
def test_is_brute_force_at_any_size(
    count: int, others: int, length: int, scale: float, seed: int, cross_check: bool
) -> None:
    random = np.random.default_rng(seed)
    # Few bits, so that OpenCV's sums and ours are exact; of equal distances either may be taken.
    query = (scale * random.integers(-128, 128, (count, length)) / 128).astype(np.float32)
    train = (scale * random.integers(-128, 128, (others, length)) / 128).astype(np.float32)
    distances = np.linalg.norm(query[:, None].astype(float) - train, axis=2)
    ours = d2feat.match(query, train, crossCheck=cross_check)
    theirs = cv2.BFMatcher(cv2.NORM_L2, crossCheck=cross_check).match(query, train)
    assert [m.distance for m in ours] == pytest.approx(
        [distances[p] for p in pairs(ours)], rel=1e-4, abs=1e-6
    )
    for query_index, train_index in pairs(ours):
        assert distances[query_index, train_index] <= distances[query_index].min() * (1 + 1e-5)
        if cross_check:
            assert distances[query_index, train_index] <= distances[:, train_index].min() * (1 + 1e-5)
    in_order = np.sort(distances, axis=1)
    columns = np.sort(distances, axis=0)
    tied = (others > 1 and np.isclose(in_order[:, 0], in_order[:, min(1, others - 1)], rtol=1e-4).any()) or (
        count > 1 and np.isclose(columns[0], columns[min(1, count - 1)], rtol=1e-4).any()
    )
    if not tied:
        assert pairs(ours) == sorted(pairs(theirs))


def test_sift_descriptors_are_matched_too(image: np.ndarray) -> None:
    sift = cv2.SIFT_create()
    first = sift.detectAndCompute(image, None)[1]
    second = sift.detectAndCompute(cv2.resize(image, None, fx=1.3, fy=1.3), None)[1]
    ours = d2feat.match(first, second, ratio=0.8)
    assert len(ours) > 20
    assert_same_matches(ours, mutual_by_ratio(first, second, 0.8))


def mutual_by_ratio(query: np.ndarray, train: np.ndarray, ratio: float) -> list[cv2.DMatch]:
    """Cross-checked matches that pass Lowe's test, by OpenCV alone."""
    mutual = set(pairs(cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(query, train)))
    both = cv2.BFMatcher(cv2.NORM_L2).knnMatch(query, train, k=2)
    return [
        best
        for best, second in both
        if best.distance < ratio * second.distance and (best.queryIdx, best.trainIdx) in mutual
    ]


@pytest.mark.parametrize("ratio", [0.6, 0.8, 0.95])
def test_ratio_is_lowes_test(ratio: float, two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    ours = d2feat.match(*two_sets, ratio=ratio)
    assert 0 < len(ours) < len(d2feat.match(*two_sets))
    assert_same_matches(ours, mutual_by_ratio(*two_sets, ratio))


def test_ratio_drops_what_fits_two_places_and_keeps_what_fits_one() -> None:
    query = np.eye(2, 4, dtype=np.float32)
    train = np.vstack([query, query[:1]])  # the first has a twin
    assert pairs(d2feat.match(query, train, ratio=0.9, crossCheck=False)) == [(1, 1)]


def test_ratio_needs_no_second_neighbour() -> None:
    query = unit_vectors(3, 5, 8)
    (only,) = d2feat.match(query, query[2:3], ratio=0.5)
    assert (only.queryIdx, only.trainIdx) == (2, 0)


def test_max_distance_is_inclusive_and_exact() -> None:
    train = np.zeros((1, 4), np.float32)
    query = np.array([[0, 0, 3, 4]], np.float32)
    assert len(d2feat.match(query, train, maxDistance=5)) == 1
    assert d2feat.match(query, train, maxDistance=4.999) == ()


def test_max_distance_keeps_the_near_ones(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    everything = d2feat.match(*two_sets)
    limit = float(np.median([m.distance for m in everything]))
    near = d2feat.match(*two_sets, maxDistance=limit)
    assert pairs(near) == [(m.queryIdx, m.trainIdx) for m in everything if m.distance <= limit]
    assert 0 < len(near) < len(everything)


def test_equal_descriptors_are_at_distance_zero() -> None:
    descriptors = unit_vectors(4, 300, 512)
    matches = d2feat.match(descriptors, descriptors.copy(), maxDistance=0)
    assert pairs(matches) == [(i, i) for i in range(300)]
    assert {m.distance for m in matches} == {0.0}


@pytest.mark.parametrize("elements", [1, 271, 1000, 20_000])
@pytest.mark.parametrize("options", [{}, {"crossCheck": False}, {"ratio": 0.8}], ids=str)
def test_result_does_not_depend_on_the_blocks(
    elements: int, options: dict, two_sets: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = d2feat.match(*two_sets, **options)
    monkeypatch.setattr(matching, "BLOCK_ELEMENTS", elements)
    assert_same_matches(d2feat.match(*two_sets, **options), whole)


def test_never_holds_more_similarities_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    query, train = unit_vectors(5, 2000, 8), unit_vectors(6, 2000, 8)

    def peak() -> int:
        tracemalloc.start()
        d2feat.match(query, train, ratio=0.9)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    whole = 4 * 2000 * 2000
    assert peak() > whole  # all in one block: this is what the limit is for
    monkeypatch.setattr(matching, "BLOCK_ELEMENTS", 100_000)
    assert peak() < whole / 4


@pytest.mark.parametrize("nothing", [None, np.zeros((0, 8), np.float32), np.zeros((0, 0)), cv2.UMat()])
def test_nothing_matches_nothing(nothing: object) -> None:
    some = unit_vectors(7, 3, 8)
    for options in ({}, {"ratio": 0.8}, {"crossCheck": False}, {"maxDistance": 1.0}):
        assert d2feat.match(nothing, some, **options) == ()
        assert d2feat.match(some, nothing, **options) == ()
        assert d2feat.match(nothing, nothing, **options) == ()


def test_one_against_one() -> None:
    (only,) = d2feat.match(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]))
    assert (only.queryIdx, only.trainIdx) == (0, 0)
    assert only.distance == pytest.approx(2**0.5)


def test_one_against_many() -> None:
    many = unit_vectors(8, 9, 16)
    assert pairs(d2feat.match(many[4:5], many)) == [(0, 4)]
    assert pairs(d2feat.match(many, many[4:5])) == [(4, 0)]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_types(dtype: type, two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    query, train = (one.astype(dtype) for one in two_sets)
    rounded = query.astype(np.float32), train.astype(np.float32)
    assert_same_matches(d2feat.match(query, train), d2feat.match(*rounded))


def test_views_and_umat(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    query, train = two_sets
    plain = d2feat.match(query, train)
    assert_same_matches(d2feat.match(np.asfortranarray(query), np.repeat(train, 2, 0)[::2]), plain)
    assert_same_matches(d2feat.match(cv2.UMat(query), cv2.UMat(train)), plain)


def test_inputs_are_not_written_to(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    query, train = (one.copy() for one in two_sets)
    query.setflags(write=False)
    train.setflags(write=False)
    d2feat.match(query, train, ratio=0.9, maxDistance=1)
    np.testing.assert_array_equal(query, two_sets[0])


def test_draw_matches_takes_them(
    detector: d2feat.D2Feature, image: np.ndarray, other_image: np.ndarray
) -> None:
    keypoints1, descriptors1 = detector.detectAndCompute(image)
    keypoints2, descriptors2 = detector.detectAndCompute(other_image)
    matches = d2feat.match(descriptors1, descriptors2)
    assert len(matches) > 3
    picture = cv2.drawMatches(image, keypoints1, other_image, keypoints2, matches, None)
    bare = cv2.drawMatches(image, keypoints1, other_image, keypoints2, (), None)
    assert picture.shape == (84, 112 + 120, 3)
    assert (picture != bare).any(axis=2).sum() > 100
