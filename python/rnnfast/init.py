"""Seeds, PyTorch's default initial values, and others by name.

Every module draws its own values, in the order of its parameters, from ``np.random.default_rng(seed)`` in float64, so
that a float32 module holds the rounded values of its float64 twin.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from rnnfast import checks
from rnnfast.checks import Array

AnyModule = TypeVar("AnyModule", bound=Any)  # modules are built upon this file, so it can't import their class


def choose_seed(seed: Any) -> int:
    """The seed given, an integer in 0 … 2⁶⁴ − 1, or for None one drawn from the system."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    number = checks.size("seed", seed, minimum=0)
    if number >= 2**64:
        raise ValueError(f"seed: expected an integer below 2**64, got {number}")
    return number


def uniform(params: Mapping[str, Array], bound: float, seed: int) -> None:
    """Fill every array from U(−bound, bound)."""
    generator = np.random.default_rng(seed)
    for array in params.values():
        array[...] = generator.uniform(-bound, bound, array.shape)


def normal(params: Mapping[str, Array], seed: int) -> None:
    """Fill every array from N(0, 1)."""
    generator = np.random.default_rng(seed)
    for array in params.values():
        array[...] = generator.standard_normal(array.shape)


# ---- by name ---------------------------------------------------------------------------------------------------------
Initializer: TypeAlias = "Callable[[_Parameter, np.random.Generator], Array | float]"
Choice: TypeAlias = "str | float | tuple[str, float]"

# The order of the gates' rows in a weight, by cell. What isn't here has no gate whose bias has a name.
_GATES = {
    "lstm": "ifgo",
    "lstm_peephole": "ifgo",
    "lstm_coupled": "igo",
    "lstm_coupled_peephole": "igo",
    "gru": "rzn",
    "gru_reset_before": "rzn",
    "min_gru": "zh",
    "min_lstm": "fih",
    "sru": "xfr",
    "sru_skip": "xfrs",
    "slstm": "ifzo",
}
# The gates that say how long a state is kept, by the order of the rows: +1 if an open gate keeps it, −1 if it lets go.
_KEEPING = {
    "ifgo": {"f": 1, "i": -1},
    "igo": {"i": -1},  # f = 1 − i
    "rzn": {"z": 1},
    "zh": {"z": -1},
    "fih": {"f": 1, "i": -1},
    "xfr": {"f": 1},
    "xfrs": {"f": 1},
    "ifzo": {"f": 1},  # the same bias in every i cancels in c / n
}
_SUFFIX = re.compile(r"_l(\d+)(_reverse)?$")  # layer and direction, after the kind of a parameter


def kind_of(name: str) -> str:
    """A parameter's name without layer and direction: weight_hh."""
    return _SUFFIX.sub("", name)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter and where it stands."""

    name: str  # in the module given: 1.weight_hh_l0
    array: Array
    owner: Any  # the layer that has it, not the Sequential around it

    @property
    def kind(self) -> str:
        """The name without position, layer and direction: weight_hh."""
        return kind_of(self.name.rpartition(".")[2])

    @property
    def layer(self) -> str:
        """Position, layer and direction alone, which a layer's parameters have in common: 1._l0."""
        return self.name.replace(self.kind, "", 1)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def cell(self) -> str | None:
        """The cell in the kernels' registry; None for a layer that isn't recurrent."""
        if not hasattr(self.owner, "_cell_of"):
            return None
        found = _SUFFIX.search(self.name)
        name: str = self.owner._cell_of(int(found[1]) if found else 0)
        return name

    @property
    def gates(self) -> str:
        """The order of the gates' rows in the layer's weights, a letter each; none where they have no names."""
        return _GATES.get(self.cell or "", "")

    def describe(self) -> str:
        return f"{self.name} of {type(self.owner).__name__}"

    def blocks(self) -> tuple[int, int, int]:
        """(G, rows, columns): a recurrent weight is G matrices, one a gate, each of which acts on a vector by itself.

        With heads there is one for each of them: G is that of gates times heads.
        """
        if self.array.ndim != 2:
            raise ValueError(
                f"{self.name}: this initialiser needs a matrix, {self.describe()} has the shape "
                f"{checks.show(self.array.shape)}"
            )
        rows, columns = self.array.shape
        height = rows
        if self.cell is not None and self.kind in ("weight_ih", "weight_hh"):
            height = self.owner.hidden_size // (self.owner.num_heads if self.kind == "weight_hh" else 1)
        return rows // height, height, columns


