"""What the detector finds and how it says so: arrays, keypoints, limits, parameters, threads, processes."""

import copy
import dataclasses
import faulthandler
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.keypoints import SIZE
from tests.conftest import assert_same_features, assert_same_keypoints, create, photograph

# ---- Features


def test_features_are_arrays_of_the_documented_kinds(features: d2feat.Features) -> None:
    count = len(features)
    assert features.image_size == (112, 84)
    for name, shape in {
        "keypoints": (count, 2),
        "scores": (count,),
        "scales": (count,),
        "descriptors": (count, 512),
    }.items():
        array = getattr(features, name)
        assert (array.shape, array.dtype) == (shape, np.float32), name
    assert features.descriptors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert (features.keypoints >= 0).all()
    assert (features.keypoints <= (111, 83)).all()


def test_best_come_first(features: d2feat.Features) -> None:
    assert (np.diff(features.scores) <= 0).all()
    assert features.scores[0] > features.scores[-1] > 0


def test_features_are_frozen(features: d2feat.Features) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        features.scores = features.scales


def test_features_pickle(features: d2feat.Features) -> None:
    twin = pickle.loads(pickle.dumps(features))
    assert type(twin) is d2feat.Features
    assert_same_features(twin, features)


@pytest.mark.parametrize("kind", ["slice", "mask", "indices", "nothing", "one"])
def test_features_are_selected_together(kind: str, features: d2feat.Features) -> None:
    rows = {
        "slice": np.arange(3, 20, 2),
        "mask": np.flatnonzero(features.keypoints[:, 0] < 50),
        "indices": np.array([7, 2, 2]),
        "nothing": np.arange(0),
        "one": np.array([5]),
    }[kind]
    index = {
        "slice": slice(3, 20, 2),
        "mask": features.keypoints[:, 0] < 50,
        "indices": [7, 2, 2],
        "nothing": slice(0),
        "one": 5,
    }[kind]
    some = features[index]
    assert len(some) == len(rows)
    for name in ("keypoints", "scores", "scales", "descriptors"):
        np.testing.assert_array_equal(getattr(some, name), getattr(features, name)[rows])
    assert some.descriptors.flags.c_contiguous
    assert some.image_size == features.image_size


def test_to_opencv_is_what_detect_and_compute_returns(
    features: d2feat.Features, detector: d2feat.D2Feature, image: np.ndarray
) -> None:
    keypoints, descriptors = detector.detectAndCompute(image, None)
    ours, same = features.to_opencv()
    assert_same_keypoints(ours, keypoints)
    np.testing.assert_array_equal(same, descriptors)
    assert_same_keypoints(features.to_keypoints(), keypoints)
    assert features[:0].to_opencv() == ((), None)
    assert features[:0].to_keypoints() == ()


# ---- the fields of a KeyPoint


def test_keypoint_fields_at_one_scale(features: d2feat.Features) -> None:
    keypoints = features.to_keypoints()
    np.testing.assert_array_equal([p.pt for p in keypoints], features.keypoints)
    np.testing.assert_array_equal([p.response for p in keypoints], features.scores)
    assert {p.size for p in keypoints} == {32.0}
    assert {(p.octave, p.angle, p.class_id) for p in keypoints} == {(0, -1.0, -1)}


def test_keypoint_size_and_octave_follow_the_scale(multiscale: d2feat.D2Feature, image: np.ndarray) -> None:
    features = multiscale.extract(image)
    octaves = {1 / 0.25: 2, 1 / 0.35: 2, 1 / 0.5: 1, 1 / 0.71: 0, 1.0: 0}
    np.testing.assert_allclose(np.unique(features.scales), sorted(octaves), rtol=1e-6)
    for keypoint, scale in zip(features.to_keypoints(), features.scales.tolist(), strict=True):
        assert keypoint.size == 32 * scale
        assert keypoint.octave == octaves[min(octaves, key=lambda one: abs(one - scale))]
    assert (np.diff(features.scores) <= 0).all()


