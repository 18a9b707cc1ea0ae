"""The fused head: the bits of a linear layer and a loss apart, no logits kept, models trained through it."""

from __future__ import annotations

import copy
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast import _kernels
from support import assert_same_bits, threads

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = (np.float32, np.float64)
# T, B, H, V: one of each, tails of vectors and tiles, several chunks and blocks of outputs, many classes, none at all.
SIZES = {
    "one_class": (3, 2, 5, 1),
    "two_classes": (1, 1, 1, 2),
    "tails": (7, 5, 16, 9),
    "characters": (64, 32, 48, 96),
    "blocks": (30, 17, 33, 1000),
    "many_classes": (2, 35, 20, 3001),
    "empty_sequence": (0, 3, 4, 5),
    "empty_batch": (4, 0, 4, 5),
}
KINDS = ("every step", "mask", "weights", "lengths", "weights and lengths")


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def choose(classes: int, *shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, classes, shape)


class Problem:
    """h, targets, a mask and lengths, in time-first layout; `weights` is what they come to."""

    def __init__(self, sizes: tuple[int, int, int, int], kind: str, dtype: Any, seed: int = 0) -> None:
        self.T, self.B, self.H, self.V = sizes
        random, shape = np.random.default_rng(seed), sizes[:2]
        self.h, self.targets = draw(*shape, self.H, seed=seed, dtype=dtype), choose(self.V, *shape, seed=seed)
        weights = random.random(shape) * (random.random(shape) < 0.8)
        self.mask = {"mask": random.random(shape) < 0.6, "weights": weights}.get(kind.split()[0])
        self.lengths = random.integers(0, self.T, self.B, endpoint=True) if "lengths" in kind else None
        self.weights = self.mask
        if self.lengths is not None:
            valid = np.arange(self.T)[:, None] < self.lengths
            self.weights = valid if self.mask is None else np.where(valid, self.mask, 0)

    def outer(self, array: Any, batch_first: bool) -> Any:
        return array.swapaxes(0, 1) if batch_first and array is not None else array

    @property
    def unread(self) -> Array:
        """The steps that don't count."""
        return np.zeros((self.T, self.B), bool) if self.weights is None else np.asarray(self.weights) == 0

    def dirty(self) -> None:
        """Put nonsense where nothing may be read."""
        self.h[self.unread], self.targets[self.unread] = np.nan, -7
        if self.lengths is not None and self.mask is not None:
            self.mask[np.arange(self.T)[:, None] >= self.lengths] = np.nan


def pair(problem: Problem, dtype: Any, **options: Any) -> tuple[rf.Linear, rf.SoftmaxHead]:
    """A linear layer and a head with the same parameters and the same gradients to add to."""
    linear = rf.Linear(problem.H, problem.V, dtype=dtype, seed=3, **options)
    head = rf.SoftmaxHead(problem.H, problem.V, dtype=dtype, seed=3, **options)
    linear.flat_grads[...] = head.flat_grads[...] = draw(linear.flat_grads.size, seed=9)
    return linear, head


def apart(linear: rf.Linear, problem: Problem) -> tuple[float, Array]:
    """Loss, dh and the gradients by the linear layer and the loss."""
    outer = linear.batch_first
    y, _, tape = linear.forward(problem.outer(problem.h, outer))
    loss, dy = rf.softmax_cross_entropy(y, problem.outer(problem.targets, outer), problem.outer(problem.weights, outer))
    dh, _ = linear.backward(tape, dy)
    assert dh is not None
    return loss, dh