def _default(parameter: _Parameter, generator: np.random.Generator) -> Array:
    """PyTorch's: N(0, 1) for an embedding, else U(−1/√K, 1/√K), K = H of a recurrent layer, I of a linear one.

    What PyTorch has not: gains of layer norm begin with ones, their biases and trained initial states with zeros (m of
    an sLSTM with −∞).
    """
    owner, shape = parameter.owner, parameter.shape
    if parameter.cell is not None and (constant := owner._constant(parameter.kind)) is not None:
        return np.full(shape, constant)
    if hasattr(owner, "num_embeddings"):
        return generator.standard_normal(shape)
    matrix = next((array for array in owner.params.values() if array.ndim == 2), None)  # of a linear map
    fan = float(owner.hidden_size if parameter.cell is not None or matrix is None else matrix.shape[1])
    return generator.uniform(-(fan**-0.5), fan**-0.5, shape)


def _xavier_uniform(parameter: _Parameter, generator: np.random.Generator) -> Array:
    """U(−a, a) with a = √(6 / (rows + columns)) of one gate's matrix (Glorot & Bengio, 2010)."""
    _, rows, columns = parameter.blocks()
    bound = (6 / (rows + columns)) ** 0.5
    return generator.uniform(-bound, bound, parameter.shape)


def _xavier_normal(parameter: _Parameter, generator: np.random.Generator) -> Array:
    """N(0, 2 / (rows + columns)) of one gate's matrix (Glorot & Bengio, 2010)."""
    _, rows, columns = parameter.blocks()
    return generator.normal(0.0, (2 / (rows + columns)) ** 0.5, parameter.shape)


def _orthogonal(parameter: _Parameter, generator: np.random.Generator) -> Array:
    """Every gate's matrix drawn uniformly from those with QᵀQ = 1, or QQᵀ = 1 if it is wide (Saxe et al., 2014)."""
    count, rows, columns = parameter.blocks()
    values = []
    for _ in range(count):
        q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # without it the distribution depends on the QR routine's signs
        values.append(q if rows >= columns else q.T)
    return np.concatenate(values)


def _identity(parameter: _Parameter, generator: np.random.Generator) -> Array:
    """The identity, for the recurrent weight of a plain RNN (Le, Jaitly & Hinton, 2015)."""
    cell = parameter.cell or ""
    if not cell.startswith("rnn") or parameter.kind != "weight_hh":
        raise ValueError(f"{parameter.kind}: 'identity' is for the weight_hh of an RNN, got {parameter.describe()}")
    return np.eye(len(parameter.array))


_INITIALIZERS: dict[str, Initializer] = {
    "default": _default,
    "identity": _identity,
    "normal": lambda parameter, generator: generator.standard_normal(parameter.shape),
    "ones": lambda parameter, generator: 1.0,
    "orthogonal": _orthogonal,
    "uniform": lambda parameter, generator: generator.uniform(-1.0, 1.0, parameter.shape),
    "xavier_normal": _xavier_normal,
    "xavier_uniform": _xavier_uniform,
    "zeros": lambda parameter, generator: 0.0,
}


