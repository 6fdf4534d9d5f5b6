"""Many images in a row: in order, a few at a time, and one that is broken does not stop the others."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.stream import AHEAD
from tests.conftest import assert_same_features, assert_same_keypoints, photograph

SIZES = [(112, 84), (60, 90), (97, 33), (112, 84), (48, 48)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [photograph("astronaut", size) for size in SIZES]


@pytest.fixture
def paths(images: list[np.ndarray], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    return paths


def own_threads_end() -> bool:
    """Whether they do, within half a minute."""
    gc.collect()  # errors that other tests have raised hold on to their streams
    own = [thread for thread in threading.enumerate() if thread.name.startswith("d2feat")]
    for thread in own:
        thread.join(30)
    return not any(thread.is_alive() for thread in own)


def test_images_and_files_give_what_detectAndCompute_gives(
    detector: d2feat.D2Feature, images: list[np.ndarray], paths: list[Path]
) -> None:
    expected = [detector.detectAndCompute(image) for image in images]
    for sources in (images, paths, [str(path) for path in paths], iter(images)):
        found = list(detector.stream(sources))
        assert [one.index for one in found] == list(range(len(images)))
        for one, (keypoints, descriptors) in zip(found, expected, strict=True):
            assert one.error is None
            assert_same_keypoints(one.keypoints, keypoints)
            np.testing.assert_array_equal(one.descriptors, descriptors)
    assert [one.name for one in found] == [f"image {i}" for i in range(len(images))]


def test_masks_go_with_their_images(detector: d2feat.D2Feature, images: list[np.ndarray]) -> None:
    masks = [np.zeros(image.shape[:2], np.uint8) for image in images]
    masks[0][:, :50] = 255
    masks[1] = None
    first, second, *others = detector.stream(images, masks)
    assert_same_features(first.features, detector.extract(images[0], masks[0]))
    assert_same_features(second.features, detector.extract(images[1]))
    assert all(one.keypoints == () and one.descriptors is None for one in others)
    with pytest.raises(d2feat.InputError, match="only 2 masks, and more images"):
        list(detector.stream(images, masks[:2]))
    with pytest.raises(d2feat.InputError, match="only 1 images, and more masks"):
        list(detector.stream(images[:1], masks))


def test_a_camera_may_fill_one_array_again_and_again(
    detector: d2feat.D2Feature, images: list[np.ndarray]
) -> None:
    """Images are taken ahead of the network."""
    pictures = [cv2.resize(image, (96, 72)) for image in images]

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty_like(pictures[0])
        for picture in pictures:
            buffer[:] = picture
            yield buffer

    def camera_of_opencv() -> Iterator[cv2.UMat]:
        buffer = cv2.UMat(pictures[0].shape[0], pictures[0].shape[1], cv2.CV_8UC3)
        for picture in pictures:
            cv2.copyTo(picture, None, buffer)
            yield buffer

    for frames in (camera(), camera_of_opencv()):
        for one, picture in zip(detector.stream(frames), pictures, strict=True):
            assert_same_features(one.features, detector.extract(picture))


def test_one_image_is_not_several(
    detector: d2feat.D2Feature, images: list[np.ndarray], paths: list[Path]
) -> None:
    for one in (str(paths[0]), paths[0], images[0], images[0][..., 0], cv2.UMat(images[0]), 3):
        with pytest.raises(d2feat.InputError, match="a list of images or paths is meant, not one"):
            detector.stream(one)
    with pytest.raises(
        d2feat.InputError, match=r"VideoCapture .* a generator that yields what read\(\) does"
    ):
        detector.stream(cv2.VideoCapture())
    assert len(list(detector.stream(np.stack([images[0][..., 0]] * 2)))) == 2


def test_a_broken_image_says_which_and_the_others_come(
    detector: d2feat.D2Feature, paths: list[Path], images: list[np.ndarray]
) -> None:
    paths[1].write_bytes(b"no picture")
    sources = [paths[0], paths[1], paths[2].with_name("missing.png"), images[3].astype(float), paths[4]]
    found = list(detector.stream(sources))
    assert [one.error is None for one in found] == [True, False, False, False, True]
    assert_same_features(found[4].features, detector.extract(images[4]))
    for one, name in zip(found[1:4], (str(paths[1]), "missing.png", "image 3"), strict=True):
        assert isinstance(one.error, d2feat.InputError)
        with pytest.raises(d2feat.InputError, match=name.replace("\\", ".")) as raised:
            _ = one.keypoints
        assert raised.value is one.error


def test_only_a_few_are_taken_ahead_and_stopping_early_leaves_nothing_behind(
    detector: d2feat.D2Feature, images: list[np.ndarray]
) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield images[4]

    for number, one in enumerate(detector.stream(endless())):
        assert one.index == number < taken <= number + AHEAD
        if number == 6:
            break
    gc.collect()
    assert own_threads_end()


def test_an_error_of_the_callers_generator_comes_after_the_images_before_it(
    detector: d2feat.D2Feature, images: list[np.ndarray]
) -> None:
    def camera() -> Iterator[np.ndarray]:
        yield from images[:2]
        raise OSError("unplugged")

    seen = []
    with pytest.raises(OSError, match="unplugged"):
        seen.extend(one.index for one in detector.stream(camera()))
    # list.extend keeps what came before the error.
    assert seen == [0, 1]
    assert own_threads_end()


def test_batch_names_the_image_that_is_wrong(detector: d2feat.D2Feature, images: list[np.ndarray]) -> None:
    keypoints, descriptors = detector.detectAndComputeBatch(images)
    assert len(keypoints) == len(descriptors) == len(images)
    with pytest.raises(d2feat.InputError, match=r"image 2: .*uint8"):
        detector.detectAndComputeBatch([images[0], images[1], images[2].astype(np.float32)])
    with pytest.raises(d2feat.InputError, match=r"image 1: image is None") as raised:
        detector.detect([images[0], None, *images])
    assert own_threads_end(), f"{raised} keeps them"


def test_stopping_early_waits_for_nobody(detector: d2feat.D2Feature, images: list[np.ndarray]) -> None:
    """A stream may end in the garbage collector, where waiting for a thread can be for ever."""
    going, go_on = threading.Event(), threading.Event()

    def extract(image: np.ndarray, mask: None) -> d2feat.Features:
        if image is images[1]:
            going.set()
            assert go_on.wait(60)
        return detector.extract(image, mask)

    from d2feat.stream import stream

    found = stream(extract, images[:3])
    assert next(found).index == 0
    assert going.wait(30)
    closing = threading.Thread(target=found.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    go_on.set()
    assert own_threads_end()


def test_network_runs_while_the_caller_works(detector: d2feat.D2Feature, images: list[np.ndarray]) -> None:
    """The next image is done before the caller asks for it."""
    done = threading.Event()

    def extract(image: np.ndarray, mask: None) -> d2feat.Features:
        if image is images[1]:
            done.set()
        return detector.extract(image, mask)

    from d2feat.stream import stream

    for one in stream(extract, images[:2]):
        if one.index == 0:
            assert done.wait(30)
