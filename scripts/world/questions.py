"""What can be asked and claimed about a scene, so that the scene alone decides what is right."""

from collections.abc import Sequence

import numpy as np

from .scenes import Scene
from .things import GROUPS, group_of
from .words import BIGGER, CLEAR, NOTHING, absent, one, plural, some


_SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, and which end of it is first
_RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
# What no picture tells of a thing.
_UNTOLD = ("expensive", "famous", "borrowed", "stolen", "popular", "rare", "beloved", "forgotten")

Question = tuple[str, str]  # and its answer
Claim = tuple[str, str]  # and whether it follows: yes, maybe or no


class Asker:
    """
    Asks and claims things about one scene. What would be in doubt is not asked: then a method gives `None`.

    Args:
        scene ([`Scene`]): The scene.
        rng (`np.random.Generator`): Where numbers are drawn.
        known (`Sequence[str]`): The names of all things of the world, for asking about what isn't there.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator, known: Sequence[str]):
        self.scene, self.rng, self.known = scene, rng, known
        self.names = scene.names
        self.groups = [group_of(name) for name in scene.names]
        self.unique = [name for name in scene.names if scene.names.count(name) == 1]

    # --- questions

    def exists(self) -> Question:
        name = self._name(present=0.5)
        form = self._one_of("is there {}?", "is there {} in the picture?", "can you see {}?", "do you see {}?")
        return form.format(one(name)), _yes(name in self.names)

    def exists_group(self) -> Question:
        group = self._group(present=0.5)
        return f"is there {one(group)}?", _yes(group in self.groups)

    def exists_number(self) -> Question | None:
        said = self._number(holds=self._coin())
        if said is None:
            return None
        name, number, holds = said
        return f"{'is' if number == 1 else 'are'} there {_exactly(name, number)}?", _yes(holds)

    def count(self) -> Question:
        form = self._one_of("how many objects are there?", "how many things are there?", "how many things do you see?")
        return form, str(len(self.names))

    def count_of(self) -> Question:
        name = self._name(present=0.8)
        form = self._one_of("how many {} are there?", "how many {} do you see?", "how many {} are in the picture?")
        return form.format(plural(name)), str(self.names.count(name))

    def count_group(self) -> Question:
        group = self._group(present=0.8)
        return f"how many {GROUPS[group]} are there?", str(self.groups.count(group))

    def what(self) -> Question | None:
        if len(self.names) > 1:
            return None
        form = self._one_of("what is this?", "what is it?", "what is in the picture?", "what do you see?")
        return form, self.names[0] if self.names else NOTHING

    def side(self) -> Question | None:
        """What is farthest on one side."""
        side = self._one_of(*_SIDES)
        axis, sign = _SIDES[side]
        places = sign * self.scene.centres[:, axis]
        if len(places) < 2 or np.diff(np.sort(places)[:2]) < CLEAR:
            return None
        form = self._one_of("what is {}?", "which object is {}?", "what do you see {}?")
        return form.format(f"{'at' if axis else 'on'} the {side}"), self.names[int(places.argmin())]

    def beside(self) -> Question | None:
        """What is on one side of a thing, where just one other is."""
        if not self.unique:
            return None
        name, relation = self._one_of(*self.unique), self._one_of(*_RELATIONS)
        away = self._away(name, relation)
        there = np.flatnonzero(away > 0)
        if len(there) != 1 or away[there[0]] < CLEAR:
            return None
        return f"what is {relation} the {name}?", self.names[there[0]]

    def related(self) -> Question | None:
        """Whether one thing is on one side of another."""
        related = self._relation(holds := self._coin())
        return None if related is None else ("is the {} {} the {}?".format(*related), _yes(holds))

    def where(self) -> Question | None:
        name = self._name(present=0.85)
        question = f"where is the {name}?"
        if name not in self.names:
            return question, "nowhere"
        if name not in self.unique:
            return None
        x, y = self.scene.centres[self.names.index(name)]
        near, far = sorted((abs(x), abs(y)))
        if far < 0.07:
            return question, "middle"
        if far < 0.12 or far < 1.4 * near:
            return None
        return question, ("left" if x < 0 else "right") if abs(x) > abs(y) else ("top" if y < 0 else "bottom")

    def bigger(self) -> Question | None:
        pair = self._by_size()
        if pair is None:
            return None
        first, second = pair if self._coin() else pair[::-1]
        if self._coin():
            return f"is the {first} bigger than the {second}?", _yes(first == pair[0])
        word, answer = ("bigger", pair[0]) if self._coin() else ("smaller", pair[1])
        return f"which is {word}, the {first} or the {second}?", answer

    def more(self) -> Question | None:
        """Of which of two things there is more."""
        pair = [self._name(present=1.0), self._name(present=0.7)]
        first, second = pair if self._coin() else pair[::-1]
        if first == second:
            return None
        answer = _yes(self.names.count(first) > self.names.count(second))
        return f"are there more {plural(first)} than {plural(second)}?", answer

    def colour(self) -> Question | None:
        if self.scene.ground is None:
            return None
        return self._one_of("what color is the background?", "which color is the background?"), self.scene.ground

    # --- claims

    def presence(self, label: str) -> Claim | None:
        """That something is there; of what is there, that it is something that no picture tells."""
        name = self._name(present=float(label != "no"))
        if label != "no" and not self.names:
            return None
        forms = ("there is {}", "{} is in the picture", "this is a picture with {}")
        untold = label == "maybe" or (label == "no" and self.rng.random() < 0.4)
        if not untold:
            return self._one_of(*forms).format(one(name)), label
        kind = f"{self._one_of(*_UNTOLD)} {name}"
        return self._one_of(*forms, "you can see {}").format(one(kind)), label

    def amount(self, label: str) -> Claim | None:
        said = self._number(holds=label == "yes") if label != "maybe" else None
        return None if said is None else (f"there {'is' if said[1] == 1 else 'are'} {_exactly(*said[:2])}", label)

    def group(self, label: str) -> Claim | None:
        if label == "maybe" or (label == "yes" and not any(self.groups)):
            return None
        return f"there is {one(self._group(present=float(label == 'yes')))}", label

    def relation(self, label: str) -> Claim | None:
        related = None if label == "maybe" else self._relation(holds=label == "yes")
        return None if related is None else ("the {} is {} the {}".format(*related), label)

    def size(self, label: str) -> Claim | None:
        pair = None if label == "maybe" else self._by_size()
        if pair is None:
            return None
        first, second = pair if label == "yes" else pair[::-1]
        return f"the {first} is bigger than the {second}", label

    # --- what they are made of

    def _coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def _one_of(self, *forms: str) -> str:
        return forms[self.rng.integers(len(forms))]

    def _name(self, present: float) -> str:
        """A thing that is in the scene, this likely, or one that is not."""
        if self.names and self.rng.random() < present:
            return self._one_of(*self.names)
        return absent(self.names, self.known, self.rng)

    def _group(self, present: float) -> str:
        """A group of which something is in the scene, this likely, or one of which nothing is."""
        there = [group for group in self.groups if group]
        if there and self.rng.random() < present:
            return self._one_of(*there)
        return self._one_of(*(group for group in GROUPS if group not in there))

    def _number(self, holds: bool) -> tuple[str, int, bool] | None:
        """A thing, and how many of it there are, or rather are not."""
        if not self.names:
            return None
        name = self._name(present=1.0)
        number = self.names.count(name)
        if not holds:
            number = number - 1 if number > 1 and self._coin() else number + 1
        return name, number, holds

    def _away(self, name: str, relation: str) -> np.ndarray:
        """How far objects are on this side of a thing, of the scene's side; 0 for the thing itself."""
        axis, sign = _RELATIONS[relation]
        places = sign * self.scene.centres[:, axis]
        return places - places[self.names.index(name)]

    def _pair(self) -> tuple[str, str] | None:
        """Two things of which there is one each, in any order."""
        if len(self.unique) < 2:
            return None
        first, second = self.rng.choice(len(self.unique), 2, replace=False)
        return self.unique[first], self.unique[second]

    def _relation(self, holds: bool) -> tuple[str, str, str] | None:
        """A thing, and on which side of another it is, or rather is not."""
        if (pair := self._pair()) is None:
            return None
        first, second = pair
        sign = 1 if holds else -1
        place = self.names.index(first)
        fitting = [word for word in _RELATIONS if sign * self._away(second, word)[place] >= CLEAR]
        return (first, self._one_of(*fitting), second) if fitting else None

    def _by_size(self) -> tuple[str, str] | None:
        """Two things, the bigger one first."""
        if (pair := self._pair()) is None:
            return None
        areas = {name: self.scene.areas[self.names.index(name)] for name in pair}
        bigger, smaller = sorted(pair, key=lambda name: -areas[name])
        return (bigger, smaller) if areas[bigger] >= BIGGER * areas[smaller] else None


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _exactly(name: str, number: int) -> str:
    """`one dog`, `two dogs`."""
    return f"one {name}" if number == 1 else some(name, number)