def initialize(
    module: AnyModule,
    *,
    forget_bias: float | None = None,
    chrono: float | None = None,
    seed: int | None = None,
    **choices: Choice,
) -> AnyModule:
    """Set parameters anew, each kind by the name of an initialiser. What isn't named keeps its values.

    A keyword is the kind of a parameter: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh` of recurrent layers, `weight`
    of Linear and Embedding, `bias` for every bias but those of layer norm. It holds for all layers, directions and
    positions; a full name (``**{"1.weight_hh_l0": "zeros"}``) goes before a kind, a kind before `bias`. Its value is a
    name, a pair (name, gain) whose values are multiplied by the gain, or a number that fills the parameter:

    ==================  =============================================================================================
    ``default``         what the module began with: PyTorch's U(−1/√H, 1/√H), N(0, 1) for an embedding
    ``xavier_uniform``  U(−a, a), a = √(6 / (rows + columns))  (Glorot & Bengio, 2010), rows of one gate
    ``xavier_normal``   N(0, 2 / (rows + columns))  (Glorot & Bengio, 2010), rows of one gate
    ``orthogonal``      QᵀQ = 1 for every gate's matrix  (Saxe, McClelland & Ganguli, 2014)
    ``identity``        W_hh = gain · 1 and the layer's biases 0, of an RNN: the IRNN  (Le, Jaitly & Hinton, 2015)
    ``zeros, ones``     0, 1
    ``uniform``         U(−1, 1); with a gain a: U(−a, a)
    ``normal``          N(0, 1); with a gain s: N(0, s²)
    ==================  =============================================================================================

    Two more set the biases of gates, after everything else; b = b_ih + b_hh is meant, the part in `bias_hh` is 0:

    ::

        forget_bias=β   LSTM, MinLSTM, SRU, SLSTM:  b_f = β                     (Gers, Schmidhuber & Cummins, 2000)
        chrono=T_max    LSTM, MinLSTM:  b_f ~ log U(1, T_max − 1),  b_i = −b_f  (Tallec & Ollivier, 2018)
                        SRU, SLSTM:     b_f ~ log U(1, T_max − 1)
                        GRU:            b_z ~ log U(1, T_max − 1)
                        MinGRU:        −b_z ~ log U(1, T_max − 1);  a coupled LSTM's b_i likewise

    `chrono` gives the units memories of all lengths up to T_max steps. (In our GRU an open z keeps the state; the
    paper's lets it go, as MinGRU's does, hence the signs.)

    Args:
        module: a layer, or a Sequential or the like of them. Of an Ensemble every model draws values of its own.
        forget_bias: β, the bias of every forget gate.
        chrono: T_max > 2, the longest dependency expected, in steps.
        seed: of the random values; None draws one from the system. A parameter's values depend on the seed and on
            its place in the module alone, not on what else is set; float32 values are the rounded float64 ones.
        **choices: initialisers by kind or name.

    Returns:
        The module itself, so that it can stand around a constructor.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a name is unknown, no parameter is of such a kind, or something makes no sense for a layer: a
            forget bias without a forget gate, an identity for gates, a bias for a layer without. Nothing is changed
            then.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.initialize(rf.LSTM(3, 4, seed=0), weight_hh="orthogonal", bias="zeros", forget_bias=1.0, seed=0)
        >>> layer.params["bias_ih_l0"].reshape(4, 4)[1].tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> forget = layer.params["weight_hh_l0"][4:8]
        >>> bool(np.allclose(forget @ forget.T, np.eye(4), atol=1e-6))
        True
    """
    if not hasattr(module, "flat_params"):
        raise TypeError(f"module: expected a module, got {type(module).__name__}")
    if hasattr(module, "models"):  # an ensemble: every model with random numbers of its own
        seeds = np.random.SeedSequence(choose_seed(seed)).generate_state(len(module.models), np.uint64)
        for model, own in zip(module.models, seeds, strict=True):
            initialize(model, forget_bias=forget_bias, chrono=chrono, seed=int(own), **choices)
        return module
    if forget_bias is not None and chrono is not None:
        raise ValueError("forget_bias, chrono: both set the forget gate's bias, expected one of them")
    seed = choose_seed(seed)
    parameters = _parameters(module)
    chosen = _choose(module, parameters, choices)
    values: dict[str, Array] = {}
    for index, parameter in enumerate(parameters):
        if parameter.name in chosen:
            values[parameter.name] = _draw(parameter, chosen[parameter.name], np.random.default_rng([seed, index]))
    if forget_bias is not None:
        value = checks.real("forget_bias", forget_bias, -math.inf, open_low=True)
        _set_gates("forget_bias", parameters, values, lambda layer: (value, {"f": 1} if "f" in layer.gates else {}))
    if chrono is not None:
        longest = checks.real("chrono", chrono, 2.0, open_low=True)
        _set_gates("chrono", parameters, values, lambda layer: _chrono(layer, longest, seed))
    module.mark_changed()
    for parameter in parameters:
        if parameter.name in values:
            parameter.array[...] = values[parameter.name]
    return module


def _parameters(module: Any) -> list[_Parameter]:
    """Every parameter of a module, in the order of its flat buffer, with the layer that has it."""
    layers = list(leaves(module))
    if any(hasattr(layer, "models") for layer in layers):
        raise ValueError("module: expected no Ensemble inside of another module: initialise it by itself")
    owners = [(layer, array) for layer in layers for array in layer.params.values()]
    return [_Parameter(name, array, owner) for name, (owner, array) in zip(module.params, owners, strict=True)]


def leaves(module: Any) -> Iterator[Any]:
    """The modules inside a Sequential and the like, however deep, or the module itself."""
    if hasattr(module, "modules"):
        for part in module.modules:
            yield from leaves(part)
    else:
        yield module


