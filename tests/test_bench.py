"""The benchmark suite: its shapes, its targets, its tables; and a run at one tiny shape."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast.cli import main

pytest.importorskip("tqdm")
from rnnfast.benchmarks import contenders, echo_state, language_model, peers, processes, streaming, suite, timing
from rnnfast.benchmarks.bounds import CELL_INSTRUCTIONS, holdings
from rnnfast.benchmarks.contenders import Contender, Match
from rnnfast.benchmarks.limits import LEVEL2, LEVEL3, MEMORY, Bandwidth
from rnnfast.benchmarks.report import markdown, seconds, table
from rnnfast.benchmarks.results import Figure, Footprint, Memory, Results, Topic, Work
from rnnfast.benchmarks.shapes import EXTENTS, Shape, load_shapes, shapes_of
from rnnfast.benchmarks.targets import (
    IN_FLOAT32,
    ONE_THREAD,
    TARGETS,
    Verdict,
    forward_bound,
    judge,
    next_multiple,
    training_bound,
)
from rnnfast.benchmarks.timing import BESIDE_SECONDS, Call, Sample, Turns, take_turns
from rnnfast.benchmarks.variants import FAMILY, VARIANTS

from rnnfast.layers import __all__ as layer_names

TINY = Shape("tiny", 5, 3, 4, 16)
SQUARE = Shape("square", 5, 3, 16, 16)
SOME = Shape("some", 100, 32, 128, 256)
RESERVOIR = Shape("reservoir 30", 9, 2, 3, 30)
BRIEF = Turns(1, 0.0001)
USUAL = ("LSTM", "GRU", "RNN")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = rf.get_num_threads()
    rf.set_num_threads(1)
    yield
    rf.set_num_threads(before)


def sample(*times: float, peak: float = 1e11) -> Sample:
    return Sample(times, (peak,) * len(times), 2 * times[0])


def figure(
    topic: Topic = "training",
    cell: str = "LSTM",
    shape: Shape = SOME,
    *,
    share: float = 0.9,
    threads: int = 1,
    dtype: str = "float32",
    **ratios: float,
) -> Figure:
    """One second a call, at a share of a peak of 100 GF/s, 1 GB of arrays, 10 MB of weights of which a step reads 6;
    ratios by peer, blanks as underscores."""
    work = Work(topic, cell, shape, threads, share * 1e11, 1e9, dtype, 1e7, 6e6)
    return Figure(work, sample(1.0), {name.replace("_", " "): sample(ratio) for name, ratio in ratios.items()})


def results(*figures: Figure, isa: str = "v4", **more: Any) -> Results:
    return Results({"processor": "some"}, isa, figures=list(figures), **more)


# ---- shapes ----------------------------------------------------------------------------------------------------------
def test_every_shape_has_sizes_and_belongs_to_a_run() -> None:
    for name, shape in load_shapes().items():
        assert shape.name == name
        assert min(shape.T, shape.B, shape.I, shape.H) >= 1
        assert shape.run in EXTENTS


def test_each_extent_has_the_shapes_of_the_shorter_ones() -> None:
    quick, default, full = (shapes_of(extent).keys() for extent in EXTENTS)
    assert len(quick) == 1
    assert quick < default < full == load_shapes().keys()


def test_every_recurrent_layer_is_measured_the_usual_ones_first() -> None:
    assert tuple(VARIANTS)[:3] == USUAL
    assert {variant.layer for variant in VARIANTS.values()} == set(layer_names)
    assert tuple(VARIANTS)[3:] == FAMILY


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_a_layer_with_options(name: str) -> None:
    layer = VARIANTS[name].make(3, 8)
    assert (type(layer).__name__, layer.input_size, layer.hidden_size) == (VARIANTS[name].layer, 3, 8)
    for option, value in VARIANTS[name].options.items():
        assert getattr(layer, option) == (value(8) if callable(value) else value)


def test_a_full_run_has_the_family_at_some_shapes_and_with_all_threads() -> None:
    plan = suite.make_plan("full", threads=[1, 2])
    assert {cell for _, cell in plan.layers(1)} == set(USUAL)
    assert {cell for _, cell in plan.layers(2)} == set(VARIANTS)
    shapes = {shape.name: shape for shape, cell in plan.layers(2) if cell == "SRU"}
    assert shapes.keys() < load_shapes().keys()
    assert {shape.I == shape.H for shape in shapes.values()} == {False, True}  # with and without a fourth block


def test_what_is_named_is_measured_everywhere() -> None:
    plan = suite.make_plan("quick", shapes=[TINY, SOME], cells=["SRU", "LSTM"], threads=[1, 2])
    for threads in (1, 2):
        assert [(s.name, cell) for s, cell in plan.layers(threads)] == [
            (shape, cell) for shape in ("tiny", "some") for cell in ("SRU", "LSTM")
        ]


def test_heads_are_left_out_where_they_do_not_fit() -> None:
    plan = suite.make_plan("quick", shapes=[TINY, Shape("odd", 5, 3, 4, 18)], cells=["SLSTM 4 heads"], threads=[1])
    assert [shape.name for shape, _ in plan.layers(1)] == ["tiny"]
    assert list(plan.left_out()) == ["SLSTM 4 heads: only where H is a multiple of 4"]


@pytest.mark.parametrize("cell", USUAL)
def test_operations_count_two_for_each_weight_row_and_step(cell: str) -> None:
    problem = contenders.make_problem(cell, TINY, 1)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    forward = 2 * 5 * 3 * gates * 16 * (4 + 16)
    assert contenders.operations(problem, "forward") == forward
    assert contenders.operations(problem, "training") == 3 * forward


def test_traffic_counts_what_training_keeps() -> None:
    """Arrays of 5 × 3 steps of rows, of 4-byte numbers."""
    steps, H, P = 5 * 3, 16, 8

    def beside(outputs: int, parameters: int) -> int:  # x, y, dy, dx, the parameters and their gradients
        return 4 * (3 * steps * 4 + 3 * steps * outputs + 3 * parameters)

    for cell, outputs, kept in (
        ("LSTM", H, 4 * H + H),  # gates and c
        ("LSTM projection", P, 4 * H + H + H),  # and m
        ("SRU", H, 4 * H + H),  # what the cell saves, and c
        ("RNN", H, 0),
    ):
        problem = contenders.make_problem(cell, TINY, 1)
        parameters = problem.layer.flat_params.size
        assert problem.dy.shape == (5, 3, outputs)
        assert contenders.traffic(problem, "training") == beside(outputs, parameters) + 4 * 2 * steps * kept, cell
        assert contenders.traffic(problem, "forward") == 4 * (steps * (4 + outputs) + parameters)


def test_every_step_reads_all_weights_but_those_of_x() -> None:
    work = contenders.work_of(contenders.make_problem("LSTM projection", TINY, 1), "forward")
    assert work.weights_a_step == 4 * (64 * 8 + 8 * 16)
    assert work.weights == work.weights_a_step + 4 * 64 * 4
    assert contenders.work_of(contenders.make_problem("IndRNN", TINY, 1), "forward").weights_a_step == 0


def test_ragged_batches_are_half_full_and_count_only_their_steps() -> None:
    shape = Shape("many", 100, 400, 2, 3)
    problem = contenders.make_problem("RNN", shape, 1, ragged=True)
    assert problem.lengths is not None
    assert problem.lengths.min() >= 1
    assert problem.lengths.max() <= 100
    assert 0.45 < problem.lengths.mean() / 100 < 0.55
    assert contenders.operations(problem, "forward") == 2 * problem.lengths.sum() * 3 * (2 + 3)
    assert not problem.dy[~problem.mask[..., 0]].any()


# ---- timing ----------------------------------------------------------------------------------------------------------
def test_contenders_take_turns() -> None:
    order: list[str] = []
    calls = {name: Call(lambda name=name: order.append(name), 1) for name in "ab"}
    samples = take_turns(calls, Turns(3, 0.0))
    assert order[2:] == ["a", "b"] * 3  # after one of each, which tells how often a turn repeats
    assert all(len(s.seconds) == len(s.peaks) == 3 for s in samples.values())
    assert all(peak > 0 for s in samples.values() for peak in s.peaks)


def test_a_turn_lasts_as_long_as_it_should() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    take_turns({"a": Call(run, 1)}, Turns(1, 0.02))
    assert 2 < calls <= 21


def test_where_calls_are_long_there_are_fewer_rounds_but_three() -> None:
    turns = Turns(7, 0.1, 4.0)
    assert turns.fitting([0.001, 0.001]) == 7
    assert turns.fitting([0.4 - BESIDE_SECONDS, 0.4 - BESIDE_SECONDS]) == 5
    assert turns.fitting([1.0, 60.0]) == 3
    assert Turns(2, 0.1, 4.0).fitting([60.0]) == 2
    assert Turns(7, 0.1).fitting([60.0]) == 7


def test_shares_and_ratios_are_taken_within_a_round() -> None:
    ours = Sample((1.0, 2.0, 1.0), (100.0, 50.0, 100.0))  # in the second round the machine was half as fast
    theirs = Sample((3.0, 6.0, 3.0), (100.0, 50.0, 100.0))
    assert ours.share(80.0) == 0.8
    assert theirs.over(ours) == 3.0


def test_the_spread_is_the_middle_half_over_the_median() -> None:
    assert sample(1.0, 2.0, 3.0, 4.0, 5.0).spread == pytest.approx(2 / 3)
    assert math.isnan(sample(1.0).spread)


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_a_peer_with_another_answer_gets_a_reason_and_no_time() -> None:
    problem = contenders.make_problem("LSTM", TINY, 1)
    good = contenders.ours(problem, "forward")
    bad = Contender(good.run, lambda y: {"y": y * 1.001})
    match = Match(contenders.work_of(problem, "forward"), good, {"same": lambda: good, "other": lambda: bad})
    (played,) = contenders.play([match], BRIEF)
    assert played.peers.keys() == {"same"}
    assert played.errors["same"] == 0
    assert played.failures["other"].startswith("answers differ by 1.0e-03")
    assert results(played).disagreements == [
        f"forward, LSTM, tiny, 1 thread: other: {played.failures['other']}",
    ]


def test_where_rounding_grows_the_first_steps_are_compared() -> None:
    """A peer that agrees over COMPARED_STEPS steps has a time; one that differs there too has none."""
    steps = contenders.COMPARED_STEPS

    def late(problem: contenders.Problem, kind: contenders.Kind) -> Contender:
        good = contenders.ours(problem, kind)
        grows = np.where(np.arange(problem.shape.T) < steps, 1, 2)[:, None, None]
        return Contender(good.run, lambda y: {"y": y * grows})

    def early(problem: contenders.Problem, kind: contenders.Kind) -> Contender:
        good = contenders.ours(problem, kind)
        return Contender(good.run, lambda y: {"y": y * 2})

    problem = contenders.make_problem("LSTM", replace(TINY, T=steps + 10), 1, ragged=True)
    match = contenders.layer_match(problem, "forward", {"late": late, "early": early})
    (played,) = contenders.play([match], BRIEF)
    assert played.peers.keys() == {"late"}
    assert played.errors["late"] == 0 and played.compared["late"] == steps
    assert played.failures["early"].startswith("answers differ by 5.0e-01")
    text = markdown(results(played))
    assert f"- forward, LSTM, tiny, 1 thread: late, the first {steps} of {steps + 10} steps" in text
    assert "thread: early" not in text


def test_nan_and_other_shapes_and_names_differ() -> None:
    a = {"y": np.ones(3)}
    assert contenders.largest_error({"y": np.array([1, np.nan, 1])}, a) == math.inf
    for b in ({"y": np.ones(4)}, {"z": np.ones(3)}):
        with pytest.raises(ValueError, match="answers differ"):
            contenders.largest_error(a, b)


def test_a_peer_that_fails_is_told_and_the_run_goes_on() -> None:
    def broken() -> Contender:
        raise RuntimeError("no compiler\nto be found")

    problem = contenders.make_problem("LSTM", TINY, 1)
    ours = contenders.ours(problem, "forward")
    (played,) = contenders.play([Match(contenders.work_of(problem, "forward"), ours, {"a": broken})], BRIEF)
    assert played.failures == {"a": "RuntimeError: no compiler to be found"}
    assert "- a: RuntimeError: no compiler to be found (forward, LSTM, tiny, 1 thread)" in markdown(results(played))
    assert not results(played).disagreements


@pytest.mark.parametrize("kind", suite.KINDS)
@pytest.mark.parametrize("cell", USUAL)
def test_pytorch_does_the_same_work(cell: str, kind: contenders.Kind) -> None:
    pytest.importorskip("torch")
    dense, ragged = (contenders.make_problem(cell, TINY, 1, ragged=ragged) for ragged in (False, True))
    matches = [
        contenders.layer_match(dense, kind, peers.builders({"PyTorch": peers.EAGER["PyTorch"]} | peers.BFLOAT16)),
        contenders.layer_match(ragged, kind, peers.builders(peers.RAGGED)),
    ]
    for played in contenders.play(matches, BRIEF):
        assert not played.failures
        assert len(played.peers) == 2


@pytest.mark.parametrize("cell", peers.IN_ONNX)
def test_onnx_runtime_has_the_same_layer(cell: str) -> None:
    pytest.importorskip("onnxruntime")
    match = contenders.layer_match(
        contenders.make_problem(cell, TINY, 1), "forward", peers.builders({"ONNX Runtime": peers.EAGER["ONNX Runtime"]})
    )
    (played,) = contenders.play([match], BRIEF)
    assert not played.failures
    assert played.errors["ONNX Runtime"] < 1e-5


@pytest.mark.parametrize("kind", suite.KINDS)
@pytest.mark.parametrize("shape", [TINY, SQUARE], ids=lambda shape: shape.name)
@pytest.mark.parametrize("cell", FAMILY)
def test_pytorch_composes_the_same_layer(cell: str, shape: Shape, kind: contenders.Kind) -> None:
    """Outputs, dx and the gradient of every parameter, with the same random masks."""
    pytest.importorskip("torch")
    match = contenders.layer_match(contenders.make_problem(cell, shape, 1), kind, peers.builders(peers.FAMILY))
    (played,) = contenders.play([match], BRIEF)
    assert not played.failures
    assert played.errors["PyTorch"] < 1e-5


def test_a_loop_is_not_compiled_and_the_report_says_why() -> None:
    pytest.importorskip("torch")
    problem = contenders.make_problem("LSTM peephole", TINY, 1)
    (played,) = contenders.play([contenders.layer_match(problem, "forward", peers.builders(peers.SLOW))], BRIEF)
    assert "torch.compile: would unroll the loop over the steps and take minutes" in markdown(results(played))


@pytest.mark.parametrize("kind", suite.KINDS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_bfloat16_has_the_answers_of_float32_and_of_pytorch(cell: str, kind: contenders.Kind) -> None:
    pytest.importorskip("torch")
    (played,) = contenders.play(suite._bfloat16(cell, TINY, 1, kind), BRIEF)
    assert not played.failures
    assert played.work.dtype == "bfloat16"
    assert played.peers.keys() == {IN_FLOAT32, "PyTorch bf16"}
    assert 1e-5 < played.errors[IN_FLOAT32] < contenders.BFLOAT16_TOLERANCE / 2


def test_sums_in_bfloat16_may_be_the_worse_the_longer_they_are() -> None:
    tolerance = contenders.bfloat16_sums_tolerance
    assert tolerance(1) == tolerance(6) == contenders.BFLOAT16_TOLERANCE
    assert tolerance(400) == 2 * tolerance(100)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_pytorch_trains_the_same_language_model(cell: str) -> None:
    pytest.importorskip("torch")
    sizes = language_model.Sizes(symbols=7, embedding=4, hidden=8, T=5, B=3)
    (played,) = contenders.play([language_model.match(cell, 1, sizes, with_torch=True)], BRIEF)
    assert not played.failures
    assert played.errors["PyTorch"] < 1e-5
    assert played.work.operations == 6 * 5 * 3 * (4 if cell == "LSTM" else 3) * 8 * (4 + 8 + 8 + 8) + 6 * 5 * 3 * 7 * 8


def test_reservoirpy_harvests_the_same_states() -> None:
    pytest.importorskip("reservoirpy", reason="reservoirpy isn't here to compare with")
    (played,) = contenders.play([echo_state.match(RESERVOIR, 0.2)], BRIEF)
    assert not played.failures
    assert played.errors["reservoirpy"] < 1e-6
    assert played.work.operations == 2 * 9 * 2 * (6 * 30 + 3 * 30)


def test_pytorch_streams_the_same_steps() -> None:
    pytest.importorskip("torch")
    match = streaming.match("LSTM", 16)
    (played,) = contenders.play([replace(match, peers={"PyTorch": match.peers["PyTorch"]})], BRIEF)
    assert not played.failures


# ---- targets ---------------------------------------------------------------------------------------------------------
def verdict(name: str, measured: Results) -> Verdict:
    (found,) = [v for v in judge(measured) if v.target.name.startswith(name)]
    return found


def test_targets_without_figures_are_not_measured() -> None:
    assert [v.word for v in judge(results())] == ["not measured"] * len(TARGETS)


def test_a_target_is_met_if_every_figure_keeps_its_bound_and_shows_the_worst() -> None:
    good, bad = figure("forward", share=0.86), figure("forward", "GRU", share=0.80)
    assert verdict("forward, share of the peak, H ≥ 128", results(good)).word == "met"
    missed = verdict("forward, share of the peak, H ≥ 128", results(good, bad))
    assert (missed.word, missed.kept, missed.of) == ("missed", 1, 2)
    assert missed.worst is not None
    assert missed.worst.where == "GRU some, 1 thread"


def test_the_worst_is_the_one_furthest_from_its_own_bound() -> None:
    easy = figure("forward", shape=Shape("ptb-large", 35, 20, 1500, 1500), share=0.71)
    hard = figure("forward", "GRU", share=0.80)
    worst = verdict("forward, share of the peak, H ≥ 128", results(easy, hard)).worst
    assert worst is not None
    assert worst.bound == 0.85


@pytest.mark.parametrize(
    ("shape", "isa", "bound"),
    [
        (Shape("some", 100, 32, 128, 256), "v4", 0.85),
        (Shape("some", 100, 32, 64, 128), "v4", 0.78),
        (Shape("ptb-large", 35, 20, 1500, 1500), "v4", 0.70),
        (Shape("some", 100, 32, 128, 256), "v3", 0.75),
        (Shape("ptb-large", 35, 20, 1500, 1500), "v3", 0.70),
    ],
)
def test_the_bound_of_forward_depends_on_shape_and_level(shape: Shape, isa: str, bound: float) -> None:
    assert forward_bound(figure(shape=shape), isa) == bound


def test_the_bound_of_training_depends_on_shape_and_threads() -> None:
    assert training_bound(figure(), "v4") == 0.80
    assert training_bound(figure(threads=2), "v4") == 0.78
    assert training_bound(figure(shape=Shape("some", 100, 32, 64, 128)), "v4") == 0.72


def test_a_share_that_cannot_be_is_no_number() -> None:
    impossible = figure("forward", share=1.3)
    assert math.isnan(impossible.share)
    assert verdict("forward, share of the peak, H ≥ 128", results(impossible)).word == "not measured"


def test_lstm_training_must_not_be_slower_than_any_float32_peer() -> None:
    name = "LSTM training, each float32 peer"
    assert verdict(name, results(figure(PyTorch=2.0, JAX=1.1))).word == "met"
    missed = verdict(name, results(figure(PyTorch=2.0, JAX=0.9)))
    assert missed.worst is not None
    assert missed.worst.where == "LSTM some, 1 thread, JAX"
    assert verdict(name, results(figure(PyTorch_bf16=0.5, PyTorch=2.0))).word == "met"


def test_means_are_geometric() -> None:
    mean = verdict("LSTM training, geometric mean", results(figure(PyTorch=1.0), figure(PyTorch=4.0))).worst
    assert mean is not None
    assert mean.value == pytest.approx(2.0)


def test_ragged_batches_are_compared_with_the_better_way_of_pytorch() -> None:
    measured = figure("ragged", PyTorch_packed=9.0, PyTorch_padded=2.9)
    assert verdict("LSTM ragged", results(measured)).word == "missed"


def test_compositions_are_judged_by_the_mean_over_the_shapes() -> None:
    figures = [figure("training", "LSTM peephole", PyTorch=ratio) for ratio in (5.0, 50.0)]
    mean = verdict("LSTM peephole training", results(*figures, figure("training", "LSTM", PyTorch=2.0)))
    assert mean.word == "met"
    assert mean.worst is not None
    assert mean.worst.value == pytest.approx(250**0.5)


def test_bfloat16_is_held_against_our_float32_and_pytorch() -> None:
    wide = figure("training", "GRU", dtype="bfloat16", rnnfast_float32=1.5, PyTorch_bf16=2.5)
    narrow = figure("training", "GRU", replace(SOME, H=128), dtype="bfloat16", rnnfast_float32=1.2, PyTorch_bf16=0.9)
    measured = results(wide, narrow)
    over_float32 = verdict("bfloat16 training over our float32", measured)
    assert (over_float32.word, over_float32.of) == ("missed", 1)
    each, mean = verdict("GRU bfloat16 training, each", measured), verdict("GRU bfloat16 training, geo", measured)
    assert (each.kept, each.of) == (1, 2)
    assert mean.worst is not None
    assert mean.worst.value == pytest.approx(1.5)
    assert verdict("GRU training, each over PyTorch", measured).word == "not measured"


def test_one_row_is_held_against_the_cache_where_the_recurrent_product_is_most_of_the_work() -> None:
    """30 steps a second, each of 6 MB, while the cache delivers 200 MB a second; the weights fit or not."""
    name = "forward, share of the level-2 cache's bandwidth"
    row = figure("forward", shape=Shape("row", 30, 1, 16, 128))
    fitting = replace(row, work=replace(row.work, weights=7e5))
    cache = [Bandwidth(LEVEL2, 1, 2e8)]
    judged = verdict(name, results(fitting, bandwidths=cache))
    assert judged.word == "met"
    assert judged.worst is not None
    assert judged.worst.value == pytest.approx(0.9)
    square = replace(fitting, work=replace(fitting.work, shape=Shape("row", 30, 1, 128, 128)))
    for measured in (results(row, square, bandwidths=cache), results(fitting)):
        assert verdict(name, measured).word == "not measured"


def test_a_hidden_size_is_held_against_the_next_multiple_of_16() -> None:
    assert [next_multiple(hidden) for hidden in (1, 48, 100, 1500)] == [16, 64, 112, 1504]
    odd = figure("padding", shape=replace(SOME, H=100))
    next_one = replace(odd, work=replace(odd.work, shape=replace(SOME, H=112)), ours=sample(0.9))
    judged = verdict("training at H = 48", results(odd, next_one))
    assert (judged.word, judged.of) == ("missed", 1)
    assert "| 100, 32, 128, 100 | LSTM | 1 | 90 % | 100 % | 1.11 |" in markdown(results(odd, next_one))


def test_the_other_targets() -> None:
    step = figure("step", shape=Shape("step 64", 64, 1, 64, 64), ONNX_Runtime=5.0)
    assert verdict("streaming step, H = 64", results(step)).word == "met"
    cores = Figure(figure("threads", threads=2).work, sample(1.0), {ONE_THREAD: sample(1.7)})
    assert verdict("second core", results(cores)).word == "missed"
    assert verdict("language model, GRU", results(figure("language model", "GRU", PyTorch=2.5))).word == "met"
    echo = figure("echo state", "EchoState", RESERVOIR, reservoirpy=12.0)
    assert verdict("echo state network", results(echo)).word == "met"
    memory = [Memory("LSTM", TINY, 40, 100), Memory("LSTM", TINY, 40, "not installed")]
    assert verdict("peak memory", results(memory=memory)).word == "met"
    short = figure("length", shape=Shape("T = 64", 64, 1, 128, 128))
    long = replace(short, work=replace(short.work, shape=Shape("T", 65536, 1, 128, 128)), ours=sample(1.1 * 1024))
    assert verdict("time per step", results(short, long)).word == "missed"


# ---- tables ----------------------------------------------------------------------------------------------------------
def test_a_table_is_markdown_and_nothing_without_rows() -> None:
    assert table(("a", "b"), [("1", "2|3")]) == "| a | b |\n|---|---|\n| 1 | 2∣3 |"
    assert table(("a", "b"), []) == ""


def test_times_have_three_digits_and_a_unit() -> None:
    assert [seconds(t) for t in (12.3456, 0.0123456, 1.5e-6, 2e-9)] == ["12.3 s", "12.3 ms", "1.50 µs", "2.00 ns"]
    assert seconds(math.nan) == "–"


def test_a_report_says_what_was_measured_and_what_was_missed() -> None:
    measured = results(
        figure("forward", PyTorch=3.0),
        replace(figure("training", JAX=1.5, share=0.5), failures={"ONNX Runtime": "does inference only"}),
        bandwidths=[Bandwidth("4 MB", 1, 5e10)],
        memory=[Memory("LSTM", TINY, 40_000_000, "not installed")],
        footprint=[Footprint("numpy", "2", 0.1, 30_000_000)],
        left_out=["one step at a time: no stream"],
    )
    text = markdown(measured)
    place, forward, training = (
        "some | 100, 32, 128, 256 | LSTM | 1",
        "1.00 s | 90 % | – | 2.00 s",
        "1.00 s | 50 % | – | 2.00 s",
    )
    for line in (
        f"| {place} | {forward} | 3.00 | {training} | 1.50 |",
        "| training, share of the peak, same shapes | at least 80% | 50% | LSTM some, 1 thread | 0 of 1 | **missed** |",
        "| 4 MB | 1 | 50 GB/s |",
        "| tiny | 5, 3, 4, 16 | LSTM | 40.0 MB | not installed | – |",
        "| numpy | 2 | 100 ms | 30.0 MB |",
        "- one step at a time: no stream",
        "- ONNX Runtime: does inference only (training, LSTM, some, 1 thread)",
    ):
        assert line in text.splitlines()


def test_the_family_has_a_table_with_the_share_of_memory_bandwidth() -> None:
    measured = results(figure("forward", "SRU", PyTorch=9.0), bandwidths=[Bandwidth(MEMORY, 1, 4e9)])
    text = markdown(measured)
    assert "## The rest of the family" in text
    assert "| some | 100, 32, 128, 256 | SRU | 1 | 1.00 s | 90 % | 25 % | – | 2.00 s | 9.00 | – | – |" in text
    assert "## Layers\n" not in text


def test_one_row_has_a_table_with_the_share_of_the_cache() -> None:
    row = figure("forward", shape=Shape("row", 30, 1, 16, 128))
    fitting = replace(row, work=replace(row.work, weights=7e5))
    text = markdown(results(fitting, bandwidths=[Bandwidth(LEVEL2, 1, 2e8)]))
    assert "| row | 30, 1, 16, 128 | LSTM | 1 | 6.00 MB | 1.00 s | 90 % | 90 % |" in text


# ---- a run -----------------------------------------------------------------------------------------------------------
def test_a_report_says_what_bounds_what_falls_short() -> None:
    """How fast PyTorch is itself, what the equations cost where units are few, which weights pass by, what is held."""
    few = Shape("few", 24, 512, 8, 32)
    figures = [
        figure(PyTorch=1.2, share=0.8),
        figure(PyTorch=2.7, share=0.9),
        figure("ragged", "GRU", PyTorch_packed=9.0, PyTorch_padded=2.0, share=0.5),
        figure("forward", "GRU", few),
        figure("forward"),  # reads 6 MB at each of 100 steps in a second
    ]
    held = [Memory("LSTM", few, 20_000_000, 30_000_000), Memory("GRU", few, 1, 30_000_000)]
    measured = results(*figures, bandwidths=[Bandwidth(LEVEL3, 1, 6e9)], round_trips=[1e-7, 5e-7], memory=held)
    text = markdown(measured)
    # 24·512·32 numbers six times; 24·512·8 and 4·32·(8 + 32 + 2); the latter twice
    assert "| few | 24, 512, 8, 32 | LSTM | 9.44 MB | 0.415 MB | 0.0430 MB | 20.0 MB | 30.0 MB | 0.33 |" in text
    assert [holding.memory for holding in holdings(measured)] == held[:1]
    assert "| LSTM | training | 2 | 1.80 | 2.12 |" in text  # √(1.2 · 2.7), √(1.5 · 3)
    assert "| GRU | ragged | 1 | 2.00 | 4.00 |" in text
    forward, backward = CELL_INSTRUCTIONS["GRU"]
    assert f"| few | 24, 512, 8, 32 | GRU | 120 | {forward} | 360 | {forward + backward} |" in text
    assert f"| some | 100, 32, 128, 256 | LSTM | 1 | 6.00 MB | {LEVEL3} | 90 % | 10 % |" in text
    assert "| a cache line, from core to core and back | 300 ns;" in text


@pytest.fixture
def only_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peers, and none of what takes seconds."""
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    monkeypatch.setattr(suite, "measure_bandwidth", lambda threads: [Bandwidth("4 MB", threads, 5e10)])
    monkeypatch.setattr(suite, "measure_footprint", lambda rounds: [])
    monkeypatch.setattr(suite, "measure_memory", lambda cell, shape, threads: Memory(cell, shape, 1, "not installed"))
    monkeypatch.setattr(language_model, "Sizes", lambda: language_model_sizes)
    monkeypatch.setattr(echo_state, "SHAPES", {RESERVOIR: 0.2})
    monkeypatch.setitem(suite.TURNS, "quick", BRIEF)


