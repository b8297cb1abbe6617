"""What every metric checks before it counts."""

from collections.abc import Sequence
from typing import Any


def check_pairs(predictions: Sequence[Any], references: Sequence[Any], *, of_lists: bool = False) -> None:
    """
    Refuses predictions and references that cannot belong together.

    Args:
        predictions (sequence):
            One prediction a sample.
        references (sequence):
            One reference a sample.
        of_lists (`bool`, *optional*, defaults to `False`):
            Whether each reference is a list of strings, at least one.

    Raises:
        TypeError: If a string stands where a sequence is expected.
        ValueError: If there is nothing to count, or the lengths differ, or a sample has no reference.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError("Predictions and references are lists, one entry a sample, not strings.")
    if len(predictions) != len(references):
        raise ValueError(
            f"There are {len(predictions)} predictions but {len(references)} references; give one of each a sample."
        )
    if len(predictions) == 0:
        raise ValueError("There are no predictions to score.")
    if of_lists:
        for index, reference in enumerate(references):
            if isinstance(reference, str):
                raise TypeError(f"The references of sample {index} are a string; give a list of strings.")
            if len(reference) == 0:
                raise ValueError(f"Sample {index} has no reference; give at least one or leave the sample out.")
