"""Which model, provider and processors are taken, and what is said when one cannot be had."""

import shutil
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime
import pytest

import d2feat
from d2feat import session as sessions
from d2feat.feature2d import session_of
from d2feat.images import digest
from d2feat.model import EXACT, FAST, find_model
from d2feat.processor import cgroup_quota, has_fast_int8, usable_processors


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_reads_the_quota_of_the_control_group(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == expected


def test_threads_are_at_least_one_and_can_be_chosen() -> None:
    assert usable_processors() >= 1
    assert "3 threads" in repr(d2feat.create(provider="cpu", threads=3))


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu avx512_vnni sse", True), ("fpu avx_vnni", True), ("fpu avx2 avx512f", False)]
)
def test_eight_bits_need_vnni(tmp_path: Path, flags: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert has_fast_int8(tmp_path / "cpuinfo") is fast


@pytest.mark.parametrize(("fast", "expected"), [(True, FAST), (False, EXACT)])
def test_the_default_model_suits_the_processor(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: str
) -> None:
    monkeypatch.setattr(sessions, "has_fast_int8", lambda: fast)
    assert sessions.open_session("auto", "cpu").path.stem == expected


@pytest.mark.parametrize(("fast", "expected"), [(True, FAST), (False, EXACT)])
def test_a_gpus_runtime_without_a_gpu_takes_what_suits_the_processor(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: str
) -> None:
    def start(content: bytes, options: Any, providers: Any, **given: Any) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], **given)

    runtime = SimpleNamespace(
        __version__=onnxruntime.__version__,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=onnxruntime.SessionOptions,
        ExecutionOrder=onnxruntime.ExecutionOrder,
        InferenceSession=start,
        __file__="/nowhere/onnxruntime.py",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(sessions, "has_fast_int8", lambda: fast)
    monkeypatch.setattr(sessions, "_cache", OrderedDict())
    monkeypatch.setattr(sessions, "_in_use", WeakValueDictionary())
    assert sessions.open_session("auto").path.stem == expected


def test_objects_that_ask_for_the_same_share_one_session() -> None:
    first, second = sessions.open_session(EXACT, "cpu"), sessions.open_session(EXACT, "cpu")
    assert first is second
    one, two = (sessions.open_session(EXACT, "cpu", threads) for threads in (1, 2))
    assert one is not two


def test_what_objects_use_stays_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; and what nobody uses goes."""
    loads, load = [], sessions._load
    monkeypatch.setattr(sessions, "_load", lambda *of: (loads.append(of), load(*of))[1])
    monkeypatch.setattr(sessions, "_cache", OrderedDict())
    monkeypatch.setattr(sessions, "_in_use", WeakValueDictionary())
    image = np.zeros((32, 32, 3), np.uint8)
    several = [
        d2feat.create(model="d2net-lite", provider="cpu", threads=threads)
        for threads in range(1, sessions.CACHED + 3)
    ]
    for detector in 2 * several:
        detector.detect(image)
    assert len(loads) == len(several) == len(sessions._in_use)
    del detector, several
    assert len(sessions._in_use) == sessions.CACHED


def test_a_detector_keeps_its_model_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    shutil.copy(find_model("d2net-lite"), path)
    detector = d2feat.create(model=path, provider="cpu")
    loaded = digest(path)
    shutil.copy(find_model(EXACT), path)
    assert session_of(detector).sha256 == loaded != digest(path)
    assert detector.descriptorSize() == 128
    assert d2feat.create(model=path, provider="cpu").descriptorSize() == 512
    path.unlink()
    assert detector.extract(np.zeros((32, 32, 3), np.uint8)).descriptors.shape[1] == 128


def test_loading_one_model_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = sessions.open_session("d2net-lite", "cpu", 1)
    began, go_on, load, loads = threading.Event(), threading.Event(), sessions._load, list[Path]()

    def slowly(path: Path, *rest: Any) -> Any:
        loads.append(path)
        began.set()
        assert go_on.wait(60)
        return load(path, *rest)

    monkeypatch.setattr(sessions, "_load", slowly)
    monkeypatch.setattr(sessions, "_cache", OrderedDict(sessions._cache))
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(sessions.open_session, "d2net-lite", "cpu", 3) for _ in range(2)]
        try:
            assert began.wait(60)
            assert sessions.open_session("d2net-lite", "cpu", 1) is loaded
        finally:
            go_on.set()
        assert both[0].result() is both[1].result()
    assert len(loads) == 1


def test_a_list_of_providers_is_taken_as_onnx_runtime_takes_it() -> None:
    for providers in (["CPUExecutionProvider"], [("CPUExecutionProvider", {})]):
        assert sessions.open_session(EXACT, providers).provider == "CPUExecutionProvider"
    with pytest.raises(d2feat.ProviderError, match="NoSuchProvider"):
        sessions.open_session(EXACT, ["NoSuchProvider"])


def test_out_of_memory_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 123")

    session = SimpleNamespace(run=fail)
    opened = sessions.open_session(EXACT, "cpu")
    starved = replace(opened, _session=session)
    with pytest.raises(d2feat.OutOfMemoryError, match=r"40 x 30.*lower maxEdge") as caught:
        starved.run(np.zeros((30, 40, 3), np.uint8), np.ones(1))
    assert isinstance(caught.value, MemoryError)


def test_eight_bits_agree_with_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("skimage.data")
    if not has_fast_int8():
        # There the runtime's sums of two products saturate (and `create` takes the other model); the graph as
        # it is written does not.
        as_written = onnxruntime.SessionOptions()
        as_written.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: as_written)
    image = np.ascontiguousarray(data.coffee()[100:300, 100:400, ::-1])
    exact, fast = (d2feat.create(300, model=model).extract(image) for model in (EXACT, FAST))
    distance = np.linalg.norm(exact.keypoints[:, None] - fast.keypoints, axis=2)
    same = distance.min(1) < 1
    assert same.mean() > 0.7
    cosine = (exact.descriptors[same] * fast.descriptors[distance.argmin(1)[same]]).sum(1)
    assert cosine.mean() > 0.99
