"""The `ofa` command: captions, answers and boxes for pictures, from any OFA checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import __version__
from .errors import CommandError
from .predictor import DTYPES


EPILOG = """\
examples:
  ofa caption holiday.jpg
  ofa vqa holiday.jpg "how many boats are there?"
  ofa ground holiday.jpg "the red boat" --output boxes.png
  ofa caption *.jpg --json --model OFA-Sys/ofa-base
  ofa demo

`ofa COMMAND --help` tells more about one command. Errors go to stderr with exit status 2.
"""


@dataclass(frozen=True)
class Command:
    """One command that asks a model about pictures: a row of `COMMANDS`."""

    name: str
    task: str
    """The processor's name of the task."""
    summary: str
    example: str
    text: tuple[str, str] | None = None
    """Name and description of the text argument, where the task takes one. Such a command takes one picture."""
    boxes: bool = False
    """Whether the answer is boxes, which `--output` draws."""


COMMANDS = (
    Command(
        "caption",
        "caption",
        "Say what each picture shows.",
        "ofa caption holiday.jpg\n  ofa caption *.jpg --json > captions.jsonl",
    ),
    Command(
        "vqa",
        "vqa",
        "Answer a question about a picture.",
        'ofa vqa holiday.jpg "what colour is the boat?"',
        text=("question", "the question, in plain words"),
    ),
    Command(
        "ground",
        "visual_grounding",
        "Find what a phrase names in a picture: a box as x0 y0 x1 y1 in pixels from the top left corner.",
        'ofa ground holiday.jpg "the red boat" --output boxes.png',
        text=("text", "the phrase that names one thing in the picture"),
        boxes=True,
    ),
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises `CommandError` with the message and where to read more."""
        raise CommandError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the whole command line; `run` in its result is the function to call."""
    shared = Parser(add_help=False)
    options = shared.add_argument_group("model")
    options.add_argument(
        "--model",
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
    options.add_argument("--json", action="store_true", help="print one JSON object a line")

    parser = Parser(
        prog="ofa",
        description="Ask an OFA model about pictures.",
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
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
        )
        if command.text is None:
            sub.add_argument("images", metavar="IMAGE", nargs="+", help="picture files or URLs, answered in turn")
        else:
            sub.add_argument("images", metavar="IMAGE", nargs=1, help="a picture file or URL")
            name, described = command.text
            sub.add_argument("text", metavar=name.upper(), help=described)
        if command.boxes:
            sub.add_argument(
                "--output", metavar="FILE", help="also write the picture with the boxes drawn (.png, .jpg)"
            )
        sub.set_defaults(run=run_command, command=command, text=None, output=None)

    from .demo import DEFAULT_OUTPUT, run_demo

    summary = "Show what a model does on the pictures that come with the package."
    demo = commands.add_parser(
        "demo",
        help=summary,
        description=summary + " Prints captions, answers and boxes, and writes one picture with the boxes drawn.",
        parents=[shared],
    )
    demo.add_argument(
        "--output", metavar="DIR", default=DEFAULT_OUTPUT, help="folder for the drawn picture (default: %(default)s)"
    )
    demo.set_defaults(run=run_demo)
    return parser


def run_command(arguments: argparse.Namespace) -> int:
    """Runs one row of `COMMANDS` and prints its answers; gives the exit status."""
    from .pictures import check_output, check_picture, draw_boxes, read_picture, write_picture
    from .predictor import Predictor

    command: Command = arguments.command
    for path in arguments.images:
        check_picture(path)
    if arguments.text is not None and not arguments.text.strip():
        raise CommandError(f"the {command.text[0] if command.text else 'text'} is empty; say it in plain words")
    output = None if arguments.output is None else check_output(arguments.output)
    first = read_picture(arguments.images[0])  # a broken picture shows before the model is loaded

    predictor = Predictor(arguments.model or default_checkpoint(), arguments.device, arguments.dtype)
    status = 0
    for index, path in enumerate(arguments.images):
        picture = first if index == 0 else read_picture(path)
        answer = predictor.answer(command.task, picture, arguments.text)
        record: dict[str, Any] = {"image": path, "task": command.task}
        if arguments.text is not None:
            record["text"] = arguments.text
        if command.boxes:
            boxes = record["boxes"] = plain_boxes(answer)
            if not boxes:
                print(f"ofa: the model gave no box for {arguments.text!r} in {path}", file=sys.stderr)
                status = 1
            elif output is not None:
                write_picture(draw_boxes(picture, boxes, [arguments.text] * len(boxes)), output)
                record["output"] = str(output)
        else:
            record["answer"] = answer["text"]
        if arguments.json:
            print(json.dumps(record, ensure_ascii=False), flush=True)
        elif command.boxes:
            for box in record["boxes"]:
                print(*box)
            if "output" in record:
                print(f"drawn in {output}")
        else:
            named = f"{path}: " if len(arguments.images) > 1 else ""
            print(f"{named}{record['answer']}", flush=True)
    return status


def plain_boxes(answer: dict[str, Any]) -> list[list[float]]:
    """Gives the boxes of a `post_process` row as lists of pixels, rounded to a tenth."""
    return [[round(float(side), 1) for side in box] for box in answer["boxes"]]


def default_checkpoint() -> str:
    """Gives the folder of the checkpoint that comes with the package.

    Raises:
        CommandError: if this installation lacks it.
    """
    import modeling_ofa

    folder = str(modeling_ofa.DEFAULT_CHECKPOINT)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise CommandError(f"the package's own checkpoint is missing from {folder}; install it again or give --model")
    return folder


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
        parsed = parser.parse_args(words)
        return parsed.run(parsed)
    except CommandError as error:
        print(f"ofa: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ofa caption *.jpg | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
