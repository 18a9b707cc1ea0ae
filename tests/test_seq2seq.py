"""Encoder and decoder: gradients, teacher forcing, search, and what a module promises."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from support import assert_same_bits

Array = np.ndarray[Any, np.dtype[Any]]
SOURCE, TARGET = 6, 4  # tokens of the source; of the target, without start and end
START, END = TARGET, TARGET + 1

LAYERS: dict[str, Callable[..., rf.Module]] = {
    "rnn": lambda seed, **options: rf.RNN(3, 5, seed=seed, **options),
    "lstm": lambda seed, **options: rf.LSTM(3, 5, 2, seed=seed, **options),
    "gru": lambda seed, **options: rf.GRU(3, 5, 2, seed=seed, **options),
    "ind_rnn": lambda seed, **options: rf.IndRNN(3, 5, nonlinearity="tanh", seed=seed, **options),
    "min_gru": lambda seed, **options: rf.MinGRU(3, 5, seed=seed, **options),
    "min_lstm": lambda seed, **options: rf.MinLSTM(3, 5, seed=seed, **options),
    "sru": lambda seed, **options: rf.SRU(3, 5, 2, seed=seed, **options),
    "slstm": lambda seed, **options: rf.SLSTM(3, 5, seed=seed, **options),
}


def new_model(cell: str = "lstm", dtype: Any = np.float64, batch_first: bool = False) -> rf.Seq2Seq:
    """With weights large enough for outputs that differ."""
    options = {"dtype": dtype, "batch_first": batch_first}
    encoder = rf.Sequential(rf.Embedding(SOURCE, 3, seed=1, **options), LAYERS[cell](2, **options))
    decoder = rf.Sequential(
        rf.Embedding(TARGET + 2, 3, seed=3, **options),
        LAYERS[cell](4, **options),
        rf.Linear(5, TARGET + 2, seed=5, **options),
    )
    model = rf.Seq2Seq(encoder, decoder, start=START, end=END)
    model.flat_params[...] *= 2
    model.mark_changed()
    return model


def problem(batch: int = 4) -> tuple[Array, Array, Array, Array]:
    """Source, targets and their lengths; what lies past a length is no token at all."""
    random = np.random.default_rng(0)
    source, targets = random.integers(0, SOURCE, (5, batch)), random.integers(0, TARGET, (4, batch))
    lengths, target_lengths = np.array([5, 2, 0, 3])[:batch], np.array([4, 0, 2, 3])[:batch]
    source[np.arange(5)[:, None] >= lengths] = 99
    targets[np.arange(4)[:, None] >= target_lengths] = -7
    return source, targets, lengths, target_lengths


def log_probability(model: rf.Seq2Seq, source: Array, written: list[int]) -> float:
    """Σ log p of a whole output for one source (S, 1), by one forward call a token."""
    _, encoded = model.encoder(source)
    state: Any = (None, encoded[1], None)
    total, last = 0.0, START
    for token in written:
        logits, state = model.decoder(np.array([[last]]), state)
        scores = logits[0, 0].astype(np.float64)
        total += float(scores[token] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
        last = token
    return total


# ---- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", LAYERS)
def test_the_loss_is_the_mean_over_the_tokens_and_the_end_symbol(cell: str) -> None:
    model, (source, targets, lengths, target_lengths) = new_model(cell), problem()
    total, count = 0.0, 0
    for row in range(4):
        written = [*targets[: target_lengths[row], row].tolist(), END]
        total -= log_probability(model, source[: lengths[row], row : row + 1], written)
        count += len(written)
    assert model.loss_and_grad(source, targets, lengths, target_lengths) == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_are_those_of_the_loss(cell: str) -> None:
    """Central differences, of every parameter of encoder and decoder."""
    model, (source, targets, lengths, target_lengths) = new_model(cell), problem()
    model.loss_and_grad(source, targets, lengths, target_lengths)
    for index in range(model.flat_params.size):
        losses = []
        value = model.flat_params[index]
        for step in (1e-5, -1e-5):
            model.flat_params[index] = value + step
            losses.append(model.loss_and_grad(source, targets, lengths, target_lengths, backward=False))
        model.flat_params[index] = value
        assert model.flat_grads[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9)
    assert np.abs(model.encoder.flat_grads).max() > 1e-4


def test_without_backward_nothing_is_added_and_nothing_dropped() -> None:
    source, targets, *_ = (np.ones((3, 2), np.int64), np.ones((2, 2), np.int64))
    parts = [
        rf.Sequential(rf.Embedding(6, 5, seed=0), rf.Dropout(0.5, seed=1), rf.GRU(5, 5, seed=2)),
        rf.Sequential(rf.Embedding(6, 5, seed=3), rf.GRU(5, 5, seed=4), rf.Linear(5, 6, seed=5)),
    ]
    model = rf.Seq2Seq(parts[0], parts[1], start=4, end=5)
    first, second = (model.loss_and_grad(source, targets, backward=False) for _ in range(2))
    assert first == second
    assert not model.flat_grads.any()
    dropped = {model.loss_and_grad(source, targets) for _ in range(3)}
    assert len(dropped) == 3
    assert model.eval().loss_and_grad(source, targets) == first


def test_padding_and_neighbours_change_nothing() -> None:
    model, (source, targets, lengths, target_lengths) = new_model(), problem()
    together = model.loss_and_grad(source, targets, lengths, target_lengths)
    grads, weights = model.flat_grads.copy(), target_lengths + 1
    model.zero_grad()
    total = 0.0
    gathered = np.zeros_like(grads)
    for row in range(4):
        model.zero_grad()
        alone = model.loss_and_grad(
            source[: lengths[row], row : row + 1], targets[: target_lengths[row], row : row + 1]
        )
        total += alone * weights[row]
        gathered += model.flat_grads * weights[row]
    assert together == pytest.approx(total / weights.sum(), rel=1e-12)
    np.testing.assert_allclose(grads, gathered / weights.sum(), rtol=1e-9, atol=1e-14)


def test_batch_first_gives_the_same() -> None:
    source, targets, lengths, target_lengths = problem()
    model, turned = new_model(), new_model(batch_first=True)
    loss = model.loss_and_grad(source, targets, lengths, target_lengths)
    assert turned.loss_and_grad(source.T, targets.T, lengths, target_lengths) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(turned.flat_grads, model.flat_grads, rtol=1e-9, atol=1e-14)
    ours, theirs = model.greedy(source, lengths, max_length=6), turned.greedy(source.T, lengths, max_length=6)
    assert_same_bits(tuple(theirs), tuple(ours))


def test_the_calls_of_a_module() -> None:
    model, (source, targets, lengths, target_lengths) = new_model(), problem()
    inputs = np.concatenate([np.full((1, 4), START), targets])[:4]
    y, state, tape = model.forward((source, inputs), lengths=(lengths, target_lengths))
    inferred, final = model((source, inputs), lengths=(lengths, target_lengths))
    assert y.shape == (4, 4, TARGET + 2)
    assert_same_bits(y, inferred)
    assert_same_bits(state[1], final[1])
    dx, dstate = model.backward(tape, np.ones_like(y), keep=True)
    assert dx is None and dstate[1][0].shape == (2, 4, 5)
    first = model.flat_grads.copy()
    other = np.zeros_like(first)
    model.backward(tape, np.ones_like(y), grads=other)
    assert_same_bits(other, first)
    with pytest.raises(RuntimeError, match="consumed"):
        model.backward(tape, np.ones_like(y))


def test_an_encoder_of_features_gets_a_gradient() -> None:
    encoder = rf.Sequential(rf.GRU(3, 5, seed=0, dtype=np.float64))
    decoder = rf.Sequential(rf.Embedding(6, 3, seed=1, dtype=np.float64), rf.GRU(3, 5, seed=2, dtype=np.float64))
    model = rf.Seq2Seq(encoder, decoder, start=0, end=1)
    x = np.random.default_rng(0).standard_normal((4, 2, 3))
    inputs = np.zeros((2, 2), np.int64)
    y, _, tape = model.forward((x, inputs))
    dx, _ = model.backward(tape, np.ones_like(y))
    moved = x.copy()
    moved[1, 0, 2] += 1e-6
    assert dx is not None
    assert dx[1, 0, 2] == pytest.approx((model((moved, inputs))[0].sum() - y.sum()) / 1e-6, rel=1e-4)


# ---- search ----------------------------------------------------------------------------------------------------------
def outputs(longest: int) -> list[list[int]]:
    """Every output of at most so many steps: ended, or as long as can be. Tokens 0 … 3 and the start symbol, 4."""
    found = []
    for size in range(longest):
        found += [[*tokens, END] for tokens in itertools.product(range(TARGET + 1), repeat=size)]
    return found + [list(tokens) for tokens in itertools.product(range(TARGET + 1), repeat=longest)]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_beam_wide_enough_finds_every_output_with_its_probability(cell: str, penalty: float) -> None:
    """Judged by enumeration."""
    model, source = new_model(cell), problem()[0][:3, :1] % SOURCE
    every = {tuple(written): log_probability(model, source, written) for written in outputs(3)}
    assert sum(np.exp(list(every.values()))) == pytest.approx(1)
    (found,) = model.beam(source, max_length=3, width=len(every) + 20, length_penalty=penalty)
    assert len(found) == len(every)
    for hypothesis in found:
        written = (*hypothesis.tokens.tolist(), *([END] if hypothesis.finished else []))
        assert hypothesis.log_probability == pytest.approx(every.pop(written), rel=1e-9)
        assert hypothesis.score == pytest.approx(hypothesis.log_probability / len(written) ** penalty, rel=1e-12)
    order = [(not hypothesis.finished, -hypothesis.score) for hypothesis in found]
    assert order == sorted(order)


@pytest.mark.parametrize("cell", LAYERS)
def test_a_beam_of_one_is_greedy(cell: str) -> None:
    model, (source, _, lengths, _) = new_model(cell), problem()
    greedy = model.greedy(source, lengths, max_length=7)
    beams = model.beam(source, lengths, max_length=7, width=1)
    assert [[h.tokens.tolist() for h in row] for row in beams] == [[tokens.tolist()] for tokens in greedy]


@pytest.mark.parametrize("width", [1, 3])
def test_rows_are_searched_on_their_own(width: int) -> None:
    """In a padded batch as alone, to the bit."""
    model, (source, _, lengths, _) = new_model(), problem()
    together = model.beam(source, lengths, max_length=6, width=width)
    for row, size in enumerate(lengths):
        (alone,) = model.beam(source[:size, row : row + 1], max_length=6, width=width)
        for ours, theirs in zip(together[row], alone, strict=True):
            assert ours.tokens.tolist() == theirs.tokens.tolist()
            assert (ours.log_probability, ours.finished) == (theirs.log_probability, theirs.finished)


def test_the_length_penalty_favours_longer_outputs() -> None:
    model, source = new_model("gru"), np.arange(12).reshape(3, 4) % SOURCE
    sizes = [
        sum(len(row[0].tokens) for row in model.beam(source, max_length=8, width=60, length_penalty=penalty))
        for penalty in (0.0, 1.0, 3.0)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_an_output_ends_before_its_end_symbol_or_at_the_longest() -> None:
    model, source = new_model(), problem()[0] % SOURCE
    for output in model.greedy(source, max_length=4):
        assert END not in output and len(output) <= 4
    model.params["decoder.2.bias"][END] = 100
    assert [len(output) for output in model.greedy(source, max_length=4)] == [0] * 4
    assert all(row[0].finished and not len(row[0].tokens) for row in model.beam(source, max_length=4))
    model.params["decoder.2.bias"][END] = -100
    assert [len(output) for output in model.greedy(source, max_length=4)] == [4] * 4
    assert not any(row[0].finished for row in model.beam(source, max_length=4))


def test_the_decoder_need_not_read_the_end_symbol() -> None:
    encoder = rf.Sequential(rf.Embedding(3, 2, seed=0), rf.GRU(2, 4, seed=1))
    decoder = rf.Sequential(rf.Embedding(1, 2, seed=2), rf.GRU(2, 4, seed=3), rf.Linear(4, 2, seed=4))
    model = rf.Seq2Seq(encoder, decoder, start=0, end=1)
    decoder.params["2.bias"][:] = [0.0, 1.0]
    source = np.random.default_rng(0).integers(0, 3, (4, 20))
    assert len(model.greedy(source, max_length=9)) == len(model.beam(source, max_length=9)) == 20


def test_it_learns_to_reverse() -> None:
    random = np.random.default_rng(0)
    encoder = rf.Sequential(rf.Embedding(4, 8, seed=0), rf.GRU(8, 48, seed=1))
    decoder = rf.Sequential(rf.Embedding(6, 8, seed=2), rf.GRU(8, 48, seed=3), rf.Linear(48, 6, seed=4))
    model = rf.Seq2Seq(encoder, decoder, start=4, end=5)
    optimizer = rf.Adam(model, lr=1e-2)
    for _ in range(300):
        source = random.integers(0, 4, (4, 32))
        model.zero_grad()
        model.loss_and_grad(source, source[::-1])
        optimizer.step(clip_norm=1.0)
    source = random.integers(0, 4, (4, 100))
    right = [
        tokens.tolist() == row.tolist()
        for tokens, row in zip(model.greedy(source, max_length=6), source[::-1].T, strict=True)
    ]
    assert np.mean(right) > 0.95


# ---- a module --------------------------------------------------------------------------------------------------------
def test_one_flat_buffer_with_the_parts_names() -> None:
    model = new_model("gru")
    names = list(model.params)
    assert names[:2] == ["encoder.0.weight", "encoder.1.weight_ih_l0"] and names[-1] == "decoder.2.bias"
    assert model.flat_params.size == sum(array.size for array in model.params.values())
    model.params["decoder.2.bias"][:] = 7
    assert (model.decoder.params["2.bias"] == 7).all() and (model.flat_params[-TARGET - 2 :] == 7).all()
    assert np.shares_memory(model.encoder.flat_params, model.flat_params)
    assert np.shares_memory(model.encoder[1].grads["weight_hh_l0"], model.flat_grads)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_on_their_own(duplicate: Callable[[rf.Seq2Seq], rf.Seq2Seq]) -> None:
    model, (source, targets, lengths, target_lengths) = new_model(), problem()
    model.loss_and_grad(source, targets, lengths, target_lengths)
    twin = duplicate(model)
    assert_same_bits(dict(twin.params), dict(model.params))
    assert_same_bits(twin.flat_grads, model.flat_grads)
    assert not np.shares_memory(twin.flat_params, model.flat_params)
    assert np.shares_memory(twin.encoder.flat_params, twin.flat_params)
    assert twin.loss_and_grad(source, targets, lengths, target_lengths) == pytest.approx(
        model.loss_and_grad(source, targets, lengths, target_lengths, backward=False), rel=1e-15
    )
    twin.flat_params[...] = 0
    assert model.flat_params.any()


def test_state_dicts_load_and_old_tapes_are_refused() -> None:
    model, other = new_model(), new_model()
    other.flat_params[...] = 0.25
    inputs = np.zeros((2, 3), np.int64)
    y, _, tape = model.forward((inputs, inputs))
    model.load_state_dict(other.state_dict())
    assert (model.flat_params == 0.25).all()
    with pytest.raises(RuntimeError, match="changed"):
        model.backward(tape, np.zeros_like(y))


def test_parts_are_saved_and_make_the_model_again(tmp_path: Any) -> None:
    model, (source, _, lengths, _) = new_model(), problem()
    rf.save(model.encoder, tmp_path / "encoder.safetensors")
    rf.save(model.decoder, tmp_path / "decoder.safetensors")
    encoder, decoder = rf.load(tmp_path / "encoder.safetensors"), rf.load(tmp_path / "decoder.safetensors")
    assert isinstance(encoder, rf.Sequential) and isinstance(decoder, rf.Sequential)
    again = rf.Seq2Seq(encoder, decoder, start=model.start, end=model.end)
    assert_same_bits(again.flat_params, model.flat_params)
    assert_same_bits(
        tuple(again.greedy(source, lengths, max_length=6)), tuple(model.greedy(source, lengths, max_length=6))
    )


def test_it_is_printed_readably() -> None:
    assert repr(new_model("gru")).splitlines()[:3] == [
        "Seq2Seq(",
        "  encoder=Sequential(",
        "    (0): Embedding(6, 3, dtype='float64')",
    ]
    assert new_model().config["start"] == START


# ---- refusals --------------------------------------------------------------------------------------------------------
def part(*modules: rf.Module) -> rf.Sequential:
    return rf.Sequential(*modules)


TOKENS = np.zeros((2, 3), np.int64)
REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no Sequential": (
        TypeError,
        "encoder: expected a Sequential, got GRU",
        lambda: rf.Seq2Seq(rf.GRU(2, 3), part(rf.GRU(2, 3)), start=0, end=1),  # type: ignore[arg-type]
    ),
    "no recurrent layer": (
        ValueError,
        "decoder: expected a recurrent layer",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.Linear(2, 3)), start=0, end=1),
    ),
    "another projection": (
        ValueError,
        "the encoder, LSTM of 1 × 3 units, projected to 2, got LSTM of 1 × 3 units",
        lambda: rf.Seq2Seq(part(rf.LSTM(2, 3, proj_size=2)), part(rf.LSTM(2, 3)), start=0, end=1),
    ),
    "other states": (
        ValueError,
        "decoder: expected the states of the encoder, GRU of 1 × 3 units, got GRU of 1 × 4 units",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.GRU(2, 4)), start=0, end=1),
    ),
    "other cells": (
        ValueError,
        "GRU of 1 × 3 units, got LSTM",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.LSTM(2, 3)), start=0, end=1),
    ),
    "bidirectional decoder": (
        ValueError,
        "decoder: expected layers that read forward only",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.GRU(2, 3, bidirectional=True)), start=0, end=1),
    ),
    "nested": (
        ValueError,
        "encoder: expected a Sequential without another one",
        lambda: rf.Seq2Seq(part(part(rf.GRU(2, 3))), part(rf.GRU(2, 3)), start=0, end=1),
    ),
    "start": (
        ValueError,
        "start: expected a token from 0 to 3, got 4",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.Embedding(4, 2), rf.GRU(2, 3)), start=4, end=1),
    ),
    "end": (
        ValueError,
        "end: expected a token from 0 to 3, got 9",
        lambda: rf.Seq2Seq(part(rf.GRU(2, 3)), part(rf.GRU(2, 3), rf.Linear(3, 4)), start=1, end=9),
    ),
    "no pair": (TypeError, "x: expected a pair", lambda: new_model().forward(TOKENS[0])),
    "lengths of one": (TypeError, "lengths: expected a pair", lambda: new_model()((TOKENS, TOKENS), lengths=[1, 1, 1])),
    "resets": (ValueError, "resets: expected None", lambda: new_model()((TOKENS, TOKENS), resets=TOKENS > 0)),
    "targets": (TypeError, "targets: expected integers", lambda: new_model().loss_and_grad(TOKENS, TOKENS * 0.5)),
    "a target": (
        ValueError,
        r"targets: expected values from 0 to 5, got 6 at \(0, 0\)",
        lambda: new_model().loss_and_grad(TOKENS, TOKENS + 6),
    ),
    "another batch": (
        ValueError,
        "targets: expected 3 sequences, like the source, got 2",
        lambda: new_model().loss_and_grad(TOKENS, TOKENS[:, :2]),
    ),
    "max_length": (ValueError, "max_length: expected at least 1", lambda: new_model().greedy(TOKENS, max_length=0)),
    "width": (ValueError, "width: expected at least 1", lambda: new_model().beam(TOKENS, max_length=3, width=0)),
    "penalty": (
        ValueError,
        "length_penalty: expected a number >= 0",
        lambda: new_model().beam(TOKENS, max_length=3, length_penalty=-1),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_what_it_says(name: str) -> None:
    error, message, call = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
