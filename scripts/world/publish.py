"""Writes the world as data sets to publish: Parquet files with a card, and the words that pre-training asks for."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, Image

from modeling_ofa.data.readers import EXAMPLE_FEATURES

from .artwork import CACHE, FILE, SETS
from .grounds import COLOURS
from .splits import SIZE, SPLITS, stream
from .tasks import SCENE_TASKS
from .texts import TEXT_TASKS
from .things import THINGS
from .words import MOST, NOTHING, caption


_FILE_ROWS = 20_000
_CAPTIONS = 10_000
# What is written of a split to train on: the sources of scripts/pretrain.py, and what its tasks leave out.
TRAINING_PARTS: dict[str, Mapping[str, float]] = {
    "image_text": {"caption": 2, "visual_grounding": 2, "vqa": 3},
    "detection": {"object_detection": 1},
    "text": {"text_infilling": 1},
    "labels": {"visual_entailment": 3, "image_text_matching": 1, "image_classification": 2, "grounded_caption": 1},
    "reading": {task: 1 for task in TEXT_TASKS if task != "text_infilling"},
}
# And of one to test on: each task by itself.
TEST_PARTS: dict[str, Mapping[str, float]] = {task: {task: 1} for task in (*SCENE_TASKS, *TEXT_TASKS)}
_CATEGORIES = (
    "image-to-text", "visual-question-answering", "zero-shot-object-detection", "object-detection",
    "image-classification", "summarization", "text-classification", "fill-mask",
)  # fmt: skip
_CARD = """---
{header}---

# The small world: {split}

Composed scenes of drawings of {things} everyday things, {about}. **They are composed of emoji artwork, and are no
photographs.**

One to five things, and sometimes none, stand on plain, graded, patterned or noisy grounds, in landscapes and rooms, at
{size} x {size} pixels. Scenes are made before anything is said of them, so all answers are right by construction.
Row *n* follows from the split, the seed {seed} and *n* alone (`scripts/build_small_world.py` of `modeling-ofa`). The
designs of `train` and those of `test` and `far` have no drawing in common, nor any two that are nearly alike.

```python
from datasets import load_dataset

data = load_dataset("{folder}", "{example}", split="{split}")
```

| part | tasks | rows |
| --- | --- | --- |
{table}

The columns are those of an *Example* (`docs/data.md` of the project): `task`, `image`, `text`, `text_pair`, `target`,
`boxes` (`x0, y0, x1, y1` in pixels), `labels`; the rest is empty.

## Artwork

Changes: drawn as pixels, scaled, turned and put on grounds{changes}.

{credits}
"""


def write_split(
    split: str, folder: Path, rows: int, path: str | Path = CACHE / FILE, seed: int = 0, size: int = SIZE
) -> None:
    """
    Writes a split: for each part a folder that `load_examples("parquet", …)` reads, and a card by which `load_dataset`
    finds them all.

    Args:
        split (`str`): A key of `SPLITS`.
        folder (`Path`): The data set's own folder.
        rows (`int`): Of each part.
        path (`str` or `Path`): The drawings.
        seed (`int`): Other seeds are other data sets.
        size (`int`): Pixels a side of the pictures.

    Raises:
        WorldError: There are no drawings.
        ValueError: There is no such split.
    """
    augmented = split in SPLITS and SPLITS[split].augment
    parts = TRAINING_PARTS if augmented else TEST_PARTS
    # Training shall see pictures as people save them; what tests see must be what was composed.
    options = {"seed": seed, "size": size, "picture_format": "JPEG" if augmented else "PNG"}
    for part, tasks in parts.items():
        examples = stream(split, tasks, rows, path, **options).cast_column("image", Image(decode=False))
        number = -(-rows // _FILE_ROWS)
        data = folder / part / "data"
        data.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            made = Dataset.from_list(list(examples.shard(number, i, contiguous=True)), features=EXAMPLE_FEATURES)
            made.to_parquet(data / f"{split}-{i:05d}-of-{number:05d}.parquet")
    (folder / "README.md").write_text(_card(split, folder.name, parts, rows, seed, size), encoding="utf-8")


def _card(split: str, folder: str, parts: Mapping[str, Mapping[str, float]], rows: int, seed: int, size: int) -> str:
    part = SPLITS[split]
    header = {
        "license": part.licence,
        "language": "en",
        "pretty_name": f"The small world: {split}",
        "task_categories": list(_CATEGORIES),
        "configs": [
            {"config_name": name, "data_files": [{"split": split, "path": f"{name}/data/*.parquet"}]} for name in parts
        ],
    }
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        split=split,
        things=len(THINGS),
        about=part.about,
        size=size,
        seed=seed,
        folder=folder,
        example=next(iter(parts)),
        table="\n".join(f"| `{name}` | {', '.join(tasks)} | {rows:,} |" for name, tasks in parts.items()),
        changes=", recoloured, stretched, blurred, outlined or in part left out" if part.augment else "",
        credits="\n".join(f"- {SETS[design].credit}, {SETS[design].licence}" for design in part.designs),
    )


def write_negatives(folder: Path, seed: int = 0) -> None:
    """Writes what pre-training takes wrong captions and answers from, as the official `negative_sample` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, names = np.random.default_rng(seed), list(THINGS)
    captions = [caption(rng.choice(names, rng.integers(1, 4)).tolist()) for _ in range(_CAPTIONS)]
    answers = {
        "how many": [str(number) for number in range(MOST + 1)],
        "yes or no": ["yes", "no"],
        "where": ["left", "right", "top", "bottom", "middle", "nowhere"],
        "color": list(COLOURS),
        "other": [*names, NOTHING],
    }
    (folder / "all_captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    (folder / "object.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "type2ans.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
