"""What can be read and asked about the things without a picture."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .things import GROUPS, THINGS, group_of
from .words import absent, caption, one, some


_GOOD = ("lovely", "wonderful", "great", "beautiful", "pretty", "nice")
_BAD = ("awful", "terrible", "horrible", "ugly", "bad", "boring")
_ASKS = (
    ("is there {}?", "can you see {}?", "do you see {}?", "is there {} in the picture?"),
    ("where is {}?", "where do you see {}?", "in which place is {}?"),
    ("do you like {}?", "are you fond of {}?"),
)

Row = dict[str, str]


def fact(name: str) -> str:
    """What everybody knows about a thing: "a bee makes honey"."""
    return f"{one(name)} {THINGS[name].fact}"


def _things(rng: np.random.Generator, known: Sequence[str], number: int | None = None) -> list[str]:
    """Some of the things, of which one may come twice."""
    places = rng.choice(len(known), number or int(rng.integers(1, 4)), replace=False)
    picked = [known[place] for place in places.tolist()]
    return picked + [picked[0]] * int(number is None and rng.random() < 0.3)


def _pick(rng: np.random.Generator, forms: Sequence[Any]) -> Any:
    return forms[int(rng.integers(len(forms)))]


def sentence(rng: np.random.Generator, known: Sequence[str]) -> str:
    """A sentence, or a question with its answer."""
    name, kind = _pick(rng, known), rng.integers(5)
    group = group_of(name)
    if kind == 0 or (kind == 1 and group is None):
        return fact(name)
    if kind == 1 and group is not None:
        return _pick(rng, (f"{one(name)} is {one(group)}", f"is {one(name)} {one(group)}? yes"))
    if kind == 2:
        return f"what {THINGS[name].fact}? {one(name)}"
    if kind == 3:
        other = _pick(rng, [one_of for one_of in GROUPS if one_of != group])
        return f"is {one(name)} {one(other)}? no"
    return caption(_things(rng, known))


def text_infilling(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """A sentence from which a few words are missing."""
    whole = sentence(rng, known)
    words = whole.split()
    start = int(rng.integers(len(words)))
    length = min(int(rng.integers(1, 4)), len(words) - start)
    return {"text": " ".join([*words[:start], "<mask>", *words[start + length :]]), "target": whole}


def summarization(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """Sentences on what is in a picture, and what it is called in short."""
    names = _things(rng, known)
    told = [
        _pick(rng, ("i see {}.", "look, {}.", "the picture shows {}.")).format(caption([name] * names.count(name)))
        for name in dict.fromkeys(names)
    ]
    told.insert(int(rng.integers(len(told) + 1)), f"{fact(names[0])}.")
    return {"text": " ".join(told), "target": caption(names)}


def mnli(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """What the caption of a picture says of it: for sure, perhaps, or that it is not so."""
    names = _things(rng, known)
    name, other, target = _pick(rng, names), absent(names, known, rng), _pick(rng, ("yes", "maybe", "no"))
    claims = {
        "yes": [f"the picture shows {some(name, names.count(name))}", fact(name)],
        "maybe": [f"there is {one(f'{_pick(rng, _GOOD + _BAD)} {name}')}", f"somebody likes the {name}"],
        "no": [f"there is no {name}", f"there is nothing but {one(other)}", "the picture is empty"],
    }
    if group := group_of(name):
        claims["yes"].append(f"there is {one(group)}")
    return {"text": f"a picture of {caption(names)}", "text_pair": _pick(rng, claims[target]), "target": target}


def qnli(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """Whether a sentence answers a question."""
    name, other = _things(rng, known, 2)
    told = _pick(rng, (name, other))
    return {"text": f"what {THINGS[name].fact}?", "text_pair": fact(told), "target": "yes" if told == name else "no"}


def qqp(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """Whether two questions ask for the same."""
    name, other = _things(rng, known, 2)
    place, same = int(rng.integers(len(_ASKS))), bool(rng.integers(2))
    second = (place, name) if same else _pick(rng, ((place, other), ((place + 1) % len(_ASKS), name)))
    texts = [_pick(rng, _ASKS[asks]).format(one(asked)) for asks, asked in ((place, name), second)]
    return {"text": texts[0], "text_pair": texts[1], "target": "yes" if same else "no"}


def cola(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """Whether the words of a sentence are in order."""
    words = fact(_pick(rng, known)).split()
    mixed = [words[i] for i in rng.permutation(len(words))]
    wrong = len(words) > 2 and mixed != words and rng.random() < 0.5
    return {"text": " ".join(mixed if wrong else words), "target": "no" if wrong else "yes"}


def sst2(rng: np.random.Generator, known: Sequence[str]) -> Row:
    """Whether somebody likes a thing."""
    name, good = _pick(rng, known), bool(rng.integers(2))
    forms = ("what {} {}", "this is {} {}", "{} {} is in the picture", "i have never seen {} {} like that")
    words = _pick(rng, _GOOD if good else _BAD)
    text = _pick(rng, forms).format(*one(f"{words} {name}").split(" ", 1))
    return {"text": text, "target": "positive" if good else "negative"}


TEXT_TASKS: dict[str, Callable[[np.random.Generator, Sequence[str]], Row]] = {
    row.__name__: row for row in (text_infilling, summarization, mnli, qnli, qqp, cola, sst2)
}
