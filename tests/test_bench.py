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
from rnnfast.recurrent import Recurrent

pytest.importorskip("tqdm")
from rnnfast.benchmarks import contenders, echo_state, language_model, peers, processes, streaming, suite, timing
from rnnfast.benchmarks.contenders import Contender, Match
from rnnfast.benchmarks.limits import Bandwidth
from rnnfast.benchmarks.report import markdown, seconds, table
from rnnfast.benchmarks.results import Figure, Footprint, Memory, Results, Topic, Work
from rnnfast.benchmarks.shapes import EXTENTS, Shape, load_shapes, shapes_of
from rnnfast.benchmarks.targets import ONE_THREAD, TARGETS, Verdict, forward_bound, judge, training_bound
from rnnfast.benchmarks.timing import Call, Sample, Turns, take_turns
from rnnfast.benchmarks.variants import VARIANTS

TINY = Shape("tiny", 5, 3, 4, 16)
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
    **ratios: float,
) -> Figure:
    """One second a call, at a share of a peak of 100 GF/s; ratios by peer, blanks as underscores."""
    work = Work(topic, cell, shape, threads, share * 1e11, 1e9)
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


def test_cells_are_all_recurrent_layers_the_usual_ones_first() -> None:
    assert tuple(VARIANTS)[:3] == USUAL
    assert "Linear" not in VARIANTS
    layers = {variant.layer for variant in VARIANTS.values()}
    assert layers == {name for name in rf.__all__ if is_layer(getattr(rf, name))}


def is_layer(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Recurrent)


@pytest.mark.parametrize("cell", USUAL)
def test_operations_count_two_for_each_weight_row_and_step(cell: str) -> None:
    problem = contenders.make_problem(cell, TINY, 1)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    forward = 2 * 5 * 3 * gates * 16 * (4 + 16)
    assert contenders.operations(problem, "forward") == forward
    assert contenders.operations(problem, "training") == 3 * forward


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


@pytest.mark.skipif(not hasattr(rf.LSTM, "stream"), reason="layers have no stream yet")
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


# ---- a run -----------------------------------------------------------------------------------------------------------
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
def test_an_interrupted_run_shows_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cell: str, shape: Shape, threads: int) -> Memory:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure_memory", interrupted)
    arguments = ["bench", "--quick", "--shapes", "5,3,4,16", "--cells", "RNN", "--threads", "1", "--rounds", "1"]
    assert main(arguments) == 130
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
    assert "cell: expected one of LSTM" in str(processes._memory("rnnfast", "TLSM", TINY, 1))


def test_timed_is_a_mean() -> None:
    assert timing.timed(lambda: time.sleep(0.002), 3) >= 0.002
