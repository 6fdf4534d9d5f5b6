"""Pairs of real views: MegaDepth's format and structure from motion, on scenes rendered with exact depth."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data
from torch import Generator

from training import scenes as s
from training import views
from training.config import Config, Geometry, Light, Weights
from training.loss import losses, total
from training.pairs import Pairs, pixel_grid, sample, within_margin
from training.photos import Photos, stack
from training.trainer import STATE, Trainer, TrainingError

from .test_training import one_thread, tiny_net, weights_of  # noqa: F401

ROOT = Path(__file__).parent.parent
CALM = Light(night=0, share=0)
SIZE = (240, 320)
CAMERA = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
"""Intrinsics of the rendered photographs, COLMAP's pixels: the first one's centre is at 0.5."""


def photograph(name: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(getattr(data, name)()[..., ::-1])


# Rectangles of the scene: a corner, two edges, and what is painted on it. x right, y down, z forward.
WALL = ((-3.0, -2.2, 4.0), (6.0, 0, 0), (0, 4.4, 0.8))
BOX = ((-0.6, -0.5, 3.0), (1.2, 0, 0.3), (0, 1.0, 0))


def pose(x: float, turn: float) -> NDArray[np.float64]:
    """World to camera, 4 x 4: a camera at (x, 0.1 x, 0) turned by `turn` degrees to the left."""
    matrix = np.eye(4)
    matrix[:3, :3], _ = cv2.Rodrigues(np.array([0, np.deg2rad(turn), 0]))
    matrix[:3, 3] = -matrix[:3, :3] @ np.array([x, 0.1 * x, 0])
    return matrix


POSES = [pose(x, 8 * x) for x in (-0.75, -0.25, 0.25, 0.75)]


def rays(where: NDArray[np.float64], camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions in the world, of depth 1, of ... x 2 pixels in COLMAP's coordinates."""
    ones = np.ones_like(where[..., :1])
    return np.concatenate([where, ones], -1) @ np.linalg.inv(CAMERA).T @ camera[:3, :3]


def hit(where: NDArray[np.float64], camera: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Depth, and which rectangle is seen where on it (... x 2, 0 to 1), of ... x 2 pixels."""
    origin = -camera[:3, :3].T @ camera[:3, 3]
    depth = np.full(where.shape[:-1], np.inf)
    which = np.zeros(where.shape[:-1])
    place = np.zeros(where.shape)
    for number, (corner, u, v) in enumerate((WALL, BOX)):
        axes = np.stack([np.array(u), np.array(v)], 1)
        normal = np.cross(u, v)
        directions = rays(where, camera)
        along = (np.array(corner) - origin) @ normal / (directions @ normal)
        found = origin + directions * along[..., None]
        uv = (found - corner) @ np.linalg.pinv(axes).T
        nearer = ((uv >= 0) & (uv <= 1)).all(-1) & (along > 0) & (along < depth)
        depth, which = np.where(nearer, along, depth), np.where(nearer, number, which)
        place = np.where(nearer[..., None], uv, place)
    return depth, which, place


def render(camera: NDArray[np.float64], textures: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], ...]:
    """An image of 320 x 240 with nine samples a pixel, and its exact depth."""
    grid = np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), -1) + 0.5
    image = np.zeros((*SIZE, 3))
    for step in np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), -1).reshape(-1, 2) / 3:
        _, which, place = hit(grid + step, camera)
        for number, texture in enumerate(textures):
            extent = np.array([texture.shape[1] - 1, texture.shape[0] - 1])
            x, y = np.moveaxis((place * extent).astype(np.float32), -1, 0)
            painted = cv2.remap(texture, x, y, cv2.INTER_LINEAR)
            image += painted * (which == number)[..., None] / 9
    return image.round().astype(np.uint8), hit(grid, camera)[0]


@pytest.fixture(scope="module")
def photos() -> Photos:
    image = photograph("coffee")
    return stack([image[y : y + 160, x : x + 200] for y in (0, 120, 240) for x in (0, 90, 180)], (160, 200))


@pytest.fixture(scope="module")
def megadepth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's files; colours say where on the wall (blue, green) or that one is on the box (red)."""
    folder = tmp_path_factory.mktemp("megadepth")
    ramps = np.zeros((256, 256, 3), np.uint8)
    ramps[..., 0], ramps[..., 1] = np.arange(256), np.arange(256)[:, None]
    box = ramps.copy()
    box[..., 2] = 255
    write_megadepth(folder, [ramps, box])
    return folder


def write_megadepth(folder: Path, textures: list[NDArray[np.uint8]]) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `train` is not installed")
    (folder / "scene_info").mkdir()
    for i, camera in enumerate(POSES):
        image, depth = render(camera, textures)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        with h5py.File(folder / f"{i}.h5", "w") as file:
            file["depth"] = depth.astype(np.float32)
    # As upstream writes them: lists with None for what is missing, so arrays of objects.
    missing: list[None] = [None]
    overlap = np.full((5, 5), -1.0)
    overlap[:4, :4] = 0.6
    np.savez(
        folder / "scene_info" / "0000.0.npz",
        image_paths=np.array([f"{i}.png" for i in range(4)] + missing, object),
        depth_paths=np.array([f"{i}.h5" for i in range(4)] + missing, object),
        intrinsics=objects([CAMERA] * 4),
        poses=objects([camera.ravel() for camera in POSES]),
        overlap_matrix=overlap,
        points3D_id_to_2D=objects([{7: [1.0, 2.0]}] * 4),
    )


def objects(values: list[object]) -> NDArray[np.object_]:
    array = np.empty(len(values) + 1, object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def draw(folder: Path, count: int = 12, seed: int = 0) -> Pairs:
    scenes = s.read_scenes(folder)
    return views.scene_pairs(scenes, count, (96, 96), Geometry(), CALM, Generator().manual_seed(seed))


# Depth


def test_carrying_against_a_hand_computed_point() -> None:
    nothing, eye = torch.zeros(0), torch.eye(4).double()
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]).double()
    moved = eye.clone()
    moved[:3, 3] = torch.tensor([1.0, 0.5, 3.0])
    one, two = (views.View(nothing, nothing, nothing, nothing, intrinsics, camera) for camera in (eye, moved))
    # (60, 20) at depth 2 is (0.2, -0.4, 2), which the second camera sees at (1.2, 0.1, 5).
    carried, depth = views.carry(
        one, two, torch.tensor([[60.0, 20.0]]).double(), torch.tensor([2.0]).double()
    )
    torch.testing.assert_close(carried, torch.tensor([[74.0, 42.0]]).double())
    assert depth.tolist() == [5.0]


