"""Frames of one size, a batch at a time: the features of `create`, any number of images, a GPU's options."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import d2feat
from d2feat import conversion
from d2feat import runtime as loading
from d2feat.frames import runs_on_gpu
from d2feat.model import bundled_folder
from tests.conftest import assert_same_features, create, photograph

torch = pytest.importorskip("torch", reason="the export extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")

from typer.testing import CliRunner

from export.__main__ import app, export_checkpoint
from export.checkpoint import read_checkpoint
from export.fixed import FixedFeatures, fixed_features
from export.graph import save_model
from export.trunk import D2Net, preprocess

MODEL = "d2net-lite"
SIZE = (110, 86)
"""No whole number of cells: frames need not be."""

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2FEAT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def frames(cache: Path) -> d2feat.FrameExtractor:
    return d2feat.create_frames(SIZE, 60, 2, MODEL, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    even = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    sparse = photograph("camera", SIZE)
    sparse[:, 60:] = 90
    return [photograph("astronaut", SIZE), sparse, even, photograph("coffee", SIZE)]


def test_every_frame_has_the_features_of_create(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    ours = create(60, model=MODEL)
    for count in (1, 2, 3, 4):  # part of a batch, a batch, and more
        found = frames.extract(images[:count])
        assert len(found) == count
        for one, image in zip(found, images, strict=False):
            assert_same_features(one, ours.extract(image), position=1e-3, descriptor=1e-2)
    as_many, fewer, none, _ = map(len, found)
    assert (as_many, none) == (60, 0)
    assert 0 < fewer < 60
    assert frames.extract([]) == []
    assert (frames.size, frames.batch, frames.nfeatures, frames.provider) == (SIZE, 2, 60, CPU)


def test_what_was_found_stays_when_the_next_frames_come(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    first = frames.extract(images[:1])[0]
    kept = first.keypoints.copy(), first.descriptors.copy()
    frames.extract(images[1:])
    np.testing.assert_array_equal(first.keypoints, kept[0])
    np.testing.assert_array_equal(first.descriptors, kept[1])


def test_a_frame_that_cannot_be_used_is_named_and_the_others_come(
    frames: d2feat.FrameExtractor, images: list[np.ndarray], tmp_path: Path
) -> None:
    missing = tmp_path / "missing.png"
    found = list(frames.stream([images[0], images[1][:50], None, missing, images[3]]))
    assert [one.index for one in found] == list(range(5))
    assert [one.error is None for one in found] == [True, False, False, False, True]
    assert_same_features(found[4].features, frames.extract([images[3]])[0])
    for one, said in zip(
        found[1:4], ("image 1: the image is 110 x 50, and frames", "image 2: ", "missing.png"), strict=True
    ):
        assert isinstance(one.error, d2feat.InputError)
        assert said in str(one.error)
    with pytest.raises(d2feat.InputError, match="110 x 50"):
        frames.extract([images[0], images[1][:50]])
    with pytest.raises(d2feat.InputError, match="110 x 50") as raised:
        frames.extract([images[1][:50], *images, *images])
    decoding = [thread for thread in threading.enumerate() if thread.name.startswith("d2feat-decode")]
    for thread in decoding:
        thread.join(30)
    assert not any(thread.is_alive() for thread in decoding), f"{raised} keeps them"


def test_threads_share_an_extractor(frames: d2feat.FrameExtractor, images: list[np.ndarray]) -> None:
    alone = [frames.extract([image])[0] for image in images]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for one, expected in zip(
                threads.map(lambda image: frames.extract([image])[0], images), alone, strict=True
            ):
                assert_same_features(one, expected)


def test_what_came_before_an_error_of_the_source_is_owed(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    def camera() -> Iterator[np.ndarray]:
        yield from images[:3]
        raise ConnectionError("unplugged")

    stream = frames.stream(camera())
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConnectionError):
        next(stream)


def test_converts_once(frames: d2feat.FrameExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "needed_export", None)
    again = d2feat.create_frames(SIZE, 60, 2, MODEL, provider="cpu", threads=1)
    assert again.size == frames.size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": (20, 500)}, "32 x 32 pixels at least, not 20 x 500"),
        ({"size": "640x480"}, r"pair \(width, height\), not '640x480'"),
        ({"size": (float("inf"), 86)}, "width and height must be a whole number"),
        ({"size": (110.9, 86)}, "width and height must be a whole number"),
        ({"batch": 10**8}, "more than the 268435456 pixels"),
        ({"batch": 0}, "at least one image"),
        ({"nfeatures": 100_000}, "keypoints, not 100000"),
        ({"model": "d2net-int8"}, "single precision"),
    ],
)
def test_refuses_what_no_model_can_be_made_of(cache: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(d2feat.InputError, match=said):
        d2feat.create_frames(**{"size": (64, 48), "nfeatures": 9, "model": MODEL, **arguments})


def test_models_of_the_two_kinds_are_not_taken_for_each_other(
    frames: d2feat.FrameExtractor, cache: Path
) -> None:
    with pytest.raises(d2feat.ModelError, match="no model for frames; make one"):
        d2feat.FrameExtractor(MODEL)
    path = next(cache.glob("frames-*/*.onnx"))
    with pytest.raises(d2feat.ModelError, match=r"d2feat\.FrameExtractor takes it"):
        d2feat.create(model=path)


def write_frames(
    path: Path, outputs: dict[str, np.ndarray], images: tuple[Any, ...] = (1, 32, 32, 3)
) -> Path:
    """A file that says it is a model for frames, and always answers so."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "frames",
        [helper.make_tensor_value_info("images", kinds.UINT8, images)],
        [helper.make_tensor_value_info(name, kinds.FLOAT, value.shape) for name, value in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"contract": "frames"})
    return save_model(model, path)


