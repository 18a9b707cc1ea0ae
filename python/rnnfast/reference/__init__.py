"""What the library computes, written to be read: every cell forward and backward in plain NumPy.

One step of one sequence at a time, on vectors, exactly as the papers print the equations; the kernels are tested
against this package. Read it from the bottom to the top:

1. `shared`: what a cell is, and the two products that most of them begin with; `layer_norm` is an option of these.
2. **The cells**, one file for each family: `rnn`, `lstm`, `gru`, `ind_rnn`, `minimal`, `sru`, `slstm`. A cell is two
   small functions, a step and its adjoint (the step's derivatives, multiplied from the left by the gradient of the
   loss). `cells` has `CELLS`, which names them.
3. `options`: what may stand between a cell and time, whatever the cell: a projection of the output, zoneout.
4. `sequence`, **the scan**: carries the state of one sequence through time, in either direction, and back again.
5. `stack`, **the stack**: layers × directions of scans over a batch, with the names and layouts of `rnnfast.LSTM` and
   its kin. `forward` leaves a `Tape` (`tape`), which `backward` reads.

Beside them stands `reservoir`, of an echo state network: a step, the readout and the scan of both.

Letters: T steps, B batch, I input, H hidden, G gates, P features of a projected h; x input, h hidden state, c cell
state, y output, W = `weight_ih`, R = `weight_hh`, b = `bias_ih`, b' = `bias_hh`; ∘ multiplies element by element, σ is
the logistic function. The gates' rows lie one below the other in W (G·H, I), R (G·H, H), b and b' (G·H,). An array `dv`
is the gradient of the loss with respect to `v`.

Everything runs in float64 unless `forward` is told otherwise.
"""

from __future__ import annotations

from rnnfast.reference.cells import CELLS
from rnnfast.reference.gru import (
    gru_reset_before_step,
    gru_reset_before_step_backward,
    gru_step,
    gru_step_backward,
)
from rnnfast.reference.ind_rnn import ind_rnn_step, ind_rnn_step_backward
from rnnfast.reference.layer_norm import normalize, normalize_backward
from rnnfast.reference.lstm import lstm_step, lstm_step_backward
from rnnfast.reference.minimal import (
    min_gru_step,
    min_gru_step_backward,
    min_lstm_step,
    min_lstm_step_backward,
)
from rnnfast.reference.options import project_output, project_output_backward, zoneout, zoneout_backward
from rnnfast.reference.reservoir import Reservoir, reservoir_scan, reservoir_step
from rnnfast.reference.rnn import rnn_step, rnn_step_backward
from rnnfast.reference.sequence import Step, scan, scan_backward
from rnnfast.reference.shared import (
    ACTIVATIONS,
    Activation,
    Adjoint,
    Array,
    Cell,
    Params,
    Vectors,
    product,
    project,
    project_backward,
    project_input,
    project_input_backward,
    project_state,
    project_state_backward,
    sigmoid,
)
from rnnfast.reference.slstm import slstm_step, slstm_step_backward
from rnnfast.reference.sru import sru_step, sru_step_backward
from rnnfast.reference.stack import backward, forward
from rnnfast.reference.tape import Tape

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "Activation",
    "Adjoint",
    "Array",
    "Cell",
    "Params",
    "Reservoir",
    "Step",
    "Tape",
    "Vectors",
    "backward",
    "forward",
    "gru_reset_before_step",
    "gru_reset_before_step_backward",
    "gru_step",
    "gru_step_backward",
    "ind_rnn_step",
    "ind_rnn_step_backward",
    "lstm_step",
    "lstm_step_backward",
    "min_gru_step",
    "min_gru_step_backward",
    "min_lstm_step",
    "min_lstm_step_backward",
    "normalize",
    "normalize_backward",
    "product",
    "project",
    "project_backward",
    "project_input",
    "project_input_backward",
    "project_output",
    "project_output_backward",
    "project_state",
    "project_state_backward",
    "reservoir_scan",
    "reservoir_step",
    "rnn_step",
    "rnn_step_backward",
    "scan",
    "scan_backward",
    "sigmoid",
    "slstm_step",
    "slstm_step_backward",
    "sru_step",
    "sru_step_backward",
    "zoneout",
    "zoneout_backward",
]
