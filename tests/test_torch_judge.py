"""Layers against PyTorch, which judges names, layouts, order of gates and meaning: outputs, states, all gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shapes import Shape
from support import DTYPES, Problem, as_state, as_tuple, largest, make_problem, new_layer, worst

torch = pytest.importorskip("torch", reason="PyTorch isn't here to judge")

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")  # PyTorch has no sigmoid network
SHAPE = Shape(7, 5, 6, 19)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_state_given": {"given": False},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
}


def new_torch_module(problem: Problem, dtype: type, **options: Any) -> Any:
    """PyTorch's module with the problem's parameters."""
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    if problem.cell.startswith("rnn_"):
        options["nonlinearity"] = problem.cell.removeprefix("rnn_")
    module = kinds.get(problem.cell, torch.nn.RNN)(
        problem.shape.input,
        problem.shape.hidden,
        dtype=torch.float32 if dtype is np.float32 else torch.float64,
        **problem.options,
        **options,
    )
    module.load_state_dict({name: torch.tensor(array) for name, array in problem.params.items()})
    return module


def assert_agree(ours: Any, theirs: Any, what: str) -> None:
    """To the rounding errors of two orders of summation; how accurate the layers are is tested elsewhere."""
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape and ours.dtype == expected.dtype, what
    bound = 64 * np.finfo(ours.dtype).eps * max(1.0, largest(expected))
    assert worst(ours, expected) <= bound, f"{what}: {worst(ours, expected):.3g}, bound {bound:.3g}"


def assert_same_passes(problem: Problem, dtype: type, *, batch_first: bool = False, dropout: float = 0.0) -> None:
    """Forward and backward through both; lengths become a packed sequence there."""
    layer = problem.layer(dtype, batch_first=batch_first, dropout=dropout)
    module = new_torch_module(problem, dtype, batch_first=batch_first, dropout=dropout)

    def outer(sequence: Any) -> Any:
        return np.ascontiguousarray(sequence.swapaxes(0, 1) if batch_first else sequence, dtype)

    x, dy = outer(problem.x), outer(problem.dy)
    dstate: Any = tuple(s.astype(dtype) for s in problem.dstate)
    state: Any = None if problem.state is None else tuple(s.astype(dtype) for s in problem.state)

    y, final, tape = layer.forward(x, None if state is None else as_state(state), problem.lengths)
    dx, dinitial = layer.backward(tape, dy, as_state(dstate))

    padding = np.isnan(dy)
    their_x = torch.tensor(np.nan_to_num(x), requires_grad=True)
    their_state = None if state is None else tuple(torch.tensor(s, requires_grad=True) for s in state)
    packed = their_x
    if problem.lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            their_x, torch.tensor(problem.lengths), batch_first=batch_first, enforce_sorted=False
        )
    their_y, their_final = module(packed, None if their_state is None else as_state(their_state))
    if problem.lengths is not None:
        their_y, _ = torch.nn.utils.rnn.pad_packed_sequence(their_y, batch_first, total_length=problem.shape.steps)
    goal = (their_y * torch.tensor(np.where(padding, 0, dy))).sum()
    for s, ds in zip(as_tuple(their_final), dstate, strict=True):
        goal = goal + (s * torch.tensor(ds)).sum()
    goal.backward()

    assert_agree(y, their_y, "y")
    assert_agree(dx, their_x.grad, "dx")
    for k, (s, their_s) in enumerate(zip(as_tuple(final), as_tuple(their_final), strict=True)):
        assert_agree(s, their_s, f"final state {k}")
    for k, (ds, s) in enumerate(zip(as_tuple(dinitial), their_state or (), strict=False)):
        assert_agree(ds, s.grad, f"gradient of state {k}")
    for name, parameter in module.named_parameters():
        assert_agree(layer.grads[name], parameter.grad, f"gradient of {name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_states_and_gradients_agree(options: str, cell: str, dtype: type) -> None:
    assert_same_passes(make_problem(cell, SHAPE, **OPTIONS[options]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_agrees(cell: str, dtype: type) -> None:
    assert_same_passes(make_problem(cell, SHAPE, num_layers=2, bidirectional=True), dtype, batch_first=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm_agrees(options: str, dtype: type) -> None:
    """And loads PyTorch's state dict unchanged."""
    problem = make_problem("lstm", SHAPE, proj_size=7, **OPTIONS[options])
    assert_same_passes(problem, dtype)
    layer = new_layer("lstm", SHAPE.input, SHAPE.hidden, dtype=dtype, **problem.options)
    theirs = new_torch_module(problem, dtype).state_dict()
    layer.load_state_dict(theirs)
    assert list(layer.state_dict()) == list(theirs)
    assert all(np.array_equal(array, theirs[name].numpy()) for name, array in layer.params.items())


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_of_zero_agrees(cell: str) -> None:
    assert_same_passes(make_problem(cell, SHAPE, num_layers=2), np.float32, dropout=0.0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_agree_with_packed_sequences(cell: str, dtype: type, batch_first: bool) -> None:
    lengths = np.array([3, 7, 1, 5, 7])  # PyTorch takes none of length 0
    options = {"proj_size": 4} if cell == "lstm" else {}
    problem = replace(make_problem(cell, SHAPE, num_layers=2, bidirectional=True, **options), lengths=lengths)
    padding = np.arange(SHAPE.steps)[:, None] >= lengths
    problem.x[padding], problem.dy[padding] = np.nan, np.nan
    assert_same_passes(problem, dtype, batch_first=batch_first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_state_dicts_load_both_ways(cell: str, dtype: type) -> None:
    """Unchanged: the same names, shapes and order."""
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True)
    module = new_torch_module(problem, dtype)
    torch.nn.init.normal_(module.weight_hh_l1_reverse)
    theirs = module.state_dict()
    layer = new_layer(cell, SHAPE.input, SHAPE.hidden, num_layers=2, bidirectional=True, dtype=dtype)
    layer.load_state_dict(theirs)
    ours = layer.state_dict()
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name].numpy())
    back = new_torch_module(make_problem(cell, SHAPE, num_layers=2, bidirectional=True, seed=1), dtype)
    back.load_state_dict({name: torch.from_numpy(array) for name, array in ours.items()})
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, theirs[name])


def test_a_state_dict_of_another_dtype_is_converted() -> None:
    problem = make_problem("gru", SHAPE)
    layer = new_layer("gru", SHAPE.input, SHAPE.hidden, dtype=np.float32)
    layer.load_state_dict(new_torch_module(problem, np.float64).state_dict())
    for name, array in layer.params.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, problem.params[name])


def test_parameters_that_require_gradients_load() -> None:
    module = new_torch_module(make_problem("lstm", SHAPE), np.float32)
    layer = new_layer("lstm", SHAPE.input, SHAPE.hidden)
    layer.load_state_dict(dict(module.named_parameters()))
    assert np.array_equal(layer.params["weight_hh_l0"], module.weight_hh_l0.detach().numpy())