_QUESTIONS = (
    Asker.exists, Asker.exists_group, Asker.exists_number, Asker.count, Asker.count_of, Asker.count_group, Asker.what,
    Asker.side, Asker.beside, Asker.related, Asker.where, Asker.bigger, Asker.more, Asker.colour,
)  # fmt: skip
_CLAIMS = (Asker.presence, Asker.presence, Asker.amount, Asker.group, Asker.relation, Asker.size)


def questions(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> dict[str, Question]:
    """Asks one question of every kind that the scene answers without doubt."""
    asker = Asker(scene, rng, known)
    asked = {kind.__name__: kind(asker) for kind in _QUESTIONS}
    return {kind: question for kind, question in asked.items() if question is not None}


def question(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Question:
    """Asks one question, of any kind."""
    asker = Asker(scene, rng, known)
    while (asked := _QUESTIONS[rng.integers(len(_QUESTIONS))](asker)) is None:
        pass  # it is always possible to ask whether something is there
    return asked


def claim(scene: Scene, rng: np.random.Generator, known: Sequence[str]) -> Claim:
    """Claims something that follows from the scene, or may be so, or is not so, each as often."""
    asker = Asker(scene, rng, known)
    labels = ("yes", "maybe", "no") if scene.names else ("no",)
    label = labels[rng.integers(len(labels))]
    while (claimed := _CLAIMS[rng.integers(len(_CLAIMS))](asker, label)) is None:
        pass  # of something that is there, or is not, all three can be said
    return claimed
