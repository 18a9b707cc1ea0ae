"""What every module promises: parameters, shapes, states, lengths, dropout, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from module_cases import MODULES, RECURRENT, STATES, Make, draw, input_of, language_model, leaves, same
from rnnfast import reference
from support import as_state


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
