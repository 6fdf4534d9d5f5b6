"""Match two images through simulated views, in threads: tilted_views.py IMAGE1 IMAGE2 [TILTS]"""

import json
import sys
from multiprocessing.pool import ThreadPool

import cv2 as cv
import numpy as np


def skew(tilt, phi, img):
    h, w = img.shape[:2]
    mask = np.full((h, w), 255, np.uint8)
    A = np.float32([[1, 0, 0], [0, 1, 0]])
    if phi:
        s, c = np.sin(np.deg2rad(phi)), np.cos(np.deg2rad(phi))
        A = np.float32([[c, -s], [s, c]])
        corners = np.int32(np.dot([[0, 0], [w, 0], [w, h], [0, h]], A.T))
        x, y, w, h = cv.boundingRect(corners.reshape(1, -1, 2))
        A = np.hstack([A, [[-x], [-y]]])
        img = cv.warpAffine(img, A, (w, h), flags=cv.INTER_LINEAR, borderMode=cv.BORDER_REPLICATE)
    if tilt != 1:
        s = 0.8 * np.sqrt(tilt * tilt - 1)
        img = cv.GaussianBlur(img, (0, 0), sigmaX=s, sigmaY=0.01)
        img = cv.resize(img, (0, 0), fx=1 / tilt, fy=1.0, interpolation=cv.INTER_NEAREST)
        A[0] /= tilt
    if phi or tilt != 1:
        h, w = img.shape[:2]
        mask = cv.warpAffine(mask, A, (w, h), flags=cv.INTER_NEAREST)
    return img, mask, cv.invertAffineTransform(A)


def detect(detector, img, pool, tilts):
    params = [(1.0, 0.0)]
    for t in 2 ** (0.5 * np.arange(1, 1 + tilts)):
        params += [(t, phi) for phi in np.arange(0, 180, 72.0 / t)]

    def one(p):
        view, mask, back = skew(p[0], p[1], img)
        kps, des = detector.detectAndCompute(view, mask)
        for kp in kps:
            kp.pt = tuple(np.dot(back, (*kp.pt, 1)))
        return kps, [] if des is None else des

    keypoints, descrs = [], []
    for k, d in pool.imap(one, params):
        keypoints.extend(k)
        descrs.extend(d)
    return keypoints, np.array(descrs)


def main():
    img1, img2 = (cv.imread(name, cv.IMREAD_GRAYSCALE) for name in sys.argv[1:3])
    tilts = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    detector, matcher = cv.SIFT_create(), cv.BFMatcher(cv.NORM_L2)
    pool = ThreadPool(processes=2)
    kp1, des1 = detect(detector, img1, pool, tilts)
    kp2, des2 = detect(detector, img2, pool, tilts)
    print("img1 - %d features, img2 - %d features" % (len(kp1), len(kp2)))
    raw = matcher.knnMatch(des1, trainDescriptors=des2, k=2)
    good = [m[0] for m in raw if len(m) == 2 and m[0].distance < m[1].distance * 0.75]
    p1 = np.float32([kp1[m.queryIdx].pt for m in good])
    p2 = np.float32([kp2[m.trainIdx].pt for m in good])
    H, status = cv.findHomography(p1, p2, cv.RANSAC, 5.0)
    print(json.dumps({"inliers": int(status.sum()), "matches": len(good), "H": H.tolist()}))


if __name__ == "__main__":
    main()
