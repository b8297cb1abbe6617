"""`ofa tasks`: the table of tasks, as people or programs read it."""

from __future__ import annotations

import argparse
import json

from ..tasks_ofa import TASKS, Task
from .commands import COMMANDS
from .request import usage


_ANSWERS = {"text": "a text", "label": "one of --answers", "box": "a box", "boxes": "labelled boxes", "codes": "codes"}


def run_listing(arguments: argparse.Namespace) -> int:
    """Runs `ofa tasks`; gives the exit status."""
    names = {command.task: command.name for command in COMMANDS}
    if arguments.json:
        for row in TASKS.values():
            print(json.dumps(_record(row, names.get(row.name)), ensure_ascii=False))
        return 0
    lines = [("TASK", "INPUT", "ANSWER", "COMMAND")]
    for row in TASKS.values():
        answer = ", ".join(row.answers) or _ANSWERS[row.answer]
        takes = "(recorded speech, not read here)" if row.takes_audio else usage(row)
        lines.append((row.name, takes, answer, f"ofa {names[row.name]}" if row.name in names else ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    print("\nTEXT and TEXT_PAIR are:")
    for row in TASKS.values():
        meanings = [meaning for meaning in (row.text_is, row.text_pair_is) if meaning is not None]
        if meanings:
            print(f"  {row.name.ljust(widths[0])}  {'; '.join(meanings)}")
    return 0


def _record(row: Task, command: str | None) -> dict[str, object]:
    """Gives a row of the table as JSON has it."""
    return {
        "task": row.name,
        "command": command,
        "image": row.takes_image,
        "audio": row.takes_audio,
        "text": row.takes_text and (row.text_is or True),
        "text_pair": row.takes_pair and (row.text_pair_is or True),
        "text_pair_required": row.needs_pair,
        "objects": row.takes_objects,
        "answer": row.answer,
        "answers": list(row.answers),
        "metric": row.metric,
    }
