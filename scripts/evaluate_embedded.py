"""
Measures a checkpoint of the small world on scenes that it has not seen, beside chance, and writes its model card.

    python scripts/build_world.py --write seen test far --output runs/world/data --rows 500
    python scripts/evaluate_embedded.py modeling_ofa/assets/checkpoint --data runs/world/data

`seen` are fresh scenes of the designs that it was trained on, `test` and `far` scenes of designs that it was not.
Answers are those of scripts/evaluate.py, which goes on where it was stopped. `metrics.json` and `README.md` go into
the folder of the checkpoint.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, disable_progress_bars
from world.artwork import SETS, TEST_DESIGN
from world.publish import TEST_PARTS
from world.splits import SIZE, SPLITS
from world.things import THINGS
from world.words import MOST, NOTHING, some

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.data.lines import write_whole
from modeling_ofa.data.readers import load_examples
from modeling_ofa.evaluation.boxes import grounding_accuracy
from modeling_ofa.hub import Card, Measured


EVALUATED = ("seen", "test", "far")
DEFAULT_DATA = Path("runs/world/data")
Row = Mapping[str, Any]

_COUNTED = {some(name, count): (name, count) for name in THINGS for count in range(1, MOST + 1)}


# --- scores ----------------------------------------------------------------------------------------------------------
def objects_of(text: str) -> Counter:
    """The things that a caption names, counted; a part that names none of the world stands for itself."""
    objects: Counter = Counter()
    for part in text.split(" and ") if text != NOTHING else ():
        name, count = _COUNTED.get(part, (part, 1))
        objects[name] += count
    return objects


def exact_captions(said: Sequence[str], true: Sequence[str]) -> float:
    """How many captions name exactly the right things, in whatever order."""
    return float(np.mean([objects_of(a) == objects_of(b) for a, b in zip(said, true, strict=True)]))


def equal(said: Sequence[str], true: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(said, true, strict=True)]))


def kind_of(question: str) -> str:
    """The words that tell what kind of answer a question wants."""
    return re.match(r"(how many|where|what color|which color|(?:is|are|can|do)\b|\w+)", question)[1]  # type: ignore[index]


def by_kind(rows: Sequence[Row]) -> float:
    """The score of whoever knows the most frequent answer to each kind of question."""
    answers: dict[str, Counter] = {}
    for row in rows:
        answers.setdefault(kind_of(row["text"]), Counter())[row["target"]] += 1
    return sum(found.most_common(1)[0][1] for found in answers.values()) / len(rows)


def most_frequent(rows: Sequence[Row]) -> float:
    """The score of whoever always gives the most frequent answer."""
    return Counter(row["target"] for row in rows).most_common(1)[0][1] / len(rows)


def other_captions(rows: Sequence[Row]) -> float:
    """The score of captions of other scenes."""
    true = [row["target"] for row in rows]
    return exact_captions(true[1:] + true[:1], true)


def middle_box(rows: Sequence[Row]) -> float:
    """The score of whoever always gives the box whose sides are the medians of all."""
    boxes = [row["boxes"][0] for row in rows]
    guess = np.median(boxes, axis=0).tolist()
    return grounding_accuracy([guess] * len(boxes), boxes)["accuracy"]


def no_correlation(rows: Sequence[Row]) -> float:
    return 0.0


# What the card quotes of a task: the score's name, where scripts/evaluate.py has it (or how answers are scored, where
# it counts otherwise), and what chance would score.
_CHANCE: dict[str, Callable[[Sequence[Row]], float] | None] = {
    "caption": other_captions,
    "vqa": by_kind,
    "visual_grounding": middle_box,
    "object_detection": None,
    "text_infilling": None,
    "summarization": None,
    "cola": no_correlation,
}
_OWN: dict[str, tuple[str, Callable[[Sequence[str], Sequence[str]], float]]] = {
    "caption": ("exact", exact_captions),
    "grounded_caption": ("exact", equal),
    "text_infilling": ("exact", equal),
    "summarization": ("exact", equal),
}
_QUOTED = {"object_detection": "map_50"}
# Tasks whose scores are the card's metadata; the others stand in its text.
HEADLINES = ("caption", "vqa", "visual_grounding", "visual_entailment", "image_classification", "object_detection")


def score(task: str, found: Mapping[str, Any], answers: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """
    Gives what the card quotes of one task.

    Args:
        task (`str`): The task.
        found (`Mapping[str, Any]`): What scripts/evaluate.py wrote of it.
        answers (`Sequence[Row]`): Its answers.
        rows (`Sequence[Row]`): The Examples.
    """
    if task in _OWN:
        name, function = _OWN[task]
        value = function([one["text"] for one in answers], [row["target"] for row in rows])
    else:
        name = _QUOTED.get(task, found["headline"])
        value = found["scores"][name]
    chance = _CHANCE.get(task, most_frequent)
    return {
        "metric": name,
        "score": value,
        "chance": None if chance is None else chance(rows),
        "examples": len(rows),
    }


def evaluate(folder: Path, data: Path, output: Path, splits: Sequence[str] = EVALUATED) -> dict[str, Any]:
    """
    Answers all tasks of splits by scripts/evaluate.py, and scores them.

    Args:
        folder (`Path`): The checkpoint.
        data (`Path`): What scripts/build_world.py wrote, a folder a split.
        output (`Path`): Where answers go, a folder a split.
        splits (`Sequence[str]`): Which splits.

    Raises:
        CommandError: The evaluation failed.
    """
    metrics: dict[str, Any] = {}
    for split in splits:
        parts = [data / split / part for part in TEST_PARTS if (data / split / part).is_dir()]
        command = [sys.executable, str(Path(__file__).with_name("evaluate.py")), "--model", str(folder)]
        command += ["--format", "parquet", "--split", split, "--data", *map(str, parts)]
        command += ["--output", str(output / split), "--batch-size", "50"]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise CommandError(f"scripts/evaluate.py failed with {split}; what it said is above")
        found = json.loads((output / split / "metrics.json").read_text(encoding="utf-8"))
        answers = json.loads((output / split / "predictions.json").read_text(encoding="utf-8"))
        examples: Dataset = load_examples("parquet", parts, split=split)
        rows = examples.cast_column("image", Image(decode=False)).remove_columns("image").to_list()
        metrics[split] = {}
        for part in parts:
            mine = [i for i, row in enumerate(rows) if row["task"] == part.name]
            metrics[split][part.name] = score(
                part.name, found[part.name], [answers[i] for i in mine], [rows[i] for i in mine]
            )
        logging.info("%s: %s", split, {task: round(one["score"], 3) for task, one in metrics[split].items()})
    return metrics


# --- model card ------------------------------------------------------------------------------------------------------
SUMMARY = """\
A small OFA, in half precision, that ships inside the `modeling_ofa` package, so that it can show all that OFA does
without a download. It knows {things} everyday things as emoji draw them, the English words for them, and scenes of up
to {most} things. **They are composed scenes: it says nothing useful about photographs.**"""
USAGE = """\
```python
from PIL import Image

from modeling_ofa import DEFAULT_CHECKPOINT, OFAForConditionalGeneration, OFAProcessor

processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)
model = OFAForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT).eval()
inputs = processor(task="vqa", images=Image.open("picture.png"), text="what is on the left?", return_tensors="pt")
ids = model.generate(**inputs, **processor.generation_kwargs("vqa"))
print(processor.post_process(ids, task="vqa")[0]["text"])
```"""
TRAINING = """\
From zero, by `scripts/train_embedded.py` with `recipes/world_*.yaml`, on scenes of {size} x {size} pixels composed of
drawings of these designs; `docs/world.md` shows the curves. None of the artwork is part of this folder.

