"""Structure from motion, localisation and retrieval on a scene whose cameras are known."""

import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("pycolmap")
pytest.importorskip("h5py")

from d2feat import hdf5
from d2feat.cli import app
from d2feat.errors import D2FeatError, InputError, ModelError
from d2feat.features import Features
from d2feat.images import digest
from d2feat.sfm import leave_one_out, methods, pairs, photos, retrieval, stages, tracks
from d2feat.sfm.colmap import pycolmap
from d2feat.sfm.database import build_database
from d2feat.sfm.layout import best_model
from d2feat.sfm.localize import Map, benchmark_line, calibrated, localize, localize_photos, read_queries
from d2feat.sfm.night import darken_half
from d2feat.sfm.reconstruct import Result, reconstruct

from .conftest import create, photograph
from .sfm_scene import FOCAL, View, render, write_views

AZIMUTHS = {"a.png": 21, "b.png": 30, "sub/c.png": 39, "sub/d.png": 49, "e.png": 58}
QUERY = 44.0
BUDGET = 400
OPTIONS = ["--nfeatures", str(BUDGET), "--model", "d2net", "--provider", "cpu"]


def method() -> methods.Method:
    return methods.d2net(create(BUDGET))


@pytest.fixture(scope="session")
def views() -> dict[str, View]:
    return {name: render(azimuth) for name, azimuth in AZIMUTHS.items()}