def test_depth_takes_content_to_content_and_knows_what_is_hidden(megadepth: Path) -> None:
    pairs = draw(megadepth)
    hidden = 0
    for way, one, two in ((pairs.forth, pairs.first, pairs.second), (pairs.back, pairs.second, pairs.first)):
        assert float(way.shown.float().mean()) > 0.3
        there = sample(two, way.positions)
        error = (there - one).abs().amax(1)
        on_box, box_there = one[:, 2], there[:, 2]
        assert float((on_box - box_there).abs()[way.shown].quantile(0.99)) < 60, "edges are blurred"
        even = way.shown & (on_box < 1) & (box_there < 1)
        assert float(error[even].max()) < 2.5
        assert float(error[even].mean()) < 0.7
        hidden += int(((on_box < 1) & (box_there > 254) & within_margin(way.positions)).sum())
        assert not bool((way.shown & (on_box < 1) & (box_there > 254)).any())
    assert hidden > 100, "the box hides some of the wall"


def test_both_directions_agree(megadepth: Path) -> None:
    pairs = draw(megadepth)
    grid = pixel_grid(96, 96, pairs.first.device).reshape(1, -1, 2).expand(len(pairs.first), -1, -1)
    there, known = pairs.forth.at(grid)
    back, known_back = pairs.swapped().forth.at(there)
    error = (back - grid).norm(dim=2)[known & known_back]
    assert float(error.quantile(0.99)) < 0.05


def test_scene_pairs_repeat_and_differ(megadepth: Path) -> None:
    one, again, other = draw(megadepth, 2), draw(megadepth, 2), draw(megadepth, 2, seed=1)
    assert torch.equal(one.first, again.first)
    assert torch.equal(one.forth.positions, again.forth.positions)
    assert not torch.equal(one.first, other.first)


def test_the_whole_objective_learns_from_scene_pairs(megadepth: Path) -> None:
    weights = Weights(
        match=1.0, repeatability=1.0, coincidence=1.0, reprojection=1.0, policy=1.0, evolution=1.0
    )
    config = Config(size=96, batch=2, positions=32, bfloat16=False, weights=weights)
    net, pairs = tiny_net(), draw(megadepth, 2)
    terms = losses(net, pairs, config, Generator().manual_seed(0))
    assert float(terms["coincidence"].detach()) > 0, "dense terms see dense pairs"
    torch.autograd.backward(total(terms, config))
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


