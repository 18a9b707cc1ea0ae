"""Encoder and decoder: one sequence into another of another length, taught by teacher forcing, written by search."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnfast import checks
from rnnfast.checks import Array
from rnnfast.containers import Container, prefixed
from rnnfast.heads import SoftmaxHead, loss_of
from rnnfast.losses import softmax_cross_entropy
from rnnfast.module import Module, State, Tape
from rnnfast.modules import Embedding, Linear, Sequential, check_chain, layouts_of
from rnnfast.recurrent import Recurrent

__all__ = ["Hypothesis", "Seq2Seq"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One output that a search has found."""

    tokens: Array  # without the end symbol
    log_probability: float  # of the tokens, and of the end symbol if it was reached
    score: float  # log_probability / length^length_penalty, the end symbol counted
    finished: bool  # whether the end symbol was reached


@dataclass(slots=True)
class Pair:
    """What a forward call keeps: both tapes."""

    encoder: Tape[Any]
    decoder: Tape[Any]


class PairTape(Tape[Pair]):
    """The tapes of encoder and decoder: ``tape.record.encoder``."""

    __slots__ = ()

    def release(self) -> None:
        self.record.encoder.release()
        self.record.decoder.release()
        super().release()


class Seq2Seq(Container):
    """An encoder reads a sequence, its final state starts a decoder, which writes another sequence.

    Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine translation";
    Sutskever, Vinyals & Le, 2014, "Sequence to sequence learning with neural networks".

    ::

        s_0 = final state of the encoder after x_1 … x_S
        p(w_t | w_1 … w_{t−1}, x) = softmax(y_t),   y_t, s_t = decoder(w_{t−1}, s_{t−1}),   w_0 = start
        loss = − Σ log p(w_t | …) / number of tokens, the end symbol counted

    It is a `Module`, with one flat buffer for both parts (names `encoder.0.weight`, `decoder.1.weight_ih_l0`), whose
    x is a pair: ``y, state, tape = model.forward((source, inputs), lengths=(source_lengths, input_lengths))``. Training
    seldom needs that: `loss_and_grad` shifts the targets and sets the start and end symbols.

    Args:
        encoder: a Sequential with recurrent layers; its y is not used. Reversing what it reads often helps (Sutskever).
        decoder: a Sequential from tokens to logits over the tokens, (T, B) → (T, B, V), a `Linear` or `SoftmaxHead`
            last, whose recurrent layers have the types, sizes and order of the encoder's. Its layers read forward only.
        start: w_0, the token that the decoder reads first.
        end: the token that ends an output; targets are given without it.

    Shapes:
        source (S, B) tokens, or (S, B, I) features if the encoder takes these; targets (T, B) tokens, T = 0 allowed;
        with batch_first (B, S) and (B, T). lengths (B,) of either, 0 allowed.

    Raises:
        TypeError: encoder or decoder isn't a Sequential, or a token no integer.
        ValueError: the states don't fit each other, or a token is outside the decoder's.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> encoder = rf.Sequential(rf.Embedding(5, 8, seed=0), rf.GRU(8, 32, seed=1))
        >>> decoder = rf.Sequential(rf.Embedding(7, 8, seed=2), rf.GRU(8, 32, seed=3), rf.Linear(32, 7, seed=4))
        >>> model = rf.Seq2Seq(encoder, decoder, start=5, end=6)
        >>> optimizer = rf.Adam(model, lr=1e-2)
        >>> source = np.array([[0, 1], [2, 3], [4, 0]])  # two sequences of three tokens
        >>> for _ in range(60):
        ...     model.zero_grad()
        ...     loss = model.loss_and_grad(source, source[::-1])
        ...     norm = optimizer.step(clip_norm=1.0)
        >>> [tokens.tolist() for tokens in model.greedy(source, max_length=5)]
        [[4, 2, 0], [0, 3, 1]]
    """

    _arguments = ("start", "end")
    _part = "module"

    def __init__(self, encoder: Sequential, decoder: Sequential, *, start: int, end: int) -> None:
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, Sequential):
                raise TypeError(f"{name}: expected a Sequential, got {type(part).__name__}")
        self.start, self.end = checks.size("start", start, minimum=0), checks.size("end", end, minimum=0)
        _check_states(encoder, decoder)
        self._check_tokens(decoder)
        check_chain((encoder, decoder))
        self._gather((encoder, decoder), prefixed({"encoder": encoder, "decoder": decoder}))

    def _check_tokens(self, decoder: Sequential) -> None:
        """start can be read, end can be written; ValueError else."""
        for name, token, known in zip(("start", "end"), (self.start, self.end), _known_tokens(decoder), strict=True):
            if known is not None and token >= known:
                raise ValueError(f"{name}: expected a token from 0 to {known - 1}, got {token}")

    # ---- the two parts -----------------------------------------------------------------------------------------------
    @property
    def modules(self) -> tuple[Module, ...]:
        """Encoder and decoder."""
        return self._parts

    @property
    def encoder(self) -> Sequential:
        """The encoder, whose parameters are views of this model's."""
        part = self._parts[0]
        assert isinstance(part, Sequential)
        return part

    @property
    def decoder(self) -> Sequential:
        """The decoder, whose parameters are views of this model's."""
        part = self._parts[1]
        assert isinstance(part, Sequential)
        return part

    @property
    def batch_first(self) -> bool | None:  # type: ignore[override]
        """The layout of source and targets."""
        return next(iter(layouts_of(self._parts).values()), None)

    @property
    def config(self) -> dict[str, Any]:
        """Both parts, start and end, as they can be written to JSON."""
        return {"encoder": self.encoder.config, "decoder": self.decoder.config, "start": self.start, "end": self.end}

    def __repr__(self) -> str:
        lines = [f"encoder={self.encoder!r},", f"decoder={self.decoder!r},", f"start={self.start},", f"end={self.end},"]
        return "Seq2Seq(\n" + textwrap.indent("\n".join(lines), "  ") + "\n)"

    # ---- forward and backward ----------------------------------------------------------------------------------------
    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, PairTape | None]:
        source, inputs = _pair("x", x)
        if resets is not None:
            raise ValueError(f"resets: expected None, {type(self).__name__} has none, got {type(resets).__name__}")
        ours, theirs = (None, None) if lengths is None else _pair("lengths", lengths)
        _, final, first = self.encoder._forward(source, state, ours, None, record)
        y, final, second = self.decoder._forward(inputs, self._hand_over(final), theirs, None, record)
        if first is None or second is None:
            return y, final, None
        return y, final, PairTape(self, Pair(first, second), y)

    def _hand_over(self, state: State) -> State:
        """The decoder's initial state from the encoder's final one."""
        return _place(self.decoder, [entry for entry in state if entry is not None])

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> State:
        return self.decoder._check_dstate(tape.record.decoder, dstate)

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, State]:
        """dx is that of the source; None where the encoder reads tokens."""
        run: Pair = tape.record
        ours, theirs = (
            {key: grads[f"{name}.{key}"] for key in part._shapes}
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
        )
        _, dinitial = self.decoder._backward(run.decoder, dy, dstate, False, theirs)
        handed = _place(self.encoder, [entry for entry in dinitial if entry is not None])
        checked = self.encoder._check_dstate(run.encoder, handed)
        return self.encoder._backward(run.encoder, None, checked, need_dx, ours)

    # ---- training ----------------------------------------------------------------------------------------------------
    def loss_and_grad(
        self, source: Any, targets: Any, lengths: Any = None, target_lengths: Any = None, *, backward: bool = True
    ) -> float:
        """The loss in nats a token with teacher forcing; its gradients are added into `grads`.

        Teacher forcing (Williams & Zipser, 1989): the decoder reads start, w_1 … w_T and shall write w_1 … w_T, end.

        Args:
            source: what the encoder reads.
            targets: (T, B) tokens, or (B, T) with batch_first, without start and end.
            lengths: (B,) of the source; None: all are S.
            target_lengths: (B,) of the targets; None: all are T.
            backward: False leaves the gradients alone and drops nothing: for held-out data.

        Raises:
            TypeError, ValueError: as the parts do.
        """
        inputs, goal, ends = self._shift(source, targets, target_lengths)
        pair = (lengths, ends)
        steps = goal.shape[1 if self.batch_first else 0]
        mask = checks.time_major(~checks.past(ends, steps), bool(self.batch_first))
        if not checks.flag("backward", backward):
            return softmax_cross_entropy(self((source, inputs), lengths=pair)[0], goal, mask)[0]
        y, _, tape = self.forward((source, inputs), lengths=pair)
        loss, dy = loss_of(self.decoder)(y, goal, mask)
        self.backward(tape, dy, need_dx=False)
        return loss

    def _shift(self, source: Any, targets: Any, lengths: Any) -> tuple[Array, Array, Array]:
        """(inputs of the decoder, what it shall write, lengths of both), one step longer than the targets."""
        outer = bool(self.batch_first)
        array = checks.integers("targets", targets)
        checks.shaped("targets", array, checks.leading(outer))
        tokens = checks.time_major(array, outer).astype(np.int64)
        steps, batch = tokens.shape
        sources = checks.as_array("source", source).shape[0 if outer else 1 :][:1]
        if sources and sources[0] != batch:
            raise ValueError(f"targets: expected {sources[0]} sequences, like the source, got {batch}")
        given = checks.lengths(lengths, steps, batch)
        known = np.full(batch, steps, np.int64) if given is None else given
        limits = [count for count in _known_tokens(self.decoder) if count is not None]
        if limits:
            checks.in_range("targets", array, min(limits), checks.time_major(checks.past(known, steps), outer))
        inputs = np.concatenate([np.full((1, batch), self.start), tokens])
        goal = np.concatenate([tokens, np.full((1, batch), self.end)])
        goal[known, np.arange(batch)] = self.end
        return checks.time_major(inputs, outer), checks.time_major(goal, outer), known + 1

    # ---- writing -----------------------------------------------------------------------------------------------------
    def greedy(self, source: Any, lengths: Any = None, *, max_length: int) -> list[Array]:
        """The most likely token at every step: for each row its tokens, without the end symbol.

        Args:
            source: what the encoder reads.
            lengths: (B,) of the source.
            max_length: steps at most, the end symbol counted.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        checks.size("max_length", max_length)
        state = self._encode(source, lengths)
        tokens = np.full(_batch(state), self.start, np.int64)
        ended = np.zeros(len(tokens), bool)
        columns = []
        for _ in range(max_length):
            logits, state = self._step(tokens, state)
            columns.append(logits.argmax(axis=-1))
            ended |= columns[-1] == self.end
            if ended.all():
                break
            tokens = np.where(ended, self.start, columns[-1])  # the decoder may not be able to read `end`
        return [_until(row, self.end) for row in np.stack(columns, axis=1)]

    def beam(
        self, source: Any, lengths: Any = None, *, max_length: int, width: int = 4, length_penalty: float = 1.0
    ) -> list[list[Hypothesis]]:
        """The best outputs that a beam search finds, for each row up to `width` of them, best first.

        At every step each row keeps the `width` partial outputs of the highest score; one that has written the end
        symbol keeps its place with the score that it has:

        ::

            score(w_1 … w_n) = Σ log p(w_t | …) / n^length_penalty

        Without the division (0) short outputs win, since every token costs probability (Graves, 2012; Wu et al.,
        2016, section 7); 1 compares means. With width 1 it is `greedy`.

        Args:
            source: what the encoder reads.
            lengths: (B,) of the source.
            max_length: steps at most, the end symbol counted. What hasn't ended by then comes after all that has.
            width: how many partial outputs a row keeps.
            length_penalty: the exponent, ≥ 0.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        checks.size("max_length", max_length)
        search = _Search(self.end, checks.size("width", width), checks.real("length_penalty", length_penalty))
        state = self._encode(source, lengths)
        batch = _batch(state)
        search.begin(batch)
        state = _pick(state, np.repeat(np.arange(batch), width))
        tokens = np.full(batch * width, self.start, np.int64)
        for _ in range(max_length):
            logits, state = self._step(tokens, state)
            tokens, parents = search.advance(_log_softmax(logits))
            tokens = np.where(tokens == self.end, self.start, tokens)  # the decoder may not be able to read `end`
            state = _pick(state, parents)
            if search.ended.all():
                break
        return search.results()

    def _encode(self, source: Any, lengths: Any) -> State:
        _, final = self.encoder(source, lengths=lengths)
        return self._hand_over(final)

    def _step(self, tokens: Array, state: State) -> tuple[Array, State]:
        """(logits (B, V), state) of one more token a row."""
        y, state = self.decoder(checks.time_major(tokens[None], bool(self.batch_first)), state)
        return checks.time_major(y, bool(self.batch_first))[0], state


