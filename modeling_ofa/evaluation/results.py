"""What an evaluation leaves: scores, files in the forms of the public evaluation servers, pictures with answers."""

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import PIL.ImageDraw

from ..drawing import draw_boxes, font_for
from ..image_processing_pil_ofa import to_rgb
from ..tasks_ofa import Task
from .captions import strip_punctuation
from .metrics import METRICS


_WIDTH = 480  # of a picture with an answer, in pixels
_LINE = 22
# What metrics call that with which a task answers.
_PREDICTIONS = {"text": "text", "label": "text", "box": "box", "boxes": "detections", "codes": "codes"}


def metric_of(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """
    Gives the name of the metric of a task: that in its row of the table. Where questions have no soft scores, it is
    VQA's official accuracy if people gave several answers to them, and equality if there is one answer to each.

    Args:
        task ([`Task`]): The task.
        rows (`Sequence[Mapping[str, Any]]`): The Examples.
        name (`str`, *optional*): A metric to take instead.
        options (`Mapping[str, Any]`, *optional*): What its function shall be given.

    Raises:
        `ValueError`: if there is no such metric, or it is not for the task's kind of answers, or has no such option.
    """
    if name is None and task.metric == "vqa_soft_score" and not any(row.get("answer_scores") for row in rows):
        # The official accuracy leaves out one of the people in turn, and of one nobody would be left.
        people = {len(reference("references", row, task) or ()) for row in rows} - {0}
        name = "label_accuracy" if people == {1} else "vqa_accuracy"
    name = name or task.metric
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r} for task {task.name!r}. The metrics are: {', '.join(METRICS)}.")
    compared = METRICS[name].predictions
    if compared != _PREDICTIONS[task.answer]:
        raise ValueError(f"Metric {name!r} compares {compared}, but task {task.name!r} answers with {task.answer}.")
    try:
        inspect.signature(METRICS[name].function).bind([], [], **(options or {}))
    except TypeError as error:
        raise ValueError(f"Metric {name!r} cannot take the options {dict(options or {})}: {error}.") from error
    return name


def reference(kind: str, row: Mapping[str, Any], task: Task) -> Any:
    """
    Gives what an answer is compared with, or `None` if the Example does not say.

    Args:
        kind (`str`): The [`Metric`]'s `references`.
        row (`Mapping[str, Any]`): The Example.
        task ([`Task`]): Its task.
    """
    if kind == "answer_scores":
        weights = row.get("answer_scores")
        return dict(zip(row["references"], weights, strict=True)) if weights else None
    if kind == "target":
        target = row.get("target")
        return None if target is None else task.clean_target(task.labels.get(target, target))
    if kind == "box":
        return next(iter(row.get("boxes") or ()), None)
    if kind == "detections":
        return None if row.get("boxes") is None else {"boxes": row["boxes"], "labels": row["labels"]}
    if kind == "references" and not row.get("references"):
        return None if row.get("target") is None else [row["target"]]
    return row.get(kind)


def _prediction(kind: str, answer: Mapping[str, Any]) -> Any:
    """Gives what of an answer is compared, by the [`Metric`]'s `predictions`."""
    if kind == "box":
        return next(iter(answer["boxes"]), None)
    if kind == "codes":
        return answer["codes"]
    return answer if kind == "detections" else answer.get("text", answer.get("label"))


