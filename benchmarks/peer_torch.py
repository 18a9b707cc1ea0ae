"""PyTorch at the same work: eager in float32 and bfloat16, compiled, and ragged batches packed and padded.

Where it has no such layer, a composition of its operations stands for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .contenders import FLOAT32_TOLERANCE, Answer, Contender, Kind, Problem, UnavailableError, bfloat16_sums_tolerance
from .peer_torch_family import Composition

Layer = Callable[[Any], Any]  # (T, B, I) -> (T, B, H)


def eager(problem: Problem, kind: Kind) -> Contender:
    layer = layer_of(problem, kind)
    return contender(problem, kind, layer, lambda x: layer(x)[0])


def bfloat16(problem: Problem, kind: Kind) -> Contender:
    """Weights, inputs, outputs and gradients in bfloat16; GRU and RNN add the gradients up step by step."""
    layer = layer_of(problem, kind).to(torch.bfloat16)
    return contender(problem, kind, layer, lambda x: layer(x)[0], torch.bfloat16)


def compiled(problem: Problem, kind: Kind) -> Contender:
    layer = layer_of(problem, kind)
    if isinstance(layer, Composition):
        raise UnavailableError("would unroll the loop over the steps and take minutes to compile it")
    torch.compiler.reset()
    fast = torch.compile(layer)
    return contender(problem, kind, layer, lambda x: fast(x)[0])


def packed(problem: Problem, kind: Kind) -> Contender:
    """The ragged batch as a packed sequence; packing and unpacking are part of the work."""
    layer, lengths = layer_of(problem), torch.from_numpy(problem.lengths)

    def call(x: Any) -> Any:
        sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(sequence)[0], total_length=problem.shape.T)[0]

    return contender(problem, kind, layer, call)


def padded(problem: Problem, kind: Kind) -> Contender:
    """The ragged batch at full length: what is computed past a row's end has no gradient."""
    return eager(problem, kind)


def layer_of(problem: Problem, kind: Kind = "training") -> Any:
    """The same layer with the same weights, or a composition."""
    torch.set_num_threads(problem.threads)
    ours = problem.layer
    cell, masks = ours._cell_of(0), problem.masks(kind)
    if cell not in LAYERS or ours.layer_norm or ours.recurrent_dropout or masks:
        return Composition(cell, problem.weights, masks)
    kind_of_layer, options = LAYERS[cell]
    if ours.proj_size:
        warnings.filterwarnings("ignore", "LSTM with projections", UserWarning)  # that it is slow, which we measure
        options = options | {"proj_size": ours.proj_size}
    options = options | {"num_layers": ours.num_layers, "bidirectional": ours.bidirectional}
    layer = kind_of_layer(problem.shape.I, problem.shape.H, **options)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in problem.weights.items()})
    return layer


# By the kernels' names of the cells.
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


def contender(problem: Problem, kind: Kind, layer: Any, call: Layer, dtype: Any = torch.float32) -> Contender:
    x, dy = torch.from_numpy(problem.x).to(dtype), torch.from_numpy(problem.dy).to(dtype)
    x.requires_grad_(kind == "training")
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else bfloat16_sums_tolerance(problem.shape.T)

    def forward() -> Any:
        with torch.no_grad():
            return call(x)

    def training() -> Any:
        layer.zero_grad()
        x.grad = None
        call(x).backward(dy)
        return x.grad

    def gradients(dx: Any) -> Answer:
        return {"dx": _numpy(dx), **{name: _numpy(value.grad) for name, value in layer.named_parameters()}}

    if kind == "forward":
        return Contender(forward, lambda y: {"y": _numpy(y) * problem.mask}, tolerance)
    return Contender(training, gradients, tolerance)


def _numpy(tensor: Any) -> Any:
    return tensor.detach().float().numpy()
