"""Writes the world as data sets to publish: Parquet files with a card, and the words that pre-training asks for."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, Image, IterableDataset, disable_progress_bars

from modeling_ofa.data.readers import EXAMPLE_FEATURES

from .artwork import CACHE, FILE, SETS
from .grounds import COLOURS
from .splits import SIZE, SPLITS, stream
from .tasks import SCENE_TASKS
from .texts import TEXT_TASKS
from .things import THINGS
from .words import MOST, NOTHING, caption


logger = logging.getLogger(__name__)

_FILE_ROWS = 10_000
_CAPTIONS = 10_000
# What is written of a split to train on: the sources of scripts/pretrain.py and of scripts/pretrain_backbone.py.
_READING = {task: 0.2 for task in TEXT_TASKS if task != "text_infilling"}
TRAINING_PARTS: dict[str, Mapping[str, float]] = {
    "image_text": {
        "caption": 3, "visual_grounding": 2, "vqa": 5, "visual_entailment": 3, "image_classification": 1, **_READING,
    },
    "detection": {"object_detection": 1},
    "text": {"text_infilling": 1},
    "crowds": {"object_detection": 1},
    # All tasks as they are asked in the end.
    "single": {
        "caption": 4, "visual_grounding": 4, "vqa": 7, "visual_entailment": 4, "image_text_matching": 2,
        "image_classification": 1, "object_detection": 2, **dict.fromkeys(TEXT_TASKS, 0.3),
    },
    # The same, of which questions are asked by the half dozen: reading a picture costs more than another question.
    "lessons": {
        "caption": 5, "grounded_caption": 1, "visual_grounding": 3, "vqa": 8, "visual_entailment": 3,
        "image_text_matching": 1.5, "image_classification": 1, "object_detection": 1.5,
        **dict.fromkeys(TEXT_TASKS, 0.15),
    },
    # Mostly what asks about a thing that is somewhere, for heads that look there.
    "places": {
        "caption": 2, "grounded_caption": 0.5, "visual_grounding": 6, "vqa": 6, "visual_entailment": 2,
        "image_text_matching": 1, "image_classification": 0.5, "object_detection": 1,
        **dict.fromkeys(TEXT_TASKS, 0.05),
    },
    # And all of them by themselves again.
    "pointed": {
        "caption": 5, "grounded_caption": 0.7, "visual_grounding": 4, "vqa": 8, "visual_entailment": 4,
        "image_text_matching": 2, "image_classification": 1, "object_detection": 2,
        **dict.fromkeys(TEXT_TASKS, 0.15),
    },
    # The same with more captions and questions, for heads that count.
    "counted": {
        "caption": 8, "grounded_caption": 1.5, "visual_grounding": 3, "vqa": 10, "visual_entailment": 3,
        "image_text_matching": 1.5, "image_classification": 1.5, "object_detection": 1.5,
        **dict.fromkeys(TEXT_TASKS, 0.1), "text_infilling": 0.4,
    },
}  # fmt: skip
# Many objects in a picture, for the ResNet, which looks at each of them by itself.
_OPTIONS: dict[str, Mapping[str, Any]] = {
    "crowds": {"counts": (1, 2, 4, 8, 9, 10)},
    "lessons": {"questions": (1, 6, 6)}, "counted": {"questions": (1, 1, 3)},
}  # fmt: skip
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
Row *n* follows from the split, the seed {seed} and *n* alone (`scripts/build_world.py` of `modeling-ofa`). The
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
    split: str,
    folder: Path,
    rows: int | Mapping[str, int],
    path: str | Path = CACHE / FILE,
    seed: int = 0,
    size: int = SIZE,
) -> None:
    """
    Writes a split: for each part a folder that `load_examples("parquet", …)` reads, and a card by which `load_dataset`
    finds them all. Files that are there already are not written again, so that what was stopped goes on.

    Args:
        split (`str`): A key of `SPLITS`.
        folder (`Path`): The data set's own folder.
        rows (`int` or `Mapping[str, int]`): Of each part, or of those that are named.
        path (`str` or `Path`): The drawings.
        seed (`int`): Other seeds are other data sets.
        size (`int`): Pixels a side of the pictures.

    Raises:
        WorldError: There are no drawings.
        ValueError: There is no such split, or part of it.
    """
    augmented = split in SPLITS and SPLITS[split].augment
    tasks = TRAINING_PARTS if augmented else TEST_PARTS
    wanted = dict(rows) if isinstance(rows, Mapping) else dict.fromkeys(tasks, rows)
    if unknown := set(wanted) - set(tasks):
        raise ValueError(f"{split} has no part {', '.join(sorted(unknown))}. Its parts are: {', '.join(tasks)}.")
    # Training shall see pictures as people save them; what tests see must be what was composed.
    options = {"seed": seed, "size": size, "picture_format": "JPEG" if augmented else "PNG"}
    pieces, files = [], []
    for part, number in wanted.items():
        examples = stream(split, tasks[part], number, path, **_OPTIONS.get(part, {}), **options)
        pieces_of_part = -(-number // _FILE_ROWS)
        for i in range(pieces_of_part):
            file = folder / part / "data" / f"{split}-{i:05d}-of-{pieces_of_part:05d}.parquet"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                pieces.append(
                    examples.shard(pieces_of_part, i, contiguous=True).cast_column("image", Image(decode=False))
                )
                files.append(file)
    with ExitStack() as stack:
        run: Callable[..., Iterable[Path]] = map
        if sum(wanted.values()) > _FILE_ROWS:  # it takes seconds to start processes
            run = stack.enter_context(ProcessPoolExecutor(mp_context=get_context("spawn"))).map
        for file in run(_write, pieces, files):
            logger.info("%s", file)
    card = _card(split, folder.name, {part: tasks[part] for part in wanted}, wanted, seed, size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write(examples: IterableDataset, file: Path) -> Path:
    disable_progress_bars()  # one for each file would tell less than its name
    part = file.with_suffix(".part")
    Dataset.from_list(list(examples), features=EXAMPLE_FEATURES).to_parquet(part)
    return part.rename(file)


def _card(
    split: str,
    folder: str,
    parts: Mapping[str, Mapping[str, float]],
    rows: Mapping[str, int],
    seed: int,
    size: int,
) -> str:
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
        table="\n".join(f"| `{name}` | {', '.join(tasks)} | {rows[name]:,} |" for name, tasks in parts.items()),
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
