"""Text files: those of any size, line by line in pieces that workers can share; tables, lists, and whole files."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


_BLOCK = 1 << 20
# A picture of a published file is a line of some 100 kB.
_PIECE = 64 << 20
_MOST_PIECES = 64
_LONGEST_CELL = 2**31 - 1  # the default of 128 kB is too little for a long article or a list of codes

Piece = tuple[str, int, int]


@dataclass(frozen=True)
class Line:
    """
    Where a line stands; `str` gives `file:line`. Line numbers are counted when somebody asks, since a piece in the
    middle of a large file does not know what lies before it.
    """

    path: str
    offset: int

    def __str__(self) -> str:
        return f"{self.path}:{_count_lines(self.path, self.offset) + 1}"


# How far each file has been counted: bytes and lines. Bad rows come in order, so that a file is counted once at most.
_counted: dict[str, tuple[int, int]] = {}


def _count_lines(path: str, offset: int) -> int:
    done, lines = _counted.get(path, (0, 0))
    if done > offset:
        done, lines = 0, 0
    with open(path, "rb") as file:
        file.seek(done)
        while done < offset and (block := file.read(min(_BLOCK, offset - done))):
            done += len(block)
            lines += block.count(b"\n")
    _counted[path] = (offset, lines)
    return lines


def cut(paths: Sequence[str], pieces: int | None = None) -> list[Piece]:
    """
    Cuts files into pieces, `(path, start, stop)` in bytes, which together hold every line once and in order.

    Args:
        paths (`Sequence[str]`): The files.
        pieces (`int`, *optional*): Pieces for each file; by default one for 64 MiB, and 64 at most.
    """
    shards = []
    for path in paths:
        size = os.path.getsize(path)
        count = pieces or min(_MOST_PIECES, max(1, size // _PIECE))
        shards += [(path, size * i // count, size * (i + 1) // count) for i in range(count)]
    return shards


def read_lines(piece: Piece) -> Iterator[tuple[Line, bytes]]:
    """
    Gives the lines that begin in a piece of a file, without their ends; empty lines are left out.

    Args:
        piece (`tuple[str, int, int]`): What `cut` gives.
    """
    path, start, stop = piece
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # a line belongs to the piece in which it begins
        offset = file.tell()
        while offset < stop and (line := file.readline()):
            text = line.rstrip(b"\r\n")
            if text:
                yield Line(path, offset), text.removeprefix(b"\xef\xbb\xbf") if offset == 0 else text
            offset += len(line)


def read_header(path: str) -> list[str]:
    """
    Gives the column names in the first line of a CSV or TSV file.

    Raises:
        `ValueError`: if it is not CSV.
    """
    if path.lower().endswith(".csv"):
        csv.field_size_limit(_LONGEST_CELL)
        with open(path, encoding="utf-8-sig", newline="") as file:
            try:
                return next(csv.reader(file, strict=True), [])
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}:1 is not CSV in UTF-8: {error}") from error
    with open(path, "rb") as file:
        line = file.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    return [name.strip() for name in line.decode("utf-8", "replace").split("\t")]


def show_names(names: Sequence[str]) -> str:
    """Gives column names for a message, cut short: where there is no header, the first line may hold pictures."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in names[:20]]
    return f"[{', '.join(shown + ['…'] * (len(names) > 20))}]"


def read_csv(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Gives the rows of a CSV file with a header, by column name, and where each ends.

    Raises:
        `ValueError`: if the file cannot be read on.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                yield f"{path}:{rows.line_num}", row
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}:{rows.line_num + 1} is not CSV in UTF-8: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_answers(path: str | os.PathLike) -> list[str]:
    """
    Reads a closed list of answers.

    Args:
        path (`str` or `os.PathLike`):
            A text file with an answer a line, or a JSON file: a list of answers, or an object that counts them, such
            as the official `ans2label` (`{"yes": 0, "no": 1, …}`) or its inverse.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it is a pickle, which could run code, or something else, or holds no answer.
    """
    content = Path(path).read_bytes()
    if content.startswith(b"\x80"):  # of all pickles that are less than 20 years old
        raise ValueError(
            f"{path} is a pickle, which is not read. If you trust it, make it JSON: python -c 'import json, pickle, "
            "sys; print(json.dumps(list(pickle.load(sys.stdin.buffer))))' < FILE > answers.json"
        )
    try:
        text = content.decode("utf-8")
        answers = json.loads(text) if str(path).endswith(".json") else text.splitlines()
    except ValueError as error:
        raise ValueError(f"{path} is no list of answers: {error}") from error
    if isinstance(answers, dict):
        if all(isinstance(value, str) for value in answers.values()):
            answers = {answer: int(number) for number, answer in answers.items() if number.isdigit()}
        if all(isinstance(number, int) for number in answers.values()):
            answers = sorted(answers, key=answers.__getitem__)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path} is no list of answers: it holds something else than texts.")
    found = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not found:
        raise ValueError(f"{path} holds no answer.")
    return found