language_model_sizes = language_model.Sizes(symbols=7, embedding=4, hidden=8, T=5, B=3)


@pytest.mark.usefixtures("only_us")
def test_a_run_makes_tables_pictures_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, data = tmp_path / "out", tmp_path / "run.json"
    arguments = ["bench", "--quick", "--shapes", "5,3,4,16", "--threads", "1", "--rounds", "1"]
    assert main([*arguments, "--out", str(out), "--json", str(data)]) == 0
    shown = capsys.readouterr().out
    assert (out / "RESULTS.md").read_text() in shown
    assert "`rnnfast bench --quick --shapes 5,3,4,16 --threads 1 --rounds 1`" in shown
    assert "- PyTorch: not installed (torch)" in shown
    assert {path.name for path in out.iterdir()} == {"RESULTS.md", "roofline.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    topics = [figure["work"]["topic"] for figure in json.loads(data.read_text())["figures"]]
    assert topics[:6] == ["forward", "training"] * 3
    assert {"ragged", "language model", "echo state"} <= set(topics)


@pytest.mark.usefixtures("only_us")
def test_without_extras_only_layers_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "run.json"
    arguments = ["--quick", "--shapes", "5,3,4,16", "--cells", "GRU", "--threads", "1", "--no-extras"]
    assert main(["bench", *arguments, "--json", str(data)]) == 0
    figures = json.loads(data.read_text())["figures"]
    measured = [(f["work"]["cell"], f["work"]["topic"], f["work"]["dtype"]) for f in figures]
    assert measured == [("GRU", kind, "float32") for kind in ("forward", "training")]


@pytest.mark.usefixtures("only_us")
def test_variants_are_named_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--shapes", "5,3,4,16", "--cells", "LSTM peephole", "MinGRU", "--threads", "1"]
    assert main(["bench", *arguments, "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "`rnnfast bench --quick --shapes 5,3,4,16 --cells 'LSTM peephole' MinGRU --threads 1 --rounds 1`" in shown
    assert "| 5,3,4,16 | 5, 3, 4, 16 | LSTM peephole | 1 |" in shown
    assert "| 5,3,4,16 | 5, 3, 4, 16 | MinGRU | 1 |" in shown


@pytest.mark.usefixtures("only_us")
def test_an_interrupted_run_shows_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cell: str, shape: Shape, threads: int) -> Memory:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure_memory", interrupted)
    arguments = ["bench", "--quick", "--shapes", "5,3,4,16", "--cells", "RNN", "--threads", "1", "--rounds", "1"]
    assert main(arguments) == 130
    assert "| 5,3,4,16 | 5, 3, 4, 16 | RNN | 1 |" in capsys.readouterr().out


@pytest.mark.usefixtures("only_us")
def test_a_run_that_a_fault_ends_shows_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(cell: str, shape: Shape, threads: int) -> Memory:
        raise ZeroDivisionError

    monkeypatch.setattr(suite, "measure_memory", faulty)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "--quick", "--shapes", "5,3,4,16", "--cells", "RNN", "--threads", "1", "--rounds", "1"])
    assert "| 5,3,4,16 | 5, 3, 4, 16 | RNN | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "nope"], "--shapes: expected T,B,I,H or one of stream, policy"),
        (["--shapes", "1,2,3"], "--shapes: expected T,B,I,H or one of"),
        (["--cells", "TLSM"], "--cells: expected some of LSTM, GRU, RNN"),
        (["--threads", "0"], "expected a whole number from 1 to 4096, got '0'"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--json", "."], "cannot write .: it is a folder"),
        (["--out", "/dev/null"], "cannot write to the folder /dev/null"),
    ],
)
def test_what_a_run_cannot_do_is_told_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rnnfast bench: error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no high-water mark of memory")
def test_peak_memory_counts_what_training_keeps() -> None:
    shape = Shape("some", 200, 64, 64, 64)
    peak = processes._memory("rnnfast", "LSTM", shape, 1)
    outputs = 4 * 200 * 64 * 64  # bytes of one (T, B, H); kept are y, c and four gates, then dx
    assert isinstance(peak, int)
    assert 6 * outputs < peak < 20 * outputs


def test_a_process_that_fails_is_told() -> None:
    assert "cell: expected one of LSTM, GRU, RNN" in str(processes._memory("rnnfast", "TLSM", TINY, 1))


def test_timed_is_a_mean() -> None:
    assert timing.timed(lambda: time.sleep(0.002), 3) >= 0.002
