"""How exact are a reconstruction's cameras? ``python -m tests.programs.cameras``, two minutes.

Twelve views, 864 x 648, of the scene of `tests.sfm_scene`, whose cameras are known exactly, reconstructed of
2000 features each: adjusted by squares, as COLMAP does, as it is, and with refined observations. Medians over
the photos.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import d2feat
from d2feat.sfm import leave_one_out, mapping, methods
from d2feat.sfm.layout import MODEL_FOLDER, REFINED_FOLDER
from d2feat.sfm.reconstruct import reconstruct
from tests.sfm_scene import View, render, write_views

NFEATURES = 2000


def make_views() -> dict[str, View]:
    """From the left to the right, at three heights and four distances."""
    azimuths = np.linspace(18, 72, 12)
    return {
        f"{i:02}.png": render(azimuth, 1.3 + 0.25 * (i % 3), 4.2 + 0.25 * (5 * i % 4), larger=3)
        for i, azimuth in enumerate(azimuths)
    }


def true_model(views: dict[str, View]) -> Any:
    """The cameras as a `pycolmap.Reconstruction`."""
    model = pycolmap.Reconstruction()
    for number, (name, view) in enumerate(views.items(), 1):
        height, width = view.image.shape[:2]
        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE",
            width=width,
            height=height,
            params=[view.K[0, 0], width / 2, height / 2],
            camera_id=number,
        )
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=number, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(view.R), view.t))
    return model


def main() -> None:
    """Print the table as Markdown."""
    views = make_views()
    truth = true_model(views)
    extent = leave_one_out.camera_extent(truth, list(views))
    print("| | points | error of reprojection | rotation | position, of the greatest distance |")
    print("|---" * 5 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_views(folder / "photos", views)
        detector = d2feat.create(NFEATURES, scales=(1.0,))
        for method in (methods.d2net(detector), methods.sift(NFEATURES)):
            out = folder / method.name
            reconstruct(folder / "photos", out, method, refine=True)
            mapped = mapping.read_model(out / MODEL_FOLDER)
            squares = pycolmap.Reconstruction(mapped)
            pycolmap.bundle_adjustment(squares, pycolmap.BundleAdjustmentOptions(print_summary=False))
            models = {
                ", adjusted as COLMAP does": squares,
                "": mapped,
                ", `--refine`": mapping.read_model(out / REFINED_FOLDER),
            }
            for title, model in models.items():
                figures = mapping.figures(model, len(views))
                similarity = leave_one_out.aligned(model, truth)
                errors = [
                    leave_one_out.pose_error(
                        similarity.transform_camera_world(image.cam_from_world()),
                        truth.find_image_with_name(image.name).cam_from_world(),
                        extent,
                    )
                    for image in model.images.values()
                ]
                rotation, position = np.median(errors, axis=0)
                print(
                    f"| {method.name}{title} | {figures.points} | {figures.reprojection_error:.2f} px "
                    f"| {rotation:.3f}° | {100 * position:.4f} % |"
                )


if __name__ == "__main__":
    main()
