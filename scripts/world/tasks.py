"""Makes Examples of scenes, one for each task: the columns of docs/data.md without the picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import numpy as np

from .questions import claim, question, questions
from .scenes import COUNTS, Scene
from .texts import TEXT_TASKS
from .words import caption, one, phrases, wrong_caption


Columns = dict[str, Any]
Ask = Callable[[Scene, np.random.Generator, Sequence[str]], Columns | None]
_SOME = tuple(count for count in COUNTS if count)


@dataclass(frozen=True)
class SceneTask:
    """
    How a task is asked of a scene.

    Args:
        ask (`Callable`):
            Makes the columns of a scene, drawing from a generator and knowing the names of all things, or gives `None`
            if the scene does not suit.
        counts (`Sequence[int]`): How many objects its scenes have, each number as likely.
    """

    ask: Ask
    counts: Sequence[int] = _SOME


def _caption(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    # The things that the caption names are what wrong captions of pre-training put others in place of.
    return {"target": caption(scene.names), "objects": list(dict.fromkeys(scene.names))}


def _grounded_caption(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    place = int(rng.integers(len(scene.names)))
    return {"text": ",".join(f"{side:g}" for side in scene.boxes[place]), "target": one(scene.names[place])}


def _visual_grounding(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns | None:
    found = next(phrases(scene, rng), None)
    return found and {"text": found[0], "boxes": [found[1].tolist()]}


def _vqa(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    text, answer = question(scene, rng, known)
    return {"text": text, "target": answer}


def several_questions(scene: Scene, rng: np.random.Generator, known: Sequence[str], number: int) -> Columns:
    """Asks up to `number` questions of different kinds at once, with letters before them and before their answers."""
    asked = list(questions(scene, rng, known).values())
    chosen = [asked[place] for place in rng.permutation(len(asked))[:number]]
    text, target = (
        " ".join(f"{letter}: {said}" for letter, said in zip(ascii_lowercase, part, strict=False))
        for part in zip(*chosen, strict=True)
    )
    return {"text": text, "target": target}


def _visual_entailment(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    text, label = claim(scene, rng, known)
    premise = caption(scene.names) if rng.random() < 0.3 else None
    return {"text": text, "text_pair": premise, "target": label}


def _image_text_matching(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    matches = bool(rng.integers(2))
    text = caption(scene.names) if matches else wrong_caption(scene.names, known, rng)
    return {"text": text, "target": "yes" if matches else "no"}


def _image_classification(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    return {"target": scene.names[0]}


def _object_detection(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Columns:
    return {"boxes": scene.boxes.tolist(), "labels": scene.names}


# Some scenes are empty where that can be said.
SCENE_TASKS = {
    "caption": SceneTask(_caption, (*_SOME * 3, 0)),
    "grounded_caption": SceneTask(_grounded_caption),
    "visual_grounding": SceneTask(_visual_grounding),
    "vqa": SceneTask(_vqa, (*_SOME * 3, 0)),
    "visual_entailment": SceneTask(_visual_entailment, (*_SOME * 3, 0)),
    "image_text_matching": SceneTask(_image_text_matching, (*_SOME * 3, 0)),
    "image_classification": SceneTask(_image_classification, (1,)),
    "object_detection": SceneTask(_object_detection),
}
TASKS = (*SCENE_TASKS, *TEXT_TASKS)
