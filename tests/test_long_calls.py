"""What a long call lets happen meanwhile: other threads of Python run; a signal ends it, nothing is left by halves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _kernels

pytestmark = pytest.mark.usefixtures("one_thread")
Array = np.ndarray[Any, np.dtype[Any]]


def repeated(*shape: int) -> Array:
    """An array of one row's memory, so that only arithmetic makes a call long."""
    row = np.linspace(-1, 1, shape[-1], dtype=np.float32)
    return np.broadcast_to(row, shape)


def layer_and_tape(steps: int) -> tuple[Any, Any, Array]:
    layer = rf.LSTM(256, 512, seed=0)
    y, _, tape = layer.forward(repeated(steps, 16, 256))
    return layer, tape, y


# ---- the lock --------------------------------------------------------------------------------------------------------


def forward() -> Callable[[], object]:
    layer, x = rf.LSTM(64, 128, seed=0), repeated(50, 16, 64)
    return lambda: layer(x)


def backward() -> Callable[[], object]:
    layer = rf.LSTM(64, 128, seed=0)
    y, _, tape = layer.forward(repeated(50, 16, 64))
    return lambda: layer.backward(tape, np.ones_like(y), keep=True)


def linear() -> Callable[[], object]:
    layer, x = rf.Linear(256, 512, seed=0), repeated(50, 16, 256)
    return lambda: layer(x)


def cross_entropy() -> Callable[[], object]:
    logits, targets = np.ones((2000, 512), np.float32), np.zeros(2000, np.int64)
    return lambda: rf.softmax_cross_entropy(logits, targets)


def adam() -> Callable[[], object]:
    model = rf.Linear(1000, 1000, seed=0)
    return rf.Adam(model).step


def large_stream() -> Callable[[], object]:
    stream, x = rf.LSTM(256, 1024, seed=0).stream(8), np.ones((8, 256), np.float32)
    return lambda: stream.step(x)


@pytest.mark.parametrize("make", [forward, backward, linear, cross_entropy, adam, large_stream])
def test_other_threads_run_during_a_call(make: Callable[[], Callable[[], object]]) -> None:
    """Python itself never switches here, so another thread gets on only if the call has released the lock."""
    call, ticks, done, before = make(), [0], threading.Event(), sys.getswitchinterval()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0)

    def runs_during_a_call() -> bool:
        seen = ticks[0]
        call()
        return ticks[0] > seen

    other = threading.Thread(target=tick)
    sys.setswitchinterval(1e6)
    try:
        other.start()
        # A busy machine may not get to the other thread during one short call: once is proof.
        assert any(runs_during_a_call() for _ in range(1000))
    finally:
        done.set()
        sys.setswitchinterval(before)
        other.join()


# ---- signals ---------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(call: Callable[[], object], after: float = 0.02) -> None:
    """A signal, whose handler raises, arrives while a call runs; without it the call takes some tenths of a second."""

    def handle(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, after)
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_forward() -> None:
    layer, x = rf.LSTM(256, 512, seed=0), repeated(1000, 16, 256)
    interrupt(lambda: layer(x))
    interrupt(lambda: layer.forward(x))


def test_a_signal_ends_backward_and_no_gradient_is_halved() -> None:
    """What comes after it is as if it had never been begun."""
    layer, tape, y = layer_and_tape(300)
    layer.flat_grads[...] = 7
    interrupt(lambda: layer.backward(tape, np.ones_like(y)))
    assert (layer.flat_grads == 7).all()
    layer.zero_grad()
    layer.backward(tape, np.ones_like(y))
    twin, twin_tape, _ = layer_and_tape(300)
    twin.backward(twin_tape, np.ones_like(y))
    assert np.array_equal(layer.flat_grads, twin.flat_grads)


def test_a_signal_ends_a_single_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is interrupted in the midst of a step too: rows that would have come later are never written."""
    written: list[Array] = []

    def watch(name: str, argument: int) -> None:
        kernel = getattr(_kernels, name)

        def call(*arguments: Any, **options: Any) -> object:
            arguments[argument].fill(np.nan)
            written.append(arguments[argument])
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return kernel(*arguments, **options)

        monkeypatch.setattr(_kernels, name, call)

    layer, x = rf.LSTM(512, 1024, seed=0), repeated(1, 8192, 512)
    y, _, tape = layer.forward(x)
    watch("forward", 4)
    interrupt(lambda: layer(x), after=60)
    watch("backward", 9)
    interrupt(lambda: layer.backward(tape, y, keep=True), after=60)
    for array in written:
        assert array.shape in {(1, 8192, 1024), (1, 8192, 512)}
        assert np.isnan(array).any()
    assert len(written) == 2
    assert not layer.flat_grads.any()


def test_a_signal_ends_a_linear_layer_and_no_gradient_is_halved() -> None:
    layer, x = rf.Linear(2048, 2048, seed=0), repeated(500, 16, 2048)
    interrupt(lambda: layer(x))
    _, _, tape = layer.forward(x[:100])
    layer.flat_grads[...] = 7
    interrupt(lambda: layer.backward(tape, repeated(*tape.shape)))
    assert (layer.flat_grads == 7).all()


# ---- the end of the process ------------------------------------------------------------------------------------------

AT_THE_END = """
import threading
import time
import numpy as np
import rnnfast as rf

rf.set_num_threads({threads})
layer, x = rf.LSTM(64, 128, seed=0), np.broadcast_to(np.ones(64, np.float32), ({steps}, 16, 64))


def compute():
    while True:
        layer(x)


threading.Thread(target=compute, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("steps", [20, 20_000], ids=["short_calls", "long_calls"])
def test_a_daemon_thread_in_a_kernel_does_not_abort_the_end(steps: int, threads: int) -> None:
    for _ in range(3):
        script = AT_THE_END.format(threads=threads, steps=steps)
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=100)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_signal_ends_a_call_in_a_child_that_another_thread_has_forked() -> None:
    """The thread that forks is the child's main thread, in which Python's handlers run."""
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            layer, x = rf.LSTM(256, 512, seed=0), repeated(20_000, 16, 256)
            try:
                interrupt(lambda: layer(x))
            finally:
                os._exit(17 if sys.exc_info()[0] is None else 1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    other = threading.Thread(target=fork)
    other.start()
    other.join()
    assert statuses == [17]
