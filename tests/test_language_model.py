"""The character-level language model: vocabulary, batches, measure, sampling, training, files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast.corpus import Corpus, UnknownCharacterError, Vocabulary, windows
from rnnfast.language_model import (
    CELLS,
    WARM_UP,
    Evaluation,
    LanguageModel,
    Step,
    choose,
    for_minutes,
    for_steps,
    learning_rate_share,
    train,
)

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are too small for more."""
    before = rf.get_num_threads()
    rf.set_num_threads(1)
    yield
    rf.set_num_threads(before)


def small_model(cell: str = "lstm", seed: int = 1) -> LanguageModel:
    return LanguageModel.create(Vocabulary.from_text(TEXT), cell=cell, embedding=6, hidden=16, layers=2, seed=seed)


# Letters of every width, one that no text can hold (half of a pair) and the ends of the range.
CHARACTERS = st.sampled_from("abcdefghij\n\0 é€😀\ud800\U0010ffff")


# ---- vocabulary ------------------------------------------------------------------------------------------------------
@given(st.text(CHARACTERS, min_size=1))
def test_vocabulary_gives_back_every_text(text: str) -> None:
    vocabulary = Vocabulary.from_text(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert ids.shape == (len(text),)
    assert len(vocabulary) == len(set(text))
    assert vocabulary.decode(ids) == text


@given(st.text(CHARACTERS, min_size=1), st.text(CHARACTERS))
def test_vocabulary_names_the_unknown_characters(known: str, text: str) -> None:
    vocabulary = Vocabulary.from_text(known)
    unknown = "".join(sorted(set(text) - set(known)))
    if unknown:
        with pytest.raises(UnknownCharacterError) as caught:
            vocabulary.encode(text)
        assert caught.value.characters == unknown
    else:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_unknown_characters_are_told_readably() -> None:
    with pytest.raises(UnknownCharacterError, match=r"^unknown characters '\\n', 'b', 'c', 'd', 'e', \.\.\.$"):
        Vocabulary("a").encode("afedcb\n")
    with pytest.raises(UnknownCharacterError, match=r"^unknown character 'b'$"):
        Vocabulary("a").encode("bab")


@pytest.mark.parametrize("characters", ["", "aa", "ba"])
def test_vocabulary_rejects_what_is_not_ascending(characters: str) -> None:
    with pytest.raises(ValueError, match="characters: expected"):
        Vocabulary(characters)


# ---- corpus and windows ----------------------------------------------------------------------------------------------
@given(st.text(CHARACTERS, min_size=1, max_size=200))
def test_corpus_holds_out_the_end(text: str) -> None:
    corpus = Corpus.from_text(text)
    assert corpus.vocabulary.decode(np.concatenate([corpus.training, corpus.held_out])) == text
    assert len(corpus.held_out) == round(len(text) / 10)


def test_corpus_says_when_it_is_too_short() -> None:
    Corpus.from_text("a" * 37).check(batch=4, window=8)
    with pytest.raises(ValueError, match=r"too short: 31 characters .* need at least 33"):
        Corpus.from_text("a" * 35).check(batch=4, window=8)
    with pytest.raises(ValueError, match="too short: 1 held-out"):
        Corpus.from_text("a" * 10).check(1, 1)
    with pytest.raises(ValueError, match="text: expected characters"):
        Corpus.from_text("")
    with pytest.raises(ValueError, match="held_out"):
        Corpus.from_text("abc", held_out=1.0)


@given(length=st.integers(1, 60), batch=st.integers(1, 5), window=st.integers(1, 9), count=st.integers(1, 12))
def test_readers_miss_no_character(length: int, batch: int, window: int, count: int) -> None:
    ids = np.arange(length)
    pairs = list(itertools.islice(windows(ids, batch, window), count))
    assert all(inputs.shape == targets.shape == (window, batch) for inputs, targets in pairs)
    inputs, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    begins = np.arange(batch) * length // batch
    assert np.array_equal(inputs, (begins + np.arange(count * window)[:, None]) % length)
    assert np.array_equal(targets, (inputs + 1) % length)


# ---- measure ---------------------------------------------------------------------------------------------------------
def test_a_model_without_weights_needs_log2_v_bits() -> None:
    model = small_model()
    zeros = {name: np.zeros_like(array) for name, array in model.network.state_dict().items()}
    model.network.load_state_dict(zeros)
    bits = model.bits_per_character(model.vocabulary.encode(TEXT))
    assert bits == pytest.approx(math.log2(len(model.vocabulary)), rel=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_evaluation_carries_the_state(cell: str) -> None:
    model = small_model(cell)
    ids = model.vocabulary.encode(TEXT[:301])
    logits, _ = model.network(ids[:-1, None])
    loss, _ = rf.softmax_cross_entropy(logits, ids[1:, None])
    for window in (1, 7, 300, 1000):
        assert model.bits_per_character(ids, readers=1, window=window) == pytest.approx(loss / math.log(2), rel=1e-6)


def test_evaluation_of_two_readers_is_the_mean_of_their_halves() -> None:
    model = small_model()
    ids = model.vocabulary.encode(TEXT[:402])  # 401 predictions: 200 a reader, the last is left out
    halves = [model.bits_per_character(part, readers=1) for part in (ids[:201], ids[200:401])]
    assert model.bits_per_character(ids, readers=2, window=100) == pytest.approx(np.mean(halves), rel=1e-6)


def test_evaluation_needs_a_character_to_predict() -> None:
    with pytest.raises(ValueError, match="ids: expected at least 2, got 1"):
        small_model().bits_per_character(np.zeros(1, np.int64))


# ---- sampling --------------------------------------------------------------------------------------------------------
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20).map(lambda x: np.array(x, np.float32))


@given(LOGITS, st.floats(0.01, 10), st.integers(1, 25), st.integers(0, 99))
def test_choice_is_one_of_the_likeliest(logits: np.ndarray, temperature: float, top_k: int, seed: int) -> None:
    chosen = choose(logits, temperature, top_k, np.random.default_rng(seed))
    assert np.count_nonzero(logits > logits[chosen]) < top_k
    every = choose(logits, temperature, None, np.random.default_rng(seed))
    assert choose(logits, temperature, len(logits) + 5, np.random.default_rng(seed)) == every


@given(LOGITS, st.sampled_from([0.0, 1e-300]))
def test_choice_at_no_temperature_is_the_likeliest(logits: np.ndarray, temperature: float) -> None:
    assert logits[choose(logits, temperature, None, np.random.default_rng(0))] == logits.max()


def test_choice_follows_the_softmax() -> None:
    logits, rng, count = np.array([0.0, 1.0, 2.0, -1.0]), np.random.default_rng(0), 4_000
    for temperature in (0.5, 1.0, 2.0):
        drawn = np.bincount([choose(logits, temperature, None, rng) for _ in range(count)], minlength=4) / count
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        assert np.abs(drawn - expected).max() < 5 * 0.5 / math.sqrt(count)


def test_sample_is_determined_by_its_seed() -> None:
    model = small_model()
    first, same, other = ("".join(model.sample("the ", 60, seed=seed)) for seed in (3, 3, 4))
    assert first == same
    assert first != other
    assert len(first) == 60
    assert "".join(model.sample("the ", 0)) == ""


@pytest.mark.parametrize("cell", CELLS)
def test_sample_reads_its_prompt_and_its_own_text(cell: str) -> None:
    model = small_model(cell)
    written = "".join(model.sample("the c", 20, temperature=0))
    text = "the c"
    for character in written:
        logits, _ = model.network(model.vocabulary.encode(text)[:, None])
        assert model.vocabulary.characters[int(logits[-1, 0].argmax())] == character
        text += character


def test_an_empty_prompt_is_the_beginning_of_a_line() -> None:
    model = small_model()
    assert list(model.sample("", 30, seed=1)) == list(model.sample("\n", 30, seed=1))
    assert len(list(LanguageModel.create(Vocabulary("abc"), embedding=2, hidden=3, layers=1).sample("", 5))) == 5


def test_sample_rejects_bad_arguments_at_once() -> None:
    model = small_model()
    with pytest.raises(UnknownCharacterError, match="'#'"):
        model.sample("#", 1)
    with pytest.raises(ValueError, match="length"):
        model.sample("", -1)
    with pytest.raises(ValueError, match="temperature"):
        model.sample("", 1, temperature=-0.1)
    with pytest.raises(ValueError, match="top_k"):
        model.sample("", 1, top_k=0)


# ---- training --------------------------------------------------------------------------------------------------------
def test_learning_rate_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(progress) for progress in np.linspace(0, 1, 101)]
    peak = round(100 * WARM_UP)
    assert shares[0] > 0
    assert shares[peak] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0)
    assert np.all(np.diff(shares[: peak + 1]) > 0)
    assert np.all(np.diff(shares[peak:]) < 0)