def test_what_is_no_scene_is_refused(megadepth: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="scene_info"):
        s.read_scenes(tmp_path)
    (tmp_path / "scene_info").mkdir()
    file = tmp_path / "scene_info" / "a.npz"
    file.write_bytes(b"nothing")
    with pytest.raises(s.SceneError, match="is not a scene"):
        s.read_scenes(tmp_path)
    np.savez(file, image_paths=np.array(["a.png"]))
    with pytest.raises(s.SceneError, match="intrinsics"):
        s.read_scenes(tmp_path)
    with np.load(megadepth / "scene_info" / "0000.0.npz", allow_pickle=True) as content:
        arrays = dict(content)
    np.savez(file, **(arrays | {"overlap_matrix": np.zeros((5, 5))}))
    with pytest.raises(s.SceneError, match="overlap by 30%"):
        s.read_scenes(tmp_path)
    np.savez(file, **arrays)
    with pytest.raises(s.SceneError, match="no readable depth map"):
        draw(tmp_path)


def test_tracks_of_points_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scene_info").mkdir()
    arrays = {
        "image_paths": np.array(["0.png", "1.png"]),
        "intrinsics": np.stack([CAMERA] * 2),
        "poses": np.stack(POSES[:2]),
        "overlap_matrix": np.ones((2, 2)),
        "points3D": np.zeros((3, 3)),
    }
    for number in (2, 3, -1):
        np.savez(tmp_path / "scene_info" / "a.npz", **arrays, tracks=np.array([[1.0, number, 5, 5]]))
        if number == 2:
            s.read_scenes(tmp_path)
            continue
        with pytest.raises(s.SceneError, match="its tracks name points"):
            s.read_scenes(tmp_path)


def test_a_pair_overlaps_if_either_photograph_shows_enough_of_the_other(tmp_path: Path) -> None:
    """A close-up is wholly in the wide view, of which it shows little."""
    (tmp_path / "scene_info").mkdir()
    for wide, close in ((0, 1), (1, 0)):
        overlap = np.eye(2)
        overlap[wide, close], overlap[close, wide] = 0.2, 0.9
        np.savez(
            tmp_path / "scene_info" / "a.npz",
            image_paths=np.array(["0.png", "1.png"]),
            intrinsics=np.stack([CAMERA] * 2),
            poses=np.stack(POSES[:2]),
            overlap_matrix=overlap,
            points3D=np.zeros((1, 3)),
            tracks=np.zeros((0, 4)),
        )
        (scene,) = s.read_scenes(tmp_path)
        assert scene.pairs.tolist() == [[0, 1]]


def test_tracks_on_a_slanted_wall_are_exact_about_them() -> None:
    """The truth is where rays meet the wall; without its normal, where they meet one facing the cameras."""
    points = torch.rand(60, 3, generator=Generator().manual_seed(0)).double() * 3 - 1.5
    points[:, 2] = 0  # the wall
    eye, pixels = torch.eye(3).double(), torch.ones(192, 192, dtype=torch.bool)
    intrinsics = torch.tensor([[200.0, 0, 95.5], [0, 200, 95.5], [0, 0, 1]]).double()

    def seen_from(degrees: float) -> views.View:
        """Looking at the wall from 5 away."""
        camera = torch.eye(4).double()
        camera[:3, :3] = torch.from_numpy(cv2.Rodrigues(np.array([0, np.deg2rad(degrees), 0]))[0])
        camera[2, 3] = 5
        return views.View(torch.zeros(3, 192, 192), pixels, pixels * 0.0, eye, intrinsics, camera)

    def project(side: views.View, where: torch.Tensor) -> torch.Tensor:
        projected = (where @ side.pose[:3, :3].T + side.pose[:3, 3]) @ side.intrinsics.T
        return projected[..., :2] / projected[..., 2:]

    errors = {}
    for kind, normals in (("known", s._normals(points)), ("unknown", torch.zeros_like(points))):
        for pair in ((0, 45), (45, 0), (50, 20), (-30, 30)):
            one, two = map(seen_from, pair)
            truth = views.by_tracks(one, two, project(one, points), project(two, points), points, normals)
            grid = pixel_grid(192, 192, torch.device("cpu")).double()
            rays = torch.cat([grid, torch.ones_like(grid[..., :1])], -1) @ torch.linalg.inv(intrinsics).T
            rays, origin = rays @ one.pose[:3, :3], -one.pose[:3, 3] @ one.pose[:3, :3]
            exact = project(two, origin - rays * (origin[2] / rays[..., 2:]))
            known = truth.shown[0]
            assert int(known.sum()) > 700
            errors[kind, pair] = (truth.positions[0].double() - exact).norm(dim=-1)[known]
    assert max(float(e.max()) for (kind, _), e in errors.items() if kind == "known") < 1e-3
    unknown = torch.cat([e for (kind, _), e in errors.items() if kind == "unknown"])
    assert 0.1 < float(unknown.quantile(0.9)) < 1.1