# ---- states of two Sequentials ---------------------------------------------------------------------------------------
def _recurrent(part: Sequential) -> list[int]:
    """The positions of the modules that have a state."""
    return [position for position, module in enumerate(part) if hasattr(module, "hidden_size")]


def _place(part: Sequential, entries: list[State]) -> State:
    """A state of `part` with the entries at its recurrent modules."""
    given = iter(entries)
    wanted = set(_recurrent(part))
    return tuple(next(given) if position in wanted else None for position in range(len(part)))


def _known_tokens(decoder: Sequential) -> tuple[int | None, int | None]:
    """How many tokens a decoder reads and writes, where its first and last modules tell."""
    first, last = decoder[0], decoder[len(decoder) - 1]
    read = first.num_embeddings if isinstance(first, Embedding) else None
    if isinstance(last, SoftmaxHead):
        return read, last.num_classes
    return read, last.out_features if isinstance(last, Linear) else None


def _check_states(encoder: Sequential, decoder: Sequential) -> None:
    """The recurrent modules of both agree; ValueError says which don't."""
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if any(isinstance(module, Sequential) for module in part):
            raise ValueError(f"{name}: expected a Sequential without another one inside, got {part!r}")
        if not _recurrent(part):
            raise ValueError(f"{name}: expected a recurrent layer, got {part!r}")
        for position in _recurrent(part):
            if not isinstance(part[position], Recurrent):
                kind = type(part[position]).__name__
                raise TypeError(f"{name}: expected recurrent layers that backward goes through, got {kind}")
    pairs = [[part[position] for position in _recurrent(part)] for part in (encoder, decoder)]
    for module in pairs[1]:
        if getattr(module, "bidirectional", False):
            raise ValueError(f"decoder: expected layers that read forward only, got {module!r}")
    described = [[_describe(module) for module in modules] for modules in pairs]
    if described[0] != described[1]:
        raise ValueError(
            f"decoder: expected the states of the encoder, {', '.join(described[0])}, got {', '.join(described[1])}"
        )


