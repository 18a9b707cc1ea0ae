"""Truncated backpropagation through time: the gradients that it promises, and how sequences come in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from support import assert_same_bits

Array = np.ndarray[Any, np.dtype[Any]]
T, B, V = 23, 5, 6

LAYERS: dict[str, Callable[..., rf.Module]] = {
    "rnn": lambda **options: rf.RNN(4, 7, 2, seed=2, **options),
    "lstm": lambda **options: rf.LSTM(4, 7, 2, seed=2, **options),
    "gru": lambda **options: rf.GRU(4, 7, seed=2, **options),
    "ind_rnn": lambda **options: rf.IndRNN(4, 7, 2, seed=2, **options),
    "min_gru": lambda **options: rf.MinGRU(4, 7, 2, seed=2, **options),
    "min_lstm": lambda **options: rf.MinLSTM(4, 7, 2, seed=2, **options),
    "sru": lambda **options: rf.SRU(4, 7, 2, seed=2, **options),
    "slstm": lambda **options: rf.SLSTM(4, 7, 2, seed=2, **options),
}
GIVEN = {
    "plain": {},
    "lengths": {"lengths": np.array([23, 9, 0, 16, 1])},
    "resets": {"resets": np.random.default_rng(5).random((T, B)) < 0.2},
    "mask": {"mask": np.random.default_rng(6).random((T, B)).astype(np.float32)},
    "all": {
        "lengths": np.array([20, 9, 0, 16, 1]),
        "resets": np.random.default_rng(5).random((T, B)) < 0.2,
        "mask": np.random.default_rng(6).random((T, B)) < 0.8,
    },
}

# To a window, a cell is its states: three have all that may be given, the others all at once.
CASES = [(cell, given) for cell in LAYERS for given in (GIVEN if cell in ("rnn", "lstm", "gru") else ["all"])]
each_case = pytest.mark.parametrize(("cell", "given"), CASES)


def new_model(cell: str = "lstm", batch_first: bool = False, dtype: Any = np.float32) -> rf.Sequential:
    return rf.Sequential(
        rf.Embedding(V, 4, seed=1, batch_first=batch_first, dtype=dtype),
        LAYERS[cell](batch_first=batch_first, dtype=dtype),
        rf.Linear(7, V, seed=3, batch_first=batch_first, dtype=dtype),
    )


def text(steps: int = T) -> tuple[Array, Array]:
    ids = np.random.default_rng(0).integers(0, V, (steps + 1, B))
    return ids[:-1], ids[1:]


def valid(lengths: Array, begin: int, end: int) -> Array:
    result: Array = np.arange(begin, end)[:, None] < lengths
    return result


def weights(given: dict[str, Array], begin: int, end: int) -> Array | None:
    mask = given.get("mask")
    mask = None if mask is None else mask[begin:end]
    if "lengths" not in given:
        return mask
    within = valid(given["lengths"], begin, end)
    return within if mask is None else np.where(within, mask, 0)


def plain(
    model: rf.Module, x: Array, targets: Array, given: dict[str, Array], begin: int, end: int, state: Any, new: int
) -> tuple[float, Any]:
    """One forward and backward through some steps, of which those from `new` on count."""
    part = slice(begin, end)
    lengths = np.clip(given["lengths"] - begin, 0, end - begin) if "lengths" in given else None
    resets = given["resets"][part] if "resets" in given else None
    model.zero_grad()
    y, state, tape = model.forward(x[part], state, lengths, resets)
    mask = weights(given, begin, end)
    if new > begin:
        mask = np.ones((end - begin, x.shape[1])) if mask is None else mask.astype(np.float64)
        mask[: new - begin] = 0
    loss, dy = rf.softmax_cross_entropy(y, targets[part], mask)
    model.backward(tape, dy, need_dx=False)
    return loss, state


# ---- gradients -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [T, T + 10])
@each_case
def test_one_window_gives_the_gradients_of_a_plain_backward(cell: str, given: str, window: int) -> None:
    """To the bit."""
    (x, targets), model = text(), new_model(cell)
    loss, state = plain(model, x, targets, GIVEN[given], 0, T, None, 0)
    expected = model.flat_grads.copy()
    records = list(rf.truncated_bptt(model, x, targets, window, **GIVEN[given]))
    assert [(record.begin, record.steps, record.loss) for record in records] == [(0, T, loss)]
    assert_same_bits(model.flat_grads, expected)
    assert_same_bits(records[0].state[1], state[1])


@each_case
def test_windows_are_plain_passes_with_the_state_carried_on(cell: str, given: str) -> None:
    """To the bit, while an optimiser changes the parameters in between."""
    (x, targets), model, twin = text(), new_model(cell), new_model(cell)
    steps, other, state = rf.SGD(model, lr=0.1), rf.SGD(twin, lr=0.1), None
    last = int(GIVEN[given]["lengths"].max()) if "lengths" in GIVEN[given] else T
    begin = 0
    for record in rf.truncated_bptt(model, x, targets, 6, **GIVEN[given]):
        end = min(begin + 6, T)
        loss, state = plain(twin, x, targets, GIVEN[given], begin, end, state, begin)
        assert (record.loss, record.begin, record.steps) == (loss, begin, end - begin)
        assert_same_bits(record.state[1], state[1])
        assert_same_bits(model.flat_grads, twin.flat_grads)
        steps.step()
        other.step()
        begin = end
    assert begin >= last


@pytest.mark.parametrize("back", [6, 7, 11, 12, 17, 40])
@each_case
def test_a_loss_goes_back_through_as_many_steps_as_asked(cell: str, given: str, back: int) -> None:
    """Against one pass through these steps from the state before them, in which the new steps alone count."""
    (x, targets), model, twin = text(), new_model(cell, dtype=np.float64), new_model(cell, dtype=np.float64)
    chosen = {name: value.astype(np.float64) if name == "mask" else value for name, value in GIVEN[given].items()}
    count = 0.0
    for record in rf.truncated_bptt(model, x, targets, 6, back=back, **chosen):
        start = max(0, record.begin + 6 - back)
        end = record.begin + record.steps
        within = {name: np.minimum(value, start) if name == "lengths" else value for name, value in chosen.items()}
        before = None
        if start:
            resets = within["resets"][:start] if "resets" in within else None
            before = twin(x[:start], None, within.get("lengths"), resets)[1]
        loss, state = plain(twin, x, targets, chosen, start, end, before, record.begin)
        assert record.loss == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(model.flat_grads, twin.flat_grads, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(np.asarray(record.state[1]), np.asarray(state[1]), rtol=1e-12, atol=1e-15)
        count += record.count
    mask = weights(chosen, 0, T)
    assert count == pytest.approx(T * B if mask is None else mask.sum())


def test_reaching_back_to_the_beginning_gives_the_full_gradient() -> None:
    """With k2 >= T and fixed parameters, the windows' gradients add up to those of the whole sequence."""
    (x, targets), model = text(24), new_model(dtype=np.float64)
    y, _, tape = model.forward(x)
    _, dy = rf.softmax_cross_entropy(y, targets)
    model.backward(tape, dy)
    expected = model.flat_grads.copy()
    model.zero_grad()
    for _ in rf.truncated_bptt(model, x, targets, 8, back=24, zero_grad=False):
        pass
    np.testing.assert_allclose(model.flat_grads / 3, expected, rtol=1e-9, atol=1e-13)
    list(rf.truncated_bptt(model, x, targets, 8))
    assert not np.allclose(model.flat_grads, expected)