def answers(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of a batch of one image with four keypoints, with changes."""
    usual = {"keypoints": np.ones((1, 4, 2)), "scores": np.ones((1, 4)), "descriptors_0": np.ones((4, 8))}
    return {name: value.astype(np.float32) for name, value in {**usual, **changes}.items()}


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({"descriptors_0": np.ones((2, 8))}, (1, 32, 32, 3)),
        ({"scores": np.ones(4)}, (1, 32, 32, 3)),
        ({"keypoints": np.ones((1, 4, 3))}, (1, 32, 32, 3)),
        ({}, (1, 32, "width", 3)),
        ({}, (32, 32, 3)),
        ({}, (1, 32, 32, 1)),
        ({}, (2, 32, 32, 3)),
        ({"keypoints": np.ones((2, 4, 2)), "scores": np.ones((2, 4))}, (2, 32, 32, 3)),
    ],
)
def test_models_of_other_shapes_are_refused(
    changes: dict[str, np.ndarray], images: tuple[Any, ...], tmp_path: Path
) -> None:
    path = write_frames(tmp_path / "frames.onnx", answers(**changes), images)
    with pytest.raises(d2feat.ModelError, match="no model for frames"):
        d2feat.FrameExtractor(path, provider="cpu")


@pytest.mark.parametrize("name", ["keypoints", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_keypoints_that_are_no_numbers_are_an_error(name: str, value: float, tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    good = d2feat.FrameExtractor(write_frames(tmp_path / "good.onnx", answers()), provider="cpu")
    assert len(good.extract([image])[0]) == 4
    bad = answers()
    bad[name].flat[0] = value
    damaged = d2feat.FrameExtractor(write_frames(tmp_path / "bad.onnx", bad), provider="cpu")
    with pytest.raises(d2feat.ModelError, match="no numbers"):
        damaged.extract([image])


def test_images_may_come_from_a_generator_or_an_array_and_a_stream_be_closed(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    listed = frames.extract(images)
    for one, other in zip(frames.extract(iter(images)), listed, strict=True):
        assert_same_features(one, other)
    for one, other in zip(frames.extract(np.stack([images[0], images[3]])), listed[::3], strict=True):
        assert_same_features(one, other)
    stream = frames.stream(images)
    next(stream)
    stream.close()
    assert list(stream) == []


def test_an_image_without_features_holds_no_memory(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    (none,) = frames.extract([images[2]])
    assert len(none) == 0
    for array in (none.keypoints, none.descriptors):
        while array.base is not None:
            array = array.base
        assert array.nbytes < 1000


def test_the_early_maps_are_read_before_the_trunk_goes_on(
    frames: d2feat.FrameExtractor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the largest, and would be kept until it is done: docs/speed.md has what that costs."""
    made = onnxruntime.SessionOptions

    def profiled() -> Any:
        options = made()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)

    def events(path: Path, feeds: dict[str, np.ndarray]) -> list[tuple[str, int]]:
        """Kind and channels of what was computed, in order."""
        session = loading.start(path, "cpu", 1, frames="images" in feeds).session
        session.run(None, feeds)
        found = []
        for event in json.loads(Path(session.end_profiling()).read_text()):
            if event["name"].endswith("_kernel_time"):
                shapes = event["args"]["output_type_shape"]
                shape = next(iter(shapes[0].values())) if shapes else []
                found.append((event["args"]["op_name"], shape[1] if len(shape) == 4 else 0))
        return found

    made_for_frames = next(cache.glob("frames-*/110x86-60-2-single.onnx"))
    kinds = [kind for kind, _ in events(made_for_frames, {"images": np.zeros((2, 86, 110, 3), np.uint8)})]
    # The pixel shuffle is the fine head's last, the largest channel is that of the dense map.
    assert kinds.index("DepthToSpace") < kinds.index("ArgMax")
    found = events(bundled_folder() / "d2net.onnx", {"image": np.zeros((86, 110, 3), np.uint8)})
    channels = [count for kind, count in found if "Conv" in kind]
    assert channels.index(16) == 2, "the largest map, the trunk's second, is read at once"
    assert channels.count(16) == 4
    assert channels[-3:] == [512] * 3


