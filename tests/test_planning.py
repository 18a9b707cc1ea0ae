"""What `layer.plan` tells: the layout of a call, which is what the kernels do, and what to expect of it."""

from __future__ import annotations

import numpy as np
import pytest

import rnnfast as rf
from support import assert_same_bits, threads


def test_rows_are_split_where_there_are_enough_of_them() -> None:
    with threads(2):
        (plan,) = rf.LSTM(64, 128, seed=0).plan(100, 32)
        assert (plan.cell, plan.threads, plan.split, plan.barrier) == ("lstm", 2, "rows", False)


def test_units_are_split_where_rows_are_few_or_weights_many() -> None:
    with threads(2):
        for layer, batch in ((rf.GRU(256, 512, seed=0), 1), (rf.GRU(650, 650, seed=0), 20)):
            (plan,) = layer.plan(35, batch)
            assert (plan.split, plan.barrier) == ("units", True)


def test_one_thread_shares_nothing_and_waits_for_nobody() -> None:
    with threads(1):
        for plan in rf.RNN(650, 650, num_layers=3, seed=0).plan(35, 20):
            assert (plan.threads, plan.split, plan.barrier) == (1, "none", False)


def test_a_cell_without_a_recurrent_product_never_waits() -> None:
    with threads(2):
        assert not any(plan.barrier for plan in rf.MinGRU(256, 512, num_layers=2, seed=0).plan(50, 1))


def test_few_rows_have_their_inputs_multiplied_ahead() -> None:
    with threads(1):
        layer = rf.LSTM(64, 64, seed=0)
        assert next(iter(layer.plan(100, 1))).steps_ahead > 1
        assert next(iter(layer.plan(100, 32))).steps_ahead == 1


def test_few_rows_of_a_scan_are_taken_some_steps_at_a_time() -> None:
    with threads(1):
        layer = rf.IndRNN(64, 64, seed=0)
        few, many = (next(iter(layer.plan(100, batch))) for batch in (2, 32))
        assert few.steps_ahead > 1
        assert many.steps_ahead == 1
        assert few.tile == many.tile
        assert f", {few.steps_ahead} steps together," in str(few)


def test_weights_beyond_every_cache_meet_x_of_some_steps_at_once() -> None:
    layer, x = rf.RNN(2900, 2900, seed=0), np.random.default_rng(0).standard_normal((4, 5, 2900), np.float32)
    for number in (1, 2):
        with threads(number):
            assert next(iter(layer.plan(4, 5))).steps_ahead > 1
            assert_same_bits(np.concatenate([layer(x[:, row : row + 1])[0] for row in range(5)], axis=1), layer(x)[0])


def test_larger_layers_are_expected_nearer_to_the_peak() -> None:
    with threads(1):
        shares = [next(iter(rf.LSTM(H, H, seed=0).plan(50, 32))).share for H in (16, 64, 256, 1024)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.7 < shares[-1] < 1


def test_it_prints_a_line_a_layer() -> None:
    text = str(rf.LSTM(64, 128, num_layers=2, seed=0).plan(100, 32))
    assert [line.split()[:2] for line in text.splitlines()] == [["layer", "0"], ["layer", "1"]]
    assert "of the peak" in text


@pytest.mark.parametrize(("steps", "batch", "name"), [(0, 3, "T"), (3, 0, "B"), (2.5, 3, "T")])
def test_sizes_are_positive_integers(steps: int, batch: int, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        rf.GRU(3, 5, seed=0).plan(steps, batch)
