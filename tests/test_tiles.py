"""Large images in tiles: the same features as in one piece, in bounded memory."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.tiles import GRID, MARGIN, margin, spans
from tests.conftest import assert_same_features, create, frozen, photograph

TILE = 256


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Larger than a tile both ways, and no multiple of anything."""
    return frozen(photograph("coffee", (301, 270)))


@pytest.fixture(scope="module")
def whole(large: np.ndarray) -> d2feat.Features:
    return create(tile=1024).extract(large)


@pytest.fixture(scope="module")
def tiled(large: np.ndarray) -> d2feat.Features:
    return create(tile=TILE).extract(large)


def test_tiles_cover_every_pixel_once_and_see_enough_around_it() -> None:
    for length in [1, 255, 256, 257, 300, 376, 377, 1000, 1001, 10_000]:
        for tile, overlap in [(256, 128), (300, 128), (1024, 128), (1024, 256)]:
            found = spans(length, tile, overlap)
            assert [span.first for span in found] == [0, *(span.last for span in found[:-1])]
            assert found[-1].last == found[-1].stop == length
            for span in found:
                assert 0 < span.stop - span.start <= tile
                assert span.start % GRID == 0
                assert span.start == 0 or span.first - span.start >= overlap // 2
                assert span.stop == length or span.stop - span.last >= overlap // 2
            assert len(found) == 1 or length > tile


def test_margin_is_in_pixels_of_the_coarsest_level() -> None:
    assert margin([1.0]) == margin([2.0]) == MARGIN
    assert margin(d2feat.MULTISCALE) == 4 * MARGIN


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick network of random filters with the paper's head, whose scores are not relative to anything."""
    torch = pytest.importorskip("torch", reason="a narrow network is exported here")
    pytest.importorskip("onnx", reason="a narrow network is exported here")
    from export.__main__ import export_checkpoint
    from export.trunk import D2Net

    torch.manual_seed(0)
    net = D2Net((8, 8, 16, 32))
    for name, value in net.state_dict().items():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(value)
    folder = tmp_path_factory.mktemp("narrow")
    torch.save({"model": net.state_dict()}, folder / "weights.pth")
    return export_checkpoint(folder / "weights.pth", folder / "narrow.onnx")


def test_paper_head_gives_the_same_in_tiles_as_in_one_piece(narrow: Path) -> None:
    image = photograph("coffee", (580, 390))
    one, many = (create(model=narrow, tile=tile).extract(image) for tile in (1024, TILE))
    assert len(one) > 500
    # Scores are equal but for rounding, so that ties may change places.
    one, many = (found[np.lexsort(found.keypoints.round(1).T)] for found in (one, many))
    assert_same_features(one, many, position=0.02, descriptor=1e-3)


def test_several_scales_agree_as_after_half_a_pixel(narrow: Path) -> None:
    """A scene moved by one pixel at twice the size, so by half a pixel, is the measure."""
    scene = photograph("coffee", (1202, 1082))
    image, moved = (cv2.resize(scene[i:, i:], (600, 540), interpolation=cv2.INTER_AREA) for i in (0, 1))
    detector = create(model=narrow, scales=(0.5, 1.0), tile=1024)
    one, other = detector.extract(image), detector.extract(moved)
    detector.setTile(512)
    many = detector.extract(image)
    assert abs(len(many) - len(one)) < 0.05 * len(one)

    def repeated(keypoints: np.ndarray) -> float:
        distance = np.linalg.norm(one.keypoints[:, None] - keypoints, axis=2)
        return float((distance.min(1) < 1).mean())

    assert repeated(many.keypoints) > repeated(other.keypoints + 0.5)


