"""The reference against PyTorch: its own LSTM where it has the option, else a loop of its operations, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from family import HEADS, Family, assert_same_solution, make_family
from rnnfast import reference
from shapes import Shape
from support import Solution, as_state, as_tuple

torch = pytest.importorskip("torch", reason="PyTorch isn't here to judge")

SHAPE = Shape(6, 5, 3, 6)
Params = dict[str, Any]  # of one layer, by the names that the cells use; tensors
Step = Callable[[Params, Any, tuple[Any, ...]], tuple[Any, ...]]  # params, x (B, I), states (B, H) -> states


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On arrays this small, PyTorch's threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- PyTorch's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_projected_lstm_agrees(num_layers: int, bidirectional: bool) -> None:
    family = make_family("lstm", SHAPE, projection=True, num_layers=num_layers, bidirectional=bidirectional)
    module = torch.nn.LSTM(
        3, 6, num_layers, bidirectional=bidirectional, proj_size=4, dtype=torch.float64, batch_first=False
    )
    module.load_state_dict({name: torch.tensor(array) for name, array in family.params.items()})
    assert family.state is not None
    x = torch.tensor(family.x, requires_grad=True)
    state = tuple(torch.tensor(s, requires_grad=True) for s in family.state)
    y, final = module(x, state)
    goal = (y * torch.tensor(family.dy)).sum()
    goal = goal + sum((s * torch.tensor(ds)).sum() for s, ds in zip(final, family.dstate, strict=True))
    goal.backward()
    theirs = {
        "y": y,
        "dx": x.grad,
        **{f"final state {k}": s for k, s in enumerate(final)},
        **{f"gradient of state {k}": s.grad for k, s in enumerate(state)},
        **{f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()},
    }
    assert_same_solution(family.solve(), {name: array.detach().numpy() for name, array in theirs.items()})


# ---- loops of PyTorch's operations -----------------------------------------------------------------------------------


def linear(p: Params, kind: str, v: Any, rows: slice = slice(None)) -> Any:
    """W v + b or R v + b', layer-normalised if it has the parameters; of some of the gates' rows."""
    z = v @ p[f"weight_{kind}"][rows].T
    if f"ln_{kind}_weight" in p:
        gain, shift = p[f"ln_{kind}_weight"][rows], p[f"ln_{kind}_bias"][rows]
        gates = zip(z.split(6, 1), gain.split(6), shift.split(6), strict=True)
        z = torch.cat([torch.nn.functional.layer_norm(part, (6,), g, s) for part, g, s in gates], 1)
    return z + p[f"bias_{kind}"][rows]


def seen(p: Params, h: Any) -> Any:
    """What the recurrent product sees of h."""
    return h * p["recurrent_scale"] if "recurrent_scale" in p else h


def lstm(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    h, c = state
    i, f, g, o = (linear(p, "ih", x) + linear(p, "hh", seen(p, h))).split(6, 1)
    i, f = (i + peephole(p, "ci", c)).sigmoid(), (f + peephole(p, "cf", c)).sigmoid()
    c = f * c + i * g.tanh()
    return (o + peephole(p, "co", c)).sigmoid() * c.tanh(), c


def peephole(p: Params, kind: str, c: Any) -> Any:
    """What a gate sees of c, if it has the parameters."""
    return p[f"weight_{kind}"] * c if f"weight_{kind}" in p else 0


def lstm_of_three(forget: Callable[[Any], Any]) -> Step:
    """Without rows for a forget gate, which is made of i."""

    def step(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        h, c = state
        i, g, o = (linear(p, "ih", x) + linear(p, "hh", seen(p, h))).split(6, 1)
        i = (i + peephole(p, "ci", c)).sigmoid()
        c = forget(i) * c + i * g.tanh()
        return (o + peephole(p, "co", c)).sigmoid() * c.tanh(), c

    return step


lstm_coupled, lstm_no_forget = lstm_of_three(lambda i: 1 - i), lstm_of_three(lambda i: 1)


def rnn(activation: Callable[[Any], Any]) -> Step:
    return lambda p, x, state: (activation(linear(p, "ih", x) + linear(p, "hh", seen(p, state[0]))),)


def ind_rnn(activation: Callable[[Any], Any]) -> Step:
    return lambda p, x, state: (activation(linear(p, "ih", x) + p["weight_hh"] * state[0]),)


def min_gru(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    z, n = linear(p, "ih", x).split(6, 1)
    return ((1 - z.sigmoid()) * state[0] + z.sigmoid() * n,)


def min_lstm(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    f, i, n = linear(p, "ih", x).split(6, 1)
    f, i = f.sigmoid(), i.sigmoid()
    return ((f * state[0] + i * n) / (f + i),)


def gru(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = state
    (ar, az, an), (ur, uz, un) = linear(p, "ih", x).split(6, 1), linear(p, "hh", seen(p, h)).split(6, 1)
    r, z = (ar + ur).sigmoid(), (az + uz).sigmoid()
    return ((1 - z) * (an + r * un).tanh() + z * h,)


def gru_reset_before(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = state
    ar, az, an = linear(p, "ih", x).split(6, 1)
    ur, uz = linear(p, "hh", seen(p, h), slice(0, 12)).split(6, 1)
    r, z = (ar + ur).sigmoid(), (az + uz).sigmoid()
    n = (an + linear(p, "hh", seen(p, r * h), slice(12, 18))).tanh()
    return ((1 - z) * n + z * h,)


def sru(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    c = state[1]
    candidate, f, r, *projected = linear(p, "ih", x).split(6, 1)
    vf, vr = p["weight_c"].split(6)
    f, r = (f + vf * c).sigmoid(), (r + vr * c).sigmoid()
    c = f * c + (1 - f) * candidate
    return r * c + (1 - r) * (projected[0] if projected else x), c


def slstm(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    h, c, n, m = state
    heads = seen(p, h).split(6 // HEADS, 1)
    blocks = p["weight_hh"].reshape(4, HEADS, 6 // HEADS, 6 // HEADS)
    u = torch.cat([head @ blocks[g, k].T for g in range(4) for k, head in enumerate(heads)], 1)
    i, f, z, o = (linear(p, "ih", x) + u + p["bias_hh"]).split(6, 1)
    log_f = torch.nn.functional.logsigmoid(f)
    m_before, m = m, torch.maximum(log_f + m, i).detach()
    i, f = (i - m).exp(), (log_f + m_before - m).exp()
    c, n = f * c + i * z.tanh(), f * n + i
    return o.sigmoid() * c / n, c, n, m


def solve_by_autograd(step: Step, family: Family) -> Solution:
    """One layer in one direction, over the whole batch, with the state given or the cell's own."""
    steps, batch, _ = family.x.shape
    given = family.state
    if given is None:
        blanks = zip(family.dstate, family.cells[0].initial, strict=True)
        given = tuple(np.full_like(ds, value) for ds, value in blanks)
    x = torch.tensor(np.nan_to_num(family.x), requires_grad=True)
    lengths = torch.full((batch,), steps) if family.lengths is None else torch.tensor(family.lengths)
    leaves = tuple(torch.tensor(s[0], requires_grad=True) for s in given)
    params = {name.removesuffix("_l0"): torch.tensor(p, requires_grad=True) for name, p in family.params.items()}
    constants = {}
    if family.recurrent_scale is not None:
        constants["recurrent_scale"] = torch.tensor(family.recurrent_scale[0])
    keep = family.keep or (None,) * len(given)
    shares = [torch.zeros(steps, batch, 1) if k is None else torch.tensor(k[0]) for k in keep]
    # m is a constant from the first; that it is one at every step, its cell says
    state = tuple(s.detach() if family.cells[0].initial[k] == -np.inf else s for k, s in enumerate(leaves))
    outputs = []
    for t in range(steps):
        runs = (t < lengths)[:, None]
        if family.resets is not None:
            fresh = torch.tensor(family.resets[t])[:, None] & runs
            blank = family.cells[0].initial
            state = tuple(s.masked_fill(fresh, value) for s, value in zip(state, blank, strict=True))
        new = step(params | constants, x[t], state)
        if "weight_hr" in params:
            new = (new[0] @ params["weight_hr"].T, *new[1:])
        # to select where the share is 0 or 1, since 0 ∞ is no number
        new = tuple(
            torch.where(k[t] == 0, s, torch.where(k[t] == 1, old, k[t] * old + (1 - k[t]) * s))
            for k, old, s in zip(shares, state, new, strict=True)
        )
        state = tuple(torch.where(runs, s, old) for s, old in zip(new, state, strict=True))
        outputs.append(torch.where(runs, state[0], 0))
    y = torch.stack(outputs)
    goal = (y * torch.tensor(np.nan_to_num(family.dy))).sum()
    for s, ds in zip(state, family.dstate, strict=True):
        goal = goal + (s * torch.tensor(ds[0])).sum()
    goal.backward()
    solution = {
        "y": y,
        "dx": x.grad,
        **{f"final state {k}": s[None] for k, s in enumerate(state)},
        **{f"gradient of state {k}": s.grad[None] for k, s in enumerate(leaves) if s.grad is not None},
        **{f"gradient of {name}_l0": p.grad for name, p in params.items()},
    }
    return {name: array.detach().numpy() for name, array in solution.items()}


ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
ALL = {"layer_norm": True, "projection": True, "zoneout": True, "recurrent_dropout": True}
LOOPS: dict[str, tuple[str, Step, dict[str, bool]]] = {
    **{f"rnn_{name}": (f"rnn_{name}", rnn(f), {}) for name, f in ACTIVATIONS.items()},
    "rnn_projected": ("rnn_tanh", rnn(torch.tanh), {"projection": True}),
    "rnn_layer_norm": ("rnn_tanh", rnn(torch.tanh), {"layer_norm": True}),
    "lstm": ("lstm", lstm, {}),
    "lstm_layer_norm": ("lstm", lstm, {"layer_norm": True}),
    "lstm_layer_norm_projected": ("lstm", lstm, {"layer_norm": True, "projection": True}),
    "lstm_zoneout": ("lstm", lstm, {"zoneout": True}),
    "lstm_recurrent_dropout": ("lstm", lstm, {"recurrent_dropout": True}),
    "lstm_all": ("lstm", lstm, ALL),
    "lstm_peephole": ("lstm_peephole", lstm, {}),
    "lstm_peephole_all": ("lstm_peephole", lstm, ALL),
    "lstm_coupled": ("lstm_coupled", lstm_coupled, {}),
    "lstm_coupled_peephole": ("lstm_coupled_peephole", lstm_coupled, {}),
    "lstm_no_forget": ("lstm_no_forget", lstm_no_forget, {}),
    "lstm_no_forget_peephole": ("lstm_no_forget_peephole", lstm_no_forget, {}),
    "gru_layer_norm": ("gru", gru, {"layer_norm": True}),
    "gru_all": ("gru", gru, {"layer_norm": True, "zoneout": True, "recurrent_dropout": True}),
    "gru_reset_before": ("gru_reset_before", gru_reset_before, {}),
    "gru_reset_before_layer_norm": ("gru_reset_before", gru_reset_before, {"layer_norm": True}),
    "gru_reset_before_all": (
        "gru_reset_before",
        gru_reset_before,
        {"layer_norm": True, "zoneout": True, "recurrent_dropout": True},
    ),
    **{f"ind_rnn_{name}": (f"ind_rnn_{name}", ind_rnn(f), {}) for name, f in ACTIVATIONS.items()},
    "ind_rnn_zoneout": ("ind_rnn_tanh", ind_rnn(torch.tanh), {"zoneout": True}),
    "min_gru": ("min_gru", min_gru, {}),
    "min_gru_zoneout": ("min_gru", min_gru, {"zoneout": True}),
    "min_lstm": ("min_lstm", min_lstm, {}),
    "min_lstm_zoneout": ("min_lstm", min_lstm, {"zoneout": True}),
    "sru": ("sru", sru, {}),
    "sru_zoneout": ("sru", sru, {"zoneout": True}),
    "sru_skip": ("sru_skip", sru, {}),
    "slstm": ("slstm", slstm, {}),
    "slstm_all": ("slstm", slstm, {"zoneout": True, "recurrent_dropout": True}),
}


