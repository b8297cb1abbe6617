"""The `ofa` command: any of OFA's tasks, asked of any OFA checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..tasks_ofa import TASKS, get_task
from .app import add_app_arguments, run_app
from .commands import COMMANDS, Command
from .demo import DEFAULT_OUTPUT, run_demo
from .errors import CommandError
from .listing import run_listing
from .predictor import DTYPES
from .push import add_push_arguments, run_push
from .request import takes_answers
from .run import run_task


EPILOG = """\
examples:
  ofa caption holiday.jpg
  ofa vqa holiday.jpg "how many boats are there?"
  ofa ground holiday.jpg "the red boat" --output boxes.png
  ofa classify *.jpg --answers cat,dog,neither --json --model OFA-Sys/ofa-base
  ofa run sst2 "a film to remember"
  ofa demo
  ofa app

`ofa COMMAND --help` tells more about one command, `ofa tasks` about the tasks. Errors go to stderr with exit status 2.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises `CommandError` with the message and where to read more."""
        raise CommandError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the whole command line; `run` in its result is the function to call."""
    as_json = Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON object a line")
    shared = _model_options()
    parser = Parser(
        prog="ofa",
        description="Ask an OFA model about pictures and texts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ofa {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  ofa {command.name} {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared, as_json],
        )
        _add_arguments(sub, command)
        sub.set_defaults(run=run_task, task=command.task)

    summary = "Ask any task by its name."
    run = commands.add_parser(
        "run",
        help=summary,
        description=f"{summary} INPUT is what the task takes, as `ofa tasks` shows: pictures if it takes no text;\n"
        "else a picture, if it takes one, a text, and a second text.",
        epilog="tasks:\n"
        + textwrap.fill(", ".join(TASKS), 100, initial_indent="  ", subsequent_indent="  ")
        + '\n\nexamples:\n  ofa run caption *.jpg\n  ofa run mnli "a man sleeps" "nobody is awake" --scores\n'
        "  ofa run vqa holiday.jpg --text - --answers answers.txt --top-k 5 < question.txt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared, as_json],
    )
    run.add_argument("task", metavar="TASK", help="one of the tasks below")
    run.add_argument("inputs", metavar="INPUT", nargs="*", help="pictures and texts")
    run.add_argument(
        "--image", metavar="IMAGE", action="append", help="a picture file or URL; give it for each picture"
    )
    run.add_argument("--text", metavar="TEXT", help="the text; - reads it from stdin")
    run.add_argument("--text-pair", metavar="TEXT", help="the second text; - reads it from stdin")
    _add_objects(run)
    _add_answers(run)
    _add_output(run)
    _add_scores(run)
    run.set_defaults(run=run_task)

    summary = "List the tasks: what each takes, and what it is answered with."
    listing = commands.add_parser("tasks", help=summary, description=summary, parents=[as_json])
    listing.set_defaults(run=run_listing)

    summary = "Show an example of every task that a model can do, on the pictures that come with the package."
    demo = commands.add_parser(
        "demo",
        help=summary,
        description=summary
        + " Prints what is asked and answered, and writes one picture of it, with the boxes drawn.",
        parents=[shared, as_json],
    )
    demo.add_argument(
        "--output", metavar="DIR", default=DEFAULT_OUTPUT, help="folder for the drawn picture (default: %(default)s)"
    )
    demo.add_argument("--examples", metavar="JSON", help="show these examples, about pictures of yours, instead")
    demo.set_defaults(run=run_demo)

    summary = "Serve a page on which people try a model: a tab a task, in a browser."
    app = commands.add_parser(
        "app",
        help=summary,
        description=summary + " Needs gradio: pip install 'modeling-ofa[app]'.",
        epilog="examples:\n  ofa app\n  ofa app --checkpoint OFA-Sys/ofa-base --tasks caption,vqa --port 8000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    add_app_arguments(app)
    app.set_defaults(run=run_app)

    summary = "Publish a model, an adapter or a data set on the Hub."
    push = commands.add_parser(
        "push",
        help=summary,
        description=summary + " A model goes with the code that others need to load it, and with a card.",
        epilog="examples:\n  ofa push runs/captions ofa-captions --dry-run\n"
        "  ofa push runs/captions ME/ofa-captions --private --license apache-2.0\n"
        "  ofa push runs/lora ME/ofa-lora --base-model ME/ofa-captions\n"
        "  ofa push data ME/my-questions --type dataset",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[as_json],
    )
    add_push_arguments(push)
    push.set_defaults(run=run_push)
    return parser


def _model_options() -> Parser:
    """Gives the options of all commands that ask a model."""
    shared = Parser(add_help=False)
    options = shared.add_argument_group("model")
    options.add_argument(
        "--model",
        "--checkpoint",
        metavar="FOLDER",
        help="folder of a checkpoint, or its id on the Hub (without it: the small one that comes with the package, "
        "which knows composed scenes of emoji artwork only)",
    )
    options.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (without it: an accelerator if there is one)")
    options.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="numbers to compute in (auto: float32 on a CPU, elsewhere as the checkpoint was saved)",
    )
    return shared


def _add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Adds what a command takes, as the row of its task says."""
    row = get_task(command.task)
    if row.takes_image and row.takes_text:
        parser.add_argument("image", metavar="IMAGE", nargs=1, help="a picture file or URL")
    elif row.takes_image:
        parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="picture files or URLs, answered in turn")
    if row.takes_text:
        parser.add_argument("text", metavar=command.text, help=f"{row.text_is}; - reads it from stdin")
    if command.pair_option is not None:
        parser.add_argument(command.pair_option, metavar="TEXT", dest="text_pair", help=row.text_pair_is)
    if row.takes_objects:
        _add_objects(parser)
    if takes_answers(row):
        _add_answers(parser)
    if row.answer in ("box", "boxes"):
        _add_output(parser)
    _add_scores(parser)


def _add_objects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objects", metavar="A,B,C", help="names of objects that are seen in the picture")


def _add_answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--answers", metavar="FILE|A,B,C", help="answers to choose from: a text file with one a line, or a list"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", help="also write the picture with the boxes drawn (.png, .jpg)")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores", action="store_true", help="also print how sure the model is, from 0 to 1")
    parser.add_argument(
        "--top-k",
        metavar="N",
        type=int,
        help="print the N most probable answers of those that there are to choose from",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Runs the `ofa` command.

    Args:
        arguments (`Sequence[str]`, *optional*): the words after `ofa`; without them those of this process.

    Returns:
        `int`: the exit status: 0, 1 if a model gave no box, 2 after an error of the user's, 130 when interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = build_parser()
        if not words:
            parser.print_help()
            return 2
        parsed, rest = parser.parse_known_args(words)
        # argparse ends a list of inputs at the first option; those that follow it are left over.
        if rest and "inputs" in parsed and not any(word.startswith("-") and word != "-" for word in rest):
            parsed.inputs += rest
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed.run(parsed)
    except CommandError as error:
        print(f"ofa: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ofa caption *.jpg | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
