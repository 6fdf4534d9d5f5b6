"""``python -m training.sfm PHOTOS --out DIR``: photographs of one place become a scene.

COLMAP's structure from motion with SIFT (Schoenberger and Frahm 2016) finds the cameras and the tracks:
points seen, and geometrically verified, in several photographs. Needs the extra `train` (pycolmap).
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from d2feat.images import digest
from export.photographs import is_photograph

FEWEST_VIEWS = 3
"""Photographs a track must be seen in: a third one confirms what two may agree on by accident."""


class ReconstructionError(RuntimeError):
    """The photographs could not be put together; the message says what to do."""


def reconstruct(photos: Path, out: Path, *, name: str = "", longest: int = 1024, threads: int = -1) -> Path:
    """Reconstruct a folder of photographs of one place; what is there already is not made again.

    Args:
        photos: folder of photographs, mostly overlapping ones.
        out: folder for any number of scenes; this one's photographs without lens distortion go to
            OUT/NAME/images, its cameras and tracks to OUT/scene_info/NAME.npz (read by `scenes`).
        name: of the scene, else that of the folder (or of the one above, where it is called "images").
        longest: longer side, px, of the photographs kept. threads: of COLMAP, -1 for all.

    Returns:
        The npz file.

    Raises:
        FileNotFoundError: there is no such folder.
        ReconstructionError: there is a scene of that name of other photographs, or no model of at least two
            photographs was found.
    """
    import pycolmap

    if not photos.is_dir():
        raise FileNotFoundError(f"no folder of photographs at {photos}")
    name = name or (photos.parent if photos.name == "images" else photos).resolve().name
    info, folder = out / "scene_info" / f"{name}.npz", out / name
    contents = sorted(digest(path) for path in photos.rglob("*") if is_photograph(path))
    if info.is_file():
        with np.load(info) as there:
            if there["photographs"].tolist() != contents:
                raise ReconstructionError(f"{info} is of other photographs: give this one another --name")
        return info
    folder.mkdir(parents=True, exist_ok=True)
    info.parent.mkdir(exist_ok=True)
    database = folder / "database.db"
    sparse = folder / "distorted"
    # Begun anew after an interruption: COLMAP refuses a half-filled database.
    database.unlink(missing_ok=True)
    sparse.mkdir(exist_ok=True)
    extraction = pycolmap.FeatureExtractionOptions(num_threads=threads, max_image_size=2 * longest)
    pycolmap.extract_features(database, photos, extraction_options=extraction, device=pycolmap.Device.cpu)
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads)
    pycolmap.match_exhaustive(database, matching_options=matching, device=pycolmap.Device.cpu)
    mapping = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=0)
    models = pycolmap.incremental_mapping(database, photos, sparse, options=mapping)
    if not models:
        raise ReconstructionError(f"no two photographs of {photos} could be put together: take more, closer")
    best = max(models, key=lambda number: models[number].num_reg_images())
    pycolmap.undistort_images(
        folder,
        sparse / str(best),
        photos,
        undistort_options=pycolmap.UndistortCameraOptions(max_image_size=longest),
        num_threads=threads,
    )
    scene: dict[str, Any] = scene_arrays(pycolmap.Reconstruction(folder / "sparse"), f"{name}/images")
    scene["photographs"] = np.array(contents)
    partial = info.with_name(f"{info.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **scene)
    partial.replace(info)
    return info


def scene_arrays(model: Any, images: str) -> dict[str, NDArray[Any]]:
    """A pycolmap reconstruction without distortion in the arrays that `scenes.read_scenes` reads.

    `images`: folder of its photographs, relative to that of the scenes. The keys are those of D2-Net's
    preprocessed MegaDepth, but that `tracks` (M x 4: image, point, x, y) and `points3D` (P x 3) take the
    place of depth maps. Pixels as in COLMAP, where the first one's centre is at 0.5.
    """
    chosen = sorted((model.image(number) for number in model.reg_image_ids()), key=lambda image: image.name)
    confirmed = [
        number
        for number in sorted(model.points3D)
        if len({element.image_id for element in model.points3D[number].track.elements}) >= FEWEST_VIEWS
    ]
    place = {number: row for row, number in enumerate(confirmed)}
    tracks = [
        (row, place[point.point3D_id], *point.xy)
        for row, image in enumerate(chosen)
        for point in image.get_observation_points2D()
        if point.point3D_id in place
    ]
    seen = np.zeros((len(chosen), len(place)), bool)
    table = np.array(tracks, np.float64).reshape(-1, 4)
    seen[table[:, 0].astype(int), table[:, 1].astype(int)] = True
    counts = seen.sum(1)
    shared = seen.astype(np.int64) @ seen.T
    poses = np.tile(np.eye(4), (len(chosen), 1, 1))
    for pose, image in zip(poses, chosen, strict=True):
        pose[:3] = image.cam_from_world().matrix()
    return {
        "image_paths": np.array([f"{images}/{image.name}" for image in chosen]),
        "intrinsics": np.stack([image.camera.calibration_matrix() for image in chosen]),
        "poses": poses,
        "overlap_matrix": shared / np.maximum(np.minimum.outer(counts, counts), 1),
        "points3D": np.array([model.points3D[number].xyz for number in confirmed]).reshape(-1, 3),
        "tracks": table,
    }


def main(
    photos: Annotated[Path, typer.Argument(help="Folder of photographs of one place.")],
    out: Annotated[Path, typer.Option(help="Folder of scenes, for `python -m training --scenes`.")],
    name: Annotated[str, typer.Option(help="Name of the scene, if not that of the folder.")] = "",
    longest: Annotated[int, typer.Option(help="Longer side of the photographs kept, px.")] = 1024,
    threads: Annotated[int, typer.Option(help="COLMAP's threads, -1 for all.")] = -1,
) -> None:
    """Make a scene to train on of photographs of one place, by structure from motion."""
    try:
        info = reconstruct(photos, out, name=name, longest=longest, threads=threads)
    except (FileNotFoundError, ReconstructionError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None
    with np.load(info) as scene:
        pictures, points = len(scene["image_paths"]), len(scene["points3D"])
        typer.echo(f"{info}: {pictures} photographs, {points} points, {len(scene['tracks'])} sightings")


if __name__ == "__main__":
    typer.run(main)
