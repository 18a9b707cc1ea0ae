"""A forward pass in segments: the bits of every gradient stay, the memory shrinks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast import _kernels
from rnnfast.stack import Run
from shapes import EXACT, SMALL, Shape
from support import (
    CELLS,
    DTYPES,
    Problem,
    as_state,
    as_tuple,
    assert_same_bits,
    make_problem,
    threads,
)

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_state_given": {"given": False},
    "stacked_ragged_with_resets": {"num_layers": 3, "ragged": True, "cut": True},
}


def train(
    problem: Problem,
    dtype: Any,
    checkpoint: Any,
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
    with_dy: bool = True,
    with_dstate: bool = True,
    holds_y: bool = True,
) -> dict[str, Any]:
    """Everything that forward and backward give, added to gradients that were there before."""
    layer = problem.layer(dtype, batch_first=batch_first, dropout=dropout, seed=3)
    random = np.random.default_rng(0)
    layer.flat_grads[...] = random.standard_normal(layer.flat_grads.shape)

    def outer(sequence: Any) -> Any:
        return sequence.swapaxes(0, 1) if batch_first else sequence

    state = None if problem.state is None else as_state(tuple(s.astype(dtype) for s in problem.state))
    dstate = as_state(tuple(s.astype(dtype) for s in problem.dstate)) if with_dstate else None
    resets = None if problem.resets is None else outer(problem.resets)
    y, final, tape = layer.forward(
        outer(problem.x.astype(dtype)), state, problem.lengths, resets, checkpoint=checkpoint
    )
    if not holds_y:
        y = y.copy()
    dx, dinitial = layer.backward(tape, outer(problem.dy.astype(dtype)) if with_dy else None, dstate)
    return {"y": y, "final": as_tuple(final), "dx": dx, "dinitial": as_tuple(dinitial), **layer.grads}


# ---- the same bits ---------------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ["one_step", "hidden_tail", "long", "empty_batch", "empty_sequence"])
def test_segments_do_not_change_a_bit(shape: str, options: str, cell: str, dtype: type) -> None:
    """Of outputs, states and gradients; the whole on all threads, the segments on one."""
    problem = make_problem(cell, SMALL[shape], **OPTIONS[options])
    dropout = 0.3 if "num_layers" in OPTIONS[options] else 0.0
    expected = train(problem, dtype, None, dropout=dropout)
    for checkpoint, holds_y in ((True, True), (1, True), (3, True), (1000, True), (True, False), (3, False)):
        with threads(1):
            got = train(problem, dtype, checkpoint, dropout=dropout, holds_y=holds_y)
        assert_same_bits(got, expected, f"{checkpoint} steps, y {'held' if holds_y else 'gone'}:")


@pytest.mark.kernel
@each_dtype
@each_cell
@pytest.mark.parametrize(
    ("shape", "steps"), [(EXACT["hidden_48"], 5), (Shape(64, 3, 40, 130), 31)], ids=["many", "few"]
)
def test_segments_of_a_batch_do_not_change_a_bit(shape: Shape, steps: int, cell: str, dtype: type) -> None:
    """Of many rows, or of so few that steps are computed again together."""
    problem = make_problem(cell, shape, num_layers=2, ragged=True, cut=True)
    expected = train(problem, dtype, None, dropout=0.5)
    for number in (1, 2, 3):
        for holds_y in (True, False):
            with threads(number):
                got = train(problem, dtype, steps, dropout=0.5, holds_y=holds_y)
            assert_same_bits(got, expected, f"{number} threads, y {'held' if holds_y else 'gone'}:")


@given(
    st.sampled_from(CELLS),
    st.builds(Shape, st.integers(0, 20), st.integers(0, 7), st.integers(1, 20), st.integers(1, 40)),
    st.integers(1, 3),
    st.integers(1, 25),
    *[st.booleans()] * 8,
    st.integers(0, 2**32),
)
def test_no_cut_in_time_changes_a_bit(
    cell: str,
    shape: Shape,
    num_layers: int,
    checkpoint: int,
    given_state: bool,
    ragged: bool,
    cut: bool,
    bias: bool,
    batch_first: bool,
    with_dy: bool,
    with_dstate: bool,
    holds_y: bool,
    seed: int,
) -> None:
    options = {"given": given_state, "ragged": ragged, "cut": cut, "bias": bias}
    problem = make_problem(cell, shape, num_layers=num_layers, seed=seed, **options)
    form: dict[str, Any] = {"batch_first": batch_first, "with_dy": with_dy, "with_dstate": with_dstate}
    form["dropout"] = 0.4 if num_layers > 1 else 0.0
    got = train(problem, np.float32, checkpoint, holds_y=holds_y, **form)
    assert_same_bits(got, train(problem, np.float32, None, **form))


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the forward kernel, whether it was told what comes out."""
    kernel = _kernels.forward
    knows: list[bool] = []

    def forward(*arguments: Any, known: Any) -> None:
        knows.append(known is not None)
        kernel(*arguments, known=known)

    monkeypatch.setattr(_kernels, "forward", forward)
    return knows


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [2, 90])  # arrays that NumPy makes, and others
@pytest.mark.parametrize("held", ["y", "a part of it", "nothing"])
def test_the_last_layer_is_computed_again_from_the_y_that_somebody_holds(
    held: str, batch: int, batch_first: bool, knows: list[bool]
) -> None:
    layer = rf.GRU(3, 5, num_layers=2, batch_first=batch_first, seed=0)
    x = np.ones((batch, 9, 3) if batch_first else (9, batch, 3), np.float32)
    y, _, tape = layer.forward(x, checkpoint=3)
    dy = np.ones_like(y)
    y = {"y": y, "a part of it": y[-1, :, :2], "nothing": None}[held]
    knows.clear()
    layer.backward(tape, dy)
    assert knows == [False, held != "nothing"] * 3  # layers, of three segments


