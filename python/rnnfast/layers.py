"""The recurrent layers, cell by cell: names, options and equations. What they have in common is in recurrent.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnfast import checks
from rnnfast.recurrent import Recurrent

__all__ = ["GRU", "LSTM", "RNN", "IndRNN", "MinGRU", "MinLSTM"]


def _nonlinearity(value: str) -> str:
    if value not in ("tanh", "relu", "sigmoid"):
        raise ValueError(f"nonlinearity: expected 'tanh', 'relu' or 'sigmoid', got {value!r}")
    return value


class RNN(Recurrent):
    """Elman network (Elman, 1990, "Finding structure in time").

    ::

        h_t = φ(W_ih x_t + b_ih + W_hh h_{t−1} + b_hh)

    φ is tanh, relu or sigmoid (`nonlinearity`). G = 1; the state is h.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.RNN(3, 5, nonlinearity="relu", seed=0)
        >>> y, h = layer(np.ones((7, 2, 3), np.float32))
        >>> y.shape, h.shape
        ((7, 2, 5), (1, 2, 5))
    """

    _arguments = (*Recurrent._arguments, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = _nonlinearity(nonlinearity)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            grad_clip=grad_clip,
            train_initial_state=train_initial_state,
            dtype=dtype,
            seed=seed,
        )

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return f"rnn_{self.nonlinearity}"


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers, Schmidhuber & Cummins, 2000).

    ::

        i_t = σ(W_i x_t + b_ii + R_i h_{t−1} + b_hi)
        f_t = σ(W_f x_t + b_if + R_f h_{t−1} + b_hf)
        g_t = tanh(W_g x_t + b_ig + R_g h_{t−1} + b_hg)
        o_t = σ(W_o x_t + b_io + R_o h_{t−1} + b_ho)
        c_t = f_t ∘ c_{t−1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t)

    G = 4, the rows of the weights in the order i, f, g, o; the state is (h, c).

    ``forget_gate=False``: f = 1, the constant error carousel of 1997; G = 3, rows i, g, o.

    ``coupled=True``: f = 1 − i (Greff et al., 2017); G = 3, rows i, g, o.

    ``peephole=True``: the gates see the cell state (Gers & Schmidhuber, 2000), each unit its own: w_ci ∘ c_{t−1} is
    added inside i_t, w_cf ∘ c_{t−1} inside f_t where there is one, w_co ∘ c_t inside o_t, with `weight_ci_l{k}`,
    `weight_cf_l{k}`, `weight_co_l{k}` (H,).

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.LSTM(3, 5, num_layers=2, seed=0)
        >>> y, state, tape = layer.forward(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
        >>> y.shape, state[0].shape, tape.gates.shape
        ((7, 2, 5), (2, 2, 5), (2, 7, 2, 4, 5))
        >>> dx, (dh0, dc0) = layer.backward(tape, np.ones_like(y))
        >>> dx.shape, layer.grads["weight_hh_l1"].shape
        ((7, 2, 3), (20, 5))
    """

    _arguments = (*Recurrent._arguments, "peephole", "coupled", "forget_gate")
    _state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
        peephole: bool = False,
        coupled: bool = False,
        forget_gate: bool = True,
    ) -> None:
        self.peephole = checks.flag("peephole", peephole)
        self.coupled = checks.flag("coupled", coupled)
        self.forget_gate = checks.flag("forget_gate", forget_gate)
        if self.coupled and not self.forget_gate:
            raise ValueError("coupled: expected False with forget_gate=False, got True: f is 1 − i or 1, not both")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            grad_clip=grad_clip,
            train_initial_state=train_initial_state,
            dtype=dtype,
            seed=seed,
        )

    @property
    def _cell(self) -> str:  # type: ignore[override]
        forget = "_coupled" if self.coupled else "" if self.forget_gate else "_no_forget"
        return f"lstm{forget}{'_peephole' if self.peephole else ''}"

    @property
    def _unit_weights(self) -> tuple[str, ...]:  # type: ignore[override]
        if not self.peephole:
            return ()
        own_forget_gate = self.forget_gate and not self.coupled
        return ("weight_ci", *(("weight_cf",) if own_forget_gate else ()), "weight_co")


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al., 2014), with the reset gate after the product, as cuDNN and PyTorch have it.

    ::

        r_t = σ(W_r x_t + b_ir + R_r h_{t−1} + b_hr)
        z_t = σ(W_z x_t + b_iz + R_z h_{t−1} + b_hz)
        n_t = tanh(W_n x_t + b_in + r_t ∘ (R_n h_{t−1} + b_hn))
        h_t = (1 − z_t) ∘ n_t + z_t ∘ h_{t−1}

    G = 3, the rows of the weights in the order r, z, n; the state is h. Only `reset_after=True` is available yet.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.GRU(3, 5, bidirectional=True, batch_first=True, seed=0)
        >>> y, h = layer(np.ones((2, 7, 3), np.float32))
        >>> y.shape, h.shape
        ((2, 7, 10), (2, 2, 5))
    """

    _arguments = (*Recurrent._arguments, "reset_after")
    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        if not self.reset_after:
            raise ValueError("reset_after: expected True, got False, which isn't available yet")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            grad_clip=grad_clip,
            train_initial_state=train_initial_state,
            dtype=dtype,
            seed=seed,
        )


class IndRNN(Recurrent):
    """Independently recurrent network (Li et al., 2018): each unit sees its own state only.

    ::

        h_t = φ(W_ih x_t + b_ih + w_hh ∘ h_{t−1})

    φ is relu, tanh or sigmoid (`nonlinearity`). G = 1; the state is h. `weight_hh_l{k}` is (H,), and there is no
    `bias_hh`.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.IndRNN(3, 5, num_layers=2, seed=0)
        >>> y, h = layer(np.ones((7, 2, 3), np.float32))
        >>> y.shape, layer.params["weight_hh_l1"].shape
        ((7, 2, 5), (5,))
    """

    _arguments = (*Recurrent._arguments, "nonlinearity")
    _unit_weights = ("weight_hh",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = _nonlinearity(nonlinearity)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            grad_clip=grad_clip,
            train_initial_state=train_initial_state,
            dtype=dtype,
            seed=seed,
        )

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return f"ind_rnn_{self.nonlinearity}"


class MinGRU(Recurrent):
    """Minimal GRU (Feng et al., 2024, "Were RNNs all we needed?"): the gate sees x only.

    ::

        z_t = σ(W_z x_t + b_z)
        n_t = W_h x_t + b_h
        h_t = (1 − z_t) ∘ h_{t−1} + z_t ∘ n_t

    G = 2, the rows of the weights in the order z, h; the state is h. There are no `weight_hh` and no `bias_hh`.
    """

    _cell = "min_gru"


class MinLSTM(Recurrent):
    """Minimal LSTM (Feng et al., 2024, "Were RNNs all we needed?"), normalised, without its logarithmic form.

    ::

        f_t = σ(W_f x_t + b_f)
        i_t = σ(W_i x_t + b_i)
        n_t = W_h x_t + b_h
        h_t = (f_t ∘ h_{t−1} + i_t ∘ n_t) / (f_t + i_t)

    G = 3, the rows of the weights in the order f, i, h; the state is h. There are no `weight_hh` and no `bias_hh`.
    Where f_t and i_t both underflow, their shares are one half.
    """

    _cell = "min_lstm"