{credits}"""
EVALUATION = """\
By `scripts/evaluate_embedded.py`. Scenes of *seen* designs are fresh ones. *Test* is Twemoji ({test}): nothing was
trained on it or chosen by it. *Far* is OpenMoji ({far}): black outlines, unlike all that was trained on.

{table}

What is counted: captions that name exactly the right things, in any order; boxes that overlap the true one by half or
more; for detection, average precision at that overlap; for `cola`, Matthews' correlation; else answers that are equal
to the right one. In brackets *chance*: for captions that of another scene, for questions the most frequent answer to
their kind ("how many", "is", "where", …), for boxes the one whose sides are the medians of all, else the most frequent
answer. The exact numbers stand in `metrics.json`."""
LIMITS = """\
- Composed scenes of emoji artwork only, {things} things, English only. A photograph gets an answer that means nothing.
- Where a score is near its chance the model guesses: read the table before you rely on an answer."""
ENVIRONMENT = """\
Two cores of a server's processor, no accelerator; energy was not measured."""


def write_card(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes `metrics.json` and the model card that quotes it."""
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    results = [
        Measured(
            task,
            one["metric"],
            one["score"],
            one["examples"],
            data=f"the small world: {split}",
            chance=one["chance"],
        )
        for split, tasks in metrics.items()
        for task, one in tasks.items()
        if task in HEADLINES
    ]
    table = ["| % (chance) | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    for task in TEST_PARTS:
        cells = [_cell(tasks[task]) for tasks in metrics.values() if task in tasks]
        if cells:
            table.append(f"| `{task}` | " + " | ".join(cells) + " |")
    known = {
        "things": len(THINGS),
        "most": MOST,
        "size": SIZE,
        "credits": "\n".join(f"- {SETS[design].credit}, {SETS[design].licence}" for design in SPLITS["train"].designs),
        "test": SETS[TEST_DESIGN].licence,
        "far": SETS[SPLITS["far"].designs[0]].licence,
        "table": "\n".join(table),
    }
    card = Card(
        title="OFA, embedded",
        summary=SUMMARY.format(**known),
        license="apache-2.0",
        language=["en"],
        tasks=list(TEST_PARTS),
        results=results,
        usage=USAGE,
        training=TRAINING.format(**known),
        evaluation=EVALUATION.format(**known),
        limits=LIMITS.format(**known),
        environment=ENVIRONMENT,
    ).of_model(
        "ofa-embedded", OFAForConditionalGeneration.from_pretrained(folder), OFAProcessor.from_pretrained(folder)
    )
    write_whole(folder / "README.md", card)


def _cell(found: Mapping[str, Any]) -> str:
    told = f"{100 * found['score']:.1f}"
    return told if found["chance"] is None else f"{told} ({100 * found['chance']:.1f})"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the splits (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/world/evaluation"), help="folder for the answers (%(default)s)"
    )
    parser.add_argument("--splits", nargs="+", default=list(EVALUATED), choices=SPLITS, help="which (%(default)s)")
    parser.add_argument("--no-card", action="store_true", help="print the scores, and write no card")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    disable_progress_bars()
    try:
        metrics = evaluate(args.folder, args.data, args.output, args.splits)
        if not args.no_card:
            write_card(args.folder, metrics)
    except (CommandError, ValueError, OSError, ImportError) as error:
        print(f"evaluate_embedded.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