@pytest.fixture(scope="session")
def folder(views: dict[str, View], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    write_views(path, views)
    return path


@pytest.fixture(scope="session")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("scene") / "out"
    return out, reconstruct(folder, out, method())


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All datasets of an HDF5 file."""
    found: dict[str, np.ndarray] = {}
    with hdf5.open_hdf5(path) as file:
        file.visit(
            lambda name: found.update({name: file[name][()]}) if hasattr(file[name], "shape") else None
        )
    return found


def cameras(out: Path) -> dict[str, np.ndarray]:
    model = pycolmap.Reconstruction(out / "sparse")
    return {model.images[i].name: model.images[i].cam_from_world().matrix() for i in model.reg_image_ids()}


def true_similarity(model: pycolmap.Reconstruction, views: dict[str, View]) -> pycolmap.Sim3d:
    """From the model to the scene."""
    images = [model.images[i] for i in model.reg_image_ids()]
    centres = np.array([image.projection_center() for image in images])
    return pycolmap.estimate_sim3d(centres, np.array([views[image.name].centre for image in images]))


def write_reference(reference: Path, views: dict[str, View], focal: float = FOCAL) -> None:
    """The views' cameras as a COLMAP model in text, with no points."""
    cameras, images = [], []
    for number, (name, view) in enumerate(views.items(), 1):
        # COLMAP's origin is the corner of the first pixel.
        cx, cy = view.K[:2, 2] + 0.5
        cameras.append(f"{number} SIMPLE_PINHOLE 288 216 {focal} {cx} {cy}\n")
        x, y, z, w = pycolmap.Rotation3d(view.R).quat
        images.append(" ".join(map(str, [number, w, x, y, z, *view.t, number, name])) + "\n\n")
    reference.mkdir(exist_ok=True)
    for file, lines in (("cameras", cameras), ("images", images), ("points3D", [])):
        (reference / f"{file}.txt").write_text("".join(lines))


def add_exif(path: Path, orientation: int) -> None:
    """Give a JPEG, PNG, WebP or TIFF file an orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)
    file = path.read_bytes()
    if path.suffix == ".jpg":
        entry = b"Exif\0\0" + tiff
        file = file[:2] + b"\xff\xe1" + struct.pack(">H", len(entry) + 2) + entry + file[2:]
    elif path.suffix == ".png":
        chunk = b"eXIf" + tiff
        length, check = struct.pack(">I", len(tiff)), struct.pack(">I", zlib.crc32(chunk))
        file = file[:33] + length + chunk + check + file[33:]  # after the header
    elif path.suffix == ".webp":
        height, width = cv2.imread(str(path)).shape[:2]
        sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
        extended = b"VP8X" + struct.pack("<IBxxx", 10, 0x08) + sides
        content = b"WEBP" + extended + file[12:] + b"EXIF" + struct.pack("<I", len(tiff)) + tiff
        file = b"RIFF" + struct.pack("<I", len(content)) + content
    else:
        # The directory, in numerical order of its tags, goes to the end.
        (start,) = struct.unpack_from("<I", file, 4)
        (count,) = struct.unpack_from("<H", file, start)
        entries = [file[start + 2 + 12 * i :][:12] for i in range(count)]
        entries.append(struct.pack("<HHII", 0x0112, 3, 1, orientation))
        entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
        directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        file = file[:4] + struct.pack("<I", len(file)) + file[8:] + directory
    path.write_bytes(file)


# ---- the model


def test_all_cameras_are_found_where_they_were(built: tuple[Path, Result], views: dict[str, View]) -> None:
    out, result = built
    assert result.figures.registered == result.figures.images == len(views)
    assert result.figures.points > 100
    assert result.figures.observations / result.figures.points == pytest.approx(result.figures.track_length)
    assert result.figures.reprojection_error < 1
    assert result.verified == result.pairs == 10
    model = pycolmap.Reconstruction(out / "sparse")
    similarity = true_similarity(model, views)
    for i in model.reg_image_ids():
        image = model.images[i]
        view = views[image.name]
        pose = similarity.transform_camera_world(image.cam_from_world())
        truth = pycolmap.Rigid3d(pycolmap.Rotation3d(view.R), view.t)
        rotation, position = leave_one_out.pose_error(pose, truth, 1.0)
        assert rotation < 1.5  # the focal length is not known
        assert position < 0.15  # the cameras are 4.4 from the corner
    (camera,) = model.cameras.values()
    assert camera.mean_focal_length() == pytest.approx(views["a.png"].K[0, 0], rel=0.05)


def test_photos_taken_while_walking_ahead_are_mapped(tmp_path: Path) -> None:
    """Straight ahead COLMAP finds no pair to begin with within its own limits."""
    write_views(tmp_path / "photos", {f"{i}.png": render(45, distance=4.6 - 0.2 * i) for i in range(5)})
    result = reconstruct(tmp_path / "photos", tmp_path / "out", methods.sift(800))
    assert result.figures.registered == 5
    assert result.figures.points > 50
    assert result.figures.reprojection_error < 1


def test_it_leaves_what_colmap_and_hloc_read(built: tuple[Path, Result], folder: Path) -> None:
    out, _ = built
    with pycolmap.Database.open(out / "database.db") as opened:
        images = {image.name: image.image_id for image in opened.read_all_images()}
        with hdf5.open_hdf5(out / "features.h5") as file:
            assert sorted(images) == hdf5.image_names(file) == photos.find_photos(folder)
            for name, number in images.items():
                # COLMAP's origin is the corner of the first pixel.
                expected = hdf5.read_features(file, name).keypoints + np.float32(0.5)
                np.testing.assert_array_equal(opened.read_keypoints(number), expected)
        with hdf5.open_hdf5(out / "matches.h5") as file:
            matches, scores = hdf5.read_matches(file, "a.png", "sub/c.png")
        assert (scores > 0.5).all()
        order = [images["a.png"], images["sub/c.png"]]
        np.testing.assert_array_equal(opened.read_matches(*order), matches)
        inliers = opened.read_two_view_geometry(*order).inlier_matches
        assert {tuple(pair) for pair in inliers} <= {tuple(pair) for pair in matches}
    listed = [tuple(line.split()) for line in (out / "pairs.txt").read_text().splitlines()]
    assert listed == pairs.exhaustive(photos.find_photos(folder))
    assert (out / "points.ply").read_bytes().startswith(b"ply")
    assert min(cv2.imread(str(out / "model.png")).shape[:2]) > 300


def test_a_second_run_changes_nothing_and_other_settings_are_refused(
    built: tuple[Path, Result], folder: Path
) -> None:
    out, result = built
    names = "features.h5", "matches.h5", "database.db.seconds", "sparse/points3D.bin"
    files = [out / name for name in names]  # SQLite touches the database when it is read
    before = [path.stat().st_mtime_ns for path in files]
    assert reconstruct(folder, out, method()) == result
    assert [path.stat().st_mtime_ns for path in files] == before
    with pytest.raises(InputError, match=r"other settings \(nfeatures\)"):
        reconstruct(folder, out, methods.d2net(create(BUDGET + 1)))


def test_an_edited_list_of_pairs_is_refused(built: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", tmp_path / "pairs.txt"
    out.mkdir()
    for name in ("features.h5", "matches.h5"):
        shutil.copy(built[0] / name, out)
    lines = (built[0] / "pairs.txt").read_text().splitlines(keepends=True)
    listed.write_text("".join(reversed(lines)))
    result = reconstruct(folder, out, method(), str(listed))
    written = (out / "pairs.txt").read_text()
    assert written == "".join(lines)
    listed.write_text("".join(lines[1:]))
    with pytest.raises(InputError, match=r"other settings \(pairs\)"):
        reconstruct(folder, out, method(), str(listed))
    assert (out / "pairs.txt").read_text() == written
    # The same pairs from elsewhere are the same work.
    assert reconstruct(folder, out, method(), str(out / "pairs.txt")) == result


KILLED = """
import os, signal, sys
from pathlib import Path
from d2feat import hdf5
from d2feat.sfm import database, reconstruct, stages
from tests.test_sfm import method
where, after, folder, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
def dying(function):
    def call(*args, **kwargs):
        global after
        after -= 1
        if after < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
hdf5.write_features = dying(hdf5.write_features) if where == "extraction" else hdf5.write_features
stages.match_features = dying(stages.match_features) if where == "matching" else stages.match_features
database.verify = dying(database.verify) if where == "verification" else database.verify
mapped = dying(lambda: None)
reconstruct.reconstruct(
    folder, out, method(), progress=lambda stage, *_: mapped() if stage == where == "mapping" else None
)
"""


def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_result(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    unbroken, result = built
    out = tmp_path / "out"
    left = []
    for where, after in (("extraction", 2), ("matching", 5), ("verification", 4), ("mapping", 1)):
        command = [sys.executable, "-c", KILLED, where, str(after), str(folder), str(out)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        left.append({path.name for path in out.iterdir()})
    assert [{"features.h5", "matches.h5", "database.db", "sparse"} & names for names in left] == [
        set(),
        {"features.h5"},
        {"features.h5", "matches.h5"},
        {"features.h5", "matches.h5", "database.db"},
    ]
    assert reconstruct(folder, out, method()).figures == result.figures
    for name in ("features.h5", "matches.h5", "global.h5"):
        one, two = arrays(out / name), arrays(unbroken / name)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    for name, pose in cameras(unbroken).items():
        np.testing.assert_array_equal(cameras(out)[name], pose)
    assert not list(out.rglob("*.partial")) + list(out.rglob("*.parts"))


def test_features_and_matches_of_others_are_taken(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    source, result = built
    for name in ("features.h5", "matches.h5"):
        shutil.copy(source / name, tmp_path)

    def extract(photo: photos.Photo) -> None:
        raise AssertionError("nothing is to be extracted")

    matching, count = methods.D2NET_MATCHING, methods.D2NET_INLIERS
    other = methods.Method("of others", extract, matching, count)  # type: ignore[arg-type]
    for _ in range(2):  # the second time everything is there
        assert reconstruct(folder, tmp_path, other).figures == result.figures
    with pytest.raises(InputError, match="made with another program"), Map(tmp_path) as place:
        place.check(method())


def keep_best(path: Path, count: int) -> None:
    """Other features in a file of features: the best of each photo."""
    with hdf5.open_hdf5(path, "r+") as file:
        for name in hdf5.image_names(file):
            hdf5.write_features(file, name, hdf5.read_features(file, name)[:count])


def test_matches_of_other_features_are_an_error(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    for name in ("features.h5", "matches.h5"):
        shutil.copy(built[0] / name, tmp_path)
    keep_best(tmp_path / "features.h5", 100)
    with pytest.raises(InputError, match=r"matches\.h5: the matches of .* are of other features"):
        reconstruct(folder, tmp_path, method())
    assert not (tmp_path / "database.db").exists()


def test_what_was_made_of_replaced_features_is_refused(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    keep_best(out / "features.h5", 300)
    described = (out / "global.h5").read_bytes()
    with pytest.raises(InputError, match=r"used for matches\.h5, database\.db, sparse in .*; remove these"):
        reconstruct(folder, out, method())
    assert (out / "global.h5").read_bytes() == described
    with pytest.raises(InputError, match=r"a\.png has 300 keypoints, 400 in the model"):
        Map(out)
    shutil.rmtree(out / "sparse")
    (out / "database.db").unlink()
    with pytest.raises(InputError, match=r"used for matches\.h5 in"):
        reconstruct(folder, out, method())
    (out / "matches.h5").unlink()
    assert reconstruct(folder, out, method()).figures.registered == 5
    with hdf5.open_hdf5(out / "matches.h5", "r+") as file:
        del file["a.png/b.png/matching_scores0"]
    with pytest.raises(InputError, match=r"matches\.h5 was replaced .* for database\.db, sparse"):
        reconstruct(folder, out, method())


def test_photos_that_changed_are_refused(built: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    """Though their sizes did not."""
    out, changed = tmp_path / "out", tmp_path / "photos"
    shutil.copytree(folder, changed)
    shutil.copytree(built[0], out)
    file = bytearray((changed / "e.png").read_bytes())
    file[-1] ^= 1
    (changed / "e.png").write_bytes(file)
    with pytest.raises(InputError, match=r"other settings \(photos\)"):
        reconstruct(changed, out, method())


def test_a_photo_that_cannot_be_read_costs_nothing_of_the_others(tmp_path: Path) -> None:
    folder, out, settings = tmp_path / "photos", tmp_path / "out", {"method": "D2-Net"}
    write_views(folder, {name: render(40) for name in ("a.png", "b.png")})
    (folder / "c.png").write_text("no")
    extracted = []

    def extract(photo: photos.Photo) -> Features:
        extracted.append(photo)
        return methods.sift(10).extract(photo)

    def run() -> None:
        digests = {name: digest(folder / name) for name in photos.find_photos(folder)}
        camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=288, height=216, params=[300, 144, 108])
        stages.claim(out, settings, {"photos": digests})
        stages.extract_photos(
            folder, digests, dict.fromkeys(digests, camera), methods.Method("D2-Net", extract), out
        )

    with pytest.raises(InputError, match=r"c\.png is not an image"):
        run()
    assert len(extracted) == 2
    cv2.imwrite(str(folder / "b.png"), render(50).image)
    (folder / "c.png").unlink()
    run()
    assert len(extracted) == 3  # the one that changed
    with hdf5.open_hdf5(out / "features.h5") as file:
        assert hdf5.image_names(file) == ["a.png", "b.png"]
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"other settings \(photos\)"):
        run()


def camera_errors(out: Path, model: str, views: dict[str, View]) -> np.ndarray:
    """Distances of a model's cameras from their true places, after the best similarity."""
    found = pycolmap.Reconstruction(out / model)
    similarity = true_similarity(found, views)
    images = [found.images[i] for i in found.reg_image_ids()]
    places = [similarity * image.projection_center() for image in images]
    return np.linalg.norm(np.array(places) - [views[image.name].centre for image in images], axis=1)


def test_refined_observations_make_better_cameras(
    built: tuple[Path, Result], folder: Path, views: dict[str, View], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    mapped = (out / "sparse/images.bin").read_bytes()

    def stop(stage: str, done: int, total: int) -> None:
        assert stage != "refinement"

    with pytest.raises(AssertionError):
        reconstruct(folder, out, method(), progress=stop, refine=True)
    assert not (out / "refined").exists()
    result = reconstruct(folder, out, method(), refine=True)
    assert result.figures.reprojection_error < 0.6 * built[1].figures.reprojection_error
    assert result.figures.observations > 0.95 * built[1].figures.observations
    assert result.seconds["refinement"] > 0
    assert camera_errors(out, "refined", views).mean() < 0.7 * camera_errors(out, "sparse", views).mean()
    # What COLMAP made stays, and all is there for the next run.
    assert (out / "sparse/images.bin").read_bytes() == mapped
    assert reconstruct(folder, out, method(), refine=True) == result
    assert reconstruct(folder, out, method()) == result
    model, refined = (pycolmap.Reconstruction(out / name) for name in ("sparse", "refined"))
    moved, idle = [], 0
    for i, image in refined.images.items():
        for before, after in zip(model.images[i].points2D, image.points2D, strict=True):
            if after.has_point3D():
                moved.append(np.linalg.norm(before.xy - after.xy))
            else:
                idle += 1
                np.testing.assert_array_equal(before.xy, after.xy)
    assert idle > 100
    assert 0.1 < np.median(moved) < 1
    # Photos are localised by the refined one.
    with Map(out) as place:
        assert place.model.compute_mean_reprojection_error() == result.figures.reprojection_error
        (found,) = localize_photos(place, {folder / "b.png": None}, method())
    assert found.inliers > 50
    errors = leave_one_out.leave_one_out(out, method().matching)
    assert max(error.rotation for error in errors) < 0.5
    # Of a model that was replaced it is not.
    model.delete_point3D(min(model.points3D))
    model.write(out / "sparse")
    assert best_model(out) == out / "sparse"
    assert reconstruct(folder, out, method()).figures.points == built[1].figures.points - 1
    assert reconstruct(folder, out, method(), refine=True).figures.points < result.figures.points + 1
    assert best_model(out) == out / "refined"
    keep_best(out / "features.h5", 300)
    with pytest.raises(InputError, match=r"used for .*sparse, refined in"):
        reconstruct(folder, out, method())


def test_large_photos_are_refined_at_a_smaller_size(
    built: tuple[Path, Result], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracks, "_EDGE", 200)  # of 288
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    result = reconstruct(folder, out, method(), refine=True)
    assert result.figures.reprojection_error < 0.8 * built[1].figures.reprojection_error
    assert result.figures.observations > 0.9 * built[1].figures.observations


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_photos_are_refined_as_they_are_stored(views: dict[str, View], tmp_path: Path, suffix: str) -> None:
    """Two photos lie on their sides, and say so: keypoints are those of the file's pixels."""
    photos = tmp_path / "photos"
    photos.mkdir()
    named = {Path(name).stem + suffix: view for name, view in views.items()}
    for i, (name, view) in enumerate(named.items()):
        stored = {1: np.rot90(view.image), 3: np.rot90(view.image, 2)}.get(i, view.image)
        cv2.imwrite(str(photos / name), np.ascontiguousarray(stored), [cv2.IMWRITE_JPEG_QUALITY, 100])
    add_exif(photos / f"b{suffix}", 6)
    add_exif(photos / f"d{suffix}", 3)
    out = tmp_path / "out"
    before = reconstruct(photos, out, method()).figures
    refined = reconstruct(photos, out, method(), refine=True).figures
    assert before.registered == refined.registered == 5
    assert refined.points > 0.9 * before.points > 100
    assert refined.reprojection_error < 0.5 * before.reprojection_error
    errors = [camera_errors(out, name, named).mean() for name in ("sparse", "refined")]
    assert errors[1] < errors[0] < 0.1
    # The adjustment leaves the scale alone, which it is free to choose.
    extents = [
        leave_one_out.camera_extent(model, leave_one_out.registered(model))
        for model in (pycolmap.Reconstruction(out / name) for name in ("sparse", "refined"))
    ]
    assert 0.5 < extents[1] / extents[0] < 2
    assert extents[0] < 100


def test_known_cameras_stay_when_observations_are_refined(
    folder: Path, views: dict[str, View], tmp_path: Path
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    write_reference(reference, views)
    before = reconstruct(folder, out, method(), reference=reference).figures
    refined = reconstruct(folder, out, method(), reference=reference, refine=True).figures
    assert refined.reprojection_error < 0.7 * before.reprojection_error
    model = pycolmap.Reconstruction(out / "refined")
    for name, pose in cameras(out).items():
        image = model.find_image_with_name(name)
        np.testing.assert_array_equal(image.cam_from_world().matrix(), pose)
        assert model.cameras[image.camera_id].mean_focal_length() == FOCAL


def test_known_cameras_of_another_size_are_an_error(
    built: tuple[Path, Result], views: dict[str, View], tmp_path: Path
) -> None:
    write_reference(tmp_path / "reference", views)
    half = {name: replace(view, image=cv2.resize(view.image, (144, 108))) for name, view in views.items()}
    write_views(tmp_path / "photos", half)
    said = r"a\.png has 144 x 108 pixels, its known camera 288 x 216"
    with pytest.raises(InputError, match=said):
        reconstruct(tmp_path / "photos", tmp_path / "out", method(), reference=tmp_path / "reference")
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=288, height=216, params=[300, 144, 108])
    with Map(built[0]) as place:
        (found,) = localize_photos(place, {tmp_path / "photos/a.png": camera}, method())
    assert found.pose is None
    with pytest.raises(InputError, match=said):
        raise found.error or AssertionError


def test_what_cannot_be_reconstructed_is_a_clear_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        reconstruct(tmp_path / "none", tmp_path / "out", method())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photographs"):
        reconstruct(tmp_path / "empty", tmp_path / "out", method())
    with pytest.raises(InputError, match="in the folder of the photographs"):
        reconstruct(folder, folder / "out", method())
    flat = tmp_path / "flat"
    write_views(flat, {"a.png": render(30), "b.png": render(30.2)})
    with pytest.raises(D2FeatError, match="no two photos to begin with"):
        reconstruct(flat, tmp_path / "out", method())
    even = tmp_path / "even"
    even.mkdir()
    for number in range(2):
        cv2.imwrite(str(even / f"{number}.png"), np.full((120, 160, 3), 90 + number, np.uint8))
    with pytest.raises(InputError, match="none of the 2 photographs shows anything"):
        reconstruct(even, tmp_path / "none", method())
    with pytest.raises(InputError, match=r"pairs are auto, exhaustive, .* there is no file exaustive"):
        reconstruct(folder, tmp_path / "out", method(), "exaustive")


# ---- localisation


def test_a_further_photo_is_localised(
    built: tuple[Path, Result], views: dict[str, View], tmp_path: Path
) -> None:
    out, _ = built
    view = render(QUERY, height=1.8)
    write_views(
        tmp_path, {"night.png": View(cv2.convertScaleAbs(view.image, alpha=0.4), view.K, view.R, view.t)}
    )
    with Map(out) as place:
        (found,) = localize_photos(place, {tmp_path / "night.png": None}, method())
        similarity = true_similarity(place.model, views)
    assert found.inliers > 50
    truth = pycolmap.Rigid3d(pycolmap.Rotation3d(view.R), view.t)
    rotation, position = leave_one_out.pose_error(similarity.transform_camera_world(found.pose), truth, 1.0)
    assert rotation < 1.5
    assert position < 0.15
    name, *numbers = benchmark_line(found).split()
    w, x, y, z, *translation = map(float, numbers)
    assert name == "night.png"
    np.testing.assert_allclose(
        pycolmap.Rotation3d([x, y, z, w]).matrix(), found.pose.rotation.matrix(), atol=1e-7
    )
    np.testing.assert_allclose(translation, found.pose.translation, atol=1e-7)


# Few matches agree with an estimated focal length by chance.
@pytest.mark.parametrize(
    ("shown", "matches", "expected"),
    [(1.0, 400, "the map's"), (1.0, 25, "the map's"), (0.7, 400, "estimated")],
)
def test_without_exif_the_camera_is_the_maps_unless_another_fits_better(
    built: tuple[Path, Result], tmp_path: Path, shown: float, matches: int, expected: str
) -> None:
    image = render(QUERY, height=1.8).image
    height, width = (round(side * shown) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    part = image[top : top + height, left : left + width]
    cv2.imwrite(str(tmp_path / "query.png"), cv2.resize(part, image.shape[1::-1]))
    features = method().extract(photos.read_photo(tmp_path / "query.png"))[:matches]

    def guess() -> Any:
        return photos.cameras_of(tmp_path, ["query.png"])["query.png"]

    with Map(built[0]) as place:
        (camera,) = (calibrated(one) for one in place.model.cameras.values())
        poses = {
            name: localize(place, "query.png", features, *cameras).pose.matrix()
            for name, cameras in {
                "the map's": (camera, {}),
                "estimated": (guess(), {}),
                "chosen": (camera, {}, guess()),
            }.items()
        }
    np.testing.assert_allclose(poses["chosen"], poses.pop(expected), atol=1e-6)
    del poses["chosen"]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.combinations(poses.values(), 2))


def test_a_photo_of_something_else_gets_no_pose(built: tuple[Path, Result], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (216, 288, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    with Map(built[0]) as place:
        (found,) = localize_photos(place, {tmp_path / "noise.png": None}, method())
    assert found.pose is None
    assert benchmark_line(found) == ""


def test_localisation_takes_the_detector_of_the_reconstruction() -> None:
    unusual = create(
        70,
        scoreThreshold=0.1,
        scales=(0.5, 1.0),
        maxEdge=700,
        maxSumEdges=900,
        model="d2net-lite",
        rotations=4,
    )
    settings = methods.d2net(unusual).settings
    there = json.loads(json.dumps(settings))
    assert methods.d2net(methods.detector_of(there, provider="cpu")).settings == settings
    other = methods.d2net(methods.detector_of(there, provider="cpu", nfeatures=80)).settings
    assert other == settings | {"nfeatures": 80}
    with pytest.raises(ModelError, match=r"the model of sha256 0123456789ab.*--model"):
        methods.detector_of({"model": "0123456789abcdef"})


@pytest.mark.parametrize("model", ["d2net-lite", "d2net-int8"])
def test_localisation_with_another_network_is_an_error(
    built: tuple[Path, Result], folder: Path, tmp_path: Path, model: str
) -> None:
    poses = tmp_path / "poses.txt"
    poses.write_text("of before\n")
    options = ["-o", str(poses), "--provider", "cpu", "--model", model]
    done = CliRunner().invoke(app, ["localize", str(built[0]), str(folder / "a.png"), *options])
    assert done.exit_code == 1
    assert f"was made with d2net, whose features those of {model} do not match" in done.output
    assert poses.read_text() == "of before\n"


def test_descriptors_of_another_length_are_an_error(built: tuple[Path, Result]) -> None:
    """Of features that were brought, the settings do not tell."""
    one = np.ones(1, np.float32)
    query = Features(np.ones((1, 2), np.float32), one, one, np.ones((1, 128), np.float32), (60, 40))
    with Map(built[0]) as place, pytest.raises(InputError, match=r"128 elements, those of .* 512"):
        place.nearest(query)


def test_queries_that_cannot_be_read_are_skipped(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no")
    queries = [tmp_path / "[none].png", folder / "a.png", tmp_path / "text.png", folder / "b.png"]
    poses = tmp_path / "poses.txt"
    command = ["localize", str(built[0]), *map(str, queries), "--provider", "cpu"]
    done = CliRunner().invoke(app, [*command, "-o", str(poses)])
    assert done.exit_code == 1
    skipped = [line.split()[1] for line in done.output.splitlines() if line.startswith("skipped")]
    assert skipped == ["[none].png:", "text.png:"]
    assert [line.split()[0] for line in poses.read_text().splitlines()] == ["a.png", "b.png"]


def test_where_poses_cannot_be_written_is_said_before_the_work(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    for out, why in ((tmp_path / "none" / "poses.txt", "there is no folder"), (tmp_path, "cannot write")):
        done = CliRunner().invoke(app, ["localize", str(built[0]), str(folder / "a.png"), "-o", str(out)])
        assert done.exit_code == 1
        assert why in done.output
        assert "inliers" not in done.output


def test_a_photo_gets_the_camera_that_is_nearest_to_its_own(built: tuple[Path, Result]) -> None:
    def camera(focal: float, width: int = 640) -> Any:
        return pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=width, height=480, params=[focal, width / 2, 240]
        )

    known = {number: camera(focal) for number, focal in enumerate((1060, 1010, 960, 700))}
    with Map(built[0]) as folder:
        folder.model = SimpleNamespace(cameras=known)
        for guess, expected in ((1000, 1010), (1050, 1060), (900, 960), (5000, 5000)):
            told = camera(guess)
            told.has_prior_focal_length = True
            found = folder.camera_like(told)
            assert found.mean_focal_length() == expected
            assert found.has_prior_focal_length
            assert (found is told) == (guess == expected)
        untold = folder.camera_like(camera(5000))
        assert untold.mean_focal_length() == 1060, "without EXIF the guess says nothing of the lens"
        assert untold.has_prior_focal_length
        other = camera(1000, width=700)
        assert folder.camera_like(other) is other


def test_two_runs_on_one_folder_take_turns(folder: Path, tmp_path: Path) -> None:
    """The second finds what the first has made."""
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(reconstruct, folder, tmp_path / "out", method()) for _ in range(2)]
        first, second = (one.result() for one in both)
    assert first.figures == second.figures


def test_each_photo_is_found_again_by_the_others(built: tuple[Path, Result]) -> None:
    errors = leave_one_out.leave_one_out(built[0], method().matching)
    assert [error.name for error in errors] == sorted(AZIMUTHS)
    assert np.median([error.rotation for error in errors]) < 0.5
    assert np.median([error.position for error in errors]) < 0.01
    assert all(error.rotation > 0 for error in errors)


def test_a_photo_that_is_left_out_leaves_nothing_behind(built: tuple[Path, Result]) -> None:
    whole = pycolmap.Reconstruction(built[0] / "sparse")
    gone = min(whole.reg_image_ids())
    rest = leave_one_out.without(whole, gone)
    assert gone not in rest.reg_image_ids()
    tracks = [point.track for point in rest.points3D.values()]
    assert tracks
    assert all(track.length() >= 2 for track in tracks)
    assert all(element.image_id != gone for track in tracks for element in track.elements)


def test_two_cameras_align_a_model(built: tuple[Path, Result]) -> None:
    """Their centres alone leave any turn about the line between them."""
    whole = pycolmap.Reconstruction(built[0] / "sparse")
    query, *others = sorted(whole.reg_image_ids())
    rest = pycolmap.Reconstruction(whole)
    for number in [query, *others[2:]]:
        rest.deregister_frame(rest.images[number].frame_id)
    turn = pycolmap.Rotation3d(cv2.Rodrigues(np.array([0.3, -1.0, 0.5]))[0])
    moved = pycolmap.Sim3d(2.5, turn, np.array([1.0, -2.0, 3.0]))
    rest.transform(moved)
    truth = whole.images[query].cam_from_world()
    pose = leave_one_out.aligned(rest, whole).transform_camera_world(moved.transform_camera_world(truth))
    np.testing.assert_allclose(leave_one_out.pose_error(pose, truth, 1.0), 0, atol=1e-5)


def test_a_data_set_in_the_layout_of_aachen(folder: Path, views: dict[str, View], tmp_path: Path) -> None:
    """Known cameras of the reference photos, a list of queries with intrinsics, the benchmark's text file."""
    reference, out, query = tmp_path / "reference", tmp_path / "out", render(QUERY, height=1.8)
    write_reference(reference, views)
    write_views(tmp_path, {"query/night/q.png": query})
    (tmp_path / "queries.txt").write_text("query/night/q.png SIMPLE_RADIAL 288 216 300 144 108 0\n")
    run = CliRunner().invoke
    known = ["--cameras", str(reference), "--no-sift", "-o", str(out), *OPTIONS]
    done = run(app, ["reconstruct", str(folder), *known])
    assert done.exit_code == 0, done.output
    model = pycolmap.Reconstruction(out / "sparse")
    assert model.num_points3D() > 100
    for image in model.images.values():
        np.testing.assert_allclose(image.projection_center(), views[image.name].centre, atol=1e-6)
    queries = ["--list", str(tmp_path / "queries.txt"), "--photos", str(tmp_path)]
    done = run(app, ["localize", str(out), *queries, "-o", str(tmp_path / "poses.txt"), *OPTIONS])
    assert done.exit_code == 0, done.output
    name, *numbers = (tmp_path / "poses.txt").read_text().split()
    w, x, y, z, *translation = map(float, numbers)
    assert name == "q.png"
    found = pycolmap.Rigid3d(pycolmap.Rotation3d([x, y, z, w]), translation)
    truth = pycolmap.Rigid3d(pycolmap.Rotation3d(query.R), query.t)
    rotation, position = leave_one_out.pose_error(found, truth, 1.0)
    assert rotation < 0.5
    assert position < 0.05
    write_reference(reference, views, FOCAL + 1)
    done = run(app, ["reconstruct", str(folder), *known])
    assert done.exit_code == 1
    assert "other settings (reference)" in done.output


def test_a_photo_that_known_cameras_name_and_is_missing_is_an_error(
    views: dict[str, View], tmp_path: Path
) -> None:
    write_reference(tmp_path / "reference", views)
    write_views(tmp_path / "photos", {name: view for name, view in views.items() if name != "sub/c.png"})
    with pytest.raises(InputError, match=r"lacks 1 of the 5 photographs .* such as sub/c\.png"):
        reconstruct(tmp_path / "photos", tmp_path / "out", method(), reference=tmp_path / "reference")
    assert not (tmp_path / "out").exists()


def test_photographs_of_different_things_give_no_points(views: dict[str, View], tmp_path: Path) -> None:
    folder, reference, out = tmp_path / "photos", tmp_path / "reference", tmp_path / "out"
    chosen = {name: views[name] for name in ("a.png", "b.png")}
    height, width = chosen["b.png"].image.shape[:2]
    chosen["b.png"] = replace(chosen["b.png"], image=photograph("coffee", (width, height)))
    write_views(folder, chosen)
    write_reference(reference, chosen)
    for _ in range(2):
        with pytest.raises(D2FeatError, match="no point could be triangulated"):
            reconstruct(folder, out, method(), reference=reference)
    assert not (out / "sparse").exists()


def test_a_folder_without_a_model_is_an_error(built: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = built
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out/sparse").rename(tmp_path / "0")
    (tmp_path / "out/sparse").mkdir()
    (tmp_path / "0").rename(tmp_path / "out/sparse/0")
    with pytest.raises(InputError, match="COLMAP cannot read a model in"):
        Map(tmp_path / "out")


def test_a_damaged_folder_is_an_error(built: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    whole = (out / "sparse/points3D.bin").read_bytes()
    for length in (0, 1000):
        (out / "sparse/points3D.bin").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"COLMAP cannot read a model in .*: points3D\.bin is cut off"):
            Map(out)
    (out / "sparse/points3D.bin").write_bytes(whole)
    whole = (out / "sparse/images.bin").read_bytes()
    (out / "sparse/images.bin").write_bytes(bytes(8))
    for command in (lambda: Map(out), lambda: reconstruct(folder, out, method())):
        with pytest.raises(InputError, match="COLMAP cannot read a model in"):
            command()
    (out / "sparse/images.bin").write_bytes(whole)
    (out / "database.db").write_bytes((out / "database.db").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"database\.db is damaged .*; remove it, and it is made again"):
        reconstruct(folder, out, method())
    (out / "database.db").unlink()
    reconstruct(folder, out, method())
    for content in ("", "[]", "{"):
        (out / "settings.json").write_text(content)
        for command in (lambda: Map(out), lambda: reconstruct(folder, out, method())):
            with pytest.raises(InputError, match=r"settings\.json is damaged"):
                command()


def test_names_that_are_not_utf8_are_an_error(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    try:
        shutil.copy(folder / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(InputError, match=r"rename 'caf\\udce9\.png'"):
        photos.find_photos(tmp_path)
    poses = tmp_path / "poses.txt"
    query = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    command = ["localize", str(built[0]), query, str(folder / "a.png"), "-o", str(poses), "--provider", "cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "skipped 'caf\\udce9.png': its name is not UTF-8" in done.output
    assert [line.split()[0] for line in poses.read_text().splitlines()] == ["a.png"]


def test_photos_of_one_name_are_told_apart(built: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    for name in ("qa/1.png", "qb/1.png", "2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.png", tmp_path / name)
    lines = [f"{name} SIMPLE_PINHOLE 288 216 300 144 108\n" for name in ("qa/1.png", "qb/1.png", "2.png")]
    (tmp_path / "queries.txt").write_text("".join(lines))
    queries = read_queries(tmp_path / "queries.txt", tmp_path)
    with Map(built[0]) as place:
        found = [one.name for one in localize_photos(place, queries, method(), tmp_path)]
        given = [one.name for one in localize_photos(place, queries, method())]
    assert found == ["qa/1.png", "qb/1.png", "2.png"]
    assert given == [str(tmp_path / "qa/1.png"), str(tmp_path / "qb/1.png"), "2.png"]


@pytest.mark.parametrize("line", ["q.png", "q.png PINHOLE 288 216 300", "q.png NONE 288 216 300 1 1"])
def test_a_list_of_queries_that_is_none_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "queries.txt").write_text(f"# a comment\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_queries(tmp_path / "queries.txt", tmp_path)
    with pytest.raises(InputError, match="no list"):
        read_queries(tmp_path / "none.txt", tmp_path)


def test_every_second_photo_is_darkened_and_keeps_its_exif(tmp_path: Path) -> None:
    jpegs, out = tmp_path / "jpegs", tmp_path / "out"
    write_views(jpegs, {name: render(40) for name in ("a.jpg", "b.jpg")})
    add_exif(jpegs / "b.jpg", 6)
    assert darken_half(jpegs, out) == ["b.jpg"]
    assert (out / "a.jpg").read_bytes() == (jpegs / "a.jpg").read_bytes()
    assert photos.read_photo(out / "b.jpg").quarters == 3
    by_day, by_night = (cv2.imread(str(path / "b.jpg")).mean() for path in (jpegs, out))
    assert by_night < 0.5 * by_day
    with pytest.raises(InputError, match="not written over"):
        darken_half(jpegs, jpegs)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".pgm"])
def test_photos_of_other_formats_are_darkened_as_they_stand(tmp_path: Path, suffix: str) -> None:
    day = tmp_path / "day"
    day.mkdir()
    image = render(40).image
    for name in "ab":
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        assert cv2.imwrite(str(day / f"{name}{suffix}"), grey if suffix == ".pgm" else image)
    if suffix != ".pgm":
        add_exif(day / f"b{suffix}", 6)
    assert darken_half(day, tmp_path / "out") == [f"b{suffix}"]
    by_day, by_night = (photos.read_photo(path / f"b{suffix}").upright for path in (day, tmp_path / "out"))
    assert by_night.shape == by_day.shape
    assert np.corrcoef(by_day.ravel(), by_night.ravel())[0, 1] > 0.8
    assert by_night.mean() < 0.5 * by_day.mean()


# ---- pairs and retrieval


def test_sequential_pairs_are_near_and_then_farther_apart() -> None:
    names = [f"{i:03}" for i in range(50)]
    found = pairs.sequential(names, overlap=3)
    assert len(found) == len(set(found))
    assert [two for one, two in found if one == "000"] == ["001", "002", "003", "006", "012", "024", "048"]
    frames = sorted(f"a/frame{i}.jpg" for i in range(1, 121))
    near = {frozenset(pair) for pair in pairs.sequential(frames, overlap=3)}
    assert all({f"a/frame{i}.jpg", f"a/frame{i + 1}.jpg"} in near for i in range(1, 120))
    assert all(frames.index(one) < frames.index(two) for one, two in pairs.sequential(frames))


def test_retrieval_finds_the_photos_of_the_same_place() -> None:
    random = np.random.default_rng(0)
    places = random.normal(size=(4, 60, 32)).astype(np.float32)
    described = []
    for i in range(12):
        some = places[i // 3] + random.normal(scale=0.3, size=(60, 32))
        described.append((some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32))
    words = retrieval.learn_words(np.concatenate(described))
    vectors = np.stack([retrieval.global_descriptor(some, words) for some in described])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    names = [f"{i:02}" for i in range(12)]
    wanted = [(names[i], names[j]) for i in range(12) for j in range(i + 1, 12) if i // 3 == j // 3]

    def agreement(i: int, j: int) -> int:
        return retrieval.preview(described[i], described[j])

    found = pairs.retrieved(names, vectors, agreement, 2)
    assert sorted(found) == wanted
    # A lone photo gets its share of likely pairs, and a crowded place more than that.
    few = pairs.retrieved(names, vectors, lambda i, j: 10 if i < 4 and j < 5 else 0, 6)
    assert len(few) == 36
    assert {pair for pair in few if max(pair) < "05"} == {
        (a, b) for a in names[:5] for b in names[:5] if a < b
    }
    assert retrieval.recall(found, wanted) == 1
    assert retrieval.recall(found[:6], [pair[::-1] for pair in wanted]) == 0.5
    assert retrieval.global_descriptor(np.zeros((0, 32), np.float32), words).tolist() == [0] * words.size


def test_links_that_lead_nowhere_are_no_photos(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "b.png").symlink_to("nowhere.png")
    assert photos.find_photos(tmp_path) == ["a.png"]


def test_pairs_are_read_in_the_photos_order(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("b a\n\na c\nb a\n")
    assert pairs.listed(["a", "b", "c"], tmp_path / "pairs.txt") == [("a", "b"), ("a", "c")]
    (tmp_path / "pairs.txt").write_text("a b\na d\n")
    with pytest.raises(InputError, match="line 2"):
        pairs.listed(["a", "b", "c"], tmp_path / "pairs.txt")
    with pytest.raises(InputError, match="no file of pairs"):
        pairs.listed(["a"], tmp_path / "none.txt")


# ---- photos and methods


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photos_are_upright_and_their_points_are_those_of_the_file(
    tmp_path: Path, suffix: str, orientation: int, quarters: int
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    path = (tmp_path / "photo").with_suffix(suffix)
    cv2.imwrite(str(path), image)
    stored = cv2.imread(str(path))
    add_exif(path, orientation)
    photo = photos.read_photo(path)
    assert photo.quarters == quarters
    np.testing.assert_array_equal(photo.upright, np.rot90(stored, quarters))
    assert photo.stored_size == (60, 40)
    for x, y in ((0, 0), (5, 2), (17, 31)):
        u, v = photo.to_stored(np.array([[x, y]], np.float32))[0].astype(int)
        np.testing.assert_array_equal(stored[v, u], photo.upright[y, x])


@pytest.mark.parametrize(("orientation", "quarters"), [(2, 0), (4, 2), (5, 3), (7, 1)])
def test_mirrored_photos_are_turned_only(tmp_path: Path, orientation: int, quarters: int) -> None:
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    stored = cv2.imread(str(path))
    add_exif(path, orientation)
    photo = photos.read_photo(path)
    assert photo.quarters == quarters
    np.testing.assert_array_equal(photo.upright, np.rot90(stored, quarters))


def test_a_photo_whose_orientation_colmap_cannot_read_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "photo.webp"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    stored = cv2.imread(str(path))
    add_exif(path, 6)
    photo = photos.read_photo(path)
    np.testing.assert_array_equal(photo.upright, stored)
    assert photo.stored_size == (60, 40)


def test_photos_of_one_camera_share_it(folder: Path, tmp_path: Path) -> None:
    found = photos.cameras_of(folder, photos.find_photos(folder))
    assert len({id(camera) for camera in found.values()}) == 1
    own = photos.cameras_of(folder, photos.find_photos(folder), own=True)
    assert len({id(camera) for camera in own.values()}) == len(found)
    (tmp_path / "a").mkdir()
    for name in ("a/b.png", "a-b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(InputError, match=r"one name for the images a-b\.png and a/b\.png"):
        reconstruct(tmp_path, tmp_path.parent / "out", method())
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((60, 40, 3), np.uint8))
    assert len({id(camera) for camera in photos.cameras_of(tmp_path, ["a.png", "b.png"]).values()}) == 2
    (tmp_path / "c.png").write_text("no")
    with pytest.raises(InputError, match="is not an image"):
        photos.cameras_of(tmp_path, ["c.png"])


def test_the_camera_of_a_photo_that_colmap_cannot_read_is_guessed(tmp_path: Path) -> None:
    for name in ("a.png", "b.webp"):
        cv2.imwrite(str(tmp_path / name), np.zeros((40, 60, 3), np.uint8))
    known, guessed = photos.cameras_of(tmp_path, ["a.png", "b.webp"]).values()
    assert str(guessed) == str(known)


def test_sifts_keypoints_are_in_opencvs_coordinates_and_within_the_budget() -> None:
    blob = np.zeros((80, 100, 3), np.float32)
    y, x = np.mgrid[:80, :100]
    blob += 200 * np.exp(-((x - 61) ** 2 + (y - 33) ** 2) / (2 * 4.0**2))[..., None]
    found = methods.sift(1).extract(photos.Photo(blob.astype(np.uint8), 0))
    assert len(found) == 1
    np.testing.assert_allclose(found.keypoints[0], (61, 33), atol=0.1)
    assert np.linalg.norm(found.descriptors[0]) == pytest.approx(1, abs=1e-3)


def test_other_work_in_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    stages.claim(tmp_path, {"method": "D2-Net", "scales": (1.0,)})
    stages.claim(tmp_path, {"method": "D2-Net", "scales": (1.0,)})
    with pytest.raises(InputError, match=r"other settings \(scales\)"):
        stages.claim(tmp_path, {"method": "D2-Net", "scales": (0.5, 1.0)})


# ---- the command line


def test_the_commands(built: tuple[Path, Result], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out[/b]"
    shutil.copytree(built[0], out)
    run = CliRunner().invoke
    done = run(app, ["reconstruct", str(folder), "-o", str(out), *OPTIONS])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}: " in done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line}
    assert rows["D2-Net"][1:5] == ["5", "/", "5", str(built[1].figures.points)]
    assert rows["SIFT"][1:4] == ["5", "/", "5"]
    assert "5 photographs whose EXIF tells no focal length are taken for those of one camera" in done.output
    query, poses = folder / "b.png", tmp_path / "poses.txt"
    done = run(app, ["localize", str(out), str(query), "-o", str(poses), *OPTIONS])
    assert done.exit_code == 0, done.output
    assert len(poses.read_text().split()) == 8
    done = run(app, ["localize", str(out / "sift"), str(query)])
    assert done.exit_code == 1
    assert "was made with SIFT" in done.output
    done = run(app, ["eval", "retrieval", str(out)])
    assert "5 photos, 10 pairs, 10 verified" in done.output
    nothing = run(app, ["eval", "localization", str(out.parent)])
    assert nothing.exit_code != 0
    done = run(app, ["eval", "localization", str(out)])
    assert done.exit_code == 0, done.output
    assert [line.split()[:3] for line in done.output.splitlines()[1:3]] == [
        ["D2-Net", "5", "5"],
        ["SIFT", "5", "5"],
    ]
    done = run(app, ["localize", str(tmp_path / "none"), str(query)])
    assert done.exit_code == 1
    assert "holds no reconstruction" in done.output


def test_retrieval_cannot_be_judged_without_a_verified_pair(
    built: tuple[Path, Result], folder: Path, tmp_path: Path
) -> None:
    shutil.copy(built[0] / "features.h5", tmp_path)
    command = ["eval", "retrieval", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "no verified pair" in done.output
    assert not (tmp_path / "database.db").exists()
    names = photos.find_photos(folder)
    with hdf5.open_hdf5(tmp_path / "features.h5") as features:
        build_database(tmp_path / "database.db", photos.cameras_of(folder, names), features, None, [], 25)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "no verified pair" in done.output


def test_without_pycolmap_the_rest_works_and_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pycolmap.py").write_text("raise ImportError('absent')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "d2feat", "reconstruct", str(tmp_path), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "pip install 'd2feat[sfm]'" in " ".join(done.stderr.split())
