"""Answers to rows of any tasks: what a closed list decides is decided by all candidates, the rest is generated."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import PIL.Image
import torch

from .collator_ofa import DataCollatorForOFA, encoded_picture
from .processing_ofa import OFAProcessor
from .tasks_ofa import Task, get_task
from .trie_ofa import AnswerTrie


STRATEGIES = ("auto", "generate")
# Options of `generate` that answers, or their form, depend on.
_TAKEN = {"generation_config", "logits_processor", "num_return_sequences", "output_scores", "return_dict_in_generate"}


class Predictor:
    """
    A model and its processor, ready to answer rows of data, of one task or of several.

    Rows that can be decided together are: those of a task with a closed list by one `score_candidates`, all that are
    decoded in the same way, on pictures of the same size, by one `generate`. So a row gets the answer that it gets
    alone, whatever else the batch holds.

    Args:
        model ([`OFAForConditionalGeneration`]): The model, in evaluation mode.
        processor ([`OFAProcessor`]): Its processor.
        answers (`Sequence[str]` or `Mapping[str, Sequence[str]]`, *optional*):
            The closed lists of answers by the name of their task, in place of the processor's (VQA's answers,
            ImageNet's classes); or one list, for tasks that answer with a text or label and have none of their own.
        strategy (`str`, *optional*, defaults to `"auto"`):
            `"auto"` takes the most probable answer of the list where there is one, exactly; `"generate"` searches
            there too, under the trie of the list.
        decoder_prompt (`str`, *optional*): In place of the processor's own `decoder_prompt`.
        with_scores (`bool`, *optional*, defaults to `False`):
            Whether what is generated gets a score too. This keeps the scores of all words at all steps in memory.
        generate_kwargs (`Mapping[str, Any]`, *optional*):
            Options of `generate` in place of the tasks' own, such as `{"num_beams": 1}`.

    Raises:
        `ValueError`: if there is no such strategy, or if an option is one that a predictor sets itself.

    Example:

    ```python
    >>> predictor = Predictor(model, processor, answers={"vqa": ["red", "green", "blue"]})
    >>> predictor([
    ...     {"task": "caption", "image": "dog.jpg"},
    ...     {"task": "vqa", "image": "dog.jpg", "text": "what color is the ball?"},
    ... ])
    [{'text': 'a dog plays with a ball'}, {'text': 'red', 'score': 0.87}]
    ```
    """

    def __init__(
        self,
        model: Any,
        processor: OFAProcessor,
        answers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        strategy: Literal["auto", "generate"] = "auto",
        decoder_prompt: str | None = None,
        with_scores: bool = False,
        generate_kwargs: Mapping[str, Any] | None = None,
    ):
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is one of {', '.join(map(repr, STRATEGIES))}, not {strategy!r}.")
        self.generate_kwargs = dict(generate_kwargs or {})
        if taken := sorted(_TAKEN & self.generate_kwargs.keys()):
            raise ValueError(
                f"{', '.join(taken)} cannot be given here, where a row gets one answer under its task's constraint: "
                "call `model.generate` itself, with what `processor.generation_kwargs` gives."
            )
        self.model = model
        self.processor = processor
        self.answers = answers
        self.strategy = strategy
        self.with_scores = with_scores
        self.collator = DataCollatorForOFA(processor, decoder_prompt=decoder_prompt, with_targets=False)
        self._tries: dict[str, AnswerTrie] = {}

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Mapping[str, Any]], top_k: int = 1) -> list[dict[str, Any]]:
        """
        Answers rows.

        Args:
            rows (`Sequence[Mapping[str, Any]]`):
                Rows with the columns of an `Example`: `task`, and of `image` (a PIL picture, a path, a URL or the
                bytes of a file), `text`, `text_pair` and `objects` what the task takes.
            top_k (`int`, *optional*, defaults to 1):
                How many of the best answers of a closed list to list under `"ranking"`, if more than one.

        Returns:
            `list[dict[str, Any]]`: For each row what [`OFAProcessor.post_process`] gives, or, decided by all
            candidates, [`OFAProcessor.post_process_candidates`].

        Raises:
            `ValueError`: if the model is in training mode, if a task that answers with a label has no list, or if
                the processor refuses a row.
        """
        if self.model.training:
            raise ValueError("Dropout would make answers random: call `model.eval()` first.")
        rows = [self.read(row) for row in rows]
        groups: dict[Hashable, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(self._group(task_of(row)), []).append(i)
        answers: list[dict[str, Any]] = [{}] * len(rows)
        for members in groups.values():
            together = [rows[i] for i in members]
            chooses = self._chooses(task_of(together[0]))
            given = self._choose(together, top_k) if chooses else self._generate(together)
            for i, answer in zip(members, given, strict=True):
                answers[i] = answer
        return answers

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a row with its picture decoded and upright, see [`read_row`]."""
        return read_row(self.processor, row)

    def closed_list(self, task: str | Task) -> Sequence[str] | None:
        """Gives the answers among which a task chooses, or `None` if it writes freely."""
        row, known = get_task(task), self.processor.closed_list(task)
        if isinstance(self.answers, Mapping):
            return self.answers.get(row.name) or known
        lacks = row.answer in ("text", "label") and not row.answers
        return self.answers if self.answers is not None and lacks else known

    def _chooses(self, task: Task) -> bool:
        return self.strategy == "auto" and self.closed_list(task) is not None

    def _group(self, task: Task) -> Hashable:
        """Gives what rows must have in common to be decided together."""
        if self._chooses(task):
            return task.name
        if task.answer == "label" and self.closed_list(task) is None and self.strategy == "auto":
            raise ValueError(f"Task {task.name!r} chooses from a closed list: give answers=.")
        options = self.processor.generation_kwargs(task, constrained=False, **self.generate_kwargs)
        return task.takes_image and task.image_size, options["do_sample"], options.get("num_beams", 1)

    def _trie(self, task: Task) -> AnswerTrie:
        """Gives the trie of a task's closed list, which is built once."""
        if task.name not in self._tries:
            self._tries[task.name] = self.processor.answer_trie(self.closed_list(task) or (), task)
        return self._tries[task.name]

    def _choose(self, rows: Sequence[Mapping[str, Any]], top_k: int) -> list[dict[str, Any]]:
        """Answers rows of one task by all candidates."""
        task = task_of(rows[0])
        log_probs = self.model.score_candidates(self._inputs(rows), self._trie(task))
        return self.processor.post_process_candidates(log_probs, self.closed_list(task) or (), task, top_k)

    def _generate(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answers rows that are decoded in the same way."""
        inputs = self._inputs(rows)
        lengths = [1] * len(rows)
        if "decoder_attention_mask" in inputs:
            lengths = inputs["decoder_attention_mask"].sum(dim=1).tolist()
        answers: list[dict[str, Any]] = [{}] * len(rows)
        for length in set(lengths):  # what is written must follow its prompt, and no padding
            members = [i for i, one in enumerate(lengths) if one == length]
            part = {name: values[members] for name, values in inputs.items()}
            part.update({name: part[name][:, :length] for name in part if name.startswith("decoder_")})
            for i, answer in zip(members, self._search([rows[i] for i in members], part), strict=True):
                answers[i] = answer
        return answers

    def _search(self, rows: Sequence[Mapping[str, Any]], inputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Answers rows whose inputs have decoder prompts of one length, or none."""
        tasks = [task_of(row) for row in rows]
        tries = {task.name: self._trie(task) for task in tasks if self.closed_list(task) is not None}
        options = self.processor.generation_kwargs(tasks, answers=tries, **self.generate_kwargs)
        if self.with_scores:
            options |= {"return_dict_in_generate": True, "output_scores": True}
        output = self.model.generate(**inputs, **options)
        ids, log_probs = output, None
        if self.with_scores:
            # Beams are ranked by probabilities, whereas greedy search and sampling keep logits.
            ids, beams = output.sequences, getattr(output, "beam_indices", None)
            log_probs = self.model.compute_transition_scores(ids, output.scores, beams, normalize_logits=beams is None)
        pictures = [row.get("image") for row in rows]
        sizes = [None if picture is None else (picture.height, picture.width) for picture in pictures]
        return self.processor.post_process(ids, tasks, image_sizes=sizes, transition_scores=log_probs, inputs=inputs)

    def _inputs(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        return self.collator(rows).to(self.model.device, self.model.dtype)


def read_row(processor: OFAProcessor, row: Mapping[str, Any]) -> dict[str, Any]:
    """
    Gives a row of data with its picture decoded and upright.

    Raises:
        `FileNotFoundError`: if there is no such picture.
        `ConnectionError`: if there is none at its address.
        `ValueError`: if it is damaged.
        `TypeError`: if it is of a kind that this function does not take.
    """
    image = row.get("image")
    if image is None:
        return dict(row)
    picture = processor.image_processor.fetch_images(encoded_picture(image))
    if not isinstance(picture, PIL.Image.Image):
        raise TypeError(f"A picture is a PIL picture, a path, a URL or bytes here, not {type(image).__name__}.")
    return {**row, "image": picture}


def task_of(row: Mapping[str, Any]) -> Task:
    """
    Gives the task of a row of data.

    Raises:
        `ValueError`: if the row names none that there is.
    """
    task = row.get("task")
    if task is None:
        raise ValueError(f"A row names no task; it has {', '.join(row)}.")
    return get_task(task)


__all__ = ["STRATEGIES", "Predictor", "read_row", "task_of"]