def test_fine_head_gives_nearly_the_same(whole: d2feat.Features, tiled: d2feat.Features) -> None:
    distance = np.linalg.norm(whole.keypoints[:, None] - tiled.keypoints, axis=2)
    nearest, offset = distance.argmin(1), distance.min(1)
    same = offset < 0.1
    assert abs(len(whole) - len(tiled)) <= 0.01 * len(whole)
    assert same.mean() > 0.99
    assert np.median(offset) < 0.01
    cosine = (whole.descriptors[same] * tiled.descriptors[nearest[same]]).sum(1)
    assert cosine.min() > 0.999
    ratio = tiled.scores[nearest[same]] / whole.scores[same]
    assert 0.8 < ratio.min() < ratio.max() < 1.25


def test_nothing_is_there_twice(tiled: d2feat.Features) -> None:
    distance = np.linalg.norm(tiled.keypoints[:, None] - tiled.keypoints, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1
    assert (np.diff(tiled.scores) <= 0).all()


def test_descriptors_at_given_points_are_the_same(large: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-20, 320, 200), rng.uniform(-20, 290, 200), np.ones(200)])
    one, many = (create(tile=tile).describe(large, points) for tile in (1024, TILE))
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-4)
    assert create(tile=TILE).describe(large, np.zeros((0, 3))).shape == (0, 512)


def test_given_number_mask_and_threshold_hold_for_the_image(
    large: np.ndarray, tiled: d2feat.Features
) -> None:
    mask = np.zeros(large.shape[:2], np.uint8)
    mask[40:110, 100:280] = 255
    column, row = np.rint(tiled.keypoints).astype(int).T
    inside = tiled[mask[row, column] > 0]
    assert len(inside) > 50
    found = create(50, scoreThreshold=float(inside.scores[40]), tile=TILE).extract(large, mask)
    assert_same_features(found, inside[:40])
    found = create(20, scoreThreshold=float(inside.scores[40]), tile=TILE).extract(large, mask)
    assert_same_features(found, inside[:20])
    assert create(tile=TILE).detectAndCompute(large, np.zeros_like(mask)) == ((), None)


def test_no_image_is_made_smaller(large: np.ndarray, tiled: d2feat.Features) -> None:
    assert_same_features(create(tile=TILE, maxEdge=100, maxSumEdges=150).extract(large), tiled)


def test_too_small_a_tile_is_an_error() -> None:
    with pytest.raises(d2feat.InputError, match="at least 256"):
        create(tile=100)
    detector = create(tile=TILE)
    with pytest.raises(d2feat.InputError, match="at least 512"):
        detector.setScales((1.0, 2.0))
    assert detector.getScales() == (1.0,)
    detector.setTile(0)
    detector.setScales(d2feat.MULTISCALE)
    assert "tile" not in repr(detector)


def test_copies_and_files_keep_the_tile(tmp_path: Path) -> None:
    detector = create(tile=300)
    assert pickle.loads(pickle.dumps(detector)).getTile() == 300
    detector.save(str(tmp_path / "d2.yml"))
    other = create()
    other.read(str(tmp_path / "d2.yml"))
    assert other.getTile() == 300
    assert "tile=300" in repr(other)


def test_levels_of_the_fine_head_are_tiled_one_by_one(large: np.ndarray) -> None:
    """Positions differ by what a level is sampled between the pixels, a fraction of a pixel of the level."""
    one, many = (create(scales=d2feat.MULTISCALE, tile=tile).extract(large) for tile in (8192, TILE))
    assert set(one.scales.tolist()) == set(many.scales.tolist())
    assert abs(len(many) - len(one)) <= 0.01 * len(one)
    offset = np.abs(one.keypoints[:, None] - many.keypoints).max(2) / one.scales[:, None]
    offset[one.scales[:, None] != many.scales] = np.inf
    nearest = offset.argmin(1)
    same = offset.min(1) < 0.25
    assert same.mean() > 0.98
    assert (one.descriptors[same] * many.descriptors[nearest[same]]).sum(1).min() > 0.99
    points = np.column_stack([one.keypoints, one.scales])
    described = create(scales=d2feat.MULTISCALE, tile=TILE).describe(large, points)
    assert (described * one.descriptors).sum(1).min() > 0.99
