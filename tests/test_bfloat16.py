"""compute_dtype="bfloat16": what is rounded, in which order terms are added, and how little it costs.

A product takes its operands rounded to bfloat16, to nearest, ties to even, subnormal numbers to zero. Its terms go in
pairs, the odd one first and then the even one, each added in float32 with one rounding; x and the operand of the
recurrence are filled up to an even number of terms, each by itself. Products of two numbers of 8 bits are exact in
float32, so that NumPy can do the same to the bit, and so does every instruction set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast import _kernels
from shapes import Shape
from support import (
    CELLS,
    Array,
    as_state,
    as_tuple,
    assert_same_bits,
    make_problem,
    new_layer,
    solve,
    threads,
)
from variants import VARIANTS, WAYS

kernel = pytest.mark.kernel
BFLOAT16: dict[str, Any] = {"compute_dtype": "bfloat16"}


def rounded(a: Array) -> Array:
    """float32 numbers to the nearest bfloat16 ones, still as float32."""
    bits = a.view(np.uint32)
    nearest = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)
    small = (bits & np.uint32(0x7FFFFFFF)) < 0x00800000
    return np.where(small, bits & np.uint32(0x80000000), nearest).astype(np.uint32).view(np.float32)


def add_pairs(start: Array, a: Array, b: Array) -> Array:
    """start (R, C) + Σ a b over the terms of a (R, K) and b (C, K)."""
    a, b, total = rounded(a), rounded(b), start
    for k in range(0, a.shape[1], 2):
        for j in (k + 1, k):
            total = total + (np.outer(a[:, j], b[:, j]) if j < a.shape[1] else np.float32(0))
    assert total.dtype == np.float32
    return total


def sigmoid(z: Array) -> Array:
    return _kernels.math("sigmoid", z.ravel()).reshape(z.shape)


def tanh(z: Array) -> Array:
    return _kernels.math("tanh", z.ravel()).reshape(z.shape)


def random_numbers(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    """Of all sizes that occur, none so small or large that a product of two has other than 16 bits."""
    random = np.random.default_rng(seed)
    return [np.ldexp(random.standard_normal(shape, np.float32), random.integers(-8, 8, shape)) for shape in shapes]


def layer_and_parts(
    seed: int, inputs: int, hidden: int, bias: bool = True, **options: Any
) -> tuple[rf.RNN, dict[str, Array]]:
    layer = rf.RNN(inputs, hidden, nonlinearity="relu", bias=bias, seed=0, **BFLOAT16, **options)
    values = random_numbers(seed, *(array.shape for array in layer.params.values()))
    layer.load_state_dict(dict(zip(layer.params, values, strict=True)))
    return layer, {name.removesuffix("_l0"): array for name, array in layer.params.items()}


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_numbers_are_rounded_as_pytorch_rounds_them() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch isn't here to judge")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    numbers = np.concatenate([bits.view(np.float32), ((bits & 0xFFFF0000) | 0x8000).view(np.float32)])
    numbers = numbers[np.isnan(numbers) | (np.abs(numbers) >= 2.0**-126) | (numbers == 0)]
    theirs = torch.tensor(numbers).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(rounded(numbers[~np.isnan(numbers)]), theirs[~np.isnan(numbers)])


@kernel
def test_every_number_is_rounded_alike_in_a_product() -> None:
    """Times one, added to zero: ties, infinities, subnormal numbers, NaN, where they stand in a pair or alone."""
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, np.uint32)
    bits[::3] = (bits[::3] & 0xFFFF0000) | 0x8000
    numbers = bits.view(np.float32)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 2.0**-126, 3.4028235e38, 1.0]
    numbers = np.concatenate([numbers, np.array(special, np.float32)])
    for width in (1, 2, 3):
        layer = rf.MinGRU(width, 5, bias=False, seed=0, **BFLOAT16)
        for place in range(width):
            layer.params["weight_ih_l0"][...] = 0
            layer.params["weight_ih_l0"][:, place] = 1
            x = np.zeros((1, len(numbers), width), np.float32)
            x[0, :, place] = numbers
            _, _, tape = layer.forward(x)
            expected = np.where(np.isnan(numbers), np.float32(np.nan), rounded(numbers))
            for unit in range(5):
                np.testing.assert_array_equal(tape.gates[0, 0, :, 1, unit], expected)


# ---- forward ---------------------------------------------------------------------------------------------------------


@kernel
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 50), st.integers(1, 70)),
    bias=st.booleans(),
    number=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_sums_are_those_of_pairs_in_order_to_the_bit(
    sizes: tuple[int, int, int, int], bias: bool, number: int, seed: int
) -> None:
    """Of z = b + W x + R h at each step, whose two signs two layers show."""
    assert_sums_of_pairs(Shape(*sizes), bias, number, seed)


@kernel
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("shape", [Shape(2, 67, 33, 150), Shape(2, 1, 301, 417), Shape(3, 2, 64, 1024)], ids=str)
def test_sums_are_those_of_pairs_where_work_is_cut_into_blocks(shape: Shape, number: int) -> None:
    assert_sums_of_pairs(shape, True, number, 0)


def assert_sums_of_pairs(shape: Shape, bias: bool, number: int, seed: int) -> None:
    steps, batch, inputs, hidden = shape
    layer, parts = layer_and_parts(seed, inputs, hidden, bias)
    mirrored = rf.RNN(inputs, hidden, nonlinearity="relu", bias=bias, seed=0, **BFLOAT16)
    mirrored.load_state_dict({name: -array for name, array in layer.params.items()})
    x, h = random_numbers(seed + 1, (steps, batch, inputs), (batch, hidden))
    before = layer.flat_params.copy()
    for t in range(steps):
        start = np.zeros((batch, hidden), np.float32)
        if bias:
            start = start + (parts["bias_ih"] + parts["bias_hh"])
        z = add_pairs(add_pairs(start, x[t], parts["weight_ih"]), h, parts["weight_hh"])
        with threads(number):
            y, _ = layer(x[t : t + 1], h[None])
            minus, _ = mirrored(x[t : t + 1], h[None])
        np.testing.assert_array_equal(y[0], np.maximum(z, 0))
        np.testing.assert_array_equal(minus[0], np.maximum(-z, 0))
        h = y[0] / 64  # as it is: rounded anew where it is read
    assert_same_bits(layer.flat_params, before)


def moderate_layer(cell: type[Any], inputs: int, hidden: int, **options: Any) -> tuple[Any, dict[str, Array]]:
    """A layer whose weights are of all sizes, but leave its gates between their ends; and its parameters."""
    layer = cell(inputs, hidden, seed=0, **BFLOAT16, **options)
    random = np.random.default_rng(0)
    for value in layer.params.values():
        value[...] = np.ldexp(random.standard_normal(value.shape, np.float32), random.integers(-8, 0, value.shape))
    return layer, {name.removesuffix("_l0"): array for name, array in layer.params.items()}


@kernel
@pytest.mark.parametrize("number", [1, 2])
def test_the_candidate_reads_the_reset_state_in_pairs_to_the_bit(number: int) -> None:
    """GRU, reset before: n = tanh(b + W_n x + R_n (r h)), whose operand the step itself has made."""
    layer, parts = moderate_layer(rf.GRU, 19, 37, reset_after=False)
    x, h = np.random.default_rng(1).standard_normal((6, 7, 19), np.float32), np.zeros((7, 37), np.float32)
    w, r = (parts[name].reshape(3, 37, -1) for name in ("weight_ih", "weight_hh"))
    bias = (parts["bias_ih"] + parts["bias_hh"]).reshape(3, 37)
    with threads(number):
        y, _, tape = layer.forward(x)
    for t in range(6):
        gates = [add_pairs(add_pairs(bias[k][None], x[t], w[k]), h, r[k]) for k in (0, 1)]
        reset, update = (sigmoid(z) for z in gates)
        assert_same_bits(tape.gates[0, t, :, 0], reset)
        assert_same_bits(tape.gates[0, t, :, 1], update)
        assert_same_bits(tape.gates[0, t, :, 2], tanh(add_pairs(add_pairs(bias[2][None], x[t], w[2]), reset * h, r[2])))
        h = y[t]


@kernel
@pytest.mark.parametrize("number", [1, 2])
def test_a_projection_reads_its_operand_in_pairs_to_the_bit(number: int) -> None:
    """LSTM with proj_size: h = W_hr (o tanh c), and the gates of the next step read that h."""
    layer, parts = moderate_layer(rf.LSTM, 19, 37, proj_size=11)
    x, h = np.random.default_rng(1).standard_normal((6, 7, 19), np.float32), np.zeros((7, 11), np.float32)
    bias = parts["bias_ih"] + parts["bias_hh"]
    with threads(number):
        y, _, tape = layer.forward(x)
    for t in range(6):
        z = add_pairs(add_pairs(bias[None], x[t], parts["weight_ih"]), h, parts["weight_hh"]).reshape(7, 4, 37)
        output = sigmoid(z[:, 3])
        assert_same_bits(tape.gates[0, t, :, 3], output)
        made = output * tanh(tape.cell[0, t])
        assert_same_bits(y[t], add_pairs(np.zeros((7, 11), np.float32), made, parts["weight_hr"]))
        h = y[t]


@kernel
def test_a_whole_sequence_rounds_h_where_it_is_read() -> None:
    """The output keeps its 24 bits; recurrent dropout multiplies before h is rounded."""
    layer, parts = layer_and_parts(0, 7, 33, bias=False, recurrent_dropout=0.4)
    layer.params["weight_hh_l0"] /= 64
    x, h = random_numbers(1, (6, 5, 7), (5, 33))
    y, _, tape = layer.forward(x, h[None])
    scale = tape.record.scales[0]
    assert (scale == 0).any()
    for t in range(6):
        z = add_pairs(np.zeros((5, 33), np.float32), x[t], parts["weight_ih"])
        h = np.maximum(add_pairs(z, h * scale, parts["weight_hh"]), 0)
        np.testing.assert_array_equal(y[t], h)
    assert (rounded(y) != y).any()


SINGLE_PHASE = [name for name in CELLS if name != "gru_reset_before"]


@kernel
@pytest.mark.parametrize("cell", [*SINGLE_PHASE, "slstm-2_heads", "slstm-3_heads", "lstm-layer_norm", "gru-layer_norm"])
def test_small_integers_lose_nothing(cell: str) -> None:
    """Where every sum is exact, one step is that of float32 to the bit: neither equations nor biases are rounded."""
    cell, options = VARIANTS[cell] if "-" in cell else (cell, {})
    problem = make_problem(cell, Shape(1, 13, 23, 48), **options)
    random = np.random.default_rng(0)

    def integers(a: Array) -> Array:
        return random.integers(-3, 3, a.shape, endpoint=True).astype(np.float32)

    values = {"weight": integers, "bias": lambda a: np.round(4096 * a) / 4096, "ln": lambda a: a}
    params = {name: values[name.partition("_")[0]](a) for name, a in problem.params.items()}
    assert problem.state is not None
    state = (integers(problem.state[0]), *problem.state[1:])
    exact = replace(problem, params=params, x=integers(problem.x), state=state)
    calls = []
    for of_type in ({}, BFLOAT16):
        layer = exact.layer(np.float32, **of_type)
        y, final = layer(exact.x, as_state(state))
        calls.append((y, as_tuple(final)))
    assert_same_bits(*calls)


# ---- backward --------------------------------------------------------------------------------------------------------


@kernel
@given(
    sizes=st.tuples(st.just(1), st.integers(1, 40), st.integers(1, 50), st.integers(1, 70)),
    number=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_gradients_are_sums_of_pairs_of_units_and_of_rows(
    sizes: tuple[int, int, int, int], number: int, seed: int
) -> None:
    """dx = Wᵀ dz and dh = Rᵀ dz sum over units, dW = dz xᵀ and dR = dz hᵀ over the batch; db isn't rounded."""
    _, batch, inputs, hidden = sizes
    layer, parts = layer_and_parts(seed, inputs, hidden)
    x, h, dy = random_numbers(seed + 1, (1, batch, inputs), (1, batch, hidden), (1, batch, hidden))
    with threads(number):
        y, _, tape = layer.forward(x, h)
        dx, dh = layer.backward(tape, dy)
    dz = np.where(y[0] > 0, dy[0], np.float32(0))
    assert dx is not None
    for got, weight in ((dx, "weight_ih"), (dh, "weight_hh")):
        nothing = np.zeros_like(got[0])
        np.testing.assert_array_equal(got[0], add_pairs(nothing, dz, parts[weight].T.copy()))
    for kind, operand in (("ih", x[0]), ("hh", h[0])):
        gradient = layer.grads[f"weight_{kind}_l0"]
        expected = add_pairs(np.zeros_like(gradient), dz.T.copy(), operand.T.copy())
        np.testing.assert_array_equal(gradient, expected)
        total = np.zeros(hidden, np.float32)
        for row in dz:
            total = total + row
        np.testing.assert_array_equal(layer.grads[f"bias_{kind}_l0"], total)


