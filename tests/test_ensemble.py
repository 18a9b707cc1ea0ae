"""`rf.Ensemble`: many models in one call, each as if it were alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import threads as rnnfast_threads
from support import assert_same_bits, threads

MODELS = 7


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def with_head(seed: int) -> rf.Sequential:
    return rf.Sequential(
        rf.LSTM(3, 8, seed=seed), rf.Dropout(0.3, seed=seed), rf.Last(), rf.Linear(8, 2, seed=seed // 2)
    )


# A function of a seed each; x (T, B, 3).
KINDS: dict[str, Callable[..., rf.Module]] = {
    "gru": lambda seed: rf.GRU(3, 8, seed=seed),
    "lstm": lambda seed: rf.LSTM(3, 8, 2, dropout=0.4, bidirectional=True, grad_clip=0.5, seed=seed),
    "double": lambda seed: rf.RNN(3, 8, nonlinearity="relu", train_initial_state=True, dtype=np.float64, seed=seed),
    "ind_rnn": lambda seed: rf.IndRNN(3, 8, seed=seed),
    "min_gru": lambda seed: rf.MinGRU(3, 8, seed=seed),
    "min_lstm": lambda seed: rf.MinLSTM(3, 8, seed=seed),
    "sru": lambda seed: rf.SRU(3, 8, 2, train_initial_state=True, seed=seed),
    "slstm": lambda seed: rf.SLSTM(3, 8, num_heads=2, recurrent_dropout=0.3, seed=seed),
    "linear": lambda seed: rf.Linear(3, 8, seed=seed),
    "with_head": with_head,
}


def leaves(state: Any) -> list[Any]:
    if state is None:
        return []
    return [state] if isinstance(state, np.ndarray) else [array for entry in state for array in leaves(entry)]


def part(state: Any, m: int) -> Any:
    if isinstance(state, tuple):
        return tuple(part(entry, m) for entry in state)
    return None if state is None else state[m]


def alone(ensemble: rf.Ensemble, kind: str) -> list[rf.Module]:
    """The same models, each a module of its own."""
    models = [KINDS[kind](seed=seed) for seed in ensemble.seeds]
    for model, member in zip(models, ensemble, strict=True):
        assert_same_bits(model.flat_params, member.flat_params)
    return models


def arguments(own: bool, dtype: Any, kind: str) -> tuple[Any, Any, Any]:
    """x, lengths, resets: the same for all models, or one for each."""
    lead = (MODELS,) if own else ()
    random = np.random.default_rng(1)
    lengths = random.integers(0, 9, (*lead, 5), endpoint=True)
    return draw(*lead, 9, 5, 3, dtype=dtype), lengths, random.random((*lead, 9, 5)) < 0.2


# ---- each as if it were alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_computes_what_it_computes_alone(kind: str, own: bool) -> None:
    """Outputs, states, gradients; on any number of threads."""
    for number in (1, 2, 3, 16):
        ensemble = rf.Ensemble(KINDS[kind], MODELS, seed=3)
        models = alone(ensemble, kind)
        x, lengths, resets = arguments(own, ensemble.dtype, kind)

        def of_model(array: Any, m: int, own: bool = own) -> Any:
            return array[m] if own else array

        with threads(number):
            y, state, tape = ensemble.forward(x, None, lengths, resets)
            dy = draw(*y.shape, seed=2, dtype=ensemble.dtype)
            dx, dstate = ensemble.backward(tape, dy, state)
            inferred, _ = ensemble(x, state, lengths, resets)
        expected_dx = []
        with threads(1):
            for m, model in enumerate(models):
                of_m = of_model(lengths, m), of_model(resets, m)
                y_m, state_m, tape_m = model.forward(of_model(x, m), None, *of_m)
                assert_same_bits(y[m], y_m)
                assert_same_bits(tuple(leaves(part(state, m))), tuple(leaves(state_m)))
                dx_m, dstate_m = model.backward(tape_m, dy[m], state_m)
                expected_dx.append(dx_m)
                assert_same_bits(tuple(leaves(part(dstate, m))), tuple(leaves(dstate_m)))
                assert_same_bits(ensemble[m].flat_grads, model.flat_grads)
                assert_same_bits(inferred[m], model(of_model(x, m), state_m, *of_m)[0])
        assert_same_bits(dx, np.stack(expected_dx) if own else sum(expected_dx[1:], start=expected_dx[0]))


def test_batch_first_and_tokens() -> None:
    def make(seed: int) -> rf.Sequential:
        embedding = rf.Embedding(11, 4, batch_first=True, seed=seed)
        return rf.Sequential(embedding, rf.GRU(4, 6, batch_first=True, seed=seed))

    ensemble = rf.Ensemble(make, 4, seed=0)
    assert ensemble.batch_first
    shared, own = np.random.default_rng(0).integers(0, 11, (4, 9)), np.random.default_rng(0).integers(0, 11, (4, 4, 9))
    for tokens in (shared, own):
        y, _, tape = ensemble.forward(tokens, lengths=[9, 3, 0, 5])
        assert y.shape == (4, 4, 9, 6)
        for m, model in enumerate(ensemble):
            expected, _ = model(tokens[m] if tokens is own else tokens, lengths=[9, 3, 0, 5])
            assert_same_bits(y[m], expected)
        dx, dstate = ensemble.backward(tape, np.ones_like(y))
        assert dx is None
        assert dstate[0] is None


def test_masks_are_those_of_the_models() -> None:
    """And `rng_state` repeats them."""
    ensemble = rf.Ensemble(KINDS["lstm"], MODELS, seed=3)
    models = alone(ensemble, "lstm")
    x = draw(9, 5, 3)
    before = ensemble.rng_state
    first, second = ensemble.forward(x)[0], ensemble.forward(x)[0]
    assert (first != second).any()
    for m, model in enumerate(models):
        assert_same_bits(first[m], model.forward(x)[0])
        assert_same_bits(second[m], model.forward(x)[0])
    ensemble.rng_state = before
    assert_same_bits(ensemble.forward(x)[0], first)
    ensemble.eval()
    assert not any(model.training for model in ensemble)
    assert_same_bits(ensemble.forward(x)[0], ensemble(x)[0])


def test_segments_go_to_the_recurrent_layers() -> None:
    def make(seed: int) -> rf.Sequential:
        return rf.Sequential(rf.GRU(3, 8, seed=seed), rf.Linear(8, 2, seed=seed))

    results = []
    for checkpoint in (None, 4):
        ensemble = rf.Ensemble(make, 5, seed=0)
        y, _, tape = ensemble.forward(draw(9, 5, 3), checkpoint=checkpoint)
        ensemble.backward(tape, np.ones_like(y))
        results.append(ensemble.flat_grads)
    assert_same_bits(*results)
    linear = rf.Ensemble(rf.Linear, 5, 3, 2, seed=0)
    assert linear.forward(draw(9, 5, 3), checkpoint=4)[0].shape == (5, 9, 5, 2)


# ---- the parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_stacked_views_of_one_buffer(kind: str) -> None:
    ensemble = rf.Ensemble(KINDS[kind], MODELS, seed=3)
    rows = ensemble.flat_params.reshape(MODELS, -1)
    for name, stack in ensemble.params.items():
        assert np.shares_memory(stack, ensemble.flat_params)
        for m, model in enumerate(ensemble):
            assert_same_bits(stack[m], model.params[name])
    for m, model in enumerate(ensemble):
        assert_same_bits(rows[m], model.flat_params)
    ensemble.flat_params[...] = np.arange(ensemble.flat_params.size)
    ensemble.flat_grads[...] = -np.arange(ensemble.flat_params.size)
    for m, model in enumerate(ensemble):
        assert np.shares_memory(model.flat_grads, ensemble.flat_grads)
        for name in model.params:
            assert (ensemble.grads[name][m] == -model.params[name]).all()
    copies = ensemble.state_dict()
    ensemble.flat_params[...] = 0
    ensemble.load_state_dict(copies)
    assert (ensemble.flat_params == np.arange(ensemble.flat_params.size)).all()


def test_one_optimiser_trains_all_as_many_train_each() -> None:
    ensemble = rf.Ensemble(KINDS["gru"], MODELS, seed=3)
    models = alone(ensemble, "gru")
    x, target = draw(9, 5, 3), draw(9, 5, 8, seed=1)
    optimizer, optimizers = rf.Adam(ensemble, lr=0.01), [rf.Adam(model, lr=0.01) for model in models]
    for _ in range(5):
        ensemble.zero_grad()
        y, _, tape = ensemble.forward(x)
        ensemble.backward(tape, y - target)
        optimizer.step()
        for model, own in zip(models, optimizers, strict=True):
            model.zero_grad()
            y_m, _, tape_m = model.forward(x)
            model.backward(tape_m, y_m - target)
            own.step()
    for member, model in zip(ensemble, models, strict=True):
        assert_same_bits(member.flat_params, model.flat_params)


def test_seeds_are_drawn_or_given() -> None:
    first, again, other = (rf.Ensemble(rf.GRU, 5, 3, 8, seed=seed) for seed in (0, 0, 1))
    assert first.seeds == again.seeds
    assert len({*first.seeds, *other.seeds}) == 10
    assert_same_bits(first.flat_params, again.flat_params)
    assert rf.Ensemble(rf.GRU, 5, 3, 8).seeds != rf.Ensemble(rf.GRU, 5, 3, 8).seeds
    given = rf.Ensemble(rf.GRU, 2, 3, 8, seed=[7, 7])
    assert given.seeds == (7, 7)
    assert_same_bits(given[0].flat_params, given[1].flat_params)
    assert_same_bits(given[0].flat_params, rf.GRU(3, 8, seed=7).flat_params)


def test_every_model_is_initialised_with_numbers_of_its_own() -> None:
    ensemble = rf.initialize(rf.Ensemble(rf.LSTM, 3, 3, 8, seed=0), weight_hh="orthogonal", forget_bias=1.0, seed=0)
    weights = ensemble.params["weight_hh_l0"].reshape(3, 4, 8, 8)
    assert (weights[0] != weights[1]).all()
    np.testing.assert_allclose(weights @ weights.swapaxes(-1, -2), np.broadcast_to(np.eye(8), (3, 4, 8, 8)), atol=1e-6)
    assert (ensemble.params["bias_ih_l0"][:, 8:16] == 1).all()
    with pytest.raises(ValueError, match="expected no Ensemble inside of another module"):
        rf.initialize(rf.Sequential(ensemble), bias="zeros")


def test_gradients_go_where_they_are_told() -> None:
    ensemble = rf.Ensemble(KINDS["gru"], MODELS, seed=3)
    x = draw(9, 5, 3)
    y, _, tape = ensemble.forward(x)
    flat = np.zeros_like(ensemble.flat_grads)
    ensemble.backward(tape, np.ones_like(y), keep=True, grads=flat)
    named = {name: np.zeros(array.shape, np.float32) for name, array in ensemble.grads.items()}
    ensemble.backward(tape, np.ones_like(y), keep=True, grads=named)
    assert not ensemble.flat_grads.any()
    ensemble.backward(tape, np.ones_like(y))
    assert_same_bits(flat, ensemble.flat_grads)
    for name, array in named.items():
        assert_same_bits(array, np.ascontiguousarray(ensemble.grads[name]))


# ---- as a module -----------------------------------------------------------------------------------------------------


def test_ensembles_stand_in_a_sequential() -> None:
    """Names, states, gradients and one flat buffer, as of any other module."""
    recurrent = rf.Ensemble(rf.GRU, 4, 6, 8, seed=1)
    heads = rf.Ensemble(rf.Linear, 4, 8, 2, seed=2)
    twins = [rf.Sequential(copy.deepcopy(a), copy.deepcopy(b)) for a, b in zip(recurrent, heads, strict=True)]
    model = rf.Sequential(rf.Linear(3, 6, seed=0), recurrent, heads)
    below = rf.Linear(3, 6, seed=0)
    assert model.params["1.weight_hh_l0"].shape == (4, 24, 8)
    x = draw(9, 5, 3)
    y, state, tape = model.forward(x, lengths=[9, 2, 0, 5, 9])
    assert y.shape == (4, 9, 5, 2)
    assert state[1].shape == (4, 1, 5, 8)
    model.backward(tape, np.ones_like(y))
    between, _, tape_below = below.forward(x, lengths=[9, 2, 0, 5, 9])
    total = None
    for m, twin in enumerate(twins):
        y_m, _, tape_m = twin.forward(between, lengths=[9, 2, 0, 5, 9])
        assert_same_bits(y[m], y_m)
        d, _ = twin.backward(tape_m, np.ones_like(y_m))
        assert d is not None
        total = d if total is None else total + d
        assert_same_bits(model.grads["1.weight_hh_l0"][m], twin.grads["0.weight_hh_l0"])
        assert_same_bits(model.grads["2.weight"][m], twin.grads["1.weight"])
    below.backward(tape_below, total)
    assert_same_bits(model.grads["0.weight"], below.grads["weight"])
    flat = np.zeros_like(model.flat_grads)
    model.backward(model.forward(x, lengths=[9, 2, 0, 5, 9])[2], np.ones_like(y), grads=flat)
    assert_same_bits(flat, model.flat_grads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_ensemble_comes_back(kind: str, tmp_path: Path) -> None:
    ensemble = rf.Ensemble(KINDS[kind], MODELS, seed=3)
    ensemble.flat_params[...] = draw(ensemble.flat_params.size)
    rf.save(ensemble, tmp_path / "model.safetensors")
    again = rf.load(tmp_path / "model.safetensors")
    assert isinstance(again, rf.Ensemble)
    assert (again.config, again.seeds, repr(again)) == (ensemble.config, ensemble.seeds, repr(ensemble))
    assert_same_bits(again.flat_params, ensemble.flat_params)
    x = draw(9, 5, 3, dtype=ensemble.dtype)
    assert_same_bits(again.forward(x)[0], ensemble.forward(x)[0])  # the masks too


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_are_whole_and_independent(duplicate: Callable[[Any], Any]) -> None:
    ensemble = rf.Ensemble(KINDS["with_head"], MODELS, seed=3)
    ensemble.flat_grads[...] = 1
    again = duplicate(ensemble)
    assert_same_bits(again.flat_params, ensemble.flat_params)
    assert (again.flat_grads == 1).all()
    again.flat_params[...] = 0
    assert ensemble.flat_params.any()
    assert not any(model.flat_params.any() for model in again)
    x = draw(9, 5, 3)
    member = duplicate(ensemble[2])
    assert_same_bits(member(x)[0], ensemble(x)[0][2])
    rf.Sequential(member)


def test_a_tape_has_the_tapes_of_the_models() -> None:
    ensemble = rf.Ensemble(rf.LSTM, 4, 3, 8, seed=1)
    y, _, tape = ensemble.forward(draw(9, 5, 3))
    assert not y.flags.writeable
    assert len(tape) == 4
    assert_same_bits(tape[2].hidden[0], y[2])  # type: ignore[attr-defined]
    ensemble.backward(tape, np.ones_like(y), need_dx=False)
    with pytest.raises(RuntimeError, match="consumed"):
        ensemble.backward(tape, np.ones_like(y))
    tape = ensemble.forward(draw(9, 5, 3))[2]
    ensemble[3].load_state_dict(ensemble[3].state_dict())
    with pytest.raises(RuntimeError, match="parameters have changed"):
        ensemble.backward(tape, np.ones_like(y))


def test_no_steps_no_rows_one_model() -> None:
    for shape in ((0, 5, 3), (9, 0, 3)):
        ensemble = rf.Ensemble(rf.GRU, 4, 3, 8, seed=1)
        y, state, tape = ensemble.forward(draw(*shape))
        assert y.shape == (4, *shape[:2], 8)
        dx, _ = ensemble.backward(tape, np.ones_like(y), state)
        assert dx is not None
        assert dx.shape == shape
    one = rf.Ensemble(rf.GRU, 1, 3, 8, seed=1)
    assert_same_bits(one(draw(9, 5, 3))[0][0], one[0](draw(9, 5, 3))[0])


def test_a_description_names_one_model() -> None:
    assert repr(rf.Ensemble(rf.GRU, 4, 3, 8)) == "Ensemble(4 × GRU(3, 8))"


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_models_are_shared_out_and_each_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = rf.Ensemble(rf.GRU, 40, 3, 8, seed=1)
    seen: list[tuple[int, int]] = []
    compute = rf.GRU._forward
    both = threading.Event()

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((threading.get_ident(), rnnfast_threads.resolve()))
        if len({thread for thread, _ in seen}) == 2:
            both.set()
        elif len(seen) > 1:  # the first model is computed before there are threads
            both.wait(60)
        return compute(self, *arguments, **options)

    monkeypatch.setattr(rf.GRU, "_forward", watched)
    with threads(2):
        ensemble(draw(9, 5, 3))
        assert len({thread for thread, _ in seen}) == 2
        assert {number for _, number in seen} == {1}
        assert rnnfast_threads.resolve() == (2 if rnnfast_threads._OPENMP else 1)
    assert threading.active_count() < 40


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_in_one_model_ends_the_call(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = rf.Ensemble(rf.GRU, 400, 3, 8, seed=1)
    compute = rf.GRU._forward
    computed = []

    def fails(self: Any, *arguments: Any, **options: Any) -> Any:
        computed.append(self)
        if self is ensemble[5]:
            raise error
        return compute(self, *arguments, **options)

    monkeypatch.setattr(rf.GRU, "_forward", fails)
    before = threading.active_count()
    with threads(3), pytest.raises(type(error)) as caught:
        ensemble(draw(9, 5, 3))
    assert threading.active_count() == before
    assert len(computed) < 400
    if isinstance(error, ValueError):
        assert caught.value.__notes__ == ["in model 5 of an Ensemble"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e(draw(3, 9, 5, 3)), ValueError, r"x: expected 4 models on the first axis, got \(3, 9, 5, 3\)"),
        (lambda e: e(draw(9, 5, 2)), ValueError, r"x: expected \(T, B, 3\), got \(9, 5, 2\)"),
        (lambda e: e(draw(9, 5, 3, dtype=np.float64)), TypeError, "x: expected float32, got float64"),
        (lambda e: e("x"), TypeError, "x: expected float32"),
        (lambda e: e(draw(9, 5, 3), draw(3, 1, 5, 8)), ValueError, r"state: expected 4 models on the first axis"),
        (lambda e: e(draw(9, 5, 3), draw(4, 5, 8)), ValueError, r"h0: expected \(1, 5, 8\), got \(5, 8\)"),
        (lambda e: e(draw(9, 5, 3), 1.0), ValueError, r"state: expected 4 models on the first axis, got \(\)"),
        (lambda e: e(draw(9, 5, 3), lengths=np.ones((3, 5), int)), ValueError, "lengths: expected 4 models"),
        (lambda e: e(draw(9, 5, 3), lengths=[1, 2]), ValueError, r"lengths: expected \(5,\), got \(2,\)"),
        (lambda e: e(draw(9, 5, 3), resets=np.ones((3, 9, 5), bool)), ValueError, "resets: expected 4 models"),
    ],
)
def test_refuses_wrong_arguments_by_name(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    ensemble = rf.Ensemble(rf.GRU, 4, 3, 8, seed=1)
    with pytest.raises(error, match=message):
        call(ensemble)


def test_refuses_wrong_gradients_by_name() -> None:
    ensemble = rf.Ensemble(rf.GRU, 4, 3, 8, seed=1)
    y, state, tape = ensemble.forward(draw(9, 5, 3))
    with pytest.raises(ValueError, match=r"dy: expected \(4, 9, 5, 8\), got \(9, 5, 8\)"):
        ensemble.backward(tape, y[0])
    with pytest.raises(ValueError, match="dstate: expected 4 models on the first axis"):
        ensemble.backward(tape, y, state[:3])
    with pytest.raises(ValueError, match="grads: expected"):
        ensemble.backward(tape, y, grads={})
    ensemble.backward(tape, y)


def test_refuses_what_is_no_ensemble() -> None:
    one = rf.GRU(3, 8, seed=0)
    sizes = iter([8, 9])
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: rf.Ensemble(one, 3), TypeError, "make: expected a layer's class or a function, got GRU"),  # type: ignore[arg-type]
        (lambda: rf.Ensemble(lambda seed: 3, 3), TypeError, "make: expected it to return a module, got int"),  # type: ignore[arg-type, return-value]
        (lambda: rf.Ensemble(lambda seed: one, 3), ValueError, "make: expected a new module at every call"),
        (lambda: rf.Ensemble(rf.GRU, 0, 3, 8), ValueError, "num_models: expected at least 1, got 0"),
        (lambda: rf.Ensemble(rf.GRU, 2, 3, 8, seed=[1]), ValueError, "seed: expected one integer or 2, got 1"),
        (lambda: rf.Ensemble(rf.GRU, 2, 3, 8, seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (lambda: rf.Ensemble(rf.GRU, 2, 3), TypeError, "hidden_size"),
        (
            lambda: rf.Ensemble(lambda seed: rf.GRU(3, next(sizes)), 2),
            ValueError,
            r"differ in their seeds alone, got GRU\(3, 8\) and GRU\(3, 9\)",
        ),
        (
            lambda: rf.Ensemble(lambda seed: rf.Ensemble(rf.GRU, 2, 3, 8, seed=seed), 2),
            TypeError,
            "make: expected a module whose x is one array, got Ensemble",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    member = rf.Ensemble(rf.GRU, 2, 3, 8)[0]
    with pytest.raises(ValueError, match="already belongs"):
        rf.Sequential(member)
    with pytest.raises(ValueError, match="belongs to another"):
        rf.Ensemble(lambda seed: member, 1)
