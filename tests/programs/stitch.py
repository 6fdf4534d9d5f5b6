"""Stitch a panorama step by step with cv.detail."""

import argparse
import json

import cv2 as cv
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("images", nargs="+")
parser.add_argument("--features", default="orb")
parser.add_argument("--match_conf", type=float, default=0.3)
parser.add_argument("--conf_thresh", type=float, default=1.0)
parser.add_argument("--output", default="result.jpg")
args = parser.parse_args()

finder = {"orb": cv.ORB.create, "sift": cv.SIFT_create}[args.features]()
images = [cv.imread(name) for name in args.images]
features = [cv.detail.computeImageFeatures2(finder, img) for img in images]
matcher = cv.detail.BestOf2NearestMatcher_create(False, args.match_conf)
p = matcher.apply2(features)
matcher.collectGarbage()
indices = cv.detail.leaveBiggestComponent(features, p, 0.3)
images = [images[int(i)] for i in np.ravel(indices)]
inliers = [m.num_inliers for m in p if m.src_img_idx == 0 and m.dst_img_idx == 1]

estimator = cv.detail_HomographyBasedEstimator()
ok, cameras = estimator.apply(features, p, None)
assert ok, "Homography estimation failed."
for cam in cameras:
    cam.R = cam.R.astype(np.float32)
adjuster = cv.detail_BundleAdjusterRay()
adjuster.setConfThresh(args.conf_thresh)
mask = np.zeros((3, 3), np.uint8)
mask[0, 0] = mask[0, 1] = mask[0, 2] = mask[1, 1] = mask[1, 2] = 1
adjuster.setRefinementMask(mask)
ok, cameras = adjuster.apply(features, p, cameras)
assert ok, "Camera parameters adjusting failed."

scale = float(np.median([cam.focal for cam in cameras]))
warper = cv.PyRotationWarper("plane", scale)
corners, warped, masks = [], [], []
for img, cam in zip(images, cameras):
    K = cam.K().astype(np.float32)
    corner, image = warper.warp(img, K, cam.R, cv.INTER_LINEAR, cv.BORDER_REFLECT)
    full = np.full(img.shape[:2], 255, np.uint8)
    _, covered = warper.warp(full, K, cam.R, cv.INTER_NEAREST, cv.BORDER_CONSTANT)
    corners.append(corner)
    warped.append(image)
    masks.append(covered)
roi = cv.detail.resultRoi(corners=corners, sizes=[img.shape[1::-1] for img in warped])
blender = cv.detail_MultiBandBlender()
blender.prepare(roi)
for corner, image, covered in zip(corners, warped, masks):
    blender.feed(cv.UMat(image.astype(np.int16)), covered, corner)
result, _ = blender.blend(None, None)
cv.imwrite(args.output, result)
print(json.dumps({"images": len(images), "inliers": inliers, "size": result.shape[1::-1]}))
