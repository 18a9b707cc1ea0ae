"""What the library computes, written to be read: every cell forward and backward in plain NumPy.

One step of one sequence at a time, on vectors, exactly as the papers print the equations; the kernels are tested
against this file. It has three parts, from the bottom to the top:

- **cells**: two small functions each, a step and its adjoint (the step's derivatives, multiplied from the left by the
  gradient of the loss). `CELLS` names them;
- **the scan**: carries the state of one sequence through time, in either direction, and back again;
- **the stack**: layers × directions of scans over a batch, with the names and layouts of `rnnfast.LSTM` and its kin.

Letters: T steps, B batch, I input, H hidden, G gates; x input, h hidden state, c cell state, y output, W = `weight_ih`,
R = `weight_hh`, b = `bias_ih`, b' = `bias_hh`; ∘ multiplies element by element, σ is the logistic function. The gates'
rows lie one below the other in W (G·H, I), R (G·H, H), b and b' (G·H,). An array `dv` is the gradient of the loss with
respect to `v`.

Everything runs in float64 unless `forward` is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CELLS",
    "Cell",
    "Step",
    "Tape",
    "backward",
    "forward",
    "gru_step",
    "gru_step_backward",
    "ind_rnn_step",
    "ind_rnn_step_backward",
    "lstm_step",
    "lstm_step_backward",
    "min_gru_step",
    "min_gru_step_backward",
    "min_lstm_step",
    "min_lstm_step_backward",
    "project",
    "project_backward",
    "project_input",
    "project_input_backward",
    "rnn_step",
    "rnn_step_backward",
    "scan",
    "scan_backward",
    "sigmoid",
]

Array = npt.NDArray[np.floating[Any]]
Vectors = tuple[Array, ...]
Params = Mapping[str, Array]
Adjoint = tuple[Array, Vectors, dict[str, Array]]  # dx, dstate, dparams


# ---- what the cells share --------------------------------------------------------------------------------------------


def sigmoid(z: Array) -> Array:
    """σ(z) = 1 / (1 + e⁻ᶻ), in the form that can't overflow: for z < 0 it is eᶻ / (1 + eᶻ)."""
    e = np.exp(-np.abs(z))
    s: Array = np.where(z >= 0, 1, e) / (1 + e)
    return s


def product(weight: Array, vector: Array) -> Array:
    """W v (`weight @ vector`), each sum taken from its first term to its last.

    So in float32 it rounds alike on every machine, and as a sum in this order does, where a BLAS would choose its own.
    """
    z: Array = np.cumsum(weight * vector, axis=1)[:, -1]
    return z


def project(params: Params, x: Array, h: Array) -> tuple[Array, Array]:
    """The input's and the state's part of the pre-activations, a = W x + b and u = R h + b', each (G·H,)."""
    a = product(params["weight_ih"], x)
    u = product(params["weight_hh"], h)
    if "bias_ih" in params:
        a = a + params["bias_ih"]
        u = u + params["bias_hh"]
    return a, u


def project_backward(params: Params, x: Array, h: Array, da: Array, du: Array) -> tuple[Array, Array, dict[str, Array]]:
    """The adjoint of `project`: dx = Wᵀ da, dh = Rᵀ du, dW = da xᵀ, dR = du hᵀ, db = da, db' = du."""
    dparams = {"weight_ih": np.outer(da, x), "weight_hh": np.outer(du, h)}
    if "bias_ih" in params:
        dparams |= {"bias_ih": da, "bias_hh": du}
    return product(params["weight_ih"].T, da), product(params["weight_hh"].T, du), dparams


# ---- cells: a step (params, x, state) -> (state, gates) and its adjoint ----------------------------------------------


