"""The matching code of OpenCV's tutorials, unchanged but for the constructor, finds the homography."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import d2feat
from d2feat.evaluation.metrics import corner_error

SHARED = Path(os.environ.get("D2FEAT_SHARED", Path(__file__).parents[2] / "shared"))
SEQUENCES = SHARED / "data" / "eval" / "oxford_affine"


def tutorial_homography(detector: object, img1: np.ndarray, img2: np.ndarray) -> np.ndarray:
    """Feature Matching + Homography, as it stands in countless programs written for SIFT."""
    kp1, des1 = detector.detectAndCompute(img1, None)
    kp2, des2 = detector.detectAndCompute(img2, None)

    FLANN_INDEX_KDTREE = 1
    index_params = dict(algorithm=FLANN_INDEX_KDTREE, trees=5)
    search_params = dict(checks=50)

    flann = cv2.FlannBasedMatcher(index_params, search_params)
    matches = flann.knnMatch(des1, des2, k=2)

    good = []
    for m, n in matches:
        if m.distance < 0.75 * n.distance:
            good.append(m)

    src_pts = np.float32([kp1[m.queryIdx].pt for m in good]).reshape(-1, 1, 2)
    dst_pts = np.float32([kp2[m.trainIdx].pt for m in good]).reshape(-1, 1, 2)
    H, mask = cv2.findHomography(src_pts, dst_pts, cv2.RANSAC, 3.0)
    return H


@pytest.mark.parametrize(("sequence", "other"), [("graf", 2), ("leuven", 4), ("ubc", 4), ("bikes", 4)])
def test_finds_the_homography_of_real_photographs(sequence: str, other: int) -> None:
    folder = SEQUENCES / sequence
    if not folder.is_dir():
        pytest.skip("the Oxford affine sequences are not here; set D2FEAT_SHARED to their folder")
    img1, img2 = cv2.imread(str(folder / "1.webp")), cv2.imread(str(folder / f"{other}.webp"))
    truth = np.loadtxt(folder / f"H_1_{other}")
    cv2.setRNGSeed(0)
    found = tutorial_homography(d2feat.create(), img1, img2)
    error = corner_error(found, truth, img1.shape[1::-1])
    print(f"{sequence} 1-{other}: corner error {error:.2f} px")
    assert error < 5


@pytest.mark.parametrize("photograph", ["astronaut", "coffee"])
def test_finds_the_homography_of_a_warped_and_darkened_photograph(photograph: str) -> None:
    data = pytest.importorskip("skimage.data")
    picture = np.ascontiguousarray(getattr(data, photograph)()[..., ::-1])
    img1 = cv2.resize(picture, (360, 300), interpolation=cv2.INTER_AREA)
    truth = np.array([[0.9, 0.12, 10.0], [-0.1, 0.95, 30.0], [2e-4, 1e-4, 1.0]])
    img2 = cv2.warpPerspective(img1, truth, (360, 300), flags=cv2.INTER_LINEAR)
    img2 = (255 * (img2 / 255.0) ** 2.2 * 0.6).astype(np.uint8)
    cv2.setRNGSeed(0)
    found = tutorial_homography(d2feat.create(), img1, img2)
    assert corner_error(found, truth, img1.shape[1::-1]) < 2
