"""Features and matches in hloc's HDF5 layout; `hloc_*` read as hloc's own code does."""

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest

import d2feat
from d2feat import hdf5
from d2feat.errors import InputError

h5py = pytest.importorskip("h5py")


def hloc_keypoints(path: Path, name: str) -> tuple[np.ndarray, float]:
    with h5py.File(path, "r") as file:
        keypoints = file[name]["keypoints"]
        return keypoints[()], keypoints.attrs.get("uncertainty")


def hloc_matches(path: Path, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    def pair(a: str, b: str) -> str:
        return "/".join((a.replace("/", "-"), b.replace("/", "-")))

    with h5py.File(path, "r") as file:
        turned = pair(name0, name1) not in file
        group = file[pair(name1, name0) if turned else pair(name0, name1)]
        matches0, scores0 = group["matches0"][()], group["matching_scores0"][()]
    index = np.where(matches0 != -1)[0]
    matches = np.stack([index, matches0[index]], -1)
    return (matches[:, ::-1] if turned else matches), scores0[index]


def some_features(count: int, seed: int = 0) -> d2feat.Features:
    random = np.random.default_rng(seed)
    descriptors = random.normal(size=(count, 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    points = random.uniform(0, 2000, (count, 2)).astype(np.float32)
    scores = np.sort(random.uniform(size=count).astype(np.float32))[::-1]
    return d2feat.Features(points, scores, np.full(count, 1.5, np.float32), descriptors, (2000, 1500))


@pytest.mark.parametrize("count", [7, 0])
def test_features_come_back(tmp_path: Path, count: int) -> None:
    written = some_features(count)
    with hdf5.open_hdf5(tmp_path / "f.h5", "w") as file:
        hdf5.write_features(file, "db/a.jpg", some_features(3, seed=1))
        hdf5.write_features(file, "db/a.jpg", written)
        read = hdf5.read_features(file, "db/a.jpg")
        assert hdf5.image_names(file) == ["db/a.jpg"]
    for field in ("keypoints", "scores", "scales"):
        np.testing.assert_array_equal(getattr(read, field), getattr(written, field))
    np.testing.assert_allclose(read.descriptors, written.descriptors, atol=5e-4)
    assert read.descriptors.dtype == np.float32
    assert read.descriptors.flags.c_contiguous
    assert read.image_size == written.image_size


def test_angles_come_back(tmp_path: Path) -> None:
    written = dataclasses.replace(some_features(7), angles=np.linspace(0, 350, 7, dtype=np.float32))
    with hdf5.open_hdf5(tmp_path / "f.h5", "w") as file:
        hdf5.write_features(file, "turned.jpg", written)
        hdf5.write_features(file, "upright.jpg", some_features(7))
        np.testing.assert_array_equal(hdf5.read_features(file, "turned.jpg").angles, written.angles)
        assert hdf5.read_features(file, "upright.jpg").angles is None


def test_keypoints_in_half_precision_are_read_alike(tmp_path: Path) -> None:
    """As hloc's option writes them; half a pixel added to these would be lost."""
    with hdf5.open_hdf5(tmp_path / "f.h5", "w") as file:
        hdf5.write_features(file, "a.jpg", some_features(7))
        halves = file["a.jpg/keypoints"][()].astype(np.float16)
        del file["a.jpg/keypoints"]
        file["a.jpg/keypoints"] = halves
        read = hdf5.read_keypoints(file, "a.jpg")
        np.testing.assert_array_equal(read + 0.5, hdf5.read_features(file, "a.jpg").keypoints + 0.5)


def test_features_are_in_hlocs_layout(tmp_path: Path) -> None:
    features = some_features(5)
    with hdf5.open_hdf5(tmp_path / "f.h5", "w") as file:
        hdf5.write_features(file, "a.jpg", features)
    keypoints, uncertainty = hloc_keypoints(tmp_path / "f.h5", "a.jpg")
    np.testing.assert_array_equal(keypoints, features.keypoints)
    assert uncertainty == 1.5
    with h5py.File(tmp_path / "f.h5") as file:
        assert set(file["a.jpg"]) == {"keypoints", "scores", "scales", "descriptors", "image_size"}
        assert file["a.jpg/descriptors"].shape == (16, 5)
        assert file["a.jpg/image_size"][()].tolist() == [2000, 1500]


def test_features_of_others_may_lack_scores_and_scales(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/keypoints"] = np.ones((4, 2), np.float16)
        file["a/descriptors"] = np.ones((8, 4), np.float16)
        file["a/image_size"] = [64, 48]
        features = hdf5.read_features(file, "a")
    assert features.keypoints.dtype == features.scores.dtype == np.float32
    assert features.scores.tolist() == features.scales.tolist() == [1] * 4


def test_what_is_not_there_or_not_in_the_layout_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no HDF5 file"):
        hdf5.open_hdf5(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(InputError, match="as HDF5"):
        hdf5.open_hdf5(tmp_path / "text.h5")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/keypoints"] = np.ones((4, 2))
        file["a/descriptors"] = np.ones((4, 8))
        file["b/keypoints"] = np.ones((4, 2))
        with pytest.raises(InputError, match="C x N"):
            hdf5.read_features(file, "a")
        with pytest.raises(InputError, match="no dataset descriptors"):
            hdf5.read_features(file, "b")
        with pytest.raises(InputError, match="holds no c"):
            hdf5.read_features(file, "c")
        with pytest.raises(InputError, match="holds no a/b"):
            hdf5.read_matches(file, "a", "b")


def test_matches_come_back_both_ways_round_and_as_hloc_reads_them(tmp_path: Path) -> None:
    matches, scores = np.array([[1, 40_000], [4, 0], [0, 2]]), np.array([0.5, 1.0, 0.25])
    with hdf5.open_hdf5(tmp_path / "m.h5", "w") as file:
        hdf5.write_matches(file, "db/a.jpg", "q/b.jpg", matches, scores, 6)
        there = hdf5.read_matches(file, "db/a.jpg", "q/b.jpg")
        back = hdf5.read_matches(file, "q/b.jpg", "db/a.jpg")
    order = [2, 0, 1]
    np.testing.assert_array_equal(there[0], matches[order])
    np.testing.assert_array_equal(there[1], scores[order])
    np.testing.assert_array_equal(back[0], matches[order][:, ::-1])
    for names in (("db/a.jpg", "q/b.jpg"), ("q/b.jpg", "db/a.jpg")):
        mine = there if names[0] == "db/a.jpg" else back
        for ours, theirs in zip(mine, hloc_matches(tmp_path / "m.h5", *names), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_matches_are_matches(tmp_path: Path) -> None:
    with hdf5.open_hdf5(tmp_path / "m.h5", "w") as file:
        hdf5.write_matches(file, "a", "b", np.zeros((0, 2), np.int64), np.zeros(0), 3)
        matches, scores = hdf5.read_matches(file, "b", "a")
    assert matches.shape == (0, 2)
    assert scores.shape == (0,)


def test_a_file_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with hdf5.replacing(path) as file:
        file["x"] = 1
    with pytest.raises(TypeError), hdf5.replacing(path) as file:
        file["x"] = object()
    with hdf5.open_hdf5(path) as file:
        assert file["x"][()] == 1
    assert [left.name for left in tmp_path.iterdir()] == ["f.h5"]


def test_a_full_disk_is_an_error_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    for number, path in enumerate((one, two)):
        with hdf5.replacing(path) as file:
            file[f"x{number}"] = number

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(d2feat.D2FeatError, match=r"one\.h5.*No space left.*goes on"), hdf5.replacing(one):
            pass
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: (10**9, 10**9 - 100, 100))
        with pytest.raises(d2feat.D2FeatError, match=r"no space for .*all\.h5: it takes"):
            hdf5.pack([one, two], tmp_path / "all.h5")
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_merge", lambda *_: full())
        with pytest.raises(d2feat.D2FeatError, match=r"all\.h5.*No space left"):
            hdf5.pack([one, two], tmp_path / "all.h5")
    with hdf5.open_hdf5(one) as file:
        assert file["x0"][()] == 0
    assert sorted(left.name for left in tmp_path.iterdir()) == ["one.h5", "two.h5"]


def test_only_what_lost_its_content_is_no_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.h5"
    assert not hdf5.is_whole(path)
    with hdf5.replacing(path) as file:
        file["x"] = np.arange(1000)
    content = path.read_bytes()
    assert hdf5.is_whole(path)
    for left in (b"", bytes(len(content)), content[: len(content) // 2]):
        path.write_bytes(left)
        assert not hdf5.is_whole(path)
        assert not path.exists()
    path.write_bytes(content)

    def locked(*_: object) -> None:
        raise InputError("cannot open f.h5 as HDF5: unable to lock file")

    monkeypatch.setattr(hdf5, "open_hdf5", locked)
    with pytest.raises(InputError, match="lock"):
        hdf5.is_whole(path)
    assert path.read_bytes() == content


def test_parts_are_packed_with_groups_merged(tmp_path: Path) -> None:
    one, two = some_features(3, seed=1), some_features(4, seed=2)
    for part, name, features in (("1.h5", "db/a", one), ("2.h5", "db/b", two)):
        with hdf5.replacing(tmp_path / part) as file:
            hdf5.write_features(file, name, features)
            file.attrs["seconds"] = 1.5
    hdf5.pack([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "f.h5")
    with hdf5.open_hdf5(tmp_path / "f.h5") as file:
        assert hdf5.image_names(file) == ["db/a", "db/b"]
        assert file.attrs["seconds"] == 3
        np.testing.assert_array_equal(hdf5.read_features(file, "db/b").keypoints, two.keypoints)
        assert file["db/a/keypoints"].attrs["uncertainty"] == 1.5


def test_a_pack_replaces_groups_of_the_first_file(tmp_path: Path) -> None:
    old, new = some_features(5, seed=1), some_features(3, seed=2)
    with hdf5.replacing(tmp_path / "f.h5") as file:
        for name in ("a", "db/a", "db/b", "db/sub/a"):
            hdf5.write_features(file, name, old)
            file[name].attrs["of"] = "old"
    with hdf5.replacing(tmp_path / "new.h5") as file:
        hdf5.write_features(file, "db/a", new)
        file["db/a"].attrs["of"] = "new"
    hdf5.pack([tmp_path / "f.h5", tmp_path / "new.h5"], tmp_path / "f.h5", ["db/a", "db/sub/a"])
    with hdf5.open_hdf5(tmp_path / "f.h5") as file:
        held = {name: file[name].attrs["of"] for name in hdf5.image_names(file)}
        assert held == {"a": "old", "db/a": "new", "db/b": "old"}
        assert len(hdf5.read_keypoints(file, "db/a")) == 3
