"""`rnnfast generate`: text from a saved language model."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Help, Parser, whole, zero_or_more
from rnnfast.corpus import UnknownCharacterError
from rnnfast.language_model import LanguageModel


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    parser = commands.add_parser(
        "generate",
        help="write text with a trained model",
        description="Write text with a model that `rnnfast train` has made.",
        formatter_class=Help,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file: model.safetensors")
    parser.add_argument("--length", type=whole(0), default=500, metavar="N", help="characters to write")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="same seed, same text; without, a new one each time")
    add_sampling_options(parser)
    return parser


def add_sampling_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that `sampled` takes, shared with `rnnfast train`."""
    parser.add_argument("--prompt", default="", metavar="TEXT", help="how the text begins")
    parser.add_argument(
        "--temperature",
        type=zero_or_more,
        default=0.7,
        metavar="X",
        help="below 1: likelier characters; above: more surprising ones; 0: always the likeliest",
    )
    parser.add_argument("--top-k", type=whole(1), metavar="K", help="draw from the K likeliest characters only")


def sampled(model: LanguageModel, arguments: argparse.Namespace, length: int, seed: int | None) -> Iterator[str]:
    """The characters that the model writes, the prompt before them; an unknown one in it is told at once."""
    prompt, temperature, top_k = arguments.prompt, arguments.temperature, arguments.top_k
    try:
        written = model.sample(prompt, length, temperature=temperature, top_k=top_k, seed=seed)
    except UnknownCharacterError as error:
        raise CommandError(f"--prompt: {error}: the model's text had no such thing") from error
    return itertools.chain((prompt,), written)


def write(pieces: Iterator[str]) -> None:
    """Show a text on stdout as it comes, and end its last line."""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print()


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    try:
        model = LanguageModel.load(arguments.model)
    except OSError as error:
        raise CommandError(f"{arguments.model}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    write(sampled(model, arguments, arguments.length, arguments.seed))
    return 0
