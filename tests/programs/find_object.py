"""Find an object in a scene: find_object.py [--feature=sift-flann] OBJECT SCENE

Features: sift, surf, orb, akaze, brisk; with -flann at the end for FLANN in place of brute force.
"""

import getopt
import json
import sys

import cv2 as cv
import numpy as np

FLANN_INDEX_KDTREE = 1
FLANN_INDEX_LSH = 6


def make(name):
    kind, *rest = name.split("-")
    if kind == "sift":
        detector, norm = cv.SIFT_create(), cv.NORM_L2
    elif kind == "surf":
        detector, norm = cv.xfeatures2d.SURF_create(800), cv.NORM_L2
    elif kind == "orb":
        detector, norm = cv.ORB_create(400), cv.NORM_HAMMING
    elif kind == "akaze":
        detector, norm = cv.AKAZE_create(), cv.NORM_HAMMING
    elif kind == "brisk":
        detector, norm = cv.BRISK_create(), cv.NORM_HAMMING
    else:
        return None, None
    if "flann" not in rest:
        return detector, cv.BFMatcher(norm)
    if norm == cv.NORM_L2:
        params = dict(algorithm=FLANN_INDEX_KDTREE, trees=5)
    else:
        params = dict(algorithm=FLANN_INDEX_LSH, table_number=6, key_size=12, multi_probe_level=1)
    return detector, cv.FlannBasedMatcher(params, {})


def clearly_nearest(kp1, kp2, matches, ratio=0.75):
    pairs = []
    for m in matches:
        if len(m) == 2 and m[0].distance < m[1].distance * ratio:
            pairs.append((kp1[m[0].queryIdx], kp2[m[0].trainIdx]))
    p1 = np.float32([a.pt for a, _ in pairs])
    p2 = np.float32([b.pt for _, b in pairs])
    return p1, p2, pairs


def draw(img1, img2, pairs, status, H):
    h1, w1 = img1.shape[:2]
    h2, w2 = img2.shape[:2]
    vis = np.zeros((max(h1, h2), w1 + w2), np.uint8)
    vis[:h1, :w1] = img1
    vis[:h2, w1:] = img2
    vis = cv.cvtColor(vis, cv.COLOR_GRAY2BGR)
    corners = np.float32([[0, 0], [w1, 0], [w1, h1], [0, h1]]).reshape(1, -1, 2)
    box = np.int32(cv.perspectiveTransform(corners, H).reshape(-1, 2) + (w1, 0))
    cv.polylines(vis, [box], True, (255, 255, 255))
    for (a, b), inlier in zip(pairs, status):
        if inlier:
            start, end = np.int32(a.pt), np.int32(np.array(b.pt) + [w1, 0])
            cv.line(vis, [int(v) for v in start], [int(v) for v in end], (0, 255, 0))
    return cv.drawKeypoints(vis, [a for a, _ in pairs], None, flags=4, color=(51, 103, 236))


if __name__ == "__main__":
    opts, args = getopt.getopt(sys.argv[1:], "", ["feature=", "out="])
    opts = dict(opts)
    name = opts.get("--feature", "brisk")
    img1 = cv.imread(args[0], cv.IMREAD_GRAYSCALE)
    img2 = cv.imread(args[1], cv.IMREAD_GRAYSCALE)
    detector, matcher = make(name)
    if img1 is None or img2 is None:
        print("Failed to load the images")
        sys.exit(1)
    if detector is None:
        print("unknown feature:", name)
        sys.exit(1)
    kp1, desc1 = detector.detectAndCompute(img1, None)
    kp2, desc2 = detector.detectAndCompute(img2, None)
    print("img1 - %d features, img2 - %d features" % (len(kp1), len(kp2)))
    raw = matcher.knnMatch(desc1, trainDescriptors=desc2, k=2)
    p1, p2, pairs = clearly_nearest(kp1, kp2, raw)
    if len(p1) < 4:
        print("%d matches found, not enough for homography estimation" % len(p1))
        sys.exit(2)
    H, status = cv.findHomography(p1, p2, cv.RANSAC, 5.0)
    print("%d / %d  inliers/matched" % (np.sum(status), len(status)))
    if "--out" in opts:
        cv.imwrite(opts["--out"], draw(img1, img2, pairs, status, H))
    print(json.dumps({"inliers": int(status.sum()), "matches": len(status), "H": H.tolist()}))