def test_keypoint_size_is_in_pixels_of_the_image_given(image: np.ndarray) -> None:
    larger = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    keypoints = create(maxEdge=112).detect(larger)
    assert {(p.size, p.octave) for p in keypoints} == {(64.0, 1)}


# ---- how many


@pytest.mark.parametrize("count", [1, 10, 40])
def test_nfeatures_keeps_the_best(count: int, features: d2feat.Features, image: np.ndarray) -> None:
    assert_same_features(create(count).extract(image), features[:count], 1e-5, 1e-6)


def test_more_nfeatures_than_there_are(features: d2feat.Features, image: np.ndarray) -> None:
    assert_same_features(create(len(features) + 100).extract(image), features, 1e-5, 1e-6)


def test_nfeatures_keeps_the_best_of_all_levels(multiscale: d2feat.D2Feature, image: np.ndarray) -> None:
    everything = multiscale.extract(image)
    some = create(30, scales=d2feat.MULTISCALE).extract(image)
    assert_same_features(some, everything[:30], 1e-5, 1e-6)
    assert len(set(some.scales.tolist())) > 1


def test_nfeatures_counts_after_mask_and_threshold(features: d2feat.Features, image: np.ndarray) -> None:
    mask = np.zeros(image.shape[:2], bool)
    mask[:, 60:] = True
    column, row = np.floor(features.keypoints + 0.5).astype(int).T
    on_mask = features[mask[row, column]]
    assert_same_features(create().extract(image, mask), on_mask)
    some = create(7).extract(image, mask)
    assert_same_features(some, on_mask[:7])
    assert some.descriptors.base is None, "or the descriptors of all would stay in memory"
    threshold = float(on_mask.scores[5])
    both = create(100, scoreThreshold=threshold).extract(image, mask)
    assert_same_features(both, on_mask[on_mask.scores > threshold])
    assert 0 < len(both) <= 5


def test_score_threshold_is_exclusive(features: d2feat.Features, image: np.ndarray) -> None:
    threshold = float(features.scores[12])
    kept = create(scoreThreshold=threshold).extract(image)
    assert_same_features(kept, features[features.scores > threshold])
    assert len(kept) <= 12
    assert len(create(scoreThreshold=1e9).extract(image)) == 0


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_image_has_no_features(detector: d2feat.D2Feature, value: int, channels: int) -> None:
    flat = np.full((60, 80, channels), value, np.uint8)
    assert detector.detectAndCompute(flat, None) == ((), None)
    assert detector.detect(flat) == ()


@pytest.mark.parametrize("value", [0, 128, 200])
@pytest.mark.parametrize("shape", [(60, 80), (40, 56), (20, 20)])
def test_flat_image_has_no_features_at_several_scales(
    multiscale: d2feat.D2Feature, shape: tuple[int, int], value: int
) -> None:
    """Nor where levels are so small that their last rows are repeated for the network to have some cells."""
    assert multiscale.detectAndCompute(np.full(shape, value, np.uint8), None) == ((), None)


@pytest.mark.parametrize("shape", [(10, 100), (15, 60), (60, 14), (40, 56)])
def test_keypoints_keep_their_distance_from_the_border_of_small_levels(shape: tuple[int, int]) -> None:
    """Six pixels, less a step of one; also where the network sees more rows than there are."""
    found = create(model="d2net-lite").extract(photograph("astronaut", shape[::-1]))
    assert np.all(found.keypoints >= 5)
    assert np.all(found.keypoints <= np.array(shape[::-1]) - 6)


# ---- large images


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({"maxEdge": 112}, (112, 74)),
        ({"maxEdge": 0, "maxSumEdges": 200}, (120, 80)),
        ({"maxEdge": 130, "maxSumEdges": 150}, (90, 60)),
        ({"maxEdge": 90, "maxSumEdges": 10_000}, (90, 60)),
    ],
    ids=str,
)
def test_large_image_is_made_smaller_and_keypoints_are_mapped_back(
    limits: dict[str, int], size: tuple[int, int], detector: d2feat.D2Feature
) -> None:
    large = photograph("coffee", (300, 200))
    found = create(**limits).extract(large)
    by_hand = detector.extract(cv2.resize(large, size, interpolation=cv2.INTER_AREA))
    assert found.image_size == (300, 200)
    assert len(found) == len(by_hand) > 10
    factor = np.array([300, 200]) / size
    np.testing.assert_allclose(found.keypoints, (by_hand.keypoints + 0.5) * factor - 0.5, atol=1e-3)
    np.testing.assert_allclose(found.scales, by_hand.scales * np.sqrt(factor.prod()), rtol=1e-5)
    np.testing.assert_allclose(found.scores, by_hand.scores, rtol=1e-5)
    np.testing.assert_allclose(found.descriptors, by_hand.descriptors, atol=1e-5)


