"""`d2feat extract`: names, resumption after a kill, images that cannot be read, matches, and Ray."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import d2feat
from d2feat.collection.names import find_images
from tests.conftest import assert_same_features, create, photograph
from tests.test_cli import assert_one_line_error, invoke

pytest.importorskip("h5py", reason="HDF5 files are written")

from d2feat.collection.parts import (
    DIGEST,
    join_parts,
    part_path,
    parts_folder,
    still_to_do,
    write_part,
)
from d2feat.hdf5 import image_names, open_hdf5, pack, read_features, read_matches, replacing, write_features
from d2feat.images import digest
from d2feat.locks import locked
from d2feat.model import bundled_folder
from d2feat.pairs import match_features, match_pairs, read_pairs

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


def test_links_have_names_of_their_own(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for name, target in (("1.png", "a.png"), ("2.png", "a.png"), ("3.jpg", "b.jpg")):
        (links / name).symlink_to(folder / target)
    assert list(find_images([links / "1.png", links / "2.png", links / "3.jpg"])) == [
        "1.png",
        "2.png",
        "3.jpg",
    ]
    (links / "sub").symlink_to(folder / "sub")
    (links / "round").symlink_to(links)
    (links / "within").mkdir()
    (links / "within/again").symlink_to(links / "within")
    (links / "up").symlink_to(tmp_path)
    (folder / "sub/back").symlink_to(folder)
    (folder / "back").symlink_to(folder / "sub")
    (links / "._1.png").write_bytes(b"of macOS")
    subfolder = ["sub/a.png", "sub/c.webp", "sub/d.png"]
    other = [f"sub/back/{name}" for name in ("a.png", "b.jpg", "broken.jpg")]
    assert sorted(find_images([links])) == ["1.png", "2.png", "3.jpg", *sorted(subfolder + other)]
    assert list(find_images([folder])) == ["a.png", "b.jpg", "broken.jpg", *subfolder]


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
    assert not list(parts.glob("*.h5"))


def test_a_part_that_lost_its_content_is_done_again(folder: Path, tmp_path: Path) -> None:
    """As of a file system that lost its power."""
    out, detector = tmp_path / "features.h5", create(model="d2net", nfeatures=100)
    command = ["extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND]
    assert invoke(*command).exit_code == 0
    with open_hdf5(out) as file:
        settings = file["a.png"].attrs["d2feat"]
    out.unlink()
    for name in ("a.png", "b.jpg"):
        image = folder / name
        write_part(parts_folder(out), name, detector.extract(cv2.imread(str(image))), settings, digest(image))
    part_path(parts_folder(out), "a.png").write_bytes(b"")
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "1 of 2 images extracted, 1 were done" in result.output
    assert names_in(out) == ["a.png", "b.jpg"]

    pairs, matches = [("a.png", "b.jpg")], tmp_path / "features-matches.h5"
    assert list(match_pairs(pairs, out, matches)) == [1]
    matches.unlink()
    assert next(match_pairs(pairs, out, matches)) == 1  # and then it was killed
    (part,) = parts_folder(matches).glob("*.h5")
    part.write_bytes(b"")
    assert list(match_pairs(pairs, out, matches)) == [1]


def test_a_kill_between_joining_and_removing_loses_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    invoke("extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND)
    with open_hdf5(out) as file:
        features, settings = read_features(file, "a.png"), file["a.png"].attrs["d2feat"]
    parts_folder(out).mkdir()
    write_part(parts_folder(out), "a.png", features, settings, digest(folder / "a.png"))
    images = {name: folder / name for name in ("a.png", "b.jpg", "sub/c.webp")}
    assert still_to_do(out, images, settings) == ["sub/c.webp"]
    assert invoke("extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND).exit_code == 0
    assert names_in(out) == ["a.png", "b.jpg"]


def test_another_file_of_the_same_weights_is_another_model(folder: Path, tmp_path: Path) -> None:
    """As one in eight bits, or with upstream's coordinates, is."""
    other = onnx.load(bundled_folder() / "d2net-lite-int8.onnx")
    other.doc_string = "not the same"
    onnx.save(other, tmp_path / "other.onnx")
    command = ["extract", folder / "a.png", "-o", tmp_path / "f.h5", "--nfeatures", "10", "--provider", "cpu"]
    assert invoke(*command, "--model", "d2net-lite-int8").exit_code == 0
    done = invoke(*command, "--model", tmp_path / "other.onnx")
    assert done.exit_code == 1
    assert "made with" in done.output


