"""A run as Markdown: the targets first, then every figure, then how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import quantiles

from .bounds import ceilings, equations, holdings, streams
from .limits import MEMORY
from .results import Figure, Results, Topic, Work
from .targets import ONE_THREAD, WHOLE_TAPE, judge, level2_share, next_multiple, one_row
from .variants import USUAL_CELLS

HOW = """\
- **Turns.** Everything that is compared runs in one process and takes turns; before each turn the process rests for \
10 ms, so that worker threads of another library stop spinning. Times are medians over the rounds, the spread is the \
range of the middle half over the median. The first call stands apart: it compiles, packs and allocates.
- **Share of the peak.** The peak is that of fused multiply-adds on registers in our own build, float32, as many \
threads, measured just before and just after each turn (the larger one counts). Shares and ratios are taken \
within a round, then the median. Operations are those of the products that the answer needs: two for each weight, row \
and step, three times as many for training; steps past a row's length don't count. A dash stands where the \
measurement of the peak was disturbed and the share would be above 100 %; bfloat16, measured against the same peak, \
may come to 200 %.
- **Ratio.** The peer's time over ours: above 1, we are faster. Training is forward and backward with dx and all \
gradients. All peers have the same weights, inputs and number of threads; their answers were compared with ours before \
the clock started (largest difference over the largest value of each array: below 1e-4; in bfloat16 below 0.02, for \
PyTorch, which adds gradients up in bfloat16, below √T / 128 where that is more).
- **The rest of the family.** PyTorch has no such layers, but for the projection, two directions, two layers and the \
relu network: a composition of its operations stands for them. The products of x are one product, whatever doesn't \
wait for the state is done for all steps at once, a Python loop over the steps does the rest, and autograd goes back. \
Random masks are drawn before the clock starts; ours are drawn while it runs. Reservoirpy computes in float64, beside \
our float32; it has no other.
- **Bandwidth.** `np.max` over an int32 array of each thread, the best of some tries. The share of memory's is that of \
the bytes which must be moved at least once if the caches hold everything else: x, y, weights, what training keeps, \
gradients. Arrays that stay in a cache can pass faster than memory delivers. The share of the level-2 cache's is that \
of the weights which every step reads.
- **Memory.** A fresh process for each: high-water mark of three training steps above what it held before them \
(imports, a small step, weights, x, dy).
- **Import.** Median of fresh processes, beyond the import of NumPy."""


TWO_THREADS = """\
**Two threads at small shapes.** Every chunk of backward has two barriers, and each thread reads half of the other's \
dz. A barrier takes about a round trip of a cache line (see the table above). To write a line again that another core \
has read takes 7 ns, and 36 where the cores have no cache in common; so what threads make for each other goes past \
the caches, at 2 ns a line to write and 2.4 to read. A virtual machine's cores may be moved apart for some seconds: \
charlm's LSTM took 6.8 ms backward, and RNN 1.85 ms, while a line went there and back in 155 ns, 7.4 and 2.1 ms while \
it took 650, with the same peak and the same time on one thread."""


def markdown(results: Results) -> str:
    sections = (
        ("", _machine(results)),
        ("Targets", _targets(results)),
        ("What bounds what falls short", _bounds(results)),
        ("Layers", _layers(results, lambda w: w.dtype == "float32" and w.cell in USUAL_CELLS)),
        ("The rest of the family", _layers(results, lambda w: w.cell not in USUAL_CELLS, with_memory=True)),
        ("Layers in bfloat16", _layers(results, lambda w: w.dtype == "bfloat16")),
        ("One row, weights in the level-2 cache", _one_row(results)),
        ("Hidden sizes that are no multiple of 16", _padding(results)),
        ("Forward with AVX2 alone, beside its own peak", _timed(results, "forward with AVX2")),
        ("Ragged batches, fill 0.5", _timed(results, "ragged")),
        ("Second core and more", _threads(results)),
        ("One step at a time", _steps(results)),
        ("Language model", _language_model(results)),
        ("Echo state network, states of one thread", _echo_state(results)),
        ("Time against length, training", _lengths(results, "length")),
        ("Time against length, forward", _lengths(results, "forward length")),
        ("Training with checkpoint=True, T = 4,096", _checkpoints(results)),
        ("Peak memory of training", _memory(results)),
        ("Import and installed size", _footprint(results)),
        ("Memory bandwidth", _bandwidth(results)),
        ("What was compared over its first steps", _compared(results)),
        ("What has no number", _without(results)),
        ("How it was measured", HOW),
    )
    parts = [f"## {title}\n\n{body}" if title else body for title, body in sections if body]
    return "# rnnfast bench\n\n" + "\n\n".join(parts) + "\n"


