"""The command line: what it prints, the pictures it writes, and one line instead of a traceback."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.table import Table
from typer.testing import CliRunner, Result

import d2feat
from d2feat import doctor
from d2feat.cli import _add_demo_row, app
from d2feat.compare import Comparison, Estimate
from d2feat.conversion import needed
from d2feat.images import read_image


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two overlapping parts of a photograph, 16 and 10 pixels apart."""
    data = pytest.importorskip("skimage.data")
    photograph = np.ascontiguousarray(data.astronaut()[..., ::-1])
    folder = tmp_path_factory.mktemp("photographs")
    paths = folder / "a.png", folder / "b.jpg"
    cv2.imwrite(str(paths[0]), photograph[:200, 100:340])
    cv2.imwrite(str(paths[1]), photograph[10:200, 116:340])
    return paths


def test_match_with_sift_beside(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = invoke("match", *photographs, "-o", out, "--vs", "sift", "--nfeatures", "500")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if "inliers" in line}
    assert set(rows) == {"D2-Net", "SIFT"}
    for row in rows.values():
        first, second, matches, homography, fundamental = map(int, re.findall(r"\d+(?= |$)", row)[:5])
        assert 50 < matches <= min(first, second) <= max(first, second) <= 500
        assert 0.7 * matches < homography <= matches
        assert 0.7 * matches < fundamental <= matches
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 1600
    assert picture.shape[0] > 2 * 500


