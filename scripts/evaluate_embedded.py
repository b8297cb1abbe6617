"""Measures the embedded checkpoint on scenes it never saw, beside chance, and writes its model card.

    python scripts/evaluate_embedded.py modeling_ofa/assets/checkpoint --trained-on 60000

composes fresh scenes of the designs that it was trained on, of Twemoji (the test: never trained on) and of OpenMoji
(far), asks the model through the public interface, and writes `metrics.json` and `README.md` into the folder.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_world import (
    DEFAULT_CACHE,
    FAR_DESIGN,
    FAR_STREAM,
    NAMES,
    NUMBERS,
    SEEN_STREAM,
    TEST_DESIGN,
    TEST_STREAM,
    TRAIN_DESIGNS,
    World,
    one,
    phrases,
    plural,
    questions,
)
from PIL import Image

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.hub import Card, Measured


COUNTED = {one(name): (name, 1) for name in NAMES} | {
    f"{number} {plural(name)}": (name, i) for name in NAMES for i, number in enumerate(NUMBERS) if i > 1
}


def objects_of(text: str) -> Counter:
    """The objects that a caption names, counted; a part that is no object of the world stands for itself."""
    objects: Counter = Counter()
    for part in text.split(" and "):
        name, count = COUNTED.get(part, (part, 1))
        objects[name] += count
    return objects


def iou(first: np.ndarray, second: np.ndarray) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared))


def evaluate(folder: Path, world: World, scenes: int) -> dict[str, Any]:
    """Measures the saved checkpoint on scenes of seen designs, of the test design and of the far one."""
    processor = OFAProcessor.from_pretrained(folder)
    model = OFAForConditionalGeneration.from_pretrained(folder).eval()
    sets = {
        "seen designs": (TRAIN_DESIGNS, SEEN_STREAM),
        TEST_DESIGN: ((TEST_DESIGN,), TEST_STREAM),
        FAR_DESIGN: ((FAR_DESIGN,), FAR_STREAM),
    }
    return {name: evaluate_on(model, processor, world, designs, scenes, stream)
            for name, (designs, stream) in sets.items()}  # fmt: skip


@torch.no_grad()
def answers(model: OFAForConditionalGeneration, processor: OFAProcessor, task: str, rows: list[tuple]) -> list:
    """What the model answers to `(scene, text or None)` rows through the public interface."""
    given: list = []
    for start in range(0, len(rows), 64):
        scenes, texts = zip(*rows[start : start + 64], strict=True)
        inputs = processor(
            task=task, images=[Image.fromarray(scene.pixels) for scene in scenes], return_tensors="pt", padding=True,
            **({} if texts[0] is None else {"text": list(texts)}),
        )  # fmt: skip
        ids = model.generate(**inputs, **processor.generation_kwargs(task))
        given += processor.post_process(ids, task=task, image_sizes=[scene.pixels.shape[:2] for scene in scenes])
    return given


def evaluate_on(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, designs: tuple[str, ...], scenes: int,
    stream: int,
) -> dict[str, Any]:  # fmt: skip
    """Each task's score beside what chance, or a guess that does not look at the picture, would score."""
    rngs = [np.random.default_rng([stream, 0, i]) for i in range(scenes)]
    composed = [world.compose(rng, designs, size=processor.max_image_size) for rng in rngs]

    said = [
        objects_of(row["text"]) for row in answers(model, processor, "caption", [(scene, None) for scene in composed])
    ]
    true = [Counter(scene.names) for scene in composed]
    caption_scores = {
        "exact": np.mean([a == b for a, b in zip(said, true, strict=True)]),
        "exact by chance": np.mean([a == b for a, b in zip(true[1:] + true[:1], true, strict=True)]),
        "objects found": sum((a & b).total() for a, b in zip(said, true, strict=True)) / sum(t.total() for t in true),
        "objects said that are there": sum((a & b).total() for a, b in zip(said, true, strict=True))
        / sum(s.total() for s in said),
    }

    asked = [
        (scene, kind, *pair)
        for scene, rng in zip(composed, rngs, strict=True)
        for kind, pair in questions(scene, rng, world.names).items()
    ]
    got = [row["text"] for row in answers(model, processor, "vqa", [(row[0], row[2]) for row in asked])]
    vqa: dict[str, Any] = {}
    for kind in sorted({row[1] for row in asked}):
        pairs = [(text, row[3]) for text, row in zip(got, asked, strict=True) if row[1] == kind]
        guess = Counter(answer for _, answer in pairs).most_common(1)[0][1] / len(pairs)
        vqa[kind] = {"accuracy": np.mean([a == b for a, b in pairs]), "by chance": guess, "n": len(pairs)}
    weights = [part["n"] / len(asked) for part in vqa.values()]
    for key in ("accuracy", "by chance"):
        vqa.setdefault("all", {"n": len(asked)})[key] = sum(
            weight * part[key] for weight, part in zip(weights, vqa.values(), strict=False)
        )

    sought = [
        (scene, text, box) for scene, rng in zip(composed, rngs, strict=True) for text, box in phrases(scene, rng)
    ]
    found = answers(model, processor, "visual_grounding", [row[:2] for row in sought])
    boxes = [np.array(answer["boxes"], dtype=float).reshape(-1, 4) for answer in found]
    target = np.stack([row[2] for row in sought])
    fixed = np.median(target, axis=0)
    overlaps = [[iou(box, other) for other in scene.boxes] for scene, _, box in sought]
    grounding = {
        "accuracy": np.mean([len(a) == 1 and iou(a[0], b) >= 0.5 for a, b in zip(boxes, target, strict=True)]),
        "by chance": np.mean([iou(fixed, box) >= 0.5 for box in target]),
        "a random object": np.mean([np.mean(np.array(row) >= 0.5) for row in overlaps]),
        "n": len(sought),
    }
    return json.loads(json.dumps({"caption": caption_scores, "vqa": vqa, "visual_grounding": grounding}))