def rnn_step(activation: Callable[[Array], Array], params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Simple recurrent network (Elman 1990, "Finding structure in time").

        h_t = φ(W x_t + b + R h_{t-1} + b')            φ = tanh, relu or σ

    x (I,), h (H,), W (H, I), R (H, H), b, b' (H,). Its only gate is h_t itself.
    """
    (h,) = state
    a, u = project(params, x, h)
    h = activation(a + u)
    return (h,), (h,)


def rnn_step_backward(
    slope: Callable[[Array], Array], params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """dz = φ'(z) ∘ dh_t, where φ' is written as a function of φ: 1 - φ² for tanh, φ (1 - φ) for σ, [φ > 0] for relu."""
    (h_before,), (h,), (dh,) = state, gates, dstate
    dz = slope(h) * dh
    dx, dh, dparams = project_backward(params, x, h_before, dz, dz)
    return dx, (dh,), dparams


def lstm_step(forget: str, params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000).

        i = σ(W_i x_t + b_i + R_i h_{t-1} + b'_i + w_ci ∘ c_{t-1})   input gate
        f = σ(W_f x_t + b_f + R_f h_{t-1} + b'_f + w_cf ∘ c_{t-1})   forget gate
        g = tanh(W_g x_t + b_g + R_g h_{t-1} + b'_g)                 candidate
        c_t = f ∘ c_{t-1} + i ∘ g
        o = σ(W_o x_t + b_o + R_o h_{t-1} + b'_o + w_co ∘ c_t)       output gate
        h_t = o ∘ tanh(c_t)

    `forget` is "gate" as written, "coupled" for f = 1 - i (Greff et al. 2017), "none" for f = 1, as in 1997. The
    peepholes w_ci, w_cf, w_co (Gers & Schmidhuber 2000) are there if `params` has `weight_ci` and its kin.

    x (I,), h, c, w_c· (H,), W (G·H, I), R (G·H, H), b, b' (G·H,); rows i f g o, without f where it has no gate.
    """
    h, c = state
    a, u = project(params, x, h)
    z = dict(zip(_lstm_gates(forget), np.split(a + u, len(_lstm_gates(forget))), strict=True))
    peephole = "weight_ci" in params
    if peephole:
        z["i"] = z["i"] + params["weight_ci"] * c
        if "f" in z:
            z["f"] = z["f"] + params["weight_cf"] * c
    i, g = sigmoid(z["i"]), np.tanh(z["g"])
    f = _lstm_kept(forget, i, z)
    c = f * c + i * g
    if peephole:
        z["o"] = z["o"] + params["weight_co"] * c
    o = sigmoid(z["o"])
    h = o * np.tanh(c)
    return (h, c), (i, f, g, o) if forget == "gate" else (i, g, o)


def _lstm_gates(forget: str) -> str:
    return "ifgo" if forget == "gate" else "igo"


def _lstm_kept(forget: str, i: Array, z: Mapping[str, Array]) -> Array:
    """f, the share of c_{t-1} that is kept."""
    if forget == "gate":
        return sigmoid(z["f"])
    return 1 - i if forget == "coupled" else np.ones_like(i)


def lstm_step_backward(
    forget: str, params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """c_t reaches the loss on its own, through h_t and, with peepholes, through o:

        dz_o     = o (1 - o) ∘ tanh(c_t) ∘ dh_t
        dc_t    += o ∘ (1 - tanh²(c_t)) ∘ dh_t + w_co ∘ dz_o
        dz_i     = i (1 - i) ∘ g ∘ dc_t                   coupled: (g - c_{t-1}) in the place of g
        dz_f     = f (1 - f) ∘ c_{t-1} ∘ dc_t
        dz_g     = (1 - g²) ∘ i ∘ dc_t
        dc_{t-1} = f ∘ dc_t + w_ci ∘ dz_i + w_cf ∘ dz_f
        dw_ci = c_{t-1} ∘ dz_i    dw_cf = c_{t-1} ∘ dz_f    dw_co = c_t ∘ dz_o

    dx_t, dh_{t-1} and the other parameters' gradients follow from dz by `project_backward`, here as in every cell.
    """
    (h, c), (dh, dc) = state, dstate
    named = dict(zip(_lstm_gates(forget), gates, strict=True))
    i, g, o = named["i"], named["g"], named["o"]
    f = named["f"] if forget == "gate" else 1 - i if forget == "coupled" else np.ones_like(i)
    c_after = f * c + i * g
    tanh_c = np.tanh(c_after)
    peephole = "weight_ci" in params
    dz = {"o": o * (1 - o) * tanh_c * dh}
    dc = dc + o * (1 - tanh_c**2) * dh
    if peephole:
        dc = dc + params["weight_co"] * dz["o"]
    dz["i"] = i * (1 - i) * (g - c if forget == "coupled" else g) * dc
    dz["g"] = (1 - g**2) * i * dc
    if forget == "gate":
        dz["f"] = f * (1 - f) * c * dc
    dc_before = f * dc
    dpeepholes = {}
    if peephole:
        dpeepholes = {"weight_ci": c * dz["i"], "weight_co": c_after * dz["o"]}
        dc_before = dc_before + params["weight_ci"] * dz["i"]
        if "f" in dz:
            dpeepholes["weight_cf"] = c * dz["f"]
            dc_before = dc_before + params["weight_cf"] * dz["f"]
    dz_rows = np.concatenate([dz[gate] for gate in _lstm_gates(forget)])
    dx, dh, dparams = project_backward(params, x, h, dz_rows, dz_rows)
    return dx, (dh, dc_before), dparams | dpeepholes


def gru_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Gated recurrent unit, reset gate after the product (Cho et al. 2014, in the form of cuDNN and PyTorch).

        r = σ(W_r x_t + b_r + R_r h_{t-1} + b'_r)            reset gate
        z = σ(W_z x_t + b_z + R_z h_{t-1} + b'_z)            update gate
        n = tanh(W_n x_t + b_n + r ∘ (R_n h_{t-1} + b'_n))   candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    x (I,), h (H,), W (3H, I), R (3H, H), b, b' (3H,); rows r z n.
    """
    (h,) = state
    a, u = project(params, x, h)
    (ar, az, an), (ur, uz, un) = np.split(a, 3), np.split(u, 3)
    r, z = sigmoid(ar + ur), sigmoid(az + uz)
    n = np.tanh(an + r * un)
    return ((1 - z) * n + z * h,), (r, z, n)


def gru_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """The candidate's recurrent part u_n = R_n h_{t-1} + b'_n has a gradient of its own, since r scales it:

        dz_n     = (1 - n²) ∘ (1 - z) ∘ dh_t
        dz_z     = z (1 - z) ∘ (h_{t-1} - n) ∘ dh_t
        dz_r     = r (1 - r) ∘ u_n ∘ dz_n
        du_n     = r ∘ dz_n

    W sees (dz_r, dz_z, dz_n), R sees (dz_r, dz_z, du_n), and h_{t-1} also reaches h_t past both: dh_{t-1} += z ∘ dh_t.
    """
    (h,), (r, z, n), (dh,) = state, gates, dstate
    un = np.split(project(params, x, h)[1], 3)[2]
    dzn = (1 - n**2) * (1 - z) * dh
    dzz = z * (1 - z) * (h - n) * dh
    dzr = r * (1 - r) * un * dzn
    da = np.concatenate([dzr, dzz, dzn])
    du = np.concatenate([dzr, dzz, r * dzn])
    dx, dh_product, dparams = project_backward(params, x, h, da, du)
    return dx, (z * dh + dh_product,), dparams


def project_input(params: Params, x: Array) -> Array:
    """W x + b (G·H,), all that the cells need whose gates don't see h."""
    a = product(params["weight_ih"], x)
    return a + params["bias_ih"] if "bias_ih" in params else a


def project_input_backward(params: Params, x: Array, da: Array) -> tuple[Array, dict[str, Array]]:
    """The adjoint of `project_input`: dx = Wᵀ da, dW = da xᵀ, db = da."""
    dparams = {"weight_ih": np.outer(da, x)} | ({"bias_ih": da} if "bias_ih" in params else {})
    return product(params["weight_ih"].T, da), dparams


def ind_rnn_step(
    activation: Callable[[Array], Array], params: Params, x: Array, state: Vectors
) -> tuple[Vectors, Vectors]:
    """Independently recurrent network (Li et al. 2018): a unit sees its own state only.

        h_t = φ(W x_t + b + w ∘ h_{t-1})               φ = relu, tanh or σ; w = weight_hh

    x (I,), h, w, b (H,), W (H, I). Its only gate is h_t itself.
    """
    (h,) = state
    h = activation(project_input(params, x) + params["weight_hh"] * h)
    return (h,), (h,)


def ind_rnn_step_backward(
    slope: Callable[[Array], Array], params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """dz = φ'(z) ∘ dh_t, dh_{t-1} = w ∘ dz, dw = h_{t-1} ∘ dz."""
    (h_before,), (h,), (dh,) = state, gates, dstate
    dz = slope(h) * dh
    dx, dparams = project_input_backward(params, x, dz)
    return dx, (params["weight_hh"] * dz,), dparams | {"weight_hh": h_before * dz}


def min_gru_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Minimal GRU (Feng et al. 2024, "Were RNNs all we needed?"), without its logarithmic form.

        z = σ(W_z x_t + b_z)                update gate
        n = W_h x_t + b_h                   candidate
        h_t = (1 - z) ∘ h_{t-1} + z ∘ n

    x (I,), h (H,), W (2H, I), b (2H,); rows z h.
    """
    (h,) = state
    az, n = np.split(project_input(params, x), 2)
    z = sigmoid(az)
    return ((1 - z) * h + z * n,), (z, n)


def min_gru_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """da_z = z (1 - z) ∘ (n - h_{t-1}) ∘ dh_t, dn = z ∘ dh_t, dh_{t-1} = (1 - z) ∘ dh_t."""
    (h,), (z, n), (dh,) = state, gates, dstate
    dx, dparams = project_input_backward(params, x, np.concatenate([z * (1 - z) * (n - h) * dh, z * dh]))
    return dx, ((1 - z) * dh,), dparams


def min_lstm_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Minimal LSTM (Feng et al. 2024, "Were RNNs all we needed?"), normalised, without its logarithmic form.

        f = σ(W_f x_t + b_f)    i = σ(W_i x_t + b_i)    n = W_h x_t + b_h
        h_t = k ∘ h_{t-1} + (1 - k) ∘ n             k = f / (f + i)

    x (I,), h (H,), W (3H, I), b (3H,); rows f i h.
    """
    (h,) = state
    af, ai, n = np.split(project_input(params, x), 3)
    f, i = sigmoid(af), sigmoid(ai)
    k = _share(f, i)
    return (k * h + (1 - k) * n,), (f, i, n)


def _share(f: Array, i: Array) -> Array:
    """k = f / (f + i); one half where both have underflowed."""
    underflow = f + i < np.finfo(f.dtype).tiny
    k: Array = np.where(underflow, 0.5, f / np.where(underflow, 1, f + i)).astype(f.dtype)
    return k


def min_lstm_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """With dk = (h_{t-1} - n) ∘ dh_t:

    da_f = k (1 - k) ∘ (1 - f) ∘ dk    da_i = -k (1 - k) ∘ (1 - i) ∘ dk    dn = (1 - k) ∘ dh_t
    dh_{t-1} = k ∘ dh_t
    """
    (h,), (f, i, n), (dh,) = state, gates, dstate
    k = _share(f, i)
    dk = k * (1 - k) * (h - n) * dh
    dx, dparams = project_input_backward(params, x, np.concatenate([dk * (1 - f), -dk * (1 - i), (1 - k) * dh]))
    return dx, (k * dh,), dparams


@dataclass(frozen=True)
class Cell:
    """A cell as the scan sees it: its gates' names in the order of the rows, its states' initial values, its equations.

    The first state is h, the one that other layers and other steps see.
    """

    gates: tuple[str, ...]
    initial: tuple[float, ...]
    step: Callable[[Params, Array, Vectors], tuple[Vectors, Vectors]]
    step_backward: Callable[[Params, Array, Vectors, Vectors, Vectors], Adjoint]


Activation = Callable[[Array], Array]

# φ and its derivative as a function of φ
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(h.dtype)),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
}


def _rnn(name: str) -> Cell:
    activation, slope = ACTIVATIONS[name]
    return Cell(("h",), (0.0,), partial(rnn_step, activation), partial(rnn_step_backward, slope))


def _ind_rnn(name: str) -> Cell:
    activation, slope = ACTIVATIONS[name]
    return Cell(("h",), (0.0,), partial(ind_rnn_step, activation), partial(ind_rnn_step_backward, slope))


def _lstm(forget: str) -> Cell:
    return Cell(tuple(_lstm_gates(forget)), (0.0, 0.0), partial(lstm_step, forget), partial(lstm_step_backward, forget))


CELLS: dict[str, Cell] = {
    **{f"rnn_{name}": _rnn(name) for name in ACTIVATIONS},
    "lstm": _lstm("gate"),
    "lstm_peephole": _lstm("gate"),
    "lstm_coupled": _lstm("coupled"),
    "lstm_coupled_peephole": _lstm("coupled"),
    "lstm_no_forget": _lstm("none"),
    "lstm_no_forget_peephole": _lstm("none"),
    "gru": Cell(("r", "z", "n"), (0.0,), gru_step, gru_step_backward),
    **{f"ind_rnn_{name}": _ind_rnn(name) for name in ACTIVATIONS},
    "min_gru": Cell(("z", "n"), (0.0,), min_gru_step, min_gru_step_backward),
    "min_lstm": Cell(("f", "i", "n"), (0.0,), min_lstm_step, min_lstm_step_backward),
}


# ---- the scan: one sequence through time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What one step leaves for the way back: when it was, the states that it saw and made, its gates.

    `cut` says that a reset had replaced the state that came in.
    """

    t: int
    cut: bool
    before: Vectors
    after: Vectors
    gates: Vectors


def scan(
    cell: Cell, params: Params, x: Array, state: Vectors, length: int, resets: npt.NDArray[np.bool_], reverse: bool
) -> tuple[list[Step], Vectors]:
    """Carry the state of one sequence x (T, I) through its first `length` steps, or from the last of them to the first.

    resets (T,): where resets[t], nothing passes between t-1 and t, in neither direction: the cell's initial state
    stands in for the state that would have. At t = 0 that is the state that the caller gave. A reverse scan has no step
    before the first and none after the last, so that its own ends are never cut.

    Returns the steps in the order in which they were taken, and the state after the last of them.
    """
    steps = []
    for t in reversed(range(length)) if reverse else range(length):
        boundary = t + 1 if reverse else t
        cut = boundary < length and bool(resets[boundary])
        if cut:
            state = tuple(np.full_like(s, value) for s, value in zip(state, cell.initial, strict=True))
        before = state
        state, gates = cell.step(params, x[t], before)
        steps.append(Step(t, cut, before, state, gates))
    return steps, state


def scan_backward(
    cell: Cell, params: Params, x: Array, steps: Sequence[Step], dy: Array, dstate: Vectors, grads: dict[str, Array]
) -> tuple[Array, Vectors]:
    """Walk the steps back: dy (T, H) joins the gradient of each h_t, and a cut lets no gradient through.

    Adds the parameters' gradients into `grads`. Returns dx (T, I), zero where no step was, and the gradient of the
    state that the scan began with.
    """
    dx = np.zeros_like(x)
    for step in reversed(steps):
        dh, *rest = dstate
        dstate = (dh + dy[step.t], *rest)
        dx[step.t], dstate, dparams = cell.step_backward(params, x[step.t], step.before, step.gates, dstate)
        for name, gradient in dparams.items():
            grads[name] += gradient
        if step.cut:
            dstate = tuple(np.zeros_like(ds) for ds in dstate)
    return dx, dstate


# ---- the stack: layers × directions of scans over a batch ------------------------------------------------------------


@dataclass(frozen=True)
class Tape:
    """What `forward` leaves for `backward`, and for those who want to look inside.

    `inputs[k]` is the input of layer k, (T, B, features); `steps[j][b]` are the steps of row b in layer · direction j.
    """

    cell: Cell
    params: Params
    inputs: list[Array]
    steps: list[list[list[Step]]]

    def _collect(self, values: Callable[[Step], Vectors], count: int) -> Array:
        """(layers·directions, T, B, count, H) of what `values` picks from each step, zero where no step was."""
        steps, batch, _ = self.inputs[0].shape
        hidden = _hidden_size(self.cell, self.params)
        out = np.zeros((len(self.steps), steps, batch, count, hidden), self.inputs[0].dtype)
        for j, rows in enumerate(self.steps):
            for b, row in enumerate(rows):
                for step in row:
                    out[j, step.t, b] = values(step)
        return out

    @property
    def states(self) -> Array:
        """Every state after every step, (layers·directions, T, B, states, H); the first is h. Zero past a length."""
        return self._collect(lambda step: step.after, len(self.cell.initial))

    @property
    def gates(self) -> Array:
        """The gates after their activation, (layers·directions, T, B, G, H). Zero past a length."""
        return self._collect(lambda step: step.gates, len(self.cell.gates))


def _hidden_size(cell: Cell, params: Params) -> int:
    rows: int = params["weight_ih_l0"].shape[0]
    return rows // len(cell.gates)


def _suffixes(params: Params) -> list[list[str]]:
    """The endings of the parameters' names, a list of directions for each layer: [["_l0", "_l0_reverse"], …]."""
    layers = sum(name.startswith("weight_ih_l") and not name.endswith("_reverse") for name in params)
    directions = ["", "_reverse"] if "weight_ih_l0_reverse" in params else [""]
    return [[f"_l{k}{direction}" for direction in directions] for k in range(layers)]


def _select(params: Params, suffix: str) -> dict[str, Array]:
    """The parameters of one direction of one layer, by the names that the cells use."""
    return {name.removesuffix(suffix): array for name, array in params.items() if name.endswith(suffix)}


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _as_state(states: Sequence[Array]) -> Array | tuple[Array, ...]:
    """The caller's form of a state: the array itself where the cell has one, a tuple where it has more."""
    return states[0] if len(states) == 1 else tuple(states)


def forward(
    cell: str,
    params: Mapping[str, Any],
    x: npt.ArrayLike,
    state: Any = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Array, Array | tuple[Array, ...], Tape]:
    """A stack of recurrent layers over a batch of sequences: the library's forward pass, without dropout.

    Each row b of the batch is a sequence of its own. A layer scans its first lengths[b] steps, in one direction or two,
    and hands the h_t of its directions, side by side, to the layer above.

    Args:
        cell: a name of `CELLS`.
        params: name -> array, PyTorch's names and shapes. They also tell the number of layers and of directions:
            `weight_ih_l0` (G·H, I), `weight_hh_l0` (G·H, H), `bias_ih_l0`, `bias_hh_l0` (G·H,) or absent,
            `…_l1` with directions·H in the place of I, `…_l0_reverse`.
        x: (T, B, I).
        state: h or (h, c, …), each (layers·directions, B, H); the cell's initial values if None.
        lengths: (B,) integers from 0 to T; T if None. Nothing past a length is read.
        resets: (T, B) bool; where true the initial state is restored before that step (see `scan`).
        dtype: what everything is converted to and computed in.

    Returns:
        y (T, B, directions·H), zero past a length; the final state in the form of `state`; a `Tape` for `backward`.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
        >>> y, h, tape = reference.forward("rnn_relu", params, [[[1.0]], [[2.0]]])
        >>> y.ravel().tolist(), h.tolist()
        ([1.0, 2.5], [[[2.5]]])
        >>> dx, dh, grads = reference.backward(tape, np.ones((2, 1, 1)))
        >>> dx.ravel().tolist(), dh.tolist(), grads["weight_hh_l0"].tolist()
        ([1.5, 1.0], [[[0.75]]], [[1.0]])
    """
    rules = CELLS[cell]
    arrays: dict[str, Array] = {name: np.asarray(array, dtype) for name, array in params.items()}
    below: Array = np.asarray(x, dtype)
    steps, batch, _ = below.shape
    hidden = _hidden_size(rules, arrays)
    suffixes = _suffixes(arrays)
    scans = sum(map(len, suffixes))
    each = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    cuts = np.zeros((steps, batch), np.bool_) if resets is None else np.asarray(resets, np.bool_)
    if state is None:
        state = tuple(np.full((scans, batch, hidden), value, dtype) for value in rules.initial)
    initial = [np.asarray(s, dtype) for s in _as_tuple(state)]
    final = [s.copy() for s in initial]

    tape = Tape(rules, arrays, [], [])
    for layer in suffixes:
        tape.inputs.append(below)
        outputs = []
        for suffix in layer:
            j = len(tape.steps)
            weights = _select(arrays, suffix)
            y = np.zeros((steps, batch, hidden), dtype)
            rows = []
            for b in range(batch):
                first = tuple(s[j, b] for s in initial)
                row, last = scan(
                    rules, weights, below[:, b], first, int(each[b]), cuts[:, b], suffix.endswith("_reverse")
                )
                for step in row:
                    y[step.t, b] = step.after[0]
                for s, value in zip(final, last, strict=True):
                    s[j, b] = value
                rows.append(row)
            tape.steps.append(rows)
            outputs.append(y)
        below = np.concatenate(outputs, axis=-1)
    return below, _as_state(final), tape


def backward(
    tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None
) -> tuple[Array, Array | tuple[Array, ...], dict[str, Array]]:
    """The adjoint of `forward`: the gradients of a loss of which dy and dstate are the gradients of y and final state.

    Args:
        tape: from `forward`; it may be used again.
        dy: (T, B, directions·H), not read past a length; zero if None.
        dstate: in the form of the state; zero if None.

    Returns:
        dx (T, B, I), zero past a length; the gradient of the initial state, in its form; name -> gradient for every
        parameter, in its shape.
    """
    dtype = tape.inputs[0].dtype
    steps, batch, _ = tape.inputs[0].shape
    suffixes = _suffixes(tape.params)
    hidden = _hidden_size(tape.cell, tape.params)
    directions = len(suffixes[0])
    above: Array = np.zeros((steps, batch, directions * hidden), dtype) if dy is None else np.asarray(dy, dtype)
    if dstate is None:
        dstate = tuple(np.zeros((len(tape.steps), batch, hidden), dtype) for _ in tape.cell.initial)
    dfinal = [np.asarray(ds, dtype) for ds in _as_tuple(dstate)]
    dinitial = [np.zeros_like(ds) for ds in dfinal]

    grads = {name: np.zeros_like(array) for name, array in tape.params.items()}
    for k in reversed(range(len(suffixes))):
        x = tape.inputs[k]
        dx = np.zeros_like(x)
        for d, suffix in enumerate(suffixes[k]):
            j = k * directions + d
            weights, dweights = _select(tape.params, suffix), _select(grads, suffix)
            for b in range(batch):
                dh = above[:, b, d * hidden : (d + 1) * hidden]
                last = tuple(ds[j, b] for ds in dfinal)
                dx_row, first = scan_backward(tape.cell, weights, x[:, b], tape.steps[j][b], dh, last, dweights)
                dx[:, b] += dx_row
                for ds, value in zip(dinitial, first, strict=True):
                    ds[j, b] = value
        above = dx
    return above, _as_state(dinitial), grads
