"""What `ofa demo` shows and the page offers: rows to ask, about the pictures that come with the package."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import CommandError


FOLDER = Path(__file__).parent.parent / "assets" / "scenes"
TABLE = "examples.json"


def read_examples(tasks: Collection[str] = ()) -> list[dict[str, Any]]:
    """Gives the rows of the table of examples.

    Args:
        tasks: names of tasks, for their rows alone; without any, all rows.

    Returns:
        Rows with `task`, and of `text`, `text_pair`, `image` (the path of a file) and `answers` (a closed list) what
        is asked; those about one picture together.

    Raises:
        CommandError: if this installation lacks the table.
    """
    try:
        rows = json.loads((FOLDER / TABLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"the package's examples are missing from {FOLDER}; install it again") from error
    placed = [{**row, "image": str(FOLDER / row["image"])} if "image" in row else row for row in rows]
    return [row for row in placed if not tasks or row["task"] in tasks]
