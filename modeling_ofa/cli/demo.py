"""`ofa demo`: an example of every task that a checkpoint can do, in the terminal and on one picture of them all."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..drawing import draw_boxes, enlarged, font_for
from ..tasks_ofa import get_task
from .errors import CommandError
from .examples import read_examples
from .pictures import check_output, read_picture, write_picture
from .predictor import Answerer, default_checkpoint, known_tasks
from .run import box_labels, plain_lines, present


DEFAULT_OUTPUT = "ofa_demo"
COLUMNS = 3
CELL = 320  # width of a picture on the sheet, in pixels
LINE = 18
MARGIN = 16
_ASKED, _ANSWERED = "#666666", "black"

Answered = tuple[Mapping[str, Any], Mapping[str, Any]]  # a row, and its answer
Cell = tuple[Image.Image | None, Sequence[tuple[str, str]]]  # a picture, and lines with their colours


def run_demo(arguments: argparse.Namespace) -> int:
    """Runs `ofa demo`; gives the exit status."""
    checkpoint = arguments.model or default_checkpoint()
    answerer = Answerer(checkpoint, arguments.device, arguments.dtype, with_scores=True)
    if arguments.examples:
        rows = read_examples(table=arguments.examples)
        for row in rows:
            answerer.check(row)
    else:
        rows = read_examples(known_tasks(checkpoint))
    if not rows:
        raise CommandError(f"there is no example of what {checkpoint} is for; `ofa run TASK` asks it")
    folder = Path(arguments.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {folder}: no folder can be made there ({error.strerror})") from error
    output = check_output(str(folder / "demo.png"))
    if not arguments.json:
        print(f"{len({row['task'] for row in rows})} tasks, asked of {checkpoint}\n")

    cells: list[Cell] = []
    width = max(len(row["task"]) for row in rows)
    for path, about in groupby(rows, lambda row: row.get("image")):
        picture = path and read_picture(path)
        if not arguments.json:
            print(Path(path).name if path else "without a picture")
        answered: list[Answered] = []
        for row in about:
            asker = answerer.choosing(row["answers"]) if "answers" in row else answerer
            answer = asker.answer({**row, "image": picture})
            answered.append((row, answer))
            if arguments.json:
                print(json.dumps({**row, **present(answer, with_scores=True)}, ensure_ascii=False), flush=True)
            else:
                print(f"  {row['task']:{width}}  {_asked(row)}{_told(answer)}", flush=True)
        cells += _cells(picture, answered)
    write_picture(contact_sheet(cells), output)
    if not arguments.json:
        print(f"\nAll of them on one picture: {output}")
    return 0


def _asked(row: Mapping[str, Any]) -> str:
    """Gives what a row asks besides its picture, up to the arrow."""
    texts = [row[name] for name in ("text", "text_pair") if name in row]
    if "answers" in row:
        texts.append(f"{' or '.join(row['answers'])}?")
    return f"{' | '.join(texts)} -> " if texts else "-> "


def _told(answer: Mapping[str, Any]) -> str:
    """Gives an answer with its score in one line."""
    return "; ".join(plain_lines(present(dict(answer), with_scores=True))) or "no box"


def _cells(picture: Image.Image | None, answered: Sequence[Answered]) -> list[Cell]:
    """Gives the cells of what was asked about one picture: those boxes that have labels of their own go on another."""
    cells: list[Cell] = []
    for several in (False, True):
        part = [(row, answer) for row, answer in answered if (get_task(row["task"]).answer == "boxes") == several]
        if not part:
            continue
        lines = [line for row, answer in part for line in _lines(row, answer)]
        if picture is None:
            cells.append((None, lines))
            continue
        found = [(row, answer) for row, answer in part if get_task(row["task"]).answer in ("box", "boxes")]
        labels = [label for row, answer in found for label in box_labels(answer, row.get("text"))]
        shown, boxes = enlarged(picture, [box for _, answer in found for box in answer["boxes"]], CELL)
        cells.append((draw_boxes(shown, boxes, labels), lines))
    return cells


def _lines(row: Mapping[str, Any], answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Gives lines and their colours: what was asked, and what came."""
    asked = f"{row['task'].replace('_', ' ')}: {_asked(row)}".removesuffix("-> ").rstrip(": ")
    return [(asked, _ASKED), (_told(answer), _ANSWERED)]


def contact_sheet(cells: Sequence[Cell]) -> Image.Image:
    """Puts pictures with what was asked about them, and what came, on one sheet.

    Args:
        cells: for each a picture, `CELL` wide, if there is one, and texts with their colours.

    Returns:
        An RGB picture, `COLUMNS` cells wide.
    """
    font = font_for(LINE * 0.75)
    columns = CELL // 7  # characters of the font that surely fit
    drawn = []
    for picture, texts in cells:
        lines = [(line, colour) for text, colour in texts for line in textwrap.wrap(text, columns)]
        top = 0 if picture is None else picture.height
        cell = Image.new("RGB", (CELL, top + LINE * len(lines) + LINE // 2), "white")
        if picture is not None:
            cell.paste(picture, (0, 0))
        draw = ImageDraw.Draw(cell)
        for number, (line, colour) in enumerate(lines):
            draw.text((0, top + LINE // 3 + number * LINE), line, fill=colour, font=font)
        drawn.append(cell)

    rows = [drawn[start : start + COLUMNS] for start in range(0, len(drawn), COLUMNS)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = MARGIN + min(COLUMNS, len(drawn)) * (CELL + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + sum(height + MARGIN for height in heights)), "white")
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (CELL + MARGIN), top))
        top += height + MARGIN
    return sheet