def test_parts_of_another_run_of_the_same_output_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    assert invoke("extract", folder / "a.png", "-o", out, *COMMAND).exit_code == 0
    with open_hdf5(out) as file:
        features, settings = read_features(file, "a.png"), file["a.png"].attrs["d2feat"]
    # A run on other images was killed; one of its parts is half written.
    theirs = parts_folder(out)
    theirs.mkdir()
    for name in GOOD[2:]:
        write_part(theirs, name, features, settings, digest(folder / name))
    (theirs / "x.h5.1.partial").write_bytes(b"")
    os.utime(theirs / "x.h5.1.partial", (0, 0))
    assert invoke("extract", folder / "a.png", folder / "b.jpg", "-o", out, *COMMAND).exit_code == 0
    assert sorted(theirs.iterdir()) == sorted(part_path(theirs, name) for name in GOOD[2:])
    assert still_to_do(out, {name: folder / name for name in GOOD}, settings) == []
    with pytest.raises(d2feat.InputError, match="made with"):
        join_parts(out, GOOD, [], "other settings")  # of a run that began when nothing was there
    assert join_parts(out, GOOD, [], settings) == len(names_in(out)) == 5
    assert not theirs.exists()
    # The folder is made again for a run that is at work.
    write_part(theirs, "b.jpg", features, settings, "")
    assert part_path(theirs, "b.jpg").exists()


def test_runs_of_the_same_output_join_one_after_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, started = tmp_path / "features.h5", threading.Event()
    features = create(100).extract(picture(0))
    for name in GOOD:
        write_part(parts_folder(out), name, features, "", digest(folder / name))

    def slowly(parts: Any, *rest: Any) -> None:
        started.set()
        time.sleep(0.5)
        pack(parts, *rest)

    monkeypatch.setattr("d2feat.collection.parts.pack", slowly)
    first = threading.Thread(target=join_parts, args=(out, GOOD[:2], [], ""))
    first.start()
    started.wait()
    assert join_parts(out, GOOD[2:], [], "") == 5
    first.join()
    assert names_in(out) == GOOD


def test_runs_that_match_into_one_file_do_it_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    out, matches = tmp_path / "features.h5", tmp_path / "features-matches.h5"
    assert invoke("extract", folder, "-o", out, *COMMAND).exit_code == 1
    first = match_pairs([("a.png", "b.jpg"), ("b.jpg", "sub/a.png")], out, matches)
    assert next(first) == 1
    second = threading.Thread(target=list, args=(match_pairs([("sub/c.webp", "sub/d.png")], out, matches),))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    assert list(first) == [1]
    second.join(60)
    assert not second.is_alive()
    with open_hdf5(matches) as file:
        for pair in (("a.png", "b.jpg"), ("b.jpg", "sub/a.png"), ("sub/c.webp", "sub/d.png")):
            assert len(read_matches(file, *pair)[1])
    assert not parts_folder(matches).exists()


