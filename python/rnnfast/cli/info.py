"""`rnnfast info`: version, instruction set, threads, dependencies."""

from __future__ import annotations

import argparse

from rnnfast import show_config
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import Parser


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    summary = "print version, instruction set, threads and dependencies"
    return commands.add_parser("info", help=summary, description=f"{summary.capitalize()}.")


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    show_config()
    return 0
