"""What `ofa demo` shows and the page offers: rows to ask, about the pictures that come with the package."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import CommandError


FOLDER = Path(__file__).parent.parent / "assets" / "scenes"
TABLE = "examples.json"


def read_examples(tasks: Collection[str] = (), table: str | Path | None = None) -> list[dict[str, Any]]:
    """Gives the rows of a table of examples.

    Args:
        tasks: names of tasks, for their rows alone; without any, all rows.
        table: a JSON file of rows in place of the package's own; its pictures are named from its folder on.

    Returns:
        Rows with `task`, and of `text`, `text_pair`, `image` (the path of a file) and `answers` (a closed list) what
        is asked; those about one picture together.

    Raises:
        CommandError: if this installation lacks the table, or a table of yours is none.
    """
    path = FOLDER / TABLE if table is None else Path(table)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if table is None:
            raise CommandError(f"the package's examples are missing from {FOLDER}; install it again") from error
        raise CommandError(f"{table} is no table of examples: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "task" in row for row in rows):
        raise CommandError(f'{path} must be a list of rows such as {{"task": "vqa", "image": "a.png", "text": "…"}}')
    placed = [{**row, "image": str(path.parent / row["image"])} if "image" in row else row for row in rows]
    return [row for row in placed if not tasks or row["task"] in tasks]
