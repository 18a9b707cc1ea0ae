"""The recurrent layers, cell by cell: names, options and equations. What they have in common is in recurrent.py."""

from __future__ import annotations

from typing import Any, Unpack

from rnnfast import checks
from rnnfast.recurrent import CommonOptions, Dense, DenseOptions, Recurrent

__all__ = ["GRU", "LSTM", "RNN", "SLSTM", "SRU", "IndRNN", "MinGRU", "MinLSTM"]


def _nonlinearity(value: str) -> str:
    if value not in ("tanh", "relu", "sigmoid"):
        raise ValueError(f"nonlinearity: expected 'tanh', 'relu' or 'sigmoid', got {value!r}")
    return value


class RNN(Dense):
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

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        **options: Unpack[DenseOptions],
    ) -> None:
        self.nonlinearity = _nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, **options)

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return f"rnn_{self.nonlinearity}"


class LSTM(Dense):
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

    ``proj_size=P``: h_t = W_hr (o_t ∘ tanh(c_t)) (Sak, Senior & Beaufays, 2014) with `weight_hr_l{k}` (P, H); h and y
    have P features, c has H, and R is (G·H, P). It is the projected h of which zoneout keeps a share.

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

    _state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        peephole: bool = False,
        coupled: bool = False,
        forget_gate: bool = True,
        proj_size: int = 0,
        **options: Unpack[DenseOptions],
    ) -> None:
        self.peephole = checks.flag("peephole", peephole)
        self.coupled = checks.flag("coupled", coupled)
        self.forget_gate = checks.flag("forget_gate", forget_gate)
        if self.coupled and not self.forget_gate:
            raise ValueError("coupled: expected False with forget_gate=False, got True: f is 1 − i or 1, not both")
        self.proj_size = checks.size("proj_size", proj_size, minimum=0)
        super().__init__(input_size, hidden_size, num_layers, **options)

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


class GRU(Dense):
    """Gated recurrent unit (Cho et al., 2014), with the reset gate after the product, as cuDNN and PyTorch have it.

    ::

        r_t = σ(W_r x_t + b_ir + R_r h_{t−1} + b_hr)
        z_t = σ(W_z x_t + b_iz + R_z h_{t−1} + b_hz)
        n_t = tanh(W_n x_t + b_in + r_t ∘ (R_n h_{t−1} + b_hn))
        h_t = (1 − z_t) ∘ n_t + z_t ∘ h_{t−1}

    G = 3, the rows of the weights in the order r, z, n; the state is h.

    ``reset_after=False``: as Cho et al. printed it, ``n_t = tanh(W_n x_t + b_in + R_n (r_t ∘ h_{t−1}) + b_hn)``. R_n
    waits for the reset gates of all units, so that a step takes longer.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.GRU(3, 5, bidirectional=True, batch_first=True, seed=0)
        >>> y, h = layer(np.ones((2, 7, 3), np.float32))
        >>> y.shape, h.shape
        ((2, 7, 10), (2, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        **options: Unpack[DenseOptions],
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        super().__init__(input_size, hidden_size, num_layers, **options)

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return "gru" if self.reset_after else "gru_reset_before"


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

    _unit_weights = ("weight_hh",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "relu",
        **options: Unpack[CommonOptions],
    ) -> None:
        self.nonlinearity = _nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, **options)

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


class SRU(Recurrent):
    """Simple recurrent unit (Lei et al., 2018, "Simple recurrent units for highly parallelizable recurrence").

    ::

        x̃_t = W_x x_t + b_x
        f_t = σ(W_f x_t + b_f + v_f ∘ c_{t−1})
        r_t = σ(W_r x_t + b_r + v_r ∘ c_{t−1})
        c_t = f_t ∘ c_{t−1} + (1 − f_t) ∘ x̃_t
        h_t = r_t ∘ c_t + (1 − r_t) ∘ x_t

    G = 3, the rows of the weights in the order x̃, f, r; the state is (h, c), of which only c is read. `weight_c_l{k}`
    (2H,) is v_f and below it v_r; there are no `weight_hh` and no `bias_hh`. In a layer whose input has not H features,
    W_s x_t + b_s stands in the place of x_t in h_t: a fourth block of rows.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.SRU(3, 5, num_layers=2, seed=0)
        >>> layer.params["weight_ih_l0"].shape, layer.params["weight_ih_l1"].shape, layer.params["weight_c_l1"].shape
        ((20, 3), (15, 5), (10,))
        >>> y, (h, c) = layer(np.ones((7, 2, 3), np.float32))
        >>> y.shape, c.shape
        ((7, 2, 5), (2, 2, 5))
    """

    _state_names = ("h", "c")
    _unit_weights = ("weight_c",)

    def _cell_of(self, layer: int) -> str:
        return "sru" if self._inputs_of(layer) == self.hidden_size else "sru_skip"


class SLSTM(Dense):
    """Scalar LSTM with exponential gates (Beck et al., 2024, "xLSTM: Extended long short-term memory").

    ::

        ĩ, f̃, z̃, õ = W x_t + b_i + R h_{t−1} + b_h       one block of rows each
        m_t = max(log σ(f̃) + m_{t−1}, ĩ)
        i_t = exp(ĩ − m_t)
        f_t = exp(log σ(f̃) + m_{t−1} − m_t)
        z_t = tanh(z̃)
        o_t = σ(õ)
        c_t = f_t ∘ c_{t−1} + i_t ∘ z_t
        n_t = f_t ∘ n_{t−1} + i_t
        h_t = o_t ∘ c_t / n_t

    G = 4, the rows of the weights in the order i, f, z, o; the state is (h, c, n, m), at first (0, 0, 0, −∞). m keeps
    the exponentials in range; h doesn't depend on it, and it carries no gradient. Gradients of c and n are those at a
    given m: right for all that is made of h, and to be handed on to the call before; for a loss that is made of c or n
    themselves they lack what m does.

    ``train_initial_state=True`` trains h alone: with m = −∞ the first step keeps nothing of c and n. Of the options
    below, `layer_norm` and `zoneout` are refused: h is normalised by n, and c, n and m go together.

    ``num_heads=K``: a unit sees the h of its own head only, H/K units each: `weight_hh_l{k}` is (4H, H/K).

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.SLSTM(3, 8, num_heads=2, seed=0)
        >>> y, (h, c, n, m) = layer(np.ones((7, 2, 3), np.float32))
        >>> y.shape, layer.params["weight_hh_l0"].shape
        ((7, 2, 8), (32, 4))
    """

    _cell = "slstm"
    _state_names = ("h", "c", "n", "m")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        num_heads: int = 1,
        **options: Unpack[DenseOptions],
    ) -> None:
        self.num_heads = checks.size("num_heads", num_heads)
        if checks.size("hidden_size", hidden_size) % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of hidden_size = {hidden_size}, got {num_heads}")
        if options.get("layer_norm"):
            raise ValueError("layer_norm: expected False for SLSTM, which normalises by n, got True")
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _check_zoneout(self, value: Any) -> float | tuple[float, ...]:
        zoneout = super()._check_zoneout(value)
        if any(zoneout) if isinstance(zoneout, tuple) else zoneout:
            raise ValueError(f"zoneout: expected 0 for SLSTM, whose c, n and m go together, got {zoneout}")
        return zoneout
