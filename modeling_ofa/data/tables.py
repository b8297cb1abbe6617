"""Tables of your own: CSV, TSV or JSON lines beside a folder of pictures, and what `load_dataset` loads."""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from datasets import ClassLabel, Image, load_dataset, load_dataset_builder

from .example import EXAMPLE_FEATURES, Row, parse_box
from .lines import cut, read_csv, read_header, read_lines, show_names
from .official import find_files, parse_codes, parse_list


BoxFormat = Literal["xyxy", "xywh"]
Columns = Mapping[str, str | Sequence[str]]
HubShard = tuple[str, int, int, str]

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
_FIRST_RECORDS = 100


def read_folder(
    path: str,
    *,
    task: str | None = None,
    split: str | None = None,
    images: str | None = None,
    columns: Columns | None = None,
    box_format: BoxFormat = "xyxy",
) -> Iterator[Row]:
    """
    Reads a table of your own beside a folder of pictures.

    Args:
        path (`str`):
            A CSV, TSV (both with a header) or JSONL file, or a folder with `metadata.csv` (or `.jsonl`, `.tsv`) in it
            or in its folders for the splits.
        task (`str`, *optional*): The task of rows that have no column `task`.
        split (`str`, *optional*): The folder in `path`, if there is one.
        images (`str`, *optional*): The folder in which the pictures lie; by default that of the table.
        columns (`Mapping[str, str | Sequence[str]]`, *optional*):
            The table's name for each column of an Example, `{"image": "file", "text": "question"}`. `boxes` may be in
            four columns, `{"boxes": ["x", "y", "w", "h"]}`. Columns that are called as in an Example, and `file_name`
            for `image`, need not be named.
        box_format (`str`): `"xyxy"` for corners, or `"xywh"` for the first corner, width and height.

    Raises:
        `FileNotFoundError`: if there is no table.
        `ValueError`: if it has no such columns.
    """
    table = _find_table(path, split)
    folder = images or os.path.dirname(table)
    stem, suffix = os.path.splitext(os.path.basename(table))
    suffix = suffix.lower()
    names = _column_names(table, suffix)
    if "file_name" in names and "image" not in names:
        columns = {"image": "file_name", **(columns or {})}
    columns = _check_columns(columns or {}, names, table)
    for number, (where, record, size) in enumerate(_read_records(table, suffix)):
        yield Row(where, partial(_make, record, columns, task, folder, box_format, f"{stem}-{number}"), size)


def _find_table(path: str, split: str | None) -> str:
    if not os.path.isdir(path):
        return find_files(path)[0]
    folder = os.path.join(path, split) if split and os.path.isdir(os.path.join(path, split)) else path
    for name in _METADATA:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise FileNotFoundError(f"{folder} has none of {', '.join(_METADATA)}; pass the file that lists the pictures.")


def _column_names(table: str, suffix: str) -> list[str]:
    """Gives the names in the header, or the keys of the first JSON lines."""
    if suffix in (".csv", ".tsv"):
        return read_header(table)
    names: dict[str, None] = {}
    for _, parse, _ in itertools.islice(_read_records(table, suffix), _FIRST_RECORDS):
        try:
            names.update(dict.fromkeys(parse()))
        except ValueError:  # reported when its turn comes
            continue
    return list(names)


def _read_records(table: str, suffix: str) -> Iterator[tuple[Any, Callable[[], Mapping[str, Any]], int]]:
    """Gives for each record of a table where it is, what parses it, and its length."""
    if suffix == ".csv":
        for place, cells in read_csv(table):
            yield place, partial(_check_cells, cells), 1
        return
    (piece,) = cut([table], 1)
    header = read_header(table) if suffix == ".tsv" else None
    for where, line in read_lines(piece):
        if header is None:
            yield where, partial(_parse_json, line), len(line) + 1
        elif where.offset:
            yield where, partial(_split_line, line, header), len(line) + 1


def _check_cells(cells: Mapping[Any, Any]) -> Mapping[str, Any]:
    # csv.DictReader puts what is too much under the key None, and None where something is missing.
    if None in cells or None in cells.values():
        raise ValueError("the row has another number of columns than the header")
    return cells


