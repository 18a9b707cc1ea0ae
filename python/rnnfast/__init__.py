"""Fast recurrent neural networks on CPUs: NumPy in, NumPy out.

>>> import numpy as np
>>> import rnnfast as rf
>>> model = rf.Sequential(rf.LSTM(3, 16, seed=0), rf.Linear(16, 1, seed=1))
>>> opt = rf.Adam(model, lr=1e-2)
>>> x = np.random.default_rng(0).random((20, 8, 3), np.float32)
>>> target = np.cumsum(x[..., :1], axis=0)
>>> for _ in range(3):
...     model.zero_grad()
...     y, state, tape = model.forward(x)
...     loss, dy = rf.mse(y, target)
...     _ = model.backward(tape, dy, need_dx=False)
...     norm = opt.step(clip_norm=1.0)
"""

from __future__ import annotations

from rnnfast import reference
from rnnfast._kernels import isa
from rnnfast.echo_state import EchoState
from rnnfast.ensemble import Ensemble
from rnnfast.flow import GradientFlow, gradient_flow, vanishing_penalty
from rnnfast.heads import SoftmaxHead
from rnnfast.init import initialize
from rnnfast.layers import GRU, LSTM, RNN, SLSTM, SRU, IndRNN, MinGRU, MinLSTM
from rnnfast.losses import mse, softmax_cross_entropy
from rnnfast.module import Module, Tape
from rnnfast.modules import Dropout, Embedding, Last, Linear, Sequential
from rnnfast.optim import SGD, Adam
from rnnfast.saving import load, save
from rnnfast.seq2seq import Hypothesis, Seq2Seq
from rnnfast.streaming import Stream
from rnnfast.threads import get_num_threads, set_num_threads, show_config
from rnnfast.training import Window, truncated_bptt

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "SLSTM",
    "SRU",
    "Adam",
    "Dropout",
    "EchoState",
    "Embedding",
    "Ensemble",
    "GradientFlow",
    "Hypothesis",
    "IndRNN",
    "Last",
    "Linear",
    "MinGRU",
    "MinLSTM",
    "Module",
    "Seq2Seq",
    "Sequential",
    "SoftmaxHead",
    "Stream",
    "Tape",
    "Window",
    "__version__",
    "get_num_threads",
    "gradient_flow",
    "initialize",
    "isa",
    "load",
    "mse",
    "reference",
    "save",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "truncated_bptt",
    "vanishing_penalty",
]
