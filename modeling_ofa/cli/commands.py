"""The commands that people look for by name: rows that each stand for a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A short way to ask one task: a row of `COMMANDS`. What it takes, and what that is, stands in the task's row."""

    name: str
    task: str
    summary: str
    example: str
    """The words after the name."""
    text: str = "TEXT"
    """What help calls the text, where the task takes one. Such a command takes one picture."""
    pair_option: str | None = None
    """The option that gives the second text, where the task can do without."""


COMMANDS = (
    Command("caption", "caption", "Say what each picture shows.", "*.jpg --json"),
    Command("vqa", "vqa", "Answer a question about a picture.", 'holiday.jpg "what colour is the boat?"', "QUESTION"),
    Command(
        "ground",
        "visual_grounding",
        "Find what a phrase names in a picture: a box as x0 y0 x1 y1 in pixels from the top left corner.",
        'holiday.jpg "the red boat" --output boxes.png',
    ),
    Command(
        "region",
        "grounded_caption",
        "Say what a region of a picture shows.",
        "holiday.jpg 40,30,180,120",
        "X0,Y0,X1,Y1",
    ),
    Command("detect", "object_detection", "Find the objects in each picture.", "holiday.jpg --output boxes.png"),
    Command("read", "ocr", "Read the text that each picture shows.", "sign.jpg"),
    Command(
        "classify",
        "image_classification",
        "Choose what each picture shows from a list.",
        "*.jpg --answers cat,dog,neither --top-k 3",
    ),
    Command(
        "entail",
        "visual_entailment",
        "Say whether a picture implies a sentence: yes, maybe or no.",
        'holiday.jpg "people are at the sea"',
        "HYPOTHESIS",
        "--premise",
    ),
    Command(
        "match",
        "image_text_matching",
        "Say whether a caption describes a picture: yes or no.",
        'holiday.jpg "two boats on a beach" --scores',
        "CAPTION",
    ),
    Command("summarize", "summarization", "Summarize an article in a sentence.", "- < article.txt"),
    Command(
        "complete",
        "text_infilling",
        "Write a text anew with what is missing in it.",
        '"the quick brown <mask> jumps over the lazy dog"',
    ),
)