def test_what_other_code_converted_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update that makes them otherwise, files in the cache are not what is expected."""
    builds: list[Any] = []

    def build(checkpoint: Any) -> onnx.ModelProto:
        builds.append(checkpoint)
        return onnx.ModelProto()

    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "_export_folder", lambda: tmp_path)
    paths = []
    for code in ("one", "one", "another"):
        (tmp_path / "graph.py").write_text(code)
        paths.append(conversion.converted("frames", MODEL, "name", build))
    assert paths[0] == paths[1] != paths[2]
    assert len(builds) == 2


def test_command_line_writes_frames_and_half_precision(
    tmp_path: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.fixed.TOGETHER", 500)  # 616 cells: as if the frames were large
    weights = str(d2feat.available_models()[MODEL])
    out = tmp_path / "frames.onnx"
    command = ["--weights", weights, "--out", str(out), "--target", "frames", "--half"]
    result = CliRunner().invoke(app, [*command, "--size", "110x86", "--keypoints", "60", "--batch", "1"])
    assert result.exit_code == 0, result.output
    found = d2feat.FrameExtractor(out, provider="cpu").extract(images[:1])[0]
    # ONNX Runtime's CPU computes half precision as single; the dense map is rounded.
    single = create(60, model=MODEL).extract(images[0])
    assert_same_features(found, single, position=0.01, descriptor=1e-2, score=5e-3)
    assert out.stat().st_size < 2.5e6
    for wrong in (["--int8", str(tmp_path)], ["--coordinates", "upstream"]):
        assert CliRunner().invoke(app, [*command, *wrong]).exit_code == 2
    result = CliRunner().invoke(
        app, ["--weights", weights, "--out", str(out), "--target", "opencv", "--half"]
    )
    assert result.exit_code == 2


def test_a_model_in_half_precision_does_all_that_the_others_do(
    tmp_path: Path, images: list[np.ndarray]
) -> None:
    path = export_checkpoint(d2feat.available_models()[MODEL], tmp_path / "half.onnx", half=True)
    assert path.stat().st_size < 1.2e6
    half, single = (
        create(200, scales=d2feat.MULTISCALE, model=model).extract(images[0]) for model in (path, MODEL)
    )
    # The dense map is rounded, so what scores nearly alike may change places.
    distance = np.linalg.norm(half.keypoints[:, None] - single.keypoints, axis=2)
    assert len(half) == len(single)
    near = distance.min(1) < 0.05
    assert near.mean() > 0.95
    cosines = np.sum(half.descriptors * single.descriptors[distance.argmin(1)], axis=1)
    assert cosines[near].min() > 0.999


def test_more_keypoints_may_be_asked_for_than_there_are_places(images: list[np.ndarray]) -> None:
    net = read_checkpoint(d2feat.available_models()[MODEL]).net
    levels = preprocess(torch.from_numpy(np.stack([images[0], images[3]])))
    with torch.no_grad():
        dense, fine = net(levels)
        few, many = (fixed_features(dense, fine, levels, count) for count in (60, 1000))
    torch.testing.assert_close(many.pixels[:, :20], few.pixels[:, :20])
    assert many.scores.shape == (2, 1000)
    assert (many.scores[:, -100:] == 0).all()
    assert (many.pixels[:, -1] == many.pixels[:, -100]).all()


def test_positions_survive_half_precision(images: list[np.ndarray]) -> None:
    """PyTorch's arithmetic in half precision, which ONNX Runtime has on GPUs only."""
    single, half = (read_checkpoint(d2feat.available_models()[MODEL]).net for _ in range(2))
    half.halve()

    def features(net: D2Net, level: torch.Tensor) -> FixedFeatures:
        dense, fine = net(level)
        return fixed_features(dense, fine, level, 40)

    with torch.no_grad():
        for image in (images[0], images[3]):
            level = preprocess(torch.from_numpy(image))
            one, two = (features(net, level) for net in (single, half))
            distance, match = torch.cdist(one.pixels[0], two.pixels[0]).min(1)
            assert (distance < 0.25).float().mean() >= 0.95
            near = distance < 0.25
            assert (one.descriptors[0] * two.descriptors[0][match]).sum(1)[near].min() > 0.9999


