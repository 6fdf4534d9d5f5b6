"""Runs of the network that end when the program does, when it is interrupted, or when nobody wants them."""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from .errors import D2FeatError
from .runtime import import_runtime

Result = TypeVar("Result")

_LONGEST_STOP: Final = 10.0
"""Seconds that the exit of the program waits for runs to stop."""


class Runs:
    """Runs of the network that are ended together: those going on, and those that would follow."""

    def __init__(self) -> None:
        self.stopped = False
        self._options: set[Any] = set()

    def enter(self) -> None:
        """From now on the runs of this thread belong here as well."""
        _of_thread.runs = self

    def stop(self) -> None:
        """End them; the runtime does so between two nodes of its graph. Nobody waits for that here."""
        self.stopped = True
        for options in tuple(self._options):
            options.terminate = True

    def __bool__(self) -> bool:
        """Whether any are going on."""
        return bool(self._options)

    @contextlib.contextmanager
    def holding(self, options: Any) -> Iterator[None]:
        """While a run with these options goes on."""
        self._options.add(options)
        try:
            yield
        finally:
            self._options.discard(options)


_all = Runs()
_of_thread = threading.local()


def run_stoppable(call: Callable[[Any], Result], *, apart: bool) -> Result:
    """`call` with options for a run; it is stopped when the program exits or a signal's handler raises.

    Python handles signals such as Ctrl-C in the main thread, between two of its own instructions, and a run
    is a single one. So it is done apart, in a thread of its own, while the main thread waits, which can be
    interrupted. The runtime stops between two nodes of the graph, in seconds at worst; nobody waits for that.
    """
    options = import_runtime().RunOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    group: Runs = getattr(_of_thread, "runs", _all)
    silent = group is not _all or threading.current_thread().daemon

    def ended() -> BaseException:
        # SystemExit ends a thread without a word.
        return SystemExit() if silent else D2FeatError("the program is ending, and the network runs no more")

    def run() -> Result:
        with _all.holding(options), group.holding(options):
            try:
                if _all.stopped or group.stopped:
                    raise ended()
                return call(options)
            except D2FeatError:
                if _all.stopped or group.stopped:
                    raise ended() from None
                raise

    if not apart or threading.current_thread() is not threading.main_thread():
        return run()
    result: Future[Result] = Future()
    worker = threading.Thread(target=_fulfil, args=(result, run), name="d2feat", daemon=False)
    try:
        try:
            worker.start()
        except RuntimeError:  # no memory for a thread
            return run()
        return result.result()
    except BaseException:
        options.terminate = True
        raise


def _fulfil(result: Future[Result], function: Callable[[], Result]) -> None:
    try:
        result.set_result(function())
    except BaseException as error:
        result.set_exception(error)


def refused_work(error: RuntimeError) -> D2FeatError:
    """What to tell where an executor or the system starts no more threads.

    Raises:
        SystemExit: the program is at its end, and this is a daemon thread: it ends without a word.
    """
    if "shutdown" not in str(error):
        return D2FeatError(f"no thread could be started: {error}")
    if threading.current_thread().daemon:
        raise SystemExit from None
    return D2FeatError("the program is ending, and starts no more threads; wait for this one before it does")


@atexit.register
def _stop_runs() -> None:
    """Let no daemon thread be inside the runtime when Python is finalised: that aborts the process."""
    _all.stop()
    deadline = time.monotonic() + _LONGEST_STOP
    while _all and time.monotonic() < deadline:
        time.sleep(0.005)


def _forget_inherited_runs() -> None:
    """A forked child has none of its parent's threads."""
    global _all
    _all = Runs()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_runs)
