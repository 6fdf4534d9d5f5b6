"""What ends other libraries' processes: exits, forks, signals, many threads, no memory, and hostile models.

Each of these runs in a process of its own, for a crash or a hang would take the tests along.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import d2feat
from d2feat.model import bundled_folder
from tests.conftest import assert_same_features, create, photograph

SHIPPED = bundled_folder() / "d2net-int8.onnx"

START = """
import gc, os, resource, signal, sys, threading, time
import numpy as np
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.collect)  # as it may happen before d2feat is told of the fork
import d2feat
noise = np.random.default_rng(0)
large, small = (noise.integers(0, 256, shape, np.uint8) for shape in ((900, 1200, 3), (48, 64, 3)))
detector = d2feat.create(model="d2net-int8", provider="cpu", threads=1)
expected = len(detector.detect(small))
assert expected
"""


def run(program: str, code: int = 0, timeout: float = 60) -> str:
    """Run `START` and `program`, which must end by itself and with `code`; what it wrote to stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ended = subprocess.run(
        [sys.executable, "-c", START + program],
        timeout=timeout,
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    return ended.stderr


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@pytest.mark.parametrize(
    "use", ["pass", "assert len(detector.detect(small)) == expected"], ids=["idle", "used"]
)
def test_forked_child_can_end_as_any_program_does(use: str) -> None:
    """ONNX Runtime's thread that reports to its maker used to make the child hang in its destructors."""
    run(f"""
child = os.fork()
if child == 0:
    {use}
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""")


@needs_fork
@pytest.mark.parametrize("damage", ["metadata", "operation"])
def test_forked_child_does_not_destroy_what_failed_to_load_in_its_parent(damage: str, tmp_path: Path) -> None:
    """What nobody uses any more may be found by the garbage collector as the child begins."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(SHIPPED)
    if damage == "metadata":
        del model.metadata_props[:]
    else:  # that the runtime misses when it has already started threads
        double = onnx.TensorProto.DOUBLE
        model.graph.node.append(onnx.helper.make_node("Conv", ["doubles", "doubles"], ["others"]))
        for values, name in ((model.graph.input, "doubles"), (model.graph.output, "others")):
            values.append(onnx.helper.make_tensor_value_info(name, double, [1, 1, 1, 1]))
    onnx.save(model, tmp_path / "damaged.onnx")
    run(f"""
gc.disable()
try:
    d2feat.create(model={str(tmp_path / "damaged.onnx")!r}, provider="cpu", threads=3)
except d2feat.ModelError as error:
    keeps_itself = [error]
    keeps_itself.append(keeps_itself)
    del keeps_itself
else:
    raise AssertionError("it was loaded")
child = os.fork()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""")


def test_the_runtime_does_not_report_to_its_maker_unless_asked_to() -> None:
    run("assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'")


@pytest.mark.parametrize("daemons", [1, 4])
def test_program_may_end_while_threads_extract(daemons: int) -> None:
    """Without care Python's finalisation ends such a thread inside of C++, which aborts the process."""
    stderr = run(
        f"""
def loop():
    while True:
        detector.detect(small)
for _ in range({daemons}):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.2)
sys.exit(3)
""",
        3,
    )
    assert stderr == ""


def test_program_may_end_while_threads_stream() -> None:
    stderr = run(
        """
def loop():
    while True:
        for found in detector.stream([small] * 20):
            found.features
for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.5)
sys.exit(3)
""",
        3,
    )
    assert stderr == ""


def test_a_thread_whose_stream_the_end_of_the_program_cuts_off_is_told() -> None:
    """Its executors take no more work then, though the program waits for it."""
    run(
        """
from itertools import repeat
def work():
    try:
        for found in detector.stream(repeat(small)):
            found.features
    except d2feat.D2FeatError as error:
        os._exit(5 if "the program is ending" in str(error) else 6)
threading.Thread(target=work).start()
time.sleep(0.3)
""",
        5,
    )


def test_program_that_ends_waits_for_its_other_threads_to_finish_what_they_do() -> None:
    run(
        """
found = []
threading.Thread(target=lambda: found.append(len(detector.detect(small)))).start()
import atexit
atexit.register(lambda: os._exit(5 if found == [expected] else 6))
""",
        5,
    )


def test_a_handler_at_the_end_of_the_program_is_told_that_it_is_too_late() -> None:
    """One that was registered before d2feat was imported runs after ours, which stops the network."""
    program = """
import atexit, os
@atexit.register
def last():
    try:
        detector.detect(np.zeros((64, 64), np.uint8))
    except d2feat.D2FeatError as error:
        os._exit(5 if "the program is ending" in str(error) else 6)
import numpy as np, d2feat
detector = d2feat.create(model="d2net-lite-int8", provider="cpu", threads=1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 5


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_interrupt_ends_a_long_extraction_at_once_and_the_object_goes_on() -> None:
    run("""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def interrupt():
    global sent
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
for call in (detector.detect, lambda image: detector.describe(image, [[5, 5, 1]])):
    threading.Thread(target=interrupt).start()
    try:
        call(large)
        sys.exit("was not interrupted")
    except KeyboardInterrupt:
        assert time.monotonic() - sent < 1
    assert len(detector.detect(small)) == expected
""")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    "call",
    [
        "detector.detectAndComputeBatch([large] * 3)",
        "list(detector.stream([large] * 3))",
        "detector.detect([large] * 3)",
    ],
)
def test_interrupt_ends_the_runs_behind_a_stream(call: str) -> None:
    """They are in other threads, for which the program would wait when it ends."""
    run(f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {call}
    sys.exit("was not interrupted")
except KeyboardInterrupt:
    ended = time.monotonic()
while any(thread.name.startswith("d2feat") for thread in threading.enumerate()):
    time.sleep(0.01)
assert time.monotonic() - ended < 1
assert len(detector.detect(small)) == expected
""")


