"""What is measured under which name: a recurrent layer with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import rnnfast as rf
from rnnfast import layers
from rnnfast.recurrent import Recurrent

USUAL_CELLS = ("LSTM", "GRU", "RNN")
BFLOAT16_CELLS = ("LSTM", "GRU")

ZONEOUT, RECURRENT_DROPOUT = 0.1, 0.25  # as the papers have them


@dataclass(frozen=True)
class Variant:
    """A class of rnnfast and its options; one that depends on H is a function of it. H is a multiple of `divisor`."""

    layer: str
    options: Mapping[str, Any | Callable[[int], Any]] = field(default_factory=dict)
    divisor: int = 1

    def make(self, inputs: int, hidden: int, **more: Any) -> Recurrent:
        options = {name: value(hidden) if callable(value) else value for name, value in self.options.items()}
        layer: Recurrent = getattr(rf, self.layer)(inputs, hidden, seed=0, **options, **more)
        return layer


# The usual ones first. A layer that isn't named here is measured without options.
VARIANTS: dict[str, Variant] = {
    **{name: Variant(name) for name in USUAL_CELLS},
    "LSTM layer_norm": Variant("LSTM", {"layer_norm": True}),
    "LSTM peephole": Variant("LSTM", {"peephole": True}),
    "LSTM coupled": Variant("LSTM", {"coupled": True}),
    "LSTM no forget gate": Variant("LSTM", {"forget_gate": False}),
    "LSTM projection": Variant("LSTM", {"proj_size": lambda H: max(1, H // 2)}),
    "LSTM bidirectional": Variant("LSTM", {"bidirectional": True}),
    "LSTM 2 layers": Variant("LSTM", {"num_layers": 2}),
    "LSTM zoneout": Variant("LSTM", {"zoneout": ZONEOUT}),
    "LSTM recurrent_dropout": Variant("LSTM", {"recurrent_dropout": RECURRENT_DROPOUT}),
    "GRU reset before": Variant("GRU", {"reset_after": False}),
    "GRU layer_norm": Variant("GRU", {"layer_norm": True}),
    "RNN relu": Variant("RNN", {"nonlinearity": "relu"}),
    "RNN layer_norm": Variant("RNN", {"layer_norm": True}),
    "IndRNN": Variant("IndRNN"),
    "MinGRU": Variant("MinGRU"),
    "MinLSTM": Variant("MinLSTM"),
    "SRU": Variant("SRU"),
    "SLSTM": Variant("SLSTM"),
    "SLSTM 4 heads": Variant("SLSTM", {"num_heads": 4}, divisor=4),
}
VARIANTS |= {name: Variant(name) for name in layers.__all__ if name not in {v.layer for v in VARIANTS.values()}}
FAMILY = tuple(name for name in VARIANTS if name not in USUAL_CELLS)


def variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"cell: expected one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]
