"""What the words of a command line ask, checked against the row of the task before any model is loaded."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.predictor import read_answers
from ..tasks_ofa import TASKS, Task, get_task
from .commands import COMMANDS
from .errors import CommandError, first_line
from .pictures import check_output, check_picture


@dataclass(frozen=True)
class Request:
    """One task, and what it is asked of: each of the pictures in turn, or the texts alone."""

    task: Task
    images: Sequence[str]
    """Files or URLs; none where the task takes no picture."""
    text: str | None
    text_pair: str | None
    objects: list[str] | None
    answers: list[str] | None
    """The closed list to choose from, where the task has none of its own."""
    output: Path | None
    scores: bool
    top_k: int

    def texts(self) -> dict[str, Any]:
        """Gives those columns of a data row, but for the picture, that the user gave."""
        columns = {"text": self.text, "text_pair": self.text_pair, "objects": self.objects}
        return {name: value for name, value in columns.items() if value is not None}


def find_task(name: str) -> Task:
    """Gives the row of a task.

    Raises:
        CommandError: if there is none, or if its inputs are none that the command can read.
    """
    if name not in TASKS:
        known = {task: task for task in TASKS} | {command.name: command.task for command in COMMANDS}
        close = dict.fromkeys(known[near] for near in difflib.get_close_matches(name, known))
        raise CommandError(
            f"unknown task {name!r}; " + (f"did you mean {' or '.join(close)}? " if close else "") + "see `ofa tasks`"
        )
    row = get_task(name)
    if row.takes_audio:
        raise CommandError(
            f"task {name!r} is about recorded speech, which these models cannot hear: they read pictures and text"
        )
    return row


def takes_answers(row: Task) -> bool:
    """Whether the user may give the closed list of answers of a task."""
    return row.answer in ("text", "label") and not row.answers


def usage(row: Task) -> str:
    """Gives what follows the name of a task in `ofa run`."""
    several = row.takes_image and not row.takes_text
    words = ["IMAGE ..." if several else "IMAGE"] if row.takes_image else []
    if row.takes_text:
        words.append("X0,Y0,X1,Y1" if row.takes_region else "TEXT")
    if row.takes_pair:
        words.append("TEXT_PAIR" if row.needs_pair else "[TEXT_PAIR]")
    if row.answer == "label" and not row.answers:
        words.append("--answers FILE|A,B,C")
    return " ".join(words)


def read_request(given: argparse.Namespace) -> Request:
    """Puts the words of a command line in their places, reads texts from stdin and lists from files.

    Args:
        given: `task`, and whatever the command has of `inputs`, `image`, `text`, `text_pair`, `objects`, `answers`,
            `output`, `scores` and `top_k`.

    Raises:
        CommandError: if something that the task needs is missing, not to be had, or not the task's.
    """
    options = {name: value for name, value in vars(given).items() if value is not None}
    row = find_task(given.task)
    images, text, pair = _sort_inputs(row, options)
    for path in images:
        check_picture(path)
    if [text, pair].count("-") > 1:
        raise CommandError("stdin can give one text only, so only one may be -")
    text, pair = (_read_text(text, row.text_is), _read_text(pair, row.text_pair_is))
    if row.takes_region and text is not None:
        check_region(text)
    objects = options.get("objects")
    if objects is not None and not row.takes_objects:
        raise CommandError(f"task {row.name!r} takes no --objects")
    answers = _read_answers(row, options.get("answers"))
    top_k = options.get("top_k", 1)
    if top_k < 1:
        raise CommandError(f"--top-k {top_k} is no number of answers; 1 is the least")
    if "top_k" in options and not (row.answers or answers):
        remedy = "give --answers" if takes_answers(row) else f"task {row.name!r} has none"
        raise CommandError(f"--top-k ranks a closed list of answers; {remedy}")
    output = options.get("output")
    if output is not None:
        if row.answer not in ("box", "boxes"):
            raise CommandError(f"--output draws boxes, but task {row.name!r} answers with none")
        if len(images) > 1:
            raise CommandError(f"--output draws one picture, but here are {len(images)}; ask one at a time")
    return Request(
        task=row,
        images=images,
        text=text,
        text_pair=pair,
        objects=None if objects is None else split_list(objects),
        answers=answers,
        output=None if output is None else check_output(output),
        scores=options["scores"] or "top_k" in options,
        top_k=top_k,
    )


def _sort_inputs(row: Task, options: dict[str, Any]) -> tuple[list[str], str | None, str | None]:
    """Gives pictures, text and second text: from options, and from the words without one in their order."""
    words = list(options.get("inputs", ()))
    images, text, pair = list(options.get("image", ())), options.get("text"), options.get("text_pair")
    if row.takes_image and not row.takes_text:
        images += words
        words = []
    elif row.takes_image and not images and words:
        images.append(words.pop(0))
    if row.takes_text and text is None and words:
        text = words.pop(0)
    if row.takes_pair and pair is None and words:
        pair = words.pop(0)

    form = f"ofa run {row.name} {usage(row)}"
    for value, option, takes in (
        (images, "--image", row.takes_image),
        (text, "--text", row.takes_text),
        (pair, "--text-pair", row.takes_pair),
    ):
        if value and not takes:
            raise CommandError(f"task {row.name!r} takes no {option}: {form}")
    if words:
        raise CommandError(f"task {row.name!r} has no use for {words[0]!r}: {form}")
    if row.takes_image and not images:
        raise CommandError(f"task {row.name!r} needs a picture: {form}")
    if row.takes_text and text is None:
        raise CommandError(f"task {row.name!r} needs {row.text_is or 'a text'}: {form}")
    if row.needs_pair and pair is None:
        raise CommandError(f"task {row.name!r} needs {row.text_pair_is or 'a second text'}: {form}")
    return images, text, pair


def _read_text(text: str | None, meaning: str | None) -> str | None:
    """Gives a text as it was given, or what stdin says if it is `-`."""
    where = ""
    if text == "-":
        where = " that stdin gave"
        try:
            text = sys.stdin.read().strip()
        except UnicodeDecodeError as error:
            raise CommandError(f"what stdin gave is no text in {error.encoding}") from error
    if text is not None and not text.strip():
        raise CommandError(f"the text{where} is empty; it is to be {meaning or 'what the task is asked about'}")
    return text


def check_region(text: str) -> None:
    """Says early that a text is no region.

    Raises:
        CommandError: if it is none.
    """
    try:
        sides = [float(side) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) != 4 or not all(map(math.isfinite, sides)):
        raise CommandError(f"a region is four numbers x0,y0,x1,y1 in pixels, such as 40,30,180,120, not {text!r}")


def _read_answers(row: Task, given: str | None) -> list[str] | None:
    """Gives a closed list, from a file or from words between commas."""
    if given is None:
        if row.answer == "label" and not row.answers:
            raise CommandError(
                f"task {row.name!r} chooses from a list that you give: --answers cat,dog,neither, or --answers FILE "
                "with one answer a line"
            )
        return None
    if not takes_answers(row):
        own = f"chooses from {', '.join(row.answers)}" if row.answers else "does not answer in words"
        raise CommandError(f"task {row.name!r} takes no --answers: it {own}")
    if Path(given).is_file():
        try:
            return read_answers(given)
        except (OSError, ValueError) as error:
            raise CommandError(f"--answers: {first_line(error)}") from error
    if "," not in given:
        raise CommandError(f"--answers {given}: there is no such file, and a list has commas: cat,dog,neither")
    answers = list(dict.fromkeys(split_list(given)))
    if not answers:
        raise CommandError(f"--answers {given} holds no answer")
    return answers


def split_list(words: str) -> list[str]:
    """Gives what stands between commas."""
    return [word.strip() for word in words.split(",") if word.strip()]
