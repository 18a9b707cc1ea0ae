"""The command line: `rnnfast train | generate | bench | gradflow | info`.

Each command is a file of its own with `add_parser` and `run`.

Exit status: 0 done, 1 a benchmark's answers differ, 2 bad input (one line on stderr), 128 + n ended by signal n
(130 for Ctrl-C).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from rnnfast import __version__
from rnnfast.cli import bench, generate, gradflow, info, train
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Parser

BAD_INPUT = 2
BROKEN_PIPE = 128 + 13  # what shells say of a command that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the arguments are the process's unless given. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with Interrupts() as interrupts:
            try:
                status = _run(argv, interrupts)
            except KeyboardInterrupt:
                status = interrupts.status
            print(end="", flush=True)
    except OSError as error:
        # Nobody reads our output, or there is no room for it; the interpreter must not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        return _report("rnnfast", str(error))
    return status


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> int:
    parser = _parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        parser = arguments.parser
        if unknown:
            parser.error(f"unknown arguments: {' '.join(unknown)}")
        status: int = arguments.run(arguments, interrupts)
    except CommandError as error:
        return _report(error.command or parser.prog, str(error))
    except MemoryError:
        return _report(parser.prog, "not enough memory for a model and windows of this size")
    except SystemExit:  # --help or --version has been printed
        return 0
    return status


def _report(command: str, message: str) -> int:
    print(f"{command}: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return BAD_INPUT


def _parser() -> Parser:
    parser = Parser(prog="rnnfast", description="Recurrent neural networks on CPUs.")
    parser.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (train, generate, bench, gradflow, info):
        command = module.add_parser(commands)
        command.set_defaults(run=module.run, parser=command)
    return parser