@pytest.mark.parametrize("cell", CELLS)
def test_training_learns_a_text_by_heart(cell: str) -> None:
    model = small_model(cell)
    options = {"batch": 8, "window": 16, "learning_rate": 0.02, "evaluate_every": 1000}
    *_, last = train(model, Corpus.from_text(TEXT), progress=for_steps(200), **options)
    assert isinstance(last, Evaluation)
    assert last.bits < 0.5
    assert "".join(model.sample("the c", 10, temperature=0)) == "at sat on "


def test_training_tells_every_step_and_measures_now_and_then() -> None:
    corpus = Corpus.from_text(TEXT)
    events = list(train(small_model(), corpus, progress=for_steps(5), batch=4, window=8, evaluate_every=2))
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert [step.characters for step in steps] == [32, 64, 96, 128, 160]
    assert [step.progress for step in steps] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [event.characters for event in events if isinstance(event, Evaluation)] == [64, 128, 160]
    assert isinstance(events[-1], Evaluation)
    assert steps[0].bits == pytest.approx(math.log2(len(corpus.vocabulary)), rel=0.1)
    assert all(step.norm > 0 for step in steps)


def test_training_changes_the_parameters_inside_its_guard_only() -> None:
    model = small_model()
    before = model.network.flat_params.copy()
    guarded = []

    @contextmanager
    def guard() -> Iterator[None]:
        unchanged = np.array_equal(model.network.flat_params, before)
        yield
        guarded.append(unchanged and not np.array_equal(model.network.flat_params, before))
        before[...] = model.network.flat_params

    for _ in train(model, Corpus.from_text(TEXT), progress=for_steps(3), batch=4, window=8, updating=guard):
        assert np.array_equal(model.network.flat_params, before)
    assert guarded == [True, True, True]


