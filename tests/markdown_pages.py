"""Reads Markdown pages as far as tests of the documentation need it: fences, code spans, tables, links, headings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?)$", re.MULTILINE)


class Fence(NamedTuple):
    """A block of code."""

    language: str
    code: str

    @property
    def first_line(self) -> str:
        """`str`: What names it in a test."""
        return self.code.strip().split("\n")[0]


class Cell(NamedTuple):
    """A cell of a table, with what stands above it at the top of its column."""

    header: str
    text: str
    is_last: bool

    @property
    def spans(self) -> list[str]:
        """`list[str]`: The code in it."""
        return _SPAN.findall(self.text)


class Page:
    """
    A Markdown file.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.fences = [Fence(*match.groups()) for match in _FENCE.finditer(self.text)]
        self.prose = _FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """`list[str]`: The code in sentences and tables."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """`list[str]`: Where links and pictures point to."""
        return _LINK.findall(_SPAN.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """`set[str]`: The names that the headings have on GitHub."""
        found: list[str] = []
        for heading in _HEADING.findall(self.prose):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
            name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            found.append(f"{name}-{found.count(name)}" if name in found else name)
        return set(found)

    def cells(self) -> Iterator[Cell]:
        """Gives the cells of all tables, row by row."""
        header: list[str] = []
        for line in self.prose.splitlines():
            if not line.startswith("|"):
                header = []
                continue
            texts = [text.strip() for text in line.strip("|").split("|")]
            if not header:
                header = texts
            elif not set(line) <= set("|-: "):
                assert len(texts) == len(header), f"{self.path}: {line} has not {len(header)} cells"
                for i, text in enumerate(texts):
                    yield Cell(header[i], text, i == len(texts) - 1)
