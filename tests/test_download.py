"""`d2feat download` against files of exactly the official format, from a server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("pooch")

import d2feat
import export.graph
from d2feat.download import download
from d2feat.errors import InputError, ModelError
from d2feat.session import open_session
from export.checkpoint import Checkpoint

LAYERS = {
    0: (64, 3),
    2: (64, 64),
    5: (128, 64),
    7: (128, 128),
    10: (256, 128),
    12: (256, 256),
    14: (256, 256),
    17: (512, 256),
    19: (512, 512),
    21: (512, 512),
}
"""Channels out and in of the official state dict's convolutions (design: VGG16 to conv4_3)."""


def official_checkpoint(path: Path, seed: int, *, zipped: bool) -> Path:
    """Write what D2-Net's authors' training script writes, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (outputs, inputs) in LAYERS.items():
        key = f"dense_feature_extraction.model.{layer}"
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"{key}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        state[f"{key}.bias"] = 0.01 * torch.randn(outputs, generator=generator)
    content = {"epoch_idx": 10, "model": state, "train_loss_history": [0.5], "validation_loss_history": [0.6]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("D2FEAT_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetched_converted_and_used(cache: Path, site: Path, url: str) -> None:
    with pytest.raises(ModelError, match="d2feat download d2_tf"):
        d2feat.create(model="d2_tf")
    published = official_checkpoint(site / "d2_tf.pth", 0, zipped=True)
    done = download("d2_tf", base_url=url)
    assert done.fetched
    assert not done.known
    assert done.sha256 == hashlib.sha256(published.read_bytes()).hexdigest()
    assert done.model == cache / "d2_tf.onnx"
    names = {path.name for path in cache.iterdir()}
    assert names == {"d2_tf.pth", "d2_tf.pth.sha256", "d2_tf.onnx"}

    info = open_session("d2_tf").info
    assert (info.name, info.head, info.coordinates, info.channels) == ("d2_tf", "paper", "opencv", 512)
    assert info.weights_sha256 == done.sha256
    d2 = d2feat.create(model="d2_tf", scoreThreshold=0)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    features = d2.extract(image)
    assert len(features) > 0
    assert np.linalg.norm(features.descriptors, axis=1) == pytest.approx(1, abs=1e-4)

    # The server's file changes later: what was recorded is held against it, and nothing is replaced.
    before = done.model.read_bytes()
    done.checkpoint.unlink()
    official_checkpoint(site / "d2_tf.pth", 1, zipped=True)
    with pytest.raises(ModelError, match=f"(?s)not the file it was.*{done.sha256}"):
        download("d2_tf", base_url=url)
    assert not done.checkpoint.exists()
    assert done.model.read_bytes() == before


def test_put_there_by_hand_in_the_old_format(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    placed = official_checkpoint(cache / "d2_ots.pth", 2, zipped=False)
    converted = []

    def build_graph(checkpoint: Checkpoint, coordinates: str) -> onnx.ModelProto:
        converted.append((checkpoint, coordinates))
        return onnx.ModelProto(producer_name="a stand-in, as converting takes long")

    monkeypatch.setattr(export.graph, "build_graph", build_graph)
    done = download("d2_ots", "upstream", base_url="http://127.0.0.1:9")
    assert (done.fetched, done.known, done.checkpoint) == (False, False, placed)
    [(checkpoint, coordinates)] = converted
    assert coordinates == "upstream"
    assert checkpoint.metadata["name"] == "d2_ots"
    written = torch.load(placed, weights_only=True)["model"]
    assert all(torch.equal(value, written[key]) for key, value in checkpoint.net.state_dict().items())
    assert download("d2_ots", base_url="http://127.0.0.1:9").known


def test_a_page_instead_of_the_file_is_not_kept(cache: Path, site: Path, url: str) -> None:
    (site / "d2_tf.pth").write_text("<html>Sign in to the hotel's network</html>")
    with pytest.raises(ModelError, match=r"d2_tf\.pth cannot be used"):
        download("d2_tf", base_url=url)
    assert list(cache.iterdir()) == []


def test_a_wrong_file_put_there_by_hand_is_kept_and_named(cache: Path) -> None:
    cache.mkdir()
    placed = cache / "d2_tf.pth"
    torch.save({"model": {"layer.weight": torch.zeros(2, 2)}}, placed)
    with pytest.raises(ModelError, match="not a D2-Net checkpoint"):
        download("d2_tf")
    assert placed.exists()


def test_no_file_and_no_server(cache: Path, url: str) -> None:
    for base in (url, "http://127.0.0.1:9"):
        with pytest.raises(ModelError) as raised:
            download("d2_tf", base_url=base)
        assert f"{base}/d2_tf.pth" in str(raised.value)
        assert str(cache / "d2_tf.pth") in str(raised.value)
    assert not any(path.is_file() for path in cache.iterdir())


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="D2FEAT_CACHE"):
        download("d2_tf")


def test_unknown_names(cache: Path) -> None:
    with pytest.raises(InputError, match="d2_ots"):
        download("../../etc/passwd")
    with pytest.raises(InputError, match="upstream"):
        download("d2_tf", "matlab")
    assert not cache.exists()
