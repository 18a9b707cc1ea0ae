"""Layers against ONNX Runtime, whose LSTM and GRU have options that PyTorch's don't: peepholes, coupled gates, a reset
before the product. Inference only: outputs and last states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from support import Array, largest, worst

onnx = pytest.importorskip("onnx", reason="ONNX isn't here to describe the models")
runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime isn't here to judge")

T, B, INPUTS, HIDDEN = 9, 5, 7, 19

Attributes = dict[str, Any]
LAYERS: dict[str, tuple[type[Any], Attributes, Attributes]] = {  # a layer, its options, those of the operator
    "lstm": (rf.LSTM, {}, {}),
    "lstm_peephole": (rf.LSTM, {"peephole": True}, {}),
    "lstm_coupled": (rf.LSTM, {"coupled": True}, {"input_forget": 1}),
    "lstm_coupled_peephole": (rf.LSTM, {"coupled": True, "peephole": True}, {"input_forget": 1}),
    "gru": (rf.GRU, {}, {"linear_before_reset": 1}),
    "gru_reset_before": (rf.GRU, {"reset_after": False}, {"linear_before_reset": 0}),
    "rnn_tanh": (rf.RNN, {}, {"activations": ["Tanh"]}),
    "rnn_relu": (rf.RNN, {"nonlinearity": "relu"}, {"activations": ["Relu"]}),
    "rnn_sigmoid": (rf.RNN, {"nonlinearity": "sigmoid"}, {"activations": ["Sigmoid"]}),
}


def in_onnx_order(layer: Any, name: str) -> Array:
    """A parameter's blocks of H rows in the order of the operator: i o f c; z r h.

    Coupled gates are f = 1 - i here, and no block of f; the operator wants one and doesn't read it.
    """
    gates = np.split(layer.params[f"{name}_l0"], len(layer.params[f"{name}_l0"]) // HIDDEN)
    if isinstance(layer, rf.LSTM):
        i, *f, g, o = gates
        gates = [i, o, *(f or [np.zeros_like(i)]), g]
    elif isinstance(layer, rf.GRU):
        r, z, n = gates
        gates = [z, r, n]
    return np.concatenate(gates)


def peepholes(layer: rf.LSTM) -> Array:
    """In the operator's order i o f."""
    i, o = layer.params["weight_ci_l0"], layer.params["weight_co_l0"]
    return np.concatenate([i, o, layer.params.get("weight_cf_l0", np.zeros_like(i))])


def session(layer: Any, attributes: Attributes) -> Any:
    """A model of one operator: x, h0 (and c0) to y and the last states."""
    helper, kind = onnx.helper, type(layer).__name__
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    constants = {
        "W": in_onnx_order(layer, "weight_ih")[None],
        "R": in_onnx_order(layer, "weight_hh")[None],
        "b": np.concatenate([in_onnx_order(layer, "bias_ih"), in_onnx_order(layer, "bias_hh")])[None],
    }
    inputs = ["x", "W", "R", "b", "lengths", *(f"{name}0" for name in states)]
    if "weight_ci_l0" in layer.params:
        constants["p"] = peepholes(layer)[None]
        inputs.append("p")
    outputs = ["y", *(f"{name}n" for name in states)]
    node = helper.make_node(kind, inputs, outputs, hidden_size=HIDDEN, **attributes)
    shapes = {"x": ["T", "B", INPUTS], "y": ["T", 1, "B", HIDDEN], "lengths": ["B"]}
    shapes |= {f"{name}{end}": [1, "B", HIDDEN] for name in states for end in "0n"}
    element = {"lengths": onnx.TensorProto.INT32}

    def values(names: list[str]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, element.get(name, onnx.TensorProto.FLOAT), shapes[name])
            for name in names
        ]

    graph = helper.make_graph(
        [node],
        "layer",
        values([name for name in inputs if name not in constants]),
        values(outputs),
        [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("lengths", [None, [9, 1, 4, 9, 6]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_last_states_are_those_of_onnx_runtime(name: str, lengths: list[int] | None) -> None:
    make, options, attributes = LAYERS[name]
    layer = make(INPUTS, HIDDEN, seed=0, **options)
    random = np.random.default_rng(1)
    x = random.standard_normal((T, B, INPUTS), np.float32)
    state = [random.standard_normal((1, B, HIDDEN), np.float32) for _ in range(2 if make is rf.LSTM else 1)]
    y, last = layer(x, tuple(state) if make is rf.LSTM else state[0], lengths=lengths)
    fed = {"x": x, "lengths": np.array(lengths or [T] * B, np.int32), "h0": state[0]}
    if make is rf.LSTM:
        fed["c0"] = state[1]
    expected, *expected_last = session(layer, attributes).run(None, fed)
    last = last if make is rf.LSTM else (last,)
    for ours, theirs in zip((y, *last), (expected[:, 0], *expected_last), strict=True):
        assert worst(ours, theirs) <= 64 * np.finfo(np.float32).eps * max(1.0, largest(theirs))
