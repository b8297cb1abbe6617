"""Scores of captions with COCO's arithmetic: CIDEr-D, BLEU-1 to 4, ROUGE-L and, through Java, METEOR.

CIDEr-D: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (https://arxiv.org/abs/1411.5726),
section 5, with the clipped counts and the length penalty of the D variant. It is also the reward of self-critical
training, where the document frequencies are those of the training set.
"""

import json
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

from .inputs import check_pairs
from .ptb import java_package, ptb_tokens, stanford_tokens


Tokenizer = Literal["ptb", "stanford", "none"]

_ORDERS = 4  # n-grams of one to four words, in CIDEr-D and in BLEU
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def strip_punctuation(caption: str) -> str:
    """Takes ASCII punctuation out of a caption, as OFA does with what it wrote before COCO's evaluation reads it."""
    return caption.translate(_NO_PUNCTUATION).strip()


def reward_text(caption: str) -> str:
    """A caption as OFA's self-critical reward compares it: without punctuation, and ended by `<eos>` as a word."""
    return strip_punctuation(caption) + " <eos>"


def _ngrams(text: str) -> list[Counter[str]]:
    """Counts the n-grams of a text cut at white space, one counter an order."""
    words = text.split()
    return [
        Counter(" ".join(words[start : start + order]) for start in range(len(words) - order + 1))
        for order in range(1, _ORDERS + 1)
    ]


class _Vector(NamedTuple):
    weights: list[dict[str, float]]  # one an order: n-gram → count times inverse document frequency
    norms: list[float]
    bigrams: int  # what CIDEr-D takes for the length


