"""What importing d2feat costs, and what the package contains."""

import subprocess
import sys
import tomllib
from pathlib import Path

import d2feat
from d2feat.model import available_models, bundled_folder

ROOT = Path(__file__).parents[1]


def test_import_is_light() -> None:
    """Neither PyTorch nor plotting nor the runtime is imported before it is needed."""
    code = "import sys, d2feat; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"torch", "matplotlib", "onnx", "onnxruntime", "skimage", "typer", "rich", "pooch"}
    assert not heavy & set(result.stdout.split())


def test_every_bundled_model_has_a_card() -> None:
    bundled = [name for name, path in available_models().items() if path.parent == bundled_folder()]
    assert {"d2net", "d2net-int8", "d2net-lite", "d2net-lite-int8"} <= set(bundled)
    for name in bundled:
        card = (bundled_folder() / f"{name}.md").read_text()
        assert "Licence" in card, f"{name}.md must state the model's licence"


def test_the_lite_models_are_small() -> None:
    for name in ("d2net-lite", "d2net-lite-int8"):
        assert (bundled_folder() / f"{name}.onnx").stat().st_size < 4e6
        assert d2feat.create(model=name, provider="cpu").descriptorSize() == 128


def test_public_names_exist_and_are_documented() -> None:
    for name in d2feat.__all__:
        assert getattr(d2feat, name).__doc__, name


def test_version_has_one_source() -> None:
    if (ROOT / "pyproject.toml").is_file():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert "version" in project["project"]["dynamic"]
    assert d2feat.__version__.count(".") == 2
