"""A whole training step of a character-level language model, ours and PyTorch's: what a user waits for.

Embedding, recurrent layers, linear, softmax cross-entropy (in ours as one: `SoftmaxHead`); state carried from window to
window; the gradient's norm clipped at 1; Adam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import rnnfast as rf

from .contenders import Array, Contender, Match
from .results import Work
from .shapes import Shape

LEARNING_RATE, CLIP_NORM = 1e-3, 1.0
TOLERANCE = 1e-3  # of the loss and the norm after some steps: the steps multiply what rounding makes different


@dataclass(frozen=True)
class Sizes:
    """Symbols, numbers for a symbol, units and layers, steps of a window and rows of a batch."""

    symbols: int = 96
    embedding: int = 64
    hidden: int = 256
    layers: int = 2
    T: int = 64
    B: int = 32

    @property
    def shape(self) -> Shape:
        return Shape("language model", self.T, self.B, self.embedding, self.hidden)


def match(cell: str, threads: int, sizes: Sizes, with_torch: bool) -> Match:
    rng = np.random.default_rng(0)
    tokens = rng.integers(sizes.symbols, size=(sizes.T + 1, sizes.B))
    network = rf.Sequential(
        rf.Embedding(sizes.symbols, sizes.embedding, seed=0),
        getattr(rf, cell)(sizes.embedding, sizes.hidden, sizes.layers, seed=1),
        rf.SoftmaxHead(sizes.hidden, sizes.symbols, seed=2),
    )
    weights = network.state_dict()
    products = sum(value.size for name, value in weights.items() if value.ndim == 2 and not name.startswith("0."))
    work = Work("language model", cell, sizes.shape, threads, 6.0 * sizes.T * sizes.B * products)
    peers = {"PyTorch": lambda: _torch(cell, threads, sizes, weights, tokens)} if with_torch else {}
    return Match(work, _ours(network, threads, tokens), peers)


def _ours(network: rf.Sequential, threads: int, tokens: Array) -> Contender:
    optimizer, head = rf.Adam(network, lr=LEARNING_RATE), network[2]
    assert isinstance(head, rf.SoftmaxHead)
    state: Any = None

    def step() -> Any:
        nonlocal state
        rf.set_num_threads(threads)
        network.zero_grad()
        h, state, tape = network.forward(tokens[:-1], state)
        loss, dh = head.loss_and_grad(h, tokens[1:])
        network.backward(tape, dh, need_dx=False)
        return loss, optimizer.step(clip_norm=CLIP_NORM)

    return Contender(step, _answer)


def _torch(cell: str, threads: int, sizes: Sizes, weights: dict[str, Array], tokens: Array) -> Contender:
    import torch

    torch.set_num_threads(threads)
    layers = torch.nn.ModuleList(
        [
            torch.nn.Embedding(sizes.symbols, sizes.embedding),
            getattr(torch.nn, cell)(sizes.embedding, sizes.hidden, sizes.layers),
            torch.nn.Linear(sizes.hidden, sizes.symbols),
        ]
    )
    layers.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    embedding, recurrent, linear = layers
    optimizer = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    inputs, targets = torch.from_numpy(tokens[:-1]), torch.from_numpy(tokens[1:]).flatten()
    state: Any = None

    def step() -> Any:
        nonlocal state
        optimizer.zero_grad()
        y, state = recurrent(embedding(inputs), state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = torch.nn.functional.cross_entropy(linear(y).flatten(0, 1), targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(layers.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item(), norm.item()

    return Contender(step, _answer, TOLERANCE)


def _answer(outcome: tuple[float, float]) -> dict[str, Array]:
    loss, norm = outcome
    return {"loss": np.array(loss), "norm": np.array(norm)}
