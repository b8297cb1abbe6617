"""`ofa run` and the named commands: one task, asked of pictures in turn or of texts, and its answers printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..drawing import draw_boxes
from .pictures import read_picture, write_picture
from .predictor import Answerer, default_checkpoint
from .request import read_request


def run_task(arguments: argparse.Namespace) -> int:
    """Runs a command line that asks one task, and prints its answers; gives the exit status."""
    request = read_request(arguments)
    row = request.task
    images: Sequence[str | None] = request.images or [None]
    first = None if images[0] is None else read_picture(images[0])  # a broken one shows before a model is loaded
    model = Answerer(
        arguments.model or default_checkpoint(),
        arguments.device,
        arguments.dtype,
        answers=request.answers,
        with_scores=request.scores,
    )
    status = 0
    for index, path in enumerate(images):
        picture = first if index == 0 or path is None else read_picture(path)
        asked = {"task": row.name, **request.texts()}
        answer = present(model.answer({**asked, "image": picture}, request.top_k), request.scores)
        record = {**({} if path is None else {"image": path}), **asked, **answer}
        if answer.get("boxes") == []:
            about = f" for {request.text!r}" if row.takes_text else ""
            print(f"ofa: the model gave no box{about} in {path}", file=sys.stderr)
            status = 1
        elif request.output is not None and picture is not None:
            drawn = draw_boxes(picture, answer["boxes"], box_labels(answer, request.text))
            write_picture(drawn, request.output)
            record["output"] = str(request.output)
        if arguments.json:
            print(json.dumps(record, ensure_ascii=False), flush=True)
            continue
        named = f"{path}: " if len(images) > 1 else ""
        for line in plain_lines(answer):
            print(f"{named}{line}", flush=True)
        if "output" in record:
            print(f"drawn in {request.output}")
    return status


def present(answer: dict[str, Any], with_scores: bool) -> dict[str, Any]:
    """Gives an answer of `post_process` as it is printed: rounded, with its scores or without.

    A written text is called `answer` here, as `text` is what the user gave.
    """
    shown = {"answer" if name == "text" else name: value for name, value in answer.items()}
    if "boxes" in shown:
        shown["boxes"] = plain_boxes(answer)
    for name in ("score", "scores"):
        if not with_scores:
            shown.pop(name, None)
    return shown


def plain_boxes(answer: dict[str, Any]) -> list[list[float]]:
    """Gives the boxes of an answer as lists of pixels, rounded to a tenth."""
    return [[round(float(side), 1) for side in box] for box in answer["boxes"]]


def box_labels(answer: Mapping[str, Any], text: str | None) -> Sequence[str]:
    """Gives what an answer's boxes are called: their own labels, or else the text that was asked about."""
    return answer.get("labels", [text or ""] * len(answer["boxes"]))


def plain_lines(answer: dict[str, Any]) -> list[str]:
    """Gives the lines that people read: an answer, answers of a ranking, or boxes, with their scores if there are."""
    if "ranking" in answer:
        return [_columns(text, score) for text, score in answer["ranking"]]
    if "boxes" in answer:
        boxes = [" ".join(map(str, box)) for box in answer["boxes"]]
        labels = answer.get("labels", [None] * len(boxes))
        scores = answer.get("scores", [None] * len(boxes))
        return [_columns(*columns) for columns in zip(boxes, labels, scores, strict=True)]
    if "codes" in answer:
        return [_columns(" ".join(map(str, answer["codes"])), answer.get("score"))]
    return [_columns(answer.get("answer", answer.get("label")), answer.get("score"))]


def _columns(*values: str | float | None) -> str:
    """Gives those columns of a line that there are."""
    return "  ".join(f"{value:.4f}" if isinstance(value, float) else value for value in values if value is not None)
