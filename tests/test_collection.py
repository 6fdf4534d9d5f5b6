"""`d2feat extract`: names, resumption after a kill, images that cannot be read, matches, and Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.collection.names import find_images
from tests.conftest import assert_same_features, create, photograph
from tests.test_cli import assert_one_line_error, invoke

pytest.importorskip("h5py", reason="HDF5 files are written")

from d2feat.collection.parts import part_path, parts_folder, still_to_do, write_part
from d2feat.hdf5 import image_names, open_hdf5, read_features, read_matches

COMMAND = ["--model", "d2net", "--provider", "cpu", "--nfeatures", "100"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six small images in folders, one of which is none, and a file that is not meant."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "sub/a.png", "sub/c.webp", "sub/d.png"]):
        scene = photograph("astronaut", (160 + i, 120))
        cv2.imwrite(str(folder / name), scene[8 * i : 8 * i + 80, 10 * i : 10 * i + 100])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    (folder / "notes.md").write_text("no image")
    return folder


GOOD = ["a.png", "b.jpg", "sub/a.png", "sub/c.webp", "sub/d.png"]


def names_in(path: Path) -> list[str]:
    with open_hdf5(path) as file:
        return image_names(file)


def test_names_are_relative_to_what_was_given(folder: Path, tmp_path: Path) -> None:
    assert list(find_images([folder])) == ["a.png", "b.jpg", "broken.jpg", *GOOD[2:]]
    assert list(find_images([folder / "sub/c.webp", folder / "b.jpg"])) == ["sub/c.webp", "b.jpg"]
    listed = tmp_path / "list.txt"
    listed.write_text("photos/b.jpg\n\nphotos/missing.png\n")
    assert find_images([listed]) == {
        "photos/b.jpg": folder / "b.jpg",
        "photos/missing.png": folder / "missing.png",
    }
    with pytest.raises(d2feat.InputError, match=r"both be named a\.png"):
        find_images([folder, folder / "sub"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(d2feat.InputError, match="no images"):
        find_images([tmp_path / "empty"])
    with pytest.raises(d2feat.InputError, match="no file or folder"):
        find_images([tmp_path / "nowhere"])


def test_features_of_a_folder_and_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    result = invoke("extract", folder, "-o", out, *COMMAND)
    assert result.exit_code == 1, result.output
    assert "skipped broken.jpg" in result.output
    assert "5 of 6 images extracted" in result.output
    assert names_in(out) == GOOD
    assert not parts_folder(out).exists()
    with open_hdf5(out) as file:
        stored = read_features(file, "sub/c.webp")
    expected = create(100, scales=d2feat.MULTISCALE).extract(cv2.imread(str(folder / "sub/c.webp")))
    assert_same_features(stored, expected, position=1e-3, descriptor=1e-3)
    # Another run does what is new, and tries again what could not be read.
    cv2.imwrite(str(folder / "new.png"), photograph("chelsea", (90, 60)))
    result = invoke("extract", folder, "-o", out, *COMMAND)
    assert "1 of 7 images extracted, 5 were done" in result.output
    assert names_in(out) == sorted([*GOOD, "new.png"])
    (folder / "broken.jpg").unlink()
    assert invoke("extract", folder, "-o", out, *COMMAND).exit_code == 0
    assert_one_line_error(
        invoke("extract", folder, "-o", out, *COMMAND[:-1], "50"), "nfeatures 100", "another -o"
    )


def test_a_killed_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    for i in range(12):
        cv2.imwrite(str(folder / f"more{i:02}.png"), photograph("coffee", (150 + i, 100)))
    (folder / "broken.jpg").unlink()
    out = tmp_path / "features.h5"
    parts = parts_folder(out)
    process = subprocess.Popen(
        [sys.executable, "-m", "d2feat", "extract", folder, "-o", out, *COMMAND],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    while len(list(parts.glob("*.h5"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*.h5")}
    assert 3 <= len(done) < 17
    assert not out.exists()
    written: list[str] = []
    original = write_part

    def noted(folder: Path, name: str, *rest: object) -> None:
        written.append(name)
        original(folder, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("d2feat.collection.local.write_part", noted)
        result = invoke("extract", folder, "-o", out, *COMMAND)
    assert result.exit_code == 0, result.output
    assert f"{len(done)} were done" in result.output
    assert not {part_path(parts, name) for name in written} & set(done)
    assert len(names_in(out)) == len(written) + len(done) == 17
    assert not parts.exists()


def test_a_kill_between_joining_and_removing_loses_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    invoke("extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND)
    with open_hdf5(out) as file:
        features, settings = read_features(file, "a.png"), file["a.png"].attrs["d2feat"]
    parts_folder(out).mkdir()
    write_part(parts_folder(out), "a.png", features, settings)
    assert still_to_do(out, ["a.png", "b.jpg", "c.png"], settings) == ["c.png"]
    assert invoke("extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND).exit_code == 0
    assert names_in(out) == ["a.png", "b.jpg"]


def test_pairs_are_matched(folder: Path, tmp_path: Path) -> None:
    out, pairs = tmp_path / "features.h5", tmp_path / "pairs.txt"
    pairs.write_text("a.png b.jpg\na.png sub/a.png\nsub/c.webp sub/d.png\n")
    (folder / "broken.jpg").unlink()
    result = invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs)
    assert result.exit_code == 0, result.output
    with open_hdf5(out) as features, open_hdf5(tmp_path / "features-matches.h5") as matches:
        one, two = (read_features(features, name) for name in ("a.png", "sub/a.png"))
        found, scores = read_matches(matches, "a.png", "sub/a.png")
        expected = d2feat.match(one.descriptors, two.descriptors)
        assert len(expected) > 10
        np.testing.assert_array_equal(found, [(m.queryIdx, m.trainIdx) for m in expected])
        np.testing.assert_allclose(scores, [1 - m.distance**2 / 4 for m in expected], atol=1e-3)
        # The order of the names does not count.
        assert len(read_matches(matches, "sub/d.png", "sub/c.webp")[0]) > 10
        with pytest.raises(d2feat.InputError):
            read_matches(matches, "b.jpg", "sub/a.png")
    assert "10 pairs" in invoke("extract", folder, "-o", out, *COMMAND, "--match", "all").output
    pairs.write_text("a.png nobody.png\n")
    result = invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs)
    assert_one_line_error(result, "line 1", "nobody.png")


def test_what_cannot_be_written_is_said_before_the_work(folder: Path, tmp_path: Path) -> None:
    assert_one_line_error(invoke("extract", folder, "-o", tmp_path / "x.npz"), ".parquet")
    assert_one_line_error(invoke("extract", folder, "-o", tmp_path / "nowhere/x.h5"), "no folder")
    assert_one_line_error(invoke("extract", folder, "-o", tmp_path / "x.parquet"), "--engine ray")


ray_wanted = pytest.mark.skipif(
    "D2FEAT_RAY" not in os.environ, reason="set D2FEAT_RAY=1: starts a Ray cluster"
)


def workers_of_ray(kind: str) -> list[int]:
    """Process ids of the actors that run our class `kind`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::") and kind.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@ray_wanted
