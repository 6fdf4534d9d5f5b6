"""Checkpoints in, one verified graph out: formats, refusals, metadata, and agreement with the formulas."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from typer.testing import CliRunner

import d2feat
from d2feat.model import bundled_folder
from d2feat.session import open_session
from export.__main__ import _small, app, export_checkpoint
from export.checkpoint import CheckpointError, read_checkpoint
from export.graph import export_network
from export.head import d2_scores, winner_patches
from export.photographs import shipped_photographs
from export.quantize import _group_pixels, _upsample_channels_last
from export.trunk import HALF_INPUTS, MEAN_BGR, D2Net, _averaging, _fractions, _widened
from export.verify import PYRAMIDS, compare, verify_model
from export.winograd import FEWEST_CELLS, WINOGRAD
from tests.reference import fine_map, trunk


def official_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of exactly the official files' names and shapes: weights by He's rule, small biases."""
    torch.manual_seed(seed)
    state = D2Net().state_dict()
    for key, value in state.items():
        if key.endswith("weight"):
            torch.nn.init.kaiming_normal_(value)
        else:
            value.uniform_(-0.05, 0.05)
    return state


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "d2_tf.pth"
    torch.save({"model": official_state()}, path)
    return path


@pytest.fixture(scope="module")
def official_model(official: Path) -> Path:
    return export_checkpoint(official, official.with_suffix(".onnx"))


def test_a_fine_head_of_two_maps_makes_nothing_of_the_third(tmp_path: Path) -> None:
    """As they were up to version 3."""
    torch.manual_seed(0)
    net = D2Net((8, 8, 8, 8), fine=4, descriptor_relu=False)
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("fine.d.")}
    torch.save({"model": state, "d2feat": {"head": "fine", "descriptor_relu": False}}, tmp_path / "old.pth")
    image = 50 * torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        _, found = read_checkpoint(tmp_path / "old.pth").net(image)
        expected = fine_map(*trunk(image, state)[1:], state)
        _, other = net.eval()(image)
    torch.testing.assert_close(found[0, 0], expected)
    assert (other - found).abs().max() > 1e-3, "the third map counts where there is one"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old-style"])
def test_reads_both_formats_of_torch_save(tmp_path: Path, zipped: bool) -> None:
    import argparse

    content = {"model": official_state(), "args": argparse.Namespace(lr=1e-3), "epoch_idx": 3}
    torch.save(content, tmp_path / "d2_ots.pth", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "d2_ots.pth")
    assert checkpoint.metadata["name"] == "d2_ots"
    assert checkpoint.metadata["head"] == "paper"
    assert checkpoint.metadata["descriptor_relu"] == "true"
    assert checkpoint.net.fine is None


def corrupt(state: dict[str, torch.Tensor], how: str) -> object:
    key = "dense_feature_extraction.model.12.weight"
    if how == "missing tensor":
        del state[key]
    elif how == "unknown tensor":
        state["classifier.weight"] = torch.zeros(3)
    elif how == "shape":
        state[key] = torch.zeros(256, 256, 5, 5)
    elif how == "not finite":
        state[key][0, 0, 0, 0] = float("nan")
    elif how == "another network":
        return {"model": {"fc.weight": torch.zeros(3, 3)}}
    elif how == "no model":
        return {"state_dict": state}
    elif how == "half a fine head":
        state["fine.a.weight"] = torch.zeros(16, 64, 3, 3)
    return {"model": state}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing tensor", "model.12.weight is missing"),
        ("unknown tensor", "unknown tensor classifier.weight"),
        ("shape", r"model.12.weight has shape \(256, 256, 5, 5\)"),
        ("not finite", "not finite"),
        ("another network", "no convolution at dense_feature_extraction.model.0.weight"),
        ("no model", "no state dict under 'model'"),
        ("half a fine head", "fine.a.bias is missing"),
    ],
)
def test_names_what_is_wrong_with_a_checkpoint(tmp_path: Path, how: str, said: str) -> None:
    torch.save(corrupt(official_state(), how), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path / "x.pth")


