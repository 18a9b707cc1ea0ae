"""`rnnfast bench`: the layers beside their peers and the limits of the machine."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rnnfast import isa
from rnnfast.cli.files import output_folder
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Parser, whole
from rnnfast.saving import write_whole
from rnnfast.threads import MOST

if TYPE_CHECKING:
    from rnnfast.benchmarks.results import Results
    from rnnfast.benchmarks.shapes import Shape

REPORT = "RESULTS.md"
DISAGREEMENT = 1  # exit status: a peer's answer is another than ours


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory beside other libraries",
        description="Measure the layers beside those of PyTorch, JAX, ONNX Runtime and reservoirpy, as far as they "
        "are installed, and beside the arithmetic peak of this machine. Without options: ten to thirty minutes on two "
        "cores with all of them. The answers are "
        f"compared before anything is timed; exit status {DISAGREEMENT} says that some differ. Ctrl-C ends "
        "the run after the present job, and what it has measured is shown.",
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", dest="extent", action="store_const", const="quick", help="one shape, less than a minute"
    )
    extent.add_argument(
        "--full",
        dest="extent",
        action="store_const",
        const="full",
        help="every shape, layer and peer, about 40 minutes",
    )
    parser.set_defaults(extent="default")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="named shapes, or T,B,I,H")
    parser.add_argument(
        "--cells", nargs="+", metavar="NAME", help="layers: LSTM, IndRNN, …, with an option: 'LSTM peephole', …"
    )
    count = whole(1, MOST)
    parser.add_argument("--threads", nargs="+", type=count, metavar="N", help="thread counts; without: 1 and all")
    parser.add_argument("--rounds", type=whole(1), metavar="N", help="turns of each contender")
    parser.add_argument("--no-extras", action="store_true", help="only forward and training of the layers, float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time that was taken")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {REPORT} and its pictures")
    return parser


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    _check_installation(arguments)
    from rnnfast.benchmarks.results import Results
    from rnnfast.benchmarks.suite import describe_machine, make_plan, run_plan

    plan = make_plan(
        arguments.extent,
        shapes=_shapes(arguments.shapes),
        cells=_cells(arguments.cells),
        threads=arguments.threads,
        rounds=arguments.rounds,
        extras=not arguments.no_extras,
    )
    results = Results(describe_machine(), isa, _command(arguments))
    status = 0
    with ExitStack() as folders:  # what can't be written is told before anything is measured
        if arguments.out:
            folders.enter_context(output_folder(arguments.out, (REPORT,)))
        if arguments.json:
            folders.enter_context(output_folder(arguments.json.parent, (arguments.json.name,)))
        try:
            with interrupts.held():  # some peers crash when they are interrupted while they compile
                run_plan(plan, results, lambda: _pause(interrupts))
        except KeyboardInterrupt:
            status = interrupts.status
        finally:  # a fault of one job doesn't lose what the others measured
            _report(arguments, results)
    return status or (DISAGREEMENT if results.disagreements else 0)


def _pause(interrupts: Interrupts) -> None:
    """A place where an interrupt that has come ends the run."""
    with interrupts.released():
        pass


def _check_installation(arguments: argparse.Namespace) -> None:
    """The benchmarks need more packages than the rest; which one is missing is told before anything is done."""
    try:
        if arguments.out:
            import rnnfast.benchmarks.plots
        import rnnfast.benchmarks.suite  # noqa: F401
    except ImportError as error:
        if str(error.name).startswith("rnnfast"):
            raise CommandError(f"this installation is incomplete ({error}): install rnnfast again") from error
        package = str(error.name).partition(".")[0]
        raise CommandError(f'{package} is not installed: pip install "rnnfast[bench]"') from error


def _shapes(names: list[str] | None) -> list[Shape] | None:
    """Shapes by name, or by their sizes."""
    from rnnfast.benchmarks.shapes import Shape, load_shapes

    known = load_shapes()
    shapes = []
    for name in names or ():
        sizes = name.split(",")
        if name in known:
            shapes.append(known[name])
        elif len(sizes) == 4 and all(size.isdecimal() and int(size) > 0 for size in sizes):
            steps, batch, inputs, hidden = map(int, sizes)
            shapes.append(Shape(name, steps, batch, inputs, hidden))
        else:
            raise CommandError(f"--shapes: expected T,B,I,H or one of {', '.join(known)}, got {name!r}")
    return shapes or None


def _cells(names: list[str] | None) -> list[str] | None:
    from rnnfast.benchmarks.variants import VARIANTS

    for name in names or ():
        if name not in VARIANTS:
            raise CommandError(f"--cells: expected some of {', '.join(VARIANTS)}, got {name!r}")
    return names


def _report(arguments: argparse.Namespace, results: Results) -> None:
    """Shows the tables, and writes what was asked for; of an interrupted run what there is."""
    from rnnfast.benchmarks.report import markdown

    text = markdown(results)
    print(text)
    if arguments.json:
        _write(arguments.json, results.to_json())
    if arguments.out:
        from rnnfast.benchmarks.plots import pictures

        _write(arguments.out / REPORT, text.encode())
        for name, picture in pictures(results).items():
            _write(arguments.out / name, picture)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def _command(arguments: argparse.Namespace) -> str:
    """The command again, for the report."""
    words = ["rnnfast", "bench"]
    if arguments.extent != "default":
        words.append(f"--{arguments.extent}")
    for name in ("shapes", "cells", "threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if arguments.no_extras:
        words.append("--no-extras")
    return shlex.join(words)
