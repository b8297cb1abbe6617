"""The official TSV files: the published ones, and any that hold the same columns in another order."""

import base64
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .example import Row, parse_box
from .lines import Line, Piece, cut, read_header, read_lines, show_names


@dataclass(frozen=True)
class Table:
    """
    The columns of one kind of file.

    Args:
        fields (`str`): What the official data set reads, in its order. Those at the end may be missing.
        columns (`str`): Where that stands in the published file; the `--selected-cols` of the official scripts.
        width (`int`, *optional*): How many columns the published file has, where that is known.
        wide (`str`, *optional*): The fields if there are more of them than in `fields`.
        weight (`float`, *optional*): Weight of the samples, if it is not 1.
    """

    fields: str
    columns: str
    width: int | None = None
    wide: str = ""
    weight: float | None = None


_PAIR = "text text_pair label"

TABLES = {
    "caption": Table("id image captions", "0,4,2", 5),
    "vqa": Table("id image text answers objects", "0,5,2,3,4", 6),
    "visual_grounding": Table("id image text box", "0,4,2,3", 5),
    "grounded_caption": Table("id image captions region", "0,4,2,3", 5),
    "visual_entailment": Table("id image text text_pair label", "0,2,3,4,5", 6),
    "image_classification": Table("image label", "0,2", 3),
    "image_generation": Table("id text codes", "0,2,1", 3, wide="id image text codes"),
    "ocr": Table("id image label", "0,1,2", 3),
    "summarization": Table("text label", "0,1", 2),
    "cola": Table("text label", "1,2"),
    "mnli": Table(_PAIR, "0,1,2"),
    "mrpc": Table(_PAIR, "0,1,2"),
    "qnli": Table(_PAIR, "1,2,3"),
    "qqp": Table(_PAIR, "3,4,5"),
    "rte": Table(_PAIR, "1,2,3"),
    "sst2": Table("text label", "0,1"),
    # The four files of pre-training. The official data set counts the samples of the last three twice.
    "vision_language": Table("id image caption question answers objects source type", "0,1,2,3,4,5,6,7", 8),
    "text_infilling": Table("id whole_text", "0,1", 2, weight=2.0),
    "image_infilling": Table("id image codes", "0,1,2", 3, weight=2.0),
    "object_detection": Table("id image detections", "0,1,2", 3, weight=2.0),
}

# Numbers that stand for labels in the official files. MNLI's are in no order that other data sets use.
_NUMBERS = {
    "cola": {"0": "no", "1": "yes"},
    "mnli": {"0": "maybe", "1": "yes", "2": "no"},
    "mrpc": {"0": "no", "1": "yes"},
    "qnli": {"0": "no", "1": "yes"},
    "qqp": {"0": "no", "1": "yes"},
    "sst2": {"0": "negative", "1": "positive"},
}


def parse_list(text: str) -> list[str]:
    """Reads `a&&b`."""
    return [part for part in text.split("&&") if part.strip()]


def parse_codes(text: str) -> list[int]:
    """
    Reads image codes with spaces between them.

    Raises:
        `ValueError`: if they are not whole numbers.
    """
    try:
        return [int(code) for code in text.split()]
    except ValueError as error:
        raise ValueError(f"image codes must be whole numbers, but {error}") from error


def parse_answers(text: str) -> dict[str, Any]:
    """
    Reads weighted answers, `0.6|!+yes&&1.0|!+no`.

    Raises:
        `ValueError`: if an answer has no weight.
    """
    scores: dict[str, float] = {}
    for part in parse_list(text):
        score, mark, answer = part.partition("|!+")
        try:
            scores[answer] = float(score)
        except ValueError:
            mark = ""
        if not mark or not answer.strip():
            raise ValueError(f"answer {part!r} is not of the form 0.6|!+yes")
    return {"references": list(scores), "answer_scores": list(scores.values())}


def parse_detections(text: str) -> dict[str, Any]:
    """
    Reads boxes with labels, `x0,y0,x1,y1,number,name&&…`.

    Raises:
        `ValueError`: if one has fewer parts.
    """
    boxes, labels = [], []
    for part in parse_list(text):
        *box, _, label = part.strip().split(",", 5)
        if len(box) != 4 or not label.strip():
            raise ValueError(f"object {part!r} is not of the form x0,y0,x1,y1,number,name")
        boxes.append(parse_box(",".join(box)))
        labels.append(label)
    return {"boxes": boxes, "labels": labels}


_PARSERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "id": lambda value: {"id": value.strip()},
    "text": lambda value: {"text": value},
    "text_pair": lambda value: {"text_pair": value},
    "label": lambda value: {"target": value},
    "whole_text": lambda value: {"text": value, "target": value},
    "captions": lambda value: {"references": parse_list(value)},
    "answers": parse_answers,
    "objects": lambda value: {"objects": parse_list(value)},
    "box": lambda value: {"boxes": [parse_box(value)] if value.strip() else None},
    "region": lambda value: {"text": value},
    "detections": lambda value: parse_detections(value) if value.strip() else {},
    "codes": lambda value: {"codes": parse_codes(value)},
    "source": lambda value: {"source": value.strip()},
}


def decode_image(text: bytes) -> bytes:
    """
    Decodes base64, URL-safe or not, with or without padding.

    Raises:
        `ValueError`: if it is not base64.
    """
    text = text.strip().translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"the image is not base64: {error}") from error