def test_training_for_a_time_ends() -> None:
    steps = list(train(small_model(), Corpus.from_text(TEXT), progress=for_minutes(0.002), batch=4, window=8))
    shares = [step.progress for step in steps if isinstance(step, Step)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_training_says_when_it_diverges() -> None:
    model = small_model()
    state = model.network.state_dict()
    model.network.load_state_dict({name: np.full_like(array, np.nan) for name, array in state.items()})
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        next(train(model, Corpus.from_text(TEXT), progress=for_steps(5), batch=4, window=8))


def test_training_rejects_a_short_text() -> None:
    with pytest.raises(ValueError, match="too short"):
        next(train(small_model(), Corpus.from_text(TEXT[:100]), progress=for_steps(5)))


def test_dropout_stands_before_the_output() -> None:
    model = LanguageModel.create(Vocabulary("ab"), embedding=2, hidden=3, layers=2, dropout=0.5, seed=0)
    assert [type(part) for part in model.network] == [rf.Embedding, rf.LSTM, rf.Dropout, rf.SoftmaxHead]
    one_layer = LanguageModel.create(Vocabulary("ab"), embedding=2, hidden=3, layers=1, dropout=0.5, seed=0)
    assert one_layer.network[1].dropout == 0  # there is no between


def test_seed_determines_the_weights() -> None:
    first, same, other = (small_model(seed=seed).network.flat_params for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_unknown_cell_is_rejected() -> None:
    with pytest.raises(ValueError, match="cell: expected one of lstm, gru, rnn, got 'elman'"):
        small_model("elman")


# ---- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", CELLS)
def test_a_saved_model_writes_the_same_text(cell: str, tmp_path: Path) -> None:
    model, path = small_model(cell), tmp_path / "model.safetensors"
    model.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = LanguageModel.load(path)
    assert loaded.vocabulary == model.vocabulary
    assert list(loaded.sample("the", 50, seed=1)) == list(model.sample("the", 50, seed=1))


def test_a_vocabulary_must_fit_its_network() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="network: expected an Embedding of 2 characters"):
        LanguageModel(Vocabulary("ab"), model.network)


def test_other_models_are_no_language_models(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rf.save(rf.Sequential(rf.Linear(2, 3, seed=0)), path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: not a language model, or damaged \(it has no vocabulary\)"
    ):
        LanguageModel.load(path)
    with pytest.raises(FileNotFoundError):
        LanguageModel.load(tmp_path / "nothing")


def test_modules_that_do_not_fit_together_are_no_language_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    LanguageModel(Vocabulary("abc"), rf.Sequential(rf.Embedding(3, 4), rf.GRU(7, 5), rf.SoftmaxHead(5, 3))).save(path)
    with pytest.raises(ValueError, match=r"not a language model, or damaged \(x: expected \(T, B, 7\), got"):
        LanguageModel.load(path)
    sequences = rf.Sequential(rf.Embedding(3, 4, batch_first=True), rf.SoftmaxHead(4, 3, batch_first=True))
    with pytest.raises(ValueError, match="network: expected batch_first=False, got True"):
        LanguageModel(Vocabulary("abc"), sequences)


def test_weights_that_are_no_numbers_are_damage(tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "model.safetensors"
    state = model.network.state_dict()
    state["0.weight"] = np.full_like(state["0.weight"], np.inf)
    model.network.load_state_dict(state)
    model.save(path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        LanguageModel.load(path)