def score(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    metric: str | None = None,
    metric_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Scores the answers to the Examples of one task, as far as these tell what is right.

    Args:
        task ([`Task`]): The task.
        rows (`Sequence[Mapping[str, Any]]`): The Examples, which may lack their pictures.
        answers (`Sequence[Mapping[str, Any]]`):
            The answer to each; one with an `"error"`, whose picture cannot be read, is not scored.
        metric (`str`, *optional*): The metric, if it is not the task's own.
        metric_options (`Mapping[str, Any]`, *optional*): For its function, such as `{"tokenizer": "none"}`.

    Returns:
        `dict[str, Any]`: `metric`; its `headline`, the score by which models are compared; the number of `examples`,
        of those `scored` and of those `unreadable`; and `scores`, `None` if no Example tells what is right.

    Raises:
        `ValueError`: if there is no such metric, if it or its options do not fit, or if it cannot be computed.
        `ImportError`: if it needs a library that is not installed.
    """
    name = metric_of(task, rows, metric, metric_options)
    row_of = METRICS[name]
    read = [pair for pair in zip(rows, answers, strict=True) if "error" not in pair[1]]
    references = [reference(row_of.references, row, task) for row, _ in read]
    told = [i for i, one in enumerate(references) if one is not None]
    predictions = [_prediction(row_of.predictions, read[i][1]) for i in told]
    scores = None
    if told:
        scores = row_of.function(predictions, [references[i] for i in told], **(metric_options or {}))
    return {
        "metric": name,
        "headline": row_of.headline,
        "examples": len(rows),
        "scored": len(told),
        "unreadable": len(rows) - len(read),
        "scores": scores,
    }


def submission(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    categories: Mapping[str, int] | None = None,
) -> list[dict[str, Any]] | None:
    """
    Gives answers in the form that a public evaluation server or its published script takes, or `None` if there is no
    such form for the task: COCO's caption results, VQA's answers (EvalAI), COCO's detection results.

    Args:
        task ([`Task`]): The task.
        rows (`Sequence[Mapping[str, Any]]`): The Examples; their `id` is that of the picture or question.
        answers (`Sequence[Mapping[str, Any]]`): The answer to each. Those with an `"error"` are left out.
        categories (`Mapping[str, int]`, *optional*):
            The number of each label, without which there are no detection results. Boxes with other labels are left
            out.
    """
    pairs = [(_number(row["id"]), answer) for row, answer in zip(rows, answers, strict=True) if "error" not in answer]
    if task.name == "caption":
        return [{"image_id": number, "caption": strip_punctuation(answer["text"])} for number, answer in pairs]
    if task.name == "vqa":
        return [{"question_id": number, "answer": answer["text"]} for number, answer in pairs]
    if task.name != "object_detection" or categories is None:
        return None
    return [
        {
            "image_id": number,
            "category_id": categories[label],
            "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
            "score": 1.0 if confidence is None else confidence,
        }
        for number, answer in pairs
        for (x0, y0, x1, y1), label, confidence in zip(
            answer["boxes"], answer["labels"], answer["scores"], strict=True
        )
        if label in categories
    ]


def _number(name: Any) -> int | str:
    """The servers' ids are numbers."""
    text = str(name)
    return int(text) if text.isascii() and text.isdigit() else text


def draw(picture: PIL.Image.Image, row: Mapping[str, Any], answer: Mapping[str, Any]) -> PIL.Image.Image:
    """
    Draws an answer: boxes in the picture, and below it what was asked and what was answered in words.

    Args:
        picture (`PIL.Image.Image`): The picture.
        row (`Mapping[str, Any]`): The Example.
        answer (`Mapping[str, Any]`): What the model answers.
    """
    scale = _WIDTH / picture.width  # enlarged first, so that boxes and labels stay sharp
    shown = to_rgb(picture).resize((_WIDTH, max(1, round(picture.height * scale))))
    boxes = [[side * scale for side in box] for box in answer.get("boxes", ())]
    shown = draw_boxes(shown, boxes, answer.get("labels") or [row.get("text") or ""] * len(boxes))
    said = answer.get("text", answer.get("label"))
    if said is not None and answer.get("score") is not None:
        said = f"{said} ({answer['score']:.2g})"
    texts = [text for text in (row.get("text"), row.get("text_pair"), said and f"-> {said}") if text]
    lines = [line for text in texts for line in textwrap.wrap(text, _WIDTH // 9)]
    sheet = PIL.Image.new("RGB", (_WIDTH, shown.height + _LINE * len(lines)), "white")
    sheet.paste(shown)
    pen, font = PIL.ImageDraw.Draw(sheet), font_for(_LINE * 0.7)
    for number, line in enumerate(lines):
        pen.text((4, shown.height + number * _LINE), line, fill="black", font=font)
    return sheet


__all__ = ["draw", "metric_of", "reference", "score", "submission"]