def find_files(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """
    Gives the files that a path, a pattern with `*`, or a list of these stands for.

    Raises:
        `FileNotFoundError`: if there is none.
    """
    if not isinstance(path, str | os.PathLike):
        return [file for one in path for file in find_files(one)]
    name = os.fspath(path)
    files = [name] if os.path.isfile(name) else sorted(filter(os.path.isfile, glob.glob(name)))
    if not files:
        raise FileNotFoundError(f"No such file: {name}")
    return files


def tsv_shards(path: str | os.PathLike | Sequence[str | os.PathLike], num_shards: int | None = None) -> list[Piece]:
    """Cuts TSV files into pieces for workers: `num_shards` of each file."""
    return cut(find_files(path), num_shards)


def read_tsv(
    shard: Piece,
    *,
    task: str,
    columns: str | Mapping[str, int | str] | None = None,
    images: str | os.PathLike | None = None,
) -> Iterator[Row]:
    """
    Reads official TSV files.

    Args:
        shard (`tuple[str, int, int]`): A piece of a file.
        task (`str`): The kind of file: a key of `TABLES`.
        columns (`str` or `Mapping[str, int | str]`, *optional*):
            Where the columns stand in a file that is not as published: `"0,4,2"` counts them in the order of the
            official data set, as its `--selected-cols`; `{"image": 4, "text": "question"}` says it by field, with
            the names of a header in the first line or with numbers.
        images (`str`, *optional*): Folder of picture files, if the image column holds their names and not base64.

    Raises:
        `ValueError`: if there is no such kind of file, or `columns` do not fit it.
    """
    if task not in TABLES:
        raise ValueError(f"No official TSV file is for task {task!r}. Those that there are: {', '.join(TABLES)}.")
    table, path = TABLES[task], shard[0]
    places, width, has_header = _find_columns(task, table, columns, path)
    for where, line in read_lines(shard):
        if not (has_header and where.offset == 0):
            cells = line.split(b"\t")
            yield Row(where, partial(_make, where, cells, task, table, places, width, images), len(line) + 1)


def _find_columns(
    task: str, table: Table, columns: str | Mapping[str, int | str] | None, path: str
) -> tuple[dict[str, int], int | None, bool]:
    """Gives the place of each field, the number of columns if it is known, and whether the first line is a header."""
    fields = table.fields.split()
    if columns is None or isinstance(columns, str):
        try:
            numbers = [int(number) for number in (columns or table.columns).split(",")]
        except ValueError as error:
            raise ValueError(f'columns={columns!r} must be numbers, as "{table.columns}".') from error
        if len(numbers) > len(fields):
            fields = table.wide.split()
        if len(numbers) > len(fields) or min(numbers) < 0:
            raise ValueError(f"columns={columns!r} must say where these stand: {table.fields}.")
        return dict(zip(fields, numbers, strict=False)), None if columns else table.width, False

    if unknown := set(columns) - {"id", *fields, *table.wide.split()}:
        raise ValueError(f"columns names {sorted(unknown)}, but files of task {task!r} have: {table.fields}.")
    header = read_header(path) if any(isinstance(place, str) for place in columns.values()) else []
    places = {}
    for field, place in columns.items():
        if isinstance(place, str) and place not in header:
            raise ValueError(f"{path} has no column {place!r}; its first line says {show_names(header)}.")
        places[field] = header.index(place) if isinstance(place, str) else place
    return places, len(header) or None, bool(header)


def _make(
    where: Line,
    cells: list[bytes],
    task: str,
    table: Table,
    places: Mapping[str, int],
    width: int | None,
    images: str | os.PathLike | None,
) -> dict[str, Any]:
    """Makes an Example of a line."""
    if width not in (None, len(cells)) or max(places.values()) >= len(cells):
        expected = f"{width} columns" if width else f"column {max(places.values())}, counted from 0,"
        raise ValueError(
            f"{len(cells)} columns where {expected} should be, for {', '.join(places)}; if the file has others, "
            f'say which with columns="{table.columns}"'
        )
    image = cells[places["image"]] if "image" in places else b""
    values = {field: cells[place].decode() for field, place in places.items() if field != "image"}
    if task == "vision_language":
        task, values = _vision_language(values)
    elif "label" in values:
        values["label"] = _NUMBERS.get(task, {}).get(values["label"].strip(), values["label"])

    stem = os.path.splitext(os.path.basename(where.path))[0]
    example: dict[str, Any] = {"task": task, "id": f"{stem}-{where.offset}", "confidence": table.weight}
    for field, value in values.items():
        example.update(_PARSERS[field](value))
    if image:
        example["image"] = decode_image(image) if images is None else os.path.join(images, os.fsdecode(image))
    return example


def _vision_language(values: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Gives task and fields of a line of `vision_language_examples.tsv`, whose last column says what it is."""
    kind = values["type"].strip()
    common = {"id": values["id"], "source": values["source"]}
    if kind == "caption":
        # the objects that the caption names: matching makes wrong captions of them
        return "caption", {**common, "captions": values["caption"], "objects": values["objects"]}
    if kind == "qa":
        # here they are those of the question, and not detected ones that a question may be followed by
        return "vqa", {**common, "text": values["question"], "answers": values["answers"]}
    if kind == "visual_grounding":
        return "visual_grounding", {**common, "text": values["caption"], "box": values["answers"]}
    raise ValueError(f"type {kind!r} is not caption, qa or visual_grounding")
