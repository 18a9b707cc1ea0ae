"""The states of an echo state network, ours and reservoirpy's, of the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import rnnfast as rf

from .contenders import Array, Contender, Match
from .peers import installed
from .results import Work
from .shapes import Shape

# One sequence after the other, as reservoirpy takes them too; the last is a batch.
SHAPES = {
    Shape("reservoir 100", 2000, 1, 1, 100): 0.1,
    Shape("reservoir 500", 1000, 1, 1, 500): 0.1,
    Shape("reservoir 1000", 500, 1, 1, 1000): 0.1,
    Shape("reservoir 1000 sparse", 500, 1, 1, 1000): 0.01,
    Shape("reservoir 1000 batch", 50, 16, 1, 1000): 0.1,
}


def match(shape: Shape, density: float) -> Match:
    """On one thread, which is what reservoirpy's products use."""
    network = rf.EchoState(shape.I, shape.H, density=density, leak=0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((shape.T, shape.B, shape.I), np.float32)
    products = network.buffers["weight_hh_data"].size + shape.H * shape.I
    work = Work("echo state", "EchoState", shape, 1, 2.0 * shape.T * shape.B * products)
    peers = {"reservoirpy": lambda: _reservoirpy(network, x)} if "reservoirpy" in installed() else {}
    return Match(work, _ours(network, x), peers)


def _ours(network: rf.EchoState, x: Array) -> Contender:
    def harvest() -> Any:
        rf.set_num_threads(1)
        return network.harvest(x)[0]

    return Contender(harvest, lambda states: {"states": states})


def _reservoirpy(network: rf.EchoState, x: Array) -> Contender:
    """In float64: its state is of that type whatever the weights are."""
    from reservoirpy.nodes import Reservoir
    from scipy.sparse import csr_array

    b = network.buffers
    shape = (network.hidden_size, network.hidden_size)
    matrix = csr_array((b["weight_hh_data"].astype(np.float64), b["weight_hh_indices"], b["weight_hh_indptr"]), shape)
    node = Reservoir(
        W=matrix, Win=b["weight_ih"].astype(np.float64), bias=b["bias"].astype(np.float64), lr=network.leak
    )
    sequences = np.ascontiguousarray(x.swapaxes(0, 1), np.float64)  # (B, T, I)
    node.initialize(sequences[0])

    def run() -> Any:
        states = []
        for sequence in sequences:
            node.reset()
            states.append(node.run(sequence))
        return states

    return Contender(run, lambda states: {"states": np.stack(states, axis=1)})
