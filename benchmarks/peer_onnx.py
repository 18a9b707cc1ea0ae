"""ONNX Runtime at the same work: a model of one recurrent operator; inference only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper

import rnnfast as rf

from .contenders import Array, Contender, Kind, Problem, UnavailableError

OPERATORS = ("RNN", "LSTM", "GRU")  # which layers have the name of an operator
OPTIONS = ("coupled", "nonlinearity", "peephole", "reset_after")  # and which options of theirs it has
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}
OPSET, IR_VERSION = 17, 8


def session(problem: Problem, kind: Kind) -> Contender:
    if kind == "training":
        raise UnavailableError("does inference only")
    running = make_session(problem.layer, problem.threads)
    return Contender(lambda: running.run(["y"], {"x": problem.x})[0], lambda y: {"y": y[:, 0]})


def make_session(layer: Any, threads: int, *, with_state: bool = False, with_lengths: bool = False) -> Any:
    """A session with the input x and the outputs y, hn (and cn); if asked for, also with inputs h0 (and c0), lengths.

    Of one layer in one direction; UnavailableError names what the operator has not.
    """
    _refuse(layer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    model = _model(layer, with_state, with_lengths)
    checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def initial_names(layer: Any) -> list[str]:
    return [f"{name}0" for name in layer._state_names]


def _refuse(layer: Any) -> None:
    kind = type(layer).__name__
    if kind not in OPERATORS:
        raise UnavailableError(f"has no {kind}")
    plain = getattr(rf, kind)(layer.input_size, layer.hidden_size, seed=0)
    own = {name for name in layer.config if name not in ("seed", *OPTIONS) and layer.config[name] != plain.config[name]}
    if own:
        raise UnavailableError(f"has no {kind} with {', '.join(sorted(own))}")


def _model(layer: Any, with_state: bool, with_lengths: bool) -> Any:
    kind, H = type(layer).__name__, layer.hidden_size
    constants = {
        "W": _in_onnx_order(layer, "weight_ih")[None],
        "R": _in_onnx_order(layer, "weight_hh")[None],
        "b": np.concatenate([_in_onnx_order(layer, "bias_ih"), _in_onnx_order(layer, "bias_hh")])[None],
    }
    if "weight_ci_l0" in layer.params:
        constants["p"] = _peepholes(layer)[None]
    initial, last = initial_names(layer), [f"{name}n" for name in layer._state_names]
    # Inputs have their places; an empty name leaves one out.
    inputs = ["x", "W", "R", "b", "lengths" if with_lengths else ""]
    inputs += initial if with_state else [""] * len(initial)
    inputs += ["p"] if "p" in constants else []
    node = helper.make_node(kind, inputs, ["y", *last], hidden_size=H, **_attributes(layer))
    shapes: dict[str, list[Any]] = {"x": ["T", "B", layer.input_size], "y": ["T", 1, "B", H], "lengths": ["B"]}
    shapes |= {name: [1, "B", H] for name in (*initial, *last)}

    def values(names: list[str]) -> list[Any]:
        types = {"lengths": TensorProto.INT32}
        return [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shapes[name]) for name in names]

    graph = helper.make_graph(
        [node],
        "layer",
        values([name for name in inputs if name and name not in constants]),
        values(["y", *last]),
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _attributes(layer: Any) -> dict[str, Any]:
    if isinstance(layer, rf.RNN):
        return {"activations": [ACTIVATIONS[layer.nonlinearity]]}
    if isinstance(layer, rf.GRU):
        return {"linear_before_reset": int(layer.reset_after)}
    return {"input_forget": 1} if layer.coupled else {}


def _in_onnx_order(layer: Any, name: str) -> Array:
    """A parameter's blocks of H rows in the order of the operator: i o f c; z r h.

    Coupled gates are f = 1 - i here, and no block of f; the operator wants one and doesn't read it.
    """
    value = layer.params[f"{name}_l0"]
    gates = np.split(value, len(value) // layer.hidden_size)
    if isinstance(layer, rf.LSTM):
        i, *f, g, o = gates
        gates = [i, o, *(f or [np.zeros_like(i)]), g]
    elif isinstance(layer, rf.GRU):
        r, z, n = gates
        gates = [z, r, n]
    return np.concatenate(gates)


def _peepholes(layer: Any) -> Array:
    """In the operator's order i o f."""
    i, o = layer.params["weight_ci_l0"], layer.params["weight_co_l0"]
    return np.concatenate([i, o, layer.params.get("weight_cf_l0", np.zeros_like(i))])
