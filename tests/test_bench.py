"""The benchmark suite: its shapes, how it takes times, and a run at one tiny shape."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from rnnfast import _kernels
from rnnfast.cli import main
from rnnfast.layers import __all__ as layer_names

pytest.importorskip("tqdm")
from rnnfast.benchmarks import contenders, echo_state, language_model, levels, peers, processes, suite, timing
from rnnfast.benchmarks.limits import Bandwidth
from rnnfast.benchmarks.results import Memory
from rnnfast.benchmarks.shapes import EXTENTS, Extent, Shape, load_shapes, shapes_of
from rnnfast.benchmarks.timing import BESIDE_SECONDS, Call, Sample, Turns, take_turns
from rnnfast.benchmarks.variants import FAMILY, VARIANTS

from bench_cases import BRIEF, RESERVOIR, SOME, TINY, USUAL, results, sample

pytestmark = pytest.mark.usefixtures("one_thread")


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
        ("LSTM bidirectional", 2 * H, 2 * (4 * H + H)),
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


@pytest.mark.skipif(levels.AVX2 not in _kernels.isas_available, reason="no kernels for AVX2 alone here")
def test_forward_is_measured_with_the_kernels_of_another_level() -> None:
    measured = levels.measure("LSTM", TINY, 1, Turns(2, 0.001))
    assert (measured.work.topic, measured.work.cell, measured.work.shape) == ("forward with AVX2", "LSTM", TINY)
    assert len(measured.ours.seconds) == len(measured.ours.peaks) == 2
    assert 0 < measured.share < 1


def test_only_a_full_run_measures_another_level_and_tells_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def titles(extent: Extent, available: tuple[str, ...], isa: str = "v4") -> tuple[list[str], list[str]]:
        monkeypatch.setattr(_kernels, "isas_available", available)
        monkeypatch.setattr(suite.rf, "isa", isa)
        plan = suite.make_plan(extent, shapes=[SOME, TINY], cells=["GRU"], threads=[1])
        found = results()
        return [job.title for job in suite.jobs_of(plan, found) if "AVX2" in job.title], found.left_out

    assert titles("full", ("v4", "v3"))[0] == ["GRU some, AVX2, threads 1"]
    assert titles("default", ("v4", "v3"))[0] == []
    assert titles("full", ("v3", "v2"), "v3")[0] == []
    assert "AVX2 alone: no level v3 is installed" in titles("full", ("v4",))[1]


def test_a_level_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "AVX2", "v0")
    found = results()
    suite._level("LSTM", TINY, 1, BRIEF, found)
    (told,) = found.left_out
    assert told.startswith("LSTM tiny, AVX2 alone, threads 1: RuntimeError: ImportError: RNNFAST_ISA: expected one of")
    assert not found.figures


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
