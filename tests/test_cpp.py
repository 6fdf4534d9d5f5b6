"""The C++ class of examples/cpp, compiled with what is at hand, has Python's keypoints."""

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import d2feat
from d2feat.model import bundled_folder
from tests.conftest import create, photograph

EXAMPLES = Path(__file__).parents[1] / "examples" / "cpp"
MODEL = bundled_folder() / "d2net.onnx"
LIBRARIES = "core", "imgproc", "imgcodecs", "features2d", "flann", "calib3d"


def include_folder() -> Path | None:
    """Where the C header of ONNX Runtime is, which its Python wheel lacks."""
    told = os.environ.get("ONNXRUNTIME_INCLUDE")
    usual = (
        Path("/usr/include/onnxruntime"),
        Path("/usr/local/include"),
        Path("/usr/local/include/onnxruntime"),
    )
    for folder in [Path(told)] if told else usual:
        if (folder / "onnxruntime_c_api.h").is_file():
            return folder
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main.cpp, compiled and linked with the library that the Python wheel carries."""
    header = include_folder()
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if shutil.which("g++") is None or not Path("/usr/include/opencv4").is_dir():
        pytest.skip("needs g++ and OpenCV's headers (Debian: libopencv-dev)")
    if header is None:
        pytest.skip("needs onnxruntime_c_api.h; ONNXRUNTIME_INCLUDE names its folder")
    if not libraries:
        pytest.skip("this flavour of ONNX Runtime carries no shared library")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(EXAMPLES / "main.cpp")]
    command += ["-isystem", "/usr/include/opencv4", "-isystem", str(header), "-o", str(folder / "main")]
    command += [str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}"]
    command += [f"-lopencv_{name}" for name in LIBRARIES]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert compiled.returncode == 0, compiled.stderr
    return folder / "main"


def test_keypoints_and_descriptors_are_those_of_python(program: Path, tmp_path: Path) -> None:
    wide = photograph("astronaut", (260, 208))
    left, right = np.ascontiguousarray(wide[20:148, 20:180]), np.ascontiguousarray(wide[30:158, 70:230])
    for name, image in (("left", left), ("right", right)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    arguments = [str(program), str(MODEL), str(tmp_path / "left.png"), str(tmp_path / "right.png")]
    features = tmp_path / "features.yml"
    ran = subprocess.run(
        [*arguments, str(features)], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-2]) > 30, ran.stdout

    expected, descriptors = create(2000, scales=d2feat.MULTISCALE).detectAndCompute(left, None)
    storage = cv2.FileStorage(str(features), cv2.FILE_STORAGE_READ)
    rows, found, computed = (storage.getNode(key).mat() for key in ("keypoints", "descriptors", "computed"))
    storage.release()
    wanted = [(*one.pt, one.size, one.angle, one.response, one.octave) for one in expected]
    np.testing.assert_allclose(rows.reshape(len(rows), -1), wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found, descriptors, atol=1e-4)
    np.testing.assert_allclose(computed, descriptors, atol=1e-4)


def test_errors_are_said_and_end_the_program(program: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    ran = subprocess.run(
        [str(program), str(tmp_path / "no.onnx"), "a.png", "b.png"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode != 0
    assert "ONNX Runtime" in ran.stderr
