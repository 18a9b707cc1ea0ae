"""What the tape of a recurrent layer promises, and what its backward may be given or leave out."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import rnnfast as rf
from shapes import Shape
from support import CELLS, Taped, as_state, as_tuple, assert_same_bits

pytestmark = pytest.mark.usefixtures("one_thread")
Run = functools.partial(Taped, Shape(5, 4, 6, 8))

each_cell = pytest.mark.parametrize("cell", CELLS)


def test_backward_consumes_the_tape() -> None:
    run = Run()
    run.backward()
    with pytest.raises(RuntimeError, match="tape"):
        run.backward()


@each_cell
def test_a_tape_that_is_kept_gives_the_same_again(cell: str) -> None:
    run = Run(cell)
    dx, dstate = run.backward(keep=True)
    grads = run.layer.flat_grads.copy()
    run.layer.zero_grad()
    again_dx, again_dstate = run.backward()
    assert_same_bits(again_dx, dx)
    assert_same_bits(as_tuple(again_dstate), as_tuple(dstate))
    assert_same_bits(run.layer.flat_grads, grads)
    with pytest.raises(RuntimeError, match="tape"):
        run.backward()


def test_several_tapes_may_be_alive() -> None:
    first, second = Run(), Run()
    other = first.layer.forward(2 * first.x)[2]
    dx, _ = first.backward()
    assert_same_bits(dx, second.backward()[0])
    first.layer.backward(other, first.dy)


def test_a_tape_belongs_to_its_layer() -> None:
    first, second = Run(), Run()
    with pytest.raises(RuntimeError, match="tape"):
        first.layer.backward(second.tape, first.dy)


@pytest.mark.parametrize("change", ["step", "load_state_dict"])
def test_backward_refuses_a_tape_from_before_the_parameters_changed(change: str) -> None:
    run = Run()
    if change == "step":
        rf.SGD(run.layer, lr=0.1).step()
    else:
        run.layer.load_state_dict(run.layer.state_dict())
    with pytest.raises(RuntimeError, match=r"tape: .*parameters"):
        run.backward()
    assert not run.layer.flat_grads.any()


def test_y_of_training_is_read_only() -> None:
    run = Run()
    with pytest.raises(ValueError, match="read-only"):
        run.y[...] = 0


@each_cell
def test_what_the_tape_shows_is_a_copy(cell: str) -> None:
    run, untouched = Run(cell), Run(cell)
    run.tape.hidden[...] = 0
    run.tape.gates[...] = 0
    assert_same_bits(run.tape.hidden, untouched.tape.hidden)
    assert_same_bits(run.backward()[0], untouched.backward()[0])


def test_the_tape_of_a_network_without_cell_state_says_so() -> None:
    with pytest.raises(AttributeError, match="cell"):
        _ = Run("gru").tape.cell


@each_cell
def test_no_dy_is_a_dy_of_zeros(cell: str) -> None:
    run, zeros = Run(cell), Run(cell)
    dx, dstate = run.layer.backward(run.tape, None, run.dstate)
    zeros.dy = np.zeros_like(zeros.dy)
    expected_dx, expected_dstate = zeros.backward()
    np.testing.assert_array_equal(dx, expected_dx)
    for got, expected in zip(as_tuple(dstate), as_tuple(expected_dstate), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(run.layer.flat_grads, zeros.layer.flat_grads)


@each_cell
def test_no_dstate_is_a_dstate_of_zeros(cell: str) -> None:
    run, zeros = Run(cell), Run(cell)
    dx, _ = run.layer.backward(run.tape, run.dy)
    zeros.dstate = as_state(tuple(np.zeros_like(s) for s in as_tuple(zeros.dstate)))
    np.testing.assert_array_equal(dx, zeros.backward()[0])
    np.testing.assert_array_equal(run.layer.flat_grads, zeros.layer.flat_grads)


@each_cell
def test_dx_is_left_out_on_request(cell: str) -> None:
    """The other gradients keep every bit."""
    run, whole = Run(cell), Run(cell)
    dx, dstate = run.backward(need_dx=False)
    assert dx is None
    assert_same_bits(as_tuple(dstate), as_tuple(whole.backward()[1]))
    assert_same_bits(run.layer.flat_grads, whole.layer.flat_grads)


def test_gradients_go_where_they_are_told() -> None:
    run, own = Run(), Run()
    mine = np.ones_like(run.layer.flat_grads)
    run.backward(grads=mine, keep=True)
    own.backward()
    np.testing.assert_array_equal(mine, 1 + own.layer.flat_grads)
    assert not run.layer.flat_grads.any()
