from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# One of the two types in all arrays of a call. Sequences are (T, B, features) with a contiguous last axis, tokens and
# resets (T, B) of any strides, everything else is C-contiguous. Outputs are allocated by the caller.
_T = TypeVar("_T", np.float32, np.float64)

# Probabilities, one a state; whether masks are drawn; their key: seed, call, first stream.
_Zoneout = tuple[Sequence[float], bool, int, int, int]

isa: str
isas_available: tuple[str, ...]  # built and executable here, best first

def cells() -> dict[str, dict[str, Any]]: ...
def openmp() -> bool: ...
def build_info() -> dict[str, str]: ...
def plan(
    cell: str,
    steps: int,
    batch: int,
    input: int,
    hidden: int,
    output: int,
    norms: bool,
    double_precision: bool,
    num_threads: int,
    of_layers: bool,
) -> dict[str, Any]: ...
def side_by_side(
    cell: str,
    steps: int,
    batch: int,
    input: int,
    hidden: int,
    output: int,
    norms: bool,
    double_precision: bool,
    layers: bool,
    count: int,
    num_threads: int,
) -> bool: ...

class _Calls(Protocol):
    """Forward or backward calls that are made with it do nothing but check, until it runs all of them side by side."""

    def run(self, num_threads: int) -> None: ...

def make_calls(layers: bool, count: int) -> _Calls: ...

class _Kept(Protocol):
    """What forward and backward leave in it, packed weights and sums that go on, serves those that follow with the same
    arrays of weights, which have not changed."""

def make_kept() -> _Kept: ...
def saved_size(cell: str, hidden: int, projected: int, zoneout: bool, norms: bool) -> int: ...
def forward(
    cell: str,
    x: NDArray[_T],
    weights: dict[str, Any],
    initial: Sequence[NDArray[_T]] | None,
    y: NDArray[_T],
    states: Sequence[NDArray[_T]],
    saved: NDArray[_T] | None,
    final: Sequence[NDArray[_T]],
    lengths: NDArray[np.int64] | None,
    resets: NDArray[np.bool_] | None,
    reverse: bool,
    num_threads: int,
    begin: int = ...,
    heads: int = ...,
    zoneout: _Zoneout | None = ...,
    operand_scale: NDArray[_T] | None = ...,
    bfloat16: bool = ...,
    beside: _Calls | None = ...,
    kept: _Kept | None = ...,
    known: NDArray[_T] | None = ...,
) -> None: ...
def backward(
    cell: str,
    x: NDArray[_T],
    weights: dict[str, Any],
    initial: Sequence[NDArray[_T]] | None,
    y: NDArray[_T],
    states: Sequence[NDArray[_T]],
    saved: NDArray[_T] | None,
    dy: NDArray[_T] | None,
    dfinal: Sequence[NDArray[_T]] | None,
    dx: NDArray[_T] | None,
    accumulate_dx: bool,
    dinitial: Sequence[NDArray[_T]],
    gradients: dict[str, Any],
    lengths: NDArray[np.int64] | None,
    resets: NDArray[np.bool_] | None,
    reverse: bool,
    num_threads: int,
    begin: int = ...,
    resume: bool = ...,
    goes_on: bool = ...,
    clip: float = ...,
    over_time: Sequence[NDArray[_T]] | None = ...,
    heads: int = ...,
    zoneout: _Zoneout | None = ...,
    operand_scale: NDArray[_T] | None = ...,
    bfloat16: bool = ...,
    beside: _Calls | None = ...,
    kept: _Kept | None = ...,
) -> None: ...

class _Stream(Protocol[_T]):
    def step(self, x: Any) -> NDArray[_T]: ...
    def get_state(self, k: int) -> NDArray[_T]: ...
    def set_state(self, k: int, value: NDArray[_T]) -> None: ...

def make_stream(
    cells: list[str],
    weights: list[dict[str, Any]],
    batch_size: int,
    num_threads: int,
    heads: int,
    zoneout: _Zoneout | None,
    bfloat16: bool,
    like: NDArray[_T],
) -> _Stream[_T]: ...

