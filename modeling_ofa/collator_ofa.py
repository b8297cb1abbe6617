"""Raw rows of any tasks to one padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

from .modeling_ofa import shift_tokens_right
from .processing_ofa import OFAProcessor
from .tasks_ofa import Task, get_task


def target_of(row: Mapping[str, Any], task: Task) -> Any:
    """
    Gives what the model shall answer to a row of data, in the form in which [`OFAProcessor`] takes a `target`, or
    `None` if the row does not tell.

    Args:
        row (`Mapping[str, Any]`): A row with a `target`, or an `Example` with `boxes` and `labels` or `codes`.
        task ([`Task`]): The task of the row.
    """
    target = row.get("target")
    if target is not None:
        return target
    if task.answer == "codes":
        return row.get("codes")
    boxes = row.get("boxes")
    if boxes is None:
        return None
    if task.answer == "boxes":
        return {"boxes": boxes, "labels": row.get("labels")}
    return boxes[0] if task.answer == "box" and boxes else None


def encoded_picture(image: Any) -> Any:
    """Gives what [`OFAProcessor`] reads of a picture that `datasets` left undecoded; others as they are."""
    if isinstance(image, Mapping):
        return image["path"] if image.get("bytes") is None else image["bytes"]
    return image


class DataCollatorForOFA:
    """
    Makes batches of raw rows, of one task or of several, for `Trainer` and for evaluation.

    A row is a mapping with `task`, and of these what its task takes: `image`, `text`, `text_pair`, `objects`,
    `target`; the columns of an `Example` are understood too. With `Trainer`, set `remove_unused_columns=False`, since
    none of them is an argument of the model. Texts longer than in the official recipes are cut.

    Args:
        processor ([`OFAProcessor`]): Makes the inputs.
        task (`str` or [`Task`], *optional*): The task of rows that do not name one.
        decoder_prompt (`str`, *optional*): In place of the processor's own `decoder_prompt`.
        with_targets (`bool`, *optional*, defaults to `True`):
            Whether to make `labels`, where rows have targets. Evaluation by generation wants none.
        **kwargs: Passed to every call of the processor, such as `size`.

    Example:

    ```python
    >>> collator = DataCollatorForOFA(processor)
    >>> batch = collator([
    ...     {"task": "caption", "image": image, "target": "a dog on a beach"},
    ...     {"task": "visual_grounding", "image": image, "text": "the dog", "target": [64, 114, 320, 342]},
    ... ])
    >>> model(**batch).loss
    ```
    """

    def __init__(
        self,
        processor: OFAProcessor,
        task: str | Task | None = None,
        decoder_prompt: str | None = None,
        with_targets: bool = True,
        **kwargs: Any,
    ):
        self.processor = processor
        self.task = None if task is None else get_task(task)
        self.decoder_prompt = decoder_prompt
        self.with_targets = with_targets
        self.kwargs = kwargs

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """
        Makes one batch.

        Args:
            rows (`list[Mapping[str, Any]]`): The rows.

        Returns:
            [`BatchFeature`]: tensors, as [`OFAProcessor.__call__`] describes them, with decoder inputs wherever there
            are labels.

        Raises:
            `ValueError`: if a row names no task or lacks its image, or if some rows have a target and others have
                none; and whatever the processor finds wrong with a row.
        """
        tasks = [self._task_of(i, row) for i, row in enumerate(rows)]
        for i, (task, row) in enumerate(zip(tasks, rows, strict=True)):
            if task.takes_image and row.get("image") is None:
                raise ValueError(f"Row {i} of the batch has no image, but task {task.name!r} is about one.")
        targets = None
        if self.with_targets:
            targets = [target_of(row, task) for row, task in zip(rows, tasks, strict=True)]
            missing = [i for i, target in enumerate(targets) if target is None]
            if len(missing) == len(rows):
                targets = None
            elif missing:
                raise ValueError(
                    f"Row {missing[0]} of the batch has no target for task {tasks[missing[0]].name!r}, but others "
                    "have one: give every row a target, or none."
                )
        columns = {name: [row.get(name) for row in rows] for name in ("text", "text_pair")}
        columns["image"] = [encoded_picture(row.get("image")) for row in rows]
        # Data may name objects for other ends, such as captions that shall not match.
        columns["objects"] = [
            row.get("objects") if task.takes_objects else None for row, task in zip(rows, tasks, strict=True)
        ]
        given = {name: values for name, values in columns.items() if any(one is not None for one in values)}
        batch = self.processor(
            images=given.pop("image", None),
            task=tasks,
            target=targets,
            prompt_type=self.decoder_prompt,
            return_tensors="pt",
            **{"truncation": True, **self.kwargs, **given},
        )
        if "labels" in batch and "decoder_input_ids" not in batch:
            # `Trainer` keeps labels from the model where it smooths them itself.
            tokenizer, labels = self.processor.tokenizer, batch["labels"]
            shifted = shift_tokens_right(labels, tokenizer.pad_token_id, tokenizer.bos_token_id)
            batch["decoder_input_ids"] = shifted.masked_fill(labels == -100, tokenizer.pad_token_id)
            batch["decoder_prompt_lengths"] = torch.ones(len(labels), dtype=torch.long)
        return batch

    def _task_of(self, i: int, row: Mapping[str, Any]) -> Task:
        task = row.get("task") or self.task
        if task is None:
            raise ValueError(
                f"Row {i} names no task: give the rows a column 'task', or the collator task=. (A Trainer takes the "
                "columns of rows away unless it has remove_unused_columns=False.)"
            )
        return get_task(task)


__all__ = ["DataCollatorForOFA", "encoded_picture", "target_of"]
