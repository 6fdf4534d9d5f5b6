"""The table of docs/migrating-from-sift.md: ``python -m tests.programs``.

Every program of this folder that has a figure to show is run unmodified, by Python itself and by
``python -m d2feat.legacy``, on photographs of scikit-image whose homography is known.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from d2feat.demo import load_pair, night_view
from d2feat.evaluation.metrics import corner_error
from tests.conftest import photograph

FOLDER = Path(__file__).parent


def run(
    program: str, *args: object, legacy: str | None = None, timeout: float = 1200
) -> list[dict[str, Any]]:
    """What a program printed as JSON; `legacy` are the options of ``python -m d2feat.legacy``."""
    runner = [] if legacy is None else ["-m", "d2feat.legacy", *legacy.split()]
    command = [sys.executable, *runner, str(FOLDER / program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=FOLDER.parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def write_pair(
    folder: Path, name: str, size: tuple[int, int] | None = None
) -> tuple[Path, Path, np.ndarray, tuple[int, int]]:
    """A photograph and the same from elsewhere at night, as files, with homography and size."""
    pair = load_pair(name) if size is None else night_view(name, photograph(name, size))
    assert pair.homography is not None
    paths = folder / f"{name}1.png", folder / f"{name}2.png"
    for path, image in zip(paths, (pair.image1, pair.image2), strict=True):
        cv2.imwrite(str(path), image)
    return *paths, pair.homography, pair.image1.shape[1::-1]


def write_panorama(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Three pictures of a camera that turns before scikit-image's rocket, and the photograph itself."""
    width, height, focal = 960, 640, 900.0
    wide = photograph("rocket", (width, height))
    size = 400, 380
    K = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])
    K_wide = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    paths = []
    for index, (yaw, pitch, roll) in enumerate([(-13, 3, 1), (-1, 2, -1), (12, 4, 0)]):
        turn = np.linalg.multi_dot(
            [cv2.Rodrigues(np.deg2rad(axis))[0] for axis in np.diag([pitch, yaw, roll]) * 1.0]
        )
        H = K @ turn.T @ np.linalg.inv(K_wide)
        paths.append(folder / f"rocket{index}.png")
        cv2.imwrite(str(paths[-1]), cv2.warpPerspective(wide, H, size, flags=cv2.INTER_CUBIC))
    return paths, wide


def main() -> None:
    """Print the table as Markdown."""
    rows: list[tuple[str, str, str | None, str, list[Any], str]] = []
    akaze = [] if hasattr(cv2, "AKAZE_create") else ["AKAZE"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = {photo: write_pair(folder, photo) for photo in ("astronaut", "coffee")}
        for photo, (one, two, *_) in pairs.items():
            rows += [
                ("tutorial.py", photo, "", "SIFT", [one, two], ""),
                ("find_object.py", photo, "", "SIFT", ["--feature=sift-flann", one, two], ""),
                ("find_object.py", photo, "", "SURF", ["--feature=surf", one, two], "none"),
                ("find_object.py", photo, "--replace orb", "ORB", ["--feature=orb-flann", one, two], ""),
                (
                    "binary_tutorial.py",
                    photo,
                    "--replace akaze",
                    "AKAZE",
                    ["AKAZE", one, two],
                    "".join(akaze),
                ),
                ("track_plane.py", photo, "--replace orb", "ORB", ["100,50,400,350", one, two], ""),
            ]
        one, two = pairs["coffee"][:2]
        rows.append(("tilted_views.py", "coffee", "", "SIFT", [one, two, 1], ""))
        print("| program | photograph | its own features | | | d2feat | | |\n" + "|---" * 8 + "|")
        print("| | | inliers / matches | corner error | time | inliers / matches | corner error | time |")
        for program, photo, options, own, args, absent in rows:
            *_, truth, size = pairs[photo]
            cells = []
            for legacy in (None, options):
                if legacy is None and absent:
                    cells += [f"{own}: not in this OpenCV", "", ""]
                    continue
                start = time.perf_counter()
                result = run(program, *args, legacy=legacy)[-1]
                seconds = time.perf_counter() - start
                error = corner_error(result["H"], truth, size)
                label = f"{own}: " if legacy is None else ""
                cells += [
                    f"{label}{result['inliers']} / {result['matches']}",
                    f"{error:.2f} px",
                    f"{seconds:.1f} s",
                ]
            print(f"| {program} | {photo} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