@pytest.mark.parametrize("form", [{"given": False}, {}, {"ragged": True, "cut": True}], ids=str)
@pytest.mark.parametrize("name", LOOPS)
def test_outputs_states_and_gradients_agree_with_a_loop(name: str, form: dict[str, bool]) -> None:
    """Without a state, with one, and with lengths and resets too."""
    cell, step, options = LOOPS[name]
    family = make_family(cell, SHAPE, **form, **options)
    assert_same_solution(family.solve(), solve_by_autograd(step, family))


def test_a_loop_judges_every_cell() -> None:
    assert {cell for cell, *_ in LOOPS.values()} == set(reference.CELLS)


@pytest.mark.parametrize("name", ["lstm_all", "gru_reset_before_all", "slstm_all"])
def test_clipping_agrees_with_a_hook_on_each_h(name: str) -> None:
    """Autograd adds all of dh_t up before it calls the hook."""
    cell, step, options = LOOPS[name]
    clip = 0.5

    def clipped(p: Params, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        h, *others = step(p, x, state)
        h.register_hook(lambda dh: dh.clamp(-clip, clip))
        return h, *others

    family = make_family(cell, SHAPE, **{**options, "zoneout": False, "projection": False})
    got = family.solve(clip=clip)
    assert not np.allclose(got["dx"], family.solve()["dx"])
    assert_same_solution(got, solve_by_autograd(clipped, family))


def test_a_layer_norm_agrees() -> None:
    random = np.random.default_rng(0)
    z, gain, shift, dy = (random.standard_normal(21) for _ in range(4))
    leaves = [torch.tensor(array.reshape(3, 7), requires_grad=True) for array in (z, gain, shift)]
    for k in range(3):
        y = torch.nn.functional.layer_norm(leaves[0][k], (7,), leaves[1][k], leaves[2][k], eps=1e-5)
        np.testing.assert_allclose(
            reference.normalize(z, gain, shift, 7)[7 * k : 7 * k + 7], y.detach().numpy(), rtol=0, atol=1e-14
        )
        y.backward(torch.tensor(dy[7 * k : 7 * k + 7]))
    for ours, theirs in zip(reference.normalize_backward(z, gain, 7, dy), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy().ravel(), rtol=0, atol=1e-14)


def test_an_lstm_with_lengths_agrees_with_a_packed_sequence() -> None:
    """With a projection, the one option that PyTorch has."""
    lengths = np.array([3, 6, 1, 5, 6])
    family = replace(make_family("lstm", SHAPE, projection=True, bidirectional=True), lengths=lengths)
    module = torch.nn.LSTM(3, 6, bidirectional=True, proj_size=4, dtype=torch.float64)
    module.load_state_dict({name: torch.tensor(array) for name, array in family.params.items()})
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(family.x), torch.tensor(lengths), enforce_sorted=False
    )
    assert family.state is not None
    y, final = module(packed, as_state(tuple(torch.tensor(s) for s in family.state)))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=6)
    ours_y, ours_final, _ = family.forward()
    np.testing.assert_allclose(ours_y, y.detach().numpy(), rtol=0, atol=1e-13)
    for ours, theirs in zip(as_tuple(ours_final), final, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-13)