def fused(head: rf.SoftmaxHead, problem: Problem) -> tuple[float, Array]:
    outer = head.batch_first
    h, targets, mask = (problem.outer(a, outer) for a in (problem.h, problem.targets, problem.mask))
    return head.loss_and_grad(h, targets, mask, problem.lengths)


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_a_linear_layer_and_its_loss_to_the_bit(sizes: str, kind: str, batch_first: bool, dtype: Any) -> None:
    """Loss, dh and what is added to the gradients; and nothing is read of a step that doesn't count."""
    problem = Problem(SIZES[sizes], kind, dtype)
    linear, head = pair(problem, dtype, batch_first=batch_first)
    expected = apart(linear, problem)
    problem.dirty()
    loss, dh = fused(head, problem)
    assert isinstance(loss, float)
    assert loss == expected[0]
    assert_same_bits(dh, expected[1])
    assert_same_bits(head.flat_grads, linear.flat_grads)
    assert not problem.outer(dh, batch_first)[problem.unread].any()


@settings(max_examples=60)
@given(
    st.tuples(st.integers(0, 12), st.integers(0, 9), st.integers(1, 40), st.integers(1, 130)),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 99),
)
def test_it_is_a_linear_layer_and_its_loss_for_all_sizes(
    sizes: tuple[int, int, int, int], kind: str, bias: bool, seed: int
) -> None:
    problem = Problem(sizes, kind, np.float32, seed)
    linear, head = pair(problem, np.float32, bias=bias)
    expected, got = apart(linear, problem), fused(head, problem)
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])
    assert_same_bits(head.flat_grads, linear.flat_grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", ["one_class", "tails", "characters", "many_classes"])
def test_it_matches_its_equations(sizes: str, kind: str, dtype: Any) -> None:
    problem = Problem(SIZES[sizes], kind, dtype)
    head = rf.SoftmaxHead(problem.H, problem.V, dtype=dtype, seed=3)
    w, b = (head.params[name].astype(np.float64) for name in ("weight", "bias"))
    h, rows = problem.h.reshape(-1, problem.H).astype(np.float64), np.arange(problem.T * problem.B)
    m = np.ones(len(rows)) if problem.weights is None else problem.weights.ravel().astype(dtype).astype(np.float64)
    z = h @ w.T + b
    chances = np.exp(z - z.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    expected = -(m * np.log(chances[rows, problem.targets.ravel()])).sum() / m.sum()
    dz = chances
    dz[rows, problem.targets.ravel()] -= 1
    dz *= (m / m.sum())[:, None]
    loss, dh = fused(head, problem)
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-6} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-14}
    np.testing.assert_allclose(loss, expected, **tolerance)
    np.testing.assert_allclose(dh.reshape(h.shape), dz @ w, **tolerance)
    np.testing.assert_allclose(head.grads["weight"], dz.T @ h, **tolerance)
    np.testing.assert_allclose(head.grads["bias"], dz.sum(0), **tolerance)


