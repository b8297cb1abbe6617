"""Text files of any size, read line by line in pieces, so that workers can share one file."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


_BLOCK = 1 << 20
# A picture of a published file is a line of some 100 kB.
_PIECE = 64 << 20
_MOST_PIECES = 64

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
    """Gives the column names in the first line of a TSV file."""
    with open(path, "rb") as file:
        line = file.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    return [name.strip() for name in line.decode("utf-8", "replace").split("\t")]


def read_csv(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Gives the rows of a CSV file with a header, by column name, and where each ends.

    Raises:
        `ValueError`: if the file has no header, or cannot be read on.
    """
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is too little for a long article or a list of codes
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            if not rows.fieldnames:
                raise ValueError("it is empty; the first line must name the columns")
            for row in rows:
                yield f"{path}:{rows.line_num}", row
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}:{rows.line_num + 1} is not CSV in UTF-8: {error}") from error