# ---- what cannot run here: a stand-in for a GPU's runtime, on the processor


class Runtime(SimpleNamespace):
    """ONNX Runtime as if CUDA were there, but what it `refuses`.

    "" for nothing; "capture" when the session is made, "capturing" in the first run; "load", without a word;
    "memory" for a session, "second" for one beside the first, "arrays" for those of a second batch.
    """

    def __init__(self, refuses: str = "") -> None:
        kept = ("SessionOptions", "RunOptions", "__version__")
        super().__init__(**{name: getattr(onnxruntime, name) for name in kept})
        self.refuses, self.asked, self.devices = refuses, [], []
        self.__file__ = "/nowhere/onnxruntime.py"
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.value)

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def value(self, shape: Any, kind: Any, device: str, number: int) -> Any:
        self.devices.append((device, number))
        if self.refuses == "arrays" and len(self.asked) == 2:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 983040000")
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", number)

    def InferenceSession(self, content: bytes, options: Any, providers: Any, **given: Any) -> Any:
        entries = dict((entry, {}) if isinstance(entry, str) else entry for entry in providers)
        self.asked.append((entries, given["enable_fallback"]))
        if self.refuses == "capture" and entries[CUDA].get("enable_cuda_graph"):
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        full = self.refuses == "memory" or (self.refuses == "second" and len(self.asked) > 1)
        if full and CUDA in entries:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);")
        session = onnxruntime.InferenceSession(content, options, providers=[CPU], **given)
        if self.refuses == "capturing" and entries[CUDA].get("enable_cuda_graph"):

            def run(*_: Any) -> None:
                raise RuntimeError("operation not permitted when stream is capturing")

            session.run_with_iobinding = run
        if self.refuses != "load":
            session.get_providers = lambda: list(entries)
            session.get_provider_options = lambda: entries
        return session


@pytest.fixture
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    stand_in = Runtime(getattr(request, "param", ""))
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    return stand_in