# ---- how little it costs ---------------------------------------------------------------------------------------------


def far(a: Array, b: Array) -> float:
    """The distance of two arrays over the length of the second."""
    wide = b.astype(np.float64)
    return float(np.linalg.norm(a - wide) / max(np.linalg.norm(wide), 1e-30))


@pytest.mark.parametrize("variant", [*CELLS, *WAYS])
def test_results_are_those_of_float32_within_what_eight_bits_tell(variant: str) -> None:
    """Outputs, states and gradients of two layers in two directions. A rounding is at most 2⁻⁹ of a number.

    Gradients may be further off: a relu that is shut instead of open is a whole number, not a rounding; and layer norm
    brings what a projection to few features leaves small up to size, roundings too.
    """
    cell, options = WAYS.get(variant, (variant, {}))
    options = {name: value for name, value in options.items() if name != "grad_clip"}
    whole: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True}
    problem = make_problem(cell, Shape(9, 20, 24, 48), **whole, **options)
    single = solve(problem, np.float32)
    got = solve(replace(problem, options={**problem.options, **BFLOAT16}), np.float32)
    magnified = "relu" in cell or {"layer_norm", "proj_size"} <= options.keys()
    for name, expected in single.items():
        assert got[name].dtype == np.float32
        assert far(got[name], expected) < (2.0**-3 if magnified else 2.0**-4), name
    assert far(got["y"], single["y"]) > 2.0**-9 / 64  # it did round