class _Reservoir(Generic[_T]):
    def product(self, x: NDArray[_T], y: NDArray[_T]) -> None: ...
    def scan(
        self,
        x: NDArray[_T] | None,
        teacher: NDArray[_T] | None,
        readout: tuple[NDArray[_T], NDArray[_T]] | None,
        initial: NDArray[_T] | None,
        initial_output: NDArray[_T] | None,
        states: NDArray[_T] | None,
        y: NDArray[_T] | None,
        final: NDArray[_T],
        final_output: NDArray[_T] | None,
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.bool_] | None,
        num_threads: int,
    ) -> None: ...

def make_reservoir(
    weight_ih: NDArray[_T],
    weight_fb: NDArray[_T] | None,
    bias: NDArray[_T],
    data: NDArray[_T],
    indices: NDArray[np.int64],
    indptr: NDArray[np.int64],
    leak: float,
) -> _Reservoir[_T]: ...
def linear_forward(
    x: NDArray[_T],
    weight: NDArray[_T],
    bias: NDArray[_T] | None,
    y: NDArray[_T],
    lengths: NDArray[np.int64] | None,
    num_threads: int,
) -> None: ...
def linear_backward(
    x: NDArray[_T],
    weight: NDArray[_T],
    dy: NDArray[_T],
    dx: NDArray[_T] | None,
    dweight: NDArray[_T],
    dbias: NDArray[_T] | None,
    lengths: NDArray[np.int64] | None,
    num_threads: int,
) -> None: ...
def embedding_forward(
    tokens: NDArray[np.int64],
    weight: NDArray[_T],
    y: NDArray[_T],
    lengths: NDArray[np.int64] | None,
    num_threads: int,
) -> None: ...
def embedding_backward(
    tokens: NDArray[np.int64],
    dy: NDArray[_T],
    dweight: NDArray[_T],
    lengths: NDArray[np.int64] | None,
    num_threads: int,
) -> None: ...
def dropout(
    x: NDArray[_T],
    y: NDArray[_T],
    probability: float,
    seed: int,
    call: int,
    layer: int,
    lengths: NDArray[np.int64] | None,
    num_threads: int,
    begin: int | None = ...,
) -> None: ...
def softmax_cross_entropy(
    logits: NDArray[_T],
    targets: NDArray[np.int64],
    weights: NDArray[_T] | None,
    dlogits: NDArray[_T],
    num_threads: int,
) -> float: ...
def softmax_head(
    x: NDArray[_T],
    weight: NDArray[_T],
    bias: NDArray[_T] | None,
    targets: NDArray[np.int64],
    weights: NDArray[_T] | None,
    batch_first: bool,
    dx: NDArray[_T] | None,
    dweight: NDArray[_T] | None,
    dbias: NDArray[_T] | None,
    num_threads: int,
) -> float: ...
def mse(
    y: NDArray[_T],
    target: NDArray[_T],
    weights: NDArray[_T] | None,
    dy: NDArray[_T],
    num_threads: int,
) -> float: ...
def sum_of_squares(values: NDArray[_T], clip_value: float, num_threads: int) -> float: ...
def set_main_thread(ident: int) -> None: ...
def sgd_step(
    params: NDArray[_T],
    grads: NDArray[_T],
    velocity: NDArray[_T] | None,
    lr: float,
    momentum: float,
    scale: float,
    clip_value: float,
    num_threads: int,
) -> None: ...
def adam_step(
    params: NDArray[_T],
    grads: NDArray[_T],
    m: NDArray[_T],
    v: NDArray[_T],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    scale: float,
    clip_value: float,
    num_threads: int,
) -> None: ...
def crowd_of(regions: Sequence[Sequence[int]]) -> list[bool]: ...
def empty_bytes(count: int) -> NDArray[np.uint8]: ...
def fma_peak(double_precision: bool, seconds: float, num_threads: int) -> float: ...
def line_round_trip() -> float: ...
def math(name: str, x: NDArray[_T]) -> NDArray[_T]: ...
def watch_crowd(on: bool) -> bool: ...