def test_refuses_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("text.pth", "empty.pth"):
        with pytest.raises(CheckpointError, match="not a file of plain tensors"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent.pth"):
        read_checkpoint(tmp_path / "absent.pth")


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_executes_nothing_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": official_state(), "trap": Harmful()}, "trap.pth")
    with pytest.raises(CheckpointError, match="plain tensors"):
        read_checkpoint("trap.pth")
    assert not Path("executed").exists()


def test_an_exported_model_is_a_checkpoint_too(official: Path, official_model: Path, tmp_path: Path) -> None:
    """So that a shipped model can be trained further; half precision is all that is lost."""
    again = read_checkpoint(official_model)
    before = read_checkpoint(official).net.state_dict()
    assert again.metadata["descriptor_relu"] == "true"
    assert again.metadata["version"] == "1"
    newer = export_checkpoint(official_model, tmp_path / "newer.onnx", name="newer", version="7")
    assert read_checkpoint(newer).metadata["version"] == "7"
    assert read_checkpoint(export_checkpoint(newer, tmp_path / "again.onnx")).metadata["version"] == "7"
    assert again.metadata["weights_sha256"] == read_checkpoint(official).metadata["weights_sha256"]
    for key, value in again.net.state_dict().items():
        expected = before[key].half().float() if key.endswith("weight") else before[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0 if key.endswith("weight") else 5e-4)
    with pytest.raises(CheckpointError, match="single precision"):
        read_checkpoint(bundled_folder() / "d2net-int8.onnx")
    (tmp_path / "x.onnx").write_text("no model")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        read_checkpoint(tmp_path / "x.onnx")


def test_command_line_exports_and_refuses(official: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "model.onnx"
    arguments = ["--weights", str(official), "--out", str(out), "--coordinates", "upstream"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert (said["name"], said["coordinates"], said["scales"]) == ("d2_tf", "upstream", "1.0")
    (tmp_path / "x.pth").write_text("no")
    result = runner.invoke(app, ["--weights", str(tmp_path / "x.pth"), "--out", str(out)])
    assert result.exit_code == 1
    assert "x.pth" in result.output
    assert runner.invoke(app, []).exit_code != 0
    assert runner.invoke(app, [*arguments, "--contract", "nonsense"]).exit_code == 2


def test_metadata_says_what_the_model_is(official: Path, official_model: Path) -> None:
    import hashlib

    said = {entry.key: entry.value for entry in onnx.load(official_model).metadata_props}
    assert said["weights_sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert (said["head"], said["descriptor_relu"], said["channels"]) == ("paper", "true", "512")
    assert (said["mean"], said["coordinates"]) == ("103.939,116.779,123.68", "opencv")
    assert "unknown" in said["licence"]
    assert official_model.stat().st_size < 16e6, "weights are stored in half precision"


def test_official_format_is_used_like_any_model(official_model: Path) -> None:
    image = np.ascontiguousarray(shipped_photographs(("chelsea",))["chelsea"][:160, :200])
    keypoints, descriptors = d2feat.create(model=official_model).detectAndCompute(image)
    assert len(keypoints) == len(descriptors) > 50
    assert (descriptors >= 0).all(), "official descriptors are taken after a ReLU"
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("model", ["shipped", "official format"])
def test_graph_agrees_with_the_literal_formulas(model: str, official_model: Path) -> None:
    """In full, on five photographs at three sizes: ``python -m export verify onnx_models/d2net.onnx``."""
    path = bundled_folder() / "d2net.onnx" if model == "shipped" else official_model
    rows = list(verify_model(path, shipped_photographs(("chelsea", "rocket")), sizes=((240, 320),)))
    assert len(rows) == 6
    assert {row.scales for row in rows} == set(PYRAMIDS)
    for row in rows:
        assert row.keypoints > 50
        assert row.passed, row


def test_either_way_of_convolution_is_compared(tmp_path: Path) -> None:
    """`create` takes the one on processors, and the other elsewhere."""
    model = onnx.load(bundled_folder() / "d2net.onnx")
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    for tensor in body.initializer:
        if tensor.name == "winograd/to_answers":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 2, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    (row,) = verify_model(
        tmp_path / "wrong.onnx", shipped_photographs(("rocket",)), sizes=((120, 163),), pyramids=((1.0,),)
    )
    assert not row.passed


def test_without_the_tests_nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests.reference", None)
    result = CliRunner().invoke(app, ["verify", str(bundled_folder() / "d2net-lite.onnx")])
    assert result.exit_code == 1
    assert "only a checkout can verify" in " ".join(result.output.split())


def test_calibration_takes_small_photographs() -> None:
    """A camera's would fill the memory."""
    assert _small(np.zeros((3000, 4000, 3), np.uint8)).shape == (339, 453, 3)
    assert _small(np.zeros((320, 430, 3), np.uint8)).shape == (320, 430, 3)


def test_what_is_no_model_is_not_verified(tmp_path: Path) -> None:
    part = (bundled_folder() / "d2net-lite.onnx").read_bytes()[:9000]
    for name, content in (("text", b"# d2feat"), ("part", part)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"no ONNX model|not a model of ours"):
            list(verify_model(tmp_path / name))


def test_upstream_coordinates_agree_with_the_formulas_too(official: Path, tmp_path: Path) -> None:
    path = export_checkpoint(official, tmp_path / "upstream.onnx", "upstream")
    rows = list(verify_model(path, shipped_photographs(("rocket",)), sizes=((120, 163),)))
    assert all(row.passed for row in rows), rows


def test_a_fine_head_of_half_the_resolution_agrees_with_the_formulas(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = D2Net((8, 8, 8, 16), fine=4, fine_stride=2, descriptor_relu=False)
    torch.save({"model": net.state_dict()}, tmp_path / "half.pth")
    path = export_checkpoint(tmp_path / "half.pth", tmp_path / "half.onnx")
    rows = list(verify_model(path, shipped_photographs(("rocket",)), sizes=((123, 163),)))
    assert all(row.passed and row.keypoints > 50 for row in rows), rows


@pytest.mark.parametrize("fine", [0, 4], ids=["paper", "fine"])
@pytest.mark.parametrize("size", [(131, 164), (160, 128), (129, 163), (40, 47)])
def test_winograds_algorithm_is_the_same_convolution(
    fine: int, size: tuple[int, int], tmp_path: Path
) -> None:
    """At remainders of a tile, up to the border; maps of fewer cells than pay are convolved either way."""
    import onnxruntime

    torch.manual_seed(0)
    net = D2Net((4, 8, 256, 256), fine=fine, descriptor_relu=not fine)
    for value in net.parameters():
        if value.ndim == 4:
            torch.nn.init.kaiming_normal_(value)
    torch.save({"model": net.state_dict()}, tmp_path / "wide.pth")
    path = export_checkpoint(tmp_path / "wide.pth", tmp_path / "wide.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    height, width = size
    image = cv2.resize(shipped_photographs(("rocket",))["rocket"], (width, height))
    x, y = np.meshgrid(np.arange(0, width, 3), np.arange(0, height, 3))
    points = np.stack([x, y, np.ones_like(x)], axis=2).reshape(-1, 3).astype(np.float32)
    plain, other = (
        session.run(["point_descriptors"], {"image": image, "points": points, WINOGRAD: np.array(chosen)})[0]
        for chosen in (False, True)
    )
    np.testing.assert_allclose(other, plain, atol=2e-5)
    large = (height // 4 - 1) * (width // 4 - 1) >= FEWEST_CELLS
    assert np.array_equal(other, plain) != large, "or it was not computed otherwise"
    assert list(open_session(path, "cpu").given) == [WINOGRAD]


def test_narrow_networks_have_no_use_for_it() -> None:
    assert not open_session("d2net-lite", "cpu").given


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (40, 43)])
def test_the_grouped_first_layer_is_the_same_convolution(size: tuple[int, int], stride: int) -> None:
    """With weights that eight bits hold exactly, at every width, up to the border."""
    import onnxruntime

    torch.manual_seed(0)
    net = D2Net((8, 8, 8, 8), fine=4, fine_stride=stride, descriptor_relu=False).eval().requires_grad_(False)
    first = net.dense_feature_extraction.model[0]
    first.weight.copy_(torch.randint(-126, 127, first.weight.shape) / 1024)
    first.weight[:, 0, 0, 0] = 127 / 1024
    network = export_network(net)
    pixels = 100 * torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    plain, grouped = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"level_image": pixels.numpy()}
        )
        for model in (network, _upsample_channels_last(_group_pixels(network)))
    )
    for one, other in zip(plain, grouped, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize(
    ("fine", "stride"), [(0, 1), (4, 1), (4, 2)], ids=["paper", "fine", "fine of half the resolution"]
)
def test_eight_bits_take_any_width(fine: int, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = D2Net((8, 8, 8, 16), fine=fine, fine_stride=stride, descriptor_relu=not fine)
    torch.save({"model": net.state_dict()}, tmp_path / "narrow.pth")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, image in shipped_photographs().items():
        cv2.imwrite(str(photos / f"{name}.png"), image[:200, :301])
    exact = export_checkpoint(tmp_path / "narrow.pth", tmp_path / "narrow.onnx")
    eight = export_checkpoint(tmp_path / "narrow.pth", tmp_path / "narrow-int8.onnx", int8=photos)
    image = cv2.imread(str(photos / f"{name}.png"))
    points = cv2.KeyPoint.convert([(x, y) for x in range(20, 280, 40) for y in range(20, 180, 40)], size=32)
    for width in (300, 299, 298, 297):
        found = [
            d2feat.create(model=model, scales=(1,)).compute(image[:, :width], points)[1]
            for model in (exact, eight)
        ]
        assert (found[0] * found[1]).sum(1).mean() > 0.9


def test_eight_bits_need_photographs(tmp_path: Path) -> None:
    torch.save({"model": D2Net((8, 8, 8, 16), descriptor_relu=True).state_dict()}, tmp_path / "narrow.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"no photograph")
    arguments = ["--weights", str(tmp_path / "narrow.pth"), "--out", str(tmp_path / "x.onnx"), "--int8"]
    for photos in ("empty", "photo.jpg"):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / photos)])
        assert result.exit_code == 1, result.output
        assert f"error: no readable photograph under {tmp_path / photos}" in result.output


def test_comparison_notices_displaced_keypoints_and_descriptors() -> None:
    rng = np.random.default_rng(0)
    keypoints, scales = rng.uniform(0, 100, (50, 2)), np.ones(50)
    descriptors = rng.standard_normal((50, 8))
    expected = (keypoints, scales, descriptors)
    assert compare(expected, expected) == (1.0, 0.0)
    moved = keypoints.copy()
    moved[:5] += 0.02
    assert compare((moved, scales, descriptors), expected)[0] == pytest.approx(0.9)
    assert compare((keypoints, scales, descriptors + 0.01), expected)[1] == pytest.approx(0.01)
    assert compare((keypoints[:40], scales[:40], descriptors[:40]), expected)[0] < 0.995


def test_a_map_without_positive_values_scores_zero_not_nan() -> None:
    patches = winner_patches(torch.full((12, 8), -1.0), 3, 4)
    assert torch.equal(d2_scores(patches), torch.zeros(3, 4))


def test_winner_patches_are_the_winning_channels_neighbourhoods() -> None:
    torch.manual_seed(1)
    dense = torch.randn(6, 5, 7)
    patches = winner_patches(dense.permute(1, 2, 0).reshape(35, 6), 5, 7)
    padded = torch.nn.functional.pad(dense.relu(), (1, 1, 1, 1))
    for y in range(5):
        for x in range(7):
            winner = dense[:, y, x].argmax()
            assert torch.equal(patches[:, y, x].view(3, 3), padded[winner, y : y + 3, x : x + 3])


def test_a_halved_networks_layers_are_of_the_same_function() -> None:
    """In single precision, away from the border, whose zeros are another grey."""
    first, images = torch.nn.Conv2d(3, 4, 3, padding=1), torch.randint(0, 256, (1, 3, 9, 8)).float()
    levels = images - torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    whole = torch.nn.functional.pad(levels + _fractions(), (0, 0, 0, 0, 0, HALF_INPUTS - 3))
    assert torch.equal(whole.half().float(), whole.round()), "exact in half precision"
    inner = slice(1, -1)
    wide, narrow = _widened(first)(whole), first(levels)
    torch.testing.assert_close(wide[..., inner, inner], narrow[..., inner, inner], rtol=0, atol=2e-3)
    maps = torch.randn(1, 4, 6, 5)
    torch.testing.assert_close(_averaging(4)(maps), torch.nn.AvgPool2d(2, stride=1)(maps))
    net = D2Net((4, 4, 4, 4), fine=2)
    net.halve()
    net.halve()
    assert net.dense_feature_extraction.model[0].weight.shape == (4, HALF_INPUTS, 3, 3)
