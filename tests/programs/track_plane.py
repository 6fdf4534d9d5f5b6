"""Track a plane through frames: track_plane.py X0,Y0,X1,Y1 FRAME0 FRAME1 ..."""

import json
import sys
from collections import namedtuple

import cv2 as cv
import numpy as np

flann_params = dict(algorithm=6, table_number=6, key_size=12, multi_probe_level=1)
MIN_MATCH_COUNT = 10
Target = namedtuple("Target", "rect, keypoints, descrs")


class Tracker:
    def __init__(self):
        self.detector = cv.ORB_create(nfeatures=1000)
        self.matcher = cv.FlannBasedMatcher(flann_params, {})
        self.targets = []

    def features(self, frame):
        keypoints, descrs = self.detector.detectAndCompute(frame, None)
        return keypoints, [] if descrs is None else descrs

    def add(self, frame, rect):
        x0, y0, x1, y1 = rect
        points, descs = [], []
        for kp, desc in zip(*self.features(frame)):
            x, y = kp.pt
            if x0 <= x <= x1 and y0 <= y <= y1:
                points.append(kp)
                descs.append(desc)
        descs = np.uint8(descs)
        self.matcher.add([descs])
        self.targets.append(Target(rect, points, descs))

    def clear(self):
        self.targets = []
        self.matcher.clear()

    def track(self, frame):
        points, descrs = self.features(frame)
        if len(points) < MIN_MATCH_COUNT:
            return []
        matches = self.matcher.knnMatch(descrs, k=2)
        matches = [m[0] for m in matches if len(m) == 2 and m[0].distance < m[1].distance * 0.75]
        by_target = [[] for _ in self.targets]
        for m in matches:
            by_target[m.imgIdx].append(m)
        tracked = []
        for target, found in zip(self.targets, by_target):
            if len(found) < MIN_MATCH_COUNT:
                continue
            p0 = np.float32([target.keypoints[m.trainIdx].pt for m in found])
            p1 = np.float32([points[m.queryIdx].pt for m in found])
            H, status = cv.findHomography(p0, p1, cv.RANSAC, 3.0)
            if status.sum() >= MIN_MATCH_COUNT:
                tracked.append((int(status.sum()), len(found), H))
        return tracked


if __name__ == "__main__":
    rect = [int(v) for v in sys.argv[1].split(",")]
    frames = [cv.imread(name) for name in sys.argv[2:]]
    tracker = Tracker()
    tracker.add(frames[0], rect)
    tracker.clear()  # as when the key c is pressed
    tracker.add(frames[0], rect)
    for number, frame in enumerate(frames[1:], 1):
        found = tracker.track(frame)
        if not found:
            print(json.dumps({"frame": number, "inliers": 0, "matches": 0, "H": None}))
        for inliers, matches, H in found:
            print(json.dumps({"frame": number, "inliers": inliers, "matches": matches, "H": H.tolist()}))