def test_it_matches_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of losses and gradients")
    linear = torch.nn.Linear(12, 37, dtype=torch.float64)
    head = rf.SoftmaxHead(12, 37, dtype=np.float64)
    head.load_state_dict(linear.state_dict())
    h, targets = draw(6, 4, 12, dtype=np.float64), choose(37, 6, 4)
    loss, dh = head.loss_and_grad(h, targets)
    x = torch.from_numpy(h).requires_grad_()
    expected = torch.nn.functional.cross_entropy(linear(x).flatten(0, 1), torch.from_numpy(targets).flatten())
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    for got, judge in ((dh, x), (head.grads["weight"], linear.weight), (head.grads["bias"], linear.bias)):
        np.testing.assert_allclose(got, judge.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_gradients_of_a_model_match_central_differences() -> None:
    head = rf.SoftmaxHead(5, 6, seed=2, dtype=np.float64)
    model = rf.Sequential(rf.Embedding(6, 3, seed=0, dtype=np.float64), rf.LSTM(3, 5, seed=1, dtype=np.float64), head)
    x, targets, mask = choose(6, 4, 3), choose(6, 4, 3, seed=2), np.random.default_rng(3).random((4, 3))
    lengths = [4, 2, 3]
    h, _, tape = model.forward(x, lengths=lengths)
    loss, dh = head.loss_and_grad(h, targets, mask, lengths)
    model.backward(tape, dh)
    direction, kept = draw(model.flat_params.size, dtype=np.float64), model.flat_params.copy()
    sides = []
    for sign in (1, -1):
        model.flat_params[...] = kept + sign * 1e-6 * direction
        sides.append(head.loss(model.forward(x, lengths=lengths)[0], targets, mask, lengths))
    model.flat_params[...] = kept
    assert loss == head.loss(model.forward(x, lengths=lengths)[0], targets, mask, lengths)
    np.testing.assert_allclose((sides[0] - sides[1]) / 2e-6, model.flat_grads @ direction, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", ["characters", "blocks", "many_classes"])
def test_threads_do_not_change_a_bit(sizes: str, dtype: Any) -> None:
    problem = Problem(SIZES[sizes], "weights", dtype)
    results = []
    for number in (1, 2, 3, 7):
        with threads(number):
            _, head = pair(problem, dtype)
            results.append((*fused(head, problem), head.flat_grads))
    for loss, dh, grads in results[1:]:
        assert loss == results[0][0]
        assert_same_bits((dh, grads), results[0][1:])


def test_the_loss_alone_is_the_same_and_leaves_the_gradients() -> None:
    for kind in KINDS:
        problem = Problem(SIZES["blocks"], kind, np.float32)
        _, head = pair(problem, np.float32)
        before = head.flat_grads.copy()
        problem.dirty()
        loss = head.loss(problem.h, problem.targets, problem.mask, problem.lengths)
        assert_same_bits(head.flat_grads, before)
        assert loss == fused(head, problem)[0]


@pytest.mark.parametrize("mask", [np.zeros((3, 2), bool), np.zeros((3, 2))])
def test_nothing_to_count_is_a_loss_of_zero(mask: Array) -> None:
    head = rf.SoftmaxHead(4, 5, seed=0)
    loss, dh = head.loss_and_grad(np.full((3, 2, 4), np.nan, np.float32), np.full((3, 2), -1), mask)
    assert loss == 0
    assert not dh.any() and not head.flat_grads.any()
    assert head.loss(np.full((3, 2, 4), np.nan, np.float32), np.full((3, 2), -1), lengths=[0, 0]) == 0


@pytest.mark.parametrize("shape", [(), (6,), (2, 6), (5, 2, 6), (3, 5, 2, 6)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_any_number_of_leading_axes(batch_first: bool, shape: tuple[int, ...]) -> None:
    linear, head = (kind(4, 7, seed=0, batch_first=batch_first) for kind in (rf.Linear, rf.SoftmaxHead))
    h, targets = draw(*shape, 4), choose(7, *shape)
    y, _, tape = linear.forward(h)
    expected, dy = rf.softmax_cross_entropy(y, targets)
    loss, dh = head.loss_and_grad(h, targets)
    assert loss == expected
    assert_same_bits(dh, linear.backward(tape, dy)[0])
    assert_same_bits(head.flat_grads, linear.flat_grads)
    assert_same_bits(head(h)[0], y)


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    ],
)
def test_any_layout_gives_the_same_bits(form: Callable[[Array], Array]) -> None:
    h, targets, mask = draw(4, 3, 5), choose(7, 4, 3), np.random.default_rng(2).random((4, 3))
    one, other = rf.SoftmaxHead(5, 7, seed=0), rf.SoftmaxHead(5, 7, seed=0)
    loss, dh = one.loss_and_grad(h, targets, mask)
    again, dh_again = other.loss_and_grad(form(h), form(targets), form(mask))
    assert again == loss
    assert_same_bits(dh_again, dh)
    assert_same_bits(other.flat_grads, one.flat_grads)


def test_arguments_are_left_as_they_were() -> None:
    problem = Problem(SIZES["tails"], "weights and lengths", np.float32)
    before = copy.deepcopy(problem)
    for array in (problem.h, problem.targets, problem.mask, problem.lengths):
        assert array is not None
        array.flags.writeable = False
    fused(rf.SoftmaxHead(problem.H, problem.V), problem)
    assert np.array_equal(problem.h, before.h) and np.array_equal(problem.targets, before.targets)


# ---- gradients go where they should ----------------------------------------------------------------------------------
def test_gradients_add_up_in_the_arrays_that_they_are_given() -> None:
    head, h, targets = rf.SoftmaxHead(4, 5, seed=0), draw(3, 2, 4), choose(5, 3, 2)
    head.loss_and_grad(h, targets)
    once = head.flat_grads.copy()
    flat = np.zeros_like(once)
    head.loss_and_grad(h, targets, grads=flat)
    named = {name: np.zeros_like(view) for name, view in head.grads.items()}
    head.loss_and_grad(h, targets, grads=named)
    assert_same_bits(flat, once)
    assert_same_bits(named, dict(head.grads))
    assert_same_bits(head.flat_grads, once)
    head.loss_and_grad(h, targets)
    assert_same_bits(head.flat_grads, 2 * once)
    with pytest.raises(TypeError, match="grads: expected float32, got float64"):
        head.loss_and_grad(h, targets, grads=flat.astype(np.float64))


def test_gradients_that_were_zeroed_too_late_are_missed() -> None:
    """Else the head would never learn, and nobody would notice."""
    model = rf.Sequential(rf.Linear(3, 4, seed=0), rf.SoftmaxHead(4, 5, seed=1))
    head, x, targets = model[1], draw(3, 2, 3), choose(5, 3, 2)
    assert isinstance(head, rf.SoftmaxHead)
    h, _, tape = model.forward(x)
    _, dh = head.loss_and_grad(h, targets)
    model.zero_grad()
    with pytest.raises(RuntimeError, match="grads: zeroed after loss_and_grad"):
        model.backward(tape, dh)
    assert not model.flat_grads.any()
    _, dh = head.loss_and_grad(h, targets)
    model.backward(tape, dh)
    assert all(gradient.any() for gradient in model.grads.values())
    model.zero_grad()
    model.backward(model.forward(x)[2], dh)  # a gradient of one's own


def test_concurrent_calls_give_what_single_ones_give() -> None:
    problem, count = Problem(SIZES["characters"], "mask", np.float32), 4
    head = rf.SoftmaxHead(problem.H, problem.V, seed=0)
    alone, together = np.zeros((2, count, head.flat_grads.size), np.float32)

    def run(k: int, grads: Array) -> None:
        head.loss_and_grad(problem.h + k, problem.targets, problem.mask, grads=grads)

    for k in range(count):
        run(k, alone[k])
    workers = [threading.Thread(target=run, args=(k, together[k])) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_same_bits(together, alone)
    assert not head.flat_grads.any()


def test_a_signal_ends_a_long_call_and_leaves_the_gradients() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    head = rf.SoftmaxHead(256, 4096, seed=0)
    one = np.ones((1, 256), np.float32)
    h = np.lib.stride_tricks.as_strided(one, (500, 500, 256), (0, 0, 4))  # seconds of work
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            head.loss_and_grad(h, np.zeros((500, 500), np.int64))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not head.flat_grads.any()


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
import rnnfast as rf

def status(field):
    return 1024 * int(re.search(rf"^{field}:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

T, B, H, V = map(int, sys.argv[1:])
rf.SoftmaxHead(8, 8).loss_and_grad(np.zeros((9, 9, 8), np.float32), np.zeros((9, 9), int))
head, h, targets = rf.SoftmaxHead(H, V), np.zeros((T, B, H), np.float32), np.zeros((T, B), int)
head.flat_grads[...], h[...] = 0, 0
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
head.loss_and_grad(h, targets)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
@pytest.mark.parametrize(("T", "B", "H", "V"), [(64, 64, 16, 8000), (256, 64, 16, 1000)])
def test_logits_are_never_kept(T: int, B: int, H: int, V: int) -> None:
    """The most memory of a call, weights packed and dh among it, is a fraction of what the logits alone would take."""
    done = subprocess.run([sys.executable, "-c", MEMORY, *map(str, (T, B, H, V))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < T * B * V * 4 / 4


# ---- as a module -----------------------------------------------------------------------------------------------------
def test_it_has_a_linear_layers_parameters() -> None:
    for bias in (True, False):
        linear, head = rf.Linear(4, 5, bias=bias, seed=3), rf.SoftmaxHead(4, 5, bias=bias, seed=3)
        assert {name: view.shape for name, view in head.params.items()} == {
            name: view.shape for name, view in linear.params.items()
        }
        assert_same_bits(head.flat_params, linear.flat_params)
        head.load_state_dict(linear.state_dict())
    rf.initialize(head, weight="default", seed=1)
    rf.initialize(linear, weight="default", seed=1)
    assert_same_bits(head.flat_params, linear.flat_params)


def test_a_call_gives_logits_and_forward_gives_h() -> None:
    linear, head, h = rf.Linear(4, 5, seed=3), rf.SoftmaxHead(4, 5, seed=3), draw(6, 3, 4)
    lengths = [6, 0, 4]
    assert_same_bits(head(h, lengths=lengths)[0], linear(h, lengths=lengths)[0])
    y, state, tape = head.forward(h, lengths=lengths)
    assert state is None
    assert np.shares_memory(y, h) and np.array_equal(y, h)
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 0
    dh = draw(6, 3, 4, seed=1)
    dx, _ = head.backward(tape, dh, keep=True)
    assert_same_bits(dx, dh)
    assert head.backward(tape, dh, need_dx=False)[0] is None
    assert not head.flat_grads.any()
    with pytest.raises(RuntimeError, match="consumed by backward"):
        head.backward(tape, dh)


def test_nothing_can_follow_it() -> None:
    message = "modules: expected SoftmaxHead at the end, got it at position 0"
    with pytest.raises(ValueError, match=message):
        rf.Sequential(rf.SoftmaxHead(4, 5), rf.Linear(5, 2))
    with pytest.raises(ValueError, match="modules: expected Sequential at the end, got it at position 0"):
        rf.Sequential(rf.Sequential(rf.SoftmaxHead(4, 5)), rf.Linear(5, 2))
    rf.Sequential(rf.Linear(3, 4), rf.Sequential(rf.Linear(4, 4), rf.SoftmaxHead(4, 5)))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_independent(duplicate: Callable[[rf.SoftmaxHead], rf.SoftmaxHead]) -> None:
    head, h, targets = rf.SoftmaxHead(4, 5, bias=False), draw(3, 2, 4), choose(5, 3, 2)
    twin = duplicate(head)
    assert repr(twin) == repr(head) == "SoftmaxHead(4, 5, bias=False)"
    assert head.loss_and_grad(h, targets)[0] == twin.loss(h, targets)
    assert not twin.flat_grads.any()


def test_a_model_that_was_saved_is_the_same(tmp_path: Path) -> None:
    model = rf.Sequential(rf.Embedding(7, 3), rf.GRU(3, 4), rf.SoftmaxHead(4, 7))
    rf.save(model, tmp_path / "model.safetensors")
    loaded = rf.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    x = choose(7, 5, 2)
    assert_same_bits(loaded(x)[0], model(x)[0])
    head = loaded[2]  # type: ignore[index]
    assert head.loss(loaded.forward(x)[0], x) == model[2].loss(model.forward(x)[0], x)  # type: ignore[attr-defined]


# ---- models trained through it ---------------------------------------------------------------------------------------
def model_with(end: Callable[..., rf.Module], batch_first: bool = False) -> rf.Sequential:
    return rf.Sequential(
        rf.Embedding(6, 4, seed=1, batch_first=batch_first),
        rf.LSTM(4, 7, 2, seed=2, dropout=0.2, batch_first=batch_first),
        rf.Dropout(0.2, seed=4, batch_first=batch_first),
        end(7, 6, seed=3, batch_first=batch_first),
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("back", [6, 10])
@pytest.mark.parametrize("given", ["nothing", "lengths", "mask", "all"])
def test_truncated_bptt_trains_through_it_as_through_a_linear_layer(given: str, back: int, batch_first: bool) -> None:
    """By itself or with its loss given; to the bit where a window isn't cut in two: a linear layer then adds twice."""
    T, B = 23, 5
    x, targets = choose(6, T, B), choose(6, T, B, seed=2)
    options: dict[str, Any] = {}
    if given in ("lengths", "all"):
        options["lengths"] = np.array([23, 9, 0, 16, 1])
    if given in ("mask", "all"):
        options["mask"] = np.random.default_rng(6).random((T, B)).astype(np.float32)
    if batch_first:
        x, targets = x.T, targets.T
        options |= {"mask": options["mask"].T} if "mask" in options else {}
    models = [model_with(end, batch_first) for end in (rf.Linear, rf.SoftmaxHead, rf.SoftmaxHead)]
    optimizers = [rf.Adam(model, lr=1e-2) for model in models]
    losses = [None, None, models[2][3].loss_and_grad]  # type: ignore[attr-defined]
    runs = [
        rf.truncated_bptt(model, x, targets, 6, back=back, loss=loss, **options)
        for model, loss in zip(models, losses, strict=True)
    ]
    for windows in zip(*runs, strict=True):
        assert windows[1].loss == windows[2].loss == pytest.approx(windows[0].loss, rel=0 if back == 6 else 1e-6)
        assert_same_bits(models[1].flat_grads, models[2].flat_grads)
        np.testing.assert_allclose(models[1].flat_grads, models[0].flat_grads, *((0, 0) if back == 6 else (1e-4, 1e-6)))
        for optimizer in optimizers:
            optimizer.step(clip_norm=1.0)
    assert windows[0].begin > 0


def test_seq2seq_trains_through_it_as_through_a_linear_layer() -> None:
    """To the bit; and it writes the same."""
    source, targets, lengths = choose(5, 6, 4), choose(5, 3, 4, seed=2), [3, 0, 2, 1]
    models = [
        rf.Seq2Seq(
            rf.Sequential(rf.Embedding(5, 4, seed=0), rf.GRU(4, 6, seed=1)),
            rf.Sequential(rf.Embedding(6, 4, seed=2), rf.GRU(4, 6, seed=3), end(6, 6, seed=4)),
            start=5,
            end=5,
        )
        for end in (rf.Linear, rf.SoftmaxHead)
    ]
    losses = [model.loss_and_grad(source, targets, target_lengths=lengths) for model in models]
    assert losses[0] == losses[1]
    assert_same_bits(models[1].flat_grads, models[0].flat_grads)
    held_out = [model.loss_and_grad(source, targets, backward=False) for model in models]
    assert held_out[0] == held_out[1]
    for model in models:
        rf.Adam(model, lr=0.1).step()
    written = [[tokens.tolist() for tokens in model.greedy(source, max_length=7)] for model in models]
    assert written[0] == written[1]
    with pytest.raises(ValueError, match="end: expected a token from 0 to 3, got 6"):
        rf.Seq2Seq(
            rf.Sequential(rf.Embedding(5, 4), rf.GRU(4, 6)),
            rf.Sequential(rf.Embedding(6, 4), rf.GRU(4, 6), rf.SoftmaxHead(6, 4)),
            start=5,
            end=6,
        )


# ---- the boundary ----------------------------------------------------------------------------------------------------
H3 = np.zeros((3, 2, 4), np.float32)
Y3 = np.zeros((3, 2), int)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((H3.astype(np.float64), Y3), TypeError, "h: expected float32, got float64"),
        ((H3[..., :3], Y3), ValueError, "h: expected (…, 4), got (3, 2, 3)"),
        ((H3, Y3.astype(float)), TypeError, "targets: expected integers, got float64"),
        ((H3, Y3[:2]), ValueError, "targets: expected (3, 2), got (2, 2)"),
        ((H3, Y3 + 5), ValueError, "targets: expected values from 0 to 4, got 5 at (0, 0)"),
        ((H3, Y3 - 1), ValueError, "targets: expected values from 0 to 4, got -1 at (0, 0)"),
        ((H3, Y3, np.ones(3)), ValueError, "mask: expected (3, 2), got (3,)"),
        ((H3, Y3, np.ones(3), [1, 2]), ValueError, "mask: expected (3, 2), got (3,)"),
        ((H3, Y3, Y3 - 0.5), ValueError, "mask: expected finite weights >= 0, got -0.5 at (0, 0)"),
        ((H3, Y3, np.full((3, 2), "a"), [1, 2]), TypeError, "mask: expected bools or weights, got <U1"),
        ((H3, Y3, None, [1, 4]), ValueError, "lengths: expected values from 0 to T = 3, got 4 at index 1"),
        ((H3, Y3, None, [1]), ValueError, "lengths: expected (2,), got (1,)"),
        ((H3[0], Y3[0], None, [1, 1]), ValueError, "lengths: expected None, because x of shape (2, 4) has no steps"),
    ],
)
def test_rejects_and_says_what_came(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    head = rf.SoftmaxHead(4, 5)
    for call in (head.loss, head.loss_and_grad):
        with pytest.raises(error, match=re.escape(message)):
            call(*arguments)
    assert not head.flat_grads.any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rf.SoftmaxHead(0, 5), ValueError, "input_size: expected at least 1, got 0"),
        (lambda: rf.SoftmaxHead(4, 5.0), TypeError, "num_classes: expected an integer, got float"),  # type: ignore[arg-type]
        (lambda: rf.SoftmaxHead(4, 5, bias=1), TypeError, "bias: expected a bool, got int"),  # type: ignore[arg-type]
        (lambda: rf.SoftmaxHead(4, 5, dtype=np.float16), TypeError, "dtype: expected float32 or float64"),
        (lambda: rf.SoftmaxHead(4, 5)(H3, 3), ValueError, "state: SoftmaxHead has no state, expected None, got int"),
    ],
)
def test_rejects_wrong_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_kernel_rejects_what_would_go_out_of_bounds() -> None:
    h, w, b, targets, dh = H3, np.zeros((5, 4), np.float32), np.zeros(5, np.float32), Y3.ravel(), np.zeros_like(H3)
    ones, dw, db = np.ones(6, np.float32), np.zeros_like(w), np.zeros_like(b)
    good: list[Any] = [h, w, b, targets, ones, False, dh, dw, db, 1]
    assert _kernels.softmax_head(*good) == pytest.approx(np.log(5))
    for place, wrong, message in (
        (0, h[0], "x: expected an array of 3 axes, got (2, 4)"),
        (1, w[:, :3].copy(), "weight: expected (5, 4), got (5, 3)"),
        (2, b[:4], "bias: expected (5,), got (4,)"),
        (3, targets[:5], "targets: expected (6,), got (5,)"),
        (3, targets + 5, "targets: expected 0 to 4, got 5 at (0,)"),
        (4, ones[:5], "weights: expected (6,), got (5,)"),
        (6, dh[:2], "dx: expected (3, 2, 4), got (2, 2, 4)"),
        (6, None, "dx, dweight: expected both or none"),
        (7, None, "dx, dweight: expected both or none"),
        (7, dw[:4], "dweight: expected (5, 4), got (4, 4)"),
        (8, db[:4], "dbias: expected (5,), got (4,)"),
        (9, 0, "num_threads: expected at least 1, got 0"),
    ):
        arguments = good.copy()
        arguments[place] = wrong
        with pytest.raises(ValueError, match=re.escape(message)):
            _kernels.softmax_head(*arguments)
