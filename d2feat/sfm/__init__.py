"""From photographs to cameras, on COLMAP: structure from motion, localisation, retrieval; the extra ``sfm``.

The folder reads in this order: `photos` (files, orientation, cameras), `methods` (D2-Net and COLMAP's SIFT as
functions of a photo), `retrieval` and `pairs` (which photos are matched), `stages` (extraction and matching,
resumable), `database` (COLMAP's, with verified pairs), `mapping` (the model and its figures), `tracks` (its
observations, refined), `localize` (cameras of further photos), `leave_one_out` (how exact that is),
`picture`, `reconstruct` (all of it in order), `cli`. `layout` names the files, `night` darkens photos,
`colmap` is pycolmap, or a clear error.
"""
