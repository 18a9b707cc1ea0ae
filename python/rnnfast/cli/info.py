"""`rnnfast info`: version, instruction set, threads, dependencies; the registry of cells."""

from __future__ import annotations

import argparse

from rnnfast import show_config
from rnnfast.cli.cells import describe_cells
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import Parser


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    summary = "print version, instruction set, threads and dependencies"
    parser = commands.add_parser("info", help=summary, description=f"{summary.capitalize()}.")
    parser.add_argument(
        "--cells", action="store_true", help="print every recurrent layer, its cells, options and parameters instead"
    )
    return parser


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    if arguments.cells:
        print(describe_cells())
    else:
        show_config()
    return 0