def test_a_gpu_captures_the_run_in_half_precision_and_keeps_the_arrays_on_the_device(
    cache: Path, runtime: Runtime, images: list[np.ndarray]
) -> None:
    frames = d2feat.create_frames(SIZE, 60, 2, MODEL, provider="cuda")
    assert frames.provider == CUDA
    assert set(runtime.devices) == {("cuda", 0)}
    assert len(runtime.asked) == 2, "one batch is computed while another goes up or comes down"
    for providers, fallback in runtime.asked:
        for option in ("enable_cuda_graph", "prefer_nhwc", "fuse_conv_bias"):
            assert providers[CUDA][option] is True
        assert providers[CUDA]["cudnn_conv_algo_search"] == "HEURISTIC"
        assert fallback == 0, "or the runtime would go to the CPU where it cannot capture"
    assert list(cache.glob("frames-*/110x86-60-2-half.onnx"))
    ours = create(60, model=MODEL)
    for one, image in zip(frames.extract(5 * images), 5 * images, strict=True):
        # Where two channels of a cell are alike, rounding to half precision may make the other one win, and
        # of two keypoints that score alike, too.
        single = ours.extract(image)
        order = [np.linalg.norm(single.keypoints - point, axis=1).argmin() for point in one.keypoints]
        assert len(set(order)) == len(single)
        same = single[np.array(order, np.int64)]
        assert_same_features(one, same, position=0.1, descriptor=1e-2, score=0.05)


def test_arrays_lie_on_the_gpu_that_was_asked_for(cache: Path, runtime: Runtime) -> None:
    """What lay on another would be copied when it is bound, and never again."""
    d2feat.create_frames(SIZE, 60, 2, MODEL, provider=[(CUDA, {"device_id": 1}), CPU])
    assert set(runtime.devices) == {("cuda", 1)}


def test_memory_of_one_batch_is_kept_for_the_next(
    cache: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *option: said.append(option))
    monkeypatch.setattr("d2feat.frames.ctypes.CDLL", lambda _: library)
    d2feat.create_frames(SIZE, 60, 1, MODEL, provider="cuda")
    assert said == [(-1, 1 << 28), (-3, 1 << 25)]
    monkeypatch.setattr("d2feat.frames.ctypes.CDLL", lambda _: SimpleNamespace())
    d2feat.create_frames(SIZE, 60, 1, MODEL, provider="cuda")


def test_one_image_at_a_time_needs_one_session(cache: Path, runtime: Runtime) -> None:
    d2feat.create_frames(SIZE, 60, 1, MODEL, provider="cuda")
    assert len(runtime.asked) == 1


