# AKAZE, KAZE or BRISK and a Hamming matcher, as in the tutorials: binary_tutorial.py NAME IMAGE1 IMAGE2
import json
import sys

import cv2 as cv
import numpy as np

name = sys.argv[1]
img1 = cv.imread(sys.argv[2], cv.IMREAD_GRAYSCALE)
img2 = cv.imread(sys.argv[3], cv.IMREAD_GRAYSCALE)
detector = getattr(cv, name + "_create")()
kpts1, desc1 = detector.detectAndCompute(img1, None)
kpts2, desc2 = detector.detectAndCompute(img2, None)

matcher = cv.DescriptorMatcher_create(cv.DescriptorMatcher_BRUTEFORCE_HAMMING)
good = []
for m, n in matcher.knnMatch(desc1, desc2, 2):
    if m.distance < 0.8 * n.distance:
        good.append(m)
p1 = np.float32([kpts1[m.queryIdx].pt for m in good])
p2 = np.float32([kpts2[m.trainIdx].pt for m in good])
H, mask = cv.findHomography(p1, p2, cv.RANSAC, 3.0)

bf = cv.BFMatcher(cv.NORM_HAMMING, crossCheck=True)
best = sorted(bf.match(desc1, desc2), key=lambda m: m.distance)
near = [m for m in best if m.distance < 50]
print(
    json.dumps(
        {
            "inliers": 0 if H is None else int(mask.sum()),
            "matches": len(good),
            "H": None if H is None else H.tolist(),
            "mutual": len(best),
            "near": len(near),
        }
    )
)