def test_a_stream_left_early_ends_its_runs() -> None:
    run("""
images = detector.stream([small] + [large] * 3)
assert len(next(images).keypoints) == expected
time.sleep(0.2)
images.close()
closed = time.monotonic()
while any(thread.name.startswith("d2feat") for thread in threading.enumerate()):
    time.sleep(0.01)
assert time.monotonic() - closed < 1
""")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_handlers_of_signals_run_during_an_extraction_and_what_they_raise_ends_it() -> None:
    run("""
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
class Late(Exception):
    pass
def too_late(*_):
    raise Late
signal.signal(signal.SIGALRM, too_late)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
signal.setitimer(signal.ITIMER_REAL, 0.6)
start = time.monotonic()
try:
    detector.detect(large)
    sys.exit("was not ended")
except Late:
    assert time.monotonic() - start < 1.6
assert seen and seen[0] - start < 1.2
""")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited by Linux's means")
@pytest.mark.parametrize("mebibytes", [4, 87, 100, 107])
def test_out_of_memory_raises_and_leaves_the_object_usable(mebibytes: int) -> None:
    run(f"""
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {mebibytes} * 2**20,) * 2)
for _ in range(3):
    try:
        detector.detect(large)
        sys.exit("there was enough memory")
    except MemoryError as error:
        assert isinstance(error, d2feat.OutOfMemoryError)
    assert len(detector.detect(small)) == expected
""")


def test_sixteen_threads_create_use_and_destroy_detectors(tmp_path: Path) -> None:
    """Of more models than are cached, so that sessions are destroyed while others run them."""
    models = [tmp_path / f"{i}.onnx" for i in range(6)]
    for model in models:
        shutil.copy2(SHIPPED, model)
    image = photograph("astronaut", (64, 48))
    expected = create(model=SHIPPED).extract(image)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(2):
                found = create(model=models[(seed + turn) % 6]).extract(image)
                assert_same_features(found, expected, 1e-4, 1e-4)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not any(worker.is_alive() for worker in workers)
    assert not failures


def test_threads_beyond_all_reason_are_refused() -> None:
    """A thousand make a small machine stand still; two thousand million used to end in std::bad_alloc."""
    for threads in (1000, 2**31 - 1):
        with pytest.raises(d2feat.InputError, match=f"threads must be at most .*{threads}"):
            d2feat.create(threads=threads)


# ---- hostile models. A protobuf message goes on with whatever fields are appended to it, so that these are
# the shipped model and something besides.


def field(number: int, *content: bytes | str | int) -> bytes:
    """A field of a protobuf message: a number, or bytes, text or messages joined."""
    if isinstance(content[0], int):
        return varint(number << 3) + varint(content[0])
    joined = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in content)  # type: ignore[arg-type]
    return varint(number << 3 | 2) + varint(len(joined)) + joined


def varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


ELSEWHERE = (
    field(8, "w"),
    field(1, 4),
    field(2, 1),
    field(14, 1),
    field(13, field(1, "location"), field(2, "passwd")),
)
SUBGRAPH = field(
    7, field(1, field(4, "If"), field(5, field(1, "then_branch"), field(6, field(5, *ELSEWHERE))))
)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "external data": (field(7, field(5, *ELSEWHERE)), "another file"),
    "external data in a subgraph": (SUBGRAPH, "another file"),
    "external data in an attribute": (field(7, field(1, field(5, field(5, *ELSEWHERE)))), "another file"),
    "external data in a sparse tensor": (field(7, field(15, field(1, *ELSEWHERE))), "another file"),
    "a library's operators": (field(8, field(1, "com.example"), field(2, 1)), "'com.example'"),
    "a node that loads a file": (
        field(7, field(1, field(4, "EPContext"), field(7, "com.microsoft"))),
        "microsoft",
    ),
    "functions": (field(25, field(1, "f")), "functions of its own"),
    "training": (field(20, field(1, field(1, field(4, "Add")))), "trained"),
    "a key of 35 bits": (b"\xba\x80\x80\x80\x70\x00", "not a protobuf message"),
}


@pytest.mark.parametrize(("more", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_model_that_needs_more_than_itself_is_refused(more: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.onnx"
    path.write_bytes(SHIPPED.read_bytes() + more)
    with pytest.raises(d2feat.ModelError, match=rf"hostile\.onnx.*{message}"):
        d2feat.create(model=path)


def test_appending_to_a_model_is_what_made_it_hostile(tmp_path: Path) -> None:
    """The same way of making a file, with something harmless: it loads."""
    path = tmp_path / "harmless.onnx"
    path.write_bytes(
        SHIPPED.read_bytes() + field(6, "a comment") + field(8, field(1, "ai.onnx"), field(2, 20))
    )
    assert d2feat.create(model=path, provider="cpu").descriptorSize() == 512


def test_a_file_of_onnx_runtimes_own_format_is_not_read_as_such(tmp_path: Path) -> None:
    """Its bytes can be made to look like ONNX to who checks them."""
    path = tmp_path / "disguised.onnx"
    path.write_bytes(field(1, 10) + field(2, "ORTM", "x" * 96))
    assert path.read_bytes()[4:8] == b"ORTM"
    with pytest.raises(d2feat.ModelError, match=r"disguised\.onnx"):
        d2feat.create(model=path)


def test_model_that_is_too_large_for_the_format_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(d2feat.ModelError, match="2 GiB"):
        d2feat.create(model=path)
