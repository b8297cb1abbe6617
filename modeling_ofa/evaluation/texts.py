"""Scores of written texts and codes: ROUGE of summaries, edit distance of read texts, accuracy of tokens."""

import math
from collections.abc import Sequence

from .inputs import check_pairs


# Stand-alone signs that the Penn Treebank writes as words or entities, so that ROUGE, which reads only letters and
# digits, sees a word.
_ESCAPES = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}


def gigaword_text(summary: str) -> str:
    """
    A summary as OFA's Gigaword evaluation rewrites it before ROUGE: in the corpus' way of cutting and masking words.

    Lower case; stand-alone brackets and `&` as the treebank writes them; `don ' t` as `do n't`; the digit 1 as `#`,
    the corpus' sign for digits; `<unk>` as `unk`. What the official function changes besides (quotes, dashes, decimal
    points) is punctuation, which ROUGE does not see.
    """
    words: list[str] = []
    tokens = summary.lower().split()
    for index, token in enumerate(tokens):
        if token == "t" and index > 1 and tokens[index - 1] == "'" and words[-2].endswith("n"):
            words[-2:] = [words[-2][:-1], "n't"]
        else:
            words.append(_ESCAPES.get(token, token))
    return " ".join(words).replace("<unk>", " unk").replace("1", "#")


class _Characters:
    """A tokeniser for rouge-score that takes every character but white space for a word."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text.lower() if not character.isspace()]


def rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    gigaword: bool = True,
    characters: bool = False,
) -> dict[str, float]:
    """
    ROUGE-1, ROUGE-2 and ROUGE-L of summaries by the library rouge-score, stemmed, as OFA's Gigaword evaluation.

    Args:
        predictions (`Sequence[str]`):
            One summary a text.
        references (`Sequence[Sequence[str]]`):
            The people's summaries of each text; of several, the one with the best F1 counts.
        gigaword (`bool`, *optional*, defaults to `True`):
            Whether to rewrite the predictions in Gigaword's way first (see [`gigaword_text`]); not for other data.
        characters (`bool`, *optional*, defaults to `False`):
            Whether to count characters instead of English words, as is usual for Chinese.

    Returns:
        `dict[str, float]`: the means of F1 (`rouge1`, `rouge2`, `rougeL`) and of recall (`rouge1_recall`, …).

    Raises:
        ImportError: If rouge-score is not installed.
        ValueError: If the numbers of predictions and references differ, or a text has no reference.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("ROUGE needs rouge-score: `pip install 'modeling-ofa[metrics]'`.") from error

    check_pairs(predictions, references, of_lists=True)
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True, tokenizer=_Characters() if characters else None)
    scores = []
    for prediction, texts in zip(predictions, references, strict=True):
        summary = gigaword_text(prediction) if gigaword else prediction
        scores.append(scorer.score_multi([text.lower() for text in texts], summary))
    means = {name: math.fsum(score[name].fmeasure for score in scores) / len(scores) for name in names}
    recalls = {f"{name}_recall": math.fsum(score[name].recall for score in scores) / len(scores) for name in names}
    return means | recalls


def edit_distance(predictions: Sequence[str], references: Sequence[str], *, spaces: bool = False) -> dict[str, float]:
    """
    How far read texts are from the true ones, in characters that must be inserted, deleted or replaced.

    Args:
        predictions (`Sequence[str]`):
            One text a sample.
        references (`Sequence[str]`):
            The true texts.
        spaces (`bool`, *optional*, defaults to `False`):
            Whether spaces count. OFA's text recognition takes them out first.

    Returns:
        `dict[str, float]`: `exact_match` (the official accuracy of text recognition), `cer` (all edits by all true
        characters) and `normalized_edit_distance` (mean of the edits by the length of the longer text).

    Raises:
        ValueError: If the numbers of texts differ, or all true texts are empty.
    """
    check_pairs(predictions, references)
    edits, lengths, relative, equal = 0, 0, [], 0
    for prediction, reference in zip(predictions, references, strict=True):
        found, true = prediction.strip(), reference.strip()
        if not spaces:
            found, true = found.replace(" ", ""), true.replace(" ", "")
        distance = _edits(found, true)
        edits += distance
        lengths += len(true)
        equal += found == true
        relative.append(distance / max(len(found), len(true), 1))
    if not lengths:
        raise ValueError("All references are empty, so the character error rate is undefined.")
    return {
        "exact_match": equal / len(relative),
        "cer": edits / lengths,
        "normalized_edit_distance": math.fsum(relative) / len(relative),
    }


def _edits(left: str, right: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(right) + 1))
    for place, letter in enumerate(left, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(right, start=1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != other)),
            )
    return row[-1]


def token_accuracy(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
    """
    How many tokens are right, place by place; a token too few or too many is wrong. For image codes.

    Args:
        predictions (`Sequence[Sequence[int]]`):
            The tokens of each sample.
        references (`Sequence[Sequence[int]]`):
            The true tokens.

    Returns:
        `dict[str, float]`: `accuracy` over all tokens.

    Raises:
        ValueError: If the numbers of samples differ or there is no token at all.
    """
    check_pairs(predictions, references)
    pairs = list(zip(predictions, references, strict=True))
    places = sum(max(len(found), len(true)) for found, true in pairs)
    if not places:
        raise ValueError("There are no tokens to compare.")
    right = sum(one == other for found, true in pairs for one, other in zip(found, true, strict=False))
    return {"accuracy": right / places}