def test_ray_gives_the_same_though_a_worker_is_killed(folder: Path, tmp_path: Path) -> None:
    for i in range(30):
        cv2.imwrite(str(folder / f"more{i:02}.png"), photograph("coffee", (100 + i, 70)))
    (folder / "broken.jpg").unlink()
    local, out = tmp_path / "local.h5", tmp_path / "ray.h5"
    assert invoke("extract", folder, "-o", local, *COMMAND).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "d2feat", "extract", folder, "-o", out, *COMMAND, "--engine", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    seen: set[int] = set()
    while len(list(parts_folder(out).glob("*.h5"))) < 6:
        assert process.poll() is None, process.communicate()
        seen |= set(workers_of_ray("PartWriter"))
        time.sleep(0.1)
    assert len(seen) == 2
    victim = seen.pop()
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    with open_hdf5(local) as one, open_hdf5(out) as other:
        assert image_names(one) == image_names(other)
        assert len(image_names(one)) == 35
        for name in image_names(one):
            # Another number of threads may round otherwise.
            assert_same_features(
                read_features(one, name), read_features(other, name), position=1e-2, descriptor=1e-2
            )


@ray_wanted
def test_ray_writes_parquet(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "features.parquet"
    result = subprocess.run(
        [sys.executable, "-m", "d2feat", "extract", folder, "-o", out, *COMMAND, "--engine", "ray"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "skipped broken.jpg" in result.stdout
    rows = {row["name"]: row for row in pq.read_table(out).to_pylist()}
    assert sorted(name for name, row in rows.items() if not row["error"]) == GOOD
    expected = create(100, scales=d2feat.MULTISCALE).extract(cv2.imread(str(folder / "a.png")))
    row = rows["a.png"]
    assert row["image_size"] == list(expected.image_size)
    stored = np.array(row["descriptors"], np.float32).reshape(-1, 512)
    np.testing.assert_allclose(np.array(row["keypoints"]).reshape(-1, 2), expected.keypoints, atol=1e-3)
    np.testing.assert_allclose(stored, expected.descriptors, atol=1e-3)