@pytest.mark.parametrize("limits", [(112, 196), (0, 0), (-1, -1), (5000, 5000)], ids=str)
def test_image_within_the_limits_is_left_as_it_is(
    limits: tuple[int, int], features: d2feat.Features, image: np.ndarray
) -> None:
    assert_same_features(create(maxEdge=limits[0], maxSumEdges=limits[1]).extract(image), features)


def test_mask_of_a_large_image_is_of_its_size(image: np.ndarray) -> None:
    large = cv2.resize(image, (224, 168), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((168, 224), np.uint8)
    mask[:, 150:] = 1
    small = create(maxEdge=112)
    kept = small.extract(large, mask)
    everything = small.extract(large)
    assert_same_features(kept, everything[np.floor(everything.keypoints[:, 0] + 0.5) >= 150])
    assert 0 < len(kept) < len(everything)


# ---- compute


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"scales": (0.75,)},
        {"scales": d2feat.MULTISCALE},
        {"maxEdge": 80},
        {"scales": (0.5, 1.0), "maxEdge": 80},
    ],
    ids=str,
)
def test_compute_of_what_was_detected_is_detect_and_compute(
    parameters: dict[str, Any], image: np.ndarray
) -> None:
    d2 = create(**parameters)
    keypoints, descriptors = d2.detectAndCompute(image)
    kept, computed = d2.compute(image, keypoints)
    assert len(keypoints) > 20
    assert_same_keypoints(kept, keypoints)
    np.testing.assert_allclose(computed, descriptors, atol=2e-4)


def test_compute_depends_on_the_place_and_on_the_scale(
    multiscale: d2feat.D2Feature, image: np.ndarray
) -> None:
    places = [(50, 40, 2.0), (50, 40, 1.0), (58, 40, 2.0), (50, 40, 2.2), (50, 40, 9.0), (50, 40, 4.0)]
    given = [cv2.KeyPoint(float(x), float(y), SIZE * scale) for x, y, scale in places]
    _, descriptors = multiscale.compute(image, given)
    base, finer, aside, nearly, coarsest, coarse = descriptors
    np.testing.assert_array_equal(nearly, base)  # the level nearest to the size describes it
    np.testing.assert_array_equal(coarsest, coarse)
    for other in (finer, aside, coarse):
        assert np.linalg.norm(base - other) > 0.05


def test_describe_is_compute_on_arrays(detector: d2feat.D2Feature, image: np.ndarray) -> None:
    points = np.array([[20.5, 30.25, 1], [70, 60, 1], [40, 50, 1]])
    given = [cv2.KeyPoint(x, y, SIZE * scale) for x, y, scale in points.tolist()]
    described = detector.describe(image, points)
    assert (described.shape, described.dtype) == ((3, 512), np.float32)
    np.testing.assert_array_equal(described, detector.compute(image, given)[1])
    with pytest.raises(d2feat.InputError, match=r"must be M x 3, \(x, y, scale\), not of shape \(3, 2\)"):
        detector.describe(image, points[:, :2])
    assert len(detector.describe(image, [])) == 0


def test_other_detectors_keypoints_can_be_described(detector: d2feat.D2Feature, grey: np.ndarray) -> None:
    found = cv2.SIFT_create(nfeatures=40).detect(grey)
    kept, descriptors = detector.compute(grey, found)
    assert_same_keypoints(kept, found)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)


# ---- the same picture in other clothes