def test_what_a_sequential_holds_for_the_next_module_is_known(knows: list[bool]) -> None:
    x = np.random.default_rng(0).standard_normal((9, 2, 3), np.float32)
    results = []
    for checkpoint in (None, 3):
        model = rf.Sequential(rf.GRU(3, 5, seed=0), rf.LSTM(5, 7, seed=1), rf.Linear(7, 2, seed=2))
        y, _, tape = model.forward(x, checkpoint=checkpoint)
        knows.clear()
        model.backward(tape, np.ones_like(y))
        results.append(model.flat_grads)
    assert knows == [True] * 6
    assert_same_bits(*results)


def test_subnormal_gradients_are_added_alike() -> None:
    """Where sums are tiny, a subnormal number counts as zero with segments and without."""
    problem = make_problem("lstm", SMALL["hidden_tail"])
    problem = replace(problem, dy=problem.dy * 1e-38, dstate=tuple(s * 1e-38 for s in problem.dstate))
    results = []
    for checkpoint in (None, 2):
        layer = problem.layer(np.float32)
        layer.flat_grads[...] = 1e-40
        tape = layer.forward(problem.x, as_state(problem.state or ()), checkpoint=checkpoint)[2]
        layer.backward(tape, problem.dy, as_state(problem.dstate))
        results.append(layer.flat_grads)
    assert_same_bits(*results)


def test_a_sequential_hands_the_segments_to_its_recurrent_layers() -> None:
    def make() -> rf.Sequential:
        stack = rf.LSTM(6, 12, 2, dropout=0.3, batch_first=True, seed=1)
        inner = rf.Sequential(stack, rf.GRU(12, 9, batch_first=True, seed=2))
        return rf.Sequential(rf.Embedding(9, 6, batch_first=True, seed=0), inner, rf.Last(batch_first=True))

    tokens = np.random.default_rng(0).integers(0, 9, (5, 30))
    dy = np.random.default_rng(1).standard_normal((5, 9), np.float32)
    lengths = [30, 7, 0, 19, 30]
    results = []
    for checkpoint in (None, True):
        model = make()
        y, _, tape = model.forward(tokens, lengths=lengths, checkpoint=checkpoint)
        model.backward(tape, dy)
        results.append({"y": y, "gradients": model.flat_grads})
    assert_same_bits(results[1], results[0])


