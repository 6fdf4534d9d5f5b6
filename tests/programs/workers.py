"""Extract features in worker processes: workers.py fork|spawn parent|worker OUT IMAGE IMAGE ..."""

import json
import multiprocessing
import pickle
import sys
from functools import partial

import cv2
import numpy as np
from cv2 import SIFT_create


def plain(kp):
    return kp.pt, kp.size, kp.angle, kp.response, kp.octave, kp.class_id


def extract(detector, name):
    if detector is None:
        detector = SIFT_create(nfeatures=100)
    kps, des = detector.detectAndCompute(cv2.imread(name), None)
    return [plain(kp) for kp in kps], des


if __name__ == "__main__":
    start, where, out, *names = sys.argv[1:]
    detector = SIFT_create(nfeatures=100) if where == "parent" else None
    with multiprocessing.get_context(start).Pool(1) as pool:
        found = pool.map(partial(extract, detector), names)
    kps = [cv2.KeyPoint(x, y, s, a, r, o, c) for (x, y), s, a, r, o, c in found[0][0]]
    np.save(out + ".npy", np.vstack([des for _, des in found]))
    with open(out + ".pickle", "wb") as file:
        pickle.dump(found, file)
    loaded = np.load(out + ".npy")
    print(
        json.dumps(
            {"features": [len(k) for k, _ in found], "shape": loaded.shape, "dtype": str(loaded.dtype)}
        )
    )