def test_a_thread_does_not_wait_for_itself(folder: Path, tmp_path: Path) -> None:
    out, matches = tmp_path / "features.h5", tmp_path / "features-matches.h5"
    assert invoke("extract", folder, "-o", out, *COMMAND).exit_code == 1
    pairs = [("a.png", "b.jpg"), ("b.jpg", "sub/a.png")]
    first = match_pairs(pairs, out, matches)
    next(first)
    with pytest.raises(d2feat.D2FeatError, match=r"at work on .*already"):
        next(match_pairs(pairs, out, matches))
    assert list(first) == [1]
    with pytest.raises(d2feat.InputError, match="holds no nowhere"):
        list(match_pairs([("a.png", "nowhere")], out, matches))
    assert not parts_folder(matches).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "place"):
        child = os.fork()
        if not child:
            time.sleep(20)
            os._exit(0)
    try:
        start = time.monotonic()
        with locked(tmp_path / "place"):
            assert time.monotonic() - start < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_locks_bear_that_the_folder_is_removed(tmp_path: Path) -> None:
    place, inside = tmp_path / "place", list[int]()

    def work(number: int) -> None:
        for _ in range(200):
            with locked(place, temporary=True):
                inside.append(number)
                assert inside == [number]
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not place.exists()
    place.write_text("a file")
    with pytest.raises(d2feat.InputError, match="place is no folder"), locked(place):
        pass


def test_a_folder_below_a_file_is_no_place_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(d2feat.InputError, match="file is no folder"), locked(tmp_path / "file" / ".lock"):
        pass


def test_a_link_to_nowhere_is_no_place_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    with pytest.raises(d2feat.InputError, match="disk is no folder"), locked(tmp_path / "disk" / ".lock"):
        pass


