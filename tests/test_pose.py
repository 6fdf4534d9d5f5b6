"""Relative pose: motions computed by hand, and a scene whose cameras are known."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from d2feat.errors import InputError
from d2feat.evaluation import pose
from d2feat.evaluation.cli import app
from d2feat.evaluation.methods import Method, d2feat_method, open_methods
from d2feat.orientation import to_stored, turned

from .conftest import create
from .sfm_scene import View, render, write_views

K = np.array([[500.0, 0, 320], [0, 480, 240], [0, 0, 1]])


def rotation(degrees: float, axis: tuple[float, float, float] = (0, 1, 0)) -> np.ndarray:
    return cv2.Rodrigues(np.deg2rad(degrees) * np.array(axis, np.float64))[0]


def motion(R: np.ndarray, t: tuple[float, float, float]) -> np.ndarray:
    return np.vstack([np.column_stack([R, t]), [0, 0, 0, 1]])


def line(names: tuple[str, str], turns: tuple[int, int], Ks: list[np.ndarray], T: np.ndarray) -> str:
    return " ".join(map(str, [*names, *turns, *np.concatenate([*map(np.ravel, Ks), T.ravel()])])) + "\n"


def write_pairs(path: Path, views: dict[str, View], turns: dict[str, int]) -> None:
    lines = []
    for one, two in itertools.pairwise(views):
        a, b = views[one], views[two]
        R = b.R @ a.R.T
        T = motion(R, tuple(b.t - R @ a.t))
        lines.append(line((one, two), (turns[one], turns[two]), [a.K, b.K], T))
    path.write_text("".join(lines))


def test_errors_are_angles() -> None:
    truth = motion(np.eye(3), (1, 0, 0))
    assert pose.motion_error(truth, truth) == (0, 0)
    off = pose.motion_error(motion(rotation(7), (0.5, 0.5, 0)), truth)
    np.testing.assert_allclose(off, (7, 45))
    # The sign of a translation is not seen.
    np.testing.assert_allclose(pose.motion_error(motion(np.eye(3), (-3, 0, 0)), truth), (0, 0))


def test_the_motion_between_exact_points_is_found() -> None:
    random = np.random.default_rng(0)
    R, t = rotation(10, (0.1, 0.9, 0.2)), np.array([0.6, -0.1, 0.2])
    scene = random.uniform((-2, -1.5, 4), (2, 1.5, 8), (120, 3))
    other = np.diag([1.2, 1.2, 1.0]) @ K
    seen = [scene @ K.T, (scene @ R.T + t) @ other.T]
    points0, points1 = ((points / points[:, 2:])[:, :2].astype(np.float32) for points in seen)
    points1[:30] = random.uniform(0, 600, (30, 2))
    found, inliers = pose.estimate_motion(points0, points1, K, other)
    assert 85 <= inliers <= 95
    assert max(pose.motion_error(found, motion(R, tuple(t)))) < 0.1
    assert pose.estimate_motion(points0[:4], points1[:4], K, other) == (None, 0)


def test_pairs_are_read_as_superglue_writes_them(tmp_path: Path) -> None:
    T = motion(rotation(5), (1, 2, 3))
    (tmp_path / "pairs.txt").write_text(line(("a.jpg", "b/c.jpg"), (0, 3), [K, 2 * K], T) + "\n")
    (pair,) = pose.read_pose_pairs(tmp_path / "pairs.txt")
    assert pair.names == ("a.jpg", "b/c.jpg")
    assert pair.quarters == (0, 3)
    np.testing.assert_array_equal(pair.intrinsics, [K, 2 * K])
    np.testing.assert_array_equal(pair.motion, T)


@pytest.mark.parametrize("text", ["a.jpg b.jpg 0 0\n", "a b 0 0 " + "x " * 34, "a b 0 0 " + "1 " * 33, "a"])
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match="line 1"):
        pose.read_pose_pairs(tmp_path / "pairs.txt")


def test_lists_that_are_empty_or_missing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no list"):
        pose.read_pose_pairs(tmp_path / "none.txt")
    (tmp_path / "pairs.txt").write_text("\n")
    with pytest.raises(InputError, match="no pairs"):
        pose.read_pose_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize("quarters", range(4))
def test_points_of_a_turned_image_are_taken_back(quarters: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    upright = turned(image, quarters)
    points = np.array([[3, 11], [17, 29], [0, 0]], np.float32)
    for (x, y), (u, v) in zip(
        points.astype(int), to_stored(points, (60, 40), quarters).astype(int), strict=True
    ):
        np.testing.assert_array_equal(upright[y, x], image[v, u])


def test_a_scene_with_known_cameras(tmp_path: Path) -> None:
    views = {"a.png": render(30), "b.png": render(42), "c.png": render(55, height=1.9)}
    stored = {**views}
    # A camera that was held upright and stored its photo lying, with the intrinsics of the file.
    lying, lens = turned(views["b.png"].image, 1), views["b.png"].K.copy()
    lens[0, 2], lens[1, 2] = lens[1, 2], views["b.png"].image.shape[1] - 1 - lens[0, 2]
    turn = rotation(-90, (0, 0, 1))
    stored["b.png"] = View(lying, lens, turn @ views["b.png"].R, turn @ views["b.png"].t)
    write_views(tmp_path, stored)
    write_pairs(tmp_path / "pairs.txt", stored, {"a.png": 0, "b.png": 3, "c.png": 0})
    methods = [d2feat_method(create(400), "d2net"), *open_methods(["sift", "orb"], 400)[0]]
    found = pose.evaluate_poses(pose.read_pose_pairs(tmp_path / "pairs.txt"), tmp_path, methods)
    assert [result.name for result in found] == ["d2net", "sift", "orb"]
    for result in found[:2]:
        assert max(map(max, result.errors)) < 5, result
        assert result.auc[2] > result.auc[1] > result.auc[0] > 0.3
        assert result.inliers > 40
    # In the pixels of the file, where the pair's second photo lies on its side.
    refining = open_methods(["sift"], 400, refined=True)[0]
    (refined,) = pose.evaluate_poses(pose.read_pose_pairs(tmp_path / "pairs.txt"), tmp_path, refining)
    assert refined.name == "sift refined"
    assert np.mean(refined.errors) < np.mean(found[1].errors)


def test_a_photo_that_is_missing_is_found_out_before_the_work(tmp_path: Path) -> None:
    views = {"a.png": render(30), "b.png": render(42)}
    write_views(tmp_path, views)
    write_pairs(tmp_path / "pairs.txt", views, {"a.png": 0, "b.png": 0})
    listed = pose.read_pose_pairs(tmp_path / "pairs.txt")
    calls: list[int] = []
    method = Method("none", lambda image: calls.append(1))  # type: ignore[arg-type,return-value]
    gone = pose.PosePair(("a.png", "c.png"), *list(vars(listed[0]).values())[1:])
    with pytest.raises(InputError, match=r"pair 2: no image file at .*c\.png"):
        pose.evaluate_poses([*listed, gone], tmp_path, [method])
    assert not calls


def test_the_command_compares_methods(tmp_path: Path) -> None:
    views = {"a.png": render(30), "b.png": render(42)}
    write_views(tmp_path / "images", views)
    write_pairs(tmp_path / "pairs.txt", views, dict.fromkeys(views, 0))
    arguments = ["pose", str(tmp_path / "pairs.txt"), "--methods", "sift,orb", "--nfeatures", "400"]
    done = CliRunner().invoke(app, [*arguments, "--images", str(tmp_path / "images")])
    assert done.exit_code == 0, done.output
    assert {"sift", "orb"} <= {line.split()[0] for line in done.output.splitlines() if line.strip()}
    refined = CliRunner().invoke(app, [*arguments, "--images", str(tmp_path / "images"), "--refine"])
    assert "sift refined" in refined.output
    missing = CliRunner().invoke(app, arguments)
    assert isinstance(missing.exception, InputError)
