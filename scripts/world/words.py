"""What things are called, and what a scene is called."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from .scenes import Scene
from .things import PLURALS, THINGS, group_of


NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MOST = 5  # objects in a scene
NOTHING = "nothing"  # the caption of an empty scene
CLEAR = 0.1  # of a scene's side: how far apart things must be for a word like "left"
BIGGER = 1.6  # how many times the area of another one it takes for "bigger"


def one(name: str) -> str:
    """`a dog`, `an old dog`, `scissors`."""
    article = THINGS[name].article if name in THINGS else "an" if name[0] in "aeiou" else "a"
    return f"{article} {name}".strip()


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def some(name: str, count: int) -> str:
    """`a dog`, `two dogs`."""
    return one(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def caption(names: Sequence[str]) -> str:
    """Names the objects from left to right, equal ones counted: "a dog and two cups"."""
    return " and ".join(some(name, count) for name, count in Counter(names).items()) or NOTHING


def wrong_caption(names: Sequence[str], known: Sequence[str], rng: np.random.Generator) -> str:
    """A caption of what isn't there: another thing in place of one, or one too many."""
    names, place = list(names), int(rng.integers(len(names) or 1))
    if names and rng.random() < 0.3:
        names.insert(place, names[place])
    else:
        names[place : place + 1] = [absent(names, known, rng)]
    return caption(names)


def absent(names: Sequence[str], known: Sequence[str], rng: np.random.Generator) -> str:
    """A thing that is not among these."""
    others = [name for name in known if name not in names]
    return others[rng.integers(len(others))]


def phrases(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """
    Gives, in random order, a phrase that means just one object, and its box, for each object that has such a phrase:
    "the dog", "a dog", "the animal", or, where there are more of them, "the left dog", "the biggest dog".
    """
    for i in rng.permutation(len(scene.names)):
        if ways := list(_ways(scene, int(i))):
            yield ways[rng.integers(len(ways))], scene.boxes[i]


def _ways(scene: Scene, i: int) -> Iterator[str]:
    name, group = scene.names[i], group_of(scene.names[i])
    equal = [k for k, other in enumerate(scene.names) if other == name and k != i]
    if not equal:
        yield from (name, f"the {name}", one(name))
        if group and [group_of(other) for other in scene.names].count(group) == 1:
            yield f"the {group}"
        return
    away = scene.centres[equal] - scene.centres[i]
    for side, far in (("left", away[:, 0]), ("right", -away[:, 0]), ("top", away[:, 1]), ("bottom", -away[:, 1])):
        if (far >= CLEAR).all():
            yield f"the {side} {name}"
    areas = scene.areas
    if (areas[i] >= BIGGER * areas[equal]).all():
        yield f"the biggest {name}"
    if (BIGGER * areas[i] <= areas[equal]).all():
        yield f"the smallest {name}"
