"""A stream is the layer, one step a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast import _kernels
from support import CELLS, as_tuple, new_layer, threads

each_cell = pytest.mark.parametrize("cell", CELLS)


def sequence(steps: int, batch: int, size: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((steps, batch, size)).astype(dtype)


@pytest.mark.kernel
@each_cell
@given(
    layers=st.integers(1, 3),
    batch=st.integers(1, 60),
    inputs=st.integers(1, 40),
    hidden=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_steps_are_those_of_the_whole_sequence_to_the_bit(cell, layers, batch, inputs, hidden, bias, dtype):
    layer = new_layer(cell, inputs, hidden, num_layers=layers, bias=bias, dtype=dtype, seed=0)
    x = sequence(4, batch, inputs, dtype)
    y, final = layer(x)
    stream = layer.stream(batch)
    np.testing.assert_array_equal(np.stack([stream.step(x_t) for x_t in x]), y)
    for ours, expected in zip(as_tuple(stream.state), as_tuple(final), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.kernel
@each_cell
@pytest.mark.parametrize("number", [1, 2, 3])
def test_large_steps_are_the_same_on_any_number_of_threads(cell, number):
    layer = new_layer(cell, 300, 300, seed=0)
    x = sequence(3, 8, 300)
    y, _ = layer(x)
    with threads(number):
        stream = layer.stream(8)
    np.testing.assert_array_equal(np.stack([stream.step(x_t) for x_t in x]), y)


def test_a_stream_is_a_snapshot_of_the_weights():
    layer = rf.LSTM(3, 5, seed=0)
    x = sequence(2, 1, 3)
    y, _ = layer(x)
    stream = layer.stream()
    layer.flat_params[...] = 0
    np.testing.assert_array_equal(stream.step(x[0]), y[0])


def test_outputs_are_new_arrays():
    stream = rf.GRU(3, 5, seed=0).stream()
    first = stream.step(np.ones((1, 3), np.float32))
    kept = first.copy()
    stream.step(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(first, kept)


@each_cell
def test_state_can_be_read_and_set(cell):
    layer = new_layer(cell, 3, 5, num_layers=2, seed=0)
    x = sequence(6, 2, 3)
    y, _ = layer(x)
    stream, other = layer.stream(2), layer.stream(2)
    for x_t in x[:3]:
        stream.step(x_t)
    other.state = stream.state
    np.testing.assert_array_equal(other.step(x[3]), y[3])
    other.state = None
    np.testing.assert_array_equal(other.step(x[0]), y[0])


def test_reset_of_some_rows_leaves_the_others():
    layer = rf.LSTM(3, 5, num_layers=2, seed=0)
    x = sequence(2, 3, 3)
    whole, _ = layer(x)
    fresh, _ = layer(x[1:])
    stream = layer.stream(3)
    stream.step(x[0])
    stream.reset([1])
    y = stream.step(x[1])
    np.testing.assert_array_equal(y[[0, 2]], whole[1][[0, 2]])
    np.testing.assert_array_equal(y[1], fresh[0][1])
    stream.reset()
    assert not any(array.any() for array in stream.state)
    with pytest.raises(IndexError):
        stream.reset(3)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, ::2],
        lambda x: np.asfortranarray(x[:, :3]),
        lambda x: x[:, :3].astype(">f4"),
        lambda x: np.frombuffer(b"." + x[:, :3].tobytes(), np.float32, offset=1).reshape(2, 3),
    ],
    ids=["strided", "Fortran order", "other byte order", "unaligned"],
)
def test_any_layout_is_taken(change):
    layer = rf.LSTM(3, 5, seed=0)
    x = change(sequence(1, 2, 6)[0])
    expected = layer.stream(2).step(np.ascontiguousarray(x, np.float32))
    np.testing.assert_array_equal(layer.stream(2).step(x), expected)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((1, 3)), TypeError, "x: expected float32, got float64"),
        (np.ones((1, 3), np.int32), TypeError, "x: expected float32, got int32"),
        (np.ones((1, 4), np.float32), ValueError, r"x: expected \(1, 3\), got \(1, 4\)"),
        (np.ones(3, np.float32), ValueError, r"x: expected \(1, 3\), got \(3,\)"),
    ],
)
def test_bad_input_is_named_and_leaves_the_state(x, error, message):
    stream = rf.GRU(3, 5, seed=0).stream()
    stream.step(np.ones((1, 3), np.float32))
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(x)
    np.testing.assert_array_equal(stream.state, before)


def test_bad_states_and_sizes_are_named():
    stream = rf.LSTM(3, 5, seed=0).stream()
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c\)"):
        stream.state = np.zeros((1, 1, 5), np.float32)
    with pytest.raises(ValueError, match=r"c: expected \(1, 1, 5\), got \(1, 2, 5\)"):
        stream.state = (np.zeros((1, 1, 5), np.float32), np.zeros((1, 2, 5), np.float32))
    with pytest.raises(ValueError, match="batch_size: expected"):
        rf.LSTM(3, 5, seed=0).stream(0)
    with pytest.raises(ValueError, match="bidirectional: expected False for a stream"):
        rf.LSTM(3, 5, bidirectional=True, seed=0).stream()


# ---- what a wrong call of the kernels would read out of bounds -------------------------------------------------------


def _weights(gates: int, hidden: int, inputs: int, **more: Any) -> dict[str, Any]:
    shapes = {"weight_ih": (gates * hidden, inputs), "weight_hh": (gates * hidden, hidden)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()} | {"unit_weights": (), **more}


@pytest.mark.parametrize(
    ("cells", "weights", "heads", "said"),
    [
        (["rnn_tanh"] * 2, [_weights(1, 4, 3), _weights(1, 400, 4)], 1, "expected layers of the same size"),
        (["rnn_tanh", "slstm"], [_weights(1, 4, 3), _weights(4, 4, 4)], 1, "expected layers of the same size"),
        (["rnn_tanh"], [_weights(1, 0, 3)], 1, "weight_ih: expected rows for at least one unit"),
        (["lstm"], [_weights(4, 8, 3, weight_hr=np.ones((8, 8), np.float32))], 2, "weight_hr: expected None"),
    ],
)
def test_the_kernels_refuse_layers_that_do_not_fit(
    cells: list[str], weights: list[dict[str, Any]], heads: int, said: str
) -> None:
    if heads > 1:
        weights[0]["weight_hh"] = weights[0]["weight_hh"][:, : weights[0]["weight_hh"].shape[1] // heads].copy()
    with pytest.raises(ValueError, match=said):
        _kernels.make_stream(cells, weights, 1, 1, heads, None, False, np.empty(0, np.float32))