# ---- what segments hand on -------------------------------------------------------------------------------------------


def two_layers(other: dict[str, Any], kept: bool) -> dict[str, Any]:
    """What a layer gives, and another one after it, whose calls are given the same things to hand on."""
    results: dict[str, Any] = {}
    layers: list[rf.LSTM] = []  # alive, so that no array takes the place of another
    given = None
    for arguments in ({}, other):
        options = {"input_size": 6, "hidden_size": 20, "seed": 1} | arguments
        dtype, batch = options.get("dtype", np.float32), options.pop("batch", 3)
        layer = rf.LSTM(**options)
        layers.append(layer)
        stack, random = layer._stack, np.random.default_rng(2)
        given = given or (stack.new_kept() if kept else None)
        x, dy = (random.standard_normal((4, batch, n)).astype(dtype) for n in (6, 20))
        run = Run(None, None, None, kept=given, zoneouts=layer._zoneouts)
        y, final, initial = np.empty_like(dy), stack.new_states(batch), stack.new_states(batch)
        stack.forward(layer.params, x, y, final, run, record=True)
        stack.backward(layer.params, layer.grads, run, dy, None, np.empty_like(x), initial)
        results[f"{len(layers)}"] = (y, *final, *initial, layer.flat_grads)
    return results


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7},
        {"batch": 64},
        {"dtype": np.float64},
        {"compute_dtype": "bfloat16"},
        {"zoneout": 0.3},
        {"layer_norm": True},
    ],
    ids=str,
)
def test_what_is_handed_on_serves_no_other_weights_plan_or_type(other: dict[str, Any]) -> None:
    assert_same_bits(two_layers(other, kept=True), two_layers(other, kept=False))


def test_sums_that_go_on_need_a_place_and_are_never_lost() -> None:
    layers = [rf.GRU(3, 5, seed=0), rf.GRU(3, 5, seed=0)]

    def backward(layer: rf.GRU, kept: Any, *, resume: bool = True, goes_on: bool = False) -> None:
        run, stack = Run(None, None, None, kept=kept), layer._stack
        x, y = np.ones((2, 1, 3), np.float32), np.ones((2, 1, 5), np.float32)
        final = stack.new_states(1)
        stack.forward(layer.params, x, y, final, run, record=True)
        stack.backward(layer.params, layer.grads, run, y, None, None, final, resume=resume, goes_on=goes_on)

    with pytest.raises(ValueError, match="kept: expected an object where sums go on, got None"):
        backward(layers[0], None, goes_on=True)
    for other, resume in ((layers[1], True), (layers[0], False)):
        kept = layers[0]._stack.new_kept()
        backward(layers[0], kept, goes_on=True)
        assert not layers[0].flat_grads.any()
        with pytest.raises(ValueError, match="kept: expected the sums of this layer"):
            backward(other, kept, resume=resume)


# ---- the tape --------------------------------------------------------------------------------------------------------


def small(checkpoint: Any) -> tuple[Any, Any, Any]:
    layer = rf.LSTM(3, 5, num_layers=2, seed=0)
    y, _, tape = layer.forward(np.random.default_rng(0).standard_normal((9, 2, 3), np.float32), checkpoint=checkpoint)
    return layer, y, tape


def test_a_tape_of_segments_can_be_kept_and_is_consumed() -> None:
    layer, y, tape = small(4)
    once = layer.backward(tape, np.ones_like(y), keep=True)[0]
    first = layer.flat_grads.copy()
    assert_same_bits(layer.backward(tape, np.ones_like(y))[0], once)
    assert_same_bits(layer.flat_grads, first + first)
    with pytest.raises(RuntimeError, match="consumed"):
        layer.backward(tape, np.ones_like(y))


