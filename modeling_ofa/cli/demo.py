"""`ofa demo`: captions, answers and boxes for the scenes that come with the package, and one picture of them all."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..drawing import draw_boxes, font_for
from .errors import CommandError
from .pictures import check_output, read_picture, write_picture
from .predictor import Answerer, default_checkpoint
from .run import plain_boxes


SCENES = Path(__file__).parent.parent / "assets" / "scenes"
DEFAULT_OUTPUT = "ofa_demo"
COLUMNS = 3
CELL = 320  # width of a scene on the sheet, in pixels
LINE = 18
MARGIN = 16


def read_scenes(folder: Path) -> list[dict[str, Any]]:
    """Gives the rows of the scenes' `index.json`: `file`, `questions` and `phrase` of each.

    Raises:
        CommandError: if this installation lacks the scenes.
    """
    index = folder / "index.json"
    try:
        return json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"the package's demo scenes are missing from {folder}; install it again") from error


def run_demo(arguments: argparse.Namespace) -> int:
    """Runs `ofa demo`; gives the exit status."""
    scenes = read_scenes(SCENES)
    model = arguments.model or default_checkpoint()
    answerer = Answerer(model, arguments.device, arguments.dtype)
    folder = Path(arguments.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {folder}: no folder can be made there ({error.strerror})") from error
    output = check_output(str(folder / "demo.png"))
    if not arguments.json:
        print(f"{len(scenes)} composed scenes, asked of {model}\n")

    cells = []
    for scene in scenes:
        path = SCENES / scene["file"]
        picture = read_picture(str(path))
        phrase = scene["phrase"]
        caption = answerer.answer({"task": "caption", "image": picture})["text"]
        asked = [{"task": "vqa", "image": picture, "text": question} for question in scene["questions"]]
        answers = [(row["text"], answerer.answer(row)["text"]) for row in asked]
        boxes = plain_boxes(answerer.answer({"task": "visual_grounding", "image": picture, "text": phrase}))
        scale = CELL / picture.width  # scenes are small: enlarged first, so that boxes and labels stay sharp
        shown = picture.resize((CELL, max(1, round(picture.height * scale))))
        scaled = [[side * scale for side in box] for box in boxes]
        cells.append((draw_boxes(shown, scaled, [phrase] * len(boxes)), caption, answers))
        if arguments.json:
            record = {
                "image": str(path),
                "caption": caption,
                "vqa": [{"text": question, "answer": answer} for question, answer in answers],
                "visual_grounding": {"text": phrase, "boxes": boxes},
            }
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(scene["file"])
            print(f"  caption   {caption}")
            for question, answer in answers:
                print(f"  question  {question} -> {answer}")
            found = "; ".join(" ".join(str(side) for side in box) for box in boxes) or "no box"
            print(f"  phrase    {phrase} -> {found}", flush=True)
    write_picture(contact_sheet(cells), output)
    if not arguments.json:
        print(f"\nThe pictures with their boxes: {output}")
    return 0


def contact_sheet(cells: Sequence[tuple[Image.Image, str, Sequence[tuple[str, str]]]]) -> Image.Image:
    """Puts pictures with their captions and answers on one sheet.

    Args:
        cells: for each picture the RGB picture, `CELL` wide, its caption, and pairs of question and answer.

    Returns:
        An RGB picture, `COLUMNS` pictures wide.
    """
    font = font_for(LINE * 0.75)
    columns = CELL // 7  # characters of the font that surely fit
    drawn = []
    for picture, caption, answers in cells:
        texts = [caption, *(f"{question} {answer}" for question, answer in answers)]
        lines = [line for text in texts for line in textwrap.wrap(text, columns)]
        cell = Image.new("RGB", (CELL, picture.height + LINE * len(lines) + LINE // 2), "white")
        cell.paste(picture, (0, 0))
        draw = ImageDraw.Draw(cell)
        for number, line in enumerate(lines):
            draw.text((0, picture.height + LINE // 3 + number * LINE), line, fill="black", font=font)
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