def test_match_alone_and_at_several_scales(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    out, small = tmp_path / "out.jpg", tmp_path / "small.png"
    cv2.imwrite(str(small), cv2.imread(str(photographs[0]))[:120, :150])
    result = invoke(
        "match", small, small, "--out", out, "--multiscale", "--provider", "cpu", "--nfeatures", "99"
    )
    assert result.exit_code == 0, result.output
    assert "99 + 99" in result.output
    assert "SIFT" not in result.output
    assert 400 < cv2.imread(str(out)).shape[0] < 1000


def test_the_demo_is_accurate(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    out = tmp_path / "demo.png"
    result = invoke("demo", "-o", out, "--photo", "astronaut")
    assert result.exit_code == 0, result.output
    printed = re.search(r"astronaut +D2-Net +(\d+) \+ (\d+) +(\d+) +(\d+) +([\d.]+) px", result.output)
    assert printed, result.output
    assert float(printed[5]) < 1
    assert int(printed[4]) > 300
    assert re.search(r"astronaut +SIFT", result.output)
    height, width = cv2.imread(str(out)).shape[:2]
    assert width == 1600
    assert 1000 < height < 2000


def test_the_demo_without_its_photographs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert_one_line_error(invoke("demo", "-o", tmp_path / "demo.png"), "pip install 'd2feat[demo]'")
    assert_one_line_error(invoke("demo", "--photo", "mona-lisa"), "mona-lisa", "astronaut")


def test_unreadable_images(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    there, _ = photographs
    text = tmp_path / "text.png"
    text.write_text("no pixels")
    assert_one_line_error(invoke("match", tmp_path / "none.png", there), "none.png", "no image file")
    assert_one_line_error(invoke("match", there, text), "text.png", "not an image")
    assert_one_line_error(invoke("match", tmp_path, there), str(tmp_path), "folder")


def test_of_a_file_that_is_cut_off_what_there_is_is_read(
    photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole.jpg", tmp_path / "part.jpg"
    cv2.imwrite(str(whole), cv2.imread(str(photographs[0])))
    content = whole.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    if cv2.imdecode(np.fromfile(part, np.uint8), cv2.IMREAD_COLOR) is not None:
        pytest.skip("this OpenCV invents what is missing (4.8 does)")
    expected = cv2.imread(str(part))
    assert expected is not None
    np.testing.assert_array_equal(read_image(part), expected)


def test_a_degenerate_homography_is_none_found() -> None:
    table, points, none = Table(*"1234567"), np.zeros((4, 2), np.float32), np.zeros(4, bool)
    estimate = Estimate(np.zeros((3, 3)), none)
    _add_demo_row(table, "cat", Comparison("SIFT", (9, 9), points, points, estimate, estimate, np.inf, 1, 1))
    assert list(table.columns[5].cells) == ["none found"]


def test_what_cannot_be_done_is_said_before_the_work(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    assert_one_line_error(invoke("match", *photographs, "-o", tmp_path / "no" / "out.png"), "no folder")
    assert_one_line_error(invoke("match", *photographs, "-o", tmp_path / "out.docx"), "out.docx")
    out = tmp_path / "out.png"
    assert_one_line_error(
        invoke("match", *photographs, "-o", out, "--model", "d2_tf"), "d2feat download d2_tf"
    )
    assert_one_line_error(invoke("match", *photographs, "-o", out, "--provider", "abacus"), "abacus")
    assert invoke("match", *photographs, "--vs", "surf").exit_code == 2


def test_version_and_help() -> None:
    assert f"d2feat {d2feat.__version__}" in invoke("--version").output
    listed = invoke("--help").output
    assert all(command in listed for command in ("match", "demo", "doctor", "models", "download", "export"))


def test_export_is_a_command(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    assert "--coordinates" in invoke("export", "--help").output
    out = tmp_path / "mine.onnx"
    weights = str(d2feat.available_models()["d2net-lite"])
    result = invoke("export", "--weights", weights, "--out", str(out), "--name", "mine", "--version", "7")
    assert result.exit_code == 0, result.output
    assert repr(d2feat.create(model=out, provider="cpu")).startswith("D2Feature(nfeatures=0")
    assert "'mine' 7" in repr(d2feat.create(model=out, provider="cpu"))
    assert_one_line_error(invoke("export", "--weights", "none.pth", "--out", str(out)), "none.pth")


def test_export_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2feat.cli.needed_export", lambda _: needed("no_such_module"))
    assert_one_line_error(invoke("export", "--help"), "pip install 'd2feat[export]'")


def test_models_lists_what_there_is_and_what_can_be_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    result = invoke("models")
    assert result.exit_code == 0, result.output
    assert re.search(r"d2net(-int8)? \(default here\): version .* 512 channels, opencv coord", result.output)
    assert "d2feat download d2_tf" in result.output
    assert "broken.onnx is not a model" in result.output


def test_download_without_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert_one_line_error(invoke("download", "d2_tf"), "pooch", "pip install 'd2feat[export]'")
    assert_one_line_error(invoke("download", "d3_tf"), "d3_tf", "d2_tf, d2_ots, d2_tf_no_phototourism")


def test_doctor_reports_where_the_model_runs() -> None:
    result = invoke("doctor")
    assert "provider: " in result.output
    assert cv2.__version__ in result.output
    assert "threads d2feat uses: " in result.output
    assert "failed" not in result.output


def test_doctor_sees_two_flavours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "opencv-python", "opencv-contrib-python", "onnxruntime", "onnxruntime-gpu"
    versions = dict.fromkeys(names, "1.0")

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = [problem.what for problem in doctor.problems()]
    assert any("opencv-python and opencv-contrib-python" in what for what in found)
    assert any("onnxruntime and onnxruntime-gpu" in what for what in found)
    assert invoke("doctor").exit_code == 1


def test_doctor_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    for name in ("import_runtime", "open_session", "usable_processors", "find_library", "_distributions"):
        with monkeypatch.context() as patch:
            patch.setattr(doctor, name, broken)
            report = doctor.examine()
        values = [value for section in report.sections for _, value in section.facts]
        values += [problem.remedy for problem in report.problems]
        assert any("broken on purpose" in value for value in values), name


def test_doctor_on_a_missing_model() -> None:
    result = invoke("doctor", "--model", "none.onnx")
    assert result.exit_code == 1
    assert "none.onnx" in result.output


def test_doctor_finds_libraries_in_nvidias_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(library) in doctor.find_library("cudnn")


def test_as_a_module_it_prints_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "d2feat", "match", str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(d2feat.__file__).parents[1])
    assert done.returncode == 1
    assert done.stderr.startswith("error: no image file")
    assert done.stderr.count("\n") == 1