def test_batch_first_gives_the_same() -> None:
    x, targets = text()
    for given in GIVEN.values():
        turned = {name: value if name == "lengths" else value.T for name, value in given.items()}
        model, twin = new_model(), new_model(batch_first=True)
        ours = rf.truncated_bptt(model, x, targets, 6, back=9, **given)
        theirs = rf.truncated_bptt(twin, x.T, targets.T, 6, back=9, **turned)
        for first, second in zip(ours, theirs, strict=True):
            assert first.loss == pytest.approx(second.loss, rel=1e-6)
            np.testing.assert_allclose(model.flat_grads, twin.flat_grads, rtol=1e-4, atol=1e-7)


def test_another_loss_and_a_model_without_an_embedding() -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 2))
    target = np.roll(x, 1, axis=0)
    model = rf.Sequential(rf.GRU(2, 8, seed=0, dtype=np.float64), rf.Linear(8, 2, seed=1, dtype=np.float64))
    optimizer = rf.Adam(model, lr=1e-2)
    losses = []
    for _ in range(60):
        for record in rf.truncated_bptt(model, x, target, 10, back=15, loss=rf.mse):
            optimizer.step(clip_norm=1.0)
            losses.append(record.loss)
    assert losses[-1] < 0.3 * losses[0]


def test_a_state_goes_in_and_the_last_one_comes_out() -> None:
    (x, targets), model = text(), new_model()
    whole = [record.loss for record in rf.truncated_bptt(model, x, targets, 5)]
    first = list(rf.truncated_bptt(model, x[:10], targets[:10], 5))
    second = list(rf.truncated_bptt(model, x[10:], targets[10:], 5, state=first[-1].state))
    assert [record.loss for record in first + second] == whole