def test_a_session_is_used_by_one_thread_only(
    frames: d2feat.FrameExtractor, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph is captured for the thread that runs it."""
    lane = frames._free.get()
    frames._free.put(lane)
    seen, session = set(), lane._session

    def run(*arguments: Any) -> None:
        seen.add(threading.get_ident())
        session.run_with_iobinding(*arguments)

    monkeypatch.setattr(lane, "_session", SimpleNamespace(run_with_iobinding=run))
    for _ in range(3):
        frames.extract(images)
    assert len(seen) == 1


@pytest.mark.parametrize("runtime", ["load"], indirect=True)
def test_where_the_gpu_does_not_load_the_processor_computes_in_single_precision(
    cache: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    frames = d2feat.create_frames(SIZE, 50, 2, MODEL)
    assert frames.provider == CPU
    assert "running on the CPU: CUDAExecutionProvider did not load" in caplog.text
    assert {path.stem for path in cache.glob("frames-*/110x86-50-2-*.onnx")} == {
        "110x86-50-2-half",
        "110x86-50-2-single",
    }
    with pytest.raises(d2feat.ProviderError, match="did not load"):
        d2feat.create_frames(SIZE, 50, 2, MODEL, provider="cuda")


@pytest.mark.parametrize("runtime", ["memory"], indirect=True)
def test_why_the_gpu_did_not_load_is_said(
    cache: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(d2feat.ProviderError, match="did not load: CUDA failure 2: out of memory"):
        d2feat.create_frames(SIZE, 50, 2, MODEL, provider="cuda")
    assert d2feat.create_frames(SIZE, 50, 2, MODEL).provider == CPU
    assert "running on the CPU: CUDAExecutionProvider did not load: CUDA failure 2" in caplog.text
    assert not any(fallback for _, fallback in runtime.asked), "it would say so on standard output only"


@pytest.mark.parametrize("provider", ["auto", "cuda"])
@pytest.mark.parametrize("runtime", ["arrays", "second"], indirect=True)
def test_one_lane_does_where_there_is_no_memory_for_two(
    cache: Path, runtime: Runtime, provider: str, images: list[np.ndarray]
) -> None:
    frames = d2feat.create_frames(SIZE, 60, 2, MODEL, provider=provider, half=False)
    assert frames.provider == CUDA
    assert frames._lanes == 1
    assert len(frames.extract(images)) == len(images)


@pytest.mark.parametrize("runtime", ["capture", "capturing"], indirect=True)
def test_a_gpu_that_cannot_capture_runs_without(
    cache: Path, runtime: Runtime, images: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    frames = d2feat.create_frames(SIZE, 60, 1, MODEL, provider="cuda", half=False)
    assert [providers[CUDA].get("enable_cuda_graph") for providers, _ in runtime.asked] == [True, None]
    assert "without a CUDA graph" in caplog.text
    assert len(frames.extract(images)) == len(images)


def test_tensorrt_captures_and_the_callers_options_win(cache: Path, runtime: Runtime) -> None:
    d2feat.create_frames(SIZE, 60, 2, MODEL, provider="tensorrt")
    providers, _ = runtime.asked[-1]
    assert list(providers) == [TENSORRT, CUDA, CPU]
    assert providers[TENSORRT]["trt_cuda_graph_enable"] is True
    assert "enable_cuda_graph" not in providers[CUDA], "two cannot capture at once"
    d2feat.create_frames(SIZE, 60, 2, MODEL, provider=[(CUDA, {"enable_cuda_graph": False}), CPU])
    assert runtime.asked[-1][0][CUDA]["enable_cuda_graph"] is False


def test_which_providers_are_a_gpus(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(runs_on_gpu(one) for one in ("auto", "cuda", "tensorrt", [CUDA, CPU], [(TENSORRT, {})]))
    assert not any(runs_on_gpu(one) for one in ("cpu", [CPU], [(CPU, {}), CUDA]))
    monkeypatch.setattr(runtime, "get_available_providers", lambda: [CPU])
    assert not runs_on_gpu("auto")


def test_out_of_memory_says_what_to_do_and_the_extractor_stays_usable(
    cache: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = d2feat.create_frames(SIZE, 60, 2, MODEL, provider="cpu", threads=1)

    def starve(*_: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    with monkeypatch.context() as patch:
        lane = frames._free.get()
        frames._free.put(lane)
        patch.setattr(lane, "_session", SimpleNamespace(run_with_iobinding=starve))
        found = list(frames.stream(images[:2]))
    assert all(isinstance(one.error, d2feat.OutOfMemoryError) for one in found)
    assert "2 images of 110 x 86 at a time; make the extractor with a smaller batch" in str(found[1].error)
    assert len(frames.extract(images[:1])[0]) == 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own(
    frames: d2feat.FrameExtractor, images: list[np.ndarray]
) -> None:
    child = os.fork()
    if child == 0:
        try:
            frames._run(images[:1])
        except d2feat.D2FeatError as error:
            os._exit(3 if "another process" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_tensorrt_keeps_the_engines_of_each_model_apart(cache: Path, runtime: Runtime) -> None:
    """The runtime names their files by what the graphs' nodes are called, which all ours share."""
    for model in (MODEL, "d2net"):
        d2feat.create_frames(SIZE, 60, 1, model, provider="tensorrt", half=False)
    folders = [providers[TENSORRT]["trt_engine_cache_path"] for providers, _ in runtime.asked]
    assert len(set(folders)) == len(folders) == 2
    assert all(Path(folder).is_dir() and Path(folder).is_relative_to(cache) for folder in folders)


def test_what_is_no_model_of_frames_or_for_frames(cache: Path, frames: d2feat.FrameExtractor) -> None:
    path = next(cache.glob("frames-*/110x86-60-2-single.onnx"))
    with pytest.raises(d2feat.InputError, match=r"is a model of frames: take the model that it was made of"):
        d2feat.create_frames(SIZE, 60, 2, path, provider="cpu")
    with pytest.raises(d2feat.InputError, match="threads must be a whole number, 0 or more, not -1"):
        d2feat.FrameExtractor(path, provider="cpu", threads=-1)
    with pytest.raises(d2feat.InputError, match="not one str"):
        frames.extract("a.jpg")


def test_several_may_convert_the_same_model_at_once(tmp_path: Path) -> None:
    model = onnx.load(d2feat.available_models()[MODEL])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: save_model(model, tmp_path / "one.onnx"), range(12)))
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]