def test_points_in_no_plane_have_no_normal() -> None:
    cloud = torch.rand(400, 3, generator=Generator().manual_seed(1)).double()
    assert float((s._normals(cloud).norm(dim=1) > 0).float().mean()) < 0.2
    assert not bool(s._normals(cloud[: s.NEIGHBOURS]).any()), "too few"


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("harm",))


def test_a_scene_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene_info").mkdir()
    np.savez(tmp_path / "scene_info" / "a.npz", image_paths=objects([Harmful()]))
    with pytest.raises(s.SceneError, match="mkdir"):
        s.read_scenes(tmp_path)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(pickle.UnpicklingError):
        s._arrays(tmp_path / "scene_info" / "a.npz")


# Structure from motion


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pycolmap", reason="the extra `train` is not installed")
    folder = tmp_path_factory.mktemp("sfm")
    (folder / "place" / "images").mkdir(parents=True)
    textures = [photograph("coffee"), photograph("chelsea")]
    for i, camera in enumerate(POSES):
        cv2.imwrite(str(folder / "place" / "images" / f"{i}.png"), render(camera, textures)[0])
    command = [sys.executable, "-m", "training.sfm", str(folder / "place" / "images"), "--out"]
    command += [str(folder / "scenes"), "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 photographs" in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
    assert "Feature extraction" not in again.stderr, "a scene that is there is not made again"
    return folder / "scenes"


def test_a_reconstruction_has_the_tracks_of_the_scene(reconstructed: Path) -> None:
    """Tracks against exact depth: what one photograph shows at a track, the other shows there."""
    import pycolmap

    (scene,) = s.read_scenes(reconstructed)
    model = pycolmap.Reconstruction(reconstructed / "place" / "distorted" / "0")

    def rendered(i: int, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """COLMAP's pixels before it took out what it holds for distortion."""
        inverse = np.linalg.inv(scene.intrinsics[i].numpy())
        rays = np.concatenate([places, np.ones_like(places[:, :1])], 1) @ inverse.T
        image = model.find_image_with_name(Path(scene.images[i]).name)
        return np.asarray(image.camera.img_from_cam(rays))

    assert len(scene.pairs) == 6
    for one, two in scene.pairs.tolist():
        (first, second), *_ = views._shared_tracks(scene, one, two)
        assert len(first) > 60
        where, there = rendered(one, first.numpy()), rendered(two, second.numpy())
        depth, _, _ = hit(where, POSES[one])
        inverse = np.linalg.inv(POSES[one])
        world = (rays(where, POSES[one]) * depth[:, None]) + inverse[:3, 3]
        seen = world @ POSES[two][:3, :3].T + POSES[two][:3, 3]
        projected = seen @ CAMERA.T
        error = np.linalg.norm(projected[:, :2] / projected[:, 2:] - there, axis=1)
        assert float(np.median(error)) < 0.2
        assert float(np.quantile(error, 0.8)) < 0.5


def test_track_pairs_know_the_truth_about_tracks_only(reconstructed: Path) -> None:
    pairs = draw(reconstructed)
    share = pairs.forth.shown.float().mean((1, 2))
    assert 0.005 < float(share.mean()) < 0.5
    # The same content: the views differ less at the truth than anywhere a few pixels off it.
    difference = [
        float((sample(pairs.second, pairs.forth.positions + shift) - pairs.first).abs().mean(1)[
            pairs.forth.shown
        ].mean())
        for shift in (0.0, 3.0, -3.0)
    ]  # fmt: skip
    assert difference[0] < 0.5 * min(difference[1:])
    config = Config(size=96, positions=64, bfloat16=False, weights=Weights(reprojection=1.0))
    terms = losses(tiny_net(), pairs, config, Generator().manual_seed(0))
    assert float(terms["match"].detach()) > 0
    assert float(terms["matchability"].detach()) > 0
    assert float(terms["reprojection"].detach()) > 0


def test_other_photographs_do_not_get_the_scene_of_that_name(reconstructed: Path, tmp_path: Path) -> None:
    from training import sfm

    info = next(reconstructed.glob("scene_info/*.npz"))
    photos = tmp_path / info.stem
    photos.mkdir()
    (photos / "1.png").write_bytes(b"another")
    with pytest.raises(sfm.ReconstructionError, match="other photographs: give this one another --name"):
        sfm.reconstruct(photos, reconstructed)
    place = reconstructed.parent / "place" / "images"
    (place / ".DS_Store").write_bytes(b"no photograph")
    assert sfm.reconstruct(place, reconstructed) == info
    leftover = info.with_name(f"{info.name}.partial")  # of a run that was killed
    shutil.copy(info, leftover)
    assert len(s.read_scenes(reconstructed)) == 1
    leftover.unlink()


def test_photographs_of_nothing_make_no_scene(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", reason="the extra `train` is not installed")
    from training.sfm import ReconstructionError, reconstruct

    with pytest.raises(FileNotFoundError, match="no folder"):
        reconstruct(tmp_path / "nowhere", tmp_path)
    (tmp_path / "even").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "even" / f"{i}.png"), np.full((64, 80, 3), 90 * i, np.uint8))
    with pytest.raises(ReconstructionError, match="put together"):
        reconstruct(tmp_path / "even", tmp_path / "out", threads=1)


# Training


def test_a_stopped_run_with_scenes_ends_like_an_unbroken_one(
    photos: Photos, megadepth: Path, tmp_path: Path
) -> None:
    config = Config(
        steps=5, batch=2, size=64, positions=16, holdout=2, judge_pairs=0, judge_every=1e9, save_every=1e9,
        scenes=0.5,
    )  # fmt: skip
    scenes = s.read_scenes(megadepth)
    drawn = [Trainer(photos, config, tmp_path / "x", scenes=scenes)._of_scenes(step) for step in range(5)]
    assert set(drawn) == {True, False}, "both sources take part"

    def train(out: str, until: int) -> Trainer:
        trainer = Trainer(photos, config, tmp_path / out, scenes=scenes, net=tiny_net())

        class StopError(Exception):
            pass

        def stop(_: object) -> None:
            if trainer.step == until:
                trainer.save()
                raise StopError

        if until < config.steps:
            with pytest.raises(StopError):
                trainer.run(stop)
        else:
            trainer.run()
        return trainer

    train("whole", 5)
    train("broken", 2)
    assert torch.load(tmp_path / "broken" / STATE, weights_only=True)["step"] == 2
    train("broken", 5)
    whole, broken = (weights_of(tmp_path / out / "d2net.pth") for out in ("whole", "broken"))
    assert all(torch.equal(broken[name], value) for name, value in whole.items())
    without = Trainer(photos, config, tmp_path / "without", net=tiny_net())
    without.run()
    assert any(
        not torch.equal(weights_of(tmp_path / "without" / "d2net.pth")[k], v) for k, v in whole.items()
    )
    (tmp_path / "other" / "scene_info").mkdir(parents=True)
    with np.load(megadepth / "scene_info" / "0000.0.npz", allow_pickle=True) as content:
        np.savez(tmp_path / "other" / "scene_info" / "0000.0.npz", **{**content, "pairs": np.zeros(1)})
    for other in ([], s.read_scenes(tmp_path / "other")):
        with pytest.raises(TrainingError, match="a run of other scenes"):
            Trainer(photos, config, tmp_path / "whole", scenes=other, net=tiny_net())


SHARED = Path(os.environ.get("D2FEAT_SHARED", ROOT.parent / "shared")) / "data" / "multiview"


@pytest.fixture(params=["sceaux_castle"])
def real_scene(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if os.environ.get("D2FEAT_SFM") != "1":
        pytest.skip("structure from motion of eleven photographs takes a minute: set D2FEAT_SFM=1")
    folder = SHARED / request.param / "images"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    from training.sfm import reconstruct

    reconstruct(folder, tmp_path)
    return tmp_path


def test_photographs_of_a_castle_make_a_scene(real_scene: Path) -> None:
    (scene,) = s.read_scenes(real_scene)
    assert len(scene.images) == 11
    pairs = draw(real_scene)
    moved = sample(pairs.second, pairs.forth.positions + 4) - pairs.first
    kept = sample(pairs.second, pairs.forth.positions) - pairs.first
    shown = pairs.forth.shown
    assert float(kept.abs().mean(1)[shown].mean()) < 0.8 * float(moved.abs().mean(1)[shown].mean())
