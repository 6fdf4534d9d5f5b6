"""Homographies from the first image to the others."""

import argparse
import json

import cv2
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("images", nargs="+")
parser.add_argument("--nfeatures", type=int, default=2048)
parser.add_argument("--ratio", type=float, nargs="+", default=[0.7])
parser.add_argument("--pixels", type=float, nargs="+", default=[5.0])
args = parser.parse_args()

sift = cv2.SIFT_create(nfeatures=args.nfeatures)
flann = cv2.FlannBasedMatcher(dict(algorithm=1, trees=5), dict(checks=50))
first = None
for name in args.images:
    gray = cv2.cvtColor(cv2.imread(name), cv2.COLOR_BGR2GRAY)
    ticks = cv2.getTickCount()
    kp, des = sift.detectAndCompute(gray, None)
    seconds = (cv2.getTickCount() - ticks) / cv2.getTickFrequency()
    if first is None:
        first = kp, des
        continue
    matches = flann.knnMatch(first[1], des, k=2)
    for ratio in args.ratio:
        good = [m for m, n in matches if m.distance < ratio * n.distance]
        p1 = np.float32([first[0][m.queryIdx].pt for m in good]).reshape(-1, 1, 2)
        p2 = np.float32([kp[m.trainIdx].pt for m in good]).reshape(-1, 1, 2)
        for pixels in args.pixels:
            H, mask = cv2.findHomography(p1, p2, cv2.RANSAC, pixels) if len(good) >= 4 else (None, None)
            result = {
                "image": name,
                "ratio": ratio,
                "pixels": pixels,
                "seconds": seconds,
                "matches": len(good),
            }
            result["inliers"] = 0 if H is None else int(mask.sum())
            result["H"] = None if H is None else H.tolist()
            print(json.dumps(result), flush=True)
