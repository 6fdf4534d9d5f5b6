"""Training: exact pairs, objectives against hand-computed cases, and a trainer that survives kill -9."""

import csv
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from skimage import data
from torch import Generator, Tensor

from export.checkpoint import read_checkpoint
from export.graph import build_graph, save_model
from export.trunk import D2Net
from training import labels
from training import objectives as o
from training.__main__ import _changes, main
from training.average import average
from training.config import Config, Geometry, Light, Weights, config_from_dict
from training.judge import judge, mutual_nearest, reprojection_errors
from training.loss import adapted_scores, losses, run_fine_head, total
from training.pairs import (
    Correspondence,
    Pairs,
    block_noise,
    change_light,
    correspondence,
    gaussian_blur,
    make_pairs,
    pixel_grid,
    project,
    random_views,
    sample,
)
from training.photos import Photos, read_photos, stack
from training.policy import policy
from training.trainer import LOG, STATE, Trainer, TrainingError, schedule

ROOT = Path(__file__).parent.parent
WIDTHS = (8, 8, 8, 16)
CALM = Light(night=0, share=0)
TINY = Config(
    steps=4, batch=2, size=64, positions=16, adaptations=1, holdout=2, judge_every=1e9, judge_pairs=0,
    save_every=1e9,
    weights=Weights(
        match=1.0, triplet=1.0, repeatability=1.0, peakiness=1.0, coincidence=1.0, reprojection=1.0,
        matchability=1.0, multilevel=1.0, policy=1.0, warped_target=1.0, adaptation=1.0, evolution=1.0,
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by threads, and gravely so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos() -> Photos:
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in (data.astronaut(), data.coffee())]  # type: ignore[no-untyped-call]
    patches = [
        image[y : y + 160, x : x + 200] for image in images for y in (0, 120, 240) for x in (0, 90, 180)
    ]
    return stack([np.ascontiguousarray(patch) for patch in patches], (160, 200))


def tiny_net(seed: int = 0) -> D2Net:
    torch.manual_seed(seed)
    return D2Net(WIDTHS, fine=4, descriptor_relu=False)


def smooth_photos() -> Photos:
    """Photographs whose colour says where one is: blue = x, green = y (exact under interpolation)."""
    image = np.zeros((200, 250, 3), np.uint8)
    image[..., 0] = np.arange(250)
    image[..., 1] = np.arange(200)[:, None]
    return stack([image], (200, 250))


# Photographs


def test_photographs_come_from_folders_and_shards_in_order_lying(tmp_path: Path) -> None:
    standing = np.zeros((300, 100, 3), np.uint8)
    standing[:100] = 255
    cv2.imwrite(str(tmp_path / "b.png"), standing)
    cv2.imwrite(str(tmp_path / "c.png"), np.full((700, 1600, 3), 9, np.uint8))
    (tmp_path / "a.txt").write_text("no photograph")
    (tmp_path / "broken.jpg").write_bytes(b"no photograph either")
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        path = tmp_path / "inner.png"
        cv2.imwrite(str(path), np.full((80, 90, 3), 5, np.uint8))
        shard.add(path, "x/inner.png")
        path.unlink()
    read = read_photos(tmp_path)
    assert read.sizes.tolist() == [[90, 80], [300, 100], [480, 320]]
    assert int(read.canvases[0, 0, 79, 89]) == 5
    assert int(read.canvases[0, 0, 80, 89]) == 0
    assert sorted({int(read.canvases[1, 0, 50, 10]), int(read.canvases[1, 0, 50, 290])}) == [0, 255]
    assert len(read_photos(tmp_path, limit=2)) == 2
    with pytest.raises(FileNotFoundError, match="no readable photograph"):
        read_photos(_folder(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_photos(tmp_path / "nowhere")


def test_files_that_are_no_photographs_are_skipped_and_no_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    with pytest.raises(FileNotFoundError, match="no readable photograph"):
        read_photos(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((80, 90, 3), 5, np.uint8))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "._a.png").write_bytes(content)
    assert len(read_photos(tmp_path)) == 1
    assert len(read_photos(tmp_path / "a.png")) == 1
    with tarfile.open(tmp_path / "cut.tar", "w") as shard:
        for name in ("a.png", "._a.png"):
            shard.add(tmp_path / name, f"x/{name}")
    assert len(read_photos(tmp_path / "cut.tar")) == 1
    for broken in ((tmp_path / "cut.tar").read_bytes()[: 512 + len(content) // 2], b"nothing", b""):
        (tmp_path / "cut.tar").write_bytes(broken)
        with pytest.raises(ValueError, match=r"cut\.tar is not a tar file, or is damaged"):
            read_photos(tmp_path)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_held_out_photographs_are_the_last_and_never_all(photos: Photos) -> None:
    kept, held_out = photos.split(2)
    assert (len(kept), len(held_out)) == (16, 2)
    assert torch.equal(held_out.canvases, photos.canvases[-2:])
    assert len(photos.split(100)[1]) == 2


# Pairs


def test_the_homography_takes_content_to_content() -> None:
    """Colours that encode the photograph's coordinates must agree at corresponding points."""
    geometry = Geometry(strong_share=1.0)
    pairs = make_pairs(smooth_photos(), 32, (96, 96), geometry, CALM, Generator().manual_seed(1))
    positions, shown = pairs.forth
    assert float(shown.float().mean()) > 0.3
    there = sample(pairs.second, positions)[:, :2]
    error = (there - pairs.first[:, :2]).abs().amax(1)[shown]
    # Grey levels are photograph pixels; both views are rounded to whole ones.
    assert float(error.max()) < 1.2
    assert float(error.mean()) < 0.4
    signed = (there - pairs.first[:, :2]).permute(1, 0, 2, 3)[:, shown].mean(1)
    assert float(signed.abs().max()) < 0.03, "a bias would be a fraction of a pixel between the views"


def test_a_swapped_pair_is_the_inverse() -> None:
    pairs = make_pairs(smooth_photos(), 4, (64, 80), Geometry(), CALM, Generator().manual_seed(2))
    there, _ = pairs.forth.at(points := torch.rand(4, 200, 2) * 60)
    back, known = pairs.swapped().forth.at(there)
    assert float(known.float().mean()) > 0.4
    torch.testing.assert_close(back[known], points[known], atol=5e-3, rtol=0)


def test_views_cover_what_the_configuration_says() -> None:
    geometry = Geometry(rotation=0, strong_rotation=90, strong_share=1, zoom=2, perspective=0, stretch=1)
    sizes = torch.tensor([[200, 160]]).expand(200, 2)
    first, second = random_views(sizes, (64, 64), geometry, Generator().manual_seed(3))
    linear = (torch.linalg.inv(second) @ first)[:, :2, :2]
    scale = torch.linalg.det(linear).sqrt()
    assert 0.49 < float(scale.min()) < 0.6
    assert 1.7 < float(scale.max()) < 2.01
    angle = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert float(angle.min()) < -70
    assert float(angle.max()) > 70


def test_shrinking_is_filtered() -> None:
    """Stripes of one pixel become grey when a view pixel covers two, instead of aliasing."""
    stripes = np.zeros((200, 240, 3), np.uint8)
    stripes[:, ::2] = 255
    still = Geometry(
        rotation=0, strong_share=0, zoom=1, perspective=0, stretch=1, shift=0, coarsest=(2.0, 2.0)
    )
    pairs = make_pairs(stack([stripes], (200, 240)), 1, (64, 64), still, CALM, Generator().manual_seed(0))
    assert float(pairs.first.std()) < 1
    assert abs(float(pairs.first.mean()) - 127.5) < 1


def test_projection_against_hand_computed_points() -> None:
    homography = torch.tensor([[[2.0, 0, 1], [0, 2, -1], [0.5, 0, 1]]])
    mapped = project(homography, torch.tensor([[[2.0, 3.0], [0.0, 0.0]]]))
    torch.testing.assert_close(mapped, torch.tensor([[[2.5, 2.5], [1.0, -1.0]]]))
    behind = project(homography, torch.tensor([[[-4.0, 0.0]]]))
    assert float(behind.abs().max()) > 1e5
    assert bool(torch.isfinite(behind).all())


def test_light_changes_light_only_and_repeats(photos: Photos) -> None:
    images = photos.canvases[:8].float()
    again = [change_light(images, Light(), Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)
    assert torch.equal(again[0], again[0].round())
    assert 0 <= float(again[0].min()) <= float(again[0].max()) <= 255
    assert float((again[0] - images).abs().mean()) > 5
    untouched = change_light(images, Light(), Generator().manual_seed(5), strength=0)
    night_free = change_light(images, CALM, Generator().manual_seed(5))
    torch.testing.assert_close(untouched, images, atol=1.0, rtol=0)
    torch.testing.assert_close(night_free, images, atol=1.0, rtol=0)
    night = change_light(images, Light(night=1, share=0), Generator().manual_seed(5))
    assert float(night.mean()) < 0.5 * float(images.mean())


def test_blur_and_blocks() -> None:
    impulse = torch.zeros(2, 1, 41, 41)
    impulse[:, :, 20, 20] = 1
    blurred = gaussian_blur(impulse, torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    grid = pixel_grid(41, 41, impulse.device) - 20
    variance = (blurred[0, 0].unsqueeze(2) * grid**2).sum((0, 1))
    torch.testing.assert_close(variance, torch.tensor([4.0, 1.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(blurred[1], impulse[1])

    image = torch.rand(1, 3, 21, 30) * 255
    torch.testing.assert_close(block_noise(image, torch.zeros(1, 1, 1, 1)), image, atol=0.01, rtol=0)
    coarse = block_noise(image, torch.full((1, 1, 1, 1), 1e4))
    assert float(coarse[0, 0, :8, :8].std()) < 1e-3, "only the mean survives such a quantisation"


# Objectives


def shifted(size: int, by: float = 0.0, batch: int = 1) -> Correspondence:
    """The truth between views of which the second shows everything `by` px further right."""
    homography = torch.eye(3).repeat(batch, 1, 1)
    homography[:, 0, 2] = by
    everywhere = torch.ones(batch, 1, size, size, dtype=torch.bool)
    return correspondence(homography, everywhere, everywhere)


APART = torch.arange(2)
"""Scene numbers of two pairs that show different things."""


def identity_points(points: Tensor) -> o.Points:
    return o.Points(points, points, torch.ones(points.shape[:2], dtype=torch.bool))


def test_soft_scores_against_a_hand_computed_map() -> None:
    dense = torch.zeros(1, 1, 3, 3)
    dense[0, 0, 1, 1] = 2.0
    score = o.soft_scores(dense)[0, 0]
    # alpha = e / (e + 8) and beta = 1 in the centre, gamma = 0 elsewhere: all of the sum is there.
    assert float(score[1, 1]) == pytest.approx(1.0)
    two = torch.zeros(1, 2, 3, 3)
    two[0, 0, 1, 1], two[0, 1, 0, 0] = 2.0, 1.0
    one, other = math.e / (math.e + 8), math.exp(0.5) / (math.exp(0.5) + 8)
    assert float(o.soft_scores(two)[0, 0, 0, 0]) == pytest.approx(other / (one + other))


def test_all_zero_maps_give_no_nan() -> None:
    dense = torch.zeros(2, 4, 15, 15, requires_grad=True)
    score = o.fine_scores(dense, torch.zeros(2, 1, 64, 64) + 1e-12)
    points = identity_points(torch.rand(2, 5, 2) * 50 + 4)
    shown = torch.ones(2, 64, 64, dtype=torch.bool)
    generator = Generator().manual_seed(0)
    truth = shifted(64, batch=2)
    found = torch.ones(2, 5, dtype=torch.bool)
    terms = [
        o.info_nce(dense, dense, points, APART, 0.07, 1.5)[0].mean(),
        o.triplet(dense, dense, points, 1.5),
        o.repeatability(score, score, shown, 8),
        o.repeatability(score, score, torch.zeros_like(shown), 8),
        o.coincidence(score, score, shown, 8, 4.0, 0.7, generator),
        o.reprojection(score, score, points, truth),
        o.matchability(score, score, points, found, 1.5),
        o.multilevel(torch.ones(2, 5), (score, score), (dense, dense), points),
        policy((score, score), (dense, dense), truth, 8, 4.0, 0.07, generator),
        labels.warped_target(score, score, shown),
        labels.adaptation(score, labels.best_maxima(score), 8, generator),
        labels.evolution(score, points, found),
        o.soft_scores(dense).sum(),
    ]
    torch.autograd.backward(torch.stack(terms).sum())
    assert all(bool(torch.isfinite(term)) for term in terms)
    assert dense.grad is not None
    assert bool(torch.isfinite(dense.grad).all())


def test_info_nce_against_hand_computed_similarities() -> None:
    """Unit vectors e0 at the anchor and its match, e1 at all other cells, e2 in the other image."""
    dense = torch.zeros(2, 3, 5, 5)
    dense[0, 1], dense[1, 2] = 1.0, 1.0
    dense[0, :, 2, 2] = torch.tensor([1.0, 0, 0])
    points = identity_points(torch.tensor([[[11.5, 11.5]], [[11.5, 11.5]]]))
    loss, matched = o.info_nce(dense, dense, points, APART, 0.5, 1.5)
    # Radius 1.5 leaves 25 - 9 = 16 negatives of similarity 0, and 25 of the other image.
    assert float(loss[0, 0]) == pytest.approx(math.log(math.exp(2) + 16 + 25) - 2, rel=1e-5)
    assert matched.tolist() == [[True], [False]], "in the second image everything looks alike"
    alone, _ = o.info_nce(dense, dense, points, torch.zeros(2), 0.5, 1.5)
    assert float(alone[0, 0]) == pytest.approx(math.log(math.exp(2) + 16) - 2, rel=1e-5), "one scene"


def test_info_nce_samples_descriptors_between_cells() -> None:
    dense = torch.randn(2, 6, 9, 9)
    at = torch.tensor([[[3.5 + 4 * 2.25, 3.5 + 4 * 5.5]]]).expand(2, -1, -1)
    expected = (
        0.75 * (dense[:, :, 5, 2] + dense[:, :, 6, 2]) / 2
        + 0.25 * (dense[:, :, 5, 3] + dense[:, :, 6, 3]) / 2
    )
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(o.descriptors(dense, at)[:, 0], expected)


def test_triplet_against_a_hand_computed_case() -> None:
    dense = torch.zeros(1, 2, 7, 7)
    dense[:, 0] = 1.0
    dense[0, :, 3, 3] = torch.tensor([0.6, 0.8])
    points = identity_points(torch.tensor([[[15.5, 15.5]]]))
    # p = 0; the hardest negative is (1, 0): cosine 0.6, squared distance 0.8; margin 1 leaves 0.2.
    assert float(o.triplet(dense, dense, points, 1.5)) == pytest.approx(0.2, abs=1e-5)
    points = points._replace(valid=torch.zeros(1, 1, dtype=torch.bool))
    assert float(o.triplet(dense, dense, points, 1.5)) == 0


def peak_map(x: int, y: int, size: int = 32) -> Tensor:
    score = torch.full((1, 1, size, size), 1e-6)
    score[0, 0, y::8, x::8] = 1.0
    return score


def test_coincidence_and_repeatability_prefer_peaks_that_agree() -> None:
    shown = torch.ones(1, 32, 32, dtype=torch.bool)

    def terms(one: Tensor, two: Tensor) -> tuple[float, float]:
        agreement = o.coincidence(one, two, shown, 8, 4.0, 0.7, Generator().manual_seed(0))
        return float(agreement), float(o.repeatability(one, two, shown, 8))

    same, apart = terms(peak_map(3, 3), peak_map(3, 3)), terms(peak_map(3, 3), peak_map(7, 3))
    assert same[0] == pytest.approx(0, abs=1e-4)
    assert same[1] == pytest.approx(0, abs=1e-4)
    assert apart[1] == pytest.approx(1, abs=1e-3)
    # Peaks 4 px apart, tolerance 0.7: exp(-16 / 0.98), which is nothing beside the floor of 0.05.
    assert apart[0] == pytest.approx(-math.log(0.05 / 1.05), abs=1e-4)
    near = terms(peak_map(3, 3), peak_map(4, 3))[0]
    assert near < apart[0]
    flat = torch.full((1, 1, 32, 32), 0.5)
    assert terms(flat, flat)[0] > near, "flat maps agree, but have no keypoint"
    assert float(o.peakiness(peak_map(3, 3), 8)) < 0.1
    assert float(o.peakiness(flat, 8)) == pytest.approx(1)


def test_reprojection_measures_the_distance_of_centroids() -> None:
    grid = pixel_grid(32, 32, torch.device("cpu"))

    def blob(x: float, y: float) -> Tensor:
        return torch.exp(-((grid - torch.tensor([x, y])) ** 2).sum(2) / 2)[None, None]

    points = identity_points(torch.tensor([[[16.0, 16.0]]]))
    one = blob(16.25, 16.0).requires_grad_()
    distance = o.reprojection(one, blob(15.75, 16.0), points, shifted(32))
    assert float(distance.detach()) == pytest.approx(0.5, abs=0.02)
    torch.autograd.backward(distance)
    assert one.grad is not None
    assert float(one.grad.abs().max()) > 0
    moved = o.reprojection(blob(15.75, 16), blob(16.25, 16), points, shifted(32, 0.5))
    assert float(moved) < 0.02


def test_matchability_is_the_cross_entropy_of_the_outcome() -> None:
    score = torch.full((1, 1, 32, 32), 0.01)
    score[0, 0, 8, 8], score[0, 0, 20, 20] = 0.9, 0.6
    points = identity_points(torch.tensor([[[8.0, 8.0], [20.0, 20.0]]]))
    loss = o.matchability(score, score, points, torch.tensor([[True, False]]), 1.5)
    assert float(loss) == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2, rel=1e-5)
    far = points._replace(second=torch.tensor([[[10.0, 8.0], [20.0, 20.0]]]))
    loss = o.matchability(score, score, far, torch.tensor([[True, True]]), 1.5)
    assert float(loss) == pytest.approx(-(math.log(0.1) + math.log(0.6)) / 2, rel=1e-5)


def test_window_peaks_are_the_peaks_of_their_windows() -> None:
    score = torch.rand(1, 1, 40, 40, generator=Generator().manual_seed(0))
    points = o.window_peaks(score, shifted(40), 8, 200, Generator().manual_seed(1))
    x, y = points.first[points.valid.bool()].long().T
    assert 8 < len(x) <= 25
    for u, v in zip(x.tolist(), y.tolist(), strict=True):
        assert float(score[0, 0, v, u]) >= 0.8, "the highest of 64 even draws"
    assert torch.equal(points.first, points.second)


def test_random_points_are_drawn_where_the_truth_is_known() -> None:
    positions, shown = shifted(40, 1.5)
    shown = shown & (pixel_grid(40, 40, shown.device)[..., 0] > 20)
    points = o.random_points(Correspondence(positions, shown), 100, Generator().manual_seed(0))
    assert float(points.valid.float().mean()) > 0.8
    valid = points.first[points.valid]
    assert float(valid[:, 0].min()) >= 21
    torch.testing.assert_close(points.second[points.valid], valid + torch.tensor([1.5, 0]))


def test_peaked_scores_against_hand_computed_maps() -> None:
    single = torch.zeros(1, 1, 9, 9)
    single[0, 0, 4, 4] = 9.0
    score = o.peaked_scores(single, 3)[0, 0]
    assert float(score[4, 4]) == pytest.approx(math.log(1 + math.exp(8)))
    assert float(score[4, 7]) == pytest.approx(math.log(1 + math.exp(-1))), "three pixels away"
    assert float(score[4, 5]) == pytest.approx(math.log(2)), "between the samples of the dilated window"
    two = torch.cat([single, 0 * single], dim=1)
    centre = math.log(1 + math.exp(8)) * math.log(1 + math.exp(4.5))
    assert float(o.peaked_scores(two, 3)[0, 0, 4, 4]) == pytest.approx(centre)


def test_multilevel_moves_detection_to_where_matching_succeeds() -> None:
    score = torch.full((1, 1, 40, 40), 0.5, requires_grad=True)
    dense = torch.randn(1, 4, 9, 9)
    points = identity_points(torch.tensor([[[12.0, 12.0], [28.0, 28.0]]]))
    value = o.multilevel(torch.tensor([[1.0, 3.0]]), (score, score), (dense, dense), points)
    assert 1 < float(value.detach()) < 3
    torch.autograd.backward(value)
    assert score.grad is not None
    assert float(score.grad[0, 0, 12, 12]) < 0 < float(score.grad[0, 0, 28, 28])


def test_policy_gradients_are_those_of_the_expected_reward() -> None:
    """One window a view, so that all draws can be enumerated: REINFORCE averages to the true gradient."""
    generator = Generator().manual_seed(0)
    start = [torch.rand(1, 1, 2, 2, generator=generator) * 0.8 + 0.1 for _ in range(2)]
    dense = torch.ones(1, 1, 3, 3)
    grid = pixel_grid(2, 2, torch.device("cpu"))
    truth = Correspondence(grid[None] * 2, torch.ones(1, 2, 2, dtype=torch.bool))

    exact = [value.clone().requires_grad_() for value in start]
    one, two = ((value.log().flatten() * 3).softmax(0) * value.flatten() for value in exact)
    reward = torch.where(torch.cdist(2 * grid.view(4, 2), grid.view(4, 2)) <= 1.5, 1.0, -0.25)
    torch.autograd.backward(-(one @ reward @ two - 0.001 * (one.sum() + two.sum())))

    drawn = [value.clone().requires_grad_() for value in start]
    batch = [value.expand(50_000, -1, -1, -1) for value in drawn]
    many = Correspondence(*(maps.expand(50_000, *maps.shape[1:]) for maps in truth))
    maps = dense.expand(50_000, -1, -1, -1)
    unshifted = next(g for s in range(99) if o.grid_offset(2, g := Generator().manual_seed(s)) == (0, 0))
    value = policy((batch[0], batch[1]), (maps, maps), many, 2, 3.0, 0.07, unshifted)
    expected = -float((one @ reward @ two).detach())
    assert float(value.detach()) == pytest.approx(expected, abs=0.01)
    torch.autograd.backward(value)
    for ours, theirs in zip(drawn, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=0.02, rtol=0)


def test_policy_has_no_opinion_where_the_truth_is_unknown() -> None:
    positions, shown = shifted(32)
    score = torch.full((1, 1, 32, 32), 0.5)
    dense = torch.randn(1, 4, 7, 7, requires_grad=True)
    unknown = Correspondence(positions, shown & False)
    generator = Generator().manual_seed(0)
    value = policy((score, score), (dense, dense), unknown, 8, 4.0, 0.07, generator)
    assert float(value.detach()) == 0


def test_best_maxima_and_the_warped_target() -> None:
    score = torch.rand(1, 1, 30, 40, generator=Generator().manual_seed(0))
    score[0, 0, 10, 20] = 2.0
    maxima = labels.best_maxima(score)
    assert int(maxima.sum()) == 30 * 40 // 150
    assert bool(maxima[0, 0, 10, 20])
    other = torch.zeros(1, 1, 30, 40)
    other[0, 0, 10, 20] = 0.3
    ours = torch.zeros(1, 1, 30, 40, requires_grad=True)
    shown = torch.ones(1, 30, 40, dtype=torch.bool)
    loss = labels.warped_target(ours, other, shown)
    side, corner = math.exp(-1 / 0.5), math.exp(-2 / 0.5)
    squares = 1 + 4 * side**2 + 4 * corner**2 + 4 * math.exp(-4 / 0.5) ** 2
    assert float(loss) == pytest.approx(squares / 1200, rel=1e-4), "a Gaussian of sigma 0.5 and height 1"
    torch.autograd.backward(loss)
    assert ours.grad is not None
    assert int(ours.grad.argmin()) == 10 * 40 + 20
    assert float(labels.warped_target(ours, other, shown & False)) == 0


def test_adaptation_is_the_cross_entropy_of_cells_with_none() -> None:
    score = torch.full((1, 1, 4, 4), 0.5)
    score[0, 0, 1, 2] = 0.8
    unshifted = next(g for s in range(99) if o.grid_offset(2, g := Generator().manual_seed(s)) == (0, 0))
    wanted = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    wanted[0, 0, 1, 2] = True
    # Odds of 1 for every pixel of 0.5 and for none, of 4 for the pixel of 0.8; three cells without label.
    expected = (3 * math.log(5) + math.log(8 / 4)) / 4
    assert float(labels.adaptation(score, wanted, 2, unshifted)) == pytest.approx(expected, rel=1e-5)


def test_scores_are_averaged_over_homographies(photos: Photos) -> None:
    """An even score stays even: warping there and back loses nothing but what is not shown."""
    net = tiny_net()
    assert net.fine is not None
    with torch.no_grad():
        net.fine.c.weight.zero_()
    needs_trunk = ("match", "triplet", "policy", "multilevel")
    config = TINY.override(train="fine", adaptations=4, **{f"weights__{name}": 0.0 for name in needs_trunk})
    images = photos.canvases[:2, :, :64, :64].float()
    even = run_fine_head(net, images, bfloat16=False)
    found = adapted_scores(net, images, even, config, Generator().manual_seed(0))
    torch.testing.assert_close(found, even, atol=1e-4, rtol=0)
    moved = adapted_scores(net, images, 0 * even, config, Generator().manual_seed(0))
    shares = (moved / even)[0, 0]
    votes = 1 / (1 - shares)
    assert {round(float(v)) for v in votes.unique()} >= {3, 4, 5}, "its own vote, and one of every view"


def test_evolution_is_the_cross_entropy_of_a_window_with_none() -> None:
    score = torch.full((1, 1, 32, 32), 0.5)
    score[0, 0, 8, 8], score[0, 0, 20, 20] = 0.8, 0.8
    points = identity_points(torch.tensor([[[8.0, 8.0], [20.0, 20.0]]]))
    loss = labels.evolution(score, points, torch.tensor([[True, False]]))
    # Odds: 48 pixels of 1, the centre of 4, none of 1.
    assert float(loss) == pytest.approx((math.log(53 / 4) + math.log(53)) / 2, rel=1e-5)


def test_gradients_of_the_whole_objective_reach_every_weight(photos: Photos) -> None:
    net = tiny_net()
    generator = Generator().manual_seed(0)
    pairs = make_pairs(photos, 2, (64, 64), Geometry(), Light(), generator)
    terms = losses(net, pairs, TINY, generator)
    assert set(terms) == set(vars(TINY.weights))
    torch.autograd.backward(total(terms, TINY))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


# Judgement


def test_judgement_of_matches_by_hand() -> None:
    one = torch.eye(3)
    two = torch.stack([one[1], one[0], (one[0] + 0.1 * one[2]) / math.sqrt(1.01)])
    assert mutual_nearest(one, two).tolist() == [[0, 1], [1, 0]]
    assert mutual_nearest(one, two[:0]).shape == (0, 2)
    errors = reprojection_errors(shifted(8, 3.0), 0, torch.zeros(2, 2), torch.tensor([[3.0, 0], [6, 4]]))
    torch.testing.assert_close(errors, torch.tensor([0.0, 5.0]))


def test_judging_repeats_and_tells_good_from_bad(photos: Photos) -> None:
    good = judge(tiny_net(), photos, pairs=2)
    assert good == judge(tiny_net(), photos, pairs=2)
    assert set(good) == {"light", "viewpoint"}
    assert good["light"].keypoints > 50
    assert 0 <= good["viewpoint"].mma1 <= good["viewpoint"].mma3 <= 1


# Configuration


def test_configurations_survive_a_checkpoint_and_refuse_nonsense() -> None:
    config = Config().override(steps=3, weights__match=2, geometry__coarsest=[1.0, 1.2], train="all")
    assert config.weights.match == 2.0
    assert config.geometry.coarsest == (1.0, 1.2)
    assert config_from_dict(config.as_dict()) == config
    for wrong in ({"stepps": 1}, {"steps": 1.5}, {"weights": 1}, {"weights__colour": 1.0}, {"size": 100}):
        with pytest.raises(ValueError, match=r"no value|must be"):
            Config().override(**wrong)
    with pytest.raises(ValueError, match="train='fine'"):
        Config(train="fine")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train=fin", "train is all or fine"),
        *((f"name={name}", "name must be") for name in ("state", "Start", "a/b", "")),
        ("weights.match.foo=1", "no value 'weights.match.foo'"),
        ("seed.x=1", "no value 'seed.x'"),
        ('widths=[1,2,"x",4]', "widths must be a number"),
        ("widths=[1,2,0,4]", "widths are four"),
        *((f"geometry.coarsest={pair}", "geometry.coarsest is two") for pair in ("[1]", "[2,1]", "[0,1]")),
        *((f"{name}=0", f"{name} must be a number") for name in ("positions", "batch", "geometry.zoom")),
        *((f"minutes={value}", "minutes must be") for value in ("NaN", "Infinity", "-1.0")),
        (f"seed=1{'0' * 400}", "seed must be"),
        ("repeatability_window=1", "repeatability_window must be a number from 2"),
        ("window=100", "window is at most half of size, 96"),
        ("positions=40000", "positions are at most the 36864 pixels"),
    ],
)
def test_values_that_nobody_can_train_with_are_refused(assignment: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config().override(**_changes([assignment]))


def test_the_command_refuses_a_device_and_a_folder_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    asked = [("nonsense", tmp_path / "run", "--device nonsense cannot"), ("cpu", file, "--out is a folder")]
    if not torch.cuda.is_available():
        asked.append(("cuda", tmp_path / "run", "--device cuda cannot"))
    for device, out, said in asked:
        with pytest.raises(typer.Exit):
            main(tmp_path / "nowhere", out, device=device)
        printed = capsys.readouterr().out
        assert said in printed
        assert printed.count("\n") == 1


def test_the_schedule_warms_up_and_anneals() -> None:
    rates = [schedule(done / 100, 0.1) for done in range(101)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) == 10
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


# Trainer


def weights_of(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    assert isinstance(content["model"], dict)
    return content["model"]


def test_a_stopped_run_ends_like_an_unbroken_one(photos: Photos, tmp_path: Path) -> None:
    whole = Trainer(photos, TINY, tmp_path / "whole", net=tiny_net()).run()

    class KilledError(Exception):
        pass

    def kill_at_three(progress: object) -> None:
        if broken.step == 2:
            broken.save()
        if broken.step == 3:
            raise KilledError

    broken = Trainer(photos, TINY, tmp_path / "broken", net=tiny_net())
    with pytest.raises(KilledError):
        broken.run(kill_at_three)
    again = Trainer(photos, TINY, tmp_path / "broken", net=tiny_net(seed=1))
    assert again.step == 2
    resumed = weights_of(again.run())
    for name, expected in weights_of(whole).items():
        assert torch.equal(resumed[name], expected), name
    with (tmp_path / "broken" / LOG).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    with pytest.raises(TrainingError, match="another configuration"):
        Trainer(photos, TINY.override(batch=3), tmp_path / "broken", net=tiny_net())
    with pytest.raises(TrainingError, match="a run of other photographs"):
        Trainer(photos.split(1)[0], TINY, tmp_path / "broken", net=tiny_net())
    with pytest.raises(TrainingError, match="a run of other photographs"):
        Trainer(Photos(photos.canvases.flip(0), photos.sizes), TINY, tmp_path / "broken", net=tiny_net())
    with pytest.raises(TrainingError, match="a run of other initial weights"):
        Trainer(photos, TINY, tmp_path / "broken", init=tmp_path / "whole" / f"{TINY.name}.pth")


def test_a_run_that_is_killed_as_it_goes_on_keeps_its_log(photos: Photos, tmp_path: Path) -> None:
    Trainer(photos, TINY, tmp_path, net=tiny_net()).run()
    before = (tmp_path / LOG).read_bytes()
    again = Trainer(photos, TINY.override(steps=9), tmp_path, net=tiny_net())  # and no step more
    assert (tmp_path / LOG).read_bytes() == before
    assert again.step == 4


@pytest.mark.parametrize("left", [0, 1000])
def test_a_damaged_state_is_an_error_that_names_it(photos: Photos, tmp_path: Path, left: int) -> None:
    Trainer(photos, TINY, tmp_path, net=tiny_net()).save()
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:left])
    with pytest.raises(TrainingError, match=f"{STATE} is damaged .*remove it"):
        Trainer(photos, TINY, tmp_path, net=tiny_net())


def test_means_are_of_checkpoints_of_a_run_and_written_whole(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = Trainer(photos, TINY, tmp_path, net=tiny_net()).run()
    content = after.read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*no space"):
        average(tmp_path / "start.pth", after, after)
    assert after.read_bytes() == content
    assert not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(after, weights_only=True)["model"]}, bare)
    model = save_model(build_graph(read_checkpoint(after)), tmp_path / "model.onnx")
    for other in (bare, model):
        with pytest.raises(ValueError, match="no checkpoint"):
            average(tmp_path / "start.pth", other, tmp_path / "mean.pth")


def test_training_lowers_the_loss_and_starts_from_a_checkpoint(photos: Photos, tmp_path: Path) -> None:
    config = TINY.override(
        steps=40, trunk_rate=3e-3, fine_rate=3e-3, bfloat16=False, weights__triplet=0.0, light__share=0.1
    )
    trainer = Trainer(photos, config, tmp_path / "run", net=tiny_net())
    seen: list[float] = []
    path = trainer.run(lambda progress: seen.append(progress.row["loss"]))
    assert np.mean(seen[-8:]) < 0.97 * np.mean(seen[:8])
    read = read_checkpoint(path)
    assert read.metadata["head"] == "fine"
    assert read.metadata["descriptor_relu"] == "false"
    onward = Trainer(photos, TINY, tmp_path / "on", init=path)
    torch.testing.assert_close(onward.average[0], trainer.average[0].half().float())


def test_a_frozen_trunk_stays_as_it_is(photos: Photos, tmp_path: Path) -> None:
    config = TINY.override(train="fine", steps=2, weights__match=0.0, weights__triplet=0.0)
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Trainer(photos, config, tmp_path / "run", net=net).run()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("fine.")}


def test_steps_without_finite_gradients_are_skipped_then_refused(photos: Photos, tmp_path: Path) -> None:
    net = tiny_net()
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] = torch.nan
    trainer = Trainer(photos, TINY.override(steps=50), tmp_path / "run", net=net)
    before = [parameter.clone() for parameter in net.parameters()][1:]
    with pytest.raises(TrainingError, match="no finite gradient"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, list(net.parameters())[1:], strict=True))


def test_the_command_survives_kill_9_and_writes_a_checkpoint(photos: Photos, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos")
    for i, canvas in enumerate(photos.canvases):
        cv2.imwrite(str(folder / f"{i:02}.png"), canvas.permute(1, 2, 0).numpy())
    trainer = Trainer(photos, TINY.override(steps=1), tmp_path / "seed", net=tiny_net())
    init, out = trainer.run(), tmp_path / "run"
    command = [
        *(sys.executable, "-m", "training", "--photos", str(folder), "--out", str(out), "--init", str(init)),
        *("--device", "cpu", "--steps", "3"),
        *("--set", "size=64", "--set", "batch=2", "--set", "positions=16", "--set", "judge_pairs=1"),
        *("--set", "save_every=0"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        [*command, "--steps", "100000"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (out / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = torch.load(out / STATE, weights_only=True)["step"]
    assert reached >= 1
    command[command.index("3")] = str(reached + 3)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from step {reached}" in done.stdout
    assert "viewpoint: MMA@1/@3" in done.stdout
    written = torch.load(out / "d2net.pth", weights_only=True)
    assert written["d2feat"]["recipe"]["steps"] == reached + 3
    assert written["d2feat"]["config"]["size"] == 64
    assert all(value.dtype == torch.float16 for value in written["model"].values())
    assert read_checkpoint(out / "d2net.pth").metadata["channels"] == "16"
    refused = subprocess.run(
        [*command, "--set", "sise=1"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no value 'sise'" in refused.stdout


def test_pairs_are_made_alike_whatever_the_order_of_calls(photos: Photos) -> None:
    """A step's randomness is a function of its generator alone."""
    made: list[Pairs] = []
    for _ in range(2):
        made.append(make_pairs(photos, 3, (64, 64), Geometry(), Light(), Generator().manual_seed(11)))
        torch.rand(7)
    for one, two in zip(*made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_compiled_trunk_trains_alike(photos: Photos, tmp_path: Path) -> None:
    if os.environ.get("D2FEAT_COMPILE") != "1":
        pytest.skip("compiling takes a minute: set D2FEAT_COMPILE=1")
    rows = []
    for compiled in (False, True):
        config = TINY.override(steps=2, compile=compiled, bfloat16=False)
        trainer = Trainer(photos, config, tmp_path / str(compiled), net=tiny_net())
        seen: list[float] = []
        path = trainer.run(lambda progress, seen=seen: seen.append(progress.row["loss"]))
        assert set(weights_of(path)) == set(tiny_net().state_dict())
        rows.append(seen)
    assert rows[1] == pytest.approx(rows[0], rel=1e-3)
