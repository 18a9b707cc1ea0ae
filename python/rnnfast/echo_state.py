"""The echo state network: a fixed random reservoir, and a linear readout that is solved for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from rnnfast import _kernels, checks, init, reservoir, threads
from rnnfast.checks import Array
from rnnfast.module import Module, State, Tape
from rnnfast.ridge import Ridge

__all__ = ["EchoState"]

_ROWS_AT_ONCE = 1024  # of features in a window of fit, at least
_NUMBERS_AT_ONCE = 1 << 22  # of features in a window of a call


class EchoState(Module):
    """Echo state network (Jaeger, 2001, "The 'echo state' approach"), with leaky units (Jaeger et al., 2007).

    ::

        h_t = (1 − a) h_{t−1} + a tanh(W_in x_t + W_fb y_{t−1} + W h_{t−1} + b)
        y_t = W_out [h_t; x_t] + b_out

    W is sparse and, like W_in, W_fb and b, drawn once and never changed. Only the readout is learnt: `fit` solves a
    ridge regression of the targets on the states. Where the output is to be the next input, as when a time series goes
    on by itself, there is `free_run`.

    All of it runs natively and in sequence: `harvest` returns the states, a call the outputs. As any module it takes
    and returns states, `lengths` and `resets`, and stands in a Sequential; but the reservoir has no gradient, so
    `backward` trains the readout alone and must be told ``need_dx=False``.

    Args:
        input_size: I, the features of x.
        hidden_size: H, the units of the reservoir.
        output_size: O, the features of y; I if None.
        spectral_radius: ρ(W), the largest modulus of its eigenvalues, to 1e-7. Below 1 the reservoir forgets its first
            state under most inputs; the closer to 1, the slower.
        density: the share of units that a unit listens to. Each has the same number of connections, at least two.
        leak: a in (0, 1]; the smaller, the slower the units.
        input_scaling: W_in ~ U(−s, s).
        bias_scaling: b ~ U(−s, s). With 0 the network is odd: −x gives −h.
        feedback_scaling: W_fb ~ U(−s, s); 0 for a network without W_fb.
        skip: whether the readout sees x_t beside h_t.
        batch_first: whether x and y are (B, T, ·) instead of (T, B, ·).
        dtype: float32 or float64, of all arrays in and out. The readout is always solved for in float64.
        seed: of the reservoir; None draws one from the system.

    Shapes:
        x (T, B, I), y (T, B, O), states over time (T, B, H). The state is h (1, B, H), with feedback (h, y) with y
        (1, B, O), what the readout said last. Parameters: `readout_weight` (O, H + I), with ``skip=False`` (O, H), and
        `readout_bias` (O,), zeros at first. Buffers, which belong to `state_dict` but never change: `weight_ih` (H, I),
        `weight_fb` (H, O), `bias` (H,), and W in CSR (columns ascending in each row): `weight_hh_data`,
        `weight_hh_indices`, `weight_hh_indptr`. Any sparse matrix may be loaded in its place.

    W is drawn with the same number of connections into every unit and weights from U(−1, 1), then scaled. So that a
    vector unit can do a step, sixteen units at a time listen to the same random neighbourhoods of up to sixteen units;
    to which units in them, each has drawn for itself. All pairs are equally likely.

    Raises:
        TypeError: an argument has another dtype or type than it should.
        ValueError: a shape or a value is wrong. Both name the argument, what was expected and what came.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> sine = np.sin(np.arange(601) / 5)[:, None, None]  # (T, 1, 1)
        >>> network = rf.EchoState(1, 100, dtype=np.float64, seed=0)
        >>> network = network.fit(sine[:500], sine[1:501], washout=100)
        >>> y, state = network(sine[:501])  # y[-1] is a forecast of sine[501]
        >>> rest, state = network.free_run(99, y[-1], state)
        >>> bool(np.abs(rest - sine[502:]).max() < 1e-3)
        True
    """

    _arguments = (
        "input_size",
        "hidden_size",
        "output_size",
        "spectral_radius",
        "density",
        "leak",
        "input_scaling",
        "bias_scaling",
        "feedback_scaling",
        "skip",
        "batch_first",
        "dtype",
        "seed",
    )
    batch_first: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        spectral_radius: float = 0.9,
        density: float = 0.1,
        leak: float = 1.0,
        input_scaling: float = 1.0,
        bias_scaling: float = 0.2,
        feedback_scaling: float = 0.0,
        skip: bool = True,
        batch_first: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.output_size = self.input_size if output_size is None else checks.size("output_size", output_size)
        self.spectral_radius = checks.real("spectral_radius", spectral_radius)
        self.density = _share("density", density)
        self.leak = _share("leak", leak)
        self.input_scaling = checks.real("input_scaling", input_scaling)
        self.bias_scaling = checks.real("bias_scaling", bias_scaling)
        self.feedback_scaling = checks.real("feedback_scaling", feedback_scaling)
        self.skip = checks.flag("skip", skip)
        self.batch_first = batch_first
        self.seed = init.choose_seed(seed)
        self.in_features = self.hidden_size + (self.input_size if self.skip else 0)  # of the readout
        shapes = {"readout_weight": (self.output_size, self.in_features), "readout_bias": (self.output_size,)}
        super().__init__(shapes, checks.float_dtype(dtype))
        self.flat_params[...] = 0
        self._drawn: dict[str, Array] = {}
        self._native: Any = None

    # ---- the reservoir -----------------------------------------------------------------------------------------------
    @property
    def feedback(self) -> bool:
        """Whether there is a W_fb."""
        return self.feedback_scaling > 0

    @property
    def _buffer_names(self) -> tuple[str, ...]:
        fed_back = ("weight_fb",) if self.feedback else ()
        return ("weight_ih", *fed_back, "bias", "weight_hh_data", "weight_hh_indices", "weight_hh_indptr")

    @property
    def buffers(self) -> dict[str, Array]:
        """Name → array of the reservoir, read-only; `weight_hh_…` are the data, indices and indptr of a CSR matrix."""
        if not self._drawn:  # late, for a model that is loaded needs no other reservoir before
            self._drawn = self._draw()
        views = {name: self._drawn[name].view() for name in self._buffer_names}
        for view in views.values():
            view.flags.writeable = False
        return views

    def _draw(self) -> dict[str, Array]:
        """Each array from a stream of its own, in float64: another input size leaves W as it is."""
        columns, weights, ih, bias, fb = (np.random.default_rng([self.seed, k]) for k in range(5))
        hidden, count = self.hidden_size, reservoir.connections(self.hidden_size, self.density)
        indices = reservoir.draw_columns(hidden, count, columns)
        data = weights.uniform(-1.0, 1.0, (hidden, count))
        if self.spectral_radius:
            data *= self.spectral_radius / reservoir.spectral_radius(data, indices)
        else:
            data[...] = 0
        scale = self.feedback_scaling
        arrays = {
            "weight_ih": ih.uniform(-1.0, 1.0, (hidden, self.input_size)) * self.input_scaling,
            **({"weight_fb": fb.uniform(-1.0, 1.0, (hidden, self.output_size)) * scale} if self.feedback else {}),
            "bias": bias.uniform(-1.0, 1.0, hidden) * self.bias_scaling,
            "weight_hh_data": data.ravel(),
        }
        drawn = {name: array.astype(self.dtype) for name, array in arrays.items()}
        indptr = np.arange(hidden + 1, dtype=np.int64) * count
        return drawn | {"weight_hh_indices": indices.ravel(), "weight_hh_indptr": indptr}

    def _make_native(self, arrays: Mapping[str, Array]) -> Any:
        """The kernels' reservoir, which packs the weights; ValueError if W is no CSR matrix of H × H."""
        return _kernels.make_reservoir(
            arrays["weight_ih"],
            arrays.get("weight_fb"),
            arrays["bias"],
            arrays["weight_hh_data"],
            arrays["weight_hh_indices"],
            arrays["weight_hh_indptr"],
            self.leak,
        )

    def _reservoir(self) -> Any:
        if self._native is None:
            self._native = self._make_native(self.buffers)
        return self._native

    def _read_buffers(self, arrays: Mapping[str, Array]) -> Callable[[], None]:
        sizes: dict[str, tuple[int | str, ...]] = {
            "weight_ih": (self.hidden_size, self.input_size),
            "weight_fb": (self.hidden_size, self.output_size),
            "bias": (self.hidden_size,),
            "weight_hh_data": ("n",),
            "weight_hh_indices": (arrays["weight_hh_data"].size,),
            "weight_hh_indptr": (self.hidden_size + 1,),
        }
        drawn = {}
        for name, array in arrays.items():
            try:
                checks.shaped(name, array, sizes[name])
                if name in ("weight_hh_indices", "weight_hh_indptr"):
                    drawn[name] = np.array(checks.integers(name, array), np.int64)
                else:
                    drawn[name] = np.array(array, self.dtype, order="C")
            except TypeError as error:
                raise ValueError(str(error)) from error
        try:
            native = self._make_native(drawn)
        except ValueError as error:
            raise ValueError(f"weight_hh_{error}") from error

        def take() -> None:
            self._drawn, self._native = drawn, native

        return take

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_native": None}

    # ---- states ------------------------------------------------------------------------------------------------------
    def harvest(
        self, x: Any, state: State = None, lengths: Any = None, resets: Any = None, *, teacher: Any = None
    ) -> tuple[Array, State]:
        """The states over time (T, B, H), zero past a row's length, and the state at the end.

        With feedback, y_{t−1} is taken from `teacher` (T, B, O) and for t = 0 from `state`; without a teacher it is
        what the readout says.
        """
        x, lengths, resets, carried = self._check(x, state, lengths, resets)
        steps, batch = x.shape[:2]
        if teacher is not None:
            if not self.feedback:
                raise ValueError("teacher: expected None for a network without feedback")
            expected = self._outer(steps, batch, self.output_size)
            teacher = checks.time_major(checks.features("teacher", teacher, expected, self.dtype), self.batch_first)
        states, seq = self._new_sequence("states", steps, batch, self.hidden_size)
        y = checks.empty("y", (steps, batch, self.output_size), self.dtype) if self.feedback else None
        closed = y is not None and teacher is None
        final = self._scan(x, carried, lengths, resets, states=seq, teacher=teacher, y=y if closed else None)
        return states, self._state(final)

    def _scan(
        self,
        x: Array | None,
        carried: tuple[Array | None, Array | None],
        lengths: Array | None,
        resets: Array | None,
        *,
        states: Array | None = None,
        teacher: Array | None = None,
        y: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Run the reservoir over time-major arrays; with a y in the loop with its readout. The last h and y, (B, ·)."""
        some = x if x is not None else y
        assert some is not None
        batch = some.shape[1]
        h = checks.empty("state", (batch, self.hidden_size), self.dtype)
        last = checks.empty("state", (batch, self.output_size), self.dtype) if self.feedback else None
        readout = None if y is None else (self.params["readout_weight"], self.params["readout_bias"])
        self._reservoir().scan(x, teacher, readout, *carried, states, y, h, last, lengths, resets, threads.resolve())
        return h, last

    def _check(
        self, x: Any, state: State, lengths: Any, resets: Any
    ) -> tuple[Array, Array | None, Array | None, tuple[Array | None, Array | None]]:
        """x time-major, lengths, resets and the state, as the kernels take them."""
        shape = (*checks.leading(self.batch_first), self.input_size)
        x = checks.time_major(checks.features("x", x, shape, self.dtype), self.batch_first)
        steps, batch = x.shape[:2]
        lengths = checks.lengths(lengths, steps, batch)
        return x, lengths, checks.resets(resets, steps, batch, self.batch_first), self._check_state(state, batch)

    def _check_state(self, state: State, batch: int | str) -> tuple[Array | None, Array | None]:
        """h and, with feedback, y, (B, ·) each."""
        if state is None:
            return None, None
        if not self.feedback:
            return checks.block("h0", state, (1, batch, self.hidden_size), self.dtype)[0], None
        if not isinstance(state, tuple | list) or len(state) != 2:
            got = f"{len(state)} entries" if isinstance(state, tuple | list) else type(state).__name__
            raise TypeError(f"state: expected a tuple (h0, y0), got {got}")
        h = checks.block("h0", state[0], (1, batch, self.hidden_size), self.dtype)
        return h[0], checks.block("y0", state[1], (1, batch, self.output_size), self.dtype)[0]

    def _state(self, final: tuple[Array, Array | None]) -> State:
        h, y = final
        return h[None] if y is None else (h[None], y[None])

    def _outer(self, steps: int, batch: int, width: int) -> tuple[int, int, int]:
        return (batch, steps, width) if self.batch_first else (steps, batch, width)

    def _new_sequence(self, name: str, steps: int, batch: int, width: int) -> tuple[Array, Array]:
        """A new array in the caller's layout, and its time-major view."""
        array = checks.empty(name, self._outer(steps, batch, width), self.dtype)
        return array, checks.time_major(array, self.batch_first)

    def _features(
        self,
        x: Array,
        carried: tuple[Array | None, Array | None],
        lengths: Array | None,
        resets: Array | None,
        teacher: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array | None]]:
        """What the readout sees, (T, B, H + I) or (T, B, H), and the last h and y."""
        features = checks.empty("states", (*x.shape[:2], self.in_features), self.dtype)
        final = self._scan(x, carried, lengths, resets, states=features[..., : self.hidden_size], teacher=teacher)
        if self.skip:
            features[..., self.hidden_size :] = x
        return features, final

    @staticmethod
    def _windows(steps: int, at_once: int, lengths: Array | None) -> Iterator[tuple[slice, Array | None]]:
        """Windows of so many steps, one even of none, and the lengths in each."""
        for begin in range(0, max(steps, 1), at_once):
            window = slice(begin, min(begin + at_once, steps))
            yield window, None if lengths is None else np.clip(lengths - begin, 0, window.stop - begin)

    # ---- the readout -------------------------------------------------------------------------------------------------
    def fit(
        self,
        x: Any,
        y: Any,
        *,
        state: State = None,
        lengths: Any = None,
        resets: Any = None,
        washout: int = 0,
        ridge: float = 1e-6,
    ) -> Self:
        """Set the readout to the solution of a ridge regression, and return the network itself::

            minimise Σ ‖W_out [h_t; x_t] + b_out − y_t‖² + ridge ‖W_out‖²    over the steps that count

        With feedback, the reservoir sees the targets y_{t−1} meanwhile ("teacher forcing").

        The sum and the penalty are those of scikit-learn's ``Ridge(alpha=ridge)``. In float64 by orthogonal
        transformations (LAPACK's QR) of features and penalty together, window by window: the states of a long
        sequence are never all kept, and the condition of the problem is not squared as by normal equations. With
        ``ridge=0`` it is the least-squares solution of least norm.

        Args:
            x: (T, B, I), one sequence or several.
            y: the targets (T, B, O), of the network's dtype; read only where a step counts.
            state: that the sequences begin with; zeros if None.
            lengths: steps past a row's length don't count.
            resets: where one is set, the state is zeroed before that step.
            washout: so many steps at the start of a sequence, and after a reset, don't count: the reservoir has still
                to forget its first state.
            ridge: the penalty, at least 0. As a noise of the size √(ridge / T) on each state would, it keeps the
                weights small; the closer to 0, the more precise the fit, and the less stable a free run.

        Raises:
            ValueError: no step counts, or x or y aren't finite where they do.
        """
        x, lengths, resets, carried = self._check(x, state, lengths, resets)
        steps, batch = x.shape[:2]
        y = checks.features("y", y, self._outer(steps, batch, self.output_size), self.dtype)
        y = checks.time_major(y, self.batch_first)
        counts = _age(steps, batch, resets) >= checks.size("washout", washout, minimum=0)
        if lengths is not None:
            counts &= ~checks.past(lengths, steps)
        if not counts.any():
            raise ValueError(f"washout: expected steps after it, got {washout} of {steps} steps and none that counts")
        ridge = checks.real("ridge", ridge)
        problem = Ridge(self.in_features, self.output_size, ridge)
        at_once = max(1, max(_ROWS_AT_ONCE, 2 * self.in_features) // max(batch, 1))
        for window, left in self._windows(steps, at_once, lengths):
            cuts = None if resets is None else resets[window]
            targets = y[window]
            features, carried = self._features(x[window], carried, left, cuts, targets if self.feedback else None)
            problem.add(features[counts[window]], targets[counts[window]])
        weight, bias = problem.solve()
        self.mark_changed()
        self.params["readout_weight"], self.params["readout_bias"] = weight, bias
        return self

    def predict(self, x: Any, state: State = None, lengths: Any = None, resets: Any = None) -> Array:
        """y (T, B, O) alone; a call of the network itself returns (y, state)."""
        return self(x, state, lengths, resets)[0]

    def free_run(self, steps: int, start: Any = None, state: State = None) -> tuple[Array, State]:
        """Go on for so many steps with each output as the next input: (y (T, B, O), the state at the end).

        Args:
            steps: T, at least 0.
            start: (B, I), the first input: the output of the step before. A network with feedback has it in its state;
                there it may be None.
            state: that the run begins with; zeros if None.

        Raises:
            ValueError: the output hasn't the size of the input.
        """
        if self.output_size != self.input_size:
            raise ValueError(
                f"free_run: expected as many outputs as inputs, got output_size={self.output_size} and "
                f"input_size={self.input_size}"
            )
        steps = checks.size("steps", steps, minimum=0)
        if start is None:
            start = self._check_state(state, "B")[1]
        if start is None:
            raise TypeError(f"start: expected an array (B, {self.input_size}), got None")
        start = checks.block("start", start, ("B", self.input_size), self.dtype)
        batch = len(start)
        h, _ = self._check_state(state, batch)
        y, seq = self._new_sequence("y", steps, batch, self.output_size)
        return y, self._state(self._scan(None, (h, start), None, None, y=seq))

    # ---- as a module -------------------------------------------------------------------------------------------------
    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Any] | None]:
        x, lengths, resets, carried = self._check(x, state, lengths, resets)
        steps, batch = x.shape[:2]
        y, seq = self._new_sequence("y", steps, batch, self.output_size)
        if self.feedback:
            if record:
                raise ValueError("forward: a network with feedback has no gradients, expected feedback_scaling=0")
            return y, self._state(self._scan(x, carried, lengths, resets, y=seq)), None
        if record:
            features, final = self._features(x, carried, lengths, resets)
            self._read_out(features, seq, lengths)
            return y, self._state(final), Tape(self, (features, lengths), y)
        at_once = max(1, _NUMBERS_AT_ONCE // (max(batch, 1) * self.in_features))
        for window, left in self._windows(steps, at_once, lengths):
            cuts = None if resets is None else resets[window]
            features, carried = self._features(x[window], carried, left, cuts)
            self._read_out(features, seq[window], left)
        h, last = carried
        assert h is not None
        return y, self._state((h, last)), None

    def _read_out(self, features: Array, y: Array, lengths: Array | None) -> None:
        weight, bias = self.params["readout_weight"], self.params["readout_bias"]
        _kernels.linear_forward(features, weight, bias, y, lengths, threads.resolve())

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> None:
        if dstate is not None:
            raise ValueError(f"dstate: the reservoir has no gradient, expected None, got {type(dstate).__name__}")

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[None, None]:
        if need_dx:
            raise ValueError("need_dx: the reservoir has no gradient, expected False, got True")
        features, lengths = tape.record
        if dy is not None:
            _kernels.linear_backward(
                features,
                self.params["readout_weight"],
                checks.time_major(dy, self.batch_first),
                None,
                grads["readout_weight"],
                grads["readout_bias"],
                lengths,
                threads.resolve(),
            )
        return None, None


def _age(steps: int, batch: int, resets: Array | None) -> Array:
    """(T, B): steps since the sequence began or was reset."""
    t = np.broadcast_to(np.arange(steps)[:, None], (steps, batch))
    if resets is None:
        return t
    age: Array = t - np.maximum.accumulate(np.where(resets, t, 0), axis=0)
    return age


def _share(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    number = checks.real(name, value, 0.0, open_low=True)
    if number > 1:
        raise ValueError(f"{name}: expected a number > 0 and <= 1, got {number:g}")
    return number