def test_grey_is_bgr_of_equal_channels(detector: d2feat.D2Feature, grey: np.ndarray) -> None:
    plain = detector.extract(grey)
    assert_same_features(detector.extract(grey[..., None]), plain)
    assert_same_features(detector.extract(np.dstack([grey] * 3)), plain)
    assert_same_features(detector.extract(np.dstack([grey, 255 - grey])), plain)
    assert_same_features(detector.extract(np.dstack([grey] * 3 + [255 - grey])), plain)


def test_colour_is_used(detector: d2feat.D2Feature, image: np.ndarray, features: d2feat.Features) -> None:
    other = detector.extract(image[..., ::-1])
    assert len(other) != len(features) or np.abs(other.descriptors - features.descriptors).max() > 0.01


def test_views_are_read_as_what_they_show(
    detector: d2feat.D2Feature, image: np.ndarray, features: d2feat.Features
) -> None:
    assert not image.flags.writeable
    padded = np.zeros((90, 130, 5), np.uint8)
    padded[3:87, 5:117, 1:4] = image
    assert_same_features(detector.extract(padded[3:87, 5:117, 1:4]), features)
    assert_same_features(detector.extract(np.asfortranarray(image)), features)
    assert_same_features(detector.extract(image[:, ::-1].copy()[:, ::-1]), features)
    assert_same_features(detector.extract(np.repeat(np.repeat(image, 2, 0), 3, 1)[::2, ::3]), features)


def test_image_is_not_written_to(detector: d2feat.D2Feature, image: np.ndarray) -> None:
    mine = image.copy()
    mask = np.ones(image.shape[:2], np.uint8)
    detector.detectAndCompute(mine, mask)
    detector.compute(mine, [cv2.KeyPoint(30, 30, 8)])
    np.testing.assert_array_equal(mine, image)
    assert (mask == 1).all()


def test_umat_in_umat_out(detector: d2feat.D2Feature, image: np.ndarray, features: d2feat.Features) -> None:
    keypoints, descriptors = detector.detectAndCompute(cv2.UMat(image), None)
    assert isinstance(descriptors, cv2.UMat)
    assert_same_keypoints(keypoints, features.to_keypoints())
    np.testing.assert_array_equal(descriptors.get(), features.descriptors)
    assert len(cv2.BFMatcher().match(descriptors, descriptors)) == len(features)


# ---- parameters


PARAMETERS = {
    "NFeatures": (0, 123),
    "MaxFeatures": (0, 123),
    "ScoreThreshold": (0.0, 0.125),
    "Scales": ((1.0,), (0.5, 1.5)),
    "MaxEdge": (1600, 800),
    "MaxSumEdges": (2800, -1),
}


@pytest.mark.parametrize(("name", "values"), PARAMETERS.items(), ids=PARAMETERS.keys())
def test_every_parameter_has_a_default_a_setter_and_a_getter(name: str, values: tuple[Any, Any]) -> None:
    d2 = create()
    default, other = values
    assert getattr(d2, f"get{name}")() == default
    assert getattr(d2, f"set{name}")(other) is None
    assert getattr(d2, f"get{name}")() == other


def test_setters_act_as_the_constructor_does(image: np.ndarray) -> None:
    d2 = create()
    d2.setNFeatures(25)
    d2.setScoreThreshold(1e-4)
    d2.setScales((0.5, 1.0))
    d2.setMaxEdge(90)
    assert_same_features(
        d2.extract(image), create(25, scoreThreshold=1e-4, scales=(1.0, 0.5), maxEdge=90).extract(image)
    )


def test_scales_are_a_set(image: np.ndarray) -> None:
    assert create(scales=(1.0, 0.5, 1.0)).getScales() == (0.5, 1.0)
    assert create(scales=0.5).getScales() == (0.5,)
    np.testing.assert_array_equal(create(scales=0.5).extract(image).scales, np.float32(2))


