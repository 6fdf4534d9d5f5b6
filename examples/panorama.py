"""Stitch photographs of one turning camera with OpenCV's stitching pipeline and D2-Net's features.

``python examples/panorama.py -o panorama.jpg IMAGE IMAGE ...`` (OpenCV 5). `d2feat.to_image_features` is the
bridge; all that follows it is cv2.detail as it is.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

import d2feat

Image = np.ndarray


def find_cameras(images: Sequence[Image], confidence: float = 1.0) -> tuple[list[int], Sequence[Any]]:
    """Indices of the images that belong together, and their cameras (intrinsics and rotation)."""
    # With many more, images that match well get a confidence above 3, which cv2.detail takes for one image
    # given twice.
    detector = d2feat.create(nfeatures=500)
    features = [
        d2feat.to_image_features(*detector.detectAndCompute(image), image.shape[1::-1], index)
        for index, image in enumerate(images)
    ]
    matcher = cv2.detail.BestOf2NearestMatcher_create(False, 0.3)
    matches = matcher.apply2(features)
    kept = [int(index) for index in np.ravel(cv2.detail.leaveBiggestComponent(features, matches, confidence))]
    if len(kept) < 2:
        raise SystemExit("no two of the images overlap")
    if len(kept) < len(images):  # in C++ both lists are cut to these, in Python they are not
        features = [features[index] for index in kept]
        for place, one in enumerate(features):
            one.img_idx = place
        matches = matcher.apply2(features)
    matcher.collectGarbage()
    found, cameras = cv2.detail_HomographyBasedEstimator().apply(features, matches, None)
    if not found:
        raise SystemExit("no cameras explain the matches")
    for camera in cameras:
        camera.R = camera.R.astype(np.float32)
    adjuster = cv2.detail_BundleAdjusterRay()
    adjuster.setConfThresh(confidence)
    found, cameras = adjuster.apply(features, matches, cameras)
    if not found:
        raise SystemExit("the cameras could not be adjusted")
    rotations = cv2.detail.waveCorrect([camera.R for camera in cameras], cv2.detail.WAVE_CORRECT_HORIZ)
    for camera, rotation in zip(cameras, rotations, strict=True):
        camera.R = rotation
    return kept, cameras


def compose(images: Sequence[Image], cameras: Sequence[Any], surface: str = "spherical") -> Image:
    """The images on one surface around the cameras' centre, seams found and blended."""
    warper = cv2.PyRotationWarper(surface, float(np.median([camera.focal for camera in cameras])))
    corners, warped, masks = [], [], []
    for image, camera in zip(images, cameras, strict=True):
        K = camera.K().astype(np.float32)
        corner, pixels = warper.warp(image, K, camera.R, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
        full = np.full(image.shape[:2], 255, np.uint8)
        _, mask = warper.warp(full, K, camera.R, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
        corners.append(corner)
        warped.append(pixels)
        masks.append(mask)
    seams = cv2.detail_DpSeamFinder("COLOR")
    masks = seams.find([pixels.astype(np.float32) for pixels in warped], corners, masks)
    masks = [mask.get() if isinstance(mask, cv2.UMat) else mask for mask in masks]
    blender = cv2.detail_MultiBandBlender()
    blender.prepare(cv2.detail.resultRoi(corners=corners, sizes=[pixels.shape[1::-1] for pixels in warped]))
    for pixels, mask, corner in zip(warped, masks, corners, strict=True):
        blender.feed(cv2.UMat(pixels.astype(np.int16)), mask, corner)
    result, _ = blender.blend(None, None)
    return np.clip(result, 0, 255).astype(np.uint8)


def main() -> None:
    """Read the images, stitch, write."""
    parser = argparse.ArgumentParser(description="Stitch a panorama with D2-Net's features.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--output", default="panorama.jpg")
    parser.add_argument("--surface", default="spherical", help="spherical, cylindrical or plane")
    given = parser.parse_args()
    images = []
    for name in given.images:
        image = cv2.imread(name)
        if image is None:
            raise SystemExit(f"{name} is not an image that OpenCV can read")
        images.append(image)
    try:
        kept, cameras = find_cameras(images)
    except d2feat.D2FeatError as error:  # as of OpenCV 4
        raise SystemExit(str(error)) from None
    panorama = compose([images[index] for index in kept], cameras, given.surface)
    if not cv2.imwrite(given.output, panorama):
        raise SystemExit(f"cannot write {given.output}")
    size = f"{panorama.shape[1]} x {panorama.shape[0]}"
    print(f"stitched {len(kept)} of {len(images)} images to {given.output}, {size}")


if __name__ == "__main__":
    main()
