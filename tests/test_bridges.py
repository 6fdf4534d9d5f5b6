"""From d2feat's features to cv2.detail's stitching, and to visual words."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.bow import BOWImgDescriptorExtractor, BOWKMeansTrainer
from tests.conftest import photograph
from tests.programs.__main__ import write_panorama

ROOT = Path(__file__).parents[1]
OLD = int(cv2.__version__[0]) < 5


@pytest.mark.skipif(not OLD, reason="OpenCV 5 takes it")
def test_image_features_are_refused_where_they_crash(features: d2feat.Features) -> None:
    with pytest.raises(d2feat.D2FeatError, match=r"OpenCV 4.*crashes.*d2feat\.match"):
        d2feat.to_image_features(*features.to_opencv(), features.image_size)
    # What it is refused for, in an interpreter of its own.
    crash = "import cv2, numpy; cv2.detail.ImageFeatures().descriptors = cv2.UMat(numpy.ones((3, 8), 'f'))"
    assert subprocess.run([sys.executable, "-c", crash], check=False).returncode < 0


@pytest.mark.skipif(OLD, reason="refused before OpenCV 5")
def test_image_features(features: d2feat.Features) -> None:
    keypoints, descriptors = features.to_opencv()
    made = d2feat.to_image_features(keypoints, descriptors, features.image_size, 3)
    assert isinstance(made, cv2.detail.ImageFeatures)
    assert (made.img_idx, made.img_size) == (3, features.image_size)
    assert [kp.pt for kp in made.getKeypoints()] == [kp.pt for kp in keypoints]
    assert np.array_equal(made.descriptors.get(), descriptors)
    again = d2feat.to_image_features(keypoints, cv2.UMat(descriptors), features.image_size)
    assert np.array_equal(again.descriptors.get(), descriptors)
    nothing = d2feat.to_image_features((), None, (100, 80))
    assert len(nothing.getKeypoints()) == 0
    pairs = cv2.detail.BestOf2NearestMatcher_create(False, 0.3).apply2([made, again, nothing])
    found = {(pair.src_img_idx, pair.dst_img_idx): pair.num_inliers for pair in pairs}
    assert found[0, 1] > 0.9 * len(keypoints)
    assert found.get((0, 2), 0) == 0
    for wrong in (
        (keypoints[1:], descriptors, (9, 9)),
        (keypoints, None, (9, 9)),
        (keypoints, descriptors, 9),
    ):
        with pytest.raises(d2feat.InputError):
            d2feat.to_image_features(*wrong)


def stitch(out: Path, images: Sequence[Path]) -> str:
    """What `examples/panorama.py` says."""
    command = [sys.executable, str(ROOT / "examples/panorama.py"), "--surface", "plane", "-o", str(out)]
    done = subprocess.run(
        [*command, *map(str, images)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(OLD, reason="needs to_image_features, refused before OpenCV 5")
def test_panorama_leaves_out_what_does_not_belong(tmp_path: Path) -> None:
    images, _ = write_panorama(tmp_path)
    stranger = tmp_path / "stranger.png"
    cv2.imwrite(str(stranger), photograph("coffee", (400, 380)))
    assert "stitched 3 of 4" in stitch(tmp_path / "panorama.png", [images[0], stranger, *images[1:]])


@pytest.mark.skipif(OLD, reason="needs to_image_features, refused before OpenCV 5")
def test_panorama_is_the_photograph_it_was_cut_from(tmp_path: Path) -> None:
    images, whole = write_panorama(tmp_path)
    out = tmp_path / "panorama.png"
    assert "stitched 3 of 3" in stitch(out, images)
    panorama = cv2.imread(str(out))
    # Registered on the photograph by SIFT, which took no part in the stitching.
    (kp1, des1), (kp2, des2) = (
        cv2.SIFT_create(3000).detectAndCompute(one, None) for one in (panorama, whole)
    )
    matches = d2feat.match(des1, des2, ratio=0.8)
    source, target = (
        np.float32([kps[getattr(m, index)].pt for m in matches])
        for kps, index in ((kp1, "queryIdx"), (kp2, "trainIdx"))
    )
    H, mask = cv2.findHomography(source, target, cv2.USAC_MAGSAC, 2.0)
    assert mask.mean() > 0.8
    size = whole.shape[1::-1]
    seen = cv2.warpPerspective(panorama, H, size)
    covered = cv2.erode(
        cv2.warpPerspective(np.full(panorama.shape[:2], 255, np.uint8), H, size), np.ones((9, 9))
    )
    covered[(seen == 0).all(axis=2)] = 0
    assert (covered > 0).mean() > 0.45
    difference = cv2.absdiff(seen, whole)[covered > 0].mean()
    print(
        f"panorama: mean difference {difference:.1f} grey levels, {mask.mean():.2f} of SIFT's matches agree"
    )
    assert difference < 6


def test_vocabulary_and_histograms(
    detector: d2feat.D2Feature, image: np.ndarray, other_image: np.ndarray
) -> None:
    pytest.importorskip("sklearn")
    trainer = BOWKMeansTrainer(12, (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.1), 2)
    with pytest.raises(d2feat.InputError, match="add"):
        trainer.cluster()
    found = [detector.detectAndCompute(one, None) for one in (image, other_image)]
    for _, descriptors in found:
        trainer.add(descriptors)
    assert trainer.descriptorsCount() == sum(len(kp) for kp, _ in found)
    vocabulary = trainer.cluster()
    assert (vocabulary.shape, vocabulary.dtype) == ((12, detector.descriptorSize()), np.float32)
    assert np.array_equal(vocabulary, trainer.cluster(np.vstack(trainer.getDescriptors())))
    # Better than words taken at random, and every word is used.
    values = np.vstack(trainer.getDescriptors())
    error = [
        np.linalg.norm(values[:, None] - words, axis=2).min(axis=1).mean()
        for words in (vocabulary, values[:12])
    ]
    assert error[0] < error[1]
    extractor = BOWImgDescriptorExtractor(detector, cv2.BFMatcher())
    with pytest.raises(d2feat.InputError, match="setVocabulary"):
        extractor.compute(image, found[0][0])
    extractor.setVocabulary(vocabulary)
    assert np.array_equal(extractor.getVocabulary(), vocabulary)
    histogram = extractor.compute(image, found[0][0])
    assert (histogram.shape, histogram.dtype, extractor.descriptorSize()) == ((1, 12), np.float32, 12)
    nearest = np.linalg.norm(found[0][1][:, None] - vocabulary, axis=2).argmin(axis=1)
    assert histogram[0] == pytest.approx(np.bincount(nearest, minlength=12) / len(nearest))
    assert extractor.compute(image, []) is None
    assert extractor.compute(cv2.UMat(image), ()) is None
    with pytest.raises(d2feat.InputError, match="N x C"):
        extractor.setVocabulary(np.ones(3, np.float32))
    extractor.setVocabulary(vocabulary[:, :9])
    with pytest.raises(d2feat.InputError, match="same detector"):
        extractor.compute(image, found[0][0])
    with pytest.raises(d2feat.InputError, match="5 descriptors"):
        trainer.cluster(values[:5])
    trainer.clear()
    assert trainer.descriptorsCount() == 0


@pytest.mark.skipif(
    not hasattr(cv2, "BOWImgDescriptorExtractor"), reason="this OpenCV has none to compare with"
)
def test_histograms_are_opencvs(image: np.ndarray, other_image: np.ndarray) -> None:
    sift = cv2.SIFT_create()
    trainer = cv2.BOWKMeansTrainer(10)
    trainer.add(sift.detectAndCompute(image, None)[1])
    vocabulary = trainer.cluster()
    keypoints = sift.detect(other_image)
    both = []
    for kind in (BOWImgDescriptorExtractor, cv2.BOWImgDescriptorExtractor):
        extractor = kind(sift, cv2.BFMatcher(cv2.NORM_L2))
        extractor.setVocabulary(vocabulary)
        both.append(extractor.compute(other_image, keypoints))
    assert both[0] == pytest.approx(both[1], abs=1e-6)


@pytest.mark.skipif(not hasattr(cv2, "BOWKMeansTrainer"), reason="this OpenCV has none to compare with")
def test_vocabulary_is_as_good_as_opencvs(features: d2feat.Features) -> None:
    pytest.importorskip("sklearn")
    errors = []
    for kind in (BOWKMeansTrainer, cv2.BOWKMeansTrainer):
        trainer = kind(10)
        trainer.add(features.descriptors)
        words = trainer.cluster()
        errors.append((np.linalg.norm(features.descriptors[:, None] - words, axis=2).min(axis=1) ** 2).sum())
    assert errors[0] < 1.1 * errors[1]