class CiderD:
    """
    CIDEr-D against a table of document frequencies.

    Args:
        document_frequency (`Mapping[str, float]`):
            How many documents (pictures) have the n-gram in a reference; n-grams are words joined by one space.
        n_documents (`float`):
            The number of documents that the table was counted on.
        sigma (`float`, *optional*, defaults to 6.0):
            Width of the Gaussian that punishes a difference in length.

    Examples:

    ```python
    >>> references = [["a black dog", "a dog runs"], ["two red boats"]]
    >>> cider = CiderD.from_references(references)
    >>> [round(score, 4) for score in cider.score(["a black dog", "two boats"], references)]
    [4.5833, 2.0131]
    ```
    """

    def __init__(self, document_frequency: Mapping[str, float], n_documents: float, sigma: float = 6.0):
        if n_documents < 1:
            raise ValueError(f"n_documents is the number of pictures counted, at least 1, not {n_documents}.")
        self.document_frequency = document_frequency
        self.n_documents = n_documents
        self.sigma = sigma

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]]) -> "CiderD":
        """Counts document frequencies over the references of each picture, which are tokens joined by spaces."""
        frequency: Counter[str] = Counter()
        documents = 0
        for texts in references:
            if isinstance(texts, str):
                raise TypeError("The references of a picture are a list of strings, not one string.")
            frequency.update({ngram for text in texts for counts in _ngrams(text) for ngram in counts})
            documents += 1
        return cls(frequency, documents)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "CiderD":
        """Reads what `save` wrote."""
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(table, dict) or not {"document_frequency", "n_documents"} <= table.keys():
            raise ValueError(f"{path} is no table of document frequencies; CiderD.save writes one.")
        return cls(table["document_frequency"], table["n_documents"])

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON, sorted, so that equal tables are equal files."""
        table = {"n_documents": self.n_documents, "document_frequency": self.document_frequency}
        Path(path).write_text(json.dumps(table, ensure_ascii=False, sort_keys=True), encoding="utf-8")

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """
        Scores each candidate against its references, from 0 to 10.

        Args:
            candidates (`Sequence[str]`):
                Captions, tokens joined by spaces; as a reward, each passed through [`reward_text`].
            references (`Sequence[Sequence[str]]`):
                The references of each candidate, in the same form; they may repeat.
        """
        check_pairs(candidates, references, of_lists=True)
        known: dict[str, _Vector] = {}  # self-critical training scores many candidates against the same references

        def vector(text: str) -> _Vector:
            if text not in known:
                known[text] = self._vector(text)
            return known[text]

        return [
            10.0 * sum(self._similarity(vector(candidate), vector(text)) for text in texts) / len(texts)
            for candidate, texts in zip(candidates, references, strict=True)
        ]

    def _vector(self, text: str) -> _Vector:
        counts = _ngrams(text)
        log_documents = math.log(self.n_documents)
        weights = [
            {
                ngram: count * (log_documents - math.log(max(1.0, self.document_frequency.get(ngram, 0.0))))
                for ngram, count in of_order.items()
            }
            for of_order in counts
        ]
        norms = [math.sqrt(sum(weight**2 for weight in of_order.values())) for of_order in weights]
        return _Vector(weights, norms, counts[1].total())

    def _similarity(self, candidate: _Vector, reference: _Vector) -> float:
        """Cosine of the clipped tf-idf vectors, mean over the orders, times the length penalty."""
        cosines = 0.0
        for order in range(_ORDERS):
            norm = candidate.norms[order] * reference.norms[order]
            others = reference.weights[order]
            product = sum(
                min(weight, others[ngram]) * others[ngram]
                for ngram, weight in candidate.weights[order].items()
                if ngram in others
            )
            cosines += product / norm if norm else 0.0
        difference = candidate.bigrams - reference.bigrams
        return cosines / _ORDERS * math.exp(-(difference**2) / (2 * self.sigma**2))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """
    BLEU-1 to BLEU-4 of a corpus as COCO counts them: closest reference length, and its two small constants.

    Args:
        candidates (`Sequence[str]`):
            Captions, tokens joined by spaces.
        references (`Sequence[Sequence[str]]`):
            The references of each candidate, in the same form.
    """
    check_pairs(candidates, references, of_lists=True)
    small, tiny = 1e-9, 1e-15
    correct, guessed = [0] * _ORDERS, [0] * _ORDERS
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        words = len(candidate.split())
        length += words
        reference_length += min((abs(size - words), size) for size in (len(text.split()) for text in texts))[1]
        counted = [_ngrams(text) for text in texts]
        for order, counts in enumerate(_ngrams(candidate)):
            guessed[order] += counts.total()
            most = counted[0][order]
            for other in counted[1:]:
                most = most | other[order]
            correct[order] += (counts & most).total()
    ratio = (length + tiny) / (reference_length + small)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(_ORDERS):
        product *= (correct[order] + tiny) / (guessed[order] + small)
        scores.append(penalty * product ** (1 / (order + 1)))
    return scores


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> list[float]:
    """
    ROUGE-L of each caption as COCO counts it: F-measure of the best precision and the best recall of any reference.

    Args:
        candidates (`Sequence[str]`):
            Captions, tokens joined by spaces.
        references (`Sequence[Sequence[str]]`):
            The references of each candidate, in the same form.
        beta (`float`, *optional*, defaults to 1.2):
            How much more recall weighs than precision.
    """
    check_pairs(candidates, references, of_lists=True)
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        words = candidate.split(" ")  # COCO takes an empty caption for one empty word
        others = [text.split(" ") for text in texts]
        common = [_common_subsequence(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        whole = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / whole if whole else 0.0)
    return scores


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


def _meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    samples = range(len(candidates))
    score, _ = Meteor().compute_score(
        {sample: list(references[sample]) for sample in samples}, {sample: [candidates[sample]] for sample in samples}
    )
    return score


def _tokenize(captions: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    if tokenizer == "ptb":
        tokens = [ptb_tokens(caption) for caption in captions]
    elif tokenizer == "stanford":
        tokens = stanford_tokens(captions)
    elif tokenizer == "none":
        tokens = [caption.split() for caption in captions]
    else:
        raise ValueError(f"Unknown tokenizer {tokenizer!r}; choose 'ptb', 'stanford' or 'none'.")
    return [" ".join(words) for words in tokens]


def coco_caption(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: Tokenizer = "ptb",
    punctuation: bool = False,
    meteor: bool | None = None,
) -> dict[str, float]:
    """
    Scores captions as COCO's evaluation does: CIDEr-D with the document frequencies of these references, BLEU, ROUGE-L
    and METEOR. Published tables multiply by 100.

    Args:
        predictions (`Sequence[str]`):
            One caption a picture.
        references (`Sequence[Sequence[str]]`):
            The people's captions of each picture.
        tokenizer (`str`, *optional*, defaults to `"ptb"`):
            `"ptb"` cuts into Penn Treebank tokens in Python, `"stanford"` by the program that COCO's evaluation runs
            (Java), `"none"` at white space: for captions that are cut already, such as Chinese ones.
        punctuation (`bool`, *optional*, defaults to `False`):
            Whether to leave punctuation in the predictions. OFA's evaluation takes it out first.
        meteor (`bool`, *optional*):
            Whether to compute METEOR, which takes seconds to start; by default where Java and pycocoevalcap are.

    Returns:
        `dict[str, float]`: `cider`, `bleu_1` to `bleu_4`, `rouge_l`, and `meteor` if computed.

    Raises:
        ImportError: If METEOR or Stanford's tokeniser is asked for and Java or pycocoevalcap is missing.
        ValueError: If the numbers of predictions and references differ, or a picture has no reference.
    """
    check_pairs(predictions, references, of_lists=True)
    if meteor is None:
        meteor = java_package() is not None
    elif meteor and java_package() is None:
        raise ImportError(
            "METEOR needs Java and pycocoevalcap: install a Java runtime and `pip install 'modeling-ofa[meteor]'`."
        )
    if not punctuation:
        predictions = [strip_punctuation(caption) for caption in predictions]
    # One run for all: starting Java costs more than cutting.
    texts = iter(_tokenize([*predictions, *(text for those in references for text in those)], tokenizer))
    candidates = [next(texts) for _ in predictions]
    truths = [[next(texts) for _ in those] for those in references]

    cider = CiderD.from_references(truths).score(candidates, truths)
    scores = {"cider": math.fsum(cider) / len(cider)}
    scores.update({f"bleu_{order}": score for order, score in enumerate(bleu(candidates, truths), start=1)})
    longest = rouge_l(candidates, truths)
    scores["rouge_l"] = math.fsum(longest) / len(longest)
    if meteor:
        scores["meteor"] = _meteor(candidates, truths)
    return scores
