"""`rnnfast train`: from a text to a language model, its loss curve and a sample of what it writes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rnnfast.cli.files import default_text, output_folder, read_text
from rnnfast.cli.generate import add_sampling_options, sampled, write
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Help, Parser, above_zero, share, whole
from rnnfast.corpus import Corpus
from rnnfast.language_model import (
    CELLS,
    Evaluation,
    LanguageModel,
    Step,
    for_minutes,
    for_steps,
    train,
)
from rnnfast.saving import write_whole
from rnnfast.threads import MOST, set_num_threads

if TYPE_CHECKING:
    from rnnfast.cli.display import Display

MODEL, CURVE = "model.safetensors", "loss.png"


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    parser = commands.add_parser(
        "train",
        help="train a character-level language model",
        description="Train a character-level language model by truncated backpropagation through time and write "
        f"{MODEL}, {CURVE} (the loss curve) and a sample of its text. The last tenth of the text is held out to "
        "measure on.",
        formatter_class=Help,
    )
    default = "the help topics that come with Python"
    parser.add_argument("text", nargs="*", type=Path, metavar="TEXT", help=f"UTF-8 files; without: {default}")
    parser.add_argument("--out", type=Path, default=Path("rnnfast-out"), metavar="DIR", help="folder to write to")

    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=CELLS, default="lstm", help="recurrent layer")
    model.add_argument("--embedding", type=whole(1), default=64, metavar="N", help="numbers that stand for a character")
    model.add_argument("--hidden", type=whole(1), default=256, metavar="N", help="units of a recurrent layer")
    model.add_argument("--layers", type=whole(1), default=2, metavar="N", help="recurrent layers")
    model.add_argument("--dropout", type=share, default=0.2, metavar="P", help="between layers and before the output")

    training = parser.add_argument_group("training")
    training.add_argument("--window", type=whole(1), default=64, metavar="T", help="characters back to learn from")
    training.add_argument("--batch", type=whole(1), default=32, metavar="B", help="places to read at side by side")
    training.add_argument("--lr", type=above_zero, default=8e-3, metavar="X", help="peak learning rate of Adam")
    training.add_argument("--clip", type=above_zero, default=1.0, metavar="X", help="largest norm of the gradient")
    extent = training.add_mutually_exclusive_group()
    extent.add_argument("--steps", type=whole(1), default=900, metavar="N", help="length of the run")
    extent.add_argument("--minutes", type=above_zero, metavar="X", help="length of the run as a time")
    training.add_argument("--eval-every", type=whole(1), default=250, metavar="N", help="steps between measurements")
    training.add_argument("--seed", type=whole(0), default=0, metavar="N", help="same seed and steps, same model")
    training.add_argument("--threads", type=whole(1, MOST), metavar="N", help="without: all that this process may use")

    sample = parser.add_argument_group("sample")
    sample.add_argument("--sample-length", type=whole(0), default=500, metavar="N", help="characters to write")
    add_sampling_options(sample)
    return parser


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    corpus = _corpus(arguments)
    model = _model(arguments, corpus)
    sample = sampled(model, arguments, arguments.sample_length, arguments.seed)
    display = _display(arguments)
    with output_folder(arguments.out, (MODEL, CURVE)), interrupts.held():
        try:
            with interrupts.released():
                display.follow(_events(arguments, corpus, model, interrupts))
        except KeyboardInterrupt:
            display.tell_interrupted()
        except FloatingPointError as error:
            raise CommandError(f"training diverged ({error}): lower --lr") from error
        if display.steps:
            _save(arguments.out, model, display)
    interrupts.check()
    if arguments.sample_length:
        print()
        write(sample)
    return 0


def _corpus(arguments: argparse.Namespace) -> Corpus:
    corpus = Corpus.from_text(read_text(arguments.text) if arguments.text else default_text())
    try:
        corpus.check(arguments.batch, arguments.window)
    except ValueError as error:
        raise CommandError(f"{error}: lower --batch or --window") from error
    return corpus


def _model(arguments: argparse.Namespace, corpus: Corpus) -> LanguageModel:
    options = {name: getattr(arguments, name) for name in ("cell", "embedding", "hidden", "layers", "dropout", "seed")}
    try:
        return LanguageModel.create(corpus.vocabulary, **options)
    except (ValueError, OverflowError) as error:
        raise CommandError(str(error)) from error


def _events(
    arguments: argparse.Namespace, corpus: Corpus, model: LanguageModel, interrupts: Interrupts
) -> Iterator[Step | Evaluation]:
    events = train(
        model,
        corpus,
        progress=for_steps(arguments.steps) if arguments.minutes is None else for_minutes(arguments.minutes),
        batch=arguments.batch,
        window=arguments.window,
        learning_rate=arguments.lr,
        clip_norm=arguments.clip,
        evaluate_every=arguments.eval_every,
        updating=interrupts.held,
    )
    for event in events:
        yield event
        interrupts.check()


def _display(arguments: argparse.Namespace) -> Display:
    try:
        from rnnfast.cli.display import Display
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise CommandError(f'{package} is not installed: pip install "rnnfast[cli]"') from error
    sizes = f"{arguments.layers} × {arguments.hidden} units, embedding {arguments.embedding}"
    dropout = f", dropout {arguments.dropout:g}" if arguments.dropout else ""
    return Display(f"{arguments.cell.upper()}, {sizes}{dropout}")


def _save(folder: Path, model: LanguageModel, display: Display) -> None:
    try:
        model.save(folder / MODEL)
        write_whole(folder / CURVE, display.picture())
    except OSError as error:
        raise CommandError(f"cannot write to the folder {folder}: {error.strerror}") from error
    print(display.summary())
    print(f"model:    {folder / MODEL}")
    print(f"curve:    {folder / CURVE}")
