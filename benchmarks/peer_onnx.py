"""ONNX Runtime at the same work: a model of one recurrent operator; inference only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from .contenders import Array, Contender, Kind, Problem, UnavailableError

GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}  # our gates in ONNX's order: i o f c, z r h
STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}
OPSET, IR_VERSION = 17, 8


def session(problem: Problem, kind: Kind) -> Contender:
    if kind == "training":
        raise UnavailableError("does inference only")
    running = make_session(problem)
    return Contender(lambda: running.run(["y"], {"x": problem.x})[0], lambda y: {"y": y[:, 0]})


def make_session(problem: Problem, *, with_state: bool = False) -> Any:
    """A session with the input x and the outputs y and the last states; with_state: also with initial states."""
    if problem.cell not in GATES:
        raise UnavailableError(f"has no {problem.cell}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
    options.log_severity_level = 3
    model = _model(problem, with_state).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model(problem: Problem, with_state: bool) -> Any:
    cell, weights, H = problem.cell, problem.weights, problem.shape.H
    states = STATES[cell]
    constants = {
        "W": _reordered(cell, weights["weight_ih_l0"])[None],
        "R": _reordered(cell, weights["weight_hh_l0"])[None],
        "b": np.concatenate([_reordered(cell, weights[name]) for name in ("bias_ih_l0", "bias_hh_l0")])[None],
    }
    initial = [f"{name}0" for name in states] if with_state else []
    extra = {"linear_before_reset": 1} if cell == "GRU" else {}
    node = helper.make_node(
        cell,
        ["x", "W", "R", "b", *(["", *initial] if initial else [])],
        ["y", *(f"{name}n" for name in states)],
        hidden_size=H,
        **extra,
    )
    kinds = {"x": ["T", "B", problem.shape.I], "y": ["T", 1, "B", H]}
    state_kinds = {name: [1, "B", H] for name in [*initial, *(f"{name}n" for name in states)]}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (kinds | state_kinds).items()
    }
    graph = helper.make_graph(
        [node],
        "layer",
        [values[name] for name in ("x", *initial)],
        [values[name] for name in ("y", *(f"{name}n" for name in states))],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _reordered(cell: str, array: Array) -> Array:
    """Rows (G·H, …) in ONNX's order of gates."""
    gates = np.split(array, len(GATES[cell]))
    return np.concatenate([gates[gate] for gate in GATES[cell]])
