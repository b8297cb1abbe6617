"""One row of data, whatever it came from: its columns, and the check that each row passes."""

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
from datasets import Features, Image, List, Value

from ..tasks_ofa import get_task


_EXIF_ORIENTATION = 0x0112
_CODES = 8192

EXAMPLE_FEATURES = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "image": Image(),
        "text": Value("string"),
        "text_pair": Value("string"),
        "target": Value("string"),
        "boxes": List(List(Value("float32"))),
        "labels": List(Value("string")),
        "codes": List(Value("int32")),
        "references": List(Value("string")),
        "answer_scores": List(Value("float32")),
        "objects": List(Value("string")),
        "confidence": Value("float32"),
        "source": Value("string"),
    }
)


class Row(NamedTuple):
    """
    One row as a reader of some format gives it.

    Args:
        where: What `str` turns into the place of the row, `file:line`.
        make (`Callable[[], dict[str, Any]]`):
            Gives the Example, which may lack columns; its `image` is the bytes or the path of a picture file. What is
            wrong with the row alone is raised here, so that the rows after it can still be read.
        size (`int`): How much of the source the row takes, for the progress bar: bytes, or 1.
    """

    where: Any
    make: Callable[[], dict[str, Any]]
    size: int = 1


def complete(example: Mapping[str, Any], labelled: bool = False) -> dict[str, Any]:
    """
    Checks one Example and fills in what follows from the rest of it.

    Only the header of the picture is read. `target` and `references` give each other, the words that a data set has
    for closed answers become OFA's, and the scores of answers give the sample's weight.

    Args:
        example (`Mapping[str, Any]`): Some of the columns; `image` is the bytes or the path of a picture file.
        labelled (`bool`): Whether an answer must be there, as in training.

    Returns:
        `dict[str, Any]`: All columns, as `EXAMPLE_FEATURES` encodes them.

    Raises:
        `ValueError`: if something that the task needs is missing, or anything is not what its column says.
        `FileNotFoundError`: if there is no such picture file.
    """
    row: dict[str, Any] = dict.fromkeys(EXAMPLE_FEATURES)
    row.update((name, None if value in ("", [], ()) else value) for name, value in example.items())
    task = get_task(row["task"])
    if task.answer == "boxes" and example.get("boxes") is not None:  # no box says that there is nothing to detect
        row["boxes"], row["labels"] = list(example["boxes"]), list(example.get("labels") or ())
    for name in ("text", "text_pair", "target"):
        if row[name] is not None and not row[name].strip():
            row[name] = None

    size = None
    if row["image"] is not None:
        size = picture_size(row["image"])
        is_path = isinstance(row["image"], str | os.PathLike)
        row["image"] = {
            "bytes": None if is_path else row["image"],
            "path": os.path.abspath(row["image"]) if is_path else None,
        }
    elif task.takes_image:
        raise ValueError(f"no image, which task {task.name!r} is about")
    if task.takes_text and row["text"] is None:
        raise ValueError(f"no text ({task.text_is})")
    if task.needs_pair and row["text_pair"] is None:
        raise ValueError(f"no text_pair ({task.text_pair_is})")
    if task.takes_region:
        check_box(parse_box(row["text"]), size)

    if row["references"] is not None and row["target"] is None:
        scores = row["answer_scores"] or [1.0] * len(row["references"])
        row["target"] = max(zip(scores, row["references"], strict=True), key=lambda pair: pair[0])[1]
    if row["target"] is not None and task.answers:
        row["target"] = _answer(row["target"], task.answers, task.labels)
    if row["references"] is None and row["target"] is not None and task.answer == "text":
        row["references"] = [row["target"]]
    if row["answer_scores"] is not None and len(row["answer_scores"]) != len(row["references"] or ()):
        raise ValueError(f"{len(row['answer_scores'])} answer_scores for {len(row['references'] or ())} references")
    if row["confidence"] is None:
        row["confidence"] = max(row["answer_scores"]) if row["answer_scores"] else 1.0

    boxes = row["boxes"] or []
    for box in boxes:
        check_box(box, size)
    if boxes and task.answer == "box" and len(boxes) != 1:
        raise ValueError(f"{len(boxes)} boxes, but task {task.name!r} answers with one")
    if task.answer == "boxes" and len(row["labels"] or ()) != len(boxes):
        raise ValueError(f"{len(row['labels'] or ())} labels for {len(boxes)} boxes")
    for code in row["codes"] or ():
        if not 0 <= code < _CODES:
            raise ValueError(f"image code {code} is not one of 0…{_CODES - 1}")

    answer = {"box": "boxes", "boxes": "boxes", "codes": "codes"}.get(task.answer, "target")
    if labelled and not row[answer]:
        raise ValueError(f"no {answer}, which task {task.name!r} needs in training")
    return row


def picture_size(source: bytes | str | os.PathLike) -> tuple[int, int]:
    """
    Gives width and height of a picture that stands upright, from its header alone.

    Args:
        source (`bytes`, `str` or `os.PathLike`): The bytes or the path of a picture file.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it is not a picture.
    """
    try:
        with PIL.Image.open(source if isinstance(source, str | os.PathLike) else io.BytesIO(source)) as picture:
            width, height = picture.size
            try:
                turned = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            except Exception:  # damaged metadata does not make a picture unusable, and processing ignores it too
                turned = False
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such image file: {source!s}") from error
    except Exception as error:  # each of Pillow's readers has its own errors for a broken header
        name = f"{source!s}" if isinstance(source, str | os.PathLike) else "the image"
        # Pillow's own text is the path again, or an address in memory.
        reason = "it is empty or another kind of file" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise ValueError(f"{name} cannot be opened as a picture: {reason}") from error
    return (height, width) if turned else (width, height)


def parse_box(text: str) -> list[float]:
    """
    Reads `"x0,y0,x1,y1"`.

    Raises:
        `ValueError`: if that is not four numbers.
    """
    parts = text.strip().split(",")
    try:
        box = [float(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"box {text!r} is not four numbers") from error
    if len(box) != 4:
        raise ValueError(f"box {text!r} is not four numbers")
    return box


def check_box(box: Sequence[float], size: tuple[int, int] | None = None) -> None:
    """
    Refuses a box without an area, or wholly outside of the picture. Boxes that only reach over an edge, as those of
    published data do, are fine; processing cuts them.

    Args:
        box (`Sequence[float]`): `[x0, y0, x1, y1]`.
        size (`tuple[int, int]`, *optional*): Width and height of the upright picture.

    Raises:
        `ValueError`: if the box is bad.
    """
    if len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise ValueError(f"box {list(box)} is not four numbers")
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box {list(box)} is empty or inverted (a box is x0, y0, x1, y1)")
    if size is not None and (x0 >= size[0] or y0 >= size[1] or x1 <= 0 or y1 <= 0):
        raise ValueError(f"box {list(box)} lies outside of the picture of {size[0]} x {size[1]} pixels")


def _answer(word: str, answers: Sequence[str], labels: Mapping[str, str]) -> str:
    """Gives OFA's word for a label of a data set."""
    key = word.strip().lower()
    answer = labels.get(key, key)
    if answer not in answers:
        known = ", ".join(map(repr, dict.fromkeys([*labels, *answers])))
        raise ValueError(f"unknown label {word!r}; known are {known}")
    return answer
