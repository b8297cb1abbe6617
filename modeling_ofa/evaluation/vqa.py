"""Accuracy of answers to questions about pictures: VQAv2's official one, and the soft score of OFA's own validation.

The official accuracy (Goyal et al., "Making the V in VQA Matter", https://arxiv.org/abs/1612.00837) is that of the
evaluation server: answers are normalised, and an answer counts as far as three other people gave it.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from .inputs import check_pairs


_NUMBERS = dict(
    zip(
        "none zero one two three four five six seven eight nine ten".split(),
        "0 0 1 2 3 4 5 6 7 8 9 10".split(),
        strict=True,
    )
)
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_POINT = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")


def _contractions() -> dict[str, str]:
    """Spellings that lack one apostrophe → the right ones; in long forms any one may lack."""
    right = """
        'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
        hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
        mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
        shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
        something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
        they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
        where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
        wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
    """.split()
    lacking = {
        word[:place] + word[place + 1 :]: word for word in right for place, letter in enumerate(word) if letter == "'"
    }
    return lacking | {"somebody'd": "somebodyd"}  # as the official table has it


_CONTRACTIONS = _contractions()


def normalize_answer(answer: str) -> str:
    """
    Normalises an answer as the VQA server does: punctuation, case, number words, articles, contractions.

    Examples:

    ```python
    >>> normalize_answer("The two dogs, isnt it?")
    "2 dogs isn't it"
    ```
    """
    text = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or _DIGIT_COMMA.search(answer) else " ")
    words = [_NUMBERS.get(word, word) for word in _POINT.sub("", text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """
    The accuracy of one answer: the mean, over all people but one in turn, of `min(1, agreeing / 3)`.

    As on the server, answers are only normalised if people differ in the wording.
    """
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    agreeing = sum(answer == prediction for answer in answers)
    # Leaving out one of those who agree leaves one fewer; leaving out another changes nothing.
    without_one, with_all = min(1.0, (agreeing - 1) / 3), min(1.0, agreeing / 3)
    return (agreeing * without_one + (len(answers) - agreeing) * with_all) / len(answers)


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict[str, float]:
    """
    VQAv2's official accuracy, from 0 to 1.

    Args:
        predictions (`Sequence[str]`):
            One answer a question.
        references (`Sequence[Sequence[str]]`):
            The people's answers to each question, ten in VQAv2, not yet normalised.
        answer_types (`Sequence[str]`, *optional*):
            The type of each question's answer (`yes/no`, `number`, `other`), for a breakdown.
        question_types (`Sequence[str]`, *optional*):
            The type of each question (`what color is the`, …), for a breakdown.

    Returns:
        `dict[str, float]`: `accuracy`, and `answer_type/…` and `question_type/…` for the types given.

    Raises:
        ValueError: If the numbers of predictions, references or types differ, or a question has no answer.
    """
    check_pairs(predictions, references, of_lists=True)
    accuracies = [answer_accuracy(*pair) for pair in zip(predictions, references, strict=True)]
    groups = defaultdict(list, accuracy=accuracies)
    for name, types in (("answer_type", answer_types), ("question_type", question_types)):
        if types is None:
            continue
        if len(types) != len(accuracies):
            raise ValueError(f"There are {len(types)} {name}s for {len(accuracies)} questions; give one a question.")
        for one, accuracy in zip(types, accuracies, strict=True):
            groups[f"{name}/{one}"].append(accuracy)
    return {name: math.fsum(group) / len(group) for name, group in groups.items()}


def vqa_soft_score(predictions: Sequence[str], references: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    The score of OFA's own validation: the soft label of the very answer, 0 if it is none of the weighted answers.

    Args:
        predictions (`Sequence[str]`):
            One answer a question.
        references (`Sequence[Mapping[str, float]]`):
            The weighted answers of each question, such as `{"yes": 1.0, "maybe": 0.3}`.

    Returns:
        `dict[str, float]`: `score`, from 0 to 1.

    Raises:
        TypeError: If a reference is no mapping.
        ValueError: If the numbers of predictions and references differ.
    """
    check_pairs(predictions, references)
    for index, weighted in enumerate(references):
        if not isinstance(weighted, Mapping):
            raise TypeError(f"Reference {index} is a {type(weighted).__name__}; give a dict of answers and scores.")
    scores = [weighted.get(answer.strip(), 0.0) for answer, weighted in zip(predictions, references, strict=True)]
    return {"score": math.fsum(scores) / len(scores)}
