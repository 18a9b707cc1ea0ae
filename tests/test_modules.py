"""What every module promises: parameters, shapes, states, tapes, dropout, composition, copies, and its refusals."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import reference
from support import CELLS, as_state, new_layer

Array = np.ndarray[Any, np.dtype[Any]]
Make = Callable[..., Any]


def recurrent(cell: str, inputs: int, hidden: int, layers: int = 1, **options: Any) -> Any:
    return new_layer(cell, inputs, hidden, num_layers=layers, **options)


RECURRENT: dict[str, Make] = {name: partial(recurrent, name) for name in CELLS}
STATES = {name: len(cell.initial) for name, cell in reference.CELLS.items()}

# Every module with steps, for x (T, B, 4) and with y (T, B, 5) but for Dropout, Last and Embedding.
MODULES: dict[str, Make] = {
    **{name: lambda make=make, **options: make(4, 5, seed=1, **options) for name, make in RECURRENT.items()},
    "embedding": lambda **options: rf.Embedding(7, 5, seed=1, **options),
    "linear": lambda **options: rf.Linear(4, 5, seed=1, **options),
    "dropout": lambda **options: rf.Dropout(0.5, seed=1, **options),
    "last": lambda **options: rf.Last(**options),
}


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def input_of(name: str, steps: int, batch: int, seed: int = 0) -> Array:
    if name == "embedding":
        return np.random.default_rng(seed).integers(0, 7, (steps, batch))
    return draw(steps, batch, 4, seed=seed)


def leaves(state: Any) -> list[Array]:
    """The arrays of a state, however deep."""
    if state is None:
        return []
    return [state] if isinstance(state, np.ndarray) else [array for entry in state for array in leaves(entry)]


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def language_model(dropout: float = 0.0, **options: Any) -> rf.Sequential:
    """Embedding, two recurrent layers, dropout, linear: 7 tokens."""
    return rf.Sequential(
        rf.Embedding(7, 4, seed=1, **options),
        rf.LSTM(4, 5, 2, seed=2, dropout=dropout, **options),
        rf.Dropout(dropout, seed=3),
        rf.Linear(5, 7, seed=4, **options),
    )


# ---- parameters ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [(rf.RNN, "RNN"), (rf.LSTM, "LSTM"), (rf.GRU, "GRU")])
def test_names_shapes_and_order_are_pytorchs(ours: Make, theirs: str, bidirectional: bool, bias: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of names and shapes")
    options = {"bidirectional": bidirectional, "bias": bias}
    expected = getattr(torch.nn, theirs)(4, 5, 2, **options).state_dict()
    params = ours(4, 5, 2, **options).params
    assert [(name, view.shape) for name, view in params.items()] == [
        (name, tuple(tensor.shape)) for name, tensor in expected.items()
    ]


def test_linear_and_embedding_have_pytorchs_names_and_shapes() -> None:
    assert {name: view.shape for name, view in rf.Linear(4, 5).params.items()} == {"weight": (5, 4), "bias": (5,)}
    assert {name: view.shape for name, view in rf.Linear(4, 5, bias=False).params.items()} == {"weight": (5, 4)}
    assert {name: view.shape for name, view in rf.Embedding(7, 5).params.items()} == {"weight": (7, 5)}


@pytest.mark.parametrize("name", MODULES)
def test_params_and_grads_are_views_of_one_flat_buffer_each(name: str) -> None:
    module = MODULES[name]()
    for views, flat in ((module.params, module.flat_params), (module.grads, module.flat_grads)):
        flat[...] = np.arange(flat.size)
        assert flat.size == sum(view.size for view in views.values())
        assert [value for view in views.values() for value in view.ravel()] == list(range(flat.size))
    module.zero_grad()
    assert not module.flat_grads.any()
    assert list(module.params) == list(module.grads)


def test_assigning_to_a_name_writes_into_the_buffer() -> None:
    layer = rf.Linear(2, 2, seed=0)
    layer.params["weight"] = [[1, 2], [3, 4]]
    layer.grads["bias"] += 1
    assert layer.flat_params[:4].tolist() == [1, 2, 3, 4]
    assert layer.flat_grads[4:].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"weight: expected \(2, 2\), got \(2,\)"):
        layer.params["weight"] = [1, 2]
    with pytest.raises(KeyError):
        layer.params["wieght"] = 0


def test_state_dict_holds_copies() -> None:
    layer = rf.Linear(2, 2, seed=0)
    layer.state_dict()["weight"][...] = 7
    assert not (layer.params["weight"] == 7).any()


@pytest.mark.parametrize("theirs", ["RNN", "LSTM", "GRU"])
def test_load_state_dict_takes_pytorchs_unchanged(theirs: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes the state dict")
    tensors = getattr(torch.nn, theirs)(4, 5, 2, bidirectional=True).state_dict()
    layer = getattr(rf, theirs)(4, 5, 2, bidirectional=True, dtype=np.float64)
    layer.load_state_dict(tensors)
    assert all(np.array_equal(layer.params[name], tensor.numpy()) for name, tensor in tensors.items())
    parameters = dict(getattr(torch.nn, theirs)(4, 5, 2, bidirectional=True).named_parameters())  # require gradients
    layer.load_state_dict(parameters)
    assert np.array_equal(layer.params["weight_hh_l1"], parameters["weight_hh_l1"].detach().numpy())


def test_load_state_dict_takes_lists_and_integers() -> None:
    layer = rf.Linear(2, 1, seed=0)
    layer.load_state_dict({"weight": [[1, 2]], "bias": np.array([3])})
    assert layer.flat_params.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, ValueError, "missing bias"),
        ({"bais": [0.0]}, ValueError, "unexpected bais"),
        ({"weight": [[1.0]]}, ValueError, r"weight: expected \(1, 2\), got \(1, 1\)"),
        ({"weight": [["a", "b"]]}, TypeError, "weight: expected an array of real numbers"),
        ({"weight": [[1j, 2]]}, TypeError, "weight: expected an array of real numbers, got complex128"),
        ({"weight": [[1], [1, 2]]}, TypeError, "weight: expected an array, got list"),
    ],
)
def test_load_state_dict_names_the_fault_and_loads_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    layer = rf.Linear(2, 1, seed=0)
    before = layer.flat_params.copy()
    values: dict[str, Any] = {"weight": [[1.0, 2.0]], "bias": [3.0]} | change
    with pytest.raises(error, match=message):
        layer.load_state_dict({name: value for name, value in values.items() if value is not None})
    assert np.array_equal(layer.flat_params, before)


def test_load_state_dict_names_all_faults_at_once() -> None:
    with pytest.raises(ValueError, match=r"missing bias; unexpected extra; weight: expected \(1, 2\), got \(2, 1\)"):
        rf.Linear(2, 1).load_state_dict({"weight": [[1.0], [2.0]], "extra": 0})
    with pytest.raises(TypeError, match="state_dict: expected a mapping name -> array, got list"):
        rf.Linear(2, 1).load_state_dict([1.0])  # type: ignore[arg-type]


# ---- calls -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", RECURRENT)
def test_shapes_of_a_recurrent_layer(name: str, layers: int, bidirectional: bool, batch_first: bool) -> None:
    directions = 2 if bidirectional else 1
    layer = RECURRENT[name](4, 5, layers, bidirectional=bidirectional, batch_first=batch_first, seed=0)
    x = draw(3, 6, 4)
    y, state, tape = layer.forward(x)
    steps, batch = (6, 3) if batch_first else (3, 6)
    assert y.shape == (3, 6, directions * 5)
    assert [array.shape for array in leaves(state)] == [(layers * directions, batch, 5)] * STATES[name]
    assert tape.hidden.shape == (layers * directions, steps, batch, 5)
    cells = {layer._cell_of(k) for k in range(layers)}  # an SRU's depend on how many features they read
    gates = min(len(reference.CELLS[cell].gates) for cell in cells)
    assert tape.gates.shape == (layers * directions, steps, batch, gates, 5)
    if STATES[name] > 1:
        assert tape.cell.shape == tape.hidden.shape
    else:
        with pytest.raises(AttributeError, match="no state but h"):
            _ = tape.cell
    dx, dstate = layer.backward(tape, np.ones_like(y))
    assert dx is not None
    assert dx.shape == x.shape
    assert [array.shape for array in leaves(dstate)] == [array.shape for array in leaves(state)]


@pytest.mark.parametrize("name", MODULES)
def test_call_and_forward_give_the_same_bits(name: str) -> None:
    module, x = MODULES[name]().eval(), input_of(name, 6, 3)
    y, state = module(x)
    again, state_again, _ = module.forward(x)
    assert np.array_equal(y, again)
    assert same(state, state_again)


@pytest.mark.parametrize("name", MODULES)
def test_batch_first_is_the_same_with_axes_swapped(name: str) -> None:
    x, lengths = input_of(name, 6, 3), [6, 0, 4]
    first, second = MODULES[name]().eval(), MODULES[name](batch_first=True).eval()
    y, state, tape = first.forward(x, lengths=lengths)
    swapped, swapped_state, swapped_tape = second.forward(x.swapaxes(0, 1), lengths=lengths)
    assert same(state, swapped_state)
    if name == "last":
        assert np.array_equal(y, swapped)
        return
    assert np.array_equal(y, swapped.swapaxes(0, 1))
    dy = draw(*y.shape, seed=1)
    dx, _ = first.backward(tape, dy)
    swapped_dx, _ = second.backward(swapped_tape, dy.swapaxes(0, 1))
    assert np.array_equal(first.flat_grads, second.flat_grads)
    if name != "embedding":
        assert dx is not None and swapped_dx is not None
        assert np.array_equal(dx, swapped_dx.swapaxes(0, 1))


def test_batch_first_is_no_copy() -> None:
    x = draw(3, 6, 4)
    _, _, tape = rf.LSTM(4, 5, batch_first=True, seed=0).forward(x)
    assert np.shares_memory(tape.record.inputs[0], x)


@pytest.mark.parametrize("name", RECURRENT)
def test_bidirectional_is_two_layers_side_by_side(name: str) -> None:
    both = RECURRENT[name](4, 5, bidirectional=True, seed=0)
    one, other = RECURRENT[name](4, 5), RECURRENT[name](4, 5)
    one.load_state_dict({key: view for key, view in both.params.items() if not key.endswith("_reverse")})
    other.load_state_dict(
        {key.removesuffix("_reverse"): view for key, view in both.params.items() if key.endswith("_reverse")}
    )
    x = draw(6, 3, 4)
    y, state = both(x)
    forwards, last = one(x)
    backwards, first = other(x[::-1])
    assert np.array_equal(y, np.concatenate([forwards, backwards[::-1]], axis=2))
    for array, a, b in zip(leaves(state), leaves(last), leaves(first), strict=True):
        assert np.array_equal(array, np.concatenate([a, b]))


@pytest.mark.parametrize("name", RECURRENT)
def test_a_stack_is_its_layers_one_after_another(name: str) -> None:
    stack = RECURRENT[name](4, 5, 2, seed=0)
    layers = [RECURRENT[name](4, 5), RECURRENT[name](5, 5)]
    for k, layer in enumerate(layers):
        mine = {key: view for key, view in stack.params.items() if key.endswith(f"_l{k}")}
        layer.load_state_dict({key[:-1] + "0": view for key, view in mine.items()})
    chain = rf.Sequential(*layers)
    x = draw(6, 3, 4)
    y, _, tape = stack.forward(x)
    expected, _, chain_tape = chain.forward(x)
    assert np.array_equal(y, expected)
    dy = draw(*y.shape, seed=1)
    assert np.array_equal(stack.backward(tape, dy)[0], chain.backward(chain_tape, dy)[0])  # type: ignore[arg-type]
    assert np.array_equal(stack.flat_grads, chain.flat_grads)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_sequence_can_be_cut_where_its_state_is_carried(name: str) -> None:
    layer, x = RECURRENT[name](4, 5, 2, seed=0), draw(7, 3, 4)
    whole, end = layer(x)
    first, state = layer(x[:3])
    second, state = layer(x[3:], state)
    assert np.array_equal(whole, np.concatenate([first, second]))
    assert same(end, state)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(name: str, steps: int, batch: int) -> None:
    module = MODULES[name]()
    y, _, tape = module.forward(input_of(name, steps, batch), lengths=np.zeros(batch, int))
    assert y.shape[-2] == batch
    module.backward(tape, np.ones_like(y))
    assert not module.flat_grads.any()


@pytest.mark.parametrize("name", RECURRENT)
def test_without_steps_the_state_stays(name: str) -> None:
    layer = RECURRENT[name](4, 5, seed=0)
    _, state = layer(draw(6, 3, 4))
    _, after, tape = layer.forward(draw(0, 3, 4), state)
    assert same(state, after)
    _, dstate = layer.backward(tape, None, state)
    assert same(dstate, state)


@pytest.mark.parametrize("name", RECURRENT)
def test_no_state_stands_for_the_initial_one(name: str) -> None:
    layer, x = RECURRENT[name](4, 5, seed=0), draw(6, 3, 4)
    y, state, tape = layer.forward(x)
    initial = tuple(np.full((1, 3, 5), value, np.float32) for value in reference.CELLS[name].initial)
    again, _, tape_again = layer.forward(x, as_state(initial))
    assert np.array_equal(y, again)
    dstate = as_state(tuple(np.ones_like(array) for array in leaves(state)))
    dx, dinitial = layer.backward(tape, None, dstate)
    dx_again, dinitial_again = layer.backward(tape_again, np.zeros_like(y), dstate)
    assert np.array_equal(dx, dx_again)
    assert same(dinitial, dinitial_again)


# ---- lengths and resets ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODULES)
def test_padding_is_never_read_and_comes_out_as_zero(name: str) -> None:
    lengths = np.array([6, 0, 4])
    padding = np.arange(6)[:, None] >= lengths
    x = input_of(name, 6, 3)
    dirty = x.copy()
    dirty[padding] = -1 if name == "embedding" else np.nan
    x[padding] = 0
    clean_module, module = MODULES[name](), MODULES[name]()
    expected, _, clean_tape = clean_module.forward(x, lengths=lengths)
    y, _, tape = module.forward(dirty, lengths=lengths)
    assert np.array_equal(y, expected)
    dy = draw(*y.shape, seed=1)
    if name != "last":
        assert not y[padding].any()
        clean_dy = dy.copy()
        clean_dy[padding], dy[padding] = 0, np.nan
    else:
        assert not y[1].any()
        clean_dy = dy
    clean_dx, _ = clean_module.backward(clean_tape, clean_dy)
    dx, _ = module.backward(tape, dy)
    assert np.array_equal(module.flat_grads, clean_module.flat_grads)
    if name != "embedding":
        assert dx is not None and clean_dx is not None
        assert np.array_equal(dx, clean_dx)
        assert not dx[padding].any()


@pytest.mark.parametrize("name", RECURRENT)
def test_a_padded_row_is_the_row_alone(name: str) -> None:
    layer, x = RECURRENT[name](4, 5, 2, bidirectional=True, seed=0), draw(6, 3, 4)
    y, state, tape = layer.forward(x, lengths=[6, 2, 4])
    alone, end, alone_tape = layer.forward(x[:4, 2:])
    assert np.array_equal(y[:4, 2:], alone)
    assert all(np.array_equal(a[:, 2:], b) for a, b in zip(leaves(state), leaves(end), strict=True))
    assert np.array_equal(tape.gates[:, :4, 2:], alone_tape.gates)
    assert not tape.gates[:, 4:, 2].any()
    assert not tape.hidden[:, 4:, 2].any()


@pytest.mark.parametrize("name", RECURRENT)
def test_a_reset_starts_anew(name: str) -> None:
    layer, x = RECURRENT[name](4, 5, seed=0), draw(6, 2, 4)
    resets = np.zeros((6, 2), bool)
    resets[3, 1] = resets[0, 0] = True
    _, state = layer(x)
    y, _ = layer(x, state, resets=resets)
    assert np.array_equal(y[:, 0], layer(x)[0][:, 0])
    assert np.array_equal(y[:3, 1], layer(x[:3], state)[0][:, 1])
    assert np.array_equal(y[3:, 1], layer(x[3:])[0][:, 1])
    swapped = RECURRENT[name](4, 5, seed=0, batch_first=True)
    assert np.array_equal(swapped(x.swapaxes(0, 1), state, resets=resets.T)[0], y.swapaxes(0, 1))


def test_last_takes_the_last_valid_step() -> None:
    x = draw(4, 3, 2)
    y, state, tape = rf.Last().forward(x, lengths=[4, 0, 2])
    assert state is None
    assert np.array_equal(y, np.stack([x[3, 0], np.zeros(2, np.float32), x[1, 2]]))
    dx, _ = tape.module.backward(tape, np.ones_like(y))
    expected = np.zeros_like(x)
    expected[3, 0] = expected[1, 2] = 1
    assert dx is not None
    assert np.array_equal(dx, expected)
    assert np.array_equal(rf.Last()(x)[0], x[-1])


# ---- tapes -----------------------------------------------------------------------------------------------------------
def test_y_of_forward_is_read_only_and_x_is_not_copied() -> None:
    for name, make in MODULES.items():
        y, _, _ = make().forward(input_of(name, 3, 2))
        with pytest.raises(ValueError, match="read-only"):
            y[...] = 0
    x = draw(3, 2, 4)
    _, _, tape = rf.GRU(4, 5, seed=0).forward(x)
    assert np.shares_memory(tape.record.inputs[0], x)


def test_a_changed_initial_state_does_not_reach_backward() -> None:
    layer, x = rf.LSTM(4, 5, seed=0), draw(3, 2, 4)
    _, state = layer(x)
    kept = copy.deepcopy(state)
    y, _, tape = layer.forward(x, state)
    for array in state:
        array[...] = np.nan
    dx, _ = layer.backward(tape, np.ones_like(y))
    y, _, tape = layer.forward(x, kept)
    assert np.array_equal(dx, layer.backward(tape, np.ones_like(y))[0])  # type: ignore[arg-type]


def test_the_arrays_of_a_tape_are_copies() -> None:
    _, _, tape = rf.LSTM(4, 5, seed=0).forward(draw(3, 2, 4))
    for name in ("hidden", "cell", "gates"):
        before = getattr(tape, name).copy()
        getattr(tape, name)[...] = 7
        assert np.array_equal(getattr(tape, name), before)


def test_the_tape_holds_what_the_equations_say() -> None:
    layer = rf.LSTM(4, 5, 2, seed=0)
    y, (h, c), tape = layer.forward(draw(6, 3, 4))
    i, f, g, o = (tape.gates[..., k, :] for k in range(4))
    before = np.concatenate([np.zeros_like(tape.cell[:, :1]), tape.cell[:, :-1]], axis=1)
    np.testing.assert_allclose(tape.cell, f * before + i * g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tape.hidden, o * np.tanh(tape.cell), rtol=1e-5, atol=1e-6)
    assert np.array_equal(tape.hidden[-1], y)
    assert np.array_equal(tape.hidden[:, -1], h)
    assert np.array_equal(tape.cell[:, -1], c)


@pytest.mark.parametrize("name", MODULES)
def test_backward_consumes_the_tape(name: str) -> None:
    module = MODULES[name]()
    y, _, tape = module.forward(input_of(name, 3, 2))
    module.backward(tape, np.ones_like(y), keep=True)
    once = module.flat_grads.copy()
    module.backward(tape, np.ones_like(y))
    assert np.array_equal(module.flat_grads, 2 * once)
    with pytest.raises(RuntimeError, match="consumed by backward"):
        module.backward(tape, np.ones_like(y))
    if name in RECURRENT:
        with pytest.raises(RuntimeError, match="consumed by backward"):
            _ = tape.hidden


def test_a_refused_backward_leaves_tape_and_gradients() -> None:
    model = language_model()
    y, _, tape = model.forward(np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError, match=r"dy: expected \(3, 2, 7\), got \(3, 2, 5\)"):
        model.backward(tape, draw(3, 2, 5))
    with pytest.raises(ValueError, match=r"dh: expected \(2, 2, 5\), got \(1, 2, 5\)"):
        model.backward(tape, np.ones_like(y), (None, (draw(1, 2, 5), draw(1, 2, 5)), None, None))
    with pytest.raises(ValueError, match="dstate: expected 4 entries, one a module, got 1"):
        model.backward(tape, np.ones_like(y), (None,))
    assert not model.flat_grads.any()
    model.backward(tape, np.ones_like(y))


def test_several_tapes_may_be_alive() -> None:
    layer, first, second = rf.GRU(4, 5, seed=0), draw(3, 2, 4), draw(5, 2, 4, seed=1)
    y1, state, tape1 = layer.forward(first)
    y2, _, tape2 = layer.forward(second, state)
    _, dstate = layer.backward(tape2, np.ones_like(y2))
    layer.backward(tape1, np.ones_like(y1), dstate)
    windows = layer.flat_grads.copy()
    layer.zero_grad()
    y, _, tape = layer.forward(np.concatenate([first, second]))
    layer.backward(tape, np.ones_like(y))
    np.testing.assert_allclose(windows, layer.flat_grads, rtol=1e-5, atol=1e-6)


def test_a_tape_refuses_another_module_and_changed_parameters() -> None:
    layer, x = rf.GRU(4, 5, seed=0), draw(3, 2, 4)
    y, _, tape = layer.forward(x)
    with pytest.raises(RuntimeError, match="another module"):
        rf.GRU(4, 5, seed=0).backward(tape, np.ones_like(y))
    changes: dict[str, Callable[[], object]] = {
        "an optimiser's step": rf.SGD(layer, lr=0.0).step,
        "load_state_dict": lambda: layer.load_state_dict(layer.state_dict()),
        "mark_changed": layer.mark_changed,
        "a move into a Sequential": lambda: rf.Sequential(layer),
    }
    for change in changes.values():
        y, _, tape = layer.forward(x)
        change()
        with pytest.raises(RuntimeError, match="the parameters have changed"):
            layer.backward(tape, np.ones_like(y))


def test_a_part_that_changes_makes_the_whole_tape_stale() -> None:
    model = language_model()
    y, _, tape = model.forward(np.zeros((3, 2), np.int64))
    model[1].load_state_dict(model[1].state_dict())
    with pytest.raises(RuntimeError, match="the parameters have changed"):
        model.backward(tape, np.ones_like(y))


@pytest.mark.parametrize("name", MODULES)
def test_gradients_accumulate_and_dx_can_be_left_out(name: str) -> None:
    module, x = MODULES[name](), input_of(name, 3, 2)
    y, _, tape = module.forward(x)
    dx, _ = module.backward(tape, np.ones_like(y), need_dx=False, keep=True)
    assert dx is None
    once = module.flat_grads.copy()
    module.backward(tape, np.ones_like(y))
    assert np.array_equal(module.flat_grads, 2 * once)


def test_backward_adds_into_the_gradients_it_is_given() -> None:
    model = language_model()
    y, _, tape = model.forward(np.ones((3, 2), np.int64))
    model.backward(tape, np.ones_like(y), keep=True)
    flat = np.ones_like(model.flat_grads)
    model.backward(tape, np.ones_like(y), grads=flat, keep=True)
    np.testing.assert_allclose(flat, 1 + model.flat_grads, rtol=1e-6)
    named = {name: np.zeros_like(view) for name, view in model.grads.items()}
    model.backward(tape, np.ones_like(y), grads=named, keep=True)
    assert all(np.array_equal(named[name], view) for name, view in model.grads.items())
    for wrong, error, message in (
        (flat[:-1], ValueError, r"grads: expected \(\d+,\), got"),
        (flat.astype(np.float64), TypeError, "grads: expected float32, got float64"),
        (np.zeros(2 * flat.size, np.float32)[::2], ValueError, "grads: expected a writable, aligned, C-contiguous"),
        ({"weight": flat}, ValueError, r"grads: expected the names \['0.weight'"),
        ([0.0], TypeError, "grads: expected an array or a mapping"),
    ):
        with pytest.raises(error, match=message):
            model.backward(tape, np.ones_like(y), grads=wrong, keep=True)  # type: ignore[arg-type]


def test_concurrent_calls_give_what_single_ones_give() -> None:
    model, count = language_model(), 4
    tokens = [np.full((8, 2), k) for k in range(count)]
    alone, together = np.zeros((2, count, model.flat_grads.size), np.float32)

    def run(k: int, grads: Array) -> None:
        y, _, tape = model.forward(tokens[k])
        model.backward(tape, np.ones_like(y), grads=grads)

    for k in range(count):
        run(k, alone[k])
    workers = [threading.Thread(target=run, args=(k, together[k])) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.array_equal(alone, together)
    assert not model.flat_grads.any()


# ---- gradients of a whole model --------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_a_model_match_central_differences(batch_first: bool) -> None:
    """Linear, bidirectional stack with dropout, dropout, last, linear; ragged, with resets and states."""
    model = rf.Sequential(
        rf.Linear(3, 4, seed=1, dtype=np.float64, batch_first=batch_first),
        rf.LSTM(4, 3, 2, dropout=0.4, bidirectional=True, seed=2, dtype=np.float64, batch_first=batch_first),
        rf.Dropout(0.3, seed=3, batch_first=batch_first),
        rf.GRU(6, 4, seed=4, dtype=np.float64, batch_first=batch_first),
        rf.Last(batch_first=batch_first),
        rf.Linear(4, 2, seed=5, dtype=np.float64),
    )
    x = draw(5, 3, 3, dtype=np.float64)
    resets = np.zeros((5, 3), bool)
    resets[2, 0] = resets[1, 2] = True
    states = [draw(4, 3, 3, seed=k, dtype=np.float64) for k in (6, 7)] + [draw(1, 3, 4, seed=8, dtype=np.float64)]
    target, weights = draw(3, 2, seed=9, dtype=np.float64), [draw(*s.shape, seed=10, dtype=np.float64) for s in states]
    key = model.rng_state
    if batch_first:
        x, resets = np.ascontiguousarray(x.swapaxes(0, 1)), resets.T

    def run() -> tuple[float, Any, Any, Any]:
        model.rng_state = key
        y, state, tape = model.forward(x, (None, tuple(states[:2]), None, states[2], None, None), [5, 4, 3], resets)
        loss, dy = rf.mse(y, target)
        ends = leaves(state)
        return loss + sum(float((w * e).sum()) for w, e in zip(weights, ends, strict=True)), dy, tape, ends

    _, dy, tape, _ = run()
    dx, dstate = model.backward(tape, dy, (None, tuple(weights[:2]), None, weights[2], None, None))
    for array, gradient in ((x, dx), *zip(states, leaves(dstate), strict=True), (model.flat_params, model.flat_grads)):
        direction = draw(*array.shape, seed=11, dtype=np.float64)
        kept, losses = array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            losses.append(run()[0])
        array[...] = kept
        assert gradient is not None
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-6, (gradient * direction).sum(), atol=1e-5, rtol=1e-4)


def test_embedding_adds_up_the_gradients_of_a_token() -> None:
    layer = rf.Embedding(4, 2, seed=0)
    y, _, tape = layer.forward([[1, 3], [1, 0]])
    assert np.array_equal(y[0, 1], layer.params["weight"][3])
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert dx is None
    assert layer.grads["weight"].tolist() == [[1, 1], [2, 2], [0, 0], [1, 1]]


@pytest.mark.parametrize("shape", [(), (6,), (2, 6), (5, 2, 6), (3, 5, 2, 6)])
def test_linear_and_dropout_take_any_number_of_leading_axes(shape: tuple[int, ...]) -> None:
    layer, x = rf.Linear(4, 5, seed=0), draw(*shape, 4)
    y, _, tape = layer.forward(x)
    np.testing.assert_allclose(y, x @ layer.params["weight"].T + layer.params["bias"], rtol=1e-5, atol=1e-5)
    dy = draw(*shape, 5, seed=1)
    dx, _ = layer.backward(tape, dy)
    assert dx is not None
    np.testing.assert_allclose(dx, dy @ layer.params["weight"], rtol=1e-5, atol=1e-5)
    expected = dy.reshape(-1, 5).T @ x.reshape(-1, 4)
    np.testing.assert_allclose(layer.grads["weight"], expected, rtol=1e-4, atol=1e-5)
    assert rf.Dropout(0.5)(x)[0].shape == x.shape
    assert rf.Embedding(3, 2)(np.zeros(shape, int))[0].shape == (*shape, 2)


# ---- dropout ---------------------------------------------------------------------------------------------------------
def test_dropout_drops_in_training_only() -> None:
    layer, x = rf.Dropout(0.25, seed=0), np.ones((40, 20, 8), np.float32)
    y, _, tape = layer.forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert np.array_equal(layer.backward(tape, x)[0], y)  # type: ignore[arg-type]
    assert np.array_equal(layer(x)[0], x)
    assert np.array_equal(layer.eval().forward(x)[0], x)


def test_masks_depend_on_seed_and_call_alone() -> None:
    x = np.ones((6, 3, 8), np.float32)
    one, other, third = rf.Dropout(0.5, seed=0), rf.Dropout(0.5, seed=0), rf.Dropout(0.5, seed=1)
    first, _, _ = one.forward(x)
    second, _, _ = one.forward(x)
    assert not np.array_equal(first, second)
    assert np.array_equal(other.forward(x)[0], first)
    other(x)  # inference uses no random numbers
    other.eval().forward(x)
    assert np.array_equal(other.train().forward(x)[0], second)
    assert not np.array_equal(third.forward(x)[0], first)


def test_rng_state_repeats_the_masks() -> None:
    model, x = language_model(dropout=0.5), np.zeros((6, 3), np.int64)
    model.forward(x)
    key = model.rng_state
    assert key == [None, {"seed": 2, "call": 1}, {"seed": 3, "call": 1}, None]
    y, _, _ = model.forward(x)
    assert not np.array_equal(model.forward(x)[0], y)
    model.rng_state = key
    assert np.array_equal(model.forward(x)[0], y)
    with pytest.raises(ValueError, match="rng_state: Embedding has no random numbers"):
        model.rng_state = [{"seed": 0, "call": 0}] * 4
    with pytest.raises(ValueError, match=r"rng_state: expected .*, got None"):
        model.rng_state = None
    with pytest.raises(ValueError, match=r"rng_state\['call'\]: expected at least 0, got -1"):
        rf.Dropout().rng_state = {"seed": 0, "call": -1}


def test_layers_drop_between_them_and_nowhere_else() -> None:
    layer, x = rf.GRU(4, 16, 2, dropout=0.5, seed=0), draw(5, 3, 4)
    y, _, tape = layer.forward(x)
    plain, _, plain_tape = layer.eval().forward(x)
    assert not np.array_equal(y, plain)
    assert np.array_equal(tape.hidden[0], plain_tape.hidden[0])
    dropped = tape.record.inputs[1]
    assert 0.3 < (dropped == 0).mean() < 0.7
    assert np.array_equal(dropped[dropped != 0], 2 * tape.hidden[0][dropped != 0])
    assert np.array_equal(layer.train()(x)[0], plain)


def test_dropout_on_a_single_layer_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="with num_layers=1 it does nothing"):
        rf.LSTM(4, 5, dropout=0.5)


# ---- Sequential ------------------------------------------------------------------------------------------------------
def test_sequential_moves_its_modules_into_one_buffer() -> None:
    parts = rf.Embedding(7, 4, seed=1), rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3)
    values = np.concatenate([part.flat_params for part in parts])
    parts[2].grads["bias"] += 3
    model = rf.Sequential(*parts)
    assert np.array_equal(model.flat_params, values)
    assert model.grads["2.bias"].tolist() == [3] * 7
    assert list(model.params)[:3] == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]
    model.flat_params[...] = np.arange(values.size)
    assert parts[0].params["weight"][0, 0] == 0
    assert parts[2].params["bias"][-1] == values.size - 1
    parts[1].params["bias_ih_l0"] = np.zeros(20)
    assert not model.params["1.bias_ih_l0"].any()
    assert model.flat_params.flags.c_contiguous


def test_sequentials_nest() -> None:
    inner = rf.Sequential(rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3))
    model = rf.Sequential(rf.Embedding(7, 4, seed=1), inner)
    flat = rf.Sequential(rf.Embedding(7, 4, seed=1), rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3))
    assert list(model.params)[-1] == "1.1.bias"
    assert np.shares_memory(inner[1].params["bias"], model.flat_params)
    tokens = np.ones((3, 2), np.int64)
    y, state, tape = model.forward(tokens)
    expected, _, flat_tape = flat.forward(tokens)
    assert np.array_equal(y, expected)
    assert [len(leaves(entry)) for entry in state] == [0, 2]
    model.backward(tape, np.ones_like(y))
    flat.backward(flat_tape, np.ones_like(y))
    assert np.array_equal(model.flat_grads, flat.flat_grads)


def test_a_module_has_one_owner() -> None:
    layer = rf.Linear(4, 4)
    with pytest.raises(ValueError, match="Linear at position 1 already belongs to a Sequential"):
        rf.Sequential(layer, layer)
    rf.Sequential(layer)
    free = rf.Linear(4, 4)
    with pytest.raises(ValueError, match="Linear at position 1 already belongs to a Sequential"):
        rf.Sequential(free, layer)
    rf.Sequential(free, copy.deepcopy(layer))


def test_sequential_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="modules: expected at least one, got none"):
        rf.Sequential()
    with pytest.raises(TypeError, match="modules: expected modules, got list at position 0"):
        rf.Sequential([rf.Linear(4, 4)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected one dtype for all, got float32, float64"):
        rf.Sequential(rf.Linear(4, 4), rf.Linear(4, 4, dtype=np.float64))
    with pytest.raises(ValueError, match="expected one batch_first for all, got LSTM at 0: True, Linear at 1: False"):
        rf.Sequential(rf.LSTM(4, 4, batch_first=True), rf.Linear(4, 4))
    rf.Sequential(rf.LSTM(4, 4, batch_first=True), rf.Last(batch_first=True), rf.Linear(4, 4))


def test_an_error_inside_a_sequential_says_where() -> None:
    model = rf.Sequential(rf.Linear(4, 4), rf.Linear(5, 4))
    with pytest.raises(ValueError, match=r"x: expected \(…, 5\), got \(3, 2, 4\)") as caught:
        model(draw(3, 2, 4))
    assert caught.value.__notes__ == ["in module 1 of a Sequential: Linear(5, 4)"]


def test_states_of_a_sequential_are_one_entry_a_module() -> None:
    model, x = language_model(), np.zeros((3, 2), np.int64)
    y, state = model(x)
    assert len(state) == 4 and len(state[1]) == 2 and state[0] is None
    again, _ = model(x, list(state))
    assert not np.array_equal(y, again)
    with pytest.raises(ValueError, match="state: expected 4 entries, one a module, got 2"):
        model(x, state[:2])
    with pytest.raises(TypeError, match="state: expected a tuple of 4 entries, got ndarray"):
        model(x, state[1][0])
    with pytest.raises(ValueError, match="state: Embedding has no state, expected None, got ndarray"):
        model(x, (state[1][0], None, None, None))


def test_lengths_end_at_last() -> None:
    model = rf.Sequential(rf.LSTM(4, 5, seed=1), rf.Last(), rf.Dropout(0.0), rf.Linear(5, 2, seed=2))
    x = draw(6, 3, 4)
    y, _ = model(x, lengths=[6, 1, 3], resets=np.zeros((6, 3), bool))
    hidden, _ = model[0](x, lengths=[6, 1, 3])
    expected, _ = model[3](hidden[[5, 0, 2], [0, 1, 2]])
    assert np.array_equal(y, expected)


def test_train_and_eval_reach_every_module() -> None:
    part = rf.Dropout(0.5)
    model = rf.Sequential(rf.Sequential(part), rf.Linear(4, 4))
    assert model.training and part.training
    assert model.eval() is model
    assert not model.training and not part.training
    assert model.train() is model
    assert part.training


def test_a_sequential_without_parameters_works() -> None:
    model, x = rf.Sequential(rf.Dropout(0.0), rf.Last()), draw(3, 2, 4, dtype=np.float64)
    y, _, tape = model.forward(x)
    assert y.dtype == np.float64
    dx, _ = model.backward(tape, np.ones_like(y))
    assert dx is not None
    assert dx.sum() == 8


# ---- copies and descriptions -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", [*MODULES, "sequential"])
def test_copies_are_whole_and_independent(name: str, duplicate: Callable[[rf.Module], rf.Module]) -> None:
    module = language_model(dropout=0.5) if name == "sequential" else MODULES[name]()
    x = np.ones((3, 2), np.int64) if name == "sequential" else input_of(name, 3, 2)
    module.forward(x)
    module.eval()
    module.flat_grads[...] = 1
    twin = duplicate(module)
    assert not np.shares_memory(twin.flat_params, module.flat_params)
    assert np.array_equal(twin.flat_params, module.flat_params)
    assert np.array_equal(twin.flat_grads, module.flat_grads)
    assert twin.rng_state == module.rng_state
    assert not twin.training
    assert repr(twin) == repr(module)
    y, _, tape = twin.forward(x)
    assert np.array_equal(y, module(x)[0])
    twin.backward(tape, np.ones_like(y))
    assert (module.flat_grads == 1).all()
    twin.flat_params[...] = np.arange(twin.flat_params.size)  # its views have moved along
    assert [v for view in twin.params.values() for v in view.ravel()] == list(range(twin.flat_params.size))
    if isinstance(twin, rf.Sequential):
        assert np.shares_memory(twin[1].flat_params, twin.flat_params)
    rf.Sequential(twin)  # a copy has no owner


def test_a_copied_part_stands_alone() -> None:
    model = language_model()
    part = copy.deepcopy(model[3])
    assert np.array_equal(part.flat_params, model[3].flat_params)
    assert not np.shares_memory(part.flat_params, model.flat_params)
    assert len(pickle.dumps(model[3])) < len(pickle.dumps(model))
    rf.Sequential(part)


def test_repr_shows_what_differs_from_the_default() -> None:
    assert repr(rf.LSTM(4, 5, 2, dropout=0.1, dtype=np.float64, seed=0)) == (
        "LSTM(4, 5, num_layers=2, dropout=0.1, dtype='float64')"
    )
    assert repr(rf.RNN(4, 5, nonlinearity="relu")) == "RNN(4, 5, nonlinearity='relu')"
    assert repr(rf.Sequential(rf.Sequential(rf.Last()), rf.Linear(4, 2, bias=False))) == (
        "Sequential(\n  (0): Sequential(\n    (0): Last()\n  )\n  (1): Linear(4, 2, bias=False)\n)"
    )
    assert repr(rf.Linear(2, 1).params) == "{'weight': float32 (1, 2), 'bias': float32 (1,)}"


# ---- the boundary ----------------------------------------------------------------------------------------------------
def misaligned(x: Array) -> Array:
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    result = buffer[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    assert not result.flags.aligned
    return result


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def odd_strides(x: Array) -> Array:
    """Rows of a record array with one more byte: no whole number of elements apart."""
    records = np.zeros(x.shape[:-1], [("pad", "u1"), ("row", x.dtype, x.shape[-1:])])
    records["row"] = x
    return records["row"]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "negative_strides": lambda x: x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "every_second": lambda x: np.repeat(np.repeat(x, 2, axis=2), 2, axis=0)[::2, :, ::2],
    "byte_swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read_only": read_only,
    "odd_strides": odd_strides,
    "swapped_axes": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in MODULES if name != "embedding"])
@pytest.mark.parametrize(("steps", "batch"), [(5, 3), (1, 1)])
def test_any_layout_of_x_and_dy_gives_the_same_bits(name: str, layout: str, steps: int, batch: int) -> None:
    module, twin, x = MODULES[name](), MODULES[name](), draw(steps, batch, 4)
    y, _, tape = module.forward(x)
    dy = draw(*y.shape, seed=1)
    dx, _ = module.backward(tape, dy)
    again, _, tape = twin.forward(LAYOUTS[layout](x))
    assert np.array_equal(again, y)
    dx_again, _ = twin.backward(tape, LAYOUTS[layout](dy[None])[0] if dy.ndim == 2 else LAYOUTS[layout](dy))
    assert dx is not None and dx_again is not None
    assert np.array_equal(dx_again, dx)
    assert np.array_equal(twin.flat_grads, module.flat_grads)


@pytest.mark.parametrize("layout", ["fortran", "negative_strides", "byte_swapped", "misaligned", "read_only"])
def test_any_layout_of_the_state_gives_the_same_bits(layout: str) -> None:
    layer, x = rf.LSTM(4, 5, 2, seed=0), draw(4, 3, 4)
    _, state = layer(x)
    y, _ = layer(x, state)
    assert np.array_equal(layer(x, tuple(LAYOUTS[layout](array) for array in state))[0], y)


def test_zero_strides_are_taken() -> None:
    layer, row = rf.GRU(4, 5, seed=0), draw(4)
    y, _ = layer(np.broadcast_to(row, (3, 2, 4)))
    assert np.array_equal(y, layer(np.tile(row, (3, 2, 1)))[0])
    y, _, tape = layer.forward(np.zeros((3, 2, 4), np.float32))
    layer.backward(tape, np.broadcast_to(np.float32(1), y.shape))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", ">i4", "u4", "i8", "u8", ">u8"])
def test_tokens_of_any_integer_dtype(dtype: str) -> None:
    layer = rf.Embedding(7, 5, seed=0)
    assert np.array_equal(layer(np.array([[1, 6], [2, 3]], dtype))[0], layer([[1, 6], [2, 3]])[0])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, 2, 4)), TypeError, "x: expected float32, got float64"),
        (np.zeros((3, 2, 4), np.float16), TypeError, "x: expected float32, got float16"),
        (np.zeros((3, 2, 4), int), TypeError, "x: expected float32, got int64"),
        (np.zeros((3, 2, 4), object), TypeError, "x: expected float32, got object"),
        (np.zeros((3, 2, 4), bool), TypeError, "x: expected float32, got bool"),
        ([[1, 2], [3]], TypeError, "x: expected an array, got list"),
        (None, TypeError, "x: expected float32, got object"),
        (np.zeros((3, 2, 5), np.float32), ValueError, r"x: expected \(T, B, 4\), got \(3, 2, 5\)"),
        (np.zeros((3, 4), np.float32), ValueError, r"x: expected \(T, B, 4\), got \(3, 4\)"),
        (np.float32(0), ValueError, r"x: expected \(T, B, 4\), got \(\)"),
    ],
)
def test_rejects_wrong_x_and_says_what_came(x: Any, error: type[Exception], message: str) -> None:
    for make in RECURRENT.values():
        with pytest.raises(error, match=message):
            make(4, 5)(x)


def test_rejects_wrong_hidden_shape_and_says_which() -> None:
    layer, x = rf.LSTM(4, 64, 2), draw(3, 4, 4)
    good, bad = np.zeros((2, 4, 64), np.float32), np.zeros((2, 4, 32), np.float32)
    with pytest.raises(ValueError, match=r"h0: expected \(2, 4, 64\), got \(2, 4, 32\)"):
        layer(x, (bad, good))
    with pytest.raises(ValueError, match=r"c0: expected \(2, 4, 64\), got \(2, 4, 32\)"):
        layer(x, (good, bad))
    with pytest.raises(TypeError, match="c0: expected float32, got float64"):
        layer(x, (good, good.astype(np.float64)))
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h0, c0\), got ndarray"):
        layer(x, good)
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h0, c0\), got 3 entries"):
        layer(x, (good, good, good))
    with pytest.raises(ValueError, match=r"h0: expected \(1, 4, 8\), got \(2, 4, 64\)"):
        rf.GRU(4, 8)(x, good)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([6, 7, 1], ValueError, "lengths: expected values from 0 to T = 6, got 7 at index 1"),
        ([6, 6, -1], ValueError, "lengths: expected values from 0 to T = 6, got -1 at index 2"),
        (
            np.array([6, 2**63 + 1, 0], np.uint64),
            ValueError,
            "lengths: .* got 9223372036854775809 at index 1",
        ),
        ([6, 6], ValueError, r"lengths: expected \(3,\), got \(2,\)"),
        ([[6, 6, 6]], ValueError, r"lengths: expected \(3,\), got \(1, 3\)"),
        ([6.0, 6.0, 6.0], TypeError, "lengths: expected integers, got float64"),
        ([True, True, True], TypeError, "lengths: expected integers, got bool"),
    ],
)
def test_rejects_wrong_lengths(name: str, lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MODULES[name]()(input_of(name, 6, 3), lengths=lengths)


@pytest.mark.parametrize("name", MODULES)
def test_rejects_wrong_resets(name: str) -> None:
    module, x = MODULES[name](), input_of(name, 6, 3)
    with pytest.raises(ValueError, match=r"resets: expected \(6, 3\), got \(3, 6\)"):
        module(x, resets=np.zeros((3, 6), bool))
    with pytest.raises(TypeError, match="resets: expected bool, got int64"):
        module(x, resets=np.zeros((6, 3), int))


def test_rejects_lengths_where_there_are_no_steps() -> None:
    with pytest.raises(ValueError, match=r"lengths: expected None, because x of shape \(3, 4\) has no steps"):
        rf.Linear(4, 5)(draw(3, 4), lengths=[3, 3, 3, 3])


def test_rejects_wrong_tokens() -> None:
    layer = rf.Embedding(7, 5)
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got 7 at \(1, 0\)"):
        layer([[1, 2], [7, 0]])
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got -1 at \(0,\)"):
        layer([-1])
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got 18446744073709551615"):
        layer(np.array([2**64 - 1], np.uint64))
    with pytest.raises(TypeError, match="x: expected integers, got float32"):
        layer(np.zeros((3, 2), np.float32))


def test_a_changed_token_does_not_reach_backward() -> None:
    layer, x = rf.Embedding(7, 5, seed=0), np.array([[1, 2]])
    y, _, tape = layer.forward(x)
    x[...] = 2**40
    layer.backward(tape, np.ones_like(y))
    assert np.flatnonzero(layer.grads["weight"].any(axis=1)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rf.LSTM(0, 5), ValueError, "input_size: expected at least 1, got 0"),
        (lambda: rf.LSTM(4, -5), ValueError, "hidden_size: expected at least 1, got -5"),
        (lambda: rf.LSTM(4, 5.0), TypeError, "hidden_size: expected an integer, got float"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, True), TypeError, "hidden_size: expected an integer, got bool"),
        (lambda: rf.LSTM(4, 5, 0), ValueError, "num_layers: expected at least 1, got 0"),
        (lambda: rf.LSTM(4, 5, bias=1), TypeError, "bias: expected a bool, got int"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, 5, 2, dropout=1.0), ValueError, "dropout: expected a number >= 0 and < 1, got 1"),
        (lambda: rf.LSTM(4, 5, 2, dropout=float("nan")), ValueError, "dropout: .* got nan"),
        (lambda: rf.LSTM(4, 5, 2, dropout="0.5"), TypeError, "dropout: expected a number, got str"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, 5, dtype=np.float16), TypeError, "dtype: expected float32 or float64"),
        (lambda: rf.LSTM(4, 5, dtype=None), TypeError, "dtype: expected float32 or float64, got None"),
        (lambda: rf.LSTM(4, 5, seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (lambda: rf.LSTM(4, 5, seed=2**64), ValueError, r"seed: expected an integer below 2\*\*64"),
        (lambda: rf.RNN(4, 5, nonlinearity="elu"), ValueError, "nonlinearity: expected 'tanh', 'relu' or 'sigmoid'"),
        (lambda: rf.GRU(4, 5, reset_after=None), TypeError, "reset_after: expected"),
        (lambda: rf.Dropout(1.5), ValueError, "p: expected a number >= 0 and < 1, got 1.5"),
        (lambda: rf.LSTM(2**40, 2**40), ValueError, "parameters: an array of shape .* is too large to address"),
        (lambda: rf.Embedding(2**40, 2**18), MemoryError, "Unable to allocate"),
    ],
)
def test_rejects_wrong_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_sizes_that_cannot_be_counted_are_refused_before_anything_runs() -> None:
    x = np.broadcast_to(np.float32(0), (2**58, 2, 1))
    with pytest.raises(ValueError, match="too large to address"):
        rf.LSTM(1, 8)(x)
    with pytest.raises(ValueError, match="too large to address"):
        rf.Linear(1, 8)(x)
    with pytest.raises(MemoryError):
        rf.Linear(1, 1)(np.broadcast_to(np.float32(0), (2**50, 2, 1)))
