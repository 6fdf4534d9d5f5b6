# Feature matching and homography, as in the tutorials: tutorial.py BOX SCENE [RATIO [RANSAC_PIXELS]]
import json
import sys

import cv2
import numpy as np

MIN_MATCH_COUNT = 10

img1 = cv2.imread(sys.argv[1], cv2.IMREAD_GRAYSCALE)
img2 = cv2.imread(sys.argv[2], cv2.IMREAD_GRAYSCALE)
ratio = float(sys.argv[3]) if len(sys.argv) > 3 else 0.7
pixels = float(sys.argv[4]) if len(sys.argv) > 4 else 5.0

sift = cv2.SIFT_create()
kp1, des1 = sift.detectAndCompute(img1, None)
kp2, des2 = sift.detectAndCompute(img2, None)

index_params = dict(algorithm=1, trees=5)
search_params = dict(checks=50)
flann = cv2.FlannBasedMatcher(index_params, search_params)
matches = flann.knnMatch(des1, des2, k=2)

good = []
for m, n in matches:
    if m.distance < ratio * n.distance:
        good.append(m)

if len(good) > MIN_MATCH_COUNT:
    src_pts = np.float32([kp1[m.queryIdx].pt for m in good]).reshape(-1, 1, 2)
    dst_pts = np.float32([kp2[m.trainIdx].pt for m in good]).reshape(-1, 1, 2)
    M, mask = cv2.findHomography(src_pts, dst_pts, cv2.RANSAC, pixels)
    matchesMask = mask.ravel().tolist()
    draw_params = dict(matchColor=(0, 255, 0), singlePointColor=None, matchesMask=matchesMask, flags=2)
    img3 = cv2.drawMatches(img1, kp1, img2, kp2, good, None, **draw_params)
    print(json.dumps({"inliers": sum(matchesMask), "matches": len(good), "H": M.tolist()}))
else:
    print("Not enough matches are found - {}/{}".format(len(good), MIN_MATCH_COUNT))
    print(json.dumps({"inliers": 0, "matches": len(good), "H": None}))
