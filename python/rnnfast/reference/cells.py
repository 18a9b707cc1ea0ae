"""The registry: the names of the cells, in the kernels, the tests and here."""

from __future__ import annotations

from rnnfast.reference import gru, ind_rnn, lstm, minimal, rnn, slstm, sru
from rnnfast.reference.shared import Cell

CELLS: dict[str, Cell] = {
    **rnn.CELLS,
    **lstm.CELLS,
    **gru.CELLS,
    **ind_rnn.CELLS,
    **minimal.CELLS,
    **sru.CELLS,
    **slstm.CELLS,
}
