"""Forward and training speed of the recurrent layers, as a share of the arithmetic peak measured in the same run.

    python benchmarks/speed.py                               # every shape, cell and thread count
    python benchmarks/speed.py --shapes speech --cells LSTM GRU

Training is forward plus backward with dx and all gradients. Beside each share stands PyTorch's time over ours where
PyTorch is installed; its answers are compared with ours before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import Sample, take_turns

import rnnfast as rf
from rnnfast import _kernels

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Shape:
    name: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int

    def operations(self, cell: str) -> float:
        """Floating-point operations of the products of one forward pass; training does three times as many."""
        return 2.0 * self.T * self.B * GATES[cell] * self.H * (self.I + self.H)


def load_shapes() -> dict[str, Shape]:
    data = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text())
    return {name: Shape(name, *entry["TBIH"]) for name, entry in data.items()}


def our_calls(cell: str, shape: Shape, x: np.ndarray, dy: np.ndarray) -> tuple[rf.Module, Calls]:
    layer = getattr(rf, cell)(shape.I, shape.H, seed=0)

    def train() -> object:
        layer.zero_grad()
        _, _, tape = layer.forward(x)
        return layer.backward(tape, dy)[0]

    return layer, {"forward": lambda: layer(x)[0], "training": train}


def torch_calls(cell: str, shape: Shape, x: np.ndarray, dy: np.ndarray, layer: rf.Module) -> Calls:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(rf.get_num_threads())
    peer = getattr(torch.nn, cell)(shape.I, shape.H)
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    tx, tdy = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def forward() -> object:
        with torch.no_grad():
            return peer(tx)[0].numpy()

    def train() -> object:
        peer.zero_grad()
        tx.grad = None
        peer(tx)[0].backward(tdy)
        assert tx.grad is not None
        return tx.grad.numpy()

    return {"forward": forward, "training": train}


def compare(name: str, ours: object, theirs: object) -> None:
    a, b = np.asarray(ours), np.asarray(theirs)
    error = float(np.abs(a - b).max() / np.abs(b).max())
    if not error < 1e-4:
        raise SystemExit(f"{name}: our answer and PyTorch's differ by {error:.1e} of the largest value")


def measure(cell: str, shape: Shape, threads: int, rounds: int, seconds: float) -> dict[str, Sample]:
    rf.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
    dy = rng.standard_normal((shape.T, shape.B, shape.H), dtype=np.float32)
    layer, ours = our_calls(cell, shape, x, dy)
    theirs = torch_calls(cell, shape, x, dy, layer)
    for name, call in theirs.items():
        compare(f"{cell} {shape.name} {name}", ours[name](), call())
    calls = {name: call for name, call in ours.items()} | {f"torch {name}": call for name, call in theirs.items()}
    peaks: list[float] = []

    def peak() -> None:
        peaks.append(_kernels.fma_peak(False, seconds / 4, threads))

    samples = take_turns(calls | {"peak": peak}, rounds, seconds)
    return samples | {"peak": Sample(tuple(1.0 / p for p in peaks))}


def row(cell: str, shape: Shape, threads: int, samples: dict[str, Sample]) -> str:
    peak = 1.0 / samples["peak"].median
    cells = [shape.name, f"{shape.T}, {shape.B}, {shape.I}, {shape.H}", cell, str(threads)]
    for name, passes in (("forward", 1), ("training", 3)):
        rate = passes * shape.operations(cell) / samples[name].median
        cells.append(f"{100 * rate / peak:.0f} %")
        peer = samples.get(f"torch {name}")
        cells.append(f"{peer.median / samples[name].median:.2f}" if peer else "–")
    return "| " + " | ".join(cells) + f" | {100 * samples['training'].spread:.0f} % |"


def main() -> None:
    shapes = load_shapes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", choices=shapes, default=list(shapes), metavar="NAME", help="default: all"
    )
    parser.add_argument("--cells", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default 9)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one turn (default 0.2)")
    options = parser.parse_args()
    print(f"rnnfast {rf.__version__}, ISA {rf.isa}, float32. Ratio: PyTorch's time over ours.\n")
    print("| shape | T, B, I, H | cell | threads | forward, of peak | ratio | training, of peak | ratio | spread |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.shapes:
        for cell in options.cells:
            for threads in dict.fromkeys(options.threads):
                samples = measure(cell, shapes[name], threads, options.rounds, options.seconds)
                print(row(cell, shapes[name], threads, samples), flush=True)


if __name__ == "__main__":
    main()
