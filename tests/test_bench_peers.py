"""The benchmark suite: peers do the same work and have the same answers, or get a reason and no time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tqdm")
from rnnfast.benchmarks import contenders, echo_state, language_model, peers, streaming, suite
from rnnfast.benchmarks.contenders import Contender, Match
from rnnfast.benchmarks.report import markdown
from rnnfast.benchmarks.shapes import Shape
from rnnfast.benchmarks.targets import IN_FLOAT32
from rnnfast.benchmarks.variants import FAMILY

from bench_cases import BRIEF, RESERVOIR, SQUARE, TINY, USUAL, results

pytestmark = pytest.mark.usefixtures("one_thread")


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
