"""Scores of answers out of a closed set: accuracy, top-k accuracy, and GLUE's."""

import math
from collections import Counter
from collections.abc import Sequence

from .inputs import check_pairs


# The scores of each GLUE task, the one that names its best checkpoint first.
GLUE_SCORES = {
    "cola": ("matthews_correlation", "accuracy"),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
}


def label_accuracy(
    predictions: Sequence[str] | Sequence[Sequence[str]], references: Sequence[str], *, top_k: int = 5
) -> dict[str, float]:
    """
    How many labels are right; SNLI-VE's and ImageNet's score.

    Args:
        predictions (`Sequence[str]` or `Sequence[Sequence[str]]`):
            One label a sample, or a ranked list of labels, the best first.
        references (`Sequence[str]`):
            The right labels.
        top_k (`int`, *optional*, defaults to 5):
            With ranked lists: among how many of the first the right label may be.

    Returns:
        `dict[str, float]`: `accuracy`, and with ranked lists `top_{k}_accuracy`.

    Raises:
        TypeError: If labels and ranked lists are mixed.
        ValueError: If the numbers differ, `top_k` is not positive, or a ranked list is empty.
    """
    check_pairs(predictions, references)
    ranked = [not isinstance(one, str) for one in predictions]
    if any(ranked) and not all(ranked):
        raise TypeError("Predictions are either labels or ranked lists of labels; these are mixed.")
    if not any(ranked):
        return {"accuracy": _share(one == true for one, true in zip(predictions, references, strict=True))}
    if top_k < 1:
        raise ValueError(f"top_k is at least 1, not {top_k}.")
    if not all(len(one) for one in predictions):
        raise ValueError("A ranked list of labels is empty; give at least the best label.")
    pairs = list(zip(predictions, references, strict=True))
    return {
        "accuracy": _share(labels[0] == true for labels, true in pairs),
        f"top_{top_k}_accuracy": _share(true in labels[:top_k] for labels, true in pairs),
    }


def glue(predictions: Sequence[str], references: Sequence[str], task: str) -> dict[str, float]:
    """
    The scores of a GLUE task.

    Args:
        predictions (`Sequence[str]`):
            One answer a sample, in OFA's words (`yes`, `no`, `maybe`, `positive`, `negative`). Another word is wrong.
        references (`Sequence[str]`):
            The right answers.
        task (`str`):
            `cola`, `mnli`, `mrpc`, `qnli`, `qqp`, `rte` or `sst2`.

    Returns:
        `dict[str, float]`: `accuracy`; for CoLA also `matthews_correlation`; for MRPC and QQP also `f1` of `yes`.

    Raises:
        ValueError: If the task is unknown, the numbers differ, or F1 is due and a reference is neither yes nor no.
    """
    if task not in GLUE_SCORES:
        raise ValueError(f"Unknown GLUE task {task!r}; choose one of {', '.join(GLUE_SCORES)}.")
    check_pairs(predictions, references)
    scores = {}
    for name in GLUE_SCORES[task]:
        if name == "accuracy":
            scores[name] = label_accuracy(predictions, references)["accuracy"]
        elif name == "f1":
            scores[name] = _f1(predictions, references)
        else:
            scores[name] = _matthews_correlation(predictions, references)
    return scores


def _share(right) -> float:
    outcomes = list(right)
    return sum(outcomes) / len(outcomes)


def _f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    strange = set(references) - {"yes", "no"}
    if strange:
        raise ValueError(f"F1 is that of the answer 'yes', but a reference is {min(strange)!r}; write yes or no.")
    both = sum(one == true == "yes" for one, true in zip(predictions, references, strict=True))
    said_or_true = sum(one == "yes" for one in predictions) + sum(true == "yes" for true in references)
    return 2 * both / said_or_true if said_or_true else 0.0


def _matthews_correlation(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The correlation of two labellings with any number of labels; 0 where one of them is constant."""
    said, true, total = Counter(predictions), Counter(references), len(references)
    right = sum(one == other for one, other in zip(predictions, references, strict=True))
    covariance = right * total - sum(count * true[label] for label, count in said.items())
    spread = [total**2 - sum(count**2 for count in labels.values()) for labels in (said, true)]
    return covariance / math.sqrt(spread[0] * spread[1]) if all(spread) else 0.0
