"""The registry: the names of the cells, in the kernels, the tests and here."""

from __future__ import annotations

from rnnfast.reference import gru, ind_rnn, lstm, minimal, rnn
from rnnfast.reference.shared import Cell

CELLS: dict[str, Cell] = {
    **rnn.CELLS,
    **lstm.CELLS,
    "gru": gru.CELLS["gru"],
    **ind_rnn.CELLS,
    **minimal.CELLS,
}