def _parse_json(line: bytes) -> Mapping[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("the line is not a JSON object")
    return record


def _split_line(line: bytes, header: Sequence[str]) -> Mapping[str, Any]:
    cells = line.decode().split("\t")
    if len(cells) != len(header):
        raise ValueError(f"the row has {len(cells)} columns, and the header {len(header)}")
    return dict(zip(header, cells, strict=True))


def hub_shards(path: str, num_shards: int | None, split: str | None = None, **load_options: Any) -> list[HubShard]:
    """
    Gives the pieces of a data set, one for each of its files unless `num_shards` says fewer, and with each which
    version of the data it is.
    """
    builder = load_dataset_builder(path, **load_options)
    files = builder.as_streaming_dataset(split=split or "train").num_shards
    pieces = min(num_shards or files, files)
    return [(path, i, pieces, builder.cache_dir) for i in range(pieces)]


def read_hub(
    shard: HubShard,
    *,
    task: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
    box_format: BoxFormat = "xyxy",
    **load_options: Any,
) -> Iterator[Row]:
    """
    Reads whatever `datasets.load_dataset` loads: a data set of the Hub, or a local folder of Parquet, pictures, …

    Args:
        shard (`tuple[str, int, int, str]`): One that `hub_shards` gives.
        task (`str`, *optional*): The task of rows that have no column `task`.
        split (`str`, *optional*, defaults to `"train"`): The split.
        columns (`Mapping[str, str | Sequence[str]]`, *optional*): As for `read_folder`.
        box_format (`str`): As for `read_folder`.
        **load_options: Passed to `load_dataset`, such as `name` or `revision`.

    Raises:
        `ValueError`: if the data has no such columns.
    """
    path, index, pieces, _ = shard
    data = load_dataset(path, split=split or "train", streaming=True, **load_options)
    words = {}
    for name, feature in (data.features or {}).items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
        elif isinstance(feature, ClassLabel):
            words[name] = feature
    source = f"{path}[{split or 'train'}]" + (f" piece {index} of {pieces}" if pieces > 1 else "")
    checked: Columns | None = None
    for number, record in enumerate(data.shard(pieces, index) if pieces > 1 else data):
        checked = _check_columns(columns or {}, list(record), source) if checked is None else checked
        for name, feature in words.items():  # test sets without labels have -1
            value = record[name]
            record[name] = None if value is None or value < 0 else feature.int2str(value)
        key = f"{index}-{number}" if pieces > 1 else str(number)
        yield Row(f"{source} row {number}", partial(_make, record.copy, checked, task, "", box_format, key))


def _check_columns(columns: Columns, names: Sequence[str], where: str) -> Columns:
    """
    Gives the column of the data for each of an Example that it has.

    Raises:
        `ValueError`: if a column is named that either side does not have, or if nothing can be used.
    """
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns={columns!r} must say what each column is, such as image=file,text=question.")
    if not names:
        raise ValueError(f"{where} has no columns: it is empty, or no table.")
    if unknown := sorted(set(columns) - set(EXAMPLE_FEATURES)):
        raise ValueError(f"columns gives {unknown}, but the columns of an Example are {', '.join(EXAMPLE_FEATURES)}.")
    wanted = [name for value in columns.values() for name in ([value] if isinstance(value, str) else value)]
    if missing := sorted(set(wanted) - set(names)):
        raise ValueError(f"{where} has no column {show_names(missing)}; it has {show_names(names)}.")
    columns = {**{name: name for name in EXAMPLE_FEATURES if name in names}, **columns}
    if not columns:
        raise ValueError(
            f"{where} has the columns {show_names(names)}. Say what they are, such as "
            'columns={"image": "file", "text": "question", "target": "answer"}.'
        )
    return columns


def _make(
    parse: Callable[[], Mapping[str, Any]],
    columns: Columns,
    task: str | None,
    folder: str,
    box_format: BoxFormat,
    name: str,
) -> dict[str, Any]:
    """Makes an Example of a record with named columns."""
    record = parse()
    example: dict[str, Any] = {"id": name, "task": task}
    for column, source in columns.items():
        if isinstance(source, str):
            value = record.get(source)
        else:  # the sides of a box
            value = [record.get(side) for side in source]
            value = None if all(side in (None, "") for side in value) else value
        if value in (None, "") or (isinstance(value, float) and value != value):
            continue
        if column == "boxes":
            example["boxes"] = _parse_boxes(value, box_format)
        elif column in _PARSERS:
            example[column] = _PARSERS[column](value)
        elif column == "image":
            example["image"] = _find_picture(value, folder)
        elif isinstance(value, list | dict):
            raise ValueError(f"column {source!r} holds a {type(value).__name__} and not the text that {column!r} is")
        else:
            example[column] = str(value)
    if example["task"] is None:
        raise ValueError("no task; give task=, or name the column that holds it")
    return example


def _find_picture(value: Any, folder: str) -> bytes | str:
    """Gives the bytes or the path of a picture."""
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    return os.path.join(folder, value) if isinstance(value, str) else value


def _parse_list(value: Any) -> list[Any]:
    """Reads a list, also one written as JSON or as `a&&b`."""
    if isinstance(value, str):
        return json.loads(value) if value.lstrip().startswith("[") else parse_list(value)
    return list(value)


def _parse_texts(value: Any) -> list[str]:
    texts = _parse_list(value)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{texts} is not a list of texts")
    return texts


def _parse_boxes(value: Any, box_format: BoxFormat) -> list[list[float]]:
    """Reads one box or several: lists of numbers, JSON, or `x0,y0,x1,y1&&…`."""
    boxes = _parse_list(value)
    if boxes and not isinstance(boxes[0], list | tuple) and not (isinstance(boxes[0], str) and "," in boxes[0]):
        boxes = [boxes]
    boxes = [parse_box(box if isinstance(box, str) else ",".join(map(str, box))) for box in boxes]
    if box_format == "xywh":
        boxes = [[x, y, x + width, y + height] for x, y, width, height in boxes]
    return boxes


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "labels": _parse_texts,
    "references": _parse_texts,
    "objects": _parse_texts,
    "answer_scores": lambda value: [float(score) for score in _parse_list(value)],
    "codes": lambda value: parse_codes(value) if isinstance(value, str) else [int(code) for code in value],
    "confidence": float,
}
