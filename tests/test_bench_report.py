"""The benchmark suite: what it makes of figures, its targets, its tables and what bounds what falls short."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("tqdm")
from rnnfast.benchmarks.bounds import CELL_INSTRUCTIONS, holdings
from rnnfast.benchmarks.limits import LEVEL2, LEVEL3, MEMORY, Bandwidth
from rnnfast.benchmarks.report import markdown, seconds, table
from rnnfast.benchmarks.results import Figure, Footprint, Memory, Results
from rnnfast.benchmarks.shapes import Shape
from rnnfast.benchmarks.targets import (
    ONE_THREAD,
    TARGETS,
    WHOLE_TAPE,
    Verdict,
    forward_bound,
    judge,
    next_multiple,
    training_bound,
)

from bench_cases import RESERVOIR, SOME, TINY, figure, results, sample

pytestmark = pytest.mark.usefixtures("one_thread")


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
    useful = results(figure("ragged", share=0.7), figure("ragged", "GRU", share=0.6), figure("ragged", shape=TINY))
    judged = verdict("ragged training, share", useful)
    assert (judged.kept, judged.of) == (1, 2)


def test_long_sequences_are_held_against_short_ones_and_checkpoints_against_the_whole_tape() -> None:
    for topic, name in (("length", "training, time per step"), ("forward length", "forward, time per step")):
        short = figure(topic, shape=Shape("T = 64", 64, 1, 128, 128))
        long = replace(short, work=replace(short.work, shape=Shape("T", 65536, 1, 128, 128)), ours=sample(1.1 * 1024))
        assert verdict(name, results(short, long)).word == "missed"
    again = figure("checkpoint")
    again = replace(again, peers={WHOLE_TAPE: sample(0.75)})
    judged = verdict("training with checkpoint=True", results(again))
    assert (judged.word, judged.of) == ("met", 1)
    assert "| some | 100, 32, 128, 256 | LSTM | 1 | 1.00 s | – | 1.33 × |" in markdown(results(again))


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


def test_avx2_alone_has_a_target_a_table_and_a_peak_of_its_own() -> None:
    whole, half = figure("forward"), replace(figure("forward with AVX2", share=0.74), ours=sample(1.0, peak=5e10))
    half = replace(half, work=replace(half.work, operations=0.74 * 5e10))
    found = verdict("forward with AVX2 alone", results(whole, half))
    assert (found.word, found.worst and found.worst.bound) == ("missed", 0.75)
    text = markdown(results(whole, half))
    assert "## Forward with AVX2 alone, beside its own peak" in text
    assert "| multiply-add peak, 1 thread | 100 to 100 GF/s in the course of the run |" in text