# --- model card ----------------------------------------------------------------------------------------------------
SUMMARY = """\
A small OFA, in half precision, that ships inside the `modeling_ofa` package, so that it can show its main job without
a download: captions, answers and boxes. It knows {names} everyday objects as emoji show them, English words for them,
and scenes of one to four objects at {size} pixels a side. **They are composed scenes, not photographs: this model says
nothing useful about photographs.**"""
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
From zero, by `scripts/train_embedded.py`, on {scenes:,} composed scenes, each with two to four tasks. The artwork is
{credits}. None of it is part of this folder."""
EVALUATION = """\
By `scripts/evaluate_embedded.py` on {evaluated} fresh scenes per design. Trained on {train}; Twemoji (Twitter and
contributors, CC BY 4.0) was never seen in training; OpenMoji's black outlines (CC BY-SA 4.0) are far from everything
that was. Decoding is greedy. *Chance*: for captions the caption of another scene, for questions the most frequent
answer of that kind, for boxes the median box of all targets (IoU at least 0.5).

{table}

Twemoji scenes were never trained on, but they were looked at while the recipe and greedy decoding were chosen, so
their scores are no blind test. The exact numbers stand in `metrics.json`."""
LIMITS = """\
- Composed scenes of emoji artwork only, {names} objects, English only.
- A score near its chance means that the model guesses there: read the table before you rely on an answer."""
CREDITS = (
    "Noto Emoji in two versions (Google, Apache 2.0), Fluent Emoji Flat (Microsoft, MIT), FxEmojis (Mozilla, Apache "
    "2.0) and EmojiTwo (CC BY 4.0)"
)


def headlines(metrics: dict[str, Any], evaluated: int) -> list[Measured]:
    """One score per task and design."""
    found = []
    for design, part in metrics.items():
        data, caption, vqa, boxes = (
            f"scenes of {design}",
            part["caption"],
            part["vqa"]["all"],
            part["visual_grounding"],
        )
        found += [
            Measured("caption", "exact", caption["exact"], evaluated, data=data, chance=caption["exact by chance"]),
            Measured("vqa", "accuracy", vqa["accuracy"], vqa["n"], data=data, chance=vqa["by chance"]),
            Measured(
                "visual_grounding", "accuracy", boxes["accuracy"], boxes["n"], data=data, chance=boxes["by chance"]
            ),
        ]
    return found


def write_card(folder: Path, metrics: dict[str, Any], scenes: int, evaluated: int) -> None:
    """Writes `metrics.json` and the model card that quotes it."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    kinds = [kind for kind in metrics[TEST_DESIGN]["vqa"] if all(kind in part["vqa"] for part in metrics.values())]

    def scores(*keys: str) -> list[Any]:
        """One number per design, from the place in its metrics that the keys name."""
        found: list[Any] = list(metrics.values())
        for key in keys:
            found = [part[key] for part in found]
        return found

    lines = [
        ("Caption: exactly the objects", scores("caption", "exact"), scores("caption", "exact by chance")),
        ("Caption: objects found", scores("caption", "objects found"), None),
        *((f"Question: {kind}", scores("vqa", kind, "accuracy"), scores("vqa", kind, "by chance")) for kind in kinds),
        ("Box", scores("visual_grounding", "accuracy"), scores("visual_grounding", "by chance")),
        ("Box: a random object of the scene", scores("visual_grounding", "a random object"), None),
    ]
    table = ["| % (chance) | " + " | ".join(metrics) + " |", "| --- |" + " --- |" * len(metrics)]
    for label, values, chance in lines:
        cells = [f"{100 * value:.1f}" for value in values]
        if chance is not None:
            cells = [f"{cell} ({100 * value:.1f})" for cell, value in zip(cells, chance, strict=True)]
        table.append(f"| {label} | " + " | ".join(cells) + " |")
    processor = OFAProcessor.from_pretrained(folder)
    known = {
        "names": len(NAMES),
        "size": processor.max_image_size,
        "scenes": scenes,
        "credits": CREDITS,
        "evaluated": evaluated,
        "train": ", ".join(TRAIN_DESIGNS),
        "table": "\n".join(table),
    }
    card = Card(
        title="OFA, embedded",
        summary=SUMMARY.format(**known),
        license="apache-2.0",
        language=["en"],
        results=headlines(metrics, evaluated),
        usage=USAGE,
        training=TRAINING.format(**known),
        evaluation=EVALUATION.format(**known),
        limits=LIMITS.format(**known),
    ).of_model("ofa-embedded", OFAForConditionalGeneration.from_pretrained(folder), processor)
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="what build_world.py wrote (%(default)s)")
    parser.add_argument("--scenes", type=int, default=500, help="test scenes per design (%(default)s)")
    parser.add_argument("--trained-on", type=int, required=True, help="how many scenes the card shall say it saw")
    args = parser.parse_args()
    metrics = evaluate(args.folder, World(args.cache / "world.npz"), args.scenes)
    write_card(args.folder, metrics, args.trained_on, args.scenes)


if __name__ == "__main__":
    main()
