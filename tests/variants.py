"""Cells with the options that not every cell takes, as data: what may stand between a cell and its plain equations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from support import CELLS

Variant = tuple[str, dict[str, Any]]  # a cell, and the options of its layer

LSTMS = tuple(cell for cell in CELLS if cell.startswith("lstm"))
NORMED = tuple(cell for cell in CELLS if cell.startswith(("rnn", "lstm", "gru")))
SRUS = tuple(cell for cell in CELLS if cell.startswith("sru"))
ZONED = tuple(cell for cell in CELLS if cell != "slstm")
RECURRENT = (*NORMED, "slstm")  # h goes through a product

# All that a cell takes at once, but a projection.
EVERYTHING: dict[str, dict[str, Any]] = {
    **{cell: {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4, "grad_clip": 0.5} for cell in NORMED},
    **{cell: {"layer_norm": True, "zoneout": (0.2, 0.4), "recurrent_dropout": 0.4, "grad_clip": 0.5} for cell in LSTMS},
    "slstm": {"num_heads": 3, "recurrent_dropout": 0.4, "grad_clip": 0.5},
}
PROJECTED = {"proj_size": 7, **EVERYTHING["lstm"]}


def _named(name: str, cells: Iterable[str], **options: Any) -> dict[str, Variant]:
    return {f"{cell}-{name}": (cell, options) for cell in cells}


# Every option of every cell that takes it. The hidden size is a multiple of 6.
VARIANTS: dict[str, Variant] = {
    **_named("projection", LSTMS, proj_size=7),
    **_named("layer_norm", NORMED, layer_norm=True),
    **_named("zoneout", ZONED, zoneout=0.3),
    **_named("zoneout_of_each", (*LSTMS, *SRUS), zoneout=(0.2, 0.5)),
    **_named("zoneout_of_h", ["lstm"], zoneout=(0.5, 0.0)),
    **_named("projection_and_zoneout", LSTMS, proj_size=7, zoneout=(0.2, 0.5)),
    **_named("recurrent_dropout", RECURRENT, recurrent_dropout=0.4),
    **_named("grad_clip", CELLS, grad_clip=0.3),
    **_named("2_heads", ["slstm"], num_heads=2),
    **_named("3_heads", ["slstm"], num_heads=3),
    **{f"{cell}-everything": (cell, options) for cell, options in EVERYTHING.items()},
    **_named("everything_projected", ["lstm", "lstm_coupled_peephole"], **PROJECTED),
}

# One of each kind, for what costs more: every way through the driver.
WAYS: dict[str, Variant] = {
    name: VARIANTS[name]
    for name in (
        "lstm-projection",
        "lstm_peephole-projection",
        "rnn_tanh-layer_norm",
        "lstm-layer_norm",
        "gru-layer_norm",
        "gru_reset_before-layer_norm",
        "rnn_relu-zoneout",
        "lstm_peephole-zoneout_of_each",
        "lstm_peephole-projection_and_zoneout",
        "gru-zoneout",
        "gru_reset_before-zoneout",
        "ind_rnn_tanh-zoneout",
        "sru-zoneout_of_each",
        "lstm-recurrent_dropout",
        "gru_reset_before-recurrent_dropout",
        "slstm-2_heads",
        "slstm-3_heads",
        "lstm_peephole-everything",
        "gru-everything",
        "gru_reset_before-everything",
        "slstm-everything",
        "lstm-everything_projected",
    )
}

# The same in bfloat16, which rounds: no reference but itself tells its last bits.
_ROUNDED: dict[str, Variant] = {
    **_named("plain", CELLS),
    **{
        name: WAYS[name]
        for name in (
            "lstm-projection",
            "gru-layer_norm",
            "slstm-2_heads",
            "slstm-3_heads",
            "lstm_peephole-everything",
            "gru_reset_before-everything",
            "slstm-everything",
            "lstm-everything_projected",
        )
    },
}
IN_BFLOAT16: dict[str, Variant] = {
    f"{name}-bfloat16": (cell, {**options, "compute_dtype": "bfloat16"}) for name, (cell, options) in _ROUNDED.items()
}