def _choose(module: Any, parameters: list[_Parameter], choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The choice for every parameter that has one, by full name."""
    known = {parameter.name for parameter in parameters} | {parameter.kind for parameter in parameters}
    known |= {"bias"} if any(kind.startswith("bias") for kind in known) else set()
    for key in choices:
        if key not in known:
            raise ValueError(f"{key}: {type(module).__name__} has no such parameter, expected one of {_listed(known)}")
    chosen: dict[str, Choice] = {}
    for parameter in parameters:
        group = "bias" if parameter.kind.startswith("bias") else parameter.kind
        for key in (parameter.name, parameter.kind, group):
            if key in choices:
                chosen[parameter.name] = choices[key]
                break
    # An IRNN's biases are zero, unless something else is said about them.
    eyes = {p.layer for p in parameters if _initializer_name(chosen.get(p.name)) == "identity"}
    for parameter in parameters:
        if parameter.kind.startswith("bias") and parameter.layer in eyes:
            chosen.setdefault(parameter.name, "zeros")
    return chosen


def _initializer_name(choice: Choice | None) -> str | None:
    name = choice[0] if isinstance(choice, tuple) and choice else choice
    return name if isinstance(name, str) else None


def _draw(parameter: _Parameter, choice: Choice, generator: np.random.Generator) -> Array:
    """The new values of a parameter, in float64."""
    gain, name = 1.0, choice
    if isinstance(choice, tuple):
        if len(choice) != 2 or not isinstance(choice[0], str):
            raise TypeError(f"{parameter.kind}: expected a pair (name, gain), got {choice!r}")
        name, gain = choice[0], checks.real(f"{parameter.kind}: gain", choice[1], -math.inf, open_low=True)
    if not isinstance(name, str):
        value: Array | float = checks.real(parameter.kind, name, -math.inf, open_low=True)
    elif name in _INITIALIZERS:
        value = _INITIALIZERS[name](parameter, generator)
    else:
        raise ValueError(f"{parameter.kind}: unknown initialiser {name!r}, there are {_listed(_INITIALIZERS)}")
    return np.broadcast_to(np.multiply(value, gain, dtype=np.float64), parameter.array.shape)


def _set_gates(
    what: str,
    parameters: list[_Parameter],
    values: dict[str, Array],
    choose: Callable[[_Parameter], tuple[Array | float, Mapping[str, int]]],
) -> None:
    """Put biases into `values` for every recurrent layer and direction; refuse one that hasn't such gates.

    choose(weight_ih) gives the bias of a layer's units, and the gates that it is for with their signs.
    """
    weights = [parameter for parameter in parameters if parameter.cell is not None and parameter.kind == "weight_ih"]
    if not weights:
        raise ValueError(f"{what}: expected a recurrent layer, got none")
    found = {parameter.name: parameter for parameter in parameters}
    for weight in weights:
        bias, signs = choose(weight)
        if not signs:
            gate = "forget gate" if what == "forget_bias" else "gate that keeps the state"
            raise ValueError(f"{what}: expected layers with a {gate}, got {weight.owner!r}")
        if weight.name.replace("weight_ih", "bias_ih") not in found:
            raise ValueError(f"{what}: expected layers with biases, got {weight.owner!r}")
        for kind, scale in (("bias_ih", 1.0), ("bias_hh", 0.0)):
            parameter = found.get(weight.name.replace("weight_ih", kind))
            if parameter is not None:  # a cell without recurrent weights has no bias_hh
                blocks = np.array(values.get(parameter.name, parameter.array), np.float64)
                blocks = blocks.reshape(len(weight.gates), weight.owner.hidden_size)
                for gate, sign in signs.items():
                    blocks[weight.gates.index(gate)] = np.multiply(scale * sign, bias)
                values[parameter.name] = blocks.ravel()


def _chrono(weight: _Parameter, longest: float, seed: int) -> tuple[Array, Mapping[str, int]]:
    """The biases of units that remember for t steps, t ~ U(1, T_max − 1): a gate with σ(b) = t / (1 + t)."""
    # A stream of its own, that of the layer's name: the parameters' values have streams [seed, index].
    generator = np.random.default_rng([seed, *weight.layer.encode()])
    return np.log(generator.uniform(1.0, longest - 1.0, weight.owner.hidden_size)), _KEEPING.get(weight.gates, {})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