def _describe(module: Any) -> str:
    """What two states must have in common."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    projected = f", projected to {module.proj_size}" if module.proj_size else ""
    return f"{type(module).__name__} of {layers} × {module.hidden_size} units{projected}"


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(f"{name}: expected a pair (of the source, of the decoder's inputs), got {got}")
    return value[0], value[1]


def _map(state: State, function: Callable[[Array], Array]) -> State:
    """The function of every array in a state, however deep."""
    if state is None:
        return None
    if isinstance(state, tuple | list):
        return tuple(_map(entry, function) for entry in state)
    return function(state)


def _pick(state: State, rows: Array) -> State:
    """The rows of a state's batch, which is the second axis of its arrays."""
    return _map(state, lambda array: array[:, rows])


def _batch(state: State) -> int:
    """B of a state that has at least one array."""
    return int(next(_arrays(state)).shape[1])


def _arrays(state: State) -> Iterator[Array]:
    if isinstance(state, tuple | list):
        for entry in state:
            yield from _arrays(entry)
    elif state is not None:
        yield state


# ---- search ----------------------------------------------------------------------------------------------------------
class _Search:
    """Beams of `width` partial outputs for every row of a batch, as (B, K) arrays."""

    def __init__(self, end: int, width: int, penalty: float) -> None:
        self._end, self._width, self._penalty = end, width, penalty

    def begin(self, batch: int) -> None:
        """One empty output a row; the other places are taken by impossible ones."""
        self._logs = np.full((batch, self._width), -np.inf)
        self._logs[:, 0] = 0.0
        self._sizes = np.zeros((batch, self._width), np.int64)
        self.ended = np.zeros((batch, self._width), bool)
        self._tokens = np.zeros((batch, self._width, 0), np.int64)

    def advance(self, logs: Array) -> tuple[Array, Array]:
        """One step: log probabilities (B·K, V) in; (last token, parent) of the new beams out, (B·K,) each."""
        batch, width = self._logs.shape
        count = logs.shape[-1]
        extended = self._logs[:, :, None] + logs.reshape(batch, width, count)
        # An output that has ended has one continuation, itself, written as one more end symbol.
        extended[self.ended] = -np.inf
        extended[self.ended, self._end] = self._logs[self.ended]
        sizes = self._sizes + ~self.ended
        scores = (extended / (sizes**self._penalty)[:, :, None]).reshape(batch, width * count)
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :width]  # of equal ones the first, as argmax has it
        parents, tokens = best // count, best % count
        rows = np.arange(batch)[:, None]
        self._logs = extended.reshape(batch, width * count)[rows, best]
        self._sizes = sizes[rows, parents]
        self._tokens = np.concatenate([self._tokens[rows, parents], tokens[:, :, None]], axis=2)
        impossible = np.isneginf(self._logs)
        self.ended = (tokens == self._end) | impossible
        return tokens.ravel(), (rows * width + parents).ravel()

    def results(self) -> list[list[Hypothesis]]:
        """All possible outputs, those that have ended first, then by score."""
        found = []
        for logs, sizes, tokens in zip(self._logs, self._sizes, self._tokens, strict=True):
            row = []
            for log, size, written in zip(logs, sizes, tokens, strict=True):
                if np.isneginf(log):
                    continue
                finished = bool((written == self._end).any())
                score = float(log / size**self._penalty)
                row.append(Hypothesis(_until(written, self._end), float(log), score, finished))
            found.append(sorted(row, key=lambda h: (not h.finished, -h.score)))
        return found


def _until(tokens: Array, end: int) -> Array:
    """The tokens before the first end symbol."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]].copy() if len(ends) else tokens.copy()


def _log_softmax(logits: Array) -> Array:
    """(N, V), in float64 so that sums over many steps keep their order."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