def train(cell: str, **options: Any) -> list[float]:
    """The losses of a classifier of which of the ten steps had the largest first feature."""
    layer = new_layer(cell, 6, 32, seed=0, **options)
    model = rf.Sequential(layer, rf.Last(), rf.Linear(32, 10, seed=1))
    optimizer = rf.Adam(model, lr=0.01)
    random = np.random.default_rng(0)
    losses = []
    for _ in range(120):
        x = random.standard_normal((10, 64, 6), np.float32)
        logits, _, tape = model.forward(x)
        loss, dlogits = rf.softmax_cross_entropy(logits, x[..., 0].argmax(axis=0))
        model.zero_grad()
        model.backward(tape, dlogits)
        optimizer.step(clip_norm=1.0)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("cell", ["lstm", "slstm"])
def test_training_comes_as_far_as_in_float32(cell: str) -> None:
    single, got = train(cell), train(cell, **BFLOAT16)
    end, of_single = np.mean(got[-20:]), np.mean(single[-20:])
    assert of_single < 0.6 * single[0]
    assert abs(end - of_single) < 0.1 * of_single


def test_nan_and_infinity_stay_in_their_own_row() -> None:
    """Also where two rows of a batch make a pair in the gradient of a weight: only sums over the batch see them."""
    problem = make_problem("lstm", Shape(5, 7, 6, 21), num_layers=2, **BFLOAT16)
    clean = solve(problem, np.float32)
    problem.x[1, 3] = np.nan
    problem.x[1, 4] = np.inf
    spoilt = solve(problem, np.float32)
    others = [0, 1, 2, 5, 6]
    for name in ("y", "dx", "final state 0", "gradient of state 1"):
        assert_same_bits(spoilt[name][:, others], clean[name][:, others])
    assert np.isnan(spoilt["y"][1:, 3]).all() and np.isnan(spoilt["gradient of weight_ih_l0"]).any()


def test_padding_is_never_read() -> None:
    problem = make_problem("gru", Shape(6, 9, 7, 30), num_layers=2, bidirectional=True, ragged=True, **BFLOAT16)
    assert np.isnan(problem.x).any()
    assert all(np.isfinite(array).all() for array in solve(problem, np.float32).values())