def test_gradients_of_segments_go_where_they_are_told() -> None:
    layer, y, tape = small(4)
    elsewhere = np.zeros_like(layer.flat_grads)
    layer.backward(tape, np.ones_like(y), need_dx=False, keep=True, grads=elsewhere)
    assert not layer.flat_grads.any()
    layer.backward(tape, np.ones_like(y))
    assert_same_bits(elsewhere, layer.flat_grads)


def test_changed_parameters_are_noticed_before_anything_is_computed_again() -> None:
    layer, y, tape = small(4)
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="parameters have changed"):
        layer.backward(tape, np.ones_like(y))


@pytest.mark.parametrize("name", ["hidden", "cell", "gates"])
def test_what_segments_do_not_keep_is_refused_by_name(name: str) -> None:
    _, _, tape = small(4)
    with pytest.raises(RuntimeError, match=rf"{name}: not kept by forward\(checkpoint=4\)"):
        getattr(tape, name)
    _, _, whole = small(False)
    assert getattr(whole, name).shape[:3] == (2, 9, 2)


def test_two_directions_are_refused() -> None:
    layer = rf.GRU(3, 5, bidirectional=True, seed=0)
    x = np.zeros((4, 2, 3), np.float32)
    with pytest.raises(ValueError, match="checkpoint: expected None for a bidirectional layer"):
        layer.forward(x, checkpoint=True)
    layer.forward(x, checkpoint=False)
    with pytest.raises(ValueError, match="checkpoint: expected None for a bidirectional layer") as caught:
        rf.Sequential(layer, rf.Linear(10, 2)).forward(x, checkpoint=2)
    assert "module 0" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "checkpoint: expected at least 1, got 0"),
        (-3, ValueError, "checkpoint: expected at least 1, got -3"),
        (2.0, TypeError, "checkpoint: expected an integer, got float"),
        ("yes", TypeError, "checkpoint: expected an integer, got str"),
    ],
)
def test_wrong_segments_are_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(value)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_a_tape_of_4096_steps_holds_less_than_a_fiftieth(cell: str) -> None:
    problem = make_problem(cell, Shape(4096, 2, 3, 16), num_layers=2)
    layer, x = problem.layer(np.float32), problem.x
    whole = layer.forward(x)[2].nbytes
    assert layer.forward(x, checkpoint=True)[2].nbytes < 0.02 * whole
    outputs_alone = 2 * 4096 * 2 * 16 * 4
    assert whole >= outputs_alone


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no peak here")
@pytest.mark.parametrize(("kind", "hidden"), [("RNN", 128), ("LSTM", 64), ("GRU", 64)])
def test_backward_in_segments_needs_a_sixteenth_of_the_memory(kind: str, hidden: int) -> None:
    """The peak of the whole process, beyond what the caller has in hand; at most 6 % of the tape in one piece."""
    program = f"""
        import re, numpy as np, rnnfast as rf

        def peak():
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

        def train(layer, x, checkpoint=None):
            y, _, tape = layer.forward(x, checkpoint=checkpoint)
            dy = np.broadcast_to(np.ones(layer.hidden_size, np.float32), y.shape)
            size = tape.nbytes
            del y
            layer.backward(tape, dy, need_dx=False)
            return size

        layer = rf.{kind}(8, {hidden}, seed=0)
        # In the broadcast batch and steps lie in the same few bytes.
        x = np.broadcast_to(np.ones(8, np.float32), (4096, 32, 8))
        train(layer, x[:300])  # threads, and scratch memory that does not grow with time
        before = peak()
        layer.forward(x, checkpoint=True)
        alone = peak() - before  # y, whole as the caller wants it, and what forward needs
        train(layer, x, checkpoint=True)
        in_segments = peak() - before - alone
        whole = train(layer, x)
        print(in_segments, peak() - before, whole)
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, env=environment
    )
    in_segments, in_one_piece, whole = map(int, run.stdout.split())
    assert in_segments <= 0.06 * whole
    assert in_one_piece >= 0.9 * whole  # what is measured is there to be saved
