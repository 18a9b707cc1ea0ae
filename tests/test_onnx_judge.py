"""Layers against ONNX Runtime, whose LSTM and GRU have options that PyTorch's don't: peepholes, coupled gates, a reset
before the product. Inference only: outputs and last states. The models are those of the benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from support import largest, worst

pytest.importorskip("onnx", reason="ONNX isn't here to describe the models")
pytest.importorskip("onnxruntime", reason="ONNX Runtime isn't here to judge")
pytest.importorskip("tqdm", reason="the benchmarks, which make the models, need it")
from rnnfast.benchmarks import peer_onnx
from rnnfast.benchmarks.contenders import UnavailableError

T, B, INPUTS, HIDDEN = 9, 5, 7, 19

LAYERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lstm": (rf.LSTM, {}),
    "lstm_peephole": (rf.LSTM, {"peephole": True}),
    "lstm_coupled": (rf.LSTM, {"coupled": True}),
    "lstm_coupled_peephole": (rf.LSTM, {"coupled": True, "peephole": True}),
    "gru": (rf.GRU, {}),
    "gru_reset_before": (rf.GRU, {"reset_after": False}),
    "rnn_tanh": (rf.RNN, {}),
    "rnn_relu": (rf.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (rf.RNN, {"nonlinearity": "sigmoid"}),
}


@pytest.mark.parametrize("lengths", [None, [9, 1, 4, 9, 6]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_last_states_are_those_of_onnx_runtime(name: str, lengths: list[int] | None) -> None:
    make, options = LAYERS[name]
    layer = make(INPUTS, HIDDEN, seed=0, **options)
    random = np.random.default_rng(1)
    x = random.standard_normal((T, B, INPUTS), np.float32)
    states = [random.standard_normal((1, B, HIDDEN), np.float32) for _ in range(2 if make is rf.LSTM else 1)]
    y, last = layer(x, tuple(states) if make is rf.LSTM else states[0], lengths=lengths)
    session = peer_onnx.make_session(layer, 1, with_state=True, with_lengths=True)
    fed = dict(zip(peer_onnx.initial_names(layer), states, strict=True))
    fed |= {"x": x, "lengths": np.array(lengths or [T] * B, np.int32)}
    expected, *expected_last = session.run(None, fed)
    last = last if make is rf.LSTM else (last,)
    for ours, theirs in zip((y, *last), (expected[:, 0], *expected_last), strict=True):
        assert worst(ours, theirs) <= 64 * np.finfo(np.float32).eps * max(1.0, largest(theirs))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (rf.SRU(3, 5), "has no SRU"),
        (rf.LSTM(3, 5, proj_size=2, layer_norm=True), "has no LSTM with layer_norm, proj_size"),
        (rf.LSTM(3, 5, forget_gate=False), "has no LSTM with forget_gate"),
        (rf.RNN(3, 5, bias=False), "has no RNN with bias"),
        (rf.GRU(3, 5, num_layers=2), "has no GRU with num_layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_operator_has_not_is_named(layer: Any, reason: str) -> None:
    with pytest.raises(UnavailableError, match=reason):
        peer_onnx.make_session(layer, 1)