def test_images_in_folders_that_are_called_as_datasets_or_images_are(folder: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "features.h5", tmp_path / "more"
    for name in ("keypoints/a.png", "b.jpg/c.png", "b.jpg/sub/d.png"):
        (more / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "a.png", more / name)
    assert invoke("extract", folder / "b.jpg", folder / "sub/a.png", "-o", out, *COMMAND).exit_code == 0
    command = ["extract", more, "-o", out, *COMMAND]
    assert "3 of 3 images extracted" in invoke(*command).output
    assert "3 were done" in invoke(*command).output
    names = ["b.jpg", "b.jpg/c.png", "b.jpg/sub/d.png", "keypoints/a.png", "sub/a.png"]
    assert names_in(out) == names
    shutil.copy(folder / "sub/d.png", folder / "b.jpg")  # changed
    result = invoke("extract", folder / "b.jpg", folder / "sub/a.png", "-o", out, *COMMAND, "--match", "all")
    assert result.exit_code == 0, result.output
    assert "1 of 2 images extracted" in result.output
    assert names_in(out) == names
    with open_hdf5(out) as file:
        assert all(file[name].attrs[DIGEST] for name in names)
        assert file["b.jpg"].attrs[DIGEST] == digest(folder / "b.jpg")


def test_what_replaces_a_folder_and_all_in_it_leaves_what_is_in_that(tmp_path: Path) -> None:
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    for path, names in (
        (old, ["b.jpg", "b.jpg/c.png", "b.jpg/c.png/d.png"]),
        (new, ["b.jpg", "b.jpg/c.png"]),
    ):
        with replacing(path) as file:
            for name in names:
                file[f"{name}/keypoints"] = np.full((1, 2), float(path == new))
    pack([old, new], old, ["b.jpg", "b.jpg/c.png"])
    with open_hdf5(old) as file:
        held = {name: file[name]["keypoints"][0, 0] for name in image_names(file)}
    assert held == {"b.jpg": 1, "b.jpg/c.png": 1, "b.jpg/c.png/d.png": 0}


def test_files_that_nobody_may_read_or_that_are_gone_are_reported(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    result = invoke("extract", folder, "-o", out, *COMMAND)
    assert result.exit_code == 1
    assert "skipped gone.png" in result.output
    assert "5 of 7 images extracted" in result.output


def test_an_output_that_is_a_link_stays_one(folder: Path, tmp_path: Path) -> None:
    out, disk = tmp_path / "features.h5", tmp_path / "disk"
    disk.mkdir()
    out.symlink_to("disk/real.h5")
    (disk / "real.h5.1.partial").write_bytes(b"of a run that was killed while it joined")
    os.utime(disk / "real.h5.1.partial", (0, 0))
    (disk / "real.h5.2.partial").write_bytes(b"of one that may be at work elsewhere")
    for image in ("a.png", "b.jpg"):
        assert invoke("extract", folder / image, "-o", out, *COMMAND).exit_code == 0
    assert out.is_symlink()
    assert sorted(disk.iterdir()) == [disk / "real.h5", disk / "real.h5.2.partial"]
    assert names_in(disk / "real.h5") == ["a.png", "b.jpg"]


def test_nothing_is_matched_where_there_are_no_features(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    result = invoke("extract", folder / "broken.jpg", "-o", out, *COMMAND, "--match", "all")
    assert result.exit_code == 1
    assert "error" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    (tmp_path / "features-matches.h5").write_bytes(b"of features that are gone")
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("broken.jpg other.jpg\n")
    (folder / "other.jpg").write_bytes(b"no picture")
    command = ["extract", folder / "broken.jpg", folder / "other.jpg", "-o", out, *COMMAND]
    for more in ([], ["--match", pairs]):
        result = invoke(*command, *more)
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
        assert ("not matched broken.jpg other.jpg" in result.output) == bool(more)


def test_a_file_without_features_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "global.h5"
    with replacing(out) as file:
        file["a.png/global_descriptor"] = np.ones(8, np.float32)
    before = out.read_bytes()
    command = "extract", folder / "a.png", "-o", out, *COMMAND
    assert_one_line_error(invoke(*command), "something else than features", "another -o")
    assert out.read_bytes() == before
    with replacing(out) as file:  # as hloc writes it
        write_features(file, "a.png", create(10).extract(picture(0)))
    assert_one_line_error(invoke(*command), "that d2feat extract did not make", "another -o")


def picture(seed: int) -> np.ndarray:
    """A small image of its own."""
    x = 20 * seed
    return photograph("chelsea", (400, 300))[40 : 40 + 70, x : x + 90]


def assert_holds_features_of(out: Path, images: dict[str, Path]) -> None:
    """The file holds the features of these images as they are, and no others."""
    assert names_in(out) == sorted(images)
    d2 = create(100, scales=d2feat.MULTISCALE)
    with open_hdf5(out) as file:
        for name, path in images.items():
            expected = d2.extract(cv2.imread(str(path)))
            assert len(expected) > 10
            assert_same_features(read_features(file, name), expected, position=1e-3, descriptor=1e-3)


def test_other_files_of_the_same_names_are_extracted(folder: Path, tmp_path: Path) -> None:
    out, other, copy = tmp_path / "features.h5", tmp_path / "other", tmp_path / "copy"
    (folder / "broken.jpg").unlink()
    assert invoke("extract", folder, "-o", out, *COMMAND).exit_code == 0
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # as a fresh checkout: new times
    assert "0 of 5 images extracted, 5 were done" in invoke("extract", copy, "-o", out, *COMMAND).output
    # Another folder, of which one image is the same.
    shutil.copytree(folder, other)
    for i, name in enumerate(GOOD[1:]):
        cv2.imwrite(str(other / name), picture(i))
    assert "4 of 5 images extracted, 1 were done" in invoke("extract", other, "-o", out, *COMMAND).output
    assert_holds_features_of(out, {name: other / name for name in GOOD})
    # An image that changed, though neither its size nor its time did.
    path, before = tmp_path / "x.bmp", tmp_path / "before.h5"
    cv2.imwrite(str(path), picture(0))
    status = path.stat()
    assert "1 of 1" in invoke("extract", path, "-o", before, *COMMAND).output
    cv2.imwrite(str(path), picture(5))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert "1 of 1" in invoke("extract", path, "-o", before, *COMMAND).output
    assert_holds_features_of(before, {"x.bmp": path})


def test_parts_of_other_files_are_not_joined(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "features.h5", tmp_path / "other"
    other.mkdir()
    for i, name in enumerate(["a.png", "b.jpg"]):
        cv2.imwrite(str(other / name), picture(i))
    ours, theirs = ({name: at / name for name in ("a.png", "b.jpg")} for at in (folder, other))
    assert invoke("extract", other, "-o", out, *COMMAND).exit_code == 0
    # A run on `folder` was killed when it had done one image.
    with open_hdf5(out) as file:
        settings = file["a.png"].attrs["d2feat"]
    parts_folder(out).mkdir()
    write_part(
        parts_folder(out),
        "a.png",
        create(100, scales=d2feat.MULTISCALE).extract(cv2.imread(str(folder / "a.png"))),
        settings,
        digest(folder / "a.png"),
    )
    assert still_to_do(out, ours, settings) == ["b.jpg"]
    assert still_to_do(out, theirs, settings) == []
    assert invoke("extract", other, "-o", out, *COMMAND).exit_code == 0
    assert_holds_features_of(out, theirs)


def test_what_is_no_image_any_more_has_no_features(folder: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "features.h5", tmp_path / "photos/list.txt"
    listed.write_text("a.png\nb.jpg\nsub/c.webp\n")
    assert invoke("extract", listed, "-o", out, *COMMAND).exit_code == 0
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.jpg").rename(folder / "away.jpg")
    result = invoke("extract", listed, "-o", out, *COMMAND)
    assert result.exit_code == 1
    assert "skipped a.png" in result.output
    assert "skipped b.jpg" in result.output
    # Nothing says that the missing image is another.
    assert names_in(out) == ["b.jpg", "sub/c.webp"]
    (folder / "away.jpg").rename(folder / "b.jpg")
    result = invoke("extract", folder / "b.jpg", folder / "sub/c.webp", "-o", out, *COMMAND)
    assert "0 of 2 images extracted, 2 were done" in result.output


def test_features_without_a_digest_are_read_and_made_anew(folder: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "features.h5", [folder / "a.png", folder / "b.jpg"]
    assert invoke("extract", *images, "-o", out, *COMMAND).exit_code == 0
    with open_hdf5(out, "r+") as file:
        for name in image_names(file):
            del file[name].attrs[DIGEST]
    result = invoke("extract", images[0], "-o", out, *COMMAND, "--match", "all")
    assert "1 of 1 images extracted" in result.output
    assert "1 pairs" in result.output
    assert_holds_features_of(out, {path.name: path for path in images})
    assert "0 of 1 images extracted" in invoke("extract", images[0], "-o", out, *COMMAND).output


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
    # Pairs of earlier lists are kept.
    pairs.write_text("a.png sub/d.png\n")
    assert "1 pairs" in invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs).output
    with open_hdf5(tmp_path / "features-matches.h5") as matches:
        assert len(read_matches(matches, "a.png", "sub/d.png")[0])
        np.testing.assert_array_equal(read_matches(matches, "a.png", "sub/a.png")[0], found)
    # The order of a pair does not count, and what others put into the file is no pair.
    with open_hdf5(tmp_path / "features-matches.h5", "a") as matches:
        matches["note"] = 1
    pairs.write_text("sub/d.png a.png\n")
    assert invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs).exit_code == 0
    with open_hdf5(tmp_path / "features-matches.h5") as matches:
        assert "sub-d.png/a.png" in matches
        assert "a.png/sub-d.png" not in matches
        assert "a.png/sub-a.png" in matches
    # But not those of images that have changed.
    shutil.copy(folder / "sub/c.webp", folder / "sub/a.png")
    assert invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs).exit_code == 0
    with open_hdf5(tmp_path / "features-matches.h5") as matches:
        assert len(read_matches(matches, "sub/d.png", "sub/c.webp")[0]) > 10
        with pytest.raises(d2feat.InputError):
            read_matches(matches, "a.png", "sub/a.png")
    assert "10 pairs" in invoke("extract", folder, "-o", out, *COMMAND, "--match", "all").output
    pairs.write_text("a.png nobody.png\n")
    result = invoke("extract", folder, "-o", out, *COMMAND, "--match", pairs)
    assert_one_line_error(result, "line 1", "nobody.png")


def test_pairs_of_images_that_cannot_be_read_are_left_out(folder: Path, tmp_path: Path) -> None:
    out, pairs = tmp_path / "features.h5", tmp_path / "pairs.txt"
    images = [folder / name for name in ("a.png", "b.jpg", "broken.jpg")]
    pairs.write_text("a.png nobody.png\n")
    assert_one_line_error(invoke("extract", *images, "-o", out, *COMMAND, "--match", pairs), "nobody.png")
    assert not out.exists()  # it is said before the work
    pairs.write_text("a.png b.jpg\na.png broken.jpg\n")
    result = invoke("extract", *images, "-o", out, *COMMAND, "--match", pairs)
    assert result.exit_code == 1
    assert "not matched a.png broken.jpg" in result.output
    assert "1 pairs" in result.output
    with open_hdf5(tmp_path / "features-matches.h5") as matches:
        assert len(read_matches(matches, "a.png", "b.jpg")[1])


def test_matches_of_other_features_are_not_taken(folder: Path, tmp_path: Path) -> None:
    out, matches = tmp_path / "features.h5", tmp_path / "features-matches.h5"
    command = ["extract", folder / "sub", "-o", out, *COMMAND]
    assert invoke(*command).exit_code == 0
    pairs = [("a.png", "c.webp"), ("a.png", "d.png"), ("c.webp", "d.png")]
    assert next(match_pairs(pairs, out, matches)) == 2  # and then it was killed
    assert len(list(parts_folder(matches).glob("*.h5"))) == 1
    out.unlink()
    assert "3 pairs" in invoke(*command[:-1], "50", "--match", "all").output
    with open_hdf5(out) as file, open_hdf5(matches) as found:
        features = {name: read_features(file, name) for name in image_names(file)}
        for one, two in pairs:
            expected, _ = match_features(features[one], features[two])
            assert len(expected) > 5
            np.testing.assert_array_equal(read_matches(found, one, two)[0], expected)
    # Features that change without --match leave the matches behind, which is said.
    assert "was made before" not in invoke(*command[:-1], "50").output
    cv2.imwrite(str(folder / "sub/a.png"), picture(1))
    assert "was made before" in invoke(*command[:-1], "50").output


seen: list[int] = []


def counted_rule(one: d2feat.Features, two: d2feat.Features, **rule: Any) -> Any:
    """`match_features`, and a note of it."""
    seen.append(len(one))
    return match_features(one, two, **rule)


def test_matches_by_another_rule_are_not_taken(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    out, pairs = tmp_path / "m.h5", [("a", "b"), ("b", "c")]
    with replacing(tmp_path / "f.h5") as file:
        for name in "abc":
            descriptors = random.normal(size=(30, 8)).astype(np.float32)
            descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
            ones = np.ones(30, np.float32)
            points = random.uniform(0, 99, (30, 2)).astype(np.float32)
            write_features(file, name, d2feat.Features(points, ones, ones, descriptors, (100, 100)))

    def matched(rule: Any) -> int:
        """How many pairs a whole run calls the rule for."""
        seen.clear()
        for _ in match_pairs(pairs, tmp_path / "f.h5", out, rule):
            pass
        return len(seen)

    def killed(rule: Any) -> None:
        """Stop a run after the first pair."""
        next(match_pairs(pairs, tmp_path / "f.h5", out, rule))

    def count() -> int:
        with open_hdf5(out) as file:
            return len(read_matches(file, "a", "b")[0])

    killed(partial(counted_rule, ratio=0.9))
    assert matched(partial(counted_rule, ratio=0.9)) == 1  # the other pair was done
    assert matched(partial(counted_rule, ratio=0.9)) == 0
    pairs.append(("a", "c"))
    assert matched(partial(counted_rule, ratio=0.9)) == 1
    with open_hdf5(tmp_path / "f.h5", "r+") as file:
        write_features(file, "c", read_features(file, "c")[:20])
    assert matched(partial(counted_rule, ratio=0.9)) == 2
    pairs.pop()
    strict = count()
    killed(partial(counted_rule, ratio=0.9))
    assert matched(counted_rule) == 2
    assert count() > strict

    def closure(ratio: float | None) -> Any:
        return lambda one, two: counted_rule(one, two, ratio=ratio)

    killed(closure(0.9))
    assert matched(closure(None)) == 2
    assert count() > strict


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
    cv2.imwrite(str(folder / "sub/a.png"), picture(1))
    again = subprocess.run(
        [*map(str, process.args), "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        check=False,
    )
    assert "1 of 35 images extracted, 34 were done" in again.stdout, again.stderr


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


def test_lists_may_write_names_in_other_ways(folder: Path, tmp_path: Path) -> None:
    """As find writes them, and with a byte order mark; HDF5 drops the dot."""
    listed, out = folder / "list.txt", tmp_path / "features.h5"
    listed.write_text("./a.png\nsub//a.png\na.png\n", encoding="utf-8-sig")
    for done in ("2 of 2 images extracted, 0 were done", "0 of 2 images extracted, 2 were done"):
        result = invoke("extract", str(listed), "-o", str(out), "--match", "all", *COMMAND)
        assert result.exit_code == 0, result.output
        assert done in result.output
    assert names_in(out) == ["a.png", "sub/a.png"]
    listed.write_bytes("caf\u00e9.jpg".encode("latin-1"))
    assert_one_line_error(invoke("extract", str(listed), "-o", str(out), *COMMAND), "not text in UTF-8")


def test_names_that_the_file_cannot_hold_or_tell_apart(folder: Path, tmp_path: Path) -> None:
    out, photos = tmp_path / "features.h5", tmp_path / "other"
    (photos / "a").mkdir(parents=True)
    for name in ("a/b.png", "a-b.png", "[red]c.png"):
        shutil.copy(folder / "a.png", photos / name)
    try:
        shutil.copy(folder / "a.png", os.fsencode(photos) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (photos / "[red]c.png").write_bytes(b"")
    result = invoke("extract", str(photos), "-o", str(out), *COMMAND)
    assert result.exit_code == 1
    assert "skipped 'caf\\udce9.png': HDF5 and Parquet take UTF-8 names only" in result.output
    assert "skipped [red]c.png: " in result.output
    assert names_in(out) == ["a-b.png", "a/b.png"]
    result = invoke("extract", str(photos), "-o", str(out), "--match", "all", *COMMAND)
    assert_one_line_error(result, "one name for the images a-b.png and a/b.png")


def test_pairs_of_names_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    names = ["a b.png", "b.png", "a", "c.png"]
    path.write_text("a b.png c.png\n./a\t b.png\n")
    assert read_pairs(path, names) == [("a b.png", "c.png"), ("a", "b.png")]
    path.write_text("a b.png d.png\n")
    with pytest.raises(d2feat.InputError, match=r"line 1: 'a b\.png d\.png' is not the names of two images"):
        read_pairs(path, names)


def test_where_nothing_can_be_written_the_error_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    missing = tmp_path / "missing.txt"
    for arguments, words in (
        (["-o", str(tmp_path / "f.h5"), "--match", str(missing)], "there is no file"),
        (["-o", "/proc/f.h5"], "/proc/f.h5"),
    ):
        assert_one_line_error(invoke("extract", str(folder / "a.png"), *arguments, *COMMAND), words)
    assert not (tmp_path / "f.h5").exists()
