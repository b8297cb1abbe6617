"""
The world as `datasets` data sets: endless variety made while it is read, or files with a card to publish.

A row follows from its split, its seed and its number alone. So a stream goes on where it was without making what came
before, and workers and processes share it by numbers.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import IterableDataset
from PIL import Image

from modeling_ofa.data.example import complete
from modeling_ofa.data.readers import EXAMPLE_FEATURES

from .artwork import CACHE, EXPLORE_DESIGNS, FAR_DESIGN, FILE, TEST_DESIGN, TRAIN_DESIGNS, VALIDATION_DESIGN
from .scenes import World
from .tasks import SCENE_TASKS, TASKS, several_questions
from .texts import TEXT_TASKS


@dataclass(frozen=True)
class Split:
    """
    A part of the world.

    Args:
        designs (`tuple[str, ...]`): Whose drawings its scenes are made of.
        stream (`int`): The first number of its seeds, so that no two splits have a scene in common.
        licence (`str`): Of its pictures.
        about (`str`): What it is for.
        augment (`bool`): Whether drawings and texts are changed, for training.
    """

    designs: tuple[str, ...]
    stream: int
    licence: str
    about: str
    augment: bool = False


SPLITS = {
    "train": Split(TRAIN_DESIGNS, 0, "cc-by-4.0", "to train what is released", augment=True),
    "explore": Split(
        EXPLORE_DESIGNS, 1, "cc-by-4.0", "to train what `validation` shall choose between: without its design", True
    ),
    "validation": Split((VALIDATION_DESIGN,), 2, "cc-by-4.0", "to choose by, after training on `explore`"),
    "seen": Split(TRAIN_DESIGNS, 3, "cc-by-4.0", "to test on fresh scenes of the designs of `train`"),
    "test": Split((TEST_DESIGN,), 4, "cc-by-4.0", "to test on a design that nothing was trained on or chosen by"),
    "far": Split((FAR_DESIGN,), 5, "cc-by-sa-4.0", "to test on drawings unlike any that were trained on: outlines"),
}
SIZE = 128  # pixels a side of the pictures
_SHARDS = 4096  # into how many pieces a stream can be shared; a multiple of many numbers of streams
_TYPOS = 0.05  # of the questions and phrases of training


@lru_cache(maxsize=2)
def load_world(path: str) -> World:
    """Loads the drawings, once a process."""
    return World(path)


def make_example(
    world: World,
    split: str,
    number: int,
    tasks: Sequence[str] | Mapping[str, float],
    seed: int = 0,
    size: int = SIZE,
    picture_format: str = "BMP",
    counts: Sequence[int] | None = None,
    questions: Sequence[int] = (1,),
) -> dict[str, Any]:
    """
    Makes one Example.

    Args:
        world ([`World`]): The drawings.
        split (`str`): A key of `SPLITS`.
        number (`int`): Which row this is.
        tasks (`Sequence[str]` or `Mapping[str, float]`): The tasks to choose from, with weights if they have any.
        seed (`int`): Other seeds are other data sets.
        size (`int`): Pixels a side of the picture.
        picture_format (`str`): Which kind of file the picture is: BMP takes no time, PNG less room.
        counts (`Sequence[int]`, *optional*): How many objects to ask for, in place of the task's own numbers.
        questions (`Sequence[int]`): Up to how many questions a row of `vqa` asks at once, each number as likely.

    Returns:
        `dict[str, Any]`: The columns of `EXAMPLE_FEATURES`.
    """
    part = SPLITS[split]
    rng = np.random.default_rng([part.stream, seed, number])
    weights = np.array(list(tasks.values()) if isinstance(tasks, Mapping) else [1.0] * len(tasks))
    task = list(tasks)[rng.choice(len(tasks), p=weights / weights.sum())]
    columns: dict[str, Any] | None = {**TEXT_TASKS[task](rng, world.names)} if task in TEXT_TASKS else None
    while columns is None:
        scene = world.compose(rng, part.designs, counts or SCENE_TASKS[task].counts, size, part.augment)
        asked = questions[rng.integers(len(questions))] if task == "vqa" and len(questions) > 1 else 1
        if asked > 1:
            columns = several_questions(scene, rng, world.names, asked)
        else:
            columns = SCENE_TASKS[task].ask(scene, rng, world.names)
        if columns is not None:
            file = io.BytesIO()
            Image.fromarray(scene.pixels).save(file, picture_format)
            columns["image"] = file.getvalue()
    if part.augment and task in ("vqa", "visual_grounding") and rng.random() < _TYPOS:
        columns["text"] = misspell(columns["text"], rng)
    row = {"id": f"{split}-{seed}-{number}", "task": task, "source": f"world/{split}", **columns}
    return complete(row, labelled=True)


def misspell(text: str, rng: np.random.Generator) -> str:
    """Leaves out, doubles or exchanges one letter of a text."""
    place, kind = int(rng.integers(len(text) - 1)), rng.integers(3)
    first, second = text[place], text[place + 1]
    return text[:place] + (second, first + first + second, second + first)[kind] + text[place + 2 :]


def stream(
    split: str,
    tasks: Sequence[str] | Mapping[str, float] = TASKS,
    rows: int = 1_000_000,
    path: str | Path = CACHE / FILE,
    **options: Any,
) -> IterableDataset:
    """
    Gives a split as a stream of Examples that are made as they are read.

    Args:
        split (`str`): A key of `SPLITS`.
        tasks (`Sequence[str]` or `Mapping[str, float]`): Which tasks, with weights if they have any.
        rows (`int`): How many rows there are before they begin anew.
        path (`str` or `Path`): The drawings.
        **options: `seed`, `size`, `picture_format`, `counts` and `questions`, as in [`make_example`].

    Raises:
        WorldError: There are no drawings.
        ValueError: A split or task is not known.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. The splits are: {', '.join(SPLITS)}.")
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"The world has no task {', '.join(sorted(unknown))}. Its tasks are: {', '.join(TASKS)}.")
    load_world(str(path))  # says now, and not in a worker, that there are no drawings
    weights = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
    shards = [numbers.tolist() for numbers in np.array_split(np.arange(rows), min(_SHARDS, rows))]
    given = {"shards": [(part[0], part[-1] + 1) for part in shards], "split": split, "path": str(path), **options}
    return IterableDataset.from_generator(
        _generate, features=EXAMPLE_FEATURES, gen_kwargs={**given, "tasks": tuple(weights.items())}
    )


def _generate(
    shards: list[tuple[int, int]], split: str, path: str, tasks: tuple[tuple[str, float], ...], **options: Any
) -> Iterator[dict[str, Any]]:
    world = load_world(path)
    for start, stop in shards:
        for number in range(start, stop):
            yield make_example(world, split, number, dict(tasks), **options)
