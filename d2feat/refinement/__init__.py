"""Positions of matches to some hundredths of a pixel, by the pixels of both images.

A detector places a keypoint without a look at the other image, to a third of a pixel. Of a match both are
known: here its second point is moved to where the patch about it, under an affine warp and any gain and
offset of its brightness, is most like the patch about the first.

The folder reads in this order: `affinities` (how the warp begins: what the matches nearby agree on),
`patches` (of images, and how alike they are), `alignment` (one pass of least squares matching), `sharpness`
(the blur that one image has before the other), `refine` (all of it, and what callers pass).
"""

from .refine import refine, refine_points

__all__ = ["refine", "refine_points"]