# ---- chunks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("back", [6, 10])
@pytest.mark.parametrize("sizes", [[23], [1] * 23, [10, 0, 2, 11], [6, 6, 6, 5]])
def test_chunks_of_any_size_give_what_the_array_gives(sizes: list[int], back: int, batch_first: bool) -> None:
    """To the bit."""
    x, targets = text()
    given, lengths = GIVEN["all"], GIVEN["all"]["lengths"]
    arrays = [array.T if batch_first else array for array in (x, targets, given["resets"], given["mask"])]
    bounds = np.cumsum([0, *sizes])

    def chunks() -> Iterator[tuple[Array, ...]]:
        for a, b in itertools.pairwise(bounds):
            yield tuple(array[:, a:b] if batch_first else array[a:b] for array in arrays)

    model, twin = new_model(batch_first=batch_first), new_model(batch_first=batch_first)
    whole = rf.truncated_bptt(
        model, arrays[0], arrays[1], 6, back=back, lengths=lengths, resets=arrays[2], mask=arrays[3]
    )
    parts = rf.truncated_bptt(twin, chunks(), window=6, back=back, lengths=lengths)
    for first, second in zip(whole, parts, strict=True):
        assert (first.loss, first.begin, first.steps, first.count) == (
            (second.loss, second.begin, second.steps, second.count)
        )
        assert_same_bits(twin.flat_grads, model.flat_grads)


def test_an_endless_sequence_is_read_no_further_than_needed() -> None:
    taken = []

    def endless() -> Iterator[tuple[Array, Array]]:
        while True:
            taken.append(1)
            yield np.zeros((4, 2), np.int64), np.zeros((4, 2), np.int64)

    windows = rf.truncated_bptt(new_model(), endless(), window=6, back=9)
    assert not taken
    for _ in range(100):
        next(windows)
    assert len(taken) == 150
    held = windows.gi_frame.f_locals["run"].stream  # type: ignore[attr-defined]
    assert held.stop - held.start <= 9 + 4


def test_an_array_is_not_copied_but_sliced() -> None:
    seen = []

    def loss(y: Array, targets: Array) -> tuple[float, Array]:
        seen.append(targets)
        return rf.softmax_cross_entropy(y, targets)

    x, targets = text()
    list(rf.truncated_bptt(new_model(), x, targets, 6, loss=loss))
    assert all(np.shares_memory(part, targets) for part in seen)


# ---- ends ------------------------------------------------------------------------------------------------------------
def test_past_a_length_nothing_is_read_and_the_iteration_ends_with_the_last_row() -> None:
    x, targets = text()
    lengths = np.array([8, 3, 0, 5, 8])
    x, targets = np.where(valid(lengths, 0, T), x, -1), np.where(valid(lengths, 0, T), targets, 99)
    records = list(rf.truncated_bptt(new_model(), x, targets, 3, lengths=lengths))
    assert [record.begin for record in records] == [0, 3, 6]
    assert [record.count for record in records] == [12, 8, 4]
    expected = new_model()(x, None, lengths)[1]
    assert_same_bits(records[-1].state[1], expected[1])


def test_no_steps_no_windows() -> None:
    empty = np.zeros((0, B), np.int64)
    assert list(rf.truncated_bptt(new_model(), empty, empty, 4)) == []
    assert list(rf.truncated_bptt(new_model(), [], window=4)) == []
    assert list(rf.truncated_bptt(new_model(), *text(), 4, lengths=np.zeros(B, np.int64))) == []


# ---- refusals --------------------------------------------------------------------------------------------------------
X, Y = text()
REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no module": (TypeError, "model: expected a module", lambda: rf.truncated_bptt(3, X, Y, 4)),  # type: ignore[arg-type]
    "window": (ValueError, "window: expected at least 1", lambda: rf.truncated_bptt(new_model(), X, Y, 0)),
    "back": (ValueError, "back: expected at least window = 4", lambda: rf.truncated_bptt(new_model(), X, Y, 4, back=3)),
    "bidirectional": (
        ValueError,
        "read forward only",
        lambda: rf.truncated_bptt(rf.Sequential(rf.GRU(2, 3, bidirectional=True)), X, Y, 4),
    ),
    "steps": (ValueError, "targets: expected the steps", lambda: rf.truncated_bptt(new_model(), X, Y[:-1], 4)),
    "no chunks": (TypeError, "x: expected an iterable of chunks", lambda: rf.truncated_bptt(new_model(), X)),
    "resets": (ValueError, "resets: expected None", lambda: rf.truncated_bptt(new_model(), [], resets=X > 0)),
    "lengths": (
        ValueError,
        "lengths: expected values",
        lambda: rf.truncated_bptt(new_model(), X, Y, 4, lengths=[99] * B),
    ),
    "loss": (TypeError, "loss: expected a function", lambda: rf.truncated_bptt(new_model(), X, Y, loss="mse")),  # type: ignore[arg-type]
    "chunk": (TypeError, "chunk 0: expected", lambda: list(rf.truncated_bptt(new_model(), iter([X])))),
    "uneven chunks": (
        ValueError,
        "resets: expected in every chunk or in none, chunk 1",
        lambda: list(rf.truncated_bptt(new_model(), [(X, Y), (X, Y, X > 0)], window=30)),
    ),
    "no steps in y": (
        ValueError,
        "expected a y with the steps of x",
        lambda: list(rf.truncated_bptt(rf.Sequential(rf.GRU(2, 3), rf.Last()), np.zeros((4, 3, 2), "f"), X[:4, :3])),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_what_it_says(name: str) -> None:
    error, message, call = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
