"""Which options ONNX Runtime's providers are given, by a stand-in for a runtime that has them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import d2feat
from d2feat import session as sessions
from d2feat.providers import CPU, CUDA, TENSORRT, for_model, provider_list
from tests.conftest import create

GPU_RUNTIME = SimpleNamespace(get_available_providers=lambda: [TENSORRT, CUDA, CPU], __file__="/nowhere/x.py")
CPU_RUNTIME = SimpleNamespace(get_available_providers=lambda: [CPU], __file__="/nowhere/x.py")


def chosen(provider: Any, runtime: Any = GPU_RUNTIME) -> dict[str, dict[str, Any]]:
    """Names of the providers in their order, and their options."""
    entries = provider_list(runtime, provider)
    return dict((entry, {}) if isinstance(entry, str) else entry for entry in entries)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D2FEAT_CACHE", str(tmp_path))
    return tmp_path


def test_order_of_providers() -> None:
    assert list(chosen("auto")) == list(chosen("cuda")) == [CUDA, CPU]
    assert list(chosen("tensorrt")) == [TENSORRT, CUDA, CPU]
    assert chosen("cpu") == chosen("auto", CPU_RUNTIME) == {CPU: {}}
    with pytest.raises(d2feat.ProviderError, match=r"pip install 'd2feat\[gpu\]'"):
        chosen("cuda", CPU_RUNTIME)


@pytest.mark.parametrize("provider", ["auto", "cuda", "tensorrt", ((CUDA, ()), (CPU, ()))])
def test_cuda_is_not_tuned_anew_at_every_size(provider: Any) -> None:
    options = chosen(provider)[CUDA]
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_the_callers_options_win() -> None:
    given = (("gpu_mem_limit", 1 << 30), ("cudnn_conv_algo_search", "EXHAUSTIVE"))
    options = chosen(((CUDA, given), (CPU, ())))[CUDA]
    assert options["gpu_mem_limit"] == 1 << 30
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_tensorrt_keeps_its_engines(cache: Path) -> None:
    folders = set()
    for content in (b"one model", b"another"):
        options = dict(for_model(provider_list(GPU_RUNTIME, "tensorrt"), content)[:1])[TENSORRT]
        assert options["trt_engine_cache_enable"]
        assert options["trt_timing_cache_path"] == str(cache / "tensorrt")
        folders.add(Path(options["trt_engine_cache_path"]))
    assert len(folders) == 2
    assert all(folder.is_dir() and folder.is_relative_to(cache) for folder in folders)
    given = [(TENSORRT, {"trt_engine_cache_path": "mine"}), CPU]
    assert for_model(given, b"one model") == given


def test_tensorrt_does_without_a_cache_where_none_can_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("D2FEAT_CACHE", str(cache / "file"))
    assert chosen("tensorrt") == {TENSORRT: {}, CUDA: chosen("cuda")[CUDA], CPU: {}}
    assert for_model([TENSORRT], b"model") == [TENSORRT]


@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 1966080000",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_out_of_memory_says_what_to_do_and_the_object_stays_usable(message: str) -> None:
    opened = sessions.open_session("d2net", "cpu", 1)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    full = True

    def run(*arguments: Any) -> Any:
        if full:
            raise RuntimeError(message)
        return opened._session.run(*arguments)

    starved = replace(opened, provider=CUDA, given={}, _session=SimpleNamespace(run=run))
    with pytest.raises(d2feat.OutOfMemoryError, match=r"tiles \(tile=1024.*maxEdge"):
        starved.run(image, np.ones(1))
    full = False
    np.testing.assert_array_equal(
        starved.run(image, np.ones(1)).keypoints, opened.run(image, np.ones(1)).keypoints
    )


def test_warmup_runs_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = create(), []
    run = sessions.Session.run

    def noted(self: sessions.Session, image: np.ndarray, *rest: Any) -> sessions.Outputs:
        seen.append(image.shape)
        return run(self, image, *rest)

    monkeypatch.setattr(sessions.Session, "run", noted)
    detector.warmup([(64, 48), (80, 60)])
    assert seen == [(48, 64, 3), (60, 80, 3)]
    for wrong in ((640, 480), [(-1, 5)], [(0.5, 5)], ["ab"], [None]):
        with pytest.raises(d2feat.InputError, match="width"):
            detector.warmup(wrong)