@pytest.mark.parametrize("arguments", [(500, 3), (500, 3, 0.04, 10, 1.6), (500, 1.2, 8)])
def test_only_the_number_of_features_is_given_by_position(arguments: tuple[Any, ...]) -> None:
    """What follows it in SIFT's and ORB's constructors would be a threshold and a scale here."""
    with pytest.raises(
        d2feat.InputError, match=r"too many positional .*nfeatures, and by name .*SIFT_create"
    ):
        d2feat.create(*arguments)


def test_none_is_no_limit() -> None:
    assert create(None).getNFeatures() == 0


def test_repr_says_what_runs_where() -> None:
    for part in ("nfeatures=17", "scales=(1.0,)", "model='", "on CPU, 1 threads"):
        assert part in repr(create(17))


# ---- persistence


def customised() -> d2feat.D2Feature:
    return create(17, scoreThreshold=0.001, scales=(0.5, 1.25), maxEdge=700, maxSumEdges=1300)


@pytest.mark.parametrize("suffix", [".yml", ".xml", ".json", ".yml.gz"])
@pytest.mark.parametrize("method", ["write", "save"])
def test_file_round_trip(method: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"parameters{suffix}"
    getattr(customised(), method)(path)
    fresh = create()
    fresh.read(str(path))
    assert repr(fresh) == repr(customised())


def test_storage_round_trip_beside_other_things(tmp_path: Path) -> None:
    storage = cv2.FileStorage(str(tmp_path / "all.yml"), cv2.FILE_STORAGE_WRITE)
    storage.write("before", 1)
    customised().write(storage, "first")
    create(5).write(storage, "second")
    storage.write("after", 2)
    storage.release()
    storage = cv2.FileStorage(str(tmp_path / "all.yml"), cv2.FILE_STORAGE_READ)
    first, second = create(), create()
    first.read(storage.getNode("first"))
    second.read(fn=storage.getNode("second"))
    assert storage.getNode("before").real() == 1
    assert storage.getNode("after").real() == 2
    storage.release()
    assert repr(first) == repr(customised())
    assert repr(second) == repr(create(5))


def test_what_was_read_is_used(image: np.ndarray, features: d2feat.Features, tmp_path: Path) -> None:
    create(9).save(tmp_path / "nine.yml")
    fresh = create()
    fresh.read(tmp_path / "nine.yml")
    assert_same_features(fresh.extract(image), features[:9], 1e-5, 1e-6)


SPOILT: dict[str, tuple[str, str]] = {
    "name": ("Feature2D.D2Feature", "Feature2D.SIFT"),
    "model": ("model: d2net", "model: nowhere"),
    "model number": ("model: d2net", "model: 5"),
    "nfeatures missing": ("nfeatures:", "features:"),
    "nfeatures str": ("nfeatures: 17", "nfeatures: many"),
    "nfeatures real": ("nfeatures: 17", "nfeatures: 1.5"),
    "nfeatures infinite": ("nfeatures: 17", "nfeatures: .Inf"),
    "nfeatures list": ("nfeatures: 17", "nfeatures: [ 1, 2 ]"),
    "threshold str": ("scoreThreshold:", "scoreThreshold: high\nold:"),
    "threshold NaN": ("scoreThreshold:", "scoreThreshold: .Nan\nold:"),
    "scales missing": ("scales:", "levels:"),
    "scales number": ("scales:", "scales: 1.0\nold:"),
    "scales negative": ("data: [ ", "data: [ -"),
    "maxEdge missing": ("maxEdge:", "edge:"),
    "maxSumEdges str": ("maxSumEdges: 1300", "maxSumEdges: wide"),
}


@pytest.mark.parametrize(("old", "new"), SPOILT.values(), ids=SPOILT.keys())
def test_failed_read_changes_nothing(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "spoilt.yml"
    customised().write(path)
    text = path.read_text().replace('"', "")
    path.write_text(text)
    mended = create()
    mended.read(path)  # without quotes it is still good
    assert repr(mended) == repr(customised())
    assert old in text
    path.write_text(text.replace(old, new))
    d2 = create(3)
    with pytest.raises(cv2.error) as caught:
        d2.read(path)
    assert isinstance(caught.value, d2feat.D2FeatError)
    assert repr(d2) == repr(create(3))


def test_a_matrix_without_numbers_is_refused(tmp_path: Path) -> None:
    """OpenCV reads it as none at all, if it is XML."""
    path = tmp_path / "spoilt.xml"
    customised().write(path)
    text = path.read_text()
    path.write_text(re.sub("<data>.*</data>", "<data>\n</data>", text, flags=re.DOTALL))
    assert path.read_text() != text
    d2 = create(3)
    with pytest.raises(d2feat.InputError, match=r"scales|parameters"):
        d2.read(path)
    assert repr(d2) == repr(create(3))


@pytest.mark.parametrize("content", ["", "hello", "%YAML:1.0\n---\nother: 1\n", "{]"])
def test_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yml"
    path.write_text(content)
    d2 = create(3)
    with pytest.raises(d2feat.InputError):
        d2.read(path)
    assert d2.getNFeatures() == 3


# ---- threads and processes


def test_eight_threads_on_one_object_give_the_results_of_one(detector: d2feat.D2Feature) -> None:
    names = ["astronaut", "chelsea", "coffee", "camera"] * 2
    images = [photograph(name, (96 - 2 * i, 72 + i)) for i, name in enumerate(names)]
    alone = [detector.extract(one) for one in images]
    found: list[d2feat.Features | None] = [None] * 8
    start = threading.Barrier(8)

    def work(i: int) -> None:
        start.wait()
        for _ in range(2):
            found[i] = detector.extract(images[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(found, alone, strict=True):
        assert one is not None
        assert_same_features(one, other)


def _extract_in_child(answer: Any, where: Path, d2: d2feat.D2Feature, image: np.ndarray) -> None:
    with where.open("w") as file:
        faulthandler.dump_traceback_later(50, exit=True, file=file)
        try:
            answer.send(d2.extract(image))
        except BaseException:
            traceback.print_exc(file=file)
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_child_process_can_use_a_detector_of_the_parent(
    method: str, threads: int, image: np.ndarray, features: d2feat.Features, tmp_path: Path
) -> None:
    d2 = create(threads=threads)
    d2.extract(image)  # the session's threads are running
    context = multiprocessing.get_context(method)
    answer, sending = context.Pipe(duplex=False)
    where = tmp_path / "child.txt"
    child = context.Process(target=_extract_in_child, args=(sending, where, d2, image))
    child.start()
    sending.close()
    try:
        found = answer.recv() if answer.poll(60) else None
    except EOFError:  # it ended without
        found = None
    child.join(timeout=10)
    child.kill()
    assert found is not None, f"the child ended with {child.exitcode}: {where.read_text()}"
    assert_same_features(found, features, 1e-4, 1e-4)
    assert_same_features(d2.extract(image), features, 1e-4, 1e-4)


FORK = """
import os, sys, numpy, d2feat
image = numpy.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=numpy.uint8)
for threads in (2, 3, 4, 5):  # as many sessions as are kept
    d2feat.create(model="d2net", provider="cpu", threads=threads).extract(image)
child = os.fork()
found = len(d2feat.create(model="d2net", provider="cpu", threads=6).extract(image))
if child == 0:
    os._exit(7 if found else 1)  # as multiprocessing ends its children
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_child_works_though_it_inherited_as_many_sessions_as_are_kept() -> None:
    """It inherits the objects of ONNX Runtime but not their threads: destroying one would hang."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60, cwd=Path(__file__).parents[1])


# ---- with the rest of OpenCV


@pytest.fixture(scope="module")
def moved(image: np.ndarray) -> np.ndarray:
    """The image moved by (5, 3) pixels."""
    return cv2.warpAffine(image, np.float64([[1, 0, 5], [0, 1, 3]]), (112, 84), borderMode=cv2.BORDER_REFLECT)


MATCHERS: dict[str, Callable[[], Any]] = {
    "BFMatcher": lambda: cv2.BFMatcher(cv2.NORM_L2),
    "FLANN kd-tree": lambda: cv2.FlannBasedMatcher({"algorithm": 1, "trees": 5}, {"checks": 50}),
}


@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS.keys())
def test_the_usual_matching_program_finds_the_motion(
    matcher: Callable[[], Any], detector: d2feat.D2Feature, image: np.ndarray, moved: np.ndarray
) -> None:
    keypoints1, descriptors1 = detector.detectAndCompute(image, None)
    keypoints2, descriptors2 = detector.detectAndCompute(moved, None)
    pairs = matcher().knnMatch(descriptors1, descriptors2, k=2)
    good = [one for one, second in pairs if one.distance < 0.75 * second.distance]
    assert len(good) >= 12
    source = np.float32([keypoints1[m.queryIdx].pt for m in good]).reshape(-1, 1, 2)
    target = np.float32([keypoints2[m.trainIdx].pt for m in good]).reshape(-1, 1, 2)
    homography, inliers = cv2.findHomography(source, target, cv2.RANSAC, 3.0)
    assert inliers.sum() >= 10
    offset = np.median((target - source)[inliers.ravel() > 0], axis=(0, 1))
    np.testing.assert_allclose(offset, (5, 3), atol=0.5)
    assert homography.shape == (3, 3)
    picture = cv2.drawMatches(image, keypoints1, moved, keypoints2, good, None)
    assert picture.shape == (84, 224, 3)
    assert cv2.drawMatchesKnn(image, keypoints1, moved, keypoints2, pairs, None).shape == (84, 224, 3)


def test_draw_keypoints_takes_them(detector: d2feat.D2Feature, image: np.ndarray) -> None:
    keypoints = detector.detect(image)
    for flags in (cv2.DRAW_MATCHES_FLAGS_DEFAULT, cv2.DRAW_MATCHES_FLAGS_DRAW_RICH_KEYPOINTS):
        drawn = cv2.drawKeypoints(image, keypoints, None, flags=flags)
        assert (drawn != image).any(axis=2).sum() > 100


def test_keypoint_convert_and_filter_take_them(
    detector: d2feat.D2Feature, image: np.ndarray, features: d2feat.Features
) -> None:
    keypoints = detector.detect(image)
    np.testing.assert_array_equal(cv2.KeyPoint_convert(keypoints), features.keypoints)


# ---- names of files and classes


def test_a_model_by_a_relative_path_survives_a_change_of_folder(
    image: np.ndarray, features: d2feat.Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(d2feat.available_models()["d2net"], tmp_path / "mine.onnx")
    monkeypatch.chdir(tmp_path)
    detector = create(model="mine.onnx")
    monkeypatch.chdir("/")
    for one in (detector, pickle.loads(pickle.dumps(detector))):
        assert_same_features(one.extract(image), features)


class Doubled(d2feat.D2Feature):
    """Somebody's subclass, with an attribute of its own."""

    factor = 2

    def extract(self, image: Any, mask: Any = None) -> d2feat.Features:
        found = super().extract(image, mask)
        return found[np.tile(np.arange(len(found)), self.factor)]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_subclass_are_of_it(clone: Any, image: np.ndarray) -> None:
    one = Doubled(20, scales=(1.0,), model="d2net-lite", provider="cpu", threads=1)
    one.factor = 3
    two = clone(one)
    two.setNFeatures(10)
    assert (one.getNFeatures(), len(two.extract(image))) == (20, 30)
    views = clone(d2feat.AffineFeature(one, maxTilt=1))
    assert views.views == d2feat.AffineFeature(one, maxTilt=1).views
    assert views.defaultNorm() == cv2.NORM_L2


def test_what_it_offers_is_listed(detector: d2feat.D2Feature) -> None:
    assert {"extract", "stream", "setNFeatures", "detectAndCompute"} <= set(dir(detector))
    assert {"extract", "views"} <= set(dir(d2feat.AffineFeature(detector)))


def test_file_names_that_are_not_utf8(image: np.ndarray, detector: d2feat.D2Feature, tmp_path: Path) -> None:
    """OpenCV's functions crash the interpreter at such names."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        Path(name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (found,) = detector.stream([name])
    assert_same_features(found.features, detector.extract(image))
    with pytest.raises(d2feat.InputError, match="no file name that is not UTF-8"):
        detector.save(name)
