"""Describe other detectors' points, RootSIFT, patches, UMat, k-means: patches.py IMAGE1 IMAGE2"""

import json
import sys
from typing import Optional

import cv2
import numpy as np


class RootSIFT:
    def __init__(self, base: Optional[cv2.Feature2D] = None):
        self.base = base if base is not None else cv2.SIFT_create()
        assert isinstance(self.base, cv2.Feature2D)

    def compute(self, image, kps, eps=1e-7):
        kps, des = self.base.compute(image, kps)
        if len(kps) == 0:
            return [], None
        des /= des.sum(axis=1, keepdims=True) + eps
        return kps, np.sqrt(des)


def crop(image, kp):
    size = int(round(kp.size))
    M = cv2.getRotationMatrix2D(kp.pt, kp.angle, 1.0)
    turned = cv2.warpAffine(image, M, image.shape[1::-1])
    return cv2.getRectSubPix(turned, (size, size), kp.pt)


def inliers(kp1, des1, kp2, des2):
    raw = cv2.BFMatcher().knnMatch(des1, des2, k=2)
    good = [m for m, n in raw if m.distance < 0.8 * n.distance]
    p1 = np.float32([kp1[m.queryIdx].pt for m in good])
    p2 = np.float32([kp2[m.trainIdx].pt for m in good])
    H, mask = cv2.findHomography(p1, p2, cv2.RANSAC, 3.0)
    return int(mask.sum())


img1, img2 = (cv2.imread(name, 0) for name in sys.argv[1:])
root = RootSIFT()
results = {}

fast = cv2.FastFeatureDetector_create(40)
points = [fast.detect(img, None) for img in (img1, img2)]
results["fast"] = inliers(*root.compute(img1, points[0]), *root.compute(img2, points[1]))

corners = [cv2.goodFeaturesToTrack(img, 300, 0.01, 7) for img in (img1, img2)]
points = [[cv2.KeyPoint(float(x), float(y), 16) for x, y in c.reshape(-1, 2)] for c in corners]
results["corners"] = inliers(*root.compute(img1, points[0]), *root.compute(img2, points[1]))

sift = cv2.SIFT_create(300, 3, 0.03, 10, 1.6)
grid = [
    cv2.KeyPoint(x, y, 20)
    for y in range(20, img1.shape[0] - 20, 20)
    for x in range(20, img1.shape[1] - 20, 20)
]
kept, dense = sift.compute(img1, grid)
results["grid"] = [len(grid), len(kept), len(dense)]

kp, des = sift.detectAndCompute(img1, None)
results["limit"] = len(kp)
patch = crop(img1, kp[0])
expected = cv2.getRectSubPix(img1, patch.shape[::-1], kp[0].pt)
results["upright"] = bool(kp[0].angle == 0 and np.array_equal(patch, expected))
_, labels, centres = cv2.kmeans(
    np.vstack([des, dense]).astype(np.float32),
    8,
    None,
    (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.1),
    2,
    cv2.KMEANS_PP_CENTERS,
)
results["clusters"] = len(set(labels.ravel().tolist()))
results["picture"] = cv2.drawKeypoints(
    img1, kp, None, flags=cv2.DRAW_MATCHES_FLAGS_DRAW_RICH_KEYPOINTS
).shape[2]

ukp, udes = sift.detectAndCompute(cv2.UMat(img1), None)
matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(udes, udes)
results["umat"] = sum(m.queryIdx == m.trainIdx for m in matches) == len(ukp) == len(matches)

results["bytes"] = bool((des.astype(np.uint8) == des).all())
print(json.dumps(results))