# ---- pieces ----------------------------------------------------------------------------------------------------------
def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing if there are no rows."""
    lines = [f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]) if lines else ""


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def seconds(value: float) -> str:
    """A time with three digits and a unit.

    >>> seconds(0.0123), seconds(4.5e-6), seconds(2.0)
    ('12.3 ms', '4.50 µs', '2.00 s')
    """
    if math.isnan(value):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value / 1e-9)} ns"


def megabytes(value: float | str) -> str:
    return value if isinstance(value, str) else f"{_digits(value / 1e6)} MB"


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _ratio(figure: Figure, peer: str) -> str:
    ratio = figure.ratio(peer)
    return "–" if ratio is None else f"{ratio:.2f}"


def _peers(figures: Iterable[Figure]) -> list[str]:
    """The peers that have a number in some of the figures, in the order in which they come."""
    return list(dict.fromkeys(peer for figure in figures for peer in figure.peers))


def _place(figure: Figure) -> list[str]:
    work = figure.work
    return [work.shape.name, work.shape.sizes, work.cell, str(work.threads)]


# ---- sections --------------------------------------------------------------------------------------------------------
def _machine(results: Results) -> str:
    peaks: dict[int, list[float]] = {}
    for figure in results.figures:
        if figure.work.topic == "forward with AVX2":
            continue  # another peak
        peaks.setdefault(figure.work.threads, []).extend(figure.ours.peaks)
    rows = list(results.machine.items())
    for threads, values in sorted(peaks.items()):
        low, high = min(values) / 1e9, max(values) / 1e9
        title = f"multiply-add peak, {threads} thread{'s' * (threads > 1)}"
        rows.append((title, f"{low:.0f} to {high:.0f} GF/s in the course of the run"))
    if trips := [seconds * 1e9 for seconds in results.round_trips if not math.isnan(seconds)]:
        low, middle, high = (quantiles(trips, n=10)[k] for k in (0, 4, 8)) if len(trips) > 1 else trips * 3
        title = "a cache line, from core to core and back"
        rows.append((title, f"{middle:.0f} ns; eight tenths of the time between {low:.0f} and {high:.0f}"))
    return (f"`{results.command}`\n\n" if results.command else "") + table(("machine", ""), rows)


def _targets(results: Results) -> str:
    rows = []
    for verdict in judge(results):
        target, worst = verdict.target, verdict.worst
        wanted, figure, where = "", "", ""
        if worst is not None:
            wanted = f"{target.direction} {target.form.format(worst.bound)}"
            figure, where = target.form.format(worst.value), worst.where
        kept = f"{verdict.kept} of {verdict.of}" if verdict.of else ""
        word = "**missed**" if verdict.word == "missed" else verdict.word
        rows.append([target.name, wanted, figure, where, kept, word])
    head = ("target", "wanted there", "worst figure", "where", "kept", "")
    return table(head, rows) + "\n\nThe worst figure is the one furthest from what is wanted at its place."


def _bounds(results: Results) -> str:
    """What the figures of a run say about their own limits; a piece for each kind."""
    beside = [
        [cell, topic, str(count), f"{reached:.2f}", f"{possible:.2f}"]
        for topic, cell, count, reached, possible in ceilings(results)
    ]
    few = [
        [*_place(figure)[:3], str(products), str(forward), str(3 * products), str(both)]
        for figure, products, forward, both in equations(results)
    ]
    passing = [
        [*_place(figure), megabytes(figure.work.weights_a_step), level, percent(figure.share), percent(share)]
        for figure, level, share in streams(results)
    ]
    held = [
        [
            holding.memory.shape.name,
            holding.memory.shape.sizes,
            holding.memory.cell,
            *map(megabytes, (holding.tape, holding.results, holding.copies, holding.memory.ours, holding.memory.torch)),
            f"{holding.least:.2f}",
        ]
        for holding in holdings(results)
    ]
    pieces = [
        (
            "**PyTorch itself.** Its time over ours, geometric means, and what they would be if our products ran at "
            "the measured peak and all else took no time:",
            table(("cell", "", "figures", "reached", "at the peak itself"), beside),
        ),
        (
            "**The equations, where units are few.** Of a vector of 16 units and a row: multiply-adds of whole vectors "
            "in the products, and beside them those other vector instructions that the cell takes:",
            table(("shape", "T, B, I, H", "cell", "forward", "its equations", "training", "its equations"), few),
        ),
        (
            "**Weights that pass by at every step.** Read once a step by all threads together, from the cache or "
            "memory that they fit, they alone would take this share of the time of forward; arithmetic hides it only "
            "as far as lines that were asked for come in time:",
            table(("shape", "T, B, I, H", "cell", "threads", "a step", "from", "of peak", "of the time"), passing),
        ),
        (
            "**What has to be held.** Where memory misses its target: y, states and what the equations keep of every "
            "step; dx and gradients; then what ours has beside them, weights packed for backward and the sums of "
            "their gradients. The last column is the first two alone over PyTorch's peak:",
            table(("shape", "T, B, I, H", "cell", "steps", "results", "copies", "rnnfast", "PyTorch", "least"), held),
        ),
    ]
    found = [f"{text}\n\n{body}" for text, body in pieces if body]
    if results.round_trips:
        found.append(TWO_THREADS)
    return "\n\n".join(found)


def _layers(results: Results, chosen: Callable[[Work], bool], *, with_memory: bool = False) -> str:
    """A line for each shape, cell and thread count; forward and training side by side."""
    figures = [figure for figure in results.of("forward", "training") if chosen(figure.work)]
    pairs: dict[tuple[str, ...], dict[Topic, Figure]] = {}
    for figure in figures:
        pairs.setdefault(tuple(_place(figure)), {})[figure.work.topic] = figure
    by_topic = {topic: [f for f in figures if f.work.topic == topic] for topic in ("forward", "training")}
    head = ["shape", "T, B, I, H", "cell", "threads"]
    memory = ["of memory"] if with_memory else []
    for topic, of_topic in by_topic.items():
        head += [topic, "of peak", *memory, "spread", "first call", *(f"over {peer}" for peer in _peers(of_topic))]
    rows = []
    for place, pair in pairs.items():
        row = list(place)
        for topic, of_topic in by_topic.items():
            peers = _peers(of_topic)
            blank = ["–"] * (4 + len(memory) + len(peers))
            row += _figure(pair[topic], peers, results if with_memory else None) if topic in pair else blank
        rows.append(row)
    return table(head, rows)


def _figure(figure: Figure, peers: Sequence[str], with_memory_of: Results | None) -> list[str]:
    ours = figure.ours
    cells = [seconds(ours.median), percent(figure.share)]
    if with_memory_of is not None:
        cells.append(percent(with_memory_of.bandwidth_share(figure, MEMORY, figure.work.traffic)))
    return cells + [percent(ours.spread), seconds(ours.first)] + [_ratio(figure, peer) for peer in peers]


def _one_row(results: Results) -> str:
    rows = []
    for figure in results.of("forward"):
        if one_row(figure) and figure.work.weights_a_step and figure.work.dtype == "float32":
            weights, share = megabytes(figure.work.weights_a_step), percent(level2_share(figure, results))
            rows.append([*_place(figure), weights, seconds(figure.ours.median), percent(figure.share), share])
    head = ("shape", "T, B, I, H", "cell", "threads", "weights a step", "forward", "of peak", "of level-2 cache")
    return table(head, rows)


def _padding(results: Results) -> str:
    figures = {(f.work.cell, f.work.threads, f.work.shape.H): f for f in results.of("padding")}
    rows = []
    for (cell, threads, hidden), figure in figures.items():
        padded = figures.get((cell, threads, next_multiple(hidden)))
        if padded is not None:
            shares = percent(figure.share), percent(padded.share)
            rows.append([*_place(figure)[1:], *shares, f"{figure.ours.over(padded.ours):.2f}"])
    head = ("T, B, I, H", "cell", "threads", "training, of peak", "next multiple, of peak", "time over the next's")
    return table(head, rows)


def _timed(results: Results, topic: Topic, time: Callable[[Figure], str] | None = None, title: str = "time") -> str:
    """A line for each figure of a topic; `time` writes our time in another way."""
    figures = results.of(topic)
    peers = _peers(figures)
    head = ["shape", "T, B, I, H", "cell", "threads", title, "of peak", "spread", *(f"over {peer}" for peer in peers)]
    rows = []
    for figure in figures:
        shown = seconds(figure.ours.median) if time is None else time(figure)
        cells = [shown, percent(figure.share), percent(figure.ours.spread)]
        rows.append([*_place(figure), *cells, *(_ratio(figure, peer) for peer in peers)])
    return table(head, rows)


def _threads(results: Results) -> str:
    figures = [figure for figure in results.of("threads") if ONE_THREAD in figure.peers]
    rows = [[*_place(figure), seconds(figure.ours.median), f"{_ratio(figure, ONE_THREAD)} ×"] for figure in figures]
    return table(("shape", "T, B, I, H", "cell", "threads", "training", "as fast as with 1 thread"), rows)


def _steps(results: Results) -> str:
    return _timed(results, "step", lambda f: seconds(f.ours.median / f.work.shape.T), "a step")


def _language_model(results: Results) -> str:
    def speed(figure: Figure) -> str:
        return f"{figure.work.shape.T * figure.work.shape.B / figure.ours.median:,.0f}"

    return _timed(results, "language model", speed, "characters a second")


def _echo_state(results: Results) -> str:
    return _timed(results, "echo state", lambda f: seconds(f.ours.median / (f.work.shape.T * f.work.shape.B)), "a step")


def _lengths(results: Results, topic: Topic) -> str:
    return _timed(results, topic, lambda f: seconds(f.ours.median / f.work.shape.T), "a step")


def _checkpoints(results: Results) -> str:
    figures = [figure for figure in results.of("checkpoint") if WHOLE_TAPE in figure.peers]
    rows = [
        [*_place(f), seconds(f.ours.median), percent(f.ours.spread), f"{f.ours.over(f.peers[WHOLE_TAPE]):.2f} ×"]
        for f in figures
    ]
    return table(("shape", "T, B, I, H", "cell", "threads", "training", "spread", "time over the whole tape's"), rows)


def _memory(results: Results) -> str:
    rows = [
        [
            m.shape.name,
            m.shape.sizes,
            m.cell,
            megabytes(m.ours),
            megabytes(m.torch),
            f"{m.ratio:.2f}" if m.ratio else "–",
        ]
        for m in results.memory
    ]
    return table(("shape", "T, B, I, H", "cell", "rnnfast", "PyTorch", "ours over PyTorch's"), rows)


def _footprint(results: Results) -> str:
    rows = [[f.package, f.version, seconds(f.seconds), megabytes(f.bytes)] for f in results.footprint]
    return table(("package", "version", "import (beyond NumPy's)", "installed"), rows)


def _bandwidth(results: Results) -> str:
    rows = [[b.array, str(b.threads), f"{b.rate / 1e9:.0f} GB/s"] for b in results.bandwidths]
    return table(("array of each thread", "threads", "read, all threads together"), rows)


def _compared(results: Results) -> str:
    """Where answers over all steps differ and those over the first ones agree."""
    lines = [
        f"- {figure.work.title}: {peer}, the first {steps} of {figure.work.shape.T} steps"
        for figure in results.figures
        for peer, steps in figure.compared.items()
    ]
    why = "Some networks let any difference grow from step to step, rounding too: after enough of them float32 differs"
    return f"{why} from float32.\n\n" + "\n".join(lines) if lines else ""


def _without(results: Results) -> str:
    """What was left out and why; a reason that many figures share is told once."""
    reasons: dict[str, list[str]] = {}
    for figure in results.figures:
        for peer, why in figure.failures.items():
            reasons.setdefault(f"{peer}: {why}", []).append(figure.work.title)
    lines = [f"- {why}" for why in results.left_out]
    for why, titles in reasons.items():
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        lines.append(f"- {why} ({titles[0]}{more})")
    return "\n".join(lines)
